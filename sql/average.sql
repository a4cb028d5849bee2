-- sqlvec.average: one query from several, as HyDE asks with the mean of the query and of answers that a
-- language model made up (Gao and others 2022, arXiv:2212.10496).

-- pgvector sums in float8 and rounds once.
CREATE OR REPLACE FUNCTION sqlvec._mean(vectors vector[]) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN (SELECT avg(v) FROM unnest(vectors) AS v);

CREATE OR REPLACE FUNCTION sqlvec.average(vectors vector[], unit boolean = true) RETURNS vector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_units vectors%TYPE;
    v_mean vectors%TYPE;
    v_place bigint;
BEGIN
    IF unit IS NULL THEN
        RAISE EXCEPTION 'unit cannot be NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF coalesce(cardinality(vectors), 0) = 0 THEN
        RAISE EXCEPTION 'there are no vectors to average' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sqlvec._check_vectors(vectors);
    v_place := (SELECT min(t.n) FROM unnest(vectors) WITH ORDINALITY AS t (x, n) WHERE t.x IS NULL);
    IF v_place IS NOT NULL THEN
        RAISE EXCEPTION 'vector % is NULL', v_place USING ERRCODE = 'null_value_not_allowed';
    ELSIF NOT unit THEN
        RETURN sqlvec._mean(vectors);
    END IF;
    v_units := sqlvec._unit_vectors(vectors);
    v_place := (SELECT min(t.n) FROM unnest(v_units) WITH ORDINALITY AS t (x, n) WHERE sqlvec._norm(t.x) = 0);
    IF v_place IS NOT NULL THEN
        RAISE EXCEPTION 'vector % is zero and has no direction', v_place USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_mean := ARRAY[sqlvec._mean(v_units)];
    IF sqlvec._norm(v_mean[1]) < 1e-6::float8 THEN
        RAISE EXCEPTION 'the directions of the vectors cancel out' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN sqlvec._unit(v_mean[1]);
END
$body$;

COMMENT ON FUNCTION sqlvec.average(vector[], boolean) IS
    'The mean of vectors, for a query made of several (HyDE): with unit the mean of their directions at length 1, else the mean as it is. Sums run in float8. An error for an empty list and for NULL; with unit for zero vectors, and where the directions cancel out.';
