-- Derived columns as they stand now: catalog rows joined to the live table, so that renames and
-- restores are followed and a column dropped by hand is seen.

-- Whether a column of that name is there, of any type.
CREATE OR REPLACE FUNCTION sqlvec._has_column(rel oid, column_name name) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
                   WHERE a.attrelid = rel AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped);
END;

CREATE OR REPLACE VIEW sqlvec._derived AS
SELECT d.id,
       d.relation_id,
       r.relation,
       r.trigger_name,
       r.known_oid,
       -- The trigger writes by name, the search reads by number: where another column has taken a name
       -- over, the two disagree. A name that is merely gone sends the trigger to look the number up.
       r.maintained AND NOT d.suspect
           AND (e.dimensions = s.atttypmod OR s.atttypmod = -1) IS NOT FALSE
           AND (r.known_oid = r.relation AND n.taken) IS NOT TRUE AS maintained,
       d.suspect,
       r.maintained AS triggered,
       s.atttypmod AS source_dimensions,
       CASE WHEN array_position(n.sources, NULL) IS NULL THEN n.sources[1] END AS source_column, -- NULL when one is gone
       CASE WHEN array_position(n.targets, NULL) IS NULL THEN n.targets[1] END AS target_column,
       d.source_columns[1] AS known_source,
       d.target_columns[1] AS known_target,
       n.sources AS source_columns,
       n.targets AS target_columns,
       d.source_columns AS known_sources,
       d.target_columns AS known_targets,
       d.tenant_column AS known_tenant,
       n.tenant AS tenant_column,
       d.encoder,
       d.own_encoder,
       e.kind,
       e.options,
       e.dimensions,
       e.code_type,
       e.code_dimensions,
       d.metric,
       d.reweighed AND r.maintained AND (r.known_oid = r.relation AND n.taken) IS NOT TRUE AS reweighed,
       -- One of these is enough for a code: the fields of a text, but not the weights of tokens.
       CASE e.kind WHEN 'bm25' THEN n.sources ELSE n.sources[1:1] END AS encoded_columns,
       d.column_types AS known_types
FROM sqlvec.derived AS d
JOIN sqlvec._relation AS r ON r.id = d.relation_id
JOIN sqlvec.encoder AS e ON e.name = d.encoder
-- Present names; NULL for a column that is gone. After a restore the numbers are new and the names are
-- right; after a rename it is the other way round. The oid of the table tells which of the two happened.
CROSS JOIN LATERAL (
    SELECT array_agg(a.attname ORDER BY k.position) FILTER (WHERE k.role = 's') AS sources,
           array_agg(a.attname ORDER BY k.position) FILTER (WHERE k.role = 't') AS targets,
           max(a.attname::text) FILTER (WHERE k.role = 'n')::name AS tenant,
           -- Another column has taken the name of a renamed one.
           bool_or(a.attname <> k.name AND sqlvec._has_column(r.relation, k.name)) FILTER (WHERE k.role <> 'n') AS taken
    FROM (SELECT 's' AS role, s.* FROM unnest(d.source_attnums, d.source_columns) WITH ORDINALITY AS s (attnum, name, position)
          UNION ALL
          SELECT 't', t.* FROM unnest(d.target_attnums, d.target_columns) WITH ORDINALITY AS t (attnum, name, position)
          UNION ALL
          SELECT 'n', d.tenant_attnum, d.tenant_column, 1 WHERE d.tenant_column IS NOT NULL) AS k
    LEFT JOIN pg_catalog.pg_attribute AS a
           ON a.attrelid = r.relation AND a.attnum > 0 AND NOT a.attisdropped
          AND CASE WHEN r.known_oid = r.relation THEN a.attnum = k.attnum ELSE a.attname = k.name END
) AS n
LEFT JOIN pg_catalog.pg_attribute AS s ON s.attrelid = r.relation AND s.attname = n.sources[1]
WHERE r.relation IS NOT NULL;

