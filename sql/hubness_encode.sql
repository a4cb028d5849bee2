-- Correction of hubs: rows that are near to every query (dual bank normalisation: Wang et al. 2023;
-- with queries alone, inverted softmax: Smith et al. 2017, and QB-Norm: Bogolin et al. 2022).
--
-- What a row is near to anyway is its soft mean cosine to a bank of queries and one of rows, taken
-- off its cosine to the query. That is an inner product of vectors with one dimension more, so that
-- an ordinary index serves it: [x / |x|, -correction] by [q / |q|, 1].
--
-- Bank vectors are stored as integers, 4000 long, and multiplied by the two integer parts of a row,
-- see encode.sql: numpy finds the same cosines, so the exponentials differ in their last digits only.
-- exp() cannot overflow: a cosine times the largest beta stays below 301.

CREATE OR REPLACE FUNCTION sqlvec._norm(x vector) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN vector_norm(x);
CREATE OR REPLACE FUNCTION sqlvec._unit_and(x vector, last float8) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN l2_normalize(x) || ARRAY[last]::vector;
CREATE OR REPLACE FUNCTION sqlvec._bank_vector(x vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sqlvec._round(l2_normalize(x) * sqlvec._constant(4000, vector_dims(x)),
                     sqlvec._constant(12582912, vector_dims(x))); -- 1.5 * 2^23

-- A row of the gallery bank that points where x does is x itself, most likely. The zero vector, which
-- has no cosine, comes after all others. NULL when the banks are not there (a data-only restore).
CREATE OR REPLACE FUNCTION sqlvec._hubness(
    encoder text, x vector, queries int, gallery int, beta_queries float8, beta_gallery float8, strength float8
) RETURNS vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_x record := sqlvec._integer_parts(x);
    v_low float8 := 2 * floor(4096 / sqrt(sqlvec._dims(x)::float8));
    v_scale float8 := v_x.unit / (4000 * sqlvec._norm(x));
    v_bank record;
BEGIN
    IF v_x.unit IS NULL THEN
        RETURN sqlvec._unit_and(x, -2);
    END IF;
    WITH bank AS MATERIALIZED (
        SELECT e.part, (sqlvec._dot(v_x.high, e.value) + sqlvec._dot(v_x.low, e.value) / v_low) * v_scale AS cosine
        FROM sqlvec.encoder_vector AS e WHERE e.encoder = _hubness.encoder
    )
    SELECT count(*) FILTER (WHERE b.part = 'queries') AS queries,
           count(*) FILTER (WHERE b.part = 'gallery') AS gallery,
           ln(sum(exp(beta_queries * b.cosine)) FILTER (WHERE b.part = 'queries') / _hubness.queries) AS of_queries,
           ln(avg(exp(beta_gallery * b.cosine)) FILTER (WHERE b.part = 'gallery' AND b.cosine < 0.999)) AS of_gallery
    INTO v_bank FROM bank AS b;
    IF (v_bank.queries, v_bank.gallery) <> (queries, gallery) THEN
        RETURN NULL;
    END IF;
    RETURN sqlvec._unit_and(x, -strength * (v_bank.of_queries + coalesce(v_bank.of_gallery, 0))
                               / (beta_queries + CASE WHEN gallery > 0 THEN beta_gallery ELSE 0 END));
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.hubness_query(query vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN vector_norm(query) > 0 THEN l2_normalize(query) || '[1]'::vector END;
COMMENT ON FUNCTION sqlvec.hubness_query(vector) IS
    'The query for a search by inner product on a column that sqlvec.add_hubness declared: at unit length, and 1. NULL for a zero vector, which has no direction.';

CREATE OR REPLACE FUNCTION sqlvec._write_hubness(
    name text, queries vector[], gallery vector[], beta_queries float8, beta_gallery float8, strength float8, owner name
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_queries int := coalesce(cardinality(queries), 0);
    v_gallery int := coalesce(cardinality(gallery), 0);
    v_dimensions int := sqlvec._dims(queries[array_lower(queries, 1)]);
    v_number int;
    v_found int;
BEGIN
    IF v_queries NOT BETWEEN 1 AND 100000 OR v_gallery > 100000 THEN
        RAISE EXCEPTION 'the banks of encoder "%" take 1 to 100000 queries and up to 100000 rows, not % and %', name, v_queries, v_gallery
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (beta_queries > 0 AND beta_queries <= 300 AND beta_gallery > 0 AND beta_gallery <= 300) IS NOT TRUE THEN
        RAISE EXCEPTION 'beta_queries and beta_gallery are numbers above 0 and up to 300, not % and %', beta_queries, beta_gallery
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (strength > 0 AND strength <= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'strength is a number above 0 and up to 1, not %', strength USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT b.n, sqlvec._dims(b.x) INTO v_number, v_found
    FROM (SELECT * FROM unnest(queries) WITH ORDINALITY UNION ALL
          SELECT * FROM unnest(gallery) WITH ORDINALITY) AS b (x, n)
    WHERE sqlvec._dims(b.x) IS DISTINCT FROM v_dimensions OR (sqlvec._norm(b.x) > 0) IS NOT TRUE
    ORDER BY b.n LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'vector % of a bank of encoder "%" is NULL, zero, or of % dimensions instead of %', v_number, name,
            coalesce(v_found, 0), coalesce(v_dimensions, 0)
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Leave them out: WHERE vector_norm(embedding) > 0.';
    END IF;
    PERFORM sqlvec._write_encoder(name, 'hubness', v_dimensions, jsonb_build_object(
        'queries', v_queries, 'gallery', v_gallery, 'beta_queries', beta_queries, 'beta_gallery', beta_gallery,
        'strength', strength), owner, NULL);
    INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
    SELECT _write_hubness.name, 'queries', b.n, sqlvec._bank_vector(b.x) FROM unnest(queries) WITH ORDINALITY AS b (x, n)
    UNION ALL
    SELECT _write_hubness.name, 'gallery', b.n, sqlvec._bank_vector(b.x) FROM unnest(gallery) WITH ORDINALITY AS b (x, n);
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.create_hubness_encoder(
    name text, queries vector[], gallery vector[] = '{}', beta_queries float8 = 20, beta_gallery float8 = 20, strength float8 = 0.25
) LANGUAGE plpgsql
AS $body$
BEGIN
    PERFORM sqlvec._write_hubness(name, queries, gallery, beta_queries, beta_gallery, strength, current_user);
END
$body$;
COMMENT ON PROCEDURE sqlvec.create_hubness_encoder(text, vector[], vector[], float8, float8, float8) IS
    'Make a named, immutable encoder of kind hubness from a bank of queries such as will be asked and, if wanted, a sample of rows. A row loses `strength` (1 is dual bank normalisation as published) times its soft mean cosine to the banks; the larger beta (up to 300), the more the nearest of a bank count.';

-- Up to `sample` rows of a column with a direction, in random order.
CREATE OR REPLACE FUNCTION sqlvec._sample_vectors(rel regclass, column_name text, sample int, seed bigint, OUT vectors vector[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record := sqlvec._column(rel, column_name);
BEGIN
    IF v_column.type_name NOT IN ('vector', 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, not vector or halfvec',
            column_name, rel, format_type(v_column.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch';
    END IF;
    EXECUTE format(
        'SELECT array_agg(s.x ORDER BY s.place) FROM ('
        'SELECT sqlvec._as_vector(t.%1$I) AS x, hashtextextended(t.ctid::text, $2) AS place '
        'FROM %2$s AS t WHERE sqlvec._norm(t.%1$I) > 0 ORDER BY 2, t.tableoid LIMIT $1) AS s',
        column_name, sqlvec._qualified(rel)) INTO vectors USING sample, seed;
    IF vectors IS NULL THEN
        RAISE EXCEPTION 'column "%" of table % holds no vector with a direction', column_name, rel
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Load rows first.';
    END IF;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.fit_hubness(
    name text, queries regclass, queries_column text, gallery regclass = NULL, gallery_column text = NULL,
    sample int = 1000, beta_queries float8 = 20, beta_gallery float8 = 20, strength float8 = 0.25, seed bigint = 0
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF queries IS NULL OR queries_column IS NULL OR (gallery IS NULL) <> (gallery_column IS NULL) OR seed IS NULL THEN
        RAISE EXCEPTION 'fit_hubness needs the table and the column of queries and, if any, those of rows, and a seed'
            USING ERRCODE = 'null_value_not_allowed';
    ELSIF (sample BETWEEN 1 AND 100000) IS NOT TRUE THEN
        RAISE EXCEPTION 'sample is a number from 1 to 100000, not %', sample USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM sqlvec._write_hubness(
        name, sqlvec._sample_vectors(queries, queries_column, sample, seed),
        CASE WHEN gallery IS NOT NULL THEN sqlvec._sample_vectors(gallery, gallery_column, sample, seed) END,
        beta_queries, beta_gallery, strength, current_user);
END
$body$;
COMMENT ON PROCEDURE sqlvec.fit_hubness(text, regclass, text, regclass, text, int, float8, float8, float8, bigint) IS
    'Make an encoder as sqlvec.create_hubness_encoder does, from up to `sample` vectors of a table of queries and, where given, as many of a table of rows. Every role that may use schema sqlvec can read the vectors of an encoder, which are nearly those of the tables.';
