-- One byte per token: the number of the nearest of at most 256 centroids (vector quantization; MaxSim
-- by table look-up as in product quantization: Jegou, Douze and Schmid 2011).
--
-- Nearest is by Euclidean distance, as the largest inner product less half the squared norm. As in
-- fde_encode.sql the sums are of integers, times a power of two, that float32 adds exactly: tokens
-- are rounded to 2^11 steps in their norm, centroids, when they are stored, to at most 4000 steps in
-- the largest. numpy finds the same numbers and the same products.

DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec.centroid_table') IS NULL THEN
        CREATE TYPE sqlvec.centroid_table AS (
            clusters int,
            numbers  bytea,  -- for every query token all centroids, by falling inner product
            products real[]  -- in the same order
        );
    END IF;
END
$do$;
COMMENT ON TYPE sqlvec.centroid_table IS
    'A query prepared for sqlvec.maxsim_centroid: for every token the numbers of all centroids by falling inner product, one byte each, and those products.';

-- Tokens in their order, rounded; their numbers are those of the array.
CREATE OR REPLACE FUNCTION sqlvec._rounded_tokens(tokens halfvec[], dimensions int) RETURNS TABLE (n bigint, x vector)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH token AS MATERIALIZED (
        SELECT t.n, sqlvec._as_vector(t.x) AS x, sqlvec._exponent(sqlvec._norm(t.x) / 1.37) AS exponent
        FROM unnest(tokens) WITH ORDINALITY AS t (x, n) WHERE t.x IS NOT NULL
    ), grid AS MATERIALIZED (
        SELECT k.exponent, sqlvec._constant(1.5 * power(2::float8, 12 + k.exponent), dimensions) AS coarse
        FROM (SELECT DISTINCT t.exponent FROM token AS t) AS k
    )
    SELECT t.n, sqlvec._round(t.x, g.coarse) FROM token AS t JOIN grid AS g ON g.exponent = t.exponent;
END;

CREATE OR REPLACE FUNCTION sqlvec._byte(number int) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN set_byte('\x00'::bytea, 0, number);

-- An error unless all tokens have the dimensions of the centroids; false when those are not there
-- (a data-only restore).
CREATE OR REPLACE FUNCTION sqlvec._has_centroids(encoder text, tokens halfvec[], dimensions int, clusters int) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_found int := (SELECT sqlvec._dims(t) FROM unnest(tokens) AS t WHERE sqlvec._dims(t) <> dimensions LIMIT 1);
BEGIN
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'encoder "%" takes vectors of % dimensions, not %', encoder, dimensions, v_found
            USING ERRCODE = 'data_exception';
    END IF;
    RETURN (SELECT count(*) = clusters FROM sqlvec.encoder_vector AS e
            WHERE e.encoder = _has_centroids.encoder AND e.part = 'centroid');
END
$body$;

-- Of an array without vectors an empty code, so that a row without tokens counts as encoded.
CREATE OR REPLACE FUNCTION sqlvec._centroid_codes(encoder text, tokens halfvec[], dimensions int, clusters int) RETURNS bytea
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF NOT sqlvec._has_centroids(encoder, tokens, dimensions, clusters) THEN
        RETURN NULL;
    END IF;
    RETURN (
        WITH centroid AS MATERIALIZED (
            SELECT e.position - 1 AS number, e.value, sqlvec._dot(e.value, e.value) / 2 AS half FROM sqlvec.encoder_vector AS e
            WHERE e.encoder = _centroid_codes.encoder AND e.part = 'centroid'
        )
        SELECT coalesce(string_agg(sqlvec._byte((SELECT c.number FROM centroid AS c
                                                 ORDER BY sqlvec._dot(t.x, c.value) - c.half DESC, c.number LIMIT 1)),
                                   '' ORDER BY t.n), '')
        FROM sqlvec._rounded_tokens(tokens, dimensions) AS t);
END
$body$;

