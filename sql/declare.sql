-- What every declaration of a derived column does, and sqlvec.drop_derived, which takes one back.

CREATE OR REPLACE FUNCTION sqlvec._owner(rel oid) RETURNS name
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT pg_catalog.pg_get_userbyid(c.relowner) FROM pg_catalog.pg_class AS c WHERE c.oid = rel;
END;

-- An error unless derived columns can be added to this table by this role.
CREATE OR REPLACE FUNCTION sqlvec._require_table(rel regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_class record;
BEGIN
    PERFORM sqlvec._require_owner(rel);
    SELECT c.relkind, c.relispartition INTO v_class
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

-- Make sure that columns can take the codes of others: their names are good, they are nobody's targets,
-- and Postgres does not compute them itself. From here on declarations on this table take turns; the
-- table itself is locked as late as can be, because making a matrix may take a second.
CREATE OR REPLACE FUNCTION sqlvec._claim_targets(rel regclass, sources text[], targets text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_target text;
    v_existing record;
BEGIN
    IF EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = rel AND a.attname = ANY (sources || targets) AND a.attgenerated <> '') THEN
        RAISE EXCEPTION 'a generated column of table % can neither be encoded nor hold codes', rel
            USING ERRCODE = 'wrong_object_type', HINT = 'Postgres computes generated columns after the triggers have run.';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('sqlvec.declare'), rel::oid::int);
    -- A table of the same name that was dropped may have left its rows in the catalog.
    PERFORM sqlvec._forget(r.id) FROM sqlvec._relation AS r
    WHERE r.relation IS NULL AND format('%I.%I', r.schema_name, r.table_name) = sqlvec._qualified(rel);
    FOREACH v_target IN ARRAY targets LOOP
        IF v_target = ANY (sources) THEN
            RAISE EXCEPTION 'column "%" cannot hold its own code', v_target USING ERRCODE = 'invalid_parameter_value';
        ELSIF v_target = '' OR octet_length(v_target) > 63 THEN
            RAISE EXCEPTION 'target "%" is not a column name of 1 to 63 bytes', v_target USING ERRCODE = 'invalid_name';
        END IF;
        -- Codes are made in the order of their declarations.
        SELECT d.known_target INTO v_existing FROM sqlvec._derived_of(rel) AS d WHERE v_target = ANY (d.source_columns) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'column "%" of table % cannot hold codes: "%" is derived from it already', v_target, rel, v_existing.known_target
                USING ERRCODE = 'object_in_use',
                      HINT = format('CALL sqlvec.drop_derived(%L, %L) first, and declare that one after this.', rel, v_existing.known_target);
        END IF;
        FOR v_existing IN
            SELECT coalesce(d.source_column, d.known_source) AS source_column, d.encoder, d.known_target,
                   sqlvec._has_column(rel, v_target) AS there
            FROM sqlvec._derived_of(rel) AS d
            WHERE v_target = ANY (CASE WHEN d.target_column IS NULL THEN d.known_targets ELSE d.target_columns END)
        LOOP
            IF v_existing.there THEN
                RAISE EXCEPTION 'column "%" of table % is already derived from "%" by encoder "%"',
                    v_target, rel, v_existing.source_column, v_existing.encoder
                    USING ERRCODE = 'duplicate_column',
                          HINT = format('Choose another target, or CALL sqlvec.drop_derived(%L, %L) first.', rel, v_existing.known_target);
            END IF;
            -- The column was dropped by hand: forget it before it is declared anew.
            CALL sqlvec.drop_derived(rel, v_existing.known_target);
        END LOOP;
    END LOOP;
END
$body$;