-- Names of the types of columns; NULL for a column that is gone.
CREATE OR REPLACE FUNCTION sqlvec._column_types(rel oid, columns name[]) RETURNS name[]
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(t.typname ORDER BY c.position)
    FROM unnest(columns) WITH ORDINALITY AS c (name, position)
    LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = rel AND a.attname = c.name AND NOT a.attisdropped
    LEFT JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid;
END;

-- A column whose type, by now, is not one that the encoder takes or makes; NULL where all fit, and
-- where one is gone.
CREATE OR REPLACE FUNCTION sqlvec._misfit(derived sqlvec._derived, OUT column_name name, OUT type_name text, OUT wanted text)
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record;
    v_takes text[] := CASE WHEN derived.kind IN ('fde', 'pool', 'centroid') THEN '{_halfvec,_vector}'
                           WHEN derived.kind <> 'bm25' THEN '{vector,halfvec}'
                           WHEN (derived.options ->> 'tsvector')::boolean THEN '{tsvector}' ELSE '{text}' END;
BEGIN
    IF derived.source_column IS NULL OR derived.target_column IS NULL THEN
        RETURN;
    END IF;
    FOREACH column_name IN ARRAY derived.encoded_columns LOOP
        v_column := sqlvec._column(derived.relation, column_name);
        -- Any type of strings is a text.
        IF v_column.type_name <> ALL (v_takes)
           AND NOT (v_takes = '{text}' AND (SELECT t.typcategory = 'S' FROM pg_type AS t WHERE t.oid = v_column.type_oid)) THEN
            wanted := 'takes ' || (SELECT string_agg(CASE left(t, 1) WHEN '_' THEN substr(t, 2) || '[]' ELSE t END, ' or ' ORDER BY n)
                                   FROM unnest(v_takes) WITH ORDINALITY AS u (t, n));
        END IF;
        EXIT WHEN wanted IS NOT NULL;
    END LOOP;
    IF wanted IS NULL THEN
        column_name := derived.target_column;
        v_column := sqlvec._column(derived.relation, column_name);
        IF v_column.type_name <> (CASE WHEN derived.code_type LIKE '%[]' THEN '_' ELSE '' END || rtrim(derived.code_type, '[]'))
           OR derived.code_type <> 'bytea' AND v_column.dimensions IS DISTINCT FROM derived.code_dimensions THEN
            wanted := 'makes ' || sqlvec._code_type(derived.code_type, derived.code_dimensions);
        END IF;
    END IF;
    IF wanted IS NULL AND cardinality(derived.target_columns) = 2 THEN
        column_name := derived.target_columns[2];
        v_column := sqlvec._column(derived.relation, column_name);
        IF v_column.type_name <> 'tsvector' THEN
            wanted := 'makes tsvector';
        END IF;
    END IF;
    IF wanted IS NULL THEN
        column_name := NULL;
    ELSE
        type_name := (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute AS a
                      WHERE a.attrelid = derived.relation AND a.attname = column_name AND NOT a.attisdropped);
    END IF;
END
$body$;

-- An error for such a column.
CREATE OR REPLACE FUNCTION sqlvec._require_fit(derived sqlvec._derived) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_misfit record := sqlvec._misfit(derived);
BEGIN
    IF v_misfit.column_name IS NOT NULL THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, encoder "%" %',
            v_misfit.column_name, sqlvec._qualified(derived.relation), v_misfit.type_name, derived.encoder, v_misfit.wanted
            USING ERRCODE = 'datatype_mismatch',
                  HINT = format('Give the column its type back, or CALL sqlvec.drop_derived(%L, %L); and declare it anew.',
                                sqlvec._qualified(derived.relation), derived.target_column);
    END IF;
END
$body$;

-- The type of a code, in words.
CREATE OR REPLACE FUNCTION sqlvec._code_type(code_type text, dimensions int) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE code_type WHEN 'bytea' THEN 'bytea'
            ELSE format('%s(%s)%s', rtrim(code_type, '[]'), dimensions, substring(code_type FROM '\[\]$')) END;

