-- The trigger that keeps derived columns: one per table, written out from the catalog.

-- Text of the trigger function of a table, from the catalog rows that are whole.
--
-- It compares OLD and NEW in its body instead of naming columns in UPDATE OF, which would miss
-- changes that the application's own triggers make. A column renamed since raises
-- undefined_column inside; the handler then derives the row by looking the present names up. One
-- that was given another type raises datatype_mismatch in sessions that have the plan already, and
-- undefined_function or cannot_coerce in others where that type cannot be encoded.
CREATE OR REPLACE FUNCTION sqlvec._maintain_body(relation_id int) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_aside text := '';
    v_steps text := '';
    v_targets text[] := '{}';
    v_encoders text[] := '{}';
    v_coded_sources text[] := '{}';
    v_coded_targets text[] := '{}';
    v_changed text;
    v_expression text;
BEGIN
    FOR v_derived IN
        SELECT d.* FROM sqlvec._derived AS d
        WHERE d.relation_id = _maintain_body.relation_id
          AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL
        ORDER BY d.id
    LOOP
        v_targets := v_targets || v_derived.target_columns::text[];
        v_encoders := v_encoders || v_derived.encoder;
        v_coded_sources := v_coded_sources || v_derived.source_column::text;
        v_coded_targets := v_coded_targets || v_derived.target_column::text;
        v_changed := (SELECT string_agg(format('sqlvec._differ(NEW.%1$I, OLD.%1$I)', s), ' OR ') FROM unnest(v_derived.source_columns) AS s);
        v_aside := v_aside || format($sql$
        IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' AND (%s) THEN%s
        END IF;$sql$,
            v_changed, (SELECT string_agg(format(E'\n            NEW.%I := NULL;', t), '') FROM unnest(v_derived.target_columns) AS t));
        v_steps := v_steps || format($sql$
    IF NEW.%I IS NULL OR %s OR %s THEN$sql$,
            v_derived.target_column, v_changed,
            (SELECT string_agg(format('sqlvec._differ(NEW.%1$I, OLD.%1$I)', t), ' OR ') FROM unnest(v_derived.target_columns) AS t));
        IF v_derived.dimensions IS NOT NULL THEN
            v_steps := v_steps || format($sql$
        IF sqlvec._dims(NEW.%1$I) OPERATOR(pg_catalog.<>) %2$s THEN
            v_coded := NULL;
            PERFORM sqlvec._refuse_dimensions(sqlvec._dims(NEW.%1$I), %2$s, TG_RELID, %1$L, %3$L);
        END IF;$sql$, v_derived.source_column, v_derived.dimensions, v_derived.target_column);
        END IF;
        v_expression := sqlvec._code_expression(v_derived, 'NEW.');
        v_steps := v_steps || format($sql$
        v_coded := %s;$sql$, cardinality(v_encoders)) || CASE WHEN cardinality(v_derived.target_columns) = 1
            THEN format($sql$
        NEW.%I := %s;$sql$, v_derived.target_column, v_expression)
            ELSE format($sql$
        SELECT c.* INTO %s FROM %s AS c;$sql$,
                (SELECT string_agg(format('NEW.%I', t.name), ', ' ORDER BY t.position)
                 FROM unnest(v_derived.target_columns) WITH ORDINALITY AS t (name, position)), v_expression) END;
        v_steps := v_steps || format($sql$
        IF NEW.%I IS NULL AND %s THEN
            RAISE WARNING 'encoder %% is not in the catalog: column %% of %% is left NULL',
                %L, %L, TG_RELID::pg_catalog.regclass
                USING HINT = 'Restore the rows of sqlvec.encoder_vector, then CALL sqlvec.backfill.';
        END IF;
    END IF;$sql$,
            v_derived.target_column, sqlvec._has_source(v_derived.encoded_columns, 'NEW.'), v_derived.encoder, v_derived.target_column);
    END LOOP;
    RETURN format($sql$
-- Written by sqlvec from its catalog: fills derived columns. CALL sqlvec.repair writes it anew.
DECLARE
    v_coded pg_catalog.int4; -- the code that is being made, by its place in the order
    v_hint pg_catalog.text;
BEGIN
    IF pg_catalog.current_setting('sqlvec.maintain', true) OPERATOR(pg_catalog.=) 'off' THEN%s
        RETURN NEW;
    END IF;%s
    RETURN NEW;
EXCEPTION
WHEN undefined_column OR undefined_object OR datatype_mismatch OR undefined_function OR cannot_coerce THEN
    RETURN pg_catalog.jsonb_populate_record(
        NEW, sqlvec._derive_row(TG_RELID, TG_OP, pg_catalog.to_jsonb(NEW), pg_catalog.to_jsonb(OLD), %L));
WHEN data_exception THEN
    IF v_coded IS NULL THEN
        RAISE;
    END IF;
    GET STACKED DIAGNOSTICS v_hint = PG_EXCEPTION_HINT;
    PERFORM sqlvec._refuse_value(TG_RELID, (%L::pg_catalog.text[])[v_coded], (%L::pg_catalog.text[])[v_coded], (%L::pg_catalog.text[])[v_coded],
                                 SQLSTATE, SQLERRM, v_hint);
END
$sql$, v_aside, v_steps, v_targets, v_encoders, v_coded_sources, v_coded_targets);
END
$body$;

