-- sqlvec.create_relevance_model, sqlvec.drop_relevance_model: fitted models into the catalog and out.

CREATE OR REPLACE FUNCTION sqlvec._check_relevance_numbers(
    leg text, family text, features int, slope float8[], intercept float8[], exponent float8[], recalls float8[], thresholds float8[]
) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_families text[] := CASE leg WHEN 'fused' THEN ARRAY['logistic'] ELSE ARRAY['raw', 'linear', 'sqrt', 'quadratic', 'power'] END;
    v_lengths int[] := CASE leg WHEN 'fused' THEN '{3,4,0}'::int[]
                                ELSE ARRAY[features + 1, features + 1, CASE family WHEN 'power' THEN features ELSE 0 END + 1] END;
    v_found int[] := ARRAY[cardinality(slope), cardinality(intercept), cardinality(exponent)];
BEGIN
    IF family <> ALL (v_families) OR family IS NULL THEN
        RAISE EXCEPTION 'leg "%" has no family "%"', leg, family
            USING ERRCODE = 'invalid_parameter_value', HINT = format('It has: %s.', array_to_string(v_families, ', '));
    ELSIF v_found IS DISTINCT FROM v_lengths THEN
        RAISE EXCEPTION 'slope, intercept and exponent have %, % and % numbers, not %, % and %',
            v_lengths[1], v_lengths[2], v_lengths[3], v_found[1], v_found[2], v_found[3]
            USING ERRCODE = 'array_subscript_error', HINT = 'Each is a bias, followed by one weight for every feature of the query.';
    ELSIF EXISTS (SELECT FROM unnest(slope || intercept || exponent || recalls || thresholds) AS n
                  WHERE n IS NULL OR n IN ('NaN', 'Infinity', '-Infinity')) THEN
        RAISE EXCEPTION 'a relevance model holds NULL, NaN or infinity' USING ERRCODE = 'invalid_parameter_value';
    ELSIF leg = 'fused' AND 0 > ANY (slope) THEN
        RAISE EXCEPTION 'a leg has a negative weight' USING ERRCODE = 'invalid_parameter_value';
    ELSIF leg <> 'fused' AND family <> 'power' AND NOT exponent[1] BETWEEN 0.1 AND 2 THEN
        RAISE EXCEPTION 'the exponent is a number from 0.1 to 2, not %', exponent[1] USING ERRCODE = 'invalid_parameter_value';
    ELSIF cardinality(recalls) <> cardinality(thresholds) OR EXISTS (SELECT FROM unnest(recalls || thresholds) AS n WHERE n NOT BETWEEN 0 AND 1) THEN
        RAISE EXCEPTION 'every recall from 0 to 1 has its threshold from 0 to 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.create_relevance_model(
    name text, leg text, family text, slope float8[], intercept float8[], exponent float8[], rel regclass = NULL, column_name text = NULL,
    sharpness float8[] = '{}', centroids vector[] = '{}', centroid_scale float8[] = '{}', centroid_weight float8[] = '{}',
    directions vector[] = '{}', recalls float8[] = '{}', thresholds float8[] = '{}', queries int = NULL, examples int = NULL,
    positives int = NULL, brier float8 = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_root oid := coalesce(pg_partition_root(rel), rel);
    v_column record;
    v_types name[] := CASE leg WHEN 'vector' THEN '{vector,halfvec}' WHEN 'tokens' THEN '{_halfvec,_vector}' END;
    v_attnum smallint;
    v_dimensions int;
    v_count int;
    v_features int := CASE leg WHEN 'vector' THEN cardinality(directions) + CASE WHEN centroids <> '{}' THEN 2 + cardinality(sharpness) ELSE 0 END
                               ELSE 2 END;