CREATE OR REPLACE VIEW sqlvec.derived_column AS
SELECT d.relation::regclass AS relation,
       coalesce(d.source_column, d.known_source) AS source_column,
       coalesce(d.target_column, d.known_target) AS target_column,
       d.encoder,
       d.kind,
       d.metric,
       sqlvec._code_type(d.code_type, d.code_dimensions) AS code_type,
       d.maintained AND f.column_name IS NULL AS maintained,
       CASE
           WHEN d.source_column IS NULL
               THEN format('source column "%s" is gone; CALL sqlvec.drop_derived(%L, %L);',
                           d.known_sources[array_position(d.source_columns, NULL)], d.relation::regclass, d.known_target)
           WHEN d.target_column IS NULL
               THEN format('column "%s" is gone; CALL sqlvec.drop_derived(%L, %L);',
                           d.known_targets[array_position(d.target_columns, NULL)], d.relation::regclass, d.known_target)
           WHEN d.tenant_column IS NULL AND d.known_tenant IS NOT NULL
               THEN format('column "%s", which tells tenants apart, is gone; CALL sqlvec.drop_derived(%L, %L);',
                           d.known_tenant, d.relation::regclass, d.known_target)
           WHEN d.kind = 'bm25' AND sqlvec._bm25_config(d.options, true) IS NULL
               THEN format('text search configuration %s is gone; CALL sqlvec.drop_derived(%L, %L);',
                           d.options ->> 'config', d.relation::regclass, d.known_target)
           WHEN f.column_name IS NOT NULL
               THEN format('column "%s" is of type %s, encoder "%s" %s; CALL sqlvec.drop_derived(%L, %L);',
                           f.column_name, f.type_name, d.encoder, f.wanted, d.relation::regclass, d.target_column)
           WHEN d.trigger_name IS NULL
               THEN format('the trigger is gone; CALL sqlvec.repair(%L);', d.relation::regclass)
           WHEN NOT d.triggered
               THEN format('trigger %I is or was disabled; CALL sqlvec.repair(%L);', d.trigger_name, d.relation::regclass)
           WHEN d.suspect
               THEN format('codes may be stale; CALL sqlvec.backfill(%L, %L);', d.relation::regclass, d.target_column)
           WHEN d.source_dimensions NOT IN (-1, d.dimensions)
               THEN format('the source now has %s dimensions, the code was made for %s; CALL sqlvec.drop_derived(%L, %L);',
                           d.source_dimensions, d.dimensions, d.relation::regclass, d.target_column)
           WHEN NOT d.maintained
               THEN format('another column has taken the name of a renamed one; CALL sqlvec.repair(%L);', d.relation::regclass)
           WHEN d.source_columns <> d.known_sources OR d.target_columns <> d.known_targets
               THEN format('a column was renamed, writes take the slow path; CALL sqlvec.repair(%L);', d.relation::regclass)
           WHEN d.known_types <> sqlvec._column_types(d.relation, d.source_columns || d.target_columns)
               THEN format('a column was given another type, writes of sessions that were open take the slow path; CALL sqlvec.repair(%L);',
                           d.relation::regclass)
       END AS problem
FROM sqlvec._derived AS d
CROSS JOIN LATERAL sqlvec._misfit(d) AS f;

COMMENT ON VIEW sqlvec.derived_column IS
    'Derived columns under their present names: source, encoder, metric, whether the trigger keeps them, and what is wrong, with the command that mends it.';

