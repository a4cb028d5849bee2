-- The catalog of relevance models: sqlvec.create_relevance_model and drop_relevance_model put in and take
-- out what sqlvec.fit.relevance fitted.

CREATE TABLE IF NOT EXISTS sqlvec.relevance_model (
    name        text PRIMARY KEY CHECK (name <> ''),
    leg         text NOT NULL CHECK (leg IN ('vector', 'text', 'tokens', 'fused')),
    family      text NOT NULL,
    relation    oid, -- the table it was fitted for, with its names; NULL for fused
    attnum      smallint,
    schema_name name,
    table_name  name,
    column_name name,
    models      text[], -- of a fused model: those of the legs vector, text, tokens; NULL for an absent one
    dimensions  int CHECK (dimensions BETWEEN 1 AND 4096), -- of query vectors; NULL without
    slope       float8[] NOT NULL, -- a bias, then one weight per feature of the query; fused: one per leg
    intercept   float8[] NOT NULL, -- likewise; fused: a bias, then what a missing leg counts for
    exponent    float8[] NOT NULL, -- likewise, or the constant k
    sharpness   float8[] NOT NULL DEFAULT '{}', -- of the soft maxima over the centroids
    centroid_scale  float8[] NOT NULL DEFAULT '{}', -- undoes the scaling of each centroid
    centroid_weight float8[] NOT NULL DEFAULT '{}', -- share of the rows that each stands for
    recalls     float8[] NOT NULL DEFAULT '{}', -- wanted recalls ...
    thresholds  float8[] NOT NULL DEFAULT '{}', -- ... and the relevance that reaches each
    min_best    float8 CHECK (min_best BETWEEN 0 AND 1), -- what the best row has to reach, or a search with min_relevance answers nothing
    queries     int, -- what it was fitted on
    examples    int,
    positives   int,
    brier       float8, -- on queries held out of the fit
    owner       name NOT NULL DEFAULT current_user,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CHECK ((leg = 'fused') = (models IS NOT NULL)),
    CONSTRAINT fitted_for_a_column CHECK (leg = 'fused' OR num_nulls(relation, attnum, schema_name, table_name, column_name) = 0)
);
COMMENT ON TABLE sqlvec.relevance_model IS
    'Relevance models: maps from scores to calibrated probabilities, fitted by sqlvec.fit.relevance. Written by sqlvec.create_relevance_model.';

CREATE TABLE IF NOT EXISTS sqlvec.relevance_vector (
    model    text NOT NULL REFERENCES sqlvec.relevance_model ON DELETE CASCADE,
    part     text NOT NULL CHECK (part IN ('centroid', 'direction')),
    position int NOT NULL,
    value    vector NOT NULL,
    PRIMARY KEY (model, part, position)
) WITH (toast_tuple_target = 8160);
-- All of them are read for every query: keep them in the heap page.
ALTER TABLE sqlvec.relevance_vector ALTER COLUMN value SET STORAGE EXTERNAL;
COMMENT ON TABLE sqlvec.relevance_vector IS
    'Vectors of relevance models, of integers and 4000 long: centroids of the rows, and directions in which queries differ.';

CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON sqlvec.relevance_model
    FOR EACH ROW EXECUTE FUNCTION sqlvec._guard();
CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON sqlvec.relevance_vector
    FOR EACH ROW EXECUTE FUNCTION sqlvec._guard();

-- A model, an error for one that is not there or serves another leg.
CREATE OR REPLACE FUNCTION sqlvec._relevance_model(name text, legs text[]) RETURNS sqlvec.relevance_model
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    m sqlvec.relevance_model;
BEGIN
    SELECT r.* INTO m FROM sqlvec.relevance_model AS r WHERE r.name = _relevance_model.name;
    IF m.name IS NULL THEN
        RAISE EXCEPTION 'relevance model "%" does not exist', name
            USING ERRCODE = 'undefined_object',
                  HINT = 'Models are listed in table sqlvec.relevance_model; the command sqlvec relevance fit makes one.';
    ELSIF m.leg <> ALL (legs) THEN
        RAISE EXCEPTION 'relevance model "%" maps scores of leg "%", not of "%"', name, m.leg, array_to_string(legs, '" or "')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN m;
END
$body$;

