-- sqlvec.fit_centroids: an encoder of kind centroid from the tokens of a column, by k-means (Lloyd 1982)
-- on a sample. Unit tokens get unit centroids (spherical k-means: Dhillon and Modha 2001).

-- One step: every token to its nearest centroid, every centroid to the mean of its tokens. One that
-- nothing is nearest to stays where it is.
CREATE OR REPLACE FUNCTION sqlvec._lloyd_step(tokens vector[], centroids vector[], unit boolean) RETURNS vector[]
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH centroid AS MATERIALIZED (
        SELECT c.n, c.x, sqlvec._dot(c.x, c.x) / 2 AS half FROM unnest(centroids) WITH ORDINALITY AS c (x, n)
    ), mean AS (
        SELECT a.n, avg(a.x) AS x
        FROM (SELECT t.x, (SELECT c.n FROM centroid AS c ORDER BY sqlvec._dot(t.x, c.x) - c.half DESC, c.n LIMIT 1) AS n
              FROM unnest(tokens) AS t (x)) AS a
        GROUP BY a.n
    )
    SELECT array_agg(CASE WHEN m.x IS NULL THEN c.x WHEN unit THEN l2_normalize(m.x) ELSE m.x END ORDER BY c.n)
    FROM centroid AS c LEFT JOIN mean AS m ON m.n = c.n;
END;

-- The first different ones of an array. No bound body: pg_upgrade makes this before the operator class
-- of vector, by which the rows are grouped.
CREATE OR REPLACE FUNCTION sqlvec._different(tokens vector[], most int) RETURNS vector[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN ARRAY(SELECT t.x FROM unnest(tokens) WITH ORDINALITY AS t (x, n) GROUP BY t.x ORDER BY min(t.n) LIMIT most);
END
$body$;

-- Squared distances of tokens to the nearest centroid, which may be the new one.
CREATE OR REPLACE FUNCTION sqlvec._squared_distances(tokens vector[], distances float8[], centroid vector) RETURNS float8[]
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ARRAY(SELECT least(t.distance, power(t.x <-> centroid, 2))
             FROM unnest(tokens, distances) WITH ORDINALITY AS t (x, distance, n) ORDER BY t.n);

-- One of the tokens, with a chance that grows as its squared distance (k-means++: Arthur and
-- Vassilvitskii 2007): of random numbers u the largest u^(1 / distance).
CREATE OR REPLACE FUNCTION sqlvec._distant_token(tokens vector[], distances float8[], seed bigint) RETURNS vector
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (SELECT t.x FROM unnest(tokens, distances) WITH ORDINALITY AS t (x, distance, n)
        WHERE t.distance > 0
        ORDER BY ln(((hashint8extended(t.n, seed) & 4503599627370495) + 0.5::float8) / 4503599627370496) / t.distance DESC, t.n
        LIMIT 1);

-- Centroids to begin with; fewer where there are not enough different tokens.
CREATE OR REPLACE FUNCTION sqlvec._first_centroids(tokens vector[], clusters int, seed bigint) RETURNS vector[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    -- More would choose hardly better.
    v_tokens tokens%TYPE := sqlvec._different(tokens, 10 * clusters);
    v_centroids tokens%TYPE := v_tokens[1:1];
    v_distances float8[];
BEGIN
    FOR v_count IN 2 .. least(clusters, cardinality(v_tokens)) LOOP
        v_distances := sqlvec._squared_distances(v_tokens, v_distances, v_centroids[v_count - 1]);
        v_centroids := v_centroids || sqlvec._distant_token(v_tokens, v_distances, seed # v_count);
    END LOOP;
    RETURN v_centroids;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._is_unit(tokens vector[]) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (SELECT bool_and(abs(sqlvec._dot(x, x) - 1) < 0.01) FROM unnest(tokens) AS x);

CREATE OR REPLACE FUNCTION sqlvec._fitted_centroids(tokens vector[], clusters int, seed bigint) RETURNS vector[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_unit boolean := sqlvec._is_unit(tokens);
    v_centroids tokens%TYPE := sqlvec._first_centroids(tokens, clusters, seed);
    v_before text;
BEGIN
    FOR v_step IN 1 .. 10 LOOP
        v_before := md5(v_centroids::text);
        v_centroids := sqlvec._lloyd_step(tokens, v_centroids, v_unit);
        EXIT WHEN md5(v_centroids::text) = v_before;
    END LOOP;
    RETURN v_centroids;
END
$body$;

-- Tokens of a column in random order: of at most `sample` rows, `sample` tokens.
CREATE OR REPLACE FUNCTION sqlvec._sample_tokens(rel oid, column_name text, sample int, seed bigint, OUT tokens vector[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    EXECUTE format(
        'SELECT array_agg(s.x ORDER BY s.place) FROM ('
        'SELECT sqlvec._as_vector(t.x) AS x, hashtextextended(format(''%%s %%s'', r.place, t.n), $2) AS place '
        'FROM (SELECT p.%1$I AS tokens, hashtextextended(p.ctid::text, $2) AS place FROM %2$s AS p '
        'WHERE p.%1$I IS NOT NULL ORDER BY 2, p.tableoid LIMIT $1) AS r, unnest(r.tokens) WITH ORDINALITY AS t (x, n) '
        'WHERE t.x IS NOT NULL ORDER BY 2 LIMIT $1) AS s',
        column_name, sqlvec._qualified(rel)) INTO tokens USING sample, seed;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.fit_centroids(
    name text, rel regclass, column_name text, clusters int = 256, sample int = 10000, seed bigint = 0
) LANGUAGE plpgsql
AS $body$
BEGIN
    PERFORM sqlvec._write_centroids(name, sqlvec._centroids_of(rel, column_name, clusters, sample, seed), current_user);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._centroids_of(
    rel regclass, column_name text, clusters int, sample int, seed bigint, OUT centroids vector[]
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
BEGIN
    IF rel IS NULL OR column_name IS NULL OR clusters IS NULL OR sample IS NULL OR seed IS NULL THEN
        RAISE EXCEPTION 'fit_centroids needs a table, a column, clusters, sample and seed' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    v_source := sqlvec._multivector_column(rel, column_name);
    IF clusters NOT BETWEEN 2 AND 256 OR sample NOT BETWEEN clusters AND 1000000 THEN
        RAISE EXCEPTION 'fit_centroids finds 2 to 256 clusters in that many or up to 1000000 tokens, not % in %', clusters, sample
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    centroids := sqlvec._fitted_centroids(sqlvec._sample_tokens(rel, column_name, sample, seed), clusters, seed);
    IF coalesce(cardinality(centroids), 0) < clusters THEN
        RAISE EXCEPTION 'column "%" of table % has % different tokens in the sample, % clusters need as many',
            column_name, rel, coalesce(cardinality(centroids), 0), clusters
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Load more rows first, or ask for fewer clusters.';
    END IF;
END
$body$;

COMMENT ON PROCEDURE sqlvec.fit_centroids(text, regclass, text, int, int, bigint) IS
    'Make an encoder of kind centroid from a sample of the tokens of multi-vector column `column_name`: ten steps of k-means. Its numbers follow no order, so sqlvec.centroid_bits says little; sqlvec.fit.centroid (Python) fits somewhat better ones and orders them.';