-- Write the trigger function of a table. SECURITY DEFINER because functions of schema sqlvec
-- belong to its owner; safe for anyone to call, because the text follows from the catalog alone.
CREATE OR REPLACE FUNCTION sqlvec._write_maintain(relation_id int) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF NOT EXISTS (SELECT FROM sqlvec.relation AS r WHERE r.id = _write_maintain.relation_id) THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE OR REPLACE FUNCTION sqlvec.%I() RETURNS trigger LANGUAGE plpgsql AS %L',
                   'maintain_' || relation_id, sqlvec._maintain_body(relation_id));
    EXECUTE format('COMMENT ON FUNCTION sqlvec.%I() IS %L', 'maintain_' || relation_id,
                   'Fills derived columns; written by sqlvec.');
END
$body$;

-- Remove the trigger function of a table that no longer has derived columns.
CREATE OR REPLACE FUNCTION sqlvec._drop_maintain(relation_id int) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF NOT EXISTS (SELECT FROM sqlvec.relation AS r WHERE r.id = _drop_maintain.relation_id) THEN
        EXECUTE format('DROP FUNCTION IF EXISTS sqlvec.%I()', 'maintain_' || relation_id);
    END IF;
END
$body$;

-- The source column holds a vector that the encoder was not made for: its type names no dimensions,
-- or was changed since.
CREATE OR REPLACE FUNCTION sqlvec._refuse_dimensions(dimensions int, expected int, rel oid, source_column text, target_column text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RAISE EXCEPTION 'column "%" of table % takes vectors of % dimensions for its derived column "%", not %',
        source_column, sqlvec._qualified(rel), expected, target_column, dimensions
        USING ERRCODE = 'data_exception',
              HINT = format('If the dimensions of the column have changed, CALL sqlvec.drop_derived(%L, %L); and declare it anew.',
                            sqlvec._qualified(coalesce(pg_partition_root(rel), rel)), target_column);
END
$body$;

-- The encoder cannot encode a value, or the column cannot take its code. The hint is the encoder's
-- own, if it has one.
CREATE OR REPLACE FUNCTION sqlvec._refuse_value(
    rel oid, encoder text, source_column text, target_column text, state text, message text, hint text
) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM sqlvec._require_fit(d) FROM sqlvec._derived_of(rel) AS d WHERE d.target_column = _refuse_value.target_column;
    RAISE EXCEPTION 'encoder "%" cannot encode column "%" of table %: %', encoder, source_column, sqlvec._qualified(rel), message
        USING ERRCODE = state,
              HINT = coalesce(nullif(hint, ''), format(
                  'Column "%s" is derived from it: write a value that the encoder can encode, or CALL sqlvec.drop_derived(%L, %L);',
                  target_column, sqlvec._qualified(coalesce(pg_partition_root(rel), rel)), target_column));
END
$body$;

-- Slow path of the trigger: the codes of one row, by present names. Answers a JSON object of the
-- columns to set. `targets` are the columns that the trigger knew: one that the catalog can no
-- longer tell about is set to NULL rather than left stale.
CREATE OR REPLACE FUNCTION sqlvec._derive_row(rel oid, op text, new_row jsonb, old_row jsonb, targets text[]) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_codes jsonb := (SELECT coalesce(jsonb_object_agg(t, NULL), '{}') FROM unnest(targets) AS t WHERE new_row ? t);
    v_made jsonb;
    v_empty jsonb;
    v_dimensions int;
    v_changed boolean;
    v_hint text;
BEGIN
    FOR v_derived IN SELECT * FROM sqlvec._derived_of(rel) ORDER BY id LOOP
        CONTINUE WHEN v_derived.target_column IS NULL OR NOT new_row ?& v_derived.target_columns::text[];
        v_empty := (SELECT jsonb_object_agg(t, NULL) FROM unnest(v_derived.target_columns) AS t);
        IF v_derived.source_column IS NULL OR NOT new_row ?& v_derived.source_columns::text[] THEN
            RAISE WARNING 'column "%" of table %, which "%" is derived from, is not there: the code is left NULL',
                coalesce(v_derived.source_column, v_derived.known_sources[array_position(v_derived.source_columns, NULL)]),
                sqlvec._qualified(rel), v_derived.target_column
                USING HINT = format('Run CALL sqlvec.drop_derived(%L, %L);', sqlvec._qualified(v_derived.relation), v_derived.target_column);
            v_codes := v_codes || v_empty;
            new_row := new_row || v_empty;
            CONTINUE;
        END IF;
        v_changed := op = 'INSERT' OR EXISTS (SELECT FROM unnest(v_derived.source_columns) AS s
                                              WHERE new_row ->> s IS DISTINCT FROM old_row ->> s);
        v_codes := v_codes - v_derived.target_columns::text[];
        IF current_setting('sqlvec.maintain', true) = 'off' THEN
            IF op = 'UPDATE' AND v_changed THEN
                v_codes := v_codes || v_empty;
                new_row := new_row || v_empty;
            END IF;
            CONTINUE;
        END IF;
        CONTINUE WHEN NOT v_changed AND new_row ->> v_derived.target_column IS NOT NULL
                      AND NOT EXISTS (SELECT FROM unnest(v_derived.target_columns) AS t WHERE new_row -> t IS DISTINCT FROM old_row -> t);
        PERFORM sqlvec._require_fit(v_derived);
        IF v_derived.dimensions IS NOT NULL THEN
            v_dimensions := sqlvec._dims(sqlvec._parse_vector(
                CASE jsonb_typeof(new_row -> v_derived.source_column) WHEN 'array' THEN new_row -> v_derived.source_column ->> 0
                     ELSE new_row ->> v_derived.source_column END));
            IF v_dimensions <> v_derived.dimensions THEN
                PERFORM sqlvec._refuse_dimensions(v_dimensions, v_derived.dimensions, rel, v_derived.source_column, v_derived.target_column);
            END IF;
        END IF;
        -- The sources under their own types again: the row that the JSON stands for.
        BEGIN
            EXECUTE format('SELECT %s FROM jsonb_populate_record(NULL::%s, $1) AS t',
                           CASE WHEN cardinality(v_derived.target_columns) = 1
                                THEN format('jsonb_build_object(%L, %s)', v_derived.target_column, sqlvec._code_expression(v_derived, 't.'))
                                ELSE format('(SELECT to_jsonb(ARRAY[%s]) FROM %s AS c (%s))',
                                            (SELECT string_agg(format('c%s::text', n), ', ') FROM generate_subscripts(v_derived.target_columns, 1) AS n),
                                            sqlvec._code_expression(v_derived, 't.'),
                                            (SELECT string_agg('c' || n, ', ') FROM generate_subscripts(v_derived.target_columns, 1) AS n)) END,
                           sqlvec._qualified(rel))
            INTO v_made USING new_row - v_derived.target_columns::text[];
        EXCEPTION WHEN data_exception THEN
            GET STACKED DIAGNOSTICS v_hint = PG_EXCEPTION_HINT;
            PERFORM sqlvec._refuse_value(rel, v_derived.encoder, v_derived.source_column, v_derived.target_column, SQLSTATE, SQLERRM, v_hint);
        END;
        IF jsonb_typeof(v_made) = 'array' THEN
            v_made := (SELECT jsonb_object_agg(t.name, v_made -> (t.position - 1)::int)
                       FROM unnest(v_derived.target_columns) WITH ORDINALITY AS t (name, position));
        END IF;
        v_codes := v_codes || v_made;
        new_row := new_row || v_made; -- what comes later may be derived from it
    END LOOP;
    RAISE WARNING 'columns of table % were renamed, dropped or given another type since sqlvec wrote its trigger; writes take a slow path',
        sqlvec._qualified(rel)
        USING HINT = format('Run CALL sqlvec.repair(%L);', sqlvec._qualified(coalesce(pg_partition_root(rel), rel)));
    RETURN v_codes;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._parse_vector(x text) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x::vector;

-- An error unless the current role owns the table.
CREATE OR REPLACE FUNCTION sqlvec._require_owner(rel oid) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF NOT sqlvec._owns(rel) THEN
        RAISE EXCEPTION 'role "%" must own table % to change its derived columns', current_user, sqlvec._qualified(rel)
            USING ERRCODE = 'insufficient_privilege',
                  HINT = (SELECT format('It belongs to role "%s".', pg_get_userbyid(c.relowner))
                          FROM pg_class AS c WHERE c.oid = rel);
    END IF;
END
$body$;

-- Make catalog, trigger function and trigger of a table agree with its present names. Codes that no
-- trigger kept, or that it made from another column, are suspect until a backfill has compared
-- them; those of a column declared just now (`fresh`) are not there yet.
CREATE OR REPLACE FUNCTION sqlvec._rewrite(rel oid, fresh int = NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_relation record;
BEGIN
    SELECT r.id, r.trigger_name, r.maintained INTO v_relation FROM sqlvec._relation AS r WHERE r.relation = rel;
    UPDATE sqlvec.derived AS d
    SET source_columns = a.source_columns, target_columns = a.target_columns,
        source_attnums = sqlvec._attnums(rel, a.source_columns), target_attnums = sqlvec._attnums(rel, a.target_columns),
        tenant_column = coalesce(a.tenant_column, d.tenant_column),
        tenant_attnum = coalesce((sqlvec._attnums(rel, ARRAY[a.tenant_column]))[1], d.tenant_attnum),
        column_types = sqlvec._column_types(rel, a.source_columns || a.target_columns),
        suspect = NOT a.maintained AND d.id IS DISTINCT FROM fresh,
        reweighed = a.reweighed AND d.id IS DISTINCT FROM fresh
    FROM sqlvec._derived AS a
    WHERE a.id = d.id AND a.relation = rel AND a.source_column IS NOT NULL AND a.target_column IS NOT NULL;
    UPDATE sqlvec.relation AS r
    SET oid = rel, schema_name = n.nspname, table_name = c.relname
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE r.id = v_relation.id AND c.oid = rel
      AND (r.oid, r.schema_name, r.table_name) IS DISTINCT FROM (rel, n.nspname, c.relname);
    PERFORM sqlvec._write_maintain(v_relation.id);
    IF v_relation.trigger_name IS NULL THEN
        -- Triggers fire in the order of their names: "~" comes after every letter, so the codes
        -- are made from what the application's own triggers leave behind.
        v_relation.trigger_name := '~sqlvec';
        -- 'skip' is said by a backfill on a table where nothing else touches the row on its way.
        EXECUTE format('CREATE TRIGGER %I BEFORE INSERT OR UPDATE ON %s FOR EACH ROW '
                       'WHEN (current_setting(''sqlvec.maintain'', true) IS DISTINCT FROM ''skip'') EXECUTE FUNCTION sqlvec.%I()',
                       v_relation.trigger_name, sqlvec._qualified(rel), 'maintain_' || v_relation.id);
    END IF;
    IF NOT v_relation.maintained THEN
        -- ALWAYS: rows that arrive by replication may come without their codes.
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', sqlvec._qualified(rel), v_relation.trigger_name);
    END IF;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.repair(rel regclass) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_target name;
BEGIN
    PERFORM sqlvec._require_owner(rel);
    IF NOT EXISTS (SELECT FROM sqlvec._relation AS r WHERE r.relation = rel) THEN
        RAISE EXCEPTION 'table % has no derived columns', rel USING ERRCODE = 'undefined_object';
    END IF;
    PERFORM sqlvec._hold_to_read(rel); -- the table before its rows in the catalog, as drop_derived takes them
    PERFORM sqlvec._rewrite(rel);
    FOR v_target IN SELECT d.target_column FROM sqlvec._derived_of(rel) AS d WHERE d.suspect LOOP
        RAISE WARNING 'codes in column "%" of table % may be stale; searches do without them until they are compared', v_target, rel
            USING HINT = format('CALL sqlvec.backfill(%L, %L); compares them and mends those that differ.', rel, v_target);
    END LOOP;
END
$body$;

COMMENT ON PROCEDURE sqlvec.repair(regclass) IS
    'Follow renames: bring the catalog and the trigger of a table in line with its present column names, and put back a trigger that was dropped or disabled.';