-- The column that a model is for today. Its number, in the table of its number and name: another column may
-- have taken the name of a renamed one. Else the one with its names, because a restore gives new numbers;
-- else, after the table was renamed, its numbers alone. NULL where it is gone.
CREATE OR REPLACE FUNCTION sqlvec._relevance_column(m sqlvec.relevance_model, OUT relation oid, OUT column_name name)
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    SELECT a.attrelid, a.attname INTO relation, column_name
    FROM (SELECT t.attrelid AS oid, t.attname, 1 AS rank
          FROM pg_attribute AS t
          WHERE t.attrelid = m.relation AND t.attnum = m.attnum AND sqlvec._qualified(m.relation) = format('%I.%I', m.schema_name, m.table_name)
          UNION ALL
          SELECT c.oid, t.attname, 2
          FROM pg_class AS c
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
          JOIN pg_attribute AS t ON t.attrelid = c.oid AND t.attname = m.column_name
          WHERE c.relname = m.table_name AND n.nspname = m.schema_name
          UNION ALL
          SELECT t.attrelid, t.attname, 3 FROM pg_attribute AS t WHERE t.attrelid = m.relation AND t.attnum = m.attnum) AS found
    JOIN pg_attribute AS a ON a.attrelid = found.oid AND a.attname = found.attname
    WHERE a.attnum > 0 AND NOT a.attisdropped
    ORDER BY found.rank
    LIMIT 1;
END
$body$;

-- An error when a model was fitted for another column than the one to be searched.
CREATE OR REPLACE FUNCTION sqlvec._check_relevance(model text, leg text, rel oid, column_name text) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    m sqlvec.relevance_model := sqlvec._relevance_model(model, ARRAY[leg]);
    v_root oid := coalesce(pg_partition_root(rel), rel);
    v_column record;
BEGIN
    IF m.leg = 'fused' THEN
        RETURN;
    END IF;
    v_column := sqlvec._column(v_root, column_name);
    IF NOT EXISTS (SELECT FROM sqlvec._relevance_column(m) AS c WHERE c.relation = v_root AND c.column_name = _check_relevance.column_name) THEN
        RAISE EXCEPTION 'relevance model "%" was fitted for column "%" of table %, not for column "%" of table %',
            model, m.column_name, format('%I.%I', m.schema_name, m.table_name), column_name, sqlvec._qualified(v_root)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Scores of another column mean something else: fit a model for it.';
    ELSIF m.dimensions <> v_column.dimensions THEN
        RAISE EXCEPTION 'relevance model "%" was fitted for % dimensions; column "%" of table % has %',
            model, m.dimensions, column_name, sqlvec._qualified(v_root), v_column.dimensions
            USING ERRCODE = 'data_exception', HINT = 'Fit it anew on the present vectors.';
    END IF;
END
$body$;

-- A list of numbers for a model, counted from 1. Sums and products of such numbers cannot overflow.
CREATE OR REPLACE FUNCTION sqlvec._model_numbers(what text, numbers float8[]) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF array_ndims(numbers) > 1 OR EXISTS (SELECT FROM unnest(numbers) AS n WHERE n IS NULL OR n NOT BETWEEN -1e12 AND 1e12) THEN
        RAISE EXCEPTION '% of a relevance model is a list of numbers from -1e12 to 1e12, not %', what, left(numbers::text, 200)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN ARRAY(SELECT n FROM unnest(numbers) WITH ORDINALITY AS t (n, i) ORDER BY i);
END
$body$;

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
    ELSIF leg = 'fused' AND 0 > ANY (slope) THEN
        RAISE EXCEPTION 'a leg has a negative weight' USING ERRCODE = 'invalid_parameter_value';
    ELSIF leg <> 'fused' AND family <> 'power' AND NOT exponent[1] BETWEEN 0.1 AND 2 THEN
        RAISE EXCEPTION 'the exponent is a number from 0.1 to 2, not %', exponent[1] USING ERRCODE = 'invalid_parameter_value';
    ELSIF cardinality(recalls) <> cardinality(thresholds) OR EXISTS (SELECT FROM unnest(recalls || thresholds) AS n WHERE n NOT BETWEEN 0 AND 1) THEN
        RAISE EXCEPTION 'every recall from 0 to 1 has its threshold from 0 to 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