-- The catalog rows of a table by its triggers, which tell at once what sqlvec._relation finds out
-- about every table; none where the trigger is gone. Under search_path pg_catalog the name of a
-- function of ours bears its schema; a setting may quote both.
CREATE OR REPLACE FUNCTION sqlvec._relation_ids(rel oid) RETURNS TABLE (id int, fires "char")
LANGUAGE sql STABLE
BEGIN ATOMIC
    -- Without a regular expression, which would cost more than the rest of a look-up.
    SELECT f.id, t.tgenabled
    FROM pg_catalog.pg_trigger AS t
    CROSS JOIN LATERAL (SELECT t.tgfoid::regproc::text AS printed) AS p
    CROSS JOIN LATERAL (SELECT CASE WHEN starts_with(p.printed, '"sqlvec"."') THEN replace(p.printed, '"', '') ELSE p.printed END AS name) AS n
    CROSS JOIN LATERAL (SELECT CASE WHEN starts_with(n.name, 'sqlvec.maintain_') AND length(n.name) < 26 AND translate(n.name, '0123456789', '') = 'sqlvec.maintain_'
                                    THEN nullif(substr(n.name, 17), '')::int END AS id) AS f
    WHERE t.tgrelid = rel AND f.id IS NOT NULL;
END;

-- Derived columns of one table. A partition answers for its root.
CREATE OR REPLACE FUNCTION sqlvec._derived_of(rel oid) RETURNS SETOF sqlvec._derived
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT d.* FROM sqlvec._derived AS d
    WHERE d.relation = coalesce(pg_catalog.pg_partition_root(rel), rel);
END;

-- The derived columns of a table, for a hint; NULL where it has none.
CREATE OR REPLACE FUNCTION sqlvec._derived_columns_of(rel oid) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT 'It has: ' || string_agg(quote_ident(coalesce(d.target_column, d.known_target)), ', ' ORDER BY d.id) || '.'
    FROM sqlvec._derived_of(rel) AS d;
END;

-- Names and encoder of a derived column as they are now; an error where it was dropped from table rel.
-- A generic plan, here and where else the view is read once in a while: to plan it takes milliseconds, and
-- Postgres would do so at each of the first five calls of a session.
CREATE OR REPLACE FUNCTION sqlvec._derived_now(id int, rel oid) RETURNS sqlvec._derived
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $body$
DECLARE
    v_derived sqlvec._derived;
BEGIN
    SELECT d.* INTO v_derived FROM sqlvec._derived AS d WHERE d.id = _derived_now.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'a derived column of table % was dropped while work on it went on', sqlvec._qualified(rel)
            USING ERRCODE = 'undefined_column', HINT = 'SELECT * FROM sqlvec.derived_column; shows those that are there.';
    ELSIF v_derived.source_column IS NULL OR v_derived.target_column IS NULL THEN
        RAISE EXCEPTION 'column "%" of table % is gone',
            CASE WHEN v_derived.source_column IS NULL THEN v_derived.known_sources[array_position(v_derived.source_columns, NULL)]
                 ELSE v_derived.known_targets[array_position(v_derived.target_columns, NULL)] END, sqlvec._qualified(rel)
            USING ERRCODE = 'undefined_column',
                  HINT = format('CALL sqlvec.drop_derived(%L, %L);', v_derived.relation::regclass, v_derived.known_target);
    END IF;
    PERFORM sqlvec._require_fit(v_derived);
    RETURN v_derived;
END
$body$;

-- Whether row `alias` has something to encode.
CREATE OR REPLACE FUNCTION sqlvec._has_source(sources name[], alias text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN cardinality(sources) = 1 THEN string_agg(format('(%s%I IS NOT NULL)', alias, s), '')
                ELSE '(' || string_agg(format('(%s%I IS NOT NULL)', alias, s), ' OR ') || ')' END
    FROM unnest(sources) AS s;
END;

-- The expression that makes the codes of row `alias`: a code, or a row of codes where there are
-- several target columns.
CREATE OR REPLACE FUNCTION sqlvec._code_expression(derived sqlvec._derived, alias text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT sqlvec._encode_expression((derived).encoder, array_agg(format('%s%I', alias, s.name) ORDER BY s.position))
    FROM unnest((derived).source_columns) WITH ORDINALITY AS s (name, position);
END;
