-- sqlvec.add_quantized: declare a quantized column.

-- Dimensions of a vector column: from its type, else from the first vector in it.
CREATE OR REPLACE FUNCTION sqlvec._dimensions(rel oid, column_name text) RETURNS int
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record := sqlvec._column(rel, column_name);
    v_dimensions int := v_column.dimensions;
BEGIN
    IF v_dimensions IS NULL THEN
        EXECUTE format('SELECT sqlvec._dims(t.%1$I) FROM %2$s AS t WHERE t.%1$I IS NOT NULL LIMIT 1',
                       column_name, sqlvec._qualified(rel)) INTO v_dimensions;
    END IF;
    IF v_dimensions IS NULL THEN
        RAISE EXCEPTION 'column "%" of table % names no dimensions and has no rows to read them from', column_name, sqlvec._qualified(rel)
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = format('Declare them: ALTER TABLE %s ALTER COLUMN %I TYPE %s(...)%s; or name an encoder made by sqlvec.create_encoder.',
                                sqlvec._qualified(rel), column_name, ltrim(v_column.type_name, '_'),
                                CASE WHEN left(v_column.type_name, 1) = '_' THEN '[]' ELSE '' END);
    END IF;
    RETURN v_dimensions;
END
$body$;

-- Mean of a column over at most 10,000 rows; an error when it has none.
CREATE OR REPLACE FUNCTION sqlvec._sample_mean(rel oid, column_name text, OUT mean vector)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    EXECUTE format(
        'SELECT %3$I.avg(sqlvec._as_vector(s.%1$I)) FROM (SELECT t.%1$I FROM %2$s AS t WHERE t.%1$I IS NOT NULL LIMIT 10000) AS s',
        column_name, sqlvec._qualified(rel), sqlvec._vector_schema()) INTO mean;
    IF mean IS NULL THEN
        RAISE EXCEPTION 'option "center" needs rows in column "%" of table % to take the mean of', column_name, sqlvec._qualified(rel)
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Load data first, or make the encoder with sqlvec.create_encoder and a mean of your own.';
    END IF;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.add_quantized(
    rel regclass, column_name text, encoder text, target text = NULL, metric text = NULL, options jsonb = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_kind text;
    v_target text;
    v_encoder text := encoder;
    v_encoder_row record;
    v_dimensions int;
BEGIN
    IF rel IS NULL OR column_name IS NULL OR encoder IS NULL THEN
        RAISE EXCEPTION 'add_quantized needs a table, a column and an encoder' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sqlvec._require_table(rel);
    v_source := sqlvec._column(rel, column_name);
    IF v_source.type_name NOT IN ('vector', 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, not vector or halfvec',
            column_name, rel, format_type(v_source.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch';
    END IF;
    metric := sqlvec._checked_metric(coalesce(metric, 'cosine'), v_source.type_name);

    SELECT e.kind INTO v_kind FROM sqlvec.encoder AS e WHERE e.name = encoder;
    IF EXISTS (SELECT FROM sqlvec.derived AS d WHERE d.encoder = add_quantized.encoder AND d.own_encoder) THEN
        RAISE EXCEPTION 'encoder "%" belongs to another column and goes when that goes', encoder
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Make one to share with sqlvec.create_encoder.';
    ELSIF coalesce(v_kind, encoder) IN ('fde', 'pool', 'centroid') THEN
        RAISE EXCEPTION 'encoder "%" encodes multi-vectors, not column "%"', encoder, column_name
            USING ERRCODE = 'datatype_mismatch',
                  HINT = format('Declare it on a column of type halfvec[]: CALL sqlvec.%s(...).',
                                CASE coalesce(v_kind, encoder) WHEN 'pool' THEN 'add_pooled' ELSE 'add_' || coalesce(v_kind, encoder) END);
    ELSIF coalesce(v_kind, encoder) = 'hubness' THEN
        RAISE EXCEPTION 'encoder "%" makes no code of column "%" that its own queries could search', encoder, column_name
            USING ERRCODE = 'datatype_mismatch', HINT = 'Declare it with CALL sqlvec.add_hubness(...), and search that column.';
    ELSIF v_kind IS NOT NULL AND options IS NOT NULL AND options <> '{}' THEN
        RAISE EXCEPTION 'encoder "%" has its options already', encoder
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Options go with a kind, such as ''binary'', not with a named encoder.';
    END IF;
    v_target := coalesce(target, sqlvec._name(column_name || '_' || coalesce(v_kind, encoder)));
    PERFORM sqlvec._claim_targets(rel, ARRAY[column_name], ARRAY[v_target]);

    IF v_kind IS NULL THEN
        v_encoder := sqlvec._own_encoder_name(rel, v_target);
        v_dimensions := coalesce(v_source.dimensions, sqlvec._dimensions(rel, column_name));
        options := sqlvec._encoder_options(encoder, v_dimensions, options);
        PERFORM sqlvec._write_encoder(v_encoder, encoder, v_dimensions, options, sqlvec._owner(rel),
            CASE WHEN (options ->> 'center')::boolean THEN sqlvec._sample_mean(rel, column_name) END);
    END IF;
    SELECT e.* INTO v_encoder_row FROM sqlvec.encoder AS e WHERE e.name = v_encoder;
    IF v_encoder_row.dimensions <> coalesce(v_source.dimensions, v_encoder_row.dimensions) THEN
        RAISE EXCEPTION 'column "%" of table % has % dimensions, encoder "%" takes %',
            column_name, rel, v_source.dimensions, v_encoder, v_encoder_row.dimensions
            USING ERRCODE = 'datatype_mismatch';
    END IF;

    PERFORM sqlvec._declare(rel, ARRAY[column_name], ARRAY[v_target], v_encoder, v_kind IS NULL, metric,
                            sqlvec._add_target(rel, v_target, v_encoder, v_encoder_row.code_type, v_encoder_row.code_dimensions));
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_quantized(regclass, text, text, text, text, jsonb) IS
    'Declare a column `target` that holds the code of vector column `column_name` under `encoder` (a catalog encoder, or a kind: halfvec, binary, truncate, linear, with its options). Adds the column, the trigger and the catalog row; rows already there wait for sqlvec.backfill.';
