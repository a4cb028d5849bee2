-- sqlvec.mmr: maximal marginal relevance (Carbonell and Goldstein 1998, doi:10.1145/290941.291025).
--
-- Each hit keeps its largest cosine to those chosen so far, so that a choice costs one pass over the
-- hits however many were chosen before.

CREATE OR REPLACE FUNCTION sqlvec._nearer(units vector[], nearest float8[], chosen vector) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT greatest(u.cosine, sqlvec._unit_cosine(u.x, chosen)) FROM unnest(units, nearest) AS u (x, cosine));

CREATE OR REPLACE FUNCTION sqlvec.mmr(vectors vector[], relevance float8[], k int = 10, diversity float8 = 0.3)
RETURNS TABLE ("position" int, score float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_units vectors%TYPE;
    v_nearest float8[];
    v_left float8[]; -- the relevance of what is not chosen yet
    v_hits int := coalesce(cardinality(vectors), 0);
BEGIN
    PERFORM sqlvec._check_k(k), sqlvec._check_share('diversity', diversity), sqlvec._check_vectors(vectors),
            sqlvec._check_scores('relevance', relevance, v_hits);
    v_units := sqlvec._unit_vectors(vectors);
    v_left := ARRAY(SELECT sqlvec._flushed(r) FROM unnest(relevance) AS r);
    diversity := sqlvec._flushed(diversity);
    FOR v_rank IN 1 .. least(k, v_hits) LOOP
        SELECT h.n, h.score INTO "position", score
        FROM (SELECT t.n, (1 - diversity) * t.relevance - diversity * coalesce(t.cosine, 0) AS score
              FROM unnest(v_left, v_nearest) WITH ORDINALITY AS t (relevance, cosine, n)
              WHERE t.relevance IS NOT NULL) AS h
        ORDER BY h.score DESC, h.n LIMIT 1;
        RETURN NEXT;
        v_left["position"] := NULL;
        v_nearest := sqlvec._nearer(v_units, v_nearest, v_units["position"]);
    END LOOP;
END
$body$;

COMMENT ON FUNCTION sqlvec.mmr(vector[], float8[], int, float8) IS
    'Maximal marginal relevance: k hits that are relevant and differ from each other, as positions in the lists (from 1) in the order chosen, with their score (1 - diversity) relevance - diversity (largest cosine to one chosen before). relevance on the scale of a cosine, one number for each vector; diversity 0 to 1, where 0 is the order of relevance. Of equal scores the earlier position; NULL and zero vectors resemble nothing.';
