-- sqlvec.best_per_group: the best hits of each group, for example the best passage of each document.

CREATE OR REPLACE FUNCTION sqlvec.best_per_group(groups text[], scores float8[], k int = 10, per_group int = 1)
RETURNS TABLE ("position" int, score float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM sqlvec._check_k(k), sqlvec._check_scores('scores', scores, coalesce(cardinality(groups), 0));
    IF per_group IS NULL OR per_group < 1 THEN
        RAISE EXCEPTION 'per_group is 1 or more, not %', per_group USING ERRCODE = 'invalid_parameter_value';
    ELSIF array_ndims(groups) > 1 THEN
        RAISE EXCEPTION 'groups is a list, not an array of % dimensions', array_ndims(groups) USING ERRCODE = 'array_subscript_error';
    END IF;
    RETURN QUERY
        SELECT h.n::int, h.score
        FROM (SELECT g.n, g.score, row_number() OVER (PARTITION BY g.name COLLATE "C", CASE WHEN g.name IS NULL THEN g.n END ORDER BY g.score DESC, g.n) AS place
              FROM unnest(groups, scores) WITH ORDINALITY AS g (name, score, n)) AS h
        WHERE h.place <= per_group
        ORDER BY h.score DESC, h.n LIMIT k;
END
$body$;

COMMENT ON FUNCTION sqlvec.best_per_group(text[], float8[], int, int) IS
    'The k best hits with at most per_group of each group, as positions in the lists (from 1) with their scores, the best first. groups names the group of each hit, NULL one of its own; a larger score is better (for distances give 0 - distance). Of equal scores the earlier position.';