-- Dimensions and number of centroids of an encoder, which must be of this kind.
CREATE OR REPLACE FUNCTION sqlvec._centroid_encoder(encoder text, OUT dimensions int, OUT clusters int)
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder record;
BEGIN
    SELECT e.kind, e.dimensions, e.options INTO v_encoder FROM sqlvec.encoder AS e WHERE e.name = _centroid_encoder.encoder;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'encoder "%" does not exist', encoder
            USING ERRCODE = 'undefined_object',
                  HINT = 'Encoders are listed in table sqlvec.encoder; sqlvec.create_centroid_encoder makes one.';
    ELSIF v_encoder.kind <> 'centroid' THEN
        RAISE EXCEPTION 'encoder "%" is of kind "%", not "centroid"', encoder, v_encoder.kind
            USING ERRCODE = 'datatype_mismatch', HINT = 'sqlvec.create_centroid_encoder makes one of that kind.';
    END IF;
    dimensions := v_encoder.dimensions;
    clusters := (v_encoder.options ->> 'clusters')::int;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.centroid_codes(encoder text, tokens halfvec[]) RETURNS bytea
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder record := sqlvec._centroid_encoder(encoder);
BEGIN
    RETURN sqlvec._centroid_codes(encoder, tokens, v_encoder.dimensions, v_encoder.clusters);
END
$body$;
COMMENT ON FUNCTION sqlvec.centroid_codes(text, halfvec[]) IS
    'One byte per token: the number of its nearest centroid (Euclidean distance, of equals the lowest) under a catalog encoder of kind centroid. NULL elements are left out.';

CREATE OR REPLACE FUNCTION sqlvec.centroid_decode(encoder text, codes bytea) RETURNS vector[]
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder record := sqlvec._centroid_encoder(encoder);
BEGIN
    RETURN ARRAY(SELECT e.value FROM generate_series(0, length(codes) - 1) AS n
                 LEFT JOIN sqlvec.encoder_vector AS e
                   ON e.encoder = centroid_decode.encoder AND e.part = 'centroid' AND e.position = get_byte(codes, n) + 1
                 ORDER BY n);
END
$body$;
COMMENT ON FUNCTION sqlvec.centroid_decode(text, bytea) IS
    'The centroids that codes stand for, in their order; NULL for a number that the encoder does not have.';

