-- sqlvec.refine: hits ranked by what they and their neighbours among the hits are like (SuperGlobal;
-- Shao and others 2023, arXiv:2308.06954).
--
-- A hit is replaced by the weighted mean of itself, with weight 1, and its nearest hits, with weight
-- beta x cosine. The inner product with a mean is the mean of the inner products, so that the means
-- themselves are needed for the few hits alone that expand the query.

-- Of each unit vector itself and its nearest others, `size` in all, with weights that sum to 1.
CREATE OR REPLACE FUNCTION sqlvec._nearest_hits(units vector[], size int, beta float8, OUT places int[], OUT weights float8[])
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(p.place ORDER BY p.hit, p.weight DESC, p.place), array_agg(p.weight / p.total ORDER BY p.hit, p.weight DESC, p.place)
    FROM (SELECT h.hit, h.place, h.weight, sum(h.weight) OVER (PARTITION BY h.hit) AS total
          FROM (SELECT u.n AS hit, c.n AS place, CASE c.cosine WHEN 2 THEN 1 ELSE beta * greatest(c.cosine, 0) END AS weight
                FROM unnest(units) WITH ORDINALITY AS u (x, n),
                     -- Above all cosines, so that each comes before its duplicates.
                     LATERAL (SELECT o.n, CASE WHEN o.n = u.n THEN 2 ELSE sqlvec._unit_cosine(u.x, o.x) END AS cosine
                              FROM unnest(units) WITH ORDINALITY AS o (x, n) ORDER BY 2 DESC, 1 LIMIT size) AS c) AS h) AS p;
END;

-- For each vector the mean over its neighbours of their cosine to x.
CREATE OR REPLACE FUNCTION sqlvec._mean_cosines(units vector[], places int[], weights float8[], x vector) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_cosines float8[] := ARRAY(SELECT sqlvec._unit_cosine(u, x) FROM unnest(units) AS u);
    v_size int := cardinality(places) / cardinality(units);
BEGIN
    RETURN ARRAY(SELECT sum(p.weight * v_cosines[p.place]) FROM unnest(places, weights) WITH ORDINALITY AS p (place, weight, n)
                 GROUP BY (p.n - 1) / v_size ORDER BY (p.n - 1) / v_size);
END
$body$;

-- The largest component of the means of some hits in each dimension.
CREATE OR REPLACE FUNCTION sqlvec._largest_components(units vector[], places int[], weights float8[], hits int[]) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(c.largest ORDER BY c.dimension)::vector
    FROM (SELECT m.dimension, max(m.component) AS largest
          FROM (SELECT h.hit, c.dimension, sum(p.weight * c.value) AS component
                FROM (SELECT cardinality(places) / cardinality(units) AS size) AS s, unnest(hits) AS h (hit),
                     unnest(places[(h.hit - 1) * s.size + 1 : h.hit * s.size], weights[(h.hit - 1) * s.size + 1 : h.hit * s.size]) AS p (place, weight),
                     unnest(units[p.place]::real[]) WITH ORDINALITY AS c (value, dimension)
                GROUP BY 1, 2) AS m
          GROUP BY 1) AS c;
END;

CREATE OR REPLACE FUNCTION sqlvec.refine(query vector, vectors vector[], neighbours int = 9, beta float8 = 0.15, expand boolean = false)
RETURNS TABLE ("position" int, score float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 100 SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_hits int := coalesce(cardinality(vectors), 0);
    v_query vectors%TYPE := sqlvec._unit_vectors(ARRAY[query]);
    v_units vectors%TYPE;
    v_near record;
    v_scores float8[];
    v_expanded float8[];
    v_best int[];
BEGIN
    IF query IS NULL THEN
        RAISE EXCEPTION 'the query is NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF neighbours IS NULL OR neighbours NOT BETWEEN 0 AND 1000 THEN
        RAISE EXCEPTION 'neighbours is a number from 0 to 1000, not %', neighbours USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_hits > 1000 THEN
        RAISE EXCEPTION 'sqlvec.refine compares at most 1000 hits with each other, not %', v_hits USING ERRCODE = 'program_limit_exceeded',
            HINT = 'Give it the best of them.';
    END IF;
    PERFORM sqlvec._check_share('beta', beta), sqlvec._check_vectors(vectors), sqlvec._check_vectors(vectors || query), sqlvec._refuse_zero(query, 'cosine');
    IF v_hits = 0 THEN
        RETURN;
    END IF;
    v_units := sqlvec._unit_vectors(vectors);
    v_near := sqlvec._nearest_hits(v_units, least(neighbours + 1, v_hits), sqlvec._flushed(beta));
    v_scores := sqlvec._mean_cosines(v_units, v_near.places, v_near.weights, v_query[1]);
    IF expand THEN
        v_best := ARRAY(SELECT s.n FROM unnest(v_scores) WITH ORDINALITY AS s (score, n) ORDER BY s.score DESC, s.n LIMIT neighbours + 1);
        v_expanded := sqlvec._mean_cosines(v_units, v_near.places, v_near.weights,
                                           sqlvec._largest_components(v_units, v_near.places, v_near.weights, v_best));
        v_scores := ARRAY(SELECT (s.score + s.expanded) / 2 FROM unnest(v_scores, v_expanded) AS s (score, expanded));
    END IF;
    RETURN QUERY SELECT s.n::int, s.score FROM unnest(v_scores) WITH ORDINALITY AS s (score, n) ORDER BY s.score DESC, s.n;
END
$body$;

COMMENT ON FUNCTION sqlvec.refine(vector, vector[], int, float8, boolean) IS
    'Order of hits, as positions in the list (from 1), by the cosine of query to each of them averaged with its nearest hits: itself with weight 1, the neighbours nearest others with weight beta x cosine (SuperGlobal, first step). expand adds the second step, made for image descriptors: half of the score is then the inner product with the largest components of the neighbours + 1 best. At most 1000 hits; of equal scores the earlier position; NULL and zero vectors have the cosine 0 to everything.';