-- The models of the legs of a fused one, checked.
CREATE OR REPLACE FUNCTION sqlvec._fused_models(name text, models text[]) RETURNS text[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_models text[] := ARRAY(SELECT m FROM unnest(models) WITH ORDINALITY AS t (m, i) ORDER BY i); -- numbered from 1
BEGIN
    IF cardinality(v_models) <> 3 OR array_ndims(models) <> 1 OR num_nonnulls(VARIADIC v_models) < 2 THEN
        RAISE EXCEPTION 'relevance model "%" of leg "fused" combines two models or three, not %', name, coalesce(models::text, 'none')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'models names those of the legs vector, text and tokens in this order, NULL for an absent one.';
    END IF;
    FOR i IN 1 .. 3 LOOP
        IF v_models[i] IS NOT NULL THEN
            PERFORM sqlvec._relevance_model(v_models[i], ARRAY[('{vector,text,tokens}'::text[])[i]]);
        END IF;
    END LOOP;
    RETURN v_models;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.create_relevance_model(
    name text, leg text, family text, slope float8[], intercept float8[], exponent float8[], rel regclass = NULL, column_name text = NULL,
    sharpness float8[] = '{}', centroids vector[] = '{}', centroid_scale float8[] = '{}', centroid_weight float8[] = '{}',
    directions vector[] = '{}', recalls float8[] = '{}', thresholds float8[] = '{}', queries int = NULL, examples int = NULL,
    positives int = NULL, brier float8 = NULL, models text[] = NULL, min_best float8 = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_root oid := coalesce(pg_partition_root(rel), rel);
    v_column record;
    v_types name[] := CASE leg WHEN 'vector' THEN '{vector,halfvec}' WHEN 'tokens' THEN '{_halfvec,_vector}' END;
    v_attnum smallint;
    v_dimensions int;
    v_count int;
    v_features int;
BEGIN
    -- One at a time, so that no name is taken twice and no leg of a fused model dropped meanwhile.
    PERFORM pg_advisory_xact_lock(hashtext('sqlvec.relevance_model'));
    slope := sqlvec._model_numbers('slope', slope);
    intercept := sqlvec._model_numbers('intercept', intercept);
    exponent := sqlvec._model_numbers('exponent', exponent);
    sharpness := sqlvec._model_numbers('sharpness', sharpness);
    centroid_scale := sqlvec._model_numbers('centroid_scale', centroid_scale);
    centroid_weight := sqlvec._model_numbers('centroid_weight', centroid_weight);
    recalls := sqlvec._model_numbers('recalls', recalls);
    thresholds := sqlvec._model_numbers('thresholds', thresholds);
    centroids := coalesce(centroids, '{}');
    directions := coalesce(directions, '{}');
    v_features := CASE WHEN leg <> 'vector' THEN 2
                       ELSE cardinality(directions) + CASE WHEN centroids <> '{}' THEN 2 + cardinality(sharpness) ELSE 0 END END;
    IF coalesce(octet_length(name), 0) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION 'the name of a relevance model has 1 to 255 bytes, not %', coalesce(octet_length(name), 0)
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF EXISTS (SELECT FROM sqlvec.relevance_model AS m WHERE m.name = create_relevance_model.name) THEN
        RAISE EXCEPTION 'relevance model "%" already exists', name
            USING ERRCODE = 'duplicate_object', HINT = 'CALL sqlvec.drop_relevance_model(...); or choose another name.';
    ELSIF leg IS NULL OR leg NOT IN ('vector', 'text', 'tokens', 'fused') THEN
        RAISE EXCEPTION 'a relevance model serves leg "vector", "text", "tokens" or "fused", not "%"', leg USING ERRCODE = 'invalid_parameter_value';
    ELSIF (rel IS NULL OR column_name IS NULL) <> (leg = 'fused') THEN
        RAISE EXCEPTION 'a relevance model of leg "%" %', leg,
            CASE leg WHEN 'fused' THEN 'combines others and names no column' ELSE 'names the table and the column it was fitted for' END
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF leg = 'fused' THEN
        models := sqlvec._fused_models(name, models);
    ELSIF models IS NOT NULL THEN
        RAISE EXCEPTION 'a relevance model of leg "%" combines no others', leg USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF family = 'raw' THEN
        v_features := 0;
    END IF;
    PERFORM sqlvec._check_relevance_numbers(leg, family, v_features, slope, intercept, exponent, recalls, thresholds);
    IF NOT min_best BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION 'min_best is a probability from 0 to 1, not %', min_best USING ERRCODE = 'invalid_parameter_value';
    END IF;
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
        IF v_dimensions > 4096 THEN
            RAISE EXCEPTION 'column "%" of table % has % dimensions; a relevance model takes at most 4096', column_name, rel, v_dimensions
                USING ERRCODE = 'program_limit_exceeded';
        ELSIF v_count > 1 OR v_dimensions <> v_column.dimensions THEN
            RAISE EXCEPTION 'column "%" of table % has % dimensions, the vectors of the model have %', column_name, rel, v_column.dimensions,
                (SELECT string_agg(DISTINCT sqlvec._dims(v)::text, ', ') FROM unnest(centroids || directions) AS v)
                USING ERRCODE = 'data_exception';
        END IF;
    END IF;
    IF cardinality(centroid_scale) <> cardinality(centroids) OR cardinality(centroid_weight) <> cardinality(centroids)
       OR EXISTS (SELECT FROM unnest(centroid_scale || centroid_weight || sharpness) AS n WHERE n NOT BETWEEN 1e-9 AND 100) THEN
        RAISE EXCEPTION 'every centroid has a scale and a weight, these and sharpness being from 1e-9 to 100'
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF EXISTS (SELECT FROM unnest(centroids || directions) AS v WHERE v IS NULL OR NOT sqlvec._dot(v, v) BETWEEN 3900 * 3900 AND 4100 * 4100) THEN
        RAISE EXCEPTION 'centroids and directions are vectors of integers, 4000 long' USING ERRCODE = 'invalid_parameter_value';
    ELSIF 500 < (SELECT 4000 * max(s.scale) * max(b.sharpness) FROM unnest(centroid_scale) AS s (scale), unnest(sharpness) AS b (sharpness)) THEN
        RAISE EXCEPTION 'a sharpness times the length of a centroid is above 500' -- its exponential has to stay a number
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Centroids are means of vectors of length 1.';
    END IF;
    INSERT INTO sqlvec.relevance_model (
        name, leg, family, relation, attnum, schema_name, table_name, column_name, models, dimensions, slope, intercept, exponent,
        sharpness, centroid_scale, centroid_weight, recalls, thresholds, min_best, queries, examples, positives, brier)
    SELECT create_relevance_model.name, create_relevance_model.leg, create_relevance_model.family, c.oid, v_attnum, n.nspname, c.relname,
           create_relevance_model.column_name, create_relevance_model.models, v_dimensions, create_relevance_model.slope, create_relevance_model.intercept,
           create_relevance_model.exponent, create_relevance_model.sharpness, create_relevance_model.centroid_scale,
           create_relevance_model.centroid_weight, create_relevance_model.recalls, create_relevance_model.thresholds,
           create_relevance_model.min_best, create_relevance_model.queries, create_relevance_model.examples, create_relevance_model.positives, create_relevance_model.brier
    FROM (VALUES (1)) AS one (n)
    LEFT JOIN (pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace) ON c.oid = v_root;
    INSERT INTO sqlvec.relevance_vector (model, part, position, value)
    SELECT create_relevance_model.name, 'centroid', t.position, t.value FROM unnest(centroids) WITH ORDINALITY AS t (value, position)
    UNION ALL
    SELECT create_relevance_model.name, 'direction', t.position, t.value FROM unnest(directions) WITH ORDINALITY AS t (value, position);
END
$body$;

COMMENT ON PROCEDURE sqlvec.create_relevance_model(text, text, text, float8[], float8[], float8[], regclass, text, float8[], vector[], float8[], float8[], vector[], float8[], float8[], int, int, int, float8, text[], float8) IS
    'Store a relevance model. sqlvec.fit.relevance and the command sqlvec relevance fit call this; its arguments are the columns of sqlvec.relevance_model and sqlvec.relevance_vector. models is for leg fused: the models of the legs vector, text and tokens, NULL for an absent one. min_best is the relevance that the best row has to reach for a search with min_relevance to answer anything.';

CREATE OR REPLACE PROCEDURE sqlvec.drop_relevance_model(name text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_users text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('sqlvec.relevance_model'));
    SELECT string_agg(format('"%s"', m.name), ', ' ORDER BY m.name) INTO v_users
    FROM sqlvec.relevance_model AS m WHERE drop_relevance_model.name = ANY (m.models)
      -- Fused models of others do not hold the owner back: they fail, by name, until there is one again.
      AND coalesce(sqlvec._acts_as(m.owner), false);
    IF v_users IS NOT NULL THEN
        RAISE EXCEPTION 'relevance model "%" is in use by fused model %', name, v_users
            USING ERRCODE = 'dependent_objects_still_exist', HINT = 'Drop the fused model first: CALL sqlvec.drop_relevance_model(...).';
    END IF;
    DELETE FROM sqlvec.relevance_model AS m WHERE m.name = drop_relevance_model.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'relevance model "%" does not exist', name USING ERRCODE = 'undefined_object';
    END IF;
END
$body$;

COMMENT ON PROCEDURE sqlvec.drop_relevance_model(text) IS 'Remove a relevance model that no fused one needs.';
