-- sqlvec.add_quantized, sqlvec.drop_derived: declare a quantized column and take it back.

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
                  HINT = format('Declare them: ALTER TABLE %s ALTER COLUMN %I TYPE %s(…); or name an encoder made by sqlvec.create_encoder.',
                                sqlvec._qualified(rel), column_name, v_column.type_name);
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

-- Remove a table from the catalog, with the encoders made for its columns alone and its trigger function.
CREATE OR REPLACE FUNCTION sqlvec._forget(relation_id int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoders text[] := ARRAY(SELECT d.encoder FROM sqlvec.derived AS d WHERE d.relation_id = _forget.relation_id AND d.own_encoder);
BEGIN
    DELETE FROM sqlvec.relation AS r WHERE r.id = relation_id;
    -- Those of another role, which had a table of this name before, are left to that role.
    DELETE FROM sqlvec.encoder AS e WHERE e.name = ANY (v_encoders) AND coalesce(sqlvec._acts_as(e.owner), true);
    PERFORM sqlvec._drop_maintain(relation_id);
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.add_quantized(
    rel regclass, column_name text, encoder text, target text = NULL, metric text = NULL, options jsonb = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_class record;
    v_source record;
    v_known boolean;
    v_fresh int;
    v_kind text;
    v_target text;
    v_code_type text;
    v_encoder text := encoder;
    v_encoder_row record;
    v_dimensions int;
    v_relation_id int;
    v_existing record;
BEGIN
    IF rel IS NULL OR column_name IS NULL OR encoder IS NULL THEN
        RAISE EXCEPTION 'add_quantized needs a table, a column and an encoder' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sqlvec._require_owner(rel);
    SELECT c.relkind, c.relispartition, pg_get_userbyid(c.relowner) AS owner INTO v_class
    FROM pg_class AS c WHERE c.oid = rel;
    IF v_class.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '% is not a table', rel
            USING ERRCODE = 'wrong_object_type', HINT = 'Derived columns are added to ordinary and partitioned tables.';
    ELSIF v_class.relispartition THEN
        RAISE EXCEPTION 'table % is a partition', rel
            USING ERRCODE = 'wrong_object_type',
                  HINT = format('Add the column to the partitioned table: %s.', pg_partition_root(rel));
    ELSIF v_class.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits AS i WHERE rel IN (i.inhparent, i.inhrelid)) THEN
        RAISE EXCEPTION 'table % takes part in inheritance, whose children would not be kept up to date', rel
            USING ERRCODE = 'feature_not_supported', HINT = 'Use a partitioned table.';
    END IF;
    v_source := sqlvec._column(rel, column_name);
    IF v_source.type_name NOT IN ('vector', 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, not vector or halfvec',
            column_name, rel, format_type(v_source.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch';
    END IF;
    IF EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = rel AND a.attname IN (column_name, target) AND a.attgenerated <> '') THEN
        RAISE EXCEPTION 'a generated column of table % can neither be encoded nor hold codes', rel
            USING ERRCODE = 'wrong_object_type', HINT = 'Postgres computes generated columns after the triggers have run.';
    END IF;
    metric := sqlvec._checked_metric(coalesce(metric, 'cosine'), v_source.type_name);

    SELECT e.kind INTO v_kind FROM sqlvec.encoder AS e WHERE e.name = encoder;
    IF EXISTS (SELECT FROM sqlvec.derived AS d WHERE d.encoder = add_quantized.encoder AND d.own_encoder) THEN
        RAISE EXCEPTION 'encoder "%" belongs to another column and goes when that goes', encoder
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Make one to share with sqlvec.create_encoder.';
    ELSIF v_kind IS NOT NULL AND options IS NOT NULL AND options <> '{}' THEN
        RAISE EXCEPTION 'encoder "%" has its options already', encoder
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Options go with a kind, such as ''binary'', not with a named encoder.';
    END IF;
    v_target := coalesce(target, sqlvec._name(column_name || '_' || coalesce(v_kind, encoder)));
    IF v_target = column_name THEN
        RAISE EXCEPTION 'column "%" cannot hold its own code', column_name USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_target = '' OR octet_length(v_target) > 63 THEN
        RAISE EXCEPTION 'target "%" is not a column name of 1 to 63 bytes', v_target USING ERRCODE = 'invalid_name';
    END IF;

    -- Two declarations on one table take turns. The table itself is locked as late as can be: making
    -- a matrix may take a second.
    PERFORM pg_advisory_xact_lock(hashtext('sqlvec.declare'), rel::oid::int);
    -- A table of the same name that was dropped may have left its rows in the catalog.
    PERFORM sqlvec._forget(r.id) FROM sqlvec._relation AS r
    WHERE r.relation IS NULL AND format('%I.%I', r.schema_name, r.table_name) = sqlvec._qualified(rel);
    SELECT d.source_column, d.encoder, sqlvec._has_column(rel, d.target_column) AS there INTO v_existing
    FROM sqlvec._derived_of(rel) AS d WHERE coalesce(d.target_column, d.known_target) = v_target;
    v_known := FOUND;
    IF v_existing.there THEN
        RAISE EXCEPTION 'column "%" of table % is already derived from "%" by encoder "%"',
            v_target, rel, v_existing.source_column, v_existing.encoder
            USING ERRCODE = 'duplicate_column',
                  HINT = format('Choose another target, or CALL sqlvec.drop_derived(%L, %L) first.', rel, v_target);
    ELSIF v_known THEN
        -- The column was dropped by hand: forget it before it is declared anew.
        CALL sqlvec.drop_derived(rel, v_target);
    END IF;

    IF v_kind IS NULL THEN
        -- A kind with its options: the encoder belongs to this column alone and goes with it. A table
        -- that has been renamed may have taken the name along.
        v_encoder := format('%s.%I', sqlvec._qualified(rel), v_target);
        WHILE EXISTS (SELECT FROM sqlvec.encoder AS e WHERE e.name = v_encoder) LOOP
            v_encoder := v_encoder || '''';
        END LOOP;
        v_dimensions := coalesce(v_source.dimensions, sqlvec._dimensions(rel, column_name));
        options := sqlvec._encoder_options(encoder, v_dimensions, options);
        PERFORM sqlvec._write_encoder(v_encoder, encoder, v_dimensions, options, v_class.owner,
            CASE WHEN (options ->> 'center')::boolean THEN sqlvec._sample_mean(rel, column_name) END);
    END IF;
    SELECT e.* INTO v_encoder_row FROM sqlvec.encoder AS e WHERE e.name = v_encoder;
    IF v_encoder_row.dimensions <> coalesce(v_source.dimensions, v_encoder_row.dimensions) THEN
        RAISE EXCEPTION 'column "%" of table % has % dimensions, encoder "%" takes %',
            column_name, rel, v_source.dimensions, v_encoder, v_encoder_row.dimensions
            USING ERRCODE = 'datatype_mismatch';
    END IF;

    v_code_type := format('%s(%s)',
        CASE v_encoder_row.code_type WHEN 'bit' THEN 'bit' ELSE format('%I.%I', sqlvec._vector_schema(), v_encoder_row.code_type) END,
        v_encoder_row.code_dimensions);
    IF NOT sqlvec._has_column(rel, v_target) THEN
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', sqlvec._qualified(rel), v_target, v_code_type);
    ELSE
        v_existing := sqlvec._column(rel, v_target);
        IF (v_existing.type_name, v_existing.dimensions)
           IS DISTINCT FROM (v_encoder_row.code_type::name, v_encoder_row.code_dimensions) THEN
            RAISE EXCEPTION 'column "%" of table % is of type %, encoder "%" makes %(%)', v_target, rel,
                (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute AS a
                 WHERE a.attrelid = rel AND a.attname = v_target),
                v_encoder, v_encoder_row.code_type, v_encoder_row.code_dimensions
                USING ERRCODE = 'datatype_mismatch', HINT = 'Choose another target, or drop that column first.';
        END IF;
    END IF;

    SELECT r.id INTO v_relation_id FROM sqlvec._relation AS r WHERE r.relation = rel;
    IF NOT FOUND THEN
        INSERT INTO sqlvec.relation (oid, schema_name, table_name)
        SELECT c.oid, n.nspname, c.relname
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.oid = rel
        RETURNING id INTO v_relation_id;
    END IF;
    INSERT INTO sqlvec.derived (relation_id, source_attnums, source_columns, target_attnums, target_columns, encoder, own_encoder, metric)
    VALUES (v_relation_id, ARRAY[v_source.attnum], ARRAY[column_name], sqlvec._attnums(rel, ARRAY[v_target]), ARRAY[v_target],
            v_encoder, v_kind IS NULL, add_quantized.metric)
    RETURNING id INTO v_fresh;
    PERFORM sqlvec._rewrite(rel, v_fresh);
    PERFORM sqlvec._index_unfinished(rel, v_target);
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_quantized(regclass, text, text, text, text, jsonb) IS
    'Declare a column `target` that holds the code of vector column `column_name` under `encoder` (a catalog encoder, or a kind: halfvec, binary, truncate, linear, with its options). Adds the column, the trigger and the catalog row; rows already there wait for sqlvec.backfill.';

CREATE OR REPLACE PROCEDURE sqlvec.drop_derived(rel regclass, target text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_target name;
BEGIN
    PERFORM sqlvec._require_owner(rel);
    SELECT d.* INTO v_derived FROM sqlvec._derived_of(rel) AS d
    WHERE target IN (d.target_columns[1], d.known_target) ORDER BY target = d.target_columns[1] DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'table % has no derived column "%"', rel, target
            USING ERRCODE = 'undefined_column',
                  HINT = coalesce('It has: ' || (SELECT string_agg(quote_ident(d.known_target), ', ')
                                                 FROM sqlvec._derived_of(rel) AS d) || '.', 'It has none.');
    END IF;
    DELETE FROM sqlvec.derived AS d WHERE d.id = v_derived.id;
    IF v_derived.own_encoder THEN
        DELETE FROM sqlvec.encoder AS e WHERE e.name = v_derived.encoder;
    END IF;
    IF EXISTS (SELECT FROM sqlvec.derived AS d WHERE d.relation_id = v_derived.relation_id) THEN
        PERFORM sqlvec._rewrite(rel);
    ELSE
        IF v_derived.trigger_name IS NOT NULL THEN
            EXECUTE format('DROP TRIGGER %I ON %s', v_derived.trigger_name, sqlvec._qualified(rel));
        END IF;
        PERFORM sqlvec._forget(v_derived.relation_id);
    END IF;
    FOREACH v_target IN ARRAY array_remove(v_derived.target_columns, NULL) LOOP
        EXECUTE format('ALTER TABLE %s DROP COLUMN %I', sqlvec._qualified(rel), v_target);
    END LOOP;
END
$body$;

COMMENT ON PROCEDURE sqlvec.drop_derived(regclass, text) IS
    'Take a derived column back: the column with its indexes, its catalog row and, with the last one of a table, the trigger.';
