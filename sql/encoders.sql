-- sqlvec.create_encoder, sqlvec.drop_encoder: named, immutable encoders in the catalog.

CREATE OR REPLACE FUNCTION sqlvec._kinds() RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY['halfvec', 'binary', 'truncate', 'linear', 'fde', 'pool', 'centroid', 'hubness', 'bm25'];

-- Options of a kind with defaults filled in; an error for an option that the kind does not have.
CREATE OR REPLACE FUNCTION sqlvec._encoder_options(kind text, dimensions int, options jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_defaults jsonb := CASE kind
        WHEN 'halfvec' THEN '{}'
        WHEN 'binary' THEN '{"rotate": false, "seed": 0, "center": false, "levels": 1}'
        WHEN 'truncate' THEN '{"dimensions": null, "type": "halfvec"}'
        WHEN 'linear' THEN '{"dimensions": null, "seed": 0, "center": false}'
        WHEN 'fde' THEN '{"repetitions": 20, "simhash_bits": 4, "projection": 8, "final_dimensions": null, "seed": 0, "bits": false}'
        WHEN 'pool' THEN '{}'
        WHEN 'centroid' THEN '{"clusters": null}'
        WHEN 'hubness' THEN '{"queries": null, "gallery": 0, "beta_queries": 20, "beta_gallery": 20, "strength": 0.25}'
    END::jsonb;
    v_options jsonb := v_defaults || coalesce(options, '{}');
    v_key text;
    v_value jsonb;
BEGIN
    IF v_defaults IS NULL THEN
        RAISE EXCEPTION 'unknown encoder or encoder kind "%"', kind
            USING ERRCODE = 'undefined_object',
                  HINT = CASE WHEN kind = 'bm25' THEN 'It encodes text: CALL sqlvec.add_bm25(...).'
                              ELSE format('Kinds are: %s. Encoders are listed in table sqlvec.encoder.', array_to_string(ARRAY(SELECT k FROM unnest(sqlvec._kinds()) AS k WHERE k NOT IN ('bm25', 'centroid', 'hubness')), ', ')) END;
    END IF;
    IF jsonb_typeof(coalesce(options, '{}')) <> 'object' THEN
        RAISE EXCEPTION 'options of an encoder are a JSON object, not %', jsonb_typeof(options)
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF kind = 'pool' THEN
        RETURN sqlvec._pool_options(coalesce(options, '{}'));
    END IF;
    FOR v_key, v_value IN SELECT * FROM jsonb_each(v_options) LOOP
        IF NOT v_defaults ? v_key THEN
            RAISE EXCEPTION 'encoder kind "%" has no option "%"', kind, v_key
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = coalesce('Its options are: ' || (SELECT string_agg(k, ', ') FROM jsonb_object_keys(v_defaults) AS k) || '.',
                                      'It has no options.');
        ELSIF v_key IN ('rotate', 'center', 'bits') AND jsonb_typeof(v_value) <> 'boolean' THEN
            RAISE EXCEPTION 'option "%" is true or false, not %', v_key, v_value
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF v_key = 'seed' AND v_value::text !~ '^-?[0-9]{1,18}$' THEN
            RAISE EXCEPTION 'option "seed" is an integer, not %', v_value
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF v_key = 'levels' AND v_value::text !~ '^[1-8]$' THEN
            RAISE EXCEPTION 'option "levels" is an integer from 1 to 8, not %', v_value
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF v_key = 'simhash_bits' AND (v_value::text !~ '^[0-9]{1,2}$' OR v_value::text::int > 12) THEN
            RAISE EXCEPTION 'option "simhash_bits" is an integer from 0 to 12, not %', v_value
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF v_key IN ('repetitions', 'projection', 'final_dimensions') AND NOT (v_key = 'final_dimensions' AND v_value = 'null')
              AND (v_value::text !~ '^[0-9]{1,4}$' OR v_value::text::int NOT BETWEEN 1 AND 4000) THEN
            RAISE EXCEPTION 'option "%" is an integer from 1 to 4000, not %', v_key, v_value
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF v_key = 'clusters' AND (v_value::text !~ '^[0-9]{1,3}$' OR v_value::text::int NOT BETWEEN 2 AND 256) THEN
            RAISE EXCEPTION 'option "clusters" is an integer from 2 to 256, not %', v_value
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF v_key = 'type' AND v_value NOT IN ('"halfvec"', '"vector"') THEN
            RAISE EXCEPTION 'option "type" is "halfvec" or "vector", not %', v_value
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF v_key = 'dimensions' AND (v_value::text !~ '^[0-9]{1,5}$'
                                        OR v_value::text::int NOT BETWEEN 1 AND _encoder_options.dimensions) THEN
            RAISE EXCEPTION 'option "dimensions" of encoder kind "%" is an integer from 1 to %, not %',
                kind, dimensions, v_value
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    IF kind = 'fde' THEN
        PERFORM sqlvec._check_fde(dimensions, v_options);
    END IF;
    RETURN v_options;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._code_dimensions(kind text, dimensions int, options jsonb) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN kind = 'fde'
            THEN CASE WHEN (options ->> 'bits')::boolean THEN 2 ELSE 1 END
                 * coalesce((options ->> 'final_dimensions')::int,
                          (options ->> 'repetitions')::int * (1 << (options ->> 'simhash_bits')::int) * (options ->> 'projection')::int)
            WHEN kind = 'centroid' THEN 1 -- byte per token
            WHEN kind = 'hubness' THEN dimensions + 1
            WHEN kind = 'binary' THEN dimensions * (options ->> 'levels')::int
            ELSE coalesce((options ->> 'dimensions')::int, dimensions) END;

-- Rows of a random orthogonal matrix: the orthonormal cosine transform of the vector after random
-- sign flips, `code_dimensions` of its rows picked at random (Woolfe, Liberty, Rokhlin and Tygert
-- 2008), scaled so that inner products are kept on average, then split into integer parts.
CREATE OR REPLACE FUNCTION sqlvec._write_random_rows(encoder text, dimensions int, code_dimensions int, seed bigint)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_low float8 := floor(8192 / sqrt(dimensions::float8));
    v_signs float8[] := ARRAY(SELECT CASE WHEN hashint8extended(j, seed) & 1 = 0 THEN 1 ELSE -1 END
                              FROM generate_series(1, dimensions) AS j ORDER BY j);
    v_rows int[] := ARRAY(SELECT k FROM (
                              SELECT k FROM generate_series(0, dimensions - 1) AS k
                              ORDER BY CASE WHEN code_dimensions = dimensions THEN 0
                                            ELSE hashint8extended(k, seed + 1) END, k
                              LIMIT code_dimensions) AS picked ORDER BY k);
    v_position int;
    v_k int;
    v_row float8[];
BEGIN
    FOR v_position IN 1 .. code_dimensions LOOP
        v_k := v_rows[v_position];
        v_row := ARRAY(
            SELECT 4000 * sqrt((CASE WHEN v_k = 0 THEN 1 ELSE 2 END) / dimensions::float8)
                   * cos(pi() * (j - 0.5::float8) * v_k / dimensions) * v_signs[j]
            FROM generate_series(1, dimensions) AS j ORDER BY j);
        INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
        SELECT _write_random_rows.encoder, 'high', v_position,
               ARRAY(SELECT round(w) FROM unnest(v_row) AS w)
        UNION ALL
        SELECT _write_random_rows.encoder, 'low', v_position,
               ARRAY(SELECT round((w - round(w)) * v_low) FROM unnest(v_row) AS w);
    END LOOP;
    INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
    VALUES (_write_random_rows.encoder, 'scale', 1,
            array_fill(sqrt(dimensions::float8 / code_dimensions) / 4000, ARRAY[code_dimensions]));
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._write_encoder(
    name text, kind text, dimensions int, options jsonb, owner name, mean vector
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_options jsonb := sqlvec._encoder_options(kind, dimensions, options);
    v_code_type text := CASE WHEN kind = 'binary' OR (v_options ->> 'bits')::boolean THEN 'bit'
                             WHEN kind = 'truncate' THEN v_options ->> 'type' WHEN kind = 'pool' THEN 'halfvec[]'
                             WHEN kind = 'centroid' THEN 'bytea' WHEN kind = 'hubness' THEN 'vector' ELSE 'halfvec' END;
    v_code_dimensions int := sqlvec._code_dimensions(kind, dimensions, v_options);
    v_center boolean := coalesce((v_options ->> 'center')::boolean, false);
    v_matrix boolean := kind IN ('linear', 'fde', 'centroid', 'hubness') OR coalesce((v_options ->> 'rotate')::boolean, false);
    v_mean_dimensions int := cardinality(sqlvec._real_array(mean));
BEGIN
    IF name IS NULL OR name = '' THEN
        RAISE EXCEPTION 'an encoder needs a name' USING ERRCODE = 'invalid_parameter_value';
    ELSIF name = ANY (sqlvec._kinds()) THEN
        RAISE EXCEPTION '"%" is a kind of encoder, not a name for one', name USING ERRCODE = 'invalid_parameter_value';
    ELSIF EXISTS (SELECT FROM sqlvec.encoder AS e WHERE e.name = _write_encoder.name) THEN
        RAISE EXCEPTION 'encoder "%" already exists', name
            USING ERRCODE = 'duplicate_object',
                  HINT = 'Encoders never change, or stored codes would go stale: choose another name.';
    ELSIF dimensions IS NULL OR dimensions NOT BETWEEN 1 AND 16000 THEN
        RAISE EXCEPTION 'an encoder takes vectors of 1 to 16000 dimensions, not %', dimensions
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_matrix AND dimensions > 4096 THEN
        RAISE EXCEPTION 'encoder "%" would keep a matrix for % dimensions; 4096 is the limit', name, dimensions
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Use kind "truncate" for Matryoshka models, or "binary" without "rotate".';
    ELSIF v_center AND mean IS NULL THEN
        RAISE EXCEPTION 'encoder "%" centres its input and so needs a mean vector', name
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Pass mean => (SELECT avg(embedding) FROM your_table), or leave option "center" out.';
    ELSIF mean IS NOT NULL AND NOT v_center THEN
        RAISE EXCEPTION 'encoder "%" is given a mean but does not centre its input', name
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Set option "center" to true.';
    ELSIF v_mean_dimensions <> dimensions THEN
        RAISE EXCEPTION 'encoder "%" takes % dimensions, its mean has %', name, dimensions, v_mean_dimensions
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    INSERT INTO sqlvec.encoder (name, kind, dimensions, code_type, code_dimensions, options, owner)
    VALUES (_write_encoder.name, _write_encoder.kind, _write_encoder.dimensions, v_code_type, v_code_dimensions,
            v_options, _write_encoder.owner);
    IF v_center THEN
        INSERT INTO sqlvec.encoder_vector (encoder, part, position, value) VALUES (_write_encoder.name, 'mean', 1, mean);
    END IF;
    IF kind = 'fde' THEN
        PERFORM sqlvec._write_fde(name, dimensions, v_options);
    ELSIF v_matrix AND kind NOT IN ('centroid', 'hubness') THEN
        PERFORM sqlvec._write_random_rows(name, dimensions, coalesce((v_options ->> 'dimensions')::int, dimensions), (v_options ->> 'seed')::bigint);
    END IF;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.create_encoder(
    name text, kind text, dimensions int, options jsonb = '{}', mean vector = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF kind = 'centroid' THEN
        RAISE EXCEPTION 'an encoder of kind "centroid" is made from its centroids'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'CALL sqlvec.create_centroid_encoder(...) or sqlvec.fit_centroids(...).';
    ELSIF kind = 'hubness' THEN
        RAISE EXCEPTION 'an encoder of kind "hubness" is made from a bank of queries'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'CALL sqlvec.create_hubness_encoder(...).';
    END IF;
    PERFORM sqlvec._write_encoder(name, kind, dimensions, options, current_user, mean);
END
$body$;

COMMENT ON PROCEDURE sqlvec.create_encoder(text, text, int, jsonb, vector) IS
    'Make a named, immutable encoder for vectors of `dimensions`. Kinds: halfvec {}, binary {"rotate", "seed", "center", "levels"}, truncate {"dimensions", "type"}, linear {"dimensions", "seed", "center"}, and for multi-vectors fde {"repetitions", "simhash_bits", "projection", "final_dimensions", "seed", "bits"} and pool {"method" and its options, as sqlvec.add_pooled has them}; mean is what "center" takes off.';

CREATE OR REPLACE PROCEDURE sqlvec.drop_encoder(name text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_user text := (SELECT format('column "%s" of table %s', d.target_column, d.relation)
                    FROM sqlvec.derived_column AS d WHERE d.encoder = drop_encoder.name LIMIT 1);
BEGIN
    IF v_user IS NOT NULL THEN
        RAISE EXCEPTION 'encoder "%" is in use by %', name, v_user
            USING ERRCODE = 'dependent_objects_still_exist', HINT = 'Drop the derived column first: CALL sqlvec.drop_derived(...).';
    END IF;
    -- Rows of tables that are gone do not count.
    DELETE FROM sqlvec.derived AS d USING sqlvec._relation AS r
    WHERE d.encoder = drop_encoder.name AND r.id = d.relation_id AND r.relation IS NULL;
    DELETE FROM sqlvec.encoder AS e WHERE e.name = drop_encoder.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'encoder "%" does not exist', name USING ERRCODE = 'undefined_object';
    END IF;
END
$body$;

COMMENT ON PROCEDURE sqlvec.drop_encoder(text) IS 'Remove an encoder that no derived column uses.';