-- A free name for an encoder that belongs to one column alone and goes with it. A table that has been
-- renamed may have taken the name along.
CREATE OR REPLACE FUNCTION sqlvec._own_encoder_name(rel oid, target text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_name text := format('%s.%I', sqlvec._qualified(rel), target);
BEGIN
    WHILE EXISTS (SELECT FROM sqlvec.encoder AS e WHERE e.name = v_name) LOOP
        v_name := v_name || '''';
    END LOOP;
    RETURN v_name;
END
$body$;

-- Add the column for a code, or make sure that the one of that name can hold it. dimensions: NULL for
-- a type that has none. Answers whether it holds values, which nobody knows the encoder of.
CREATE OR REPLACE FUNCTION sqlvec._add_target(rel oid, target text, encoder text, type_name text, dimensions int) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record;
    v_filled boolean;
    v_element text := rtrim(type_name, '[]');
    v_rest text := coalesce('(' || dimensions || ')', '') || CASE WHEN v_element <> type_name THEN '[]' ELSE '' END;
BEGIN
    IF NOT sqlvec._has_column(rel, target) THEN
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', sqlvec._qualified(rel), target,
                       CASE WHEN type_name IN ('bit', 'bytea', 'tsvector') THEN type_name ELSE format('%I.%I', sqlvec._vector_schema(), v_element) END
                       || v_rest);
        RETURN false;
    END IF;
    v_column := sqlvec._column(rel, target);
    IF (v_column.type_name, v_column.dimensions)
       IS DISTINCT FROM ((CASE WHEN v_element <> type_name THEN '_' ELSE '' END || v_element)::name, dimensions) THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, encoder "%" makes %', target, sqlvec._qualified(rel)::regclass,
            (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute AS a WHERE a.attrelid = rel AND a.attname = target),
            encoder, v_element || v_rest
            USING ERRCODE = 'datatype_mismatch', HINT = 'Choose another target, or drop that column first.';
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s AS t WHERE t.%I IS NOT NULL)', sqlvec._qualified(rel), target) INTO v_filled;
    RETURN v_filled;
END
$body$;

-- Token vectors hardly compress: store them as they are. A choice made by the application stays.
CREATE OR REPLACE FUNCTION sqlvec._store_external(rel oid, column_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF (SELECT a.attstorage = 'x' FROM pg_attribute AS a WHERE a.attrelid = rel AND a.attname = column_name) THEN
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE EXTERNAL', sqlvec._qualified(rel), column_name);
    END IF;
END
$body$;

-- An error unless the foreign tables among the partitions have a column for the codes where their rows are.
CREATE OR REPLACE FUNCTION sqlvec._check_foreign_parts(rel oid, targets name[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_part oid;
BEGIN
    FOR v_part IN SELECT f.part FROM sqlvec._foreign_parts(rel) AS f LOOP
        EXECUTE format('SELECT %s FROM %s LIMIT 1', (SELECT string_agg(quote_ident(t), ', ') FROM unnest(targets) AS t), sqlvec._qualified(v_part));
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    RAISE EXCEPTION 'column "%" cannot be read from foreign table %: %', targets[1], sqlvec._qualified(v_part), SQLERRM
        USING ERRCODE = SQLSTATE,
              HINT = format('Declare it first on the table behind %s, with the same encoder and options: its codes are made there.', sqlvec._qualified(v_part));
END
$body$;

-- Write the declaration into the catalog and the trigger. The columns are there; values that are
-- `filled` in already are suspect until a backfill has compared them.
CREATE OR REPLACE FUNCTION sqlvec._declare(
    rel oid, sources name[], targets name[], encoder text, own_encoder boolean, metric text, filled boolean, tenant name = NULL
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_relation_id int;
    v_fresh int;
BEGIN
    PERFORM sqlvec._check_foreign_parts(rel, targets);
    SELECT r.id INTO v_relation_id FROM sqlvec._relation AS r WHERE r.relation = rel;
    IF NOT FOUND THEN
        INSERT INTO sqlvec.relation (oid, schema_name, table_name)
        SELECT c.oid, n.nspname, c.relname
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.oid = rel
        RETURNING id INTO v_relation_id;
    END IF;
    INSERT INTO sqlvec.derived (relation_id, source_attnums, source_columns, target_attnums, target_columns,
                                tenant_attnum, tenant_column, encoder, own_encoder, metric)
    VALUES (v_relation_id, sqlvec._attnums(rel, sources), sources, sqlvec._attnums(rel, targets), targets,
            (sqlvec._attnums(rel, ARRAY[tenant]))[1], tenant, _declare.encoder, _declare.own_encoder, _declare.metric)
    RETURNING id INTO v_fresh;
    PERFORM sqlvec._rewrite(rel, v_fresh);
    IF filled THEN
        UPDATE sqlvec.derived AS d SET suspect = true WHERE d.id = v_fresh;
        RAISE WARNING 'column "%" of table % has values already; searches do without them until they are compared', targets[1], rel::regclass
            USING HINT = format('CALL sqlvec.backfill(%L, %L); compares them and mends those that differ.', rel::regclass, targets[1]);
    END IF;
    PERFORM sqlvec._index_unfinished(rel, targets[1]);
END
$body$;

-- A derived column of a table by its present or its known name; an error that lists them where there is none.
CREATE OR REPLACE FUNCTION sqlvec._derived_named(rel regclass, target text) RETURNS sqlvec._derived
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived;
BEGIN
    SELECT d.* INTO v_derived FROM sqlvec._derived_of(rel) AS d
    WHERE target IN (d.target_columns[1], d.known_target) ORDER BY target = d.target_columns[1] DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'table % has no derived column "%"', rel, target
            USING ERRCODE = 'undefined_column',
                  HINT = coalesce(sqlvec._derived_columns_of(rel), 'It has none.');
    END IF;
    RETURN v_derived;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.drop_derived(rel regclass, target text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived := sqlvec._derived_named(rel, target); -- a wrong name locks nothing
    v_target name;
BEGIN
    PERFORM sqlvec._require_owner(rel);
    -- The table before its rows in the catalog, as a batch of a backfill takes them.
    PERFORM sqlvec._hold(rel, 'LOCK TABLE %s IN ACCESS EXCLUSIVE MODE');
    v_derived := sqlvec._derived_named(rel, target);
    -- The snapshot of this transaction may be older than the lock; the system cache is not.
    IF EXISTS (SELECT FROM pg_attribute AS a
               WHERE a.attrelid = rel AND a.attname = ANY (v_derived.target_columns)
                 AND (pg_identify_object_as_address('pg_class'::regclass, rel, a.attnum)).object_names[3] IS DISTINCT FROM a.attname) THEN
        RAISE EXCEPTION 'columns of table % were renamed or dropped after this transaction began', rel
            USING ERRCODE = 'serialization_failure', HINT = 'Run it again.';
    END IF;
    DELETE FROM sqlvec.derived AS d WHERE d.id = v_derived.id;
    IF v_derived.own_encoder THEN
        DELETE FROM sqlvec.encoder AS e WHERE e.name = v_derived.encoder;
    END IF;
    IF EXISTS (SELECT FROM sqlvec.derived AS d WHERE d.relation_id = v_derived.relation_id) THEN
        PERFORM sqlvec._rewrite(rel);
    ELSE
        IF v_derived.trigger_name IS NOT NULL THEN
            EXECUTE format('DROP TRIGGER %I ON %s', v_derived.trigger_name, rel);
        END IF;
        PERFORM sqlvec._forget(v_derived.relation_id);
    END IF;
    FOREACH v_target IN ARRAY array_remove(v_derived.target_columns, NULL) LOOP
        EXECUTE format('ALTER TABLE %s DROP COLUMN %I', rel, v_target);
    END LOOP;
END
$body$;

COMMENT ON PROCEDURE sqlvec.drop_derived(regclass, text) IS
    'Take a derived column back: the column with its indexes, its catalog row and, with the last one of a table, the trigger.';
