-- sqlvec.autocut: where a ranked list ends by the shape of its scores, without labels.
--
-- The algorithm of Weaviate (entities/autocut): scores and ranks are both scaled to 0..1; where the
-- curve of the scores runs farthest from the diagonal, a jump follows.

CREATE OR REPLACE FUNCTION sqlvec.autocut(scores float8[], jumps int = 1) RETURNS int
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    n int := cardinality(scores);
    v_first float8;
    v_span float8;
    v_above float8[];
    v_found int := 0;
BEGIN
    IF n IS NULL OR jumps IS NULL THEN
        RETURN NULL;
    ELSIF jumps < 1 THEN
        RAISE EXCEPTION 'jumps is 1 or more, not %', jumps USING ERRCODE = 'invalid_parameter_value';
    ELSIF array_ndims(scores) > 1 THEN
        RAISE EXCEPTION 'scores is a list, not an array of % dimensions', array_ndims(scores) USING ERRCODE = 'array_subscript_error';
    ELSIF EXISTS (SELECT FROM unnest(scores) AS s WHERE s IS NULL OR s IN ('NaN', 'Infinity', '-Infinity')) THEN
        RAISE EXCEPTION 'scores hold NULL, NaN or infinity' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    scores := ARRAY(SELECT s FROM unnest(scores) WITH ORDINALITY AS t (s, i) ORDER BY i); -- numbered from 1
    v_first := scores[1];
    v_span := scores[n] - v_first;
    IF n < 3 OR v_span = 0 THEN
        RETURN n; -- two points lie on the diagonal, equal ones have no shape
    END IF;
    v_above := ARRAY(SELECT (s - v_first) / v_span - (i - 1)::float8 / (n - 1) FROM unnest(scores) WITH ORDINALITY AS t (s, i) ORDER BY i);
    FOR i IN 2 .. n LOOP
        IF v_above[i] > v_above[i - 1] AND v_above[i] > coalesce(v_above[i + 1], v_above[i - 2]) THEN
            v_found := v_found + 1;
            IF v_found = jumps THEN
                RETURN i - 1;
            END IF;
        END IF;
    END LOOP;
    RETURN n;
END
$body$;

COMMENT ON FUNCTION sqlvec.autocut(float8[], int) IS
    'How many rows of a list to keep: those before the jump number `jumps` in its scores or distances, best first. All of them where there is no jump.';
