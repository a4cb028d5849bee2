-- sqlvec.carve: fewer query tokens (ball carving; Dhulipala and others 2024, arXiv:2405.19504, section C.3).

CREATE OR REPLACE FUNCTION sqlvec._cosine(a halfvec, b halfvec) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 1 - (a <=> b);
CREATE OR REPLACE FUNCTION sqlvec._total(tokens halfvec[]) RETURNS halfvec
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN (SELECT sum(t::vector) FROM unnest(tokens) AS t)::halfvec;

CREATE OR REPLACE FUNCTION sqlvec.carve(query halfvec[], threshold float8) RETURNS halfvec[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_tokens query%TYPE := ARRAY(SELECT u.token FROM unnest(query) WITH ORDINALITY AS u (token, n) WHERE u.token IS NOT NULL ORDER BY u.n);
    v_left int[] := ARRAY(SELECT generate_series(1, cardinality(v_tokens)));
    v_ball int[];
    v_carved query%TYPE := '{}';
BEGIN
    IF NOT coalesce(threshold BETWEEN 0 AND 1, false) THEN
        RAISE EXCEPTION 'threshold is a cosine from 0 to 1, not %', threshold USING ERRCODE = 'invalid_parameter_value';
    ELSIF query IS NULL THEN
        RETURN NULL;
    END IF;
    WHILE cardinality(v_left) > 0 LOOP
        -- A zero vector has no cosine and stays alone; what would not fit halfvec as a sum is left for later.
        v_ball := ARRAY(SELECT c.n FROM (
                            SELECT n, sum(sqlvec._norm(v_tokens[n])) OVER (ORDER BY n) AS reach FROM unnest(v_left) AS n
                            WHERE n = v_left[1] OR nullif(sqlvec._cosine(v_tokens[n], v_tokens[v_left[1]]), 'NaN') >= threshold) AS c
                        WHERE c.n = v_left[1] OR c.reach < 65504 ORDER BY c.n);
        v_carved := v_carved || sqlvec._total(ARRAY(SELECT v_tokens[n] FROM unnest(v_ball) AS n));
        v_left := ARRAY(SELECT n FROM unnest(v_left) AS n WHERE n <> ALL (v_ball) ORDER BY n);
    END LOOP;
    RETURN v_carved;
END
$body$;

COMMENT ON FUNCTION sqlvec.carve(halfvec[], float8) IS
    'Ball carving of query tokens: each token takes along the later ones whose cosine to it is at least threshold (0 to 1; 0.7 or more keeps the ranking), and they stand as their sum. MaxSim with fewer tokens: the same where those of a ball share their best document token, otherwise a little less.';
