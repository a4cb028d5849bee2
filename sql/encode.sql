-- Encoding one vector. The arithmetic is the same as in sqlvec.encoders (numpy) to the last bit.
--
-- Matrix encoders round the vector and the matrix to integers small enough that every product and
-- every partial sum of a row stays below 2^24: float32 then adds them exactly in any order, so
-- pgvector's inner product gives the same number on every processor. See docs/encoders.md.

-- Codes are computed from vector; these two make the other source type one.
CREATE OR REPLACE FUNCTION sqlvec._as_vector(x vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x;
CREATE OR REPLACE FUNCTION sqlvec._as_vector(x halfvec) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x::vector;

-- "Not the same", bound to pgvector's operators whatever the search_path of the writer. Not written
-- as IS DISTINCT FROM, which cannot name its operator's schema and so would not survive pg_dump.
CREATE OR REPLACE FUNCTION sqlvec._differ(a vector, b vector) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(a <> b, (a IS NULL) <> (b IS NULL));
CREATE OR REPLACE FUNCTION sqlvec._differ(a halfvec, b halfvec) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(a <> b, (a IS NULL) <> (b IS NULL));
CREATE OR REPLACE FUNCTION sqlvec._differ(a bit, b bit) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(a <> b, (a IS NULL) <> (b IS NULL));
CREATE OR REPLACE FUNCTION sqlvec._differ(a bytea, b bytea) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(a <> b, (a IS NULL) <> (b IS NULL));

CREATE OR REPLACE FUNCTION sqlvec._differ(a sparsevec, b sparsevec) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(a <> b, (a IS NULL) <> (b IS NULL));
-- Texts differ when their bytes do, whatever their collation takes for equal.
CREATE OR REPLACE FUNCTION sqlvec._differ(a text, b text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(a COLLATE "C" <> b COLLATE "C", (a IS NULL) <> (b IS NULL));
CREATE OR REPLACE FUNCTION sqlvec._differ(a tsvector, b tsvector) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(a <> b, (a IS NULL) <> (b IS NULL));

CREATE OR REPLACE FUNCTION sqlvec._differ(a halfvec[], b halfvec[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(a <> b, (a IS NULL) <> (b IS NULL));
CREATE OR REPLACE FUNCTION sqlvec._differ(a vector[], b vector[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(a <> b, (a IS NULL) <> (b IS NULL));
CREATE OR REPLACE FUNCTION sqlvec._differ(a real[], b real[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(a <> b, (a IS NULL) <> (b IS NULL));

CREATE OR REPLACE FUNCTION sqlvec._dims(x vector) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN vector_dims(x);
CREATE OR REPLACE FUNCTION sqlvec._dims(x halfvec) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN vector_dims(x);

-- Of the first vector; NULL without one.
CREATE OR REPLACE FUNCTION sqlvec._dims(x vector[]) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN vector_dims(x[array_lower(x, 1)]);
CREATE OR REPLACE FUNCTION sqlvec._dims(x halfvec[]) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN vector_dims(x[array_lower(x, 1)]);

CREATE OR REPLACE FUNCTION sqlvec._halfvec(x vector) RETURNS halfvec
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x::halfvec;

CREATE OR REPLACE FUNCTION sqlvec._binary(x vector) RETURNS bit
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN binary_quantize(x);

-- Centred signs: x > mean, as the sign of a difference that float32 never rounds to zero.
CREATE OR REPLACE FUNCTION sqlvec._binary_centred(x vector, mean vector) RETURNS bit
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN binary_quantize(x - mean);

-- Thresholds of a code of several levels, in units of the root mean square of the components. They
-- make the expected distance of two codes tell most about the angle: for normal components, between
-- vectors whose cosine is 0.6 to 0.8.
CREATE OR REPLACE FUNCTION sqlvec._levels(levels int) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE levels
    WHEN 1 THEN '{0}'
    WHEN 2 THEN '{-0.45, 0.45}'
    WHEN 3 THEN '{-0.75, 0, 0.75}'
    WHEN 4 THEN '{-0.95, -0.3, 0.3, 0.95}'
    WHEN 5 THEN '{-1.15, -0.55, 0, 0.55, 1.15}'
    WHEN 6 THEN '{-1.3, -0.75, -0.25, 0.25, 0.75, 1.3}'
    WHEN 7 THEN '{-1.45, -0.9, -0.45, 0, 0.45, 0.9, 1.45}'
    WHEN 8 THEN '{-1.55, -1.05, -0.6, -0.2, 0.2, 0.6, 1.05, 1.55}'
END::float8[];

-- The same for the components of a unit vector, each as often as there are dimensions, and a little
-- nearer to 0 or farther away: by `rim`, a fraction.
CREATE OR REPLACE FUNCTION sqlvec._unit_thresholds(levels int, dimensions int, rim float8) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT array_fill(t.threshold * (1 + rim) / sqrt(dimensions::float8), ARRAY[dimensions])::vector
             FROM unnest(sqlvec._levels(levels)) WITH ORDINALITY AS t (threshold, level) ORDER BY t.level);

CREATE OR REPLACE FUNCTION sqlvec._truncate_halfvec(x vector, dimensions int) RETURNS halfvec
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN l2_normalize(subvector(x, 1, dimensions))::halfvec;
CREATE OR REPLACE FUNCTION sqlvec._truncate_vector(x vector, dimensions int) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN l2_normalize(subvector(x, 1, dimensions));

-- Bindings for the PL/pgSQL below, whose bodies are text and would resolve names when they run.
CREATE OR REPLACE FUNCTION sqlvec._unit(x vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN l2_normalize(x);
CREATE OR REPLACE FUNCTION sqlvec._minus(x vector, mean vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x - mean;
CREATE OR REPLACE FUNCTION sqlvec._dot(a vector, b vector) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 0 - (a <#> b);
CREATE OR REPLACE FUNCTION sqlvec._real_array(x vector) RETURNS real[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x::real[];
CREATE OR REPLACE FUNCTION sqlvec._bits(x float8[]) RETURNS bit
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN binary_quantize(x::vector);
CREATE OR REPLACE FUNCTION sqlvec._to_halfvec(x float8[]) RETURNS halfvec
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x::vector::halfvec;

-- Components above each threshold, level by level: a thermometer code, in which the Hamming distance
-- is the sum of the levels that lie between the components of two vectors.
--
-- The squares under the length are added in float64 in the order of the components, which fixes the
-- last bit of every threshold. pgvector adds them in an order of its own: its unit vector decides
-- where both rims of a threshold give the same bits, which are 16 roundings of float32 apart, and
-- else each component is compared by itself. Around 0 there is nothing to round.
CREATE OR REPLACE FUNCTION sqlvec._binary_levels(x vector, inner_rims vector[], outer_rims vector[]) RETURNS bit
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_unit x%TYPE := sqlvec._unit(x);
    v_bits varbit;
    v_code varbit := '';
BEGIN
    FOR l IN 1 .. cardinality(inner_rims) LOOP
        IF 2 * l = cardinality(inner_rims) + 1 THEN
            v_bits := sqlvec._binary(x);
        ELSE
            v_bits := sqlvec._binary_centred(v_unit, inner_rims[l]);
            IF v_bits <> sqlvec._binary_centred(v_unit, outer_rims[l]) THEN
                RETURN sqlvec._binary_levels_one_by_one(sqlvec._real_array(x), cardinality(inner_rims));
            END IF;
        END IF;
        v_code := v_code || v_bits;
    END LOOP;
    RETURN v_code;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._binary_levels_one_by_one(x real[], levels int) RETURNS bit
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_rms float8 := (SELECT sqrt(sum(v::float8 * v::float8) / count(*)) FROM unnest(x) AS v);
    v_level float8;
    v_code varbit := '';
BEGIN
    FOREACH v_level IN ARRAY sqlvec._levels(levels) LOOP
        v_code := v_code || sqlvec._bits(ARRAY(SELECT sign(v::float8 - v_level * v_rms) FROM unnest(x) AS v));
    END LOOP;
    RETURN v_code;
END
$body$;

-- A vector as two integer vectors: x = unit * (high + low / (2 c)), c = floor(4096 / sqrt(d)).
-- unit is NULL for the zero vector.
CREATE OR REPLACE FUNCTION sqlvec._integer_parts(
    x vector, OUT unit float8, OUT high vector, OUT low vector
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_values real[] := sqlvec._real_array(x);
    v_c float8 := floor(4096 / sqrt(cardinality(v_values)::float8));
    v_max float8 := (SELECT max(abs(v)) FROM unnest(v_values) AS v);
BEGIN
    IF v_max = 0 THEN
        RETURN;
    END IF;
    unit := v_max / v_c;
    high := ARRAY(SELECT round(v * (v_c / v_max)) FROM unnest(v_values) AS v);
    low := ARRAY(SELECT round((v * (v_c / v_max) - round(v * (v_c / v_max))) * (2 * v_c))
                 FROM unnest(v_values) AS v);
END
$body$;

-- The vector with the encoder's mean taken off, when it has one.
CREATE OR REPLACE FUNCTION sqlvec._centred(encoder text, x vector) RETURNS vector
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_mean x%TYPE;
BEGIN
    SELECT e.value INTO v_mean FROM sqlvec.encoder_vector AS e
    WHERE e.encoder = _centred.encoder AND e.part = 'mean';
    RETURN CASE WHEN v_mean IS NULL THEN x ELSE sqlvec._minus(x, v_mean) END;
END
$body$;

-- Levels of the rotated vector (random rotation before sign quantization: Charikar 2002; RaBitQ).
-- NULL when the matrix is not there (a data-only restore). The products are integers and the sum of
-- their squares is below 2^53, so the thresholds are the same everywhere too.
CREATE OR REPLACE FUNCTION sqlvec._binary_rotated(encoder text, x vector, levels int) RETURNS bit
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_high x%TYPE := (sqlvec._integer_parts(sqlvec._centred(encoder, x))).high;
    v_values float8[] := (SELECT array_agg(coalesce(sqlvec._dot(v_high, e.value), 0) ORDER BY e.position)
                          FROM sqlvec.encoder_vector AS e
                          WHERE e.encoder = _binary_rotated.encoder AND e.part = 'high');
    v_rms float8;
    v_level float8;
    v_code varbit := '';
BEGIN
    IF levels = 1 OR v_values IS NULL THEN
        RETURN sqlvec._bits(v_values);
    END IF;
    v_rms := (SELECT coalesce(nullif(sqrt(sum(v * v) / count(*)), 0), 1) FROM unnest(v_values) AS v);
    FOREACH v_level IN ARRAY sqlvec._levels(levels) LOOP
        v_code := v_code || sqlvec._bits(ARRAY(SELECT v - v_level * v_rms FROM unnest(v_values) AS v));
    END LOOP;
    RETURN v_code;
END
$body$;

-- W (x - mean) in halfvec. NULL when the matrix is not there.
CREATE OR REPLACE FUNCTION sqlvec._linear(encoder text, x vector) RETURNS halfvec
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_x record;
    v_scale real[] := (SELECT sqlvec._real_array(e.value) FROM sqlvec.encoder_vector AS e
                       WHERE e.encoder = _linear.encoder AND e.part = 'scale');
    v_d float8 := sqlvec._dims(x);
    v_bx float8 := 2 * floor(4096 / sqrt(v_d));
    v_bw float8 := floor(8192 / sqrt(v_d));
BEGIN
    v_x := sqlvec._integer_parts(sqlvec._centred(encoder, x));
    RETURN (SELECT sqlvec._to_halfvec(array_agg(
                coalesce((sqlvec._dot(v_x.high, h.value)
                          + sqlvec._dot(v_x.low, h.value) / v_bx
                          + sqlvec._dot(v_x.high, l.value) / v_bw) * v_x.unit * v_scale[h.position], 0)
                ORDER BY h.position))
            FROM sqlvec.encoder_vector AS h
            JOIN sqlvec.encoder_vector AS l
              ON l.encoder = h.encoder AND l.part = 'low' AND l.position = h.position
            WHERE h.encoder = _linear.encoder AND h.part = 'high');
END
$body$;

-- The SQL expression that computes a code from the expressions of its sources. One place says it for
-- the trigger, the backfill and the query side. Small parameters stand in it as constants.
CREATE OR REPLACE FUNCTION sqlvec._encode_expression(encoder text, arguments text[]) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder record;
    v_vector text := format('sqlvec._as_vector(%s)', arguments[1]);
    v_mean text;
    v_levels int;
BEGIN
    SELECT e.kind, e.dimensions, e.options, e.code_type INTO v_encoder FROM sqlvec.encoder AS e WHERE e.name = _encode_expression.encoder;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'encoder "%" does not exist', encoder
            USING ERRCODE = 'undefined_object',
                  HINT = 'Encoders are listed in table sqlvec.encoder; sqlvec.create_encoder makes one.';
    END IF;
    CASE v_encoder.kind
    WHEN 'halfvec' THEN
        RETURN format('sqlvec._halfvec(%s)', v_vector);
    WHEN 'binary' THEN
        v_levels := coalesce((v_encoder.options ->> 'levels')::int, 1);
        IF (v_encoder.options ->> 'rotate')::boolean THEN
            RETURN format('sqlvec._binary_rotated(%L, %s, %s)', encoder, v_vector, v_levels);
        ELSIF (v_encoder.options ->> 'center')::boolean THEN
            SELECT sqlvec._real_array(v.value)::text INTO v_mean FROM sqlvec.encoder_vector AS v
            WHERE v.encoder = _encode_expression.encoder AND v.part = 'mean';
            v_vector := format('%s(%s, %L)', CASE v_levels WHEN 1 THEN 'sqlvec._binary_centred' ELSE 'sqlvec._minus' END,
                               v_vector, translate(v_mean, '{}', '[]'));
        ELSIF v_levels = 1 THEN
            RETURN format('sqlvec._binary(%s)', v_vector);
        END IF;
        RETURN CASE v_levels WHEN 1 THEN v_vector
                    ELSE format('sqlvec._binary_levels(%1$s, sqlvec._unit_thresholds(%2$s, %3$s, -5e-7), sqlvec._unit_thresholds(%2$s, %3$s, 5e-7))',
                                v_vector, v_levels, v_encoder.dimensions) END;
    WHEN 'truncate' THEN
        RETURN format('sqlvec._truncate_%s(%s, %s)',
                      CASE WHEN v_encoder.options ->> 'type' = 'vector' THEN 'vector' ELSE 'halfvec' END, v_vector,
                      (v_encoder.options ->> 'dimensions')::int);
    WHEN 'linear' THEN
        RETURN format('sqlvec._linear(%L, %s)', encoder, v_vector);
    WHEN 'fde' THEN
        RETURN format('sqlvec._fde%s(%L, sqlvec._halfvecs(%s), false, %s)', CASE v_encoder.code_type WHEN 'bit' THEN '_bits' END, encoder, arguments[1],
                      sqlvec._fde_constants(v_encoder.dimensions, v_encoder.options));
    WHEN 'pool' THEN
        RETURN sqlvec._pool_expression(v_encoder.options, arguments);
    WHEN 'centroid' THEN
        RETURN format('sqlvec._centroid_codes(%L, sqlvec._halfvecs(%s), %s, %s)', encoder, arguments[1],
                      v_encoder.dimensions, (v_encoder.options ->> 'clusters')::int);
    WHEN 'hubness' THEN
        RETURN format('sqlvec._hubness(%L, %s, %s, %s, %s, %s, %s)', encoder, v_vector,
                      (v_encoder.options ->> 'queries')::int, (v_encoder.options ->> 'gallery')::int,
                      (v_encoder.options ->> 'beta_queries')::float8, (v_encoder.options ->> 'beta_gallery')::float8,
                      (v_encoder.options ->> 'strength')::float8);
    WHEN 'bm25' THEN
        RETURN sqlvec._bm25_expression(v_encoder.options, arguments);
    END CASE;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.encode(encoder text, x vector, code anyelement) RETURNS anyelement
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_expected int;
    v_kind text;
    v_found int := sqlvec._dims(x);
BEGIN
    SELECT e.dimensions, e.kind INTO v_expected, v_kind
    FROM sqlvec.encoder AS e WHERE e.name = encode.encoder;
    IF FOUND AND v_expected IS NULL THEN
        RAISE EXCEPTION 'encoder "%" encodes text, not vectors', encoder USING ERRCODE = 'datatype_mismatch';
    ELSIF v_kind IN ('fde', 'pool', 'centroid') THEN
        RAISE EXCEPTION 'encoder "%" encodes multi-vectors, not vectors', encoder
            USING ERRCODE = 'datatype_mismatch',
                  HINT = CASE v_kind WHEN 'pool' THEN 'Use sqlvec.pool.' WHEN 'fde' THEN 'Use sqlvec.fde_document or sqlvec.fde_query.'
                                     ELSE 'Use sqlvec.centroid_codes or sqlvec.centroid_table.' END;
    ELSIF v_expected <> v_found THEN
        RAISE EXCEPTION 'encoder "%" takes vectors of % dimensions, not %', encoder, v_expected, v_found
            USING ERRCODE = 'data_exception';
    END IF;
    -- _encode_expression also refuses an encoder that does not exist.
    EXECUTE 'SELECT ' || sqlvec._encode_expression(encoder, '{$1}') INTO code USING x;
    RETURN code;
END
$body$;

COMMENT ON FUNCTION sqlvec.encode(text, vector, anyelement) IS
    'Code of vector x under a catalog encoder. code is a typed NULL that names the result type: NULL::bit varying, NULL::halfvec or NULL::vector.';