-- The bytes as bit strings. Fitted centroids are numbered so that their Hamming distance means something.
CREATE OR REPLACE FUNCTION sqlvec.centroid_bits(codes bytea, bits int = 8) RETURNS bit[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF bits NOT BETWEEN 1 AND 8 THEN
        RAISE EXCEPTION 'a code has 1 to 8 bits, not %', bits USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN ARRAY(SELECT substring(get_byte(codes, n)::bit(8) FROM 9 - bits)
                 FROM generate_series(0, length(codes) - 1) AS n ORDER BY n);
END
$body$;
COMMENT ON FUNCTION sqlvec.centroid_bits(bytea, int) IS
    'Codes of centroids as bit strings of their `bits` lowest bits, for sqlvec.maxsim_bit: 8 for up to 256 centroids, ceil(log2 K) for K.';

CREATE OR REPLACE FUNCTION sqlvec.centroid_table(encoder text, query halfvec[]) RETURNS sqlvec.centroid_table
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder record := sqlvec._centroid_encoder(encoder);
    v_table sqlvec.centroid_table;
BEGIN
    IF NOT sqlvec._has_centroids(encoder, query, v_encoder.dimensions, v_encoder.clusters) THEN
        RETURN NULL;
    END IF;
    SELECT v_encoder.clusters,
           coalesce(string_agg(sqlvec._byte(p.number), '' ORDER BY p.n, p.product DESC, p.number), ''),
           coalesce(array_agg(p.product ORDER BY p.n, p.product DESC, p.number), '{}')
    INTO v_table
    FROM (SELECT t.n, e.position - 1 AS number, sqlvec._dot(t.x, e.value)::real AS product
          FROM sqlvec._rounded_tokens(query, v_encoder.dimensions) AS t, sqlvec.encoder_vector AS e
          WHERE e.encoder = centroid_table.encoder AND e.part = 'centroid' OFFSET 0) AS p;
    RETURN v_table;
END
$body$;
COMMENT ON FUNCTION sqlvec.centroid_table(text, halfvec[]) IS
    'The multi-vector of a query prepared for sqlvec.maxsim_centroid, once per search: write it as a sub-select, (SELECT sqlvec.centroid_table(...)). NULL elements are left out.';

-- MaxSim asks which codes occur, not how often or where. Walking the centroids of a query token from
-- the best on and stopping at the first that occurs takes a few probes where the full product takes
-- one per token of the document. A loop, because every sub-select would cost more than its probes.
CREATE OR REPLACE FUNCTION sqlvec.maxsim_centroid(codes bytea, query sqlvec.centroid_table) RETURNS float8
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_numbers bytea := query.numbers;
    v_clusters int := query.clusters;
    v_score float8 := 0;
BEGIN
    IF codes = '' THEN
        RETURN NULL;
    END IF;
    FOR v_start IN 0 .. length(v_numbers) - 1 BY v_clusters LOOP
        FOR v_at IN v_start + 1 .. v_start + v_clusters LOOP
            IF position(substring(v_numbers FROM v_at FOR 1) IN codes) > 0 THEN
                v_score := v_score + query.products[v_at];
                EXIT;
            END IF;
        END LOOP;
    END LOOP;
    RETURN v_score;
END
$body$;
COMMENT ON FUNCTION sqlvec.maxsim_centroid(bytea, sqlvec.centroid_table) IS
    'MaxSim against the centroids that the codes of a document stand for, of a query that sqlvec.centroid_table has prepared under the same encoder. 0 for a query without vectors; NULL where either is NULL or codes is empty.';

-- Rows of an encoder: the centroids on a grid of at most 4000 steps in the largest norm.
CREATE OR REPLACE FUNCTION sqlvec._write_centroids(name text, centroids vector[], owner name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_clusters int := (SELECT count(*) FROM unnest(centroids) AS c WHERE c IS NOT NULL);
    v_dimensions int := sqlvec._dims(centroids);
    v_found int := (SELECT sqlvec._dims(c) FROM unnest(centroids) AS c WHERE sqlvec._dims(c) <> v_dimensions LIMIT 1);
    v_largest float8 := (SELECT sqrt(max(sqlvec._squared_norm(c))) FROM unnest(centroids) AS c);
    v_step float8;
BEGIN
    IF v_clusters < cardinality(centroids) OR v_clusters NOT BETWEEN 2 AND 256 THEN
        RAISE EXCEPTION 'encoder "%" takes 2 to 256 centroids and no NULL among them, not %', name, v_clusters
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'the first centroid of encoder "%" has % dimensions, another %', name, v_dimensions, v_found
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_largest IS NULL OR v_largest NOT BETWEEN 6e-8 AND 4.2e6 THEN
        RAISE EXCEPTION 'the largest centroid of encoder "%" has norm %, which that of no halfvec has', name, coalesce(v_largest, 0)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_step := power(2::float8, sqlvec._exponent(v_largest / 4000));
    PERFORM sqlvec._write_encoder(name, 'centroid', v_dimensions, jsonb_build_object('clusters', v_clusters), owner, NULL);
    INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
    SELECT _write_centroids.name, 'centroid', c.n,
           ARRAY(SELECT round(v / v_step) * v_step FROM unnest(sqlvec._real_array(c.x)) AS v)
    FROM unnest(centroids) WITH ORDINALITY AS c (x, n);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._squared_norm(x vector) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT sum(v::float8 * v::float8) FROM unnest(x::real[]) AS v;
END;

CREATE OR REPLACE PROCEDURE sqlvec.create_centroid_encoder(name text, centroids vector[]) LANGUAGE plpgsql
AS $body$
BEGIN
    PERFORM sqlvec._write_centroids(name, centroids, current_user);
END
$body$;
COMMENT ON PROCEDURE sqlvec.create_centroid_encoder(text, vector[]) IS
    'Make a named, immutable encoder of kind centroid from 2 to 256 centroids of one dimension. Their order gives their numbers: 0, 1, ...';