BEGIN
    IF name IS NULL OR name = '' THEN
        RAISE EXCEPTION 'a relevance model needs a name' USING ERRCODE = 'invalid_parameter_value';
    ELSIF EXISTS (SELECT FROM sqlvec.relevance_model AS m WHERE m.name = create_relevance_model.name) THEN
        RAISE EXCEPTION 'relevance model "%" already exists', name
            USING ERRCODE = 'duplicate_object', HINT = 'CALL sqlvec.drop_relevance_model(...); or choose another name.';
    ELSIF leg IS NULL OR leg NOT IN ('vector', 'text', 'tokens', 'fused') THEN
        RAISE EXCEPTION 'a relevance model serves leg "vector", "text", "tokens" or "fused", not "%"', leg USING ERRCODE = 'invalid_parameter_value';
    ELSIF (rel IS NULL OR column_name IS NULL) <> (leg = 'fused') THEN
        RAISE EXCEPTION 'a relevance model of leg "%" %', leg,
            CASE leg WHEN 'fused' THEN 'combines others and names no column' ELSE 'names the table and the column it was fitted for' END
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF family = 'raw' THEN
        v_features := 0;
    END IF;
    PERFORM sqlvec._check_relevance_numbers(leg, family, v_features, slope, intercept, exponent, recalls, thresholds);
    IF leg <> 'fused' THEN
        v_column := sqlvec._column(v_root, column_name);
        v_attnum := v_column.attnum;
        IF v_column.type_name <> ALL (v_types) THEN
            RAISE EXCEPTION 'column "%" of table % is of type %, which leg "%" does not search', column_name, rel, format_type(v_column.type_oid, NULL), leg
                USING ERRCODE = 'datatype_mismatch';
        END IF;
    END IF;
    IF leg = 'vector' THEN
        SELECT count(DISTINCT sqlvec._dims(v)), min(sqlvec._dims(v)) INTO v_count, v_dimensions FROM unnest(centroids || directions) AS v;
        v_dimensions := coalesce(v_dimensions, v_column.dimensions, sqlvec._dimensions(v_root, column_name));
        IF v_count > 1 OR v_dimensions <> v_column.dimensions THEN
            RAISE EXCEPTION 'column "%" of table % has % dimensions, the vectors of the model have %', column_name, rel, v_column.dimensions,
                (SELECT string_agg(DISTINCT sqlvec._dims(v)::text, ', ') FROM unnest(centroids || directions) AS v)
                USING ERRCODE = 'data_exception';
        END IF;
    END IF;
    IF cardinality(centroid_scale) <> cardinality(centroids) OR cardinality(centroid_weight) <> cardinality(centroids)
       OR EXISTS (SELECT FROM unnest(centroid_scale || centroid_weight || sharpness) AS n WHERE n IS NULL OR n NOT BETWEEN 1e-9 AND 100) THEN
        RAISE EXCEPTION 'every centroid has a scale and a weight, these and sharpness being from 1e-9 to 100'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO sqlvec.relevance_model (
        name, leg, family, relation, attnum, schema_name, table_name, column_name, dimensions, slope, intercept, exponent,
        sharpness, centroid_scale, centroid_weight, recalls, thresholds, queries, examples, positives, brier)
    SELECT create_relevance_model.name, create_relevance_model.leg, create_relevance_model.family, c.oid, v_attnum, n.nspname, c.relname,
           create_relevance_model.column_name, v_dimensions, create_relevance_model.slope, create_relevance_model.intercept,
           create_relevance_model.exponent, create_relevance_model.sharpness, create_relevance_model.centroid_scale,
           create_relevance_model.centroid_weight, create_relevance_model.recalls, create_relevance_model.thresholds,
           create_relevance_model.queries, create_relevance_model.examples, create_relevance_model.positives, create_relevance_model.brier
    FROM (VALUES (1)) AS one (n)
    LEFT JOIN (pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace) ON c.oid = v_root;
    INSERT INTO sqlvec.relevance_vector (model, part, position, value)
    SELECT create_relevance_model.name, 'centroid', t.position, t.value FROM unnest(centroids) WITH ORDINALITY AS t (value, position)
    UNION ALL
    SELECT create_relevance_model.name, 'direction', t.position, t.value FROM unnest(directions) WITH ORDINALITY AS t (value, position);
END
$body$;

COMMENT ON PROCEDURE sqlvec.create_relevance_model(text, text, text, float8[], float8[], float8[], regclass, text, float8[], vector[], float8[], float8[], vector[], float8[], float8[], int, int, int, float8) IS
    'Store a relevance model. sqlvec.fit.relevance and the command sqlvec relevance fit call this; its arguments are the columns of sqlvec.relevance_model and sqlvec.relevance_vector.';

CREATE OR REPLACE PROCEDURE sqlvec.drop_relevance_model(name text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    DELETE FROM sqlvec.relevance_model AS m WHERE m.name = drop_relevance_model.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'relevance model "%" does not exist', name USING ERRCODE = 'undefined_object';
    END IF;
END
$body$;

COMMENT ON PROCEDURE sqlvec.drop_relevance_model(text) IS 'Remove a relevance model.';
