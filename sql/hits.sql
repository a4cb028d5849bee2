-- Arguments of the functions that shape a list of hits: mmr, compress, refine, best_per_group.
--
-- An aggregate over no hits is NULL, and so a NULL list is an empty one.

-- Refuses numbers that rank nothing.
CREATE OR REPLACE FUNCTION sqlvec._check_scores(label text, scores float8[], hits int) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF array_ndims(scores) > 1 THEN
        RAISE EXCEPTION '% is a list, not an array of % dimensions', label, array_ndims(scores) USING ERRCODE = 'array_subscript_error';
    ELSIF coalesce(cardinality(scores), 0) <> hits THEN
        RAISE EXCEPTION '% has length %, the list of hits %', label, coalesce(cardinality(scores), 0), hits USING ERRCODE = 'array_subscript_error';
    ELSIF EXISTS (SELECT FROM unnest(scores) AS s WHERE s IS NULL OR s IN ('NaN', 'Infinity', '-Infinity')) THEN
        RAISE EXCEPTION '% holds NULL, NaN or infinity', label USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

-- Postgres raises an error where a product of two numbers that are not zero is.
CREATE OR REPLACE FUNCTION sqlvec._flushed(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN CASE WHEN abs(x) > 1e-150::float8 THEN x WHEN x IS NOT NULL THEN 0 END;

CREATE OR REPLACE FUNCTION sqlvec._check_k(k int) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'k is a number from 1 to 10000, not %', k USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._check_share(label text, share float8) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF NOT coalesce(share BETWEEN 0 AND 1, false) THEN
        RAISE EXCEPTION '% is a number from 0 to 1, not %', label, share USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

-- Refuses a list of vectors that cannot be compared with each other.
CREATE OR REPLACE FUNCTION sqlvec._check_vectors(vectors vector[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_least int;
    v_most int;
BEGIN
    IF array_ndims(vectors) > 1 THEN
        RAISE EXCEPTION 'vectors is a list, not an array of % dimensions', array_ndims(vectors) USING ERRCODE = 'array_subscript_error';
    END IF;
    SELECT min(sqlvec._dims(v)), max(sqlvec._dims(v)) INTO v_least, v_most FROM unnest(vectors) AS v;
    IF v_least <> v_most THEN
        RAISE EXCEPTION 'vectors of % and of % dimensions cannot be compared', v_least, v_most USING ERRCODE = 'data_exception';
    END IF;
END
$body$;

-- Vectors at length 1, numbered from 1: inner products of these are cosines. Zero stays zero, NULL NULL.
CREATE OR REPLACE FUNCTION sqlvec._unit_vectors(vectors vector[]) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT l2_normalize(v) FROM unnest(vectors) AS v);

-- The cosine of two unit vectors; 0 where there is none.
CREATE OR REPLACE FUNCTION sqlvec._unit_cosine(a vector, b vector) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(0 - (a <#> b), 0);
