-- Whose schema it is. Functions of schema sqlvec run with the rights of whoever searches, so an installation
-- lays itself over nothing that another role has made: CREATE OR REPLACE would leave it to that role.
-- CREATE EXTENSION looks after that itself.

DO $do$
DECLARE
    v_path pg_catalog.text := pg_catalog.current_setting('search_path');
    v_owner pg_catalog.name;
BEGIN
    -- Nothing planted on the way counts.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    SELECT r.rolname INTO v_owner
    FROM (SELECT n.nspowner AS owner FROM pg_namespace AS n WHERE n.nspname = 'sqlvec'
          UNION ALL SELECT p.proowner FROM pg_proc AS p WHERE p.pronamespace = to_regnamespace('sqlvec')
          UNION ALL SELECT c.relowner FROM pg_class AS c WHERE c.relnamespace = to_regnamespace('sqlvec')
          UNION ALL SELECT t.typowner FROM pg_type AS t WHERE t.typnamespace = to_regnamespace('sqlvec')
          UNION ALL SELECT o.oprowner FROM pg_operator AS o WHERE o.oprnamespace = to_regnamespace('sqlvec')) AS s
    JOIN pg_roles AS r ON r.oid = s.owner AND r.rolname <> current_user
    LIMIT 1;
    IF FOUND AND NOT EXISTS (SELECT FROM pg_extension AS e WHERE e.extname = 'sqlvec') THEN
        RAISE EXCEPTION 'schema "sqlvec" in database "%" is, or holds things, of role "%", not of "%"', current_database(), v_owner, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('Everyone who searches runs its functions. Where that role is trusted, SET ROLE %I; and install as it; '
                                'otherwise DROP SCHEMA sqlvec CASCADE;', v_owner);
    END IF;
    PERFORM set_config('search_path', v_path, true);
END
$do$;

-- Preconditions of an installation. Whatever runs the bundle (command line, psql script,
-- CREATE EXTENSION) wraps it in one transaction and puts pgvector's schema on search_path,
-- so that types, operators and SQL bodies below bind by identity, not by name.

DO $do$
DECLARE
    v_version text := (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'vector');
    v_parts int[];
BEGIN
    -- One installer at a time; the second waits and then finds everything in place.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('sqlvec.install'));

    IF v_version IS NULL THEN
        RAISE EXCEPTION 'sqlvec needs the extension "vector" (pgvector 0.8.0 or newer), which is not installed in database "%"',
            pg_catalog.current_database()
            USING ERRCODE = 'undefined_object',
                  HINT = 'Run CREATE EXTENSION vector; as a role that may, then install sqlvec again.';
    END IF;
    v_parts := pg_catalog.string_to_array(pg_catalog.substring(v_version, '^[0-9]+[.][0-9]+'), '.')::int[];
    IF v_parts < ARRAY[0, 8] THEN
        RAISE EXCEPTION 'sqlvec needs pgvector 0.8.0 or newer; database "%" has %',
            pg_catalog.current_database(), v_version
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Install a newer pgvector on the server, then run ALTER EXTENSION vector UPDATE;';
    END IF;
    IF pg_catalog.to_regnamespace('sqlvec') IS NULL
       AND NOT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') THEN
        RAISE EXCEPTION 'role "%" may not create schema "sqlvec" in database "%"',
            current_user, pg_catalog.current_database()
            USING ERRCODE = 'insufficient_privilege',
                  HINT = pg_catalog.format('Run GRANT CREATE ON DATABASE %I TO %I; or install as the owner of the database.',
                                           pg_catalog.current_database(), current_user);
    END IF;
END
$do$;

CREATE SCHEMA IF NOT EXISTS sqlvec;
COMMENT ON SCHEMA sqlvec IS 'sqlvec: quantized, multi-vector and hybrid search on pgvector';

-- sqlvec.version(): which release is installed. Refuses to lay an older release over a newer one.

DO $do$
DECLARE
    v_installed text;
BEGIN
    IF pg_catalog.to_regprocedure('sqlvec.version()') IS NOT NULL THEN
        EXECUTE 'SELECT sqlvec.version()' INTO v_installed;
        IF pg_catalog.string_to_array(v_installed, '.')::int[]
           > pg_catalog.string_to_array('0.1.0', '.')::int[] THEN
            RAISE EXCEPTION 'sqlvec % is installed here, which is newer than the % being installed',
                v_installed, '0.1.0'
                USING ERRCODE = 'object_not_in_prerequisite_state',
                      HINT = 'Upgrade the package that runs the installation, or leave the database as it is.';
        END IF;
    END IF;
END
$do$;

CREATE OR REPLACE FUNCTION sqlvec.version() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '0.1.0';

COMMENT ON FUNCTION sqlvec.version() IS 'Release of sqlvec that is installed, as major.minor.patch.';

-- The catalog: encoders with their parameters, and which columns are derived from which.
--
-- Everyone may read it. Everyone may also write rows, but only about tables and encoders that
-- the role owns: a trigger checks current_user, which a SECURITY DEFINER helper could not see,
-- and which row level security would do at the price of breaking pg_dump by other roles.

CREATE TABLE IF NOT EXISTS sqlvec.encoder (
    name            text PRIMARY KEY CHECK (name <> ''),
    kind            text NOT NULL,
    dimensions      int CHECK (dimensions BETWEEN 1 AND 16000), -- of the source; NULL for text
    code_type       text NOT NULL,
    code_dimensions int NOT NULL CHECK (code_dimensions > 0),
    options         jsonb NOT NULL DEFAULT '{}',
    owner           name NOT NULL DEFAULT current_user,
    created_at      timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE sqlvec.encoder IS
    'Encoders: named, immutable functions from a source value to a code. Written by sqlvec.create_encoder.';

CREATE TABLE IF NOT EXISTS sqlvec.encoder_vector (
    encoder  text NOT NULL REFERENCES sqlvec.encoder ON DELETE CASCADE,
    part     text NOT NULL,
    position int NOT NULL,
    value    vector NOT NULL,
    PRIMARY KEY (encoder, part, position)
) WITH (toast_tuple_target = 8160);
-- A matrix is read row by row for every vector encoded: keep its rows in the heap page.
ALTER TABLE sqlvec.encoder_vector ALTER COLUMN value SET STORAGE EXTERNAL;
COMMENT ON TABLE sqlvec.encoder_vector IS
    'Parameters of encoders that are vectors or matrices, one row of the matrix per row.';

CREATE TABLE IF NOT EXISTS sqlvec.relation (
    id          int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    oid         oid NOT NULL,
    schema_name name NOT NULL,
    table_name  name NOT NULL
);
COMMENT ON TABLE sqlvec.relation IS
    'Tables that have derived columns. The trigger function sqlvec.maintain_<id> ties a row to its table through renames and restores; oid and names back it up.';

CREATE TABLE IF NOT EXISTS sqlvec.derived (
    id            int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation_id   int NOT NULL REFERENCES sqlvec.relation ON DELETE CASCADE,
    source_attnums smallint[] NOT NULL,
    source_columns name[] NOT NULL, -- one, or the fields of a text
    target_attnums smallint[] NOT NULL,
    target_columns name[] NOT NULL, -- the code, then what is made along with it
    tenant_attnum smallint, -- of BM25: rows are scored within those that share its value
    tenant_column name,
    column_types  name[], -- of sources and targets, when the trigger was written
    encoder       text NOT NULL REFERENCES sqlvec.encoder,
    own_encoder   boolean NOT NULL, -- made for this column, goes with it
    metric        text NOT NULL,
    suspect       boolean NOT NULL DEFAULT false, -- codes may be stale until a backfill has compared them
    reweighed     boolean NOT NULL DEFAULT false, -- of BM25: suspect for its weights only, the terms are right
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS derived_relation_id ON sqlvec.derived (relation_id);
COMMENT ON TABLE sqlvec.derived IS
    'Derived columns: which encoder fills which columns from which. Read it through sqlvec.derived_column.';

CREATE TABLE IF NOT EXISTS sqlvec.backfill_state (
    derived_id  int NOT NULL REFERENCES sqlvec.derived ON DELETE CASCADE,
    leaf        oid NOT NULL,
    block       bigint NOT NULL DEFAULT 0,
    end_block   bigint NOT NULL DEFAULT 0, -- of the table when the sweep began; updates append behind it
    rows_done   bigint NOT NULL DEFAULT 0,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    PRIMARY KEY (derived_id, leaf)
);
COMMENT ON TABLE sqlvec.backfill_state IS
    'Where each backfill stands, per partition. Read it through sqlvec.backfill_progress.';

-- Does the current role own this table, directly or through membership?
CREATE OR REPLACE FUNCTION sqlvec._owns(rel oid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE')
    FROM pg_catalog.pg_class AS c
    WHERE c.oid = rel;
END;

-- The table a catalog row speaks of: the one with its oid, as long as that carries our trigger or
-- still has its name; else (a restore gave new oids) the one with its name, if it carries the trigger.
-- A trigger somewhere else proves nothing: anyone may make one. NULL for an orphan.
CREATE OR REPLACE VIEW sqlvec._relation AS
SELECT r.id,
       coalesce(own.tgrelid, restored.tgrelid, CASE WHEN named.oid = r.oid THEN r.oid END) AS relation,
       coalesce(own.tgname, restored.tgname) AS trigger_name,
       -- The trigger fires always. One that fires on origin only was switched off and on by hand.
       coalesce(own.tgenabled, restored.tgenabled) IS NOT DISTINCT FROM 'A' AS maintained,
       r.oid AS known_oid,
       r.schema_name,
       r.table_name
FROM sqlvec.relation AS r
LEFT JOIN pg_catalog.pg_proc AS p
       ON p.proname = 'maintain_' || r.id
      AND p.pronamespace = (SELECT n.oid FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'sqlvec')
LEFT JOIN (pg_catalog.pg_class AS named JOIN pg_catalog.pg_namespace AS n ON n.oid = named.relnamespace)
       ON named.relname = r.table_name AND n.nspname = r.schema_name
LEFT JOIN LATERAL (
    SELECT t.tgrelid, t.tgname, t.tgenabled FROM pg_catalog.pg_trigger AS t
    WHERE t.tgrelid = r.oid AND t.tgfoid = p.oid AND t.tgparentid = 0 ORDER BY t.tgname LIMIT 1
) AS own ON true
LEFT JOIN LATERAL (
    SELECT t.tgrelid, t.tgname, t.tgenabled FROM pg_catalog.pg_trigger AS t
    WHERE t.tgrelid = named.oid AND t.tgfoid = p.oid AND t.tgparentid = 0 AND own.tgrelid IS NULL ORDER BY t.tgname LIMIT 1
) AS restored ON true;

-- May the current role act as this one? Roles are kept by name; what a role that is gone has left
-- behind is anybody's to remove.
CREATE OR REPLACE FUNCTION sqlvec._acts_as(owner name) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT pg_catalog.pg_has_role(a.oid, 'USAGE') FROM pg_catalog.pg_roles AS a WHERE a.rolname = owner;
END;

CREATE OR REPLACE FUNCTION sqlvec._guard() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_row jsonb;
    v_relation oid;
    v_allowed boolean;
BEGIN
    -- The owner of the catalog may write anything: that is how dumps are restored.
    IF pg_has_role((SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    FOREACH v_row IN ARRAY ARRAY[to_jsonb(OLD), to_jsonb(NEW)] LOOP
        CONTINUE WHEN v_row IS NULL OR v_row = 'null';
        v_relation := NULL;
        CASE TG_TABLE_NAME
        WHEN 'encoder' THEN
            v_allowed := coalesce(sqlvec._acts_as((v_row ->> 'owner')::name), TG_OP = 'DELETE')
                         AND (TG_OP = 'DELETE' OR v_row ->> 'name' <> ALL (sqlvec._kinds()));
        WHEN 'relevance_model' THEN
            v_allowed := coalesce(sqlvec._acts_as((v_row ->> 'owner')::name), TG_OP = 'DELETE');
        WHEN 'relevance_vector' THEN
            SELECT coalesce(sqlvec._acts_as(m.owner), TG_OP = 'DELETE') INTO v_allowed
            FROM sqlvec.relevance_model AS m WHERE m.name = v_row ->> 'model';
            v_allowed := coalesce(v_allowed, TG_OP = 'DELETE'); -- with its model, as below
        WHEN 'encoder_vector' THEN
            SELECT coalesce(sqlvec._acts_as(e.owner), TG_OP = 'DELETE') INTO v_allowed
            FROM sqlvec.encoder AS e WHERE e.name = v_row ->> 'encoder';
            -- Rows that go with their encoder (ON DELETE CASCADE) were checked there.
            v_allowed := coalesce(v_allowed, TG_OP = 'DELETE');
        WHEN 'relation' THEN
            -- The new row names a table that the role owns, by oid and by name; the old one speaks of
            -- such a table or of none.
            IF v_row = to_jsonb(NEW) THEN
                SELECT c.oid INTO v_relation FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                WHERE c.oid = NEW.oid AND c.relname = NEW.table_name AND n.nspname = NEW.schema_name;
                v_allowed := sqlvec._owns(v_relation);
            ELSE
                SELECT r.relation INTO v_relation FROM sqlvec._relation AS r WHERE r.id = OLD.id;
                v_allowed := coalesce(sqlvec._owns(v_relation), true);
            END IF;
        WHEN 'derived' THEN
            SELECT r.relation INTO v_relation FROM sqlvec._relation AS r WHERE r.id = (v_row ->> 'relation_id')::int;
            v_allowed := coalesce(sqlvec._owns(v_relation), TG_OP = 'DELETE');
        WHEN 'backfill_state' THEN
            SELECT r.relation INTO v_relation
            FROM sqlvec.derived AS d JOIN sqlvec._relation AS r ON r.id = d.relation_id
            WHERE d.id = (v_row ->> 'derived_id')::int;
            v_allowed := coalesce(has_table_privilege(v_relation, 'UPDATE'), TG_OP = 'DELETE');
        END CASE;
        IF NOT coalesce(v_allowed, false) THEN
            RAISE EXCEPTION 'role "%" may not write this row of sqlvec.%', current_user, TG_TABLE_NAME
                USING ERRCODE = 'insufficient_privilege',
                      DETAIL = CASE WHEN v_relation IS NOT NULL
                                    THEN format('Table %s belongs to another role.', v_relation::regclass)
                                    ELSE 'The row speaks of an object that belongs to another role.' END;
        END IF;
    END LOOP;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END
$body$;

CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON sqlvec.encoder
    FOR EACH ROW EXECUTE FUNCTION sqlvec._guard();
CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON sqlvec.encoder_vector
    FOR EACH ROW EXECUTE FUNCTION sqlvec._guard();
CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON sqlvec.relation
    FOR EACH ROW EXECUTE FUNCTION sqlvec._guard();
CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON sqlvec.derived
    FOR EACH ROW EXECUTE FUNCTION sqlvec._guard();
CREATE OR REPLACE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON sqlvec.backfill_state
    FOR EACH ROW EXECUTE FUNCTION sqlvec._guard();

-- Names: how sqlvec builds them and how it finds columns.

-- A name of at most 63 bytes. A longer one is cut at a character boundary and ends in eight
-- digits of its hash, so that two long names stay two names.
CREATE OR REPLACE FUNCTION sqlvec._name(base text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE
        WHEN octet_length(base) <= 63 THEN base
        ELSE left(base, (SELECT max(n)::int
                         FROM generate_series(0, least(length(base), 54)) AS n
                         WHERE octet_length(left(base, n)) <= 54))
             || '_' || left(md5(base), 8)
    END;
END;

-- A name for an index of table rel that no other relation of its schema has. A table that was renamed
-- keeps the indexes it had under its old name.
CREATE OR REPLACE FUNCTION sqlvec._index_name(rel oid, base text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT n.name
    FROM (SELECT g.i, sqlvec._name(CASE g.i WHEN 1 THEN base ELSE base || '_' || g.i END) AS name FROM generate_series(1, 1000) AS g (i)) AS n
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_class AS t ON t.relnamespace = c.relnamespace AND t.oid = rel
        WHERE c.relname = n.name::name AND NOT EXISTS (SELECT FROM pg_catalog.pg_index AS x WHERE x.indexrelid = c.oid AND x.indrelid = rel))
    ORDER BY n.i LIMIT 1;
END;

-- The schema pgvector lives in.
CREATE OR REPLACE FUNCTION sqlvec._vector_schema() RETURNS name
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT n.nspname
    FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
    WHERE e.extname = 'vector';
END;

-- A table as "schema"."table", whatever the search_path.
CREATE OR REPLACE FUNCTION sqlvec._qualified(rel oid) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = rel;
END;

-- A type by its full name. format_type leaves the schema out where search_path finds the type, but a
-- statement of ours may run under another path, and a type in pg_temp goes before all.
CREATE OR REPLACE FUNCTION sqlvec._type_name(type_oid oid) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT format('%I.%I', n.nspname, t.typname)
    FROM pg_catalog.pg_type AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
    WHERE t.oid = type_oid;
END;

-- A column with its type: base type name (of domains, the type beneath) and dimensions, which are
-- NULL where the type names none. An error that lists the columns when it is not there.
CREATE OR REPLACE FUNCTION sqlvec._column(
    rel oid, column_name text,
    OUT attnum smallint, OUT type_oid oid, OUT type_name name, OUT dimensions int
) LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_typmod int;
    v_type record;
BEGIN
    SELECT a.attnum, a.atttypid, a.atttypmod, t.typname, t.typtype, t.typbasetype, t.typtypmod INTO v_type
    FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = rel AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'column "%" of table % does not exist', column_name, sqlvec._qualified(rel)
            USING ERRCODE = 'undefined_column',
                  HINT = (SELECT 'Columns are: ' || pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum) || '.'
                          FROM pg_catalog.pg_attribute AS a
                          WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped);
    END IF;
    attnum := v_type.attnum;
    type_oid := v_type.atttypid;
    v_typmod := v_type.atttypmod;
    WHILE v_type.typtype = 'd' LOOP
        type_oid := v_type.typbasetype;
        v_typmod := v_type.typtypmod;
        SELECT t.typname, t.typtype, t.typbasetype, t.typtypmod INTO v_type
        FROM pg_catalog.pg_type AS t WHERE t.oid = type_oid;
    END LOOP;
    type_name := v_type.typname;
    dimensions := CASE WHEN type_name IN ('vector', 'halfvec', '_vector', '_halfvec', 'sparsevec', 'bit') AND v_typmod > 0
                       THEN v_typmod END;
END
$body$;

-- The same of a column of multi-vectors; an error for one of another type.
CREATE OR REPLACE FUNCTION sqlvec._multivector_column(rel oid, column_name text, OUT type_name name, OUT dimensions int)
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record := sqlvec._column(rel, column_name);
BEGIN
    IF v_column.type_name NOT IN ('_halfvec', '_vector') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, not halfvec[] or vector[]',
            column_name, sqlvec._qualified(rel), format_type(v_column.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch',
                  HINT = CASE WHEN v_column.type_name IN ('vector', 'halfvec') THEN 'That is one vector per row: sqlvec.add_quantized and sqlvec.vector_search are for those.'
                              ELSE 'Multi-vectors are arrays of halfvec or vector.' END;
    END IF;
    type_name := v_column.type_name;
    dimensions := v_column.dimensions;
END
$body$;

-- Numbers of columns, in the order of their names.
CREATE OR REPLACE FUNCTION sqlvec._attnums(rel oid, names name[]) RETURNS smallint[]
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(a.attnum ORDER BY n.position)
    FROM unnest(names) WITH ORDINALITY AS n (name, position)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = rel AND a.attname = n.name AND a.attnum > 0 AND NOT a.attisdropped;
END;

-- The tables that hold the rows here: the leaf partitions, or the table itself.
CREATE OR REPLACE FUNCTION sqlvec._leaves(rel oid) RETURNS TABLE (leaf oid)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT t.relid::oid FROM pg_catalog.pg_partition_tree(rel) AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.relid
    WHERE t.isleaf AND c.relkind <> 'f'
    UNION
    SELECT c.oid FROM pg_catalog.pg_class AS c WHERE c.oid = rel AND c.relkind NOT IN ('p', 'f');
END;

-- Foreign tables among the partitions or children of a table. Their rows have no address: postgres_fdw passes
-- ctid on, but of a partitioned table there two rows may have the same.
CREATE OR REPLACE FUNCTION sqlvec._foreign_parts(rel oid) RETURNS TABLE (part oid)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH RECURSIVE below AS (
        SELECT i.inhrelid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_inherits AS i ON i.inhparent = c.oid
        WHERE c.oid = rel AND c.relhassubclass
        UNION
        SELECT i.inhrelid FROM below AS b JOIN pg_catalog.pg_inherits AS i ON i.inhparent = b.inhrelid)
    SELECT f.ftrelid FROM below AS b JOIN pg_catalog.pg_foreign_table AS f ON f.ftrelid = b.inhrelid;
END;

-- Locks that keep the names of a table for a transaction that will use them.

-- Lock a table against changes of its name and columns until the end of the transaction, by the name that
-- the statement `lock` is given. Names may change until the lock is there; they come from the system
-- cache, which knows what others have committed whatever the snapshot of the transaction.
CREATE OR REPLACE FUNCTION sqlvec._hold(rel oid, lock text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_name text;
BEGIN
    LOOP
        v_name := rel::regclass::text;
        IF v_name ~ '^[0-9]+$' THEN -- the bare number: a name of digits would be quoted
            RAISE EXCEPTION 'a table was dropped while work on it went on' USING ERRCODE = 'undefined_table';
        END IF;
        BEGIN
            EXECUTE format(lock, v_name);
        EXCEPTION WHEN undefined_table OR invalid_schema_name THEN
            IF rel::regclass::text = v_name THEN
                RAISE;
            END IF;
            CONTINUE; -- has another name by now
        END;
        EXIT WHEN to_regclass(v_name) = rel;
    END LOOP;
END
$body$;

-- The same for what reads a table, with no more rights than to read some of its columns.
CREATE OR REPLACE FUNCTION sqlvec._hold_to_read(rel oid) RETURNS void
LANGUAGE sql
BEGIN ATOMIC
    SELECT sqlvec._hold(rel, CASE WHEN pg_catalog.has_table_privilege(rel, 'SELECT') THEN 'LOCK TABLE ONLY %s IN ACCESS SHARE MODE'
                                  ELSE 'SELECT FROM ONLY %s WHERE false' END);
END;

-- The same for a batch of a backfill. What changes a partitioned table locks that first, then its
-- partitions: a batch goes the same way, and before any row of the catalog.
CREATE OR REPLACE FUNCTION sqlvec._hold_leaf(leaf oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF (SELECT c.relispartition FROM pg_class AS c WHERE c.oid = leaf) THEN
        PERFORM sqlvec._hold_to_read(a.relid::oid)
        FROM (SELECT p.relid FROM pg_partition_ancestors(leaf) WITH ORDINALITY AS p (relid, position)
              WHERE p.relid <> leaf AND has_any_column_privilege(p.relid, 'SELECT') ORDER BY p.position DESC) AS a;
    END IF;
    PERFORM sqlvec._hold(leaf, 'LOCK TABLE ONLY %s IN ROW EXCLUSIVE MODE');
END
$body$;

-- Metrics: their operators and operator classes in pgvector.

-- Short name that pgvector uses in operator class names, NULL for an unknown metric.
CREATE OR REPLACE FUNCTION sqlvec._metric_short(metric text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE metric WHEN 'l2' THEN 'l2' WHEN 'inner_product' THEN 'ip' WHEN 'cosine' THEN 'cosine'
                   WHEN 'l1' THEN 'l1' WHEN 'hamming' THEN 'hamming' WHEN 'jaccard' THEN 'jaccard' END;

-- The operator of a metric, of a pgvector in this schema, which is quoted already.
CREATE OR REPLACE FUNCTION sqlvec._operator(metric text, schema_name text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('OPERATOR(%s.%s)', schema_name,
              CASE metric WHEN 'l2' THEN '<->' WHEN 'inner_product' THEN '<#>' WHEN 'cosine' THEN '<=>'
                          WHEN 'l1' THEN '<+>' WHEN 'hamming' THEN '<~>' WHEN 'jaccard' THEN '<%>' END);

CREATE OR REPLACE FUNCTION sqlvec._operator(metric text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE RETURN sqlvec._operator(metric, quote_ident(sqlvec._vector_schema()));

CREATE OR REPLACE FUNCTION sqlvec._opclass(type_name text, metric text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN type_name || '_' || sqlvec._metric_short(metric) || '_ops';

-- The metric itself when it fits the type, an error that names the ones that do otherwise.
CREATE OR REPLACE FUNCTION sqlvec._checked_metric(metric text, type_name text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_known text[] := CASE WHEN type_name = 'bit' THEN ARRAY['hamming', 'jaccard']
                           ELSE ARRAY['l2', 'inner_product', 'cosine', 'l1'] END;
BEGIN
    IF metric = ANY (v_known) THEN
        RETURN metric;
    END IF;
    RAISE EXCEPTION 'metric "%" is not one that type % has', metric, type_name
        USING ERRCODE = 'invalid_parameter_value',
              HINT = pg_catalog.format('Metrics of %s are: %s.', type_name, pg_catalog.array_to_string(v_known, ', '));
END
$body$;

-- NULL for NaN, which the cosine of a zero vector is.
CREATE OR REPLACE FUNCTION sqlvec._number(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN CASE WHEN x < 'NaN' THEN x END;

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

-- BM25 weights of a document, and the tsvector that finds it.
--
-- A document becomes two values. `code` holds its saturated term weights (Robertson and Zaragoza
-- 2009), so that its score is an inner product. `terms` is its tsvector, with one more lexeme for
-- each tier of weight that a term reaches: character 1 to 4 and the term. An index on it answers
-- "where does this term weigh much?", which bounds the score of everything else. Character 5 marks
-- the few documents to which those bounds do not apply.

-- Where a term stands in the code. md5 gives the same number on every machine and in Python (for a
-- database in UTF8).
CREATE OR REPLACE FUNCTION sqlvec._bm25_dimension(lexeme text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1 + ('x' || left(md5(lexeme), 15))::bit(60)::bigint % 1000000000;

-- The present name of an encoder's text search configuration: the one of that name, else the one with
-- its oid, which was renamed. Where both are gone an error, or NULL for the lenient.
CREATE OR REPLACE FUNCTION sqlvec._bm25_config(options jsonb, lenient boolean = false) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_name text := (
        SELECT format('%I.%I', n.nspname, c.cfgname) FROM pg_ts_config AS c JOIN pg_namespace AS n ON n.oid = c.cfgnamespace
        WHERE format('%I.%I', n.nspname, c.cfgname) = options ->> 'config' OR c.oid = (options ->> 'config_oid')::oid
        ORDER BY format('%I.%I', n.nspname, c.cfgname) = options ->> 'config' DESC LIMIT 1);
BEGIN
    IF v_name IS NULL AND NOT lenient THEN
        RAISE EXCEPTION 'text search configuration % is gone', options ->> 'config' USING ERRCODE = 'undefined_object';
    END IF;
    RETURN v_name;
END
$body$;

-- Where tier `level` begins, as a fraction of the largest possible weight, k1 + 1. Level 0 is every
-- document of the term, level 5 none.
CREATE OR REPLACE FUNCTION sqlvec._bm25_tier(level int) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE level WHEN 0 THEN 0 WHEN 1 THEN 0.64 WHEN 2 THEN 0.77 WHEN 3 THEN 0.86 WHEN 4 THEN 0.93 ELSE 1 END;

-- Terms of a tsvector with their frequencies: occurrences, each with the weight of its label.
-- weights: of labels D, C, B, A; NULL where every occurrence counts one.
CREATE OR REPLACE FUNCTION sqlvec._bm25_terms(terms tsvector, weights real[]) RETURNS TABLE (lexeme text, frequency float8)
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 50
BEGIN ATOMIC
    SELECT u.lexeme,
           CASE WHEN _bm25_terms.weights IS NULL THEN coalesce(cardinality(u.positions), 1)::float8
                ELSE coalesce((SELECT sum(_bm25_terms.weights[69 - ascii(l)]) FROM unnest(u.weights) AS l), _bm25_terms.weights[1])::float8 END
    FROM unnest(terms) AS u
    WHERE u.lexeme COLLATE "C" >= ' '; -- not those of the tiers
END;

CREATE OR REPLACE FUNCTION sqlvec._bm25_length(terms tsvector, weights real[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT coalesce(sum(t.frequency), 0) FROM sqlvec._bm25_terms(terms, weights) AS t;
END;

-- The code of a document with terms that share a dimension (summed, up to the bound of one), or with
-- more terms than a sparsevec holds (the heaviest stay).
CREATE OR REPLACE FUNCTION sqlvec._bm25_irregular_code(
    terms tsvector, k1 float8, b float8, average_length float8, weights real[]
) RETURNS sparsevec
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT ('{' || coalesce(string_agg(w.dimension || ':' || w.weight::real, ','), '') || '}/1000000000')::sparsevec
    FROM (SELECT d.dimension, least(sum(d.weight), k1 + 1) AS weight
          FROM (SELECT t.lexeme, sqlvec._bm25_dimension(t.lexeme) AS dimension,
                       t.frequency * (k1 + 1) / (t.frequency + k1 * (1 - b + b * sum(t.frequency) OVER () / average_length)) AS weight
                FROM sqlvec._bm25_terms(terms, weights) AS t) AS d
          GROUP BY d.dimension
          ORDER BY 2 DESC, min(d.lexeme COLLATE "C")
          LIMIT 16000) AS w;
END;

CREATE OR REPLACE FUNCTION sqlvec._bm25_document(
    plain tsvector, k1 float8, b float8, average_length float8, weights real[], OUT code sparsevec, OUT terms tsvector
)
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET extra_float_digits = 1 -- weights are printed, in full
BEGIN ATOMIC
    SELECT CASE WHEN r.regular THEN ('{' || coalesce(r.elements, '') || '}/1000000000')::sparsevec
                ELSE sqlvec._bm25_irregular_code(plain, k1, b, average_length, weights) END,
           plain || array_to_tsvector(CASE WHEN r.regular THEN coalesce(r.tiers, '{}') ELSE ARRAY[chr(5)] END)
    FROM (SELECT string_agg(w.dimension || ':' || w.weight::real, ',') AS elements,
                 array_agg(chr(1) || w.lexeme) FILTER (WHERE w.weight >= sqlvec._bm25_tier(1) * (k1 + 1))
                 || array_agg(chr(2) || w.lexeme) FILTER (WHERE w.weight >= sqlvec._bm25_tier(2) * (k1 + 1))
                 || array_agg(chr(3) || w.lexeme) FILTER (WHERE w.weight >= sqlvec._bm25_tier(3) * (k1 + 1))
                 || array_agg(chr(4) || w.lexeme) FILTER (WHERE w.weight >= sqlvec._bm25_tier(4) * (k1 + 1)) AS tiers,
                 count(DISTINCT w.dimension) = count(*) AND count(*) <= 16000
                 -- With four tiers a tsvector has five times its size, and may have 1 MB. Concatenated,
                 -- because a stored one may be compressed.
                 AND coalesce(max(octet_length(w.lexeme)), 0) <= 2000 AND pg_column_size(plain || '') <= 200000 AS regular
          FROM (SELECT t.lexeme, sqlvec._bm25_dimension(t.lexeme) AS dimension,
                       t.frequency * (k1 + 1) / (t.frequency + k1 * (1 - b + b * sum(t.frequency) OVER () / average_length)) AS weight
                FROM sqlvec._bm25_terms(plain, weights) AS t) AS w) AS r
    WHERE plain IS NOT NULL;
END;

-- Fixed dimensional encodings of multi-vectors (MUVERA: Dhulipala et al. 2024, arXiv:2405.19504).
--
-- Every repetition cuts space into 2^simhash_bits buckets by random hyperplanes, adds up the query
-- tokens of each bucket, averages the document tokens of each (an empty one takes the document token
-- whose bits differ least), and projects the results with random signs. The inner product of the two
-- codes is about `repetitions` times MaxSim.
--
-- As in encode.sql all sums are of integers, times a power of two, that float32 adds exactly: numpy
-- finds the same bucket for every token and the same code. Adding a large constant and taking it off
-- again rounds a vector to such integers at the speed of pgvector's own operators. 1.37 stands
-- for any factor that keeps everyday norms away from the powers of two, where logarithms of different
-- libraries could disagree.

CREATE OR REPLACE FUNCTION sqlvec._halfvecs(x halfvec[]) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x;
CREATE OR REPLACE FUNCTION sqlvec._halfvecs(x vector[]) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x::halfvec[];

CREATE OR REPLACE FUNCTION sqlvec._norm(x halfvec) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN l2_norm(x);
CREATE OR REPLACE FUNCTION sqlvec._constant(value float8, dimensions int) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN array_fill(value::real, ARRAY[dimensions])::vector;
CREATE OR REPLACE FUNCTION sqlvec._round(x vector, constant vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x + constant - constant;
CREATE OR REPLACE AGGREGATE sqlvec._sum(vector) (SFUNC = vector_add, STYPE = vector, PARALLEL = SAFE);

-- The least whole n with x <= 2^n, nearly.
CREATE OR REPLACE FUNCTION sqlvec._exponent(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN x > 0 THEN ceil(ln(x) / ln(2::float8)) ELSE 0 END;

-- The blocks of a code, one after the other. NULL without tokens, and when the matrices are not there
-- (a data-only restore).
CREATE OR REPLACE FUNCTION sqlvec._fde_values(
    encoder text, tokens halfvec[], as_query boolean, dimensions int, repetitions int, simhash_bits int, projection int
) RETURNS float8[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
-- Left to itself, the server plans the large query below anew for most rows.
SET plan_cache_mode = force_generic_plan
-- The rows that the planner expects of so many set-returning functions would have it compiled, for
-- seconds, at every call.
SET jit = off
AS $body$
DECLARE
    v_scale float8 := CASE WHEN projection = dimensions THEN 1 ELSE 1 / sqrt(projection::float8) END;
    v_total float8;
    v_found int;
BEGIN
    SELECT sum(sqlvec._norm(t)), max(sqlvec._dims(t)) FILTER (WHERE sqlvec._dims(t) <> dimensions) INTO v_total, v_found
    FROM unnest(tokens) AS t;
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'encoder "%" takes vectors of % dimensions, not %', encoder, dimensions, v_found
            USING ERRCODE = 'data_exception';
    ELSIF v_total IS NULL OR NOT EXISTS (
        SELECT FROM sqlvec.encoder_vector AS e
        WHERE e.encoder = _fde_values.encoder AND e.part = 'sign' AND e.position = repetitions * projection
    ) THEN
        RETURN NULL;
    END IF;
    RETURN (
        WITH plane AS MATERIALIZED (
            SELECT e.value FROM sqlvec.encoder_vector AS e
            WHERE e.encoder = _fde_values.encoder AND e.part = 'hyperplane' ORDER BY e.position
        ), sign AS MATERIALIZED (
            SELECT (e.position - 1) / projection AS r, e.position, e.value FROM sqlvec.encoder_vector AS e
            WHERE e.encoder = _fde_values.encoder AND e.part = 'sign'
        ), token AS MATERIALIZED (
            SELECT t.n, sqlvec._as_vector(t.x) AS x, sqlvec._exponent(sqlvec._norm(t.x) / 1.37) AS exponent
            FROM unnest(tokens) WITH ORDINALITY AS t (x, n) WHERE t.x IS NOT NULL
        ), grid AS MATERIALIZED (
            -- Of 2^11 steps in the norm of a token, for its bits.
            SELECT k.exponent, sqlvec._constant(1.5 * power(2::float8, 12 + k.exponent), dimensions) AS coarse
            FROM (SELECT DISTINCT t.exponent FROM token AS t) AS k
        ), fine_grid AS MATERIALIZED (
            -- So fine that the signed sum of all coordinates of all tokens has less than 2^23 steps.
            SELECT sqlvec._constant(1.5 * power(2::float8, 1 + sqlvec._exponent(1.37 * v_total * sqrt(dimensions::float8))),
                                    dimensions) AS fine
        ), rounded AS MATERIALIZED (
            SELECT t.n, sqlvec._round(t.x, g.coarse) AS coarse, sqlvec._round(t.x, f.fine) AS fine
            FROM token AS t JOIN grid AS g ON g.exponent = t.exponent CROSS JOIN fine_grid AS f
        ), hashed AS MATERIALIZED (
            SELECT t.n, t.fine,
                   CASE WHEN simhash_bits > 0
                        THEN sqlvec._bits(ARRAY(SELECT sqlvec._dot(t.coarse, p.value) FROM plane AS p)) END AS bits
            FROM rounded AS t
        ), bucket AS MATERIALIZED (
            SELECT r, coalesce(substring(h.bits FROM r * simhash_bits + 1 FOR simhash_bits)::int, 0) AS b,
                   sqlvec._sum(h.fine) AS value, CASE WHEN as_query THEN 1 ELSE count(*) END::float8 AS tokens, min(h.n) AS first
            FROM hashed AS h CROSS JOIN generate_series(0, repetitions - 1) AS r
            GROUP BY 1, 2
        ), nearest AS MATERIALIZED (
            -- Of each bucket of a document: the distance of the nearest that is not empty, and its first token.
            SELECT f.r, k AS b, min(bit_count((f.b # k)::bit(32)) * 4294967296 + f.first) AS found
            FROM bucket AS f CROSS JOIN generate_series(0, (1 << simhash_bits) - 1) AS k
            WHERE NOT as_query
            GROUP BY 1, 2
        ), block AS MATERIALIZED (
            SELECT f.r, f.b, f.value, f.tokens FROM bucket AS f
            UNION ALL
            SELECT n.r, n.b, h.fine, 1 FROM nearest AS n JOIN hashed AS h ON h.n = n.found % 4294967296
            WHERE n.found >= 4294967296
        ), projected AS MATERIALIZED (
            SELECT b.r, b.b, s.position, sqlvec._dot(b.value, s.value) / b.tokens * v_scale AS value
            FROM block AS b JOIN sign AS s ON s.r = b.r
        )
        SELECT array_agg(coalesce(p.value, 0) ORDER BY c.r, c.b, c.position)
        FROM (SELECT r, k AS b, r * projection + j AS position
              FROM generate_series(0, repetitions - 1) AS r, generate_series(0, (1 << simhash_bits) - 1) AS k,
                   generate_series(1, projection) AS j) AS c
        LEFT JOIN projected AS p ON p.r = c.r AND p.b = c.b AND p.position = c.position);
END
$body$;

-- Count sketch (Charikar, Chen and Farach-Colton 2002): every value goes to one slot, with one sign.
CREATE OR REPLACE FUNCTION sqlvec._fde_sketch(encoder text, blocks float8[], final_dimensions int) RETURNS float8[]
LANGUAGE plpgsql STABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_slots real[] := ARRAY(
        SELECT s.slot FROM sqlvec.encoder_vector AS e, unnest(sqlvec._real_array(e.value)) WITH ORDINALITY AS s (slot, position)
        WHERE e.encoder = _fde_sketch.encoder AND e.part = 'slot' ORDER BY e.position, s.position);
BEGIN
    IF cardinality(v_slots) <> cardinality(blocks) THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT array_agg(coalesce(s.value, 0) ORDER BY n)
        FROM generate_series(1, final_dimensions) AS n
        LEFT JOIN (SELECT abs(u.slot)::int AS slot, sum(sign(u.slot) * u.value) AS value
                   FROM unnest(v_slots, blocks) AS u (slot, value) GROUP BY 1) AS s ON s.slot = n);
END
$body$;

-- An array, but without a single vector.
CREATE OR REPLACE FUNCTION sqlvec._is_blank(tokens halfvec[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN tokens IS NOT NULL AND NOT EXISTS (SELECT FROM unnest(tokens) AS t WHERE t IS NOT NULL);

-- The values of a code. Zeros without tokens, so that such a row counts as encoded; it is found by nothing.
CREATE OR REPLACE FUNCTION sqlvec._fde_code(
    encoder text, tokens halfvec[], as_query boolean, dimensions int, repetitions int, simhash_bits int, projection int, final_dimensions int
) RETURNS float8[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_values float8[];
BEGIN
    IF sqlvec._is_blank(tokens) THEN
        RETURN array_fill(0::float8, ARRAY[coalesce(final_dimensions, repetitions * (1 << simhash_bits) * projection)]);
    END IF;
    v_values := sqlvec._fde_values(encoder, tokens, as_query, dimensions, repetitions, simhash_bits, projection);
    RETURN CASE WHEN final_dimensions IS NULL THEN v_values ELSE sqlvec._fde_sketch(encoder, v_values, final_dimensions) END;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._fde(
    encoder text, tokens halfvec[], as_query boolean, dimensions int, repetitions int, simhash_bits int, projection int, final_dimensions int
) RETURNS halfvec
LANGUAGE sql STABLE PARALLEL SAFE
RETURN sqlvec._to_halfvec(sqlvec._fde_code(encoder, tokens, as_query, dimensions, repetitions, simhash_bits, projection, final_dimensions));

-- One bit per value, set where factor * value is above `size`; a vector has no more than 16000.
CREATE OR REPLACE FUNCTION sqlvec._bits_above(x float8[], factor float8, size float8) RETURNS bit
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN binary_quantize(sqlvec._constant(factor, cardinality(x)) * x::vector - sqlvec._constant(size, cardinality(x)));
CREATE OR REPLACE FUNCTION sqlvec._above(x float8[], factor float8, size float8) RETURNS varbit
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(x) <= 16000 THEN sqlvec._bits_above(x, factor, size)
            ELSE sqlvec._bits_above(x[:16000], factor, size) || sqlvec._bits_above(x[16001:], factor, size) END;

-- The same as signs: which values are positive, then which are negative. A document and a query that
-- agree in a sign differ in no bit, those that disagree in two, and where one of them has a zero, as the
-- empty buckets of a query do, in one whatever the other has: Hamming distance then ranks by the signs of
-- the query's tokens alone.
CREATE OR REPLACE FUNCTION sqlvec._signs(code float8[], size float8 = 0) RETURNS bit
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
RETURN sqlvec._above(code, 1, size) || sqlvec._above(code, -1, size);

-- The signs of values larger than their mean; the rest count as zeros. The distance to these added to that
-- of all signs has the size of a query's values tell, as much of it as matters.
CREATE OR REPLACE FUNCTION sqlvec._strong_signs(code float8[]) RETURNS bit
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
RETURN sqlvec._signs(code, (SELECT coalesce(avg(abs(v)) FILTER (WHERE v <> 0), 0) FROM unnest(code) AS v));

CREATE OR REPLACE FUNCTION sqlvec._fde_bits(
    encoder text, tokens halfvec[], as_query boolean, dimensions int, repetitions int, simhash_bits int, projection int, final_dimensions int
) RETURNS bit
LANGUAGE sql STABLE PARALLEL SAFE
RETURN sqlvec._signs(sqlvec._fde_code(encoder, tokens, as_query, dimensions, repetitions, simhash_bits, projection, final_dimensions));

-- Dimensions and options of an encoder as SQL constants. Whatever a row of the catalog says, these are
-- integers.
CREATE OR REPLACE FUNCTION sqlvec._fde_constants(dimensions int, options jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('%s, %s, %s, %s, %s', dimensions, (options ->> 'repetitions')::int, (options ->> 'simhash_bits')::int,
              (options ->> 'projection')::int, coalesce((options ->> 'final_dimensions')::int::text, 'NULL'));

-- The encoder, when it makes codes of this type.
CREATE OR REPLACE FUNCTION sqlvec._fde_encoder(encoder text, code_type text) RETURNS sqlvec.encoder
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder sqlvec.encoder;
BEGIN
    SELECT e.* INTO v_encoder FROM sqlvec.encoder AS e WHERE e.name = _fde_encoder.encoder;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'encoder "%" does not exist', encoder
            USING ERRCODE = 'undefined_object',
                  HINT = 'Encoders are listed in table sqlvec.encoder; the one of a column by sqlvec.derived_column.';
    ELSIF v_encoder.kind <> 'fde' THEN
        RAISE EXCEPTION 'encoder "%" is of kind "%", not "fde"', encoder, v_encoder.kind
            USING ERRCODE = 'datatype_mismatch', HINT = 'sqlvec.encode encodes single vectors.';
    ELSIF v_encoder.code_type <> code_type THEN
        RAISE EXCEPTION 'encoder "%" makes codes of type %, not %', encoder, v_encoder.code_type, code_type
            USING ERRCODE = 'datatype_mismatch',
                  HINT = CASE code_type WHEN 'bit' THEN 'Use sqlvec.fde_document or sqlvec.fde_query.'
                                        ELSE 'Use sqlvec.fde_document_bits or sqlvec.fde_query_bits.' END;
    END IF;
    RETURN v_encoder;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._fde_of(encoder text, tokens halfvec[], as_query boolean) RETURNS halfvec
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN NOT sqlvec._is_blank(tokens)
                THEN sqlvec._fde(encoder, tokens, as_query, e.dimensions, (e.options ->> 'repetitions')::int, (e.options ->> 'simhash_bits')::int,
                                 (e.options ->> 'projection')::int, (e.options ->> 'final_dimensions')::int) END
    FROM sqlvec._fde_encoder(encoder, 'halfvec') AS e;
END;

CREATE OR REPLACE FUNCTION sqlvec._fde_bits_of(encoder text, tokens halfvec[], as_query boolean) RETURNS bit
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN NOT sqlvec._is_blank(tokens)
                THEN sqlvec._fde_bits(encoder, tokens, as_query, e.dimensions, (e.options ->> 'repetitions')::int, (e.options ->> 'simhash_bits')::int,
                                      (e.options ->> 'projection')::int, (e.options ->> 'final_dimensions')::int) END
    FROM sqlvec._fde_encoder(encoder, 'bit') AS e;
END;

CREATE OR REPLACE FUNCTION sqlvec.fde_document(encoder text, tokens halfvec[]) RETURNS halfvec
LANGUAGE sql STABLE PARALLEL SAFE RETURN sqlvec._fde_of(encoder, tokens, false);
COMMENT ON FUNCTION sqlvec.fde_document(text, halfvec[]) IS
    'Fixed dimensional encoding of the multi-vector of a document, under a catalog encoder of kind fde. Its inner product with sqlvec.fde_query estimates `repetitions` times sqlvec.maxsim; never normalise it. NULL without tokens.';

CREATE OR REPLACE FUNCTION sqlvec.fde_query(encoder text, tokens halfvec[]) RETURNS halfvec
LANGUAGE sql STABLE PARALLEL SAFE RETURN sqlvec._fde_of(encoder, tokens, true);
COMMENT ON FUNCTION sqlvec.fde_query(text, halfvec[]) IS
    'Fixed dimensional encoding of the multi-vector of a query, to be compared by <#> with those that sqlvec.fde_document makes. NULL without tokens.';

CREATE OR REPLACE FUNCTION sqlvec.fde_document_bits(encoder text, tokens halfvec[]) RETURNS bit
LANGUAGE sql STABLE PARALLEL SAFE RETURN sqlvec._fde_bits_of(encoder, tokens, false);
COMMENT ON FUNCTION sqlvec.fde_document_bits(text, halfvec[]) IS
    'Signs of the fixed dimensional encoding of a document, under a catalog encoder of kind fde with option "bits": which values are positive, then which are negative. NULL without tokens.';

CREATE OR REPLACE FUNCTION sqlvec.fde_query_bits(encoder text, tokens halfvec[]) RETURNS bit
LANGUAGE sql STABLE PARALLEL SAFE RETURN sqlvec._fde_bits_of(encoder, tokens, true);
COMMENT ON FUNCTION sqlvec.fde_query_bits(text, halfvec[]) IS
    'Signs of the fixed dimensional encoding of a query, to be compared by Hamming distance <~> with those that sqlvec.fde_document_bits makes: the more a document agrees with the query, the nearer it is. NULL without tokens.';

-- An error for settings whose codes no HNSW index on halfvec can hold; its hint names some that fit.
CREATE OR REPLACE FUNCTION sqlvec._check_fde(dimensions int, options jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_r int := options ->> 'repetitions';
    v_bits int := options ->> 'simhash_bits';
    v_p int := options ->> 'projection';
    v_final int := options ->> 'final_dimensions';
    v_signs boolean := coalesce((options ->> 'bits')::boolean, false);
    v_most int := CASE WHEN v_signs THEN 32000 ELSE 4000 END;
    v_fitting text[] := '{}';
    v_blocks bigint := v_r::bigint * (1 << v_bits) * v_p;
BEGIN
    IF v_p > dimensions THEN
        RAISE EXCEPTION 'option "projection" is at most the dimensions of the vectors, %, not %', dimensions, v_p
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (1 << v_bits) * v_p > 16000 OR v_blocks > 1000000 THEN
        RAISE EXCEPTION 'an encoding has at most 16000 dimensions per repetition and 1000000 in all, not % and %', (1 << v_bits) * v_p, v_blocks
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Take fewer "simhash_bits", or a smaller "projection".';
    ELSIF v_final >= v_blocks THEN
        RAISE EXCEPTION 'option "final_dimensions" is less than the % dimensions of the encoding, not %', v_blocks, v_final
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave it out: the encoding is small enough as it is.';
    ELSIF v_final IS NULL AND v_blocks > v_most THEN
        IF v_most / ((1 << v_bits) * v_p) > 0 THEN
            v_fitting := v_fitting || format('repetitions => %s', v_most / ((1 << v_bits) * v_p));
        END IF;
        IF v_most / (v_r * v_p) > 0 THEN
            v_fitting := v_fitting || format('simhash_bits => %s', floor(log(2, v_most / (v_r * v_p)))::int);
        END IF;
        IF v_most / (v_r * (1 << v_bits)) > 0 THEN
            v_fitting := v_fitting || format('projection => %s', v_most / (v_r * (1 << v_bits)));
        END IF;
        RAISE EXCEPTION 'an encoding of % repetitions, 2^% buckets and projection % has % dimensions; an index on % takes %',
            v_r, v_bits, v_p, v_blocks, CASE WHEN v_signs THEN 'its signs' ELSE 'halfvec' END, v_most
            USING ERRCODE = 'program_limit_exceeded',
                  HINT = format('Any one of these fits: %s.',
                                array_to_string(v_fitting || format('final_dimensions => %s', least(v_most, 4000))
                                                || CASE WHEN NOT v_signs AND v_blocks <= 32000 THEN ARRAY['bits => true'] ELSE '{}' END, ', '));
    END IF;
END
$body$;

-- Random numbers between 0 and 1 from a seed, the same on every machine. md5, because neighbours among
-- hashes of integers resemble each other enough to show in the directions of hyperplanes.
CREATE OR REPLACE FUNCTION sqlvec._uniform(n bigint, stream int, seed bigint) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (('x' || left(md5(seed::text || ' ' || stream::text || ' ' || n::text), 13))::bit(52)::bigint + 0.5::float8) / 4503599627370496;

-- The matrices: hyperplanes with Gaussian directions and norms of about 4000, signs, and the slots of
-- the count sketch, negative where the sign is.
CREATE OR REPLACE FUNCTION sqlvec._write_fde(encoder text, dimensions int, options jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_r int := options ->> 'repetitions';
    v_bits int := options ->> 'simhash_bits';
    v_p int := options ->> 'projection';
    v_final int := options ->> 'final_dimensions';
    v_seed bigint := options ->> 'seed';
    v_width int := (1 << v_bits) * v_p;
    v_row float8[];
    v_norm float8;
BEGIN
    FOR n IN 1 .. v_r * v_bits LOOP
        v_row := ARRAY(
            SELECT sqrt(-2 * ln(sqlvec._uniform(n::bigint * dimensions + j, 1, v_seed)))
                   * cos(2 * pi() * sqlvec._uniform(n::bigint * dimensions + j, 2, v_seed))
            FROM generate_series(1, dimensions) AS j ORDER BY j);
        v_norm := (SELECT sqrt(sum(v * v)) FROM unnest(v_row) AS v);
        INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
        VALUES (_write_fde.encoder, 'hyperplane', n, ARRAY(SELECT round(v * 4000 / v_norm) FROM unnest(v_row) AS v));
    END LOOP;
    INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
    SELECT _write_fde.encoder, 'sign', n,
           ARRAY(SELECT CASE WHEN v_p = dimensions THEN CASE WHEN j = (n - 1) % v_p + 1 THEN 1 ELSE 0 END
                             WHEN sqlvec._uniform(n::bigint * dimensions + j, 3, v_seed) < 0.5 THEN 1 ELSE -1 END::float8
                 FROM generate_series(1, dimensions) AS j ORDER BY j)
    FROM generate_series(1, v_r * v_p) AS n;
    IF v_final IS NOT NULL THEN
        INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
        SELECT _write_fde.encoder, 'slot', n,
               ARRAY(SELECT (1 + floor(sqlvec._uniform(n::bigint * v_width + j, 4, v_seed) * v_final))
                            * CASE WHEN sqlvec._uniform(n::bigint * v_width + j, 5, v_seed) < 0.5 THEN 1 ELSE -1 END
                     FROM generate_series(1, v_width) AS j ORDER BY j)
        FROM generate_series(1, v_r) AS n;
    END IF;
END
$body$;

-- The SQL expressions that compute the code of a query, its signs and its strong signs, given that of its
-- tokens.
CREATE OR REPLACE FUNCTION sqlvec._fde_query(encoder text, argument text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT format(CASE e.code_type
                  WHEN 'bit' THEN 'SELECT NULL::%4$I.halfvec AS code, sqlvec._signs(v.code) AS signs, sqlvec._strong_signs(v.code) AS strong '
                                  'FROM sqlvec._fde_code(%1$L, %2$s, true, %3$s) AS v (code)'
                  ELSE 'SELECT sqlvec._fde(%1$L, %2$s, true, %3$s) AS code, NULL::pg_catalog.bit AS signs, NULL::pg_catalog.bit AS strong' END,
                  encoder, argument, sqlvec._fde_constants(e.dimensions, e.options), sqlvec._vector_schema())
    FROM sqlvec.encoder AS e WHERE e.name = encoder;
END;

-- Pooling: fewer vectors for a multi-vector (Clavie, Chaffin and Adams 2024, arXiv:2409.14683).
--
-- Tokens that resemble each other are replaced by their mean, or only some tokens are kept. Unless told
-- to, a mean is not made a unit vector again: a group of tokens that disagree then weighs less.
--
-- Which tokens belong together follows from inner products of tokens rounded to a grid on which
-- float32 adds exactly (see fde_encode.sql), and from float8 arithmetic in a fixed order. Means are
-- pgvector's, whose sums of halfvec are exact in float8. numpy finds the same vectors, to the last bit
-- (normalized ones to one unit in the last place).

CREATE OR REPLACE FUNCTION sqlvec._norm(x vector) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN vector_norm(x);

-- A vector in 2^11 steps of its norm: inner products of two of these are exact.
CREATE OR REPLACE FUNCTION sqlvec._coarse(x vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sqlvec._round(x, sqlvec._constant(1.5 * power(2::float8, 12 + sqlvec._exponent(sqlvec._norm(x) / 1.37)), vector_dims(x)));

-- The direction of a coarse vector: integers of norm 2048, nearly. Zero stays zero.
CREATE OR REPLACE FUNCTION sqlvec._direction(coarse vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN sqlvec._dot(coarse, coarse) > 0
            THEN sqlvec._round(coarse * sqlvec._constant(2048 / sqrt(sqlvec._dot(coarse, coarse)), vector_dims(coarse)),
                               sqlvec._constant(12582912, vector_dims(coarse)))
            ELSE coarse END;

-- The vectors of an array, numbered from 1.
CREATE OR REPLACE FUNCTION sqlvec._present(tokens halfvec[]) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN tokens IS NOT NULL THEN ARRAY(SELECT t FROM unnest(tokens) AS t WHERE t IS NOT NULL) END;

-- The mean of the tokens with each label, in the order of the labels.
CREATE OR REPLACE FUNCTION sqlvec._pool_labelled(tokens halfvec[], labels int[], unit boolean) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT coalesce(array_agg(CASE WHEN unit THEN l2_normalize(m.mean) ELSE m.mean END ORDER BY m.label), '{}')
    FROM (SELECT u.label, avg(u.x) AS mean FROM unnest(tokens, labels) AS u (x, label) GROUP BY 1) AS m;
END;

-- The mean of the tokens in each range, in the order of the ranges.
CREATE OR REPLACE FUNCTION sqlvec._pool_ranges(tokens halfvec[], firsts int[], lasts int[], unit boolean) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT coalesce(array_agg((SELECT CASE WHEN unit THEN l2_normalize(avg(t)) ELSE avg(t) END
                               FROM unnest(tokens[r.first : r.last]) AS t) ORDER BY r.n), '{}')
    FROM unnest(firsts, lasts) WITH ORDINALITY AS r (first, last, n);
END;

-- Squared cosine distances of all pairs, those above the diagonal. A zero vector is at distance 1.
CREATE OR REPLACE FUNCTION sqlvec._pool_distances(tokens halfvec[]) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH rounded AS MATERIALIZED (
        SELECT t.n, sqlvec._coarse(t.x::vector) AS x FROM unnest(tokens) WITH ORDINALITY AS t (x, n)
    ), token AS MATERIALIZED (
        SELECT r.n, r.x, sqrt(sqlvec._dot(r.x, r.x)) AS norm FROM rounded AS r ORDER BY r.n
    )
    SELECT array_agg(ARRAY(
        SELECT p.distance * p.distance
        FROM (SELECT CASE WHEN b.n > a.n THEN 1 - coalesce(sqlvec._dot(a.x, b.x) / nullif(a.norm * b.norm, 0), 0) ELSE 0 END AS distance
              FROM token AS b OFFSET 0) AS p) ORDER BY a.n)
    FROM token AS a;
END;

-- Ward's clusters of tokens: for each token the number of the first one of its cluster.
--
-- As scipy's linkage(pdist, "ward") cut by maxclust, with cosine distances. Ward never merges at a
-- smaller distance than before, so the cut is where the merging stops. Each cluster goes by its first
-- token and remembers the nearest of the clusters after it; of equally near pairs the first counts.
CREATE OR REPLACE FUNCTION sqlvec._pool_ward(tokens halfvec[], clusters int) RETURNS int[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_n int := cardinality(tokens);
    v_squares float8[] := sqlvec._pool_distances(tokens);
    v_sizes float8[] := array_fill(1::float8, ARRAY[v_n]);
    v_labels int[] := ARRAY(SELECT generate_series(1, v_n));
    v_active int[] := v_labels;
    v_near int[] := array_fill(0, ARRAY[v_n]);
    v_least float8[] := array_fill('Infinity'::float8, ARRAY[v_n]); -- the distance to the nearest
    v_stale int[] := v_labels; -- clusters that have to look for their nearest
    v_i int;
    v_j int;
    v_k int;
    v_l int;
    v_min float8;
    v_square float8;
    v_size_i float8;
    v_size_j float8;
    v_size float8;
BEGIN
    FOR v_merge IN 1 .. v_n - clusters LOOP
        FOREACH v_k IN ARRAY v_stale LOOP
            v_min := 'Infinity';
            v_j := 0;
            FOREACH v_l IN ARRAY v_active[array_position(v_active, v_k) + 1 :] LOOP
                v_square := v_squares[v_k][v_l];
                IF v_square < v_min THEN
                    v_min := v_square;
                    v_j := v_l;
                END IF;
            END LOOP;
            v_near[v_k] := v_j;
            v_least[v_k] := v_min;
        END LOOP;

        v_min := (SELECT min(l) FROM unnest(v_least) AS l);
        v_i := array_position(v_least, v_min);
        v_j := v_near[v_i];
        v_size_i := v_sizes[v_i];
        v_size_j := v_sizes[v_j];
        v_active := array_remove(v_active, v_j);
        v_labels[v_j] := v_i;
        v_least[v_j] := 'Infinity';
        v_stale := ARRAY[v_i];
        -- Lance and Williams 1967: from the distances to two clusters, the distance to their union.
        FOREACH v_k IN ARRAY v_active LOOP
            v_size := v_sizes[v_k];
            IF v_k < v_i THEN
                v_square := ((v_size_i + v_size) * v_squares[v_k][v_i] + (v_size_j + v_size) * v_squares[v_k][v_j] - v_size * v_min)
                            / (v_size_i + v_size_j + v_size);
                v_squares[v_k][v_i] := v_square;
                v_l := v_near[v_k];
                IF v_l = v_i OR v_l = v_j THEN
                    v_stale := v_stale || v_k;
                ELSIF v_square <= v_least[v_k] AND (v_square < v_least[v_k] OR v_i < v_l) THEN
                    v_near[v_k] := v_i;
                    v_least[v_k] := v_square;
                END IF;
            ELSIF v_k > v_j THEN
                v_squares[v_i][v_k] := ((v_size_i + v_size) * v_squares[v_i][v_k] + (v_size_j + v_size) * v_squares[v_j][v_k] - v_size * v_min)
                                       / (v_size_i + v_size_j + v_size);
            ELSIF v_k > v_i THEN
                v_squares[v_i][v_k] := ((v_size_i + v_size) * v_squares[v_i][v_k] + (v_size_j + v_size) * v_squares[v_k][v_j] - v_size * v_min)
                                       / (v_size_i + v_size_j + v_size);
                IF v_near[v_k] = v_j THEN
                    v_stale := v_stale || v_k;
                END IF;
            END IF;
        END LOOP;
        v_sizes[v_i] := v_size_i + v_size_j;
    END LOOP;
    -- A cluster that was merged names the one it went to, which comes before it.
    FOR v_k IN 1 .. v_n LOOP
        v_labels[v_k] := v_labels[v_labels[v_k]];
    END LOOP;
    RETURN v_labels;
END
$body$;

-- Ward's clustering keeps the distances of all pairs.
CREATE OR REPLACE FUNCTION sqlvec._pool_hierarchical(tokens halfvec[], factor int, protected int, unit boolean) RETURNS halfvec[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_n int := cardinality(tokens) - protected;
BEGIN
    IF v_n < 2 THEN
        RETURN tokens;
    ELSIF v_n > 4096 THEN
        RAISE EXCEPTION 'hierarchical pooling takes at most 4096 tokens, not %', v_n
            USING ERRCODE = 'data_exception', HINT = 'Declare the column with another method: kmeans, sequential, or rows for page images.';
    END IF;
    RETURN tokens[: protected] || sqlvec._pool_labelled(
        tokens[protected + 1 :], sqlvec._pool_ward(tokens[protected + 1 :], greatest(v_n / factor, 1)), unit);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._pool_directions(tokens halfvec[]) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH rounded AS MATERIALIZED (
        SELECT t.n, sqlvec._coarse(t.x::vector) AS x FROM unnest(tokens) WITH ORDINALITY AS t (x, n)
    )
    SELECT array_agg(sqlvec._direction(r.x) ORDER BY r.n) FROM rounded AS r;
END;

-- For each unit the number of the centre with the largest inner product, of equal ones the first.
-- Distance and number in one integer, which min compares fastest.
CREATE OR REPLACE FUNCTION sqlvec._pool_nearest(units vector[], centres vector[]) RETURNS int[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg((f.found - floor(f.found / 65536) * 65536)::int ORDER BY f.n)
    FROM (SELECT u.n, (SELECT min((u.x <#> c.x) * 65536 + c.n) FROM unnest(centres) WITH ORDINALITY AS c (x, n)) AS found
          FROM unnest(units) WITH ORDINALITY AS u (x, n)) AS f;
END;

-- Directions of the means of the clusters; one that nothing belongs to stays where it was.
CREATE OR REPLACE FUNCTION sqlvec._pool_centres(units vector[], labels int[], centres vector[]) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH mean AS MATERIALIZED (
        SELECT u.label, avg(u.x) AS x FROM unnest(units, labels) AS u (x, label) GROUP BY 1
    ), rounded AS MATERIALIZED (
        SELECT m.label, sqlvec._coarse(m.x) AS x FROM mean AS m
    )
    SELECT array_agg(coalesce(sqlvec._direction(r.x), c.x) ORDER BY c.n)
    FROM unnest(centres) WITH ORDINALITY AS c (x, n) LEFT JOIN rounded AS r ON r.label = c.n;
END;

-- Spherical k-means (Dhillon and Modha 2001) from evenly spaced units: for each the number of its cluster.
CREATE OR REPLACE FUNCTION sqlvec._pool_spherical(units vector[], clusters int, iterations int) RETURNS int[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_centres units%TYPE := ARRAY(SELECT units[1 + c * cardinality(units)::bigint / clusters] FROM generate_series(0, clusters - 1) AS c);
    v_labels int[];
    v_before int[];
BEGIN
    FOR v_iteration IN 1 .. iterations LOOP
        v_labels := sqlvec._pool_nearest(units, v_centres);
        EXIT WHEN v_labels = v_before;
        v_centres := sqlvec._pool_centres(units, v_labels, v_centres);
        v_before := v_labels;
    END LOOP;
    RETURN v_labels;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._pool_kmeans(tokens halfvec[], factor int, clusters int, iterations int, protected int, unit boolean) RETURNS halfvec[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_n int := cardinality(tokens) - protected;
BEGIN
    IF v_n IS NULL OR v_n < 1 THEN
        RETURN tokens;
    END IF;
    RETURN tokens[: protected] || sqlvec._pool_labelled(tokens[protected + 1 :], ARRAY(
        SELECT (min(l.n) OVER (PARTITION BY l.label))::int
        FROM unnest(sqlvec._pool_spherical(sqlvec._pool_directions(tokens[protected + 1 :]),
                                           least(v_n, coalesce(clusters - protected, v_n / factor + 1)), iterations))
             WITH ORDINALITY AS l (label, n)
        ORDER BY l.n), unit);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._pool_sequential(tokens halfvec[], factor int, protected int, unit boolean) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN tokens IS NOT NULL
            THEN tokens[: protected] || sqlvec._pool_labelled(
                tokens[protected + 1 :], ARRAY(SELECT n / factor FROM generate_series(0, cardinality(tokens) - protected - 1) AS n), unit) END;

-- A page image: rows of `width` patches, then as few bins of them as max_rows says, then windows over
-- these that begin and end outside (Visual RAG Toolkit). Tokens before and after the image stay.
CREATE OR REPLACE FUNCTION sqlvec._pool_rows(tokens halfvec[], width int, height int, max_rows int, "window" int, protected int, unit boolean) RETURNS halfvec[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_n int := cardinality(tokens);
    v_before int := least(protected, v_n);
    v_rows int := least(height, (v_n - v_before) / width);
    v_bins int := least(max_rows, v_rows);
    v_after int := v_before + v_rows * width;
    v_firsts int[];
    v_lasts int[];
BEGIN
    IF v_n IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(v_before + 1 + width * (greatest(w - "window" + 1, 0) * v_rows / v_bins) ORDER BY w),
           array_agg(v_before + width * ((least(w, v_bins - 1) + 1) * v_rows / v_bins) ORDER BY w)
    INTO v_firsts, v_lasts
    FROM generate_series(0, v_bins + "window" - 2) AS w
    WHERE v_bins > 0;
    RETURN tokens[: v_before] || sqlvec._pool_ranges(tokens, v_firsts, v_lasts, unit) || tokens[v_after + 1 :];
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._pool_top(tokens halfvec[], weights real[], share numeric) RETURNS halfvec[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF tokens IS NULL OR weights IS NULL THEN
        RETURN sqlvec._present(tokens);
    ELSIF cardinality(weights) <> cardinality(tokens) THEN
        RAISE EXCEPTION 'a multi-vector of % tokens has % weights', cardinality(tokens), cardinality(weights)
            USING ERRCODE = 'data_exception', HINT = 'Give every token one weight, in the same order.';
    ELSIF EXISTS (SELECT FROM unnest(weights) AS w WHERE w IS NULL OR w = 'NaN') THEN
        RAISE EXCEPTION 'weights of tokens are numbers, not NULL or NaN' USING ERRCODE = 'data_exception';
    END IF;
    RETURN ARRAY(
        SELECT r.x
        FROM (SELECT t.x, t.n, row_number() OVER (ORDER BY t.weight DESC, t.n) AS rank, count(*) OVER () AS tokens
              FROM unnest(tokens, weights) WITH ORDINALITY AS t (x, weight, n) WHERE t.x IS NOT NULL) AS r
        WHERE r.rank <= ceil(r.tokens * share)
        ORDER BY r.n);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._pool_prefix(tokens halfvec[], count int) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN tokens[: count];

-- Options of a method with their defaults; NULL for an unknown one.
CREATE OR REPLACE FUNCTION sqlvec._pool_defaults(method text) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE method
    WHEN 'hierarchical' THEN '{"method": "hierarchical", "factor": 2, "protected": 1, "normalize": false}'
    WHEN 'kmeans' THEN '{"method": "kmeans", "factor": 2, "clusters": null, "iterations": 20, "protected": 1, "normalize": false}'
    WHEN 'sequential' THEN '{"method": "sequential", "factor": 2, "protected": 1, "normalize": false}'
    WHEN 'rows' THEN '{"method": "rows", "width": 32, "height": null, "max_rows": null, "window": 1, "protected": 0, "normalize": false}'
    WHEN 'tiles' THEN '{"method": "tiles", "tile": 64, "protected": 0, "normalize": false}'
    WHEN 'top' THEN '{"method": "top", "share": 0.6}'
    WHEN 'prefix' THEN '{"method": "prefix", "tokens": 16}' END::jsonb;

-- The options of kind pool with defaults filled in; an error for what a method does not have.
CREATE OR REPLACE FUNCTION sqlvec._pool_options(options jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_method text := coalesce(options ->> 'method', 'hierarchical');
    v_defaults jsonb := sqlvec._pool_defaults(v_method);
    v_options jsonb := v_defaults || options || jsonb_build_object('method', v_method);
    v_key text;
    v_value jsonb;
    v_least int;
    v_most int;
BEGIN
    IF v_defaults IS NULL THEN
        RAISE EXCEPTION 'unknown method of pooling "%"', v_method
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Methods are: hierarchical, kmeans, sequential, rows, tiles, top, prefix.';
    END IF;
    -- A number of clusters takes the place of the factor.
    IF v_options ->> 'clusters' IS NOT NULL AND options ->> 'factor' IS NULL THEN
        v_options := v_options || '{"factor": null}';
    END IF;
    FOR v_key, v_value IN SELECT o.key, o.value FROM jsonb_each(v_options) AS o LOOP
        CONTINUE WHEN v_key = 'method' OR v_key IN ('height', 'max_rows', 'clusters') AND v_value = 'null'
                      OR v_key = 'factor' AND v_value = 'null' AND v_options ->> 'clusters' IS NOT NULL;
        v_least := CASE v_key WHEN 'protected' THEN 0 WHEN 'factor' THEN 2 WHEN 'tile' THEN 2 ELSE 1 END;
        v_most := CASE v_key WHEN 'iterations' THEN 100 WHEN 'window' THEN 99 WHEN 'tokens' THEN 10000 WHEN 'clusters' THEN 10000 ELSE 1000 END;
        IF NOT v_defaults ? v_key THEN
            RAISE EXCEPTION 'pooling by method "%" has no option "%"', v_method, v_key
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = format('Its options are: %s.', (SELECT string_agg(k, ', ') FROM jsonb_object_keys(v_defaults - 'method') AS k));
        ELSIF v_key = 'normalize' THEN
            IF jsonb_typeof(v_value) <> 'boolean' THEN
                RAISE EXCEPTION 'option "normalize" is true or false, not %', v_value USING ERRCODE = 'invalid_parameter_value';
            END IF;
        ELSIF v_key = 'share' THEN
            IF jsonb_typeof(v_value) <> 'number' OR v_value::text::numeric NOT BETWEEN 0.001 AND 1 THEN
                RAISE EXCEPTION 'option "share" is a number from 0.001 to 1, not %', v_value USING ERRCODE = 'invalid_parameter_value';
            END IF;
        ELSIF v_value::text !~ '^[0-9]{1,5}$' OR v_value::text::int NOT BETWEEN v_least AND v_most THEN
            RAISE EXCEPTION 'option "%" is an integer from % to %, not %', v_key, v_least, v_most, v_value
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF v_key = 'window' AND v_value::text::int % 2 = 0 THEN
            RAISE EXCEPTION 'option "window" is an odd number of rows, not %', v_value USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    IF v_options ->> 'clusters' IS NOT NULL AND v_options ->> 'factor' IS NOT NULL THEN
        RAISE EXCEPTION 'give option "factor" or "clusters", not both' USING ERRCODE = 'invalid_parameter_value';
    ELSIF (v_options ->> 'clusters')::int <= (v_options ->> 'protected')::int THEN
        RAISE EXCEPTION 'option "clusters" counts the protected tokens too: it is more than %, not %',
            v_options ->> 'protected', v_options ->> 'clusters' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN v_options;
END
$body$;

-- The SQL expression that pools. Whatever a row of the catalog says, the options in it are numbers.
CREATE OR REPLACE FUNCTION sqlvec._pool_expression(options jsonb, arguments text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_tokens text := format('sqlvec._halfvecs(%s)', arguments[1]);
    v_present text := format('sqlvec._present(%s)', v_tokens);
    v_factor int := options ->> 'factor';
    v_protected int := options ->> 'protected';
    v_normalize text := (options ->> 'normalize')::boolean::text;
BEGIN
    CASE options ->> 'method'
    WHEN 'hierarchical' THEN
        RETURN format('sqlvec._pool_hierarchical(%s, %s, %s, %s)', v_present, v_factor, v_protected, v_normalize);
    WHEN 'kmeans' THEN
        RETURN format('sqlvec._pool_kmeans(%s, %s, %s, %s, %s, %s)', v_present, coalesce(v_factor::text, 'NULL'),
                      coalesce((options ->> 'clusters')::int::text, 'NULL'), (options ->> 'iterations')::int, v_protected, v_normalize);
    WHEN 'sequential' THEN
        RETURN format('sqlvec._pool_sequential(%s, %s, %s, %s)', v_present, v_factor, v_protected, v_normalize);
    WHEN 'rows' THEN
        RETURN format('sqlvec._pool_rows(%s, %s, %s, %s, %s, %s, %s)', v_present, (options ->> 'width')::int,
                      coalesce((options ->> 'height')::int::text, 'NULL'), coalesce((options ->> 'max_rows')::int::text, 'NULL'),
                      (options ->> 'window')::int, v_protected, v_normalize);
    WHEN 'tiles' THEN
        RETURN format('sqlvec._pool_sequential(%s, %s, %s, %s)', v_present, (options ->> 'tile')::int, v_protected, v_normalize);
    WHEN 'top' THEN
        RETURN format('sqlvec._pool_top(%s, %s, %s)', v_tokens, coalesce(arguments[2], 'NULL'), (options ->> 'share')::numeric);
    WHEN 'prefix' THEN
        RETURN format('sqlvec._pool_prefix(%s, %s)', v_present, (options ->> 'tokens')::int);
    END CASE;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.pool(encoder text, tokens halfvec[], weights real[] = NULL) RETURNS halfvec[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder record;
    v_found int;
    v_pooled tokens%TYPE;
BEGIN
    SELECT e.kind, e.dimensions, e.options ->> 'method' AS method INTO v_encoder FROM sqlvec.encoder AS e WHERE e.name = pool.encoder;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'encoder "%" does not exist', encoder
            USING ERRCODE = 'undefined_object',
                  HINT = 'Encoders are listed in table sqlvec.encoder; the one of a column by sqlvec.derived_column.';
    ELSIF v_encoder.kind <> 'pool' THEN
        RAISE EXCEPTION 'encoder "%" is of kind "%", not "pool"', encoder, v_encoder.kind USING ERRCODE = 'datatype_mismatch';
    ELSIF weights IS NOT NULL AND v_encoder.method <> 'top' THEN
        RAISE EXCEPTION 'encoder "%" pools by method "%", which takes no weights', encoder, v_encoder.method
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Method "top" does.';
    END IF;
    v_found := (SELECT max(sqlvec._dims(t)) FILTER (WHERE sqlvec._dims(t) <> v_encoder.dimensions) FROM unnest(tokens) AS t);
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'encoder "%" takes vectors of % dimensions, not %', encoder, v_encoder.dimensions, v_found
            USING ERRCODE = 'data_exception';
    END IF;
    EXECUTE 'SELECT ' || sqlvec._encode_expression(encoder, '{$1,$2}') INTO v_pooled USING tokens, weights;
    RETURN v_pooled;
END
$body$;

COMMENT ON FUNCTION sqlvec.pool(text, halfvec[], real[]) IS
    'Fewer vectors for the multi-vector of a document, under a catalog encoder of kind pool. weights: one number per token, for method top. Means are unit vectors only with option "normalize". NULLs inside the array count for nothing, an empty array stays empty.';

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

-- Correction of hubs: rows that are near to every query (dual bank normalisation: Wang et al. 2023;
-- with queries alone, inverted softmax: Smith et al. 2017, and QB-Norm: Bogolin et al. 2022).
--
-- What a row is near to anyway is its soft mean cosine to a bank of queries and one of rows, taken
-- off its cosine to the query. That is an inner product of vectors with one dimension more, so that
-- an ordinary index serves it: [x / |x|, -correction] by [q / |q|, 1].
--
-- Bank vectors are stored as integers, 4000 long, and multiplied by the two integer parts of a row,
-- see encode.sql: numpy finds the same cosines, so the exponentials differ in their last digits only.
-- exp() cannot overflow: a cosine times the largest beta stays below 301.

CREATE OR REPLACE FUNCTION sqlvec._norm(x vector) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN vector_norm(x);
CREATE OR REPLACE FUNCTION sqlvec._unit_and(x vector, last float8) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN l2_normalize(x) || ARRAY[last]::vector;
CREATE OR REPLACE FUNCTION sqlvec._bank_vector(x vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sqlvec._round(l2_normalize(x) * sqlvec._constant(4000, vector_dims(x)),
                     sqlvec._constant(12582912, vector_dims(x))); -- 1.5 * 2^23

-- A row of the gallery bank that points where x does is x itself, most likely. The zero vector, which
-- has no cosine, comes after all others. NULL when the banks are not there (a data-only restore).
CREATE OR REPLACE FUNCTION sqlvec._hubness(
    encoder text, x vector, queries int, gallery int, beta_queries float8, beta_gallery float8, strength float8
) RETURNS vector
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_x record := sqlvec._integer_parts(x);
    v_low float8 := 2 * floor(4096 / sqrt(sqlvec._dims(x)::float8));
    v_scale float8 := v_x.unit / (4000 * sqlvec._norm(x));
    v_bank record;
BEGIN
    IF v_x.unit IS NULL THEN
        RETURN sqlvec._unit_and(x, -2);
    END IF;
    WITH bank AS MATERIALIZED (
        SELECT e.part, (sqlvec._dot(v_x.high, e.value) + sqlvec._dot(v_x.low, e.value) / v_low) * v_scale AS cosine
        FROM sqlvec.encoder_vector AS e WHERE e.encoder = _hubness.encoder
    )
    SELECT count(*) FILTER (WHERE b.part = 'queries') AS queries,
           count(*) FILTER (WHERE b.part = 'gallery') AS gallery,
           ln(sum(exp(beta_queries * b.cosine)) FILTER (WHERE b.part = 'queries') / _hubness.queries) AS of_queries,
           ln(avg(exp(beta_gallery * b.cosine)) FILTER (WHERE b.part = 'gallery' AND b.cosine < 0.999)) AS of_gallery
    INTO v_bank FROM bank AS b;
    IF (v_bank.queries, v_bank.gallery) <> (queries, gallery) THEN
        RETURN NULL;
    END IF;
    RETURN sqlvec._unit_and(x, -strength * (v_bank.of_queries + coalesce(v_bank.of_gallery, 0))
                               / (beta_queries + CASE WHEN gallery > 0 THEN beta_gallery ELSE 0 END));
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.hubness_query(query vector) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN vector_norm(query) > 0 THEN l2_normalize(query) || '[1]'::vector END;
COMMENT ON FUNCTION sqlvec.hubness_query(vector) IS
    'The query for a search by inner product on a column that sqlvec.add_hubness declared: at unit length, and 1. NULL for a zero vector, which has no direction.';

CREATE OR REPLACE FUNCTION sqlvec._write_hubness(
    name text, queries vector[], gallery vector[], beta_queries float8, beta_gallery float8, strength float8, owner name
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_queries int := coalesce(cardinality(queries), 0);
    v_gallery int := coalesce(cardinality(gallery), 0);
    v_dimensions int := sqlvec._dims(queries[array_lower(queries, 1)]);
    v_number int;
    v_found int;
BEGIN
    IF v_queries NOT BETWEEN 1 AND 100000 OR v_gallery > 100000 THEN
        RAISE EXCEPTION 'the banks of encoder "%" take 1 to 100000 queries and up to 100000 rows, not % and %', name, v_queries, v_gallery
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (beta_queries > 0 AND beta_queries <= 300 AND beta_gallery > 0 AND beta_gallery <= 300) IS NOT TRUE THEN
        RAISE EXCEPTION 'beta_queries and beta_gallery are numbers above 0 and up to 300, not % and %', beta_queries, beta_gallery
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (strength > 0 AND strength <= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'strength is a number above 0 and up to 1, not %', strength USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT b.n, sqlvec._dims(b.x) INTO v_number, v_found
    FROM (SELECT * FROM unnest(queries) WITH ORDINALITY UNION ALL
          SELECT * FROM unnest(gallery) WITH ORDINALITY) AS b (x, n)
    WHERE sqlvec._dims(b.x) IS DISTINCT FROM v_dimensions OR (sqlvec._norm(b.x) > 0) IS NOT TRUE
    ORDER BY b.n LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'vector % of a bank of encoder "%" is NULL, zero, or of % dimensions instead of %', v_number, name,
            coalesce(v_found, 0), coalesce(v_dimensions, 0)
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Leave them out: WHERE vector_norm(embedding) > 0.';
    END IF;
    PERFORM sqlvec._write_encoder(name, 'hubness', v_dimensions, jsonb_build_object(
        'queries', v_queries, 'gallery', v_gallery, 'beta_queries', beta_queries, 'beta_gallery', beta_gallery,
        'strength', strength), owner, NULL);
    INSERT INTO sqlvec.encoder_vector (encoder, part, position, value)
    SELECT _write_hubness.name, 'queries', b.n, sqlvec._bank_vector(b.x) FROM unnest(queries) WITH ORDINALITY AS b (x, n)
    UNION ALL
    SELECT _write_hubness.name, 'gallery', b.n, sqlvec._bank_vector(b.x) FROM unnest(gallery) WITH ORDINALITY AS b (x, n);
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.create_hubness_encoder(
    name text, queries vector[], gallery vector[] = '{}', beta_queries float8 = 20, beta_gallery float8 = 20, strength float8 = 0.25
) LANGUAGE plpgsql
AS $body$
BEGIN
    PERFORM sqlvec._write_hubness(name, queries, gallery, beta_queries, beta_gallery, strength, current_user);
END
$body$;
COMMENT ON PROCEDURE sqlvec.create_hubness_encoder(text, vector[], vector[], float8, float8, float8) IS
    'Make a named, immutable encoder of kind hubness from a bank of queries such as will be asked and, if wanted, a sample of rows. A row loses `strength` (1 is dual bank normalisation as published) times its soft mean cosine to the banks; the larger beta (up to 300), the more the nearest of a bank count.';

-- Up to `sample` rows of a column with a direction, in random order.
CREATE OR REPLACE FUNCTION sqlvec._sample_vectors(rel regclass, column_name text, sample int, seed bigint, OUT vectors vector[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record := sqlvec._column(rel, column_name);
BEGIN
    IF v_column.type_name NOT IN ('vector', 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, not vector or halfvec',
            column_name, rel, format_type(v_column.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch';
    END IF;
    EXECUTE format(
        'SELECT array_agg(s.x ORDER BY s.place) FROM ('
        'SELECT sqlvec._as_vector(t.%1$I) AS x, hashtextextended(t.ctid::text, $2) AS place '
        'FROM %2$s AS t WHERE sqlvec._norm(t.%1$I) > 0 ORDER BY 2, t.tableoid LIMIT $1) AS s',
        column_name, sqlvec._qualified(rel)) INTO vectors USING sample, seed;
    IF vectors IS NULL THEN
        RAISE EXCEPTION 'column "%" of table % holds no vector with a direction', column_name, rel
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Load rows first.';
    END IF;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.fit_hubness(
    name text, queries regclass, queries_column text, gallery regclass = NULL, gallery_column text = NULL,
    sample int = 1000, beta_queries float8 = 20, beta_gallery float8 = 20, strength float8 = 0.25, seed bigint = 0
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF queries IS NULL OR queries_column IS NULL OR (gallery IS NULL) <> (gallery_column IS NULL) OR seed IS NULL THEN
        RAISE EXCEPTION 'fit_hubness needs the table and the column of queries and, if any, those of rows, and a seed'
            USING ERRCODE = 'null_value_not_allowed';
    ELSIF (sample BETWEEN 1 AND 100000) IS NOT TRUE THEN
        RAISE EXCEPTION 'sample is a number from 1 to 100000, not %', sample USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM sqlvec._write_hubness(
        name, sqlvec._sample_vectors(queries, queries_column, sample, seed),
        CASE WHEN gallery IS NOT NULL THEN sqlvec._sample_vectors(gallery, gallery_column, sample, seed) END,
        beta_queries, beta_gallery, strength, current_user);
END
$body$;
COMMENT ON PROCEDURE sqlvec.fit_hubness(text, regclass, text, regclass, text, int, float8, float8, float8, bigint) IS
    'Make an encoder as sqlvec.create_hubness_encoder does, from up to `sample` vectors of a table of queries and, where given, as many of a table of rows. Every role that may use schema sqlvec can read the vectors of an encoder, which are nearly those of the tables.';

-- sqlvec.maxsim: late interaction (Khattab and Zaharia 2020, ColBERT). For every query token its best
-- document token; the score is the sum of those similarities.
--
-- Nested scalar sub-selects are the plan with the least work per pair of tokens: the document is
-- unnested once and scanned again for every query token, the distance is pgvector's own, and nothing
-- is sorted or grouped. min of the distance, with the sign turned once at the end, saves a negation
-- per pair. The bodies bind pgvector's operators by identity, whatever the caller's search_path.

CREATE OR REPLACE FUNCTION sqlvec.maxsim(tokens halfvec[], query halfvec[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(query) > 0
            THEN (SELECT 0 - sum((SELECT min(x <#> y) FROM unnest(tokens) AS x)) FROM unnest(query) AS y)
            WHEN cardinality(query) = 0 AND cardinality(tokens) > 0 THEN 0 END;

COMMENT ON FUNCTION sqlvec.maxsim(halfvec[], halfvec[]) IS
    'MaxSim: for every vector of query the largest inner product with one of tokens, summed. 0 for an empty query; NULL where either is NULL or tokens is empty. NULL elements count for nothing.';

-- Products may leave the range of float32, and their sum is no number then.
CREATE OR REPLACE FUNCTION sqlvec.maxsim_vector(tokens vector[], query vector[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(query) > 0
            THEN nullif((SELECT 0 - sum((SELECT min(x <#> y) FROM unnest(tokens) AS x)) FROM unnest(query) AS y), 'NaN')
            WHEN cardinality(query) = 0 AND cardinality(tokens) > 0 THEN 0 END;

COMMENT ON FUNCTION sqlvec.maxsim_vector(vector[], vector[]) IS
    'MaxSim of vectors in full precision; NULL where products leave the range of float32 both ways; otherwise as sqlvec.maxsim.';

-- The similarity of pgvector's own examples for binary tokens, on the scale of a cosine.
CREATE OR REPLACE FUNCTION sqlvec.maxsim_bit(tokens bit[], query bit[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(query) > 0
            THEN (SELECT sum(1 - (SELECT min(x <~> y) FROM unnest(tokens) AS x) / nullif(length(y), 0)) FROM unnest(query) AS y)
            WHEN cardinality(query) = 0 AND cardinality(tokens) > 0 THEN 0 END;

COMMENT ON FUNCTION sqlvec.maxsim_bit(bit[], bit[]) IS
    'MaxSim of bit strings, whose similarity is the share of equal bits, 1 - Hamming distance / length; otherwise as sqlvec.maxsim.';

CREATE OR REPLACE FUNCTION sqlvec.maxsim_mean(tokens halfvec[], query halfvec[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(query) > 0
            THEN (SELECT 0 - avg((SELECT min(x <#> y) FROM unnest(tokens) AS x)) FROM unnest(query) AS y)
            WHEN cardinality(query) = 0 AND cardinality(tokens) > 0 THEN 0 END;

COMMENT ON FUNCTION sqlvec.maxsim_mean(halfvec[], halfvec[]) IS
    'sqlvec.maxsim divided by the number of query tokens, so that scores of long and short queries compare: -1 to 1 for unit vectors.';

-- Nested multi-vectors (MetaEmbed; Matryoshka over tokens) put what matters most first, so that a
-- prefix of them is a multi-vector too.
CREATE OR REPLACE FUNCTION sqlvec.maxsim_nested(
    tokens halfvec[], query halfvec[], query_tokens int = NULL, document_tokens int = NULL
) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sqlvec.maxsim(trim_array(tokens, cardinality(tokens) - least(greatest(coalesce(document_tokens, cardinality(tokens)), 0), cardinality(tokens))),
                     trim_array(query, cardinality(query) - least(greatest(coalesce(query_tokens, cardinality(query)), 0), cardinality(query))));

COMMENT ON FUNCTION sqlvec.maxsim_nested(halfvec[], halfvec[], int, int) IS
    'sqlvec.maxsim of the first document_tokens of tokens and the first query_tokens of query; NULL means all of them. For nested multi-vectors, whose first vectors matter most.';

-- Constrained nearest neighbours (Aiger and others 2023, "Yes, we CANN"): MaxSim in which a document token
-- counts only within a radius.
CREATE OR REPLACE FUNCTION sqlvec.maxsim_radius(tokens halfvec[], query halfvec[], radius float8, power float8 = 1) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(query) > 0
            THEN (SELECT sum(CASE WHEN n.distance < radius THEN power(1 - power(n.distance / radius, power), 1 / power)
                                  WHEN n.distance >= radius THEN 0 END)
                  FROM unnest(query) AS y, LATERAL (SELECT (SELECT min(x <-> y) FROM unnest(tokens) AS x) AS distance OFFSET 0) AS n)
            WHEN cardinality(query) = 0 AND cardinality(tokens) > 0 THEN 0 END;

COMMENT ON FUNCTION sqlvec.maxsim_radius(halfvec[], halfvec[], float8, float8) IS
    'MaxSim with a radius (CANN): for every vector of query (1 - (distance / radius)^power)^(1/power) of its nearest of tokens by L2 distance, 0 from the radius on, summed. 0 for an empty query; NULL where either is NULL or tokens is empty.';

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

-- sqlvec.add_fde: declare the fixed dimensional encoding of a multi-vector column.

CREATE OR REPLACE PROCEDURE sqlvec.add_fde(
    rel regclass, column_name text, target text = NULL, repetitions int = 20, simhash_bits int = 4, projection int = 8,
    final_dimensions int = NULL, seed bigint = 0, bits boolean = false
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_dimensions int;
    v_options jsonb := jsonb_build_object('repetitions', repetitions, 'simhash_bits', simhash_bits, 'projection', projection,
                                          'final_dimensions', final_dimensions, 'seed', seed, 'bits', bits);
    v_target text := coalesce(target, sqlvec._name(column_name || '_fde'));
    v_encoder text;
    v_filled boolean;
BEGIN
    IF rel IS NULL OR column_name IS NULL THEN
        RAISE EXCEPTION 'add_fde needs a table and a column' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sqlvec._require_table(rel);
    v_source := sqlvec._multivector_column(rel, column_name);
    v_dimensions := coalesce(v_source.dimensions, sqlvec._dimensions(rel, column_name));
    v_options := sqlvec._encoder_options('fde', v_dimensions, v_options);
    PERFORM sqlvec._claim_targets(rel, ARRAY[column_name], ARRAY[v_target]);
    v_encoder := sqlvec._own_encoder_name(rel, v_target);
    PERFORM sqlvec._write_encoder(v_encoder, 'fde', v_dimensions, v_options, sqlvec._owner(rel), NULL);
    v_filled := sqlvec._add_target(rel, v_target, v_encoder, CASE WHEN bits THEN 'bit' ELSE 'halfvec' END, sqlvec._code_dimensions('fde', v_dimensions, v_options));
    PERFORM sqlvec._store_external(rel, column_name);
    PERFORM sqlvec._declare(rel, ARRAY[column_name], ARRAY[v_target], v_encoder, true, 'inner_product', v_filled);
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_fde(regclass, text, text, int, int, int, int, bigint, boolean) IS
    'Declare a column `target` that holds the fixed dimensional encoding (MUVERA) of multi-vector column `column_name`: repetitions * 2^simhash_bits * projection dimensions in halfvec, or final_dimensions; with bits their signs, twice as many bits. Adds the column, the trigger and the catalog row; rows already there wait for sqlvec.backfill, and an empty array gets zeros. Index it with halfvec_ip_ops, signs with bit_hamming_ops.';

-- sqlvec.add_pooled: declare a column with fewer vectors for each multi-vector.

CREATE OR REPLACE PROCEDURE sqlvec.add_pooled(
    rel regclass, column_name text, method text = 'hierarchical', target text = NULL, options jsonb = NULL, weights_column text = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_weights record;
    v_sources text[] := array_remove(ARRAY[column_name, weights_column], NULL);
    v_dimensions int;
    v_options jsonb := coalesce(options, '{}');
    v_target text := coalesce(target, sqlvec._name(column_name || '_pool'));
    v_encoder text;
    v_filled boolean;
BEGIN
    IF rel IS NULL OR column_name IS NULL OR method IS NULL THEN
        RAISE EXCEPTION 'add_pooled needs a table, a column and a method' USING ERRCODE = 'null_value_not_allowed';
    ELSIF v_options ? 'method' THEN
        RAISE EXCEPTION 'the method is an argument of add_pooled, not one of its options' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM sqlvec._require_table(rel);
    v_source := sqlvec._multivector_column(rel, column_name);
    v_dimensions := coalesce(v_source.dimensions, sqlvec._dimensions(rel, column_name));
    v_options := sqlvec._encoder_options('pool', v_dimensions, v_options || jsonb_build_object('method', method));
    IF weights_column IS NOT NULL THEN
        v_weights := sqlvec._column(rel, weights_column);
        IF method <> 'top' THEN
            RAISE EXCEPTION 'pooling by method "%" takes no weights', method
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Method "top" does.';
        ELSIF v_weights.type_name <> '_float4' THEN
            RAISE EXCEPTION 'column "%" of table % is of type %, not real[]', weights_column, rel, format_type(v_weights.type_oid, NULL)
                USING ERRCODE = 'datatype_mismatch';
        END IF;
    ELSIF method = 'top' THEN
        RAISE EXCEPTION 'pooling by method "top" needs a column of weights' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Name one of type real[]: weights_column => ''...''.';
    END IF;
    PERFORM sqlvec._claim_targets(rel, v_sources, ARRAY[v_target]);
    v_encoder := sqlvec._own_encoder_name(rel, v_target);
    PERFORM sqlvec._write_encoder(v_encoder, 'pool', v_dimensions, v_options, sqlvec._owner(rel), NULL);
    v_filled := sqlvec._add_target(rel, v_target, v_encoder, 'halfvec[]', v_dimensions);
    PERFORM sqlvec._store_external(rel, column_name), sqlvec._store_external(rel, v_target);
    PERFORM sqlvec._declare(rel, v_sources, ARRAY[v_target], v_encoder, true, 'inner_product', v_filled);
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_pooled(regclass, text, text, text, jsonb, text) IS
    'Declare a column `target` with fewer vectors for each multi-vector of column `column_name`. Methods and their options: hierarchical {"factor", "protected"}, kmeans {"factor" or "clusters", "iterations", "protected"}, sequential {"factor", "protected"}, rows {"width", "height", "max_rows", "window", "protected"}, tiles {"tile", "protected"}, top {"share"} by the real[] in weights_column, prefix {"tokens"}; the first five also {"normalize"}, which makes means unit vectors. Adds the column, the trigger and the catalog row; rows already there wait for sqlvec.backfill.';

-- sqlvec.add_centroid: declare the one-byte-per-token codes of a multi-vector column.

CREATE OR REPLACE PROCEDURE sqlvec.add_centroid(
    rel regclass, column_name text, encoder text, target text = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_dimensions int;
    v_target text := coalesce(target, sqlvec._name(column_name || '_centroid'));
BEGIN
    IF rel IS NULL OR column_name IS NULL OR encoder IS NULL THEN
        RAISE EXCEPTION 'add_centroid needs a table, a column and an encoder' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sqlvec._require_table(rel);
    v_source := sqlvec._multivector_column(rel, column_name);
    v_dimensions := (sqlvec._centroid_encoder(encoder)).dimensions;
    IF v_dimensions <> coalesce(v_source.dimensions, v_dimensions) THEN
        RAISE EXCEPTION 'column "%" of table % has % dimensions, encoder "%" takes %',
            column_name, rel, v_source.dimensions, encoder, v_dimensions
            USING ERRCODE = 'datatype_mismatch';
    END IF;
    PERFORM sqlvec._claim_targets(rel, ARRAY[column_name], ARRAY[v_target]);
    PERFORM sqlvec._store_external(rel, column_name);
    PERFORM sqlvec._declare(rel, ARRAY[column_name], ARRAY[v_target], encoder, false, 'inner_product',
                            sqlvec._add_target(rel, v_target, encoder, 'bytea', NULL));
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_centroid(regclass, text, text, text) IS
    'Declare a bytea column `target` that holds one byte per token of multi-vector column `column_name`: the number of its nearest centroid under `encoder`, made by sqlvec.create_centroid_encoder or sqlvec.fit_centroids. Adds the column, the trigger and the catalog row; rows already there wait for sqlvec.backfill, and an array without vectors gets an empty code.';

-- sqlvec.add_hubness: declare a column in which rows that are near to every query stand back.

CREATE OR REPLACE PROCEDURE sqlvec.add_hubness(
    rel regclass, column_name text, encoder text, target text = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_encoder record;
    v_target text := coalesce(target, sqlvec._name(column_name || '_hubness'));
BEGIN
    IF rel IS NULL OR column_name IS NULL OR encoder IS NULL THEN
        RAISE EXCEPTION 'add_hubness needs a table, a column and an encoder' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sqlvec._require_table(rel);
    v_source := sqlvec._column(rel, column_name);
    SELECT e.kind, e.dimensions, e.code_dimensions INTO v_encoder FROM sqlvec.encoder AS e WHERE e.name = encoder;
    IF v_source.type_name NOT IN ('vector', 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, not vector or halfvec',
            column_name, rel, format_type(v_source.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch';
    ELSIF v_encoder.kind IS DISTINCT FROM 'hubness' THEN
        RAISE EXCEPTION 'encoder "%" %', encoder, coalesce('is of kind "' || v_encoder.kind || '", not "hubness"', 'does not exist')
            USING ERRCODE = CASE WHEN v_encoder.kind IS NULL THEN 'undefined_object' ELSE 'datatype_mismatch' END,
                  HINT = 'sqlvec.create_hubness_encoder makes one of that kind.';
    ELSIF v_encoder.dimensions <> v_source.dimensions THEN
        RAISE EXCEPTION 'column "%" of table % has % dimensions, encoder "%" takes %',
            column_name, rel, v_source.dimensions, encoder, v_encoder.dimensions
            USING ERRCODE = 'datatype_mismatch';
    END IF;
    PERFORM sqlvec._claim_targets(rel, ARRAY[column_name], ARRAY[v_target]);
    PERFORM sqlvec._declare(rel, ARRAY[column_name], ARRAY[v_target], encoder, false, 'inner_product',
                            sqlvec._add_target(rel, v_target, encoder, 'vector', v_encoder.code_dimensions));
    IF v_encoder.code_dimensions > 2000 THEN
        RAISE WARNING 'column "%" has % dimensions, an index on type vector takes 2000', v_target, v_encoder.code_dimensions
            USING HINT = CASE WHEN v_encoder.code_dimensions <= 4000
                              THEN format('CALL sqlvec.add_quantized(%L, %L, ''halfvec'', metric => ''inner_product''); makes a code that an index takes.', rel, v_target)
                              ELSE 'Reduce the source first, with an encoder of kind "truncate" or "linear".' END;
    END IF;
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_hubness(regclass, text, text, text) IS
    'Declare a vector column `target`, one dimension longer than `column_name`: its vectors at unit length, and what `encoder`, made by sqlvec.create_hubness_encoder, takes off for rows that are near to every query. Search it with sqlvec.hubness_query. Adds the column, the trigger and the catalog row; rows already there wait for sqlvec.backfill.';

-- sqlvec.fit_centroids: an encoder of kind centroid from the tokens of a column, by k-means (Lloyd 1982)
-- on a sample. Unit tokens get unit centroids (spherical k-means: Dhillon and Modha 2001).

-- One step: every token to its nearest centroid, every centroid to the mean of its tokens. One that
-- nothing is nearest to stays where it is.
CREATE OR REPLACE FUNCTION sqlvec._lloyd_step(tokens vector[], centroids vector[], unit boolean) RETURNS vector[]
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH centroid AS MATERIALIZED (
        SELECT c.n, c.x, sqlvec._dot(c.x, c.x) / 2 AS half FROM unnest(centroids) WITH ORDINALITY AS c (x, n)
    ), mean AS (
        SELECT a.n, avg(a.x) AS x
        FROM (SELECT t.x, (SELECT c.n FROM centroid AS c ORDER BY sqlvec._dot(t.x, c.x) - c.half DESC, c.n LIMIT 1) AS n
              FROM unnest(tokens) AS t (x)) AS a
        GROUP BY a.n
    )
    SELECT array_agg(CASE WHEN m.x IS NULL THEN c.x WHEN unit THEN l2_normalize(m.x) ELSE m.x END ORDER BY c.n)
    FROM centroid AS c LEFT JOIN mean AS m ON m.n = c.n;
END;

-- The first different ones of an array. No bound body: pg_upgrade makes this before the operator class
-- of vector, by which the rows are grouped.
CREATE OR REPLACE FUNCTION sqlvec._different(tokens vector[], most int) RETURNS vector[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN ARRAY(SELECT t.x FROM unnest(tokens) WITH ORDINALITY AS t (x, n) GROUP BY t.x ORDER BY min(t.n) LIMIT most);
END
$body$;

-- Squared distances of tokens to the nearest centroid, which may be the new one.
CREATE OR REPLACE FUNCTION sqlvec._squared_distances(tokens vector[], distances float8[], centroid vector) RETURNS float8[]
LANGUAGE sql STABLE PARALLEL SAFE
RETURN ARRAY(SELECT least(t.distance, power(t.x <-> centroid, 2))
             FROM unnest(tokens, distances) WITH ORDINALITY AS t (x, distance, n) ORDER BY t.n);

-- One of the tokens, with a chance that grows as its squared distance (k-means++: Arthur and
-- Vassilvitskii 2007): of random numbers u the largest u^(1 / distance).
CREATE OR REPLACE FUNCTION sqlvec._distant_token(tokens vector[], distances float8[], seed bigint) RETURNS vector
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (SELECT t.x FROM unnest(tokens, distances) WITH ORDINALITY AS t (x, distance, n)
        WHERE t.distance > 0
        ORDER BY ln(((hashint8extended(t.n, seed) & 4503599627370495) + 0.5::float8) / 4503599627370496) / t.distance DESC, t.n
        LIMIT 1);

-- Centroids to begin with; fewer where there are not enough different tokens.
CREATE OR REPLACE FUNCTION sqlvec._first_centroids(tokens vector[], clusters int, seed bigint) RETURNS vector[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    -- More would choose hardly better.
    v_tokens tokens%TYPE := sqlvec._different(tokens, 10 * clusters);
    v_centroids tokens%TYPE := v_tokens[1:1];
    v_distances float8[];
BEGIN
    FOR v_count IN 2 .. least(clusters, cardinality(v_tokens)) LOOP
        v_distances := sqlvec._squared_distances(v_tokens, v_distances, v_centroids[v_count - 1]);
        v_centroids := v_centroids || sqlvec._distant_token(v_tokens, v_distances, seed # v_count);
    END LOOP;
    RETURN v_centroids;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._is_unit(tokens vector[]) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (SELECT bool_and(abs(sqlvec._dot(x, x) - 1) < 0.01) FROM unnest(tokens) AS x);

CREATE OR REPLACE FUNCTION sqlvec._fitted_centroids(tokens vector[], clusters int, seed bigint) RETURNS vector[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_unit boolean := sqlvec._is_unit(tokens);
    v_centroids tokens%TYPE := sqlvec._first_centroids(tokens, clusters, seed);
    v_before text;
BEGIN
    FOR v_step IN 1 .. 10 LOOP
        v_before := md5(v_centroids::text);
        v_centroids := sqlvec._lloyd_step(tokens, v_centroids, v_unit);
        EXIT WHEN md5(v_centroids::text) = v_before;
    END LOOP;
    RETURN v_centroids;
END
$body$;

-- Tokens of a column in random order: of at most `sample` rows, `sample` tokens.
CREATE OR REPLACE FUNCTION sqlvec._sample_tokens(rel oid, column_name text, sample int, seed bigint, OUT tokens vector[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    EXECUTE format(
        'SELECT array_agg(s.x ORDER BY s.place) FROM ('
        'SELECT sqlvec._as_vector(t.x) AS x, hashtextextended(format(''%%s %%s'', r.place, t.n), $2) AS place '
        'FROM (SELECT p.%1$I AS tokens, hashtextextended(p.ctid::text, $2) AS place FROM %2$s AS p '
        'WHERE p.%1$I IS NOT NULL ORDER BY 2, p.tableoid LIMIT $1) AS r, unnest(r.tokens) WITH ORDINALITY AS t (x, n) '
        'WHERE t.x IS NOT NULL ORDER BY 2 LIMIT $1) AS s',
        column_name, sqlvec._qualified(rel)) INTO tokens USING sample, seed;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.fit_centroids(
    name text, rel regclass, column_name text, clusters int = 256, sample int = 10000, seed bigint = 0
) LANGUAGE plpgsql
AS $body$
BEGIN
    PERFORM sqlvec._write_centroids(name, sqlvec._centroids_of(rel, column_name, clusters, sample, seed), current_user);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._centroids_of(
    rel regclass, column_name text, clusters int, sample int, seed bigint, OUT centroids vector[]
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
BEGIN
    IF rel IS NULL OR column_name IS NULL OR clusters IS NULL OR sample IS NULL OR seed IS NULL THEN
        RAISE EXCEPTION 'fit_centroids needs a table, a column, clusters, sample and seed' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    v_source := sqlvec._multivector_column(rel, column_name);
    IF clusters NOT BETWEEN 2 AND 256 OR sample NOT BETWEEN clusters AND 1000000 THEN
        RAISE EXCEPTION 'fit_centroids finds 2 to 256 clusters in that many or up to 1000000 tokens, not % in %', clusters, sample
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    centroids := sqlvec._fitted_centroids(sqlvec._sample_tokens(rel, column_name, sample, seed), clusters, seed);
    IF coalesce(cardinality(centroids), 0) < clusters THEN
        RAISE EXCEPTION 'column "%" of table % has % different tokens in the sample, % clusters need as many',
            column_name, rel, coalesce(cardinality(centroids), 0), clusters
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Load more rows first, or ask for fewer clusters.';
    END IF;
END
$body$;

COMMENT ON PROCEDURE sqlvec.fit_centroids(text, regclass, text, int, int, bigint) IS
    'Make an encoder of kind centroid from a sample of the tokens of multi-vector column `column_name`: ten steps of k-means. Its numbers follow no order, so sqlvec.centroid_bits says little; sqlvec.fit.centroid (Python) fits somewhat better ones and orders them.';

-- The rows without a code, and the index that knows them: what tells a search whether it may use the
-- codes at all.

-- The rows that wait for their code, in the words that pg_get_expr uses.
CREATE OR REPLACE FUNCTION sqlvec._unfinished(target name, sources name[], alias text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('((%s%I IS NULL) AND %s)', alias, target, sqlvec._has_source(sources, alias));

-- The partial index that answers "is every row encoded?" without reading the table.
CREATE OR REPLACE FUNCTION sqlvec._unfinished_index_sql(rel oid, target text, online boolean) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT format('CREATE INDEX %sIF NOT EXISTS %I ON %s ((1)) WHERE %s',
                  CASE WHEN online AND c.relkind <> 'p' THEN 'CONCURRENTLY ' ELSE '' END,
                  sqlvec._index_name(rel, 'ix_' || c.relname || '_' || target || '_unfinished'),
                  sqlvec._qualified(rel), sqlvec._unfinished(target, d.encoded_columns, ''))
    FROM sqlvec._derived_of(rel) AS d JOIN pg_catalog.pg_class AS c ON c.oid = rel
    WHERE d.target_column = target;
END;

-- Create it on the spot where reading the table takes a few milliseconds; larger tables get it
-- CONCURRENTLY from a client, which no function can do.
CREATE OR REPLACE FUNCTION sqlvec._index_unfinished(rel oid, target text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_size bigint := (SELECT sum(pg_relation_size(t.leaf)) FROM sqlvec._leaves(rel) AS t);
BEGIN
    IF v_size > 32 * 1024 * 1024 THEN
        RETURN false;
    END IF;
    EXECUTE sqlvec._unfinished_index_sql(rel, target, false);
    RETURN true;
END
$body$;

-- Whether an index holds exactly the rows that wait for their code.
CREATE OR REPLACE FUNCTION sqlvec._has_unfinished_index(rel oid, target name, sources name[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_index AS i
        WHERE i.indrelid = rel AND i.indisvalid
          AND pg_catalog.pg_get_expr(i.indpred, i.indrelid)
              = sqlvec._unfinished(target, sources, ''));
END;

-- sqlvec.backfill: codes for the rows that were there before the column was declared.

-- Which rows `t` of a table wait for their code: those without one or, to verify, those whose code
-- differs from what their source gives.
CREATE OR REPLACE FUNCTION sqlvec._waits(derived sqlvec._derived, verify boolean) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE WHEN NOT verify THEN sqlvec._unfinished((derived).target_column, (derived).encoded_columns, 't.')
                WHEN cardinality((derived).target_columns) = 1
                THEN format('sqlvec._differ(t.%I, %s)', (derived).target_column, sqlvec._code_expression(derived, 't.'))
                ELSE format('(SELECT %s FROM %s AS c (%s))',
                            (SELECT string_agg(format('sqlvec._differ(t.%I, c%s)', t.name, t.position), ' OR ')
                             FROM unnest((derived).target_columns) WITH ORDINALITY AS t (name, position)),
                            sqlvec._code_expression(derived, 't.'),
                            (SELECT string_agg('c' || n, ', ') FROM generate_subscripts((derived).target_columns, 1) AS n)) END;
END;

-- The rows `t` of one leaf table that wait between tids $1 and $2, at most $3 of them, locked. Foreign
-- keys that refer to them are not in the way. A sweep has to read the table in its order: batch by batch the
-- index over the rows that wait would lead through all that were done before, so the condition is put
-- in words that are not the index's.
CREATE OR REPLACE FUNCTION sqlvec._waiting_rows(leaf oid, derived sqlvec._derived, verify boolean, sweep boolean, wait boolean) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT format('FROM ONLY %s AS t WHERE t.ctid OPERATOR(pg_catalog.>=) $1 AND t.ctid OPERATOR(pg_catalog.<) $2 AND %s LIMIT $3 FOR NO KEY UPDATE %s',
                  sqlvec._qualified(leaf),
                  CASE WHEN sweep AND NOT verify
                       THEN format('pg_catalog.num_nulls(t.%I) OPERATOR(pg_catalog.=) 1 AND %s', (derived).target_column,
                                   sqlvec._has_source((derived).encoded_columns, 't.'))
                       ELSE sqlvec._waits(derived, verify) END,
                  CASE WHEN wait THEN '' ELSE 'SKIP LOCKED' END);
END;

-- The first tid of a block.
CREATE OR REPLACE FUNCTION sqlvec._block_tid(block bigint) RETURNS tid
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN format('(%s,0)', block)::tid;

-- What an UPDATE of rows `t` sets.
CREATE OR REPLACE FUNCTION sqlvec._assignment(derived sqlvec._derived) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE WHEN cardinality((derived).target_columns) = 1
                THEN format('%I = %s', (derived).target_column, sqlvec._code_expression(derived, 't.'))
                ELSE format('(%s) = (SELECT c.* FROM %s AS c)',
                            (SELECT string_agg(quote_ident(t.name), ', ' ORDER BY t.position)
                             FROM unnest((derived).target_columns) WITH ORDINALITY AS t (name, position)),
                            sqlvec._code_expression(derived, 't.')) END;
END;

-- What a derived column is bound to now: its encoder, the name of the table, and the numbers of columns with these names.
-- Text, because arrays have no operator of their own that a caller's search_path could not shadow.
CREATE OR REPLACE FUNCTION sqlvec._bound_to(derived sqlvec._derived, rel oid) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT concat_ws(' ', (SELECT d.encoder FROM sqlvec.derived AS d WHERE d.id = (derived).id), sqlvec._qualified(rel),
                     (SELECT string_agg(a.attnum::text, ' ' ORDER BY a.attname) FROM pg_catalog.pg_attribute AS a
                      WHERE a.attrelid = rel AND a.attname = ANY ((derived).source_columns || (derived).target_columns)));
END;

-- Whether another column is derived from this one.
CREATE OR REPLACE FUNCTION sqlvec._is_source(derived sqlvec._derived) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM sqlvec.derived AS d
                   WHERE d.relation_id = (derived).relation_id AND (derived).known_target = ANY (d.source_columns));
END;

-- Have the trigger, for the rest of this transaction, leave the codes alone that are computed here. It
-- still compares the source, unless no other trigger could have changed that (bit 1 of tgtype is
-- BEFORE, bit 4 UPDATE): comparing reads a long vector twice. It has to where a code is a source itself.
CREATE OR REPLACE FUNCTION sqlvec._stand_aside(leaf oid, derived sqlvec._derived) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM set_config('sqlvec.maintain', CASE WHEN EXISTS (
        SELECT FROM pg_trigger AS t
        WHERE t.tgrelid = leaf AND NOT t.tgisinternal AND t.tgtype & 18::smallint = 18::smallint AND t.tgname <> '~sqlvec'
    ) OR sqlvec._is_source(derived) THEN 'off' ELSE 'skip' END, true);
    -- A crash may lose the last batches, which are then done again: no commit needs to wait for the disk.
    PERFORM set_config('synchronous_commit', 'off', true);
    -- To compile the statement of a batch takes longer than to run it.
    PERFORM set_config('jit', 'off', true);
END
$body$;

-- The statement that encodes rows that wait, as sqlvec._waiting_rows finds them. Locks only rows it can
-- have at once, unless told to wait.
CREATE OR REPLACE FUNCTION sqlvec._batch_statement(leaf oid, derived sqlvec._derived, verify boolean, sweep boolean, wait boolean) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN format(
        'WITH had AS MATERIALIZED (SELECT ARRAY(SELECT t.ctid %5$s) AS rows), '
        'done AS (UPDATE ONLY %1$s AS t SET %4$s WHERE t.ctid OPERATOR(pg_catalog.=) ANY ((SELECT h.rows FROM had AS h)::pg_catalog.tid[]) '
        'RETURNING t.%3$I IS NOT NULL OR NOT %2$s AS encoded) '
        'SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE d.encoded), '
        '(SELECT (pg_catalog.max(r)::pg_catalog.text::pg_catalog.point)[0] FROM had AS h, pg_catalog.unnest(h.rows) AS r) FROM done AS d',
        sqlvec._qualified(leaf), sqlvec._has_source(derived.encoded_columns, 't.'), derived.target_column,
        sqlvec._assignment(derived), sqlvec._waiting_rows(leaf, derived, verify, sweep, wait));
END
$body$;

-- Encode up to `batch` rows that wait, of one leaf table between two blocks; last_block is the last one
-- it took rows from. No SET: the application's triggers run inside.
CREATE OR REPLACE FUNCTION sqlvec._backfill_batch(
    leaf oid, derived sqlvec._derived, statement text, first_block bigint, end_block bigint, batch int, OUT done int, OUT last_block bigint
) LANGUAGE plpgsql
AS $body$
DECLARE
    v_encoded int;
    v_message pg_catalog.text;
BEGIN
    PERFORM sqlvec._stand_aside(leaf, derived);
    EXECUTE statement INTO done, v_encoded, last_block
    USING sqlvec._block_tid(first_block), sqlvec._block_tid(end_block), batch;
    IF v_encoded OPERATOR(pg_catalog.<) done THEN
        RAISE EXCEPTION 'encoder "%" gives no code for rows of table %', derived.encoder, sqlvec._qualified(leaf)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Its rows in sqlvec.encoder_vector are missing, or a trigger of the table empties the column.';
    END IF;
EXCEPTION WHEN data_exception THEN
    GET STACKED DIAGNOSTICS v_message = MESSAGE_TEXT;
    RAISE EXCEPTION 'encoder "%" cannot encode column "%" of table %: %', derived.encoder, derived.source_column, sqlvec._qualified(leaf), v_message
        USING ERRCODE = SQLSTATE,
              DETAIL = pg_catalog.format('A row in blocks %s to %s of the table; everything before is committed.', first_block, end_block);
END
$body$;

-- Where a sweep over one leaf table starts or goes on, the block it ends before, how many blocks
-- to take at first, and whether to read them: less than a batch the index finds at once, in one step to the
-- end. NULL when the column was dropped meanwhile.
CREATE OR REPLACE FUNCTION sqlvec._begin_sweep(derived_id int, leaf oid, batch int, verify boolean, caller_path text,
    OUT block bigint, OUT end_block bigint, OUT step bigint, OUT sweep boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_waiting int;
    v_path text := current_setting('search_path');
BEGIN
    PERFORM sqlvec._hold_leaf(_begin_sweep.leaf);
    INSERT INTO sqlvec.backfill_state AS s (derived_id, leaf, end_block)
    SELECT d.id, _begin_sweep.leaf, pg_relation_size(_begin_sweep.leaf) / current_setting('block_size')::int
    FROM sqlvec.derived AS d WHERE d.id = _begin_sweep.derived_id
    ON CONFLICT ON CONSTRAINT backfill_state_pkey DO UPDATE
    SET end_block = excluded.end_block,
        block = CASE WHEN s.finished_at IS NULL THEN s.block ELSE 0 END,
        rows_done = CASE WHEN s.finished_at IS NULL THEN s.rows_done ELSE 0 END,
        started_at = CASE WHEN s.finished_at IS NULL THEN s.started_at ELSE clock_timestamp() END,
        updated_at = clock_timestamp(), finished_at = NULL
    RETURNING s.block, s.end_block INTO _begin_sweep.block, _begin_sweep.end_block;
    -- A batch of blocks, as far as the statistics of the table can tell.
    step := greatest(1, least(4096, coalesce(
        (SELECT batch * c.relpages::bigint / nullif(greatest(c.reltuples, 0)::bigint, 0)
         FROM pg_class AS c WHERE c.oid = _begin_sweep.leaf), 8)));
    sweep := true;
    SELECT d.* INTO v_derived FROM sqlvec._derived AS d
    WHERE d.id = _begin_sweep.derived_id AND NOT (verify OR d.suspect)
      AND CASE WHEN d.target_column IS NOT NULL AND array_position(d.encoded_columns, NULL) IS NULL
               THEN sqlvec._has_unfinished_index(_begin_sweep.leaf, d.target_column, d.encoded_columns) END;
    IF FOUND THEN
        -- Under the caller's search_path: the planner looks at expressions of the table's indexes on the way.
        PERFORM set_config('search_path', caller_path, true);
        EXECUTE pg_catalog.format('SELECT pg_catalog.count(*) FROM (SELECT FROM ONLY %s WHERE %s LIMIT $1) AS w', sqlvec._qualified(leaf),
                                  sqlvec._unfinished(v_derived.target_column, v_derived.encoded_columns, ''))
        INTO v_waiting USING batch;
        PERFORM pg_catalog.set_config('search_path', v_path, true);
        IF v_waiting < batch THEN
            step := greatest(end_block - block, 1);
            sweep := false;
        END IF;
    END IF;
END
$body$;

-- Note a batch that took `had` rows up to last_block and finished `done` of them; where to go on from,
-- and by how many blocks.
CREATE OR REPLACE FUNCTION sqlvec._go_on(
    derived_id int, leaf oid, INOUT block bigint, INOUT step bigint, batch int, had int, done int, last_block bigint
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    -- A full batch may have left rows behind, from its last block on; those of a batch that finished
    -- none are left to the passes after the sweep.
    v_next bigint := CASE WHEN had < batch THEN block + step ELSE greatest(block, last_block) + (done = 0)::int END;
BEGIN
    step := greatest(1, least(4096, greatest(v_next - block, 1) * batch / greatest(had, 1), step * 2));
    block := v_next;
    UPDATE sqlvec.backfill_state AS s
    SET block = greatest(s.block, v_next), rows_done = s.rows_done + done, updated_at = clock_timestamp()
    WHERE s.derived_id = _go_on.derived_id AND s.leaf = _go_on.leaf;
END
$body$;

-- Commits at once, so that a call inside a transaction block fails before any work, in a
-- function whose name says why.
CREATE OR REPLACE PROCEDURE sqlvec._backfill_cannot_run_inside_a_transaction_block() LANGUAGE plpgsql
AS $body$
BEGIN
    COMMIT;
END
$body$;

-- What a backfill works on, checked: the derived columns and the leaf tables.
CREATE OR REPLACE FUNCTION sqlvec._begin_backfill(rel regclass, target text, batch int, OUT derived_ids int[], OUT leaves oid[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $body$
DECLARE
    v_leaf oid;
BEGIN
    IF batch IS NULL OR batch < 1 THEN
        RAISE EXCEPTION 'batch is a number of rows, 1 or more, not %', batch USING ERRCODE = 'invalid_parameter_value';
    END IF;
    derived_ids := ARRAY(SELECT d.id FROM sqlvec._derived_of(rel) AS d
                         WHERE target IS NULL OR d.target_column = target ORDER BY d.id);
    IF cardinality(derived_ids) = 0 THEN
        RAISE EXCEPTION 'table % has no derived column%', rel, coalesce(' "' || target || '"', '')
            USING ERRCODE = 'undefined_column',
                  HINT = coalesce(sqlvec._derived_columns_of(rel), 'Declare one with CALL sqlvec.add_quantized(...).');
    END IF;
    IF EXISTS (SELECT FROM sqlvec._derived AS d WHERE d.id = ANY (derived_ids) AND NOT d.maintained AND NOT d.suspect) THEN
        RAISE EXCEPTION 'the trigger of table % does not keep its codes: new ones would go stale', rel
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('SELECT problem FROM sqlvec.derived_column; mostly CALL sqlvec.repair(%L); helps.', rel);
    END IF;
    leaves := ARRAY(SELECT t.leaf FROM sqlvec._leaves(rel) AS t ORDER BY t.leaf);
    FOR v_leaf IN SELECT rel FROM pg_class AS c WHERE c.oid = rel AND c.relkind = 'f' UNION ALL SELECT f.part FROM sqlvec._foreign_parts(rel) AS f LOOP
        RAISE NOTICE 'rows of foreign table % get their codes where they are', sqlvec._qualified(v_leaf)
            USING HINT = 'Run the backfill of the table behind it there.';
    END LOOP;
    FOREACH v_leaf IN ARRAY leaves LOOP
        IF row_security_active(v_leaf) OR row_security_active(rel) THEN
            RAISE EXCEPTION 'row security hides rows of table % from role "%"', sqlvec._qualified(v_leaf), current_user
                USING ERRCODE = 'insufficient_privilege',
                      HINT = 'Run the backfill as the owner of the table or as a role with BYPASSRLS.';
        ELSIF NOT (has_any_column_privilege(v_leaf, 'SELECT') AND has_any_column_privilege(v_leaf, 'UPDATE')) THEN
            RAISE EXCEPTION 'role "%" may not read and update table %', current_user, sqlvec._qualified(v_leaf)
                USING ERRCODE = 'insufficient_privilege',
                      HINT = format('GRANT SELECT, UPDATE ON %s TO %I;', sqlvec._qualified(v_leaf), current_user);
        END IF;
    END LOOP;
END
$body$;

-- Note rows that were done behind the sweep, or that the whole table is.
CREATE OR REPLACE FUNCTION sqlvec._note_rows(derived_id int, leaf oid, done int, finished boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    UPDATE sqlvec.backfill_state AS s
    SET rows_done = s.rows_done + done, updated_at = clock_timestamp(),
        block = CASE WHEN finished THEN s.end_block ELSE s.block END,
        finished_at = CASE WHEN finished THEN clock_timestamp() ELSE s.finished_at END
    WHERE s.derived_id = _note_rows.derived_id AND s.leaf = _note_rows.leaf;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.backfill(
    rel regclass, target text = NULL, batch int = 1000, verify boolean = false
) LANGUAGE plpgsql
AS $body$
DECLARE
    v_ids int[];
    v_id int;
    v_derived sqlvec._derived;
    v_leaves pg_catalog.oid[];
    v_leaf pg_catalog.oid;
    v_block bigint;
    v_end bigint;
    v_step bigint;
    v_sweep boolean;
    v_rows int;
    v_last bigint;
    v_known pg_catalog.text;
    v_statement pg_catalog.text;
    v_left boolean;
    v_waits int := 0;
BEGIN
    SELECT b.derived_ids, b.leaves INTO v_ids, v_leaves FROM sqlvec._begin_backfill(rel, target, batch) AS b;
    CALL sqlvec._backfill_cannot_run_inside_a_transaction_block();
    -- Whatever the session's default: each batch has to see what others have committed, names above all.
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;

    FOREACH v_id IN ARRAY v_ids LOOP
        FOREACH v_leaf IN ARRAY v_leaves LOOP
            -- A partition may be gone by now.
            CONTINUE WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) v_leaf);
            -- Nothing where the column was dropped meanwhile, which is found out below.
            SELECT b.block, b.end_block, b.step, b.sweep INTO v_block, v_end, v_step, v_sweep FROM sqlvec._begin_sweep(v_id, v_leaf, batch, verify, pg_catalog.current_setting('search_path')) AS b;
            COMMIT AND CHAIN;
            v_known := NULL;

            -- Sweep forward in short transactions, over rows nobody else has locked. Rows that the
            -- updates append behind the end are encoded already.
            WHILE v_block OPERATOR(pg_catalog.<) v_end LOOP
                -- Names and encoder may change between two transactions; the view is read again only when they do.
                PERFORM sqlvec._hold_leaf(v_leaf);
                IF v_known IS NULL OR sqlvec._bound_to(v_derived, v_leaf) OPERATOR(pg_catalog.<>) v_known THEN
                    v_derived := sqlvec._derived_now(v_id, v_leaf);
                    v_known := sqlvec._bound_to(v_derived, v_leaf);
                    v_statement := sqlvec._batch_statement(v_leaf, v_derived, verify OR v_derived.suspect, v_sweep, false);
                END IF;
                SELECT b.done, b.last_block INTO v_rows, v_last
                FROM sqlvec._backfill_batch(v_leaf, v_derived, v_statement, v_block, v_block OPERATOR(pg_catalog.+) v_step, batch) AS b;
                SELECT n.block, n.step INTO v_block, v_step
                FROM sqlvec._go_on(v_id, v_leaf, v_block, v_step, batch, v_rows, v_rows, v_last) AS n;
                COMMIT AND CHAIN;
            END LOOP;

            -- What was locked by others, or written behind the sweep. When only locked rows are
            -- left, wait for one of them at a time, holding nothing else: no deadlock is possible.
            LOOP
                PERFORM sqlvec._hold_leaf(v_leaf);
                v_derived := sqlvec._derived_now(v_id, v_leaf);
                EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM ONLY %s AS t WHERE %s)', sqlvec._qualified(v_leaf),
                                          sqlvec._waits(v_derived, verify OR v_derived.suspect))
                INTO v_left;
                EXIT WHEN NOT v_left;
                v_statement := sqlvec._batch_statement(v_leaf, v_derived, verify OR v_derived.suspect, false, false);
                v_rows := (sqlvec._backfill_batch(v_leaf, v_derived, v_statement, 0, 4294967295, batch)).done;
                IF v_rows OPERATOR(pg_catalog.=) 0 THEN
                    v_statement := sqlvec._batch_statement(v_leaf, v_derived, verify OR v_derived.suspect, false, true);
                    v_rows := (sqlvec._backfill_batch(v_leaf, v_derived, v_statement, 0, 4294967295, 1)).done;
                    -- Another backfill may have been faster, but not time and again.
                    v_waits := CASE WHEN v_rows OPERATOR(pg_catalog.=) 0 THEN v_waits OPERATOR(pg_catalog.+) 1 ELSE 0 END;
                    IF v_waits OPERATOR(pg_catalog.>) 100 THEN
                        RAISE EXCEPTION 'rows of table % cannot be updated', sqlvec._qualified(v_leaf)
                            USING ERRCODE = 'object_not_in_prerequisite_state',
                                  HINT = 'A trigger of the table turns the update away; every other row has its code.';
                    END IF;
                END IF;
                PERFORM sqlvec._note_rows(v_id, v_leaf, v_rows, false);
                COMMIT AND CHAIN;
            END LOOP;
            PERFORM sqlvec._note_rows(v_id, v_leaf, 0, true);
            COMMIT AND CHAIN;
        END LOOP;

        v_derived := sqlvec._derived_now(v_id, rel);
        IF v_derived.suspect AND NOT sqlvec._owns(rel) THEN
            RAISE NOTICE 'the codes of column "%" are right now, but searches leave them aside until the owner of table % says so',
                v_derived.target_column, sqlvec._qualified(rel)
                USING HINT = pg_catalog.format('The owner: CALL sqlvec.backfill(%L, %L);', sqlvec._qualified(rel), v_derived.target_column);
        ELSIF v_derived.suspect THEN
            UPDATE sqlvec.derived AS d SET suspect = false, reweighed = false WHERE d.id OPERATOR(pg_catalog.=) v_id;
            COMMIT AND CHAIN;
        END IF;
        IF sqlvec._owns(rel) AND NOT sqlvec._has_unfinished_index(rel, v_derived.target_column, v_derived.encoded_columns) THEN
            IF NOT sqlvec._index_unfinished(rel, v_derived.target_column) THEN
                RAISE NOTICE 'searches of % look for rows without a code by reading the table', rel
                    USING HINT = pg_catalog.format('Make that instant: %s;', sqlvec._unfinished_index_sql(rel, v_derived.target_column, true));
            END IF;
            COMMIT AND CHAIN;
        END IF;
    END LOOP;
    -- A caller goes on at the isolation of the session.
    COMMIT;
END
$body$;

COMMENT ON PROCEDURE sqlvec.backfill(regclass, text, int, boolean) IS
    'Fill derived columns of rows that have none, in committed batches that skip locked rows; started again, it goes on where it stopped. verify compares the codes that are there with their source too, and mends those that differ. Cannot run inside a transaction block.';

CREATE OR REPLACE VIEW sqlvec.backfill_progress AS
SELECT d.relation::regclass AS relation,
       d.target_column,
       CASE WHEN pg_catalog.count(s.derived_id) = 0 THEN 'pending'
            WHEN pg_catalog.count(s.finished_at) = pg_catalog.count(*) THEN 'done'
            ELSE 'running' END AS state,
       pg_catalog.sum(coalesce(least(s.block, s.end_block), 0))::bigint AS blocks_done,
       pg_catalog.sum(coalesce(s.end_block, b.blocks))::bigint AS blocks_total,
       coalesce(pg_catalog.sum(s.rows_done), 0)::bigint AS rows_done,
       pg_catalog.min(s.started_at) AS started_at,
       pg_catalog.max(s.updated_at) AS updated_at
FROM sqlvec._derived AS d
CROSS JOIN LATERAL (
    SELECT t.leaf,
           pg_catalog.pg_relation_size(t.leaf) / pg_catalog.current_setting('block_size')::int AS blocks
    FROM sqlvec._leaves(d.relation) AS t
) AS b
LEFT JOIN sqlvec.backfill_state AS s ON s.derived_id = d.id AND s.leaf = b.leaf
GROUP BY d.id, d.relation, d.target_column;

COMMENT ON VIEW sqlvec.backfill_progress IS
    'How far the backfill of each derived column is, in blocks of the table and rows encoded. state: pending, running (or interrupted: see updated_at), done.';

-- The server's part of a backfill whose codes are computed by a client: which columns, which rows, and
-- the UPDATE. A sweep ends where sqlvec.backfill goes on: with every row that the client left alone.

-- What a client may encode: per derived column with one code, its encoder and the leaf tables. Nothing
-- where sqlvec.backfill has something to refuse, to verify or to mend.
CREATE OR REPLACE FUNCTION sqlvec._bulk_columns(rel oid, target text)
RETURNS TABLE (derived_id int, kind text, encoder text, leaf oid)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT d.id, d.kind, d.encoder, t.leaf
    FROM sqlvec._derived_of(rel) AS d CROSS JOIN sqlvec._leaves(rel) AS t
    WHERE (_bulk_columns.target IS NULL OR d.target_column = _bulk_columns.target)
      AND d.maintained AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL
      AND cardinality(d.source_columns) = 1 AND cardinality(d.target_columns) = 1
      AND NOT row_security_active(rel)
      AND NOT EXISTS (SELECT FROM sqlvec._leaves(rel) AS l WHERE row_security_active(l.leaf))
      AND has_database_privilege(current_database(), 'TEMPORARY')
    ORDER BY d.id, t.leaf;
END;

-- Lock up to `batch` rows that wait, and read them, each as the bytes of a halfvec[] or, of one vector, of
-- a vector[]; their codes are expected in table "sqlvec codes" of this transaction. No rows when the column is not what it was when the client looked.
CREATE OR REPLACE FUNCTION sqlvec._bulk_read(
    derived_id int, encoder text, leaf oid, first_block bigint, end_block bigint, batch int, sweep boolean
) RETURNS TABLE (tid tid, source bytea)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived;
BEGIN
    PERFORM sqlvec._hold_leaf(leaf);
    SELECT d.* INTO v_derived FROM sqlvec._derived AS d
    WHERE d.id = derived_id AND d.encoder = _bulk_read.encoder AND d.maintained
      AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- For this transaction only: behind a pooler the next one may be on another session.
    EXECUTE format('CREATE TEMPORARY TABLE "sqlvec codes" ON COMMIT DROP AS SELECT t.ctid AS tid, t.%I AS code FROM ONLY %s AS t LIMIT 0',
                   v_derived.target_column, sqlvec._qualified(leaf));
    RETURN QUERY EXECUTE format('SELECT t.ctid, array_send(%s) %s',
                                format(CASE v_derived.kind WHEN 'hubness' THEN 'ARRAY[sqlvec._as_vector(t.%I)]' ELSE 'sqlvec._halfvecs(t.%I)' END,
                                       v_derived.source_column),
                                sqlvec._waiting_rows(leaf, v_derived, false, sweep, false))
        USING sqlvec._block_tid(first_block), sqlvec._block_tid(end_block), batch;
END
$body$;

-- Give the rows that were read the codes in "sqlvec codes"; how many took theirs. No SET: the
-- application's triggers run inside.
CREATE OR REPLACE FUNCTION sqlvec._bulk_write(derived_id int, leaf oid) RETURNS int
LANGUAGE plpgsql
AS $body$
DECLARE
    v_derived sqlvec._derived := sqlvec._derived_now(derived_id, leaf);
    v_done int;
BEGIN
    PERFORM sqlvec._stand_aside(leaf, v_derived);
    -- The array is for the plan, which may not read the table.
    EXECUTE pg_catalog.format(
        'UPDATE ONLY %s AS t SET %I = c.code FROM pg_temp."sqlvec codes" AS c '
        'WHERE t.ctid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT a.tid FROM pg_temp."sqlvec codes" AS a)) AND t.ctid OPERATOR(pg_catalog.=) c.tid',
        sqlvec._qualified(leaf), v_derived.target_column);
    GET DIAGNOSTICS v_done = ROW_COUNT;
    RETURN v_done;
END
$body$;

-- The filter argument of the search functions: JSON to SQL with every value bound.

-- "schema".operator of a btree strategy (1 <, 2 <=, 3 =, 4 >=, 5 >) for a type: what its default
-- operator class says, so that citext and friends keep their meaning. NULL when there is none.
CREATE OR REPLACE FUNCTION sqlvec._btree_operator(type_oid oid, strategy int) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    -- The types that most columns have need no look.
    IF type_oid IN ('int8'::regtype, 'int4'::regtype, 'int2'::regtype, 'text'::regtype, 'varchar'::regtype, 'uuid'::regtype, 'bool'::regtype,
                    'date'::regtype, 'timestamptz'::regtype, 'timestamp'::regtype, 'numeric'::regtype, 'float8'::regtype, 'float4'::regtype) THEN
        RETURN format('OPERATOR(pg_catalog.%s)', (ARRAY['<', '<=', '=', '>=', '>'])[strategy]);
    END IF;
    RETURN (
        SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
        FROM pg_type AS t
        JOIN pg_opclass AS c ON c.opcdefault AND c.opcintype = CASE
                 -- Types that borrow the operator class of another.
                 WHEN t.typtype = 'e' THEN 'anyenum'::regtype
                 WHEN t.typtype = 'r' THEN 'anyrange'::regtype
                 WHEN t.typtype = 'c' THEN 'record'::regtype
                 WHEN t.typtype = 'm' THEN 'anymultirange'::regtype
                 WHEN t.typcategory = 'A' THEN 'anyarray'::regtype
                 ELSE t.oid END
        JOIN pg_am AS m ON m.oid = c.opcmethod AND m.amname = 'btree'
        JOIN pg_amop AS a ON a.amopfamily = c.opcfamily AND a.amopstrategy = strategy
                         AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype
        JOIN pg_operator AS o ON o.oid = a.amopopr
        JOIN pg_namespace AS n ON n.oid = o.oprnamespace
        WHERE t.oid = type_oid);
END
$body$;

-- A JSON value as the input text of a Postgres type.
CREATE OR REPLACE FUNCTION sqlvec._json_text(value jsonb, type_oid oid) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN type_oid IN ('pg_catalog.json'::regtype, 'pg_catalog.jsonb'::regtype) THEN value::text
    WHEN jsonb_typeof(value) = 'array'
        THEN (SELECT coalesce(array_agg(e), '{}') FROM jsonb_array_elements_text(value) AS e)::text
    ELSE value #>> '{}'
END;

-- An error that names the column when a bound value is not one of its type. Numbers that fit any
-- integer and text for text columns need no trial.
CREATE OR REPLACE FUNCTION sqlvec._check_value(bound text, value jsonb, type_oid oid, type_name text, column_name text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF type_oid IN ('text'::regtype, 'varchar'::regtype) OR (type_oid = 'bool'::regtype AND jsonb_typeof(value) = 'boolean') THEN
        RETURN;
    ELSIF type_oid IN ('int8'::regtype, 'int4'::regtype, 'int2'::regtype, 'numeric'::regtype, 'float8'::regtype, 'float4'::regtype)
        AND (CASE jsonb_typeof(value) WHEN 'number' THEN bound ~ '^-?[0-9]{1,4}$'
                                     WHEN 'array' THEN type_name LIKE '%[]' AND bound ~ '^\{-?[0-9]{1,4}(,-?[0-9]{1,4})*\}$' ELSE false END)
    THEN
        RETURN;
    ELSIF (SELECT t.typcategory = 'S' FROM pg_type AS t WHERE t.oid = type_oid) THEN
        RETURN;
    END IF;
    -- Apart, because an exception handler costs a subtransaction; which no parallel plan may have, hence no label.
    PERFORM sqlvec._try_value(bound, value, type_name, column_name);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._try_value(bound text, value jsonb, type_name text, column_name text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    EXECUTE format('SELECT $1::%s', type_name) USING bound;
EXCEPTION WHEN data_exception THEN
    RAISE EXCEPTION 'filter: % is not a value of column "%", which is of type %', value, column_name, type_name
        USING ERRCODE = 'invalid_parameter_value', DETAIL = SQLERRM;
END
$body$;

-- A JSON array with null among its values as SQL, each value bound by itself: whether the text of an array
-- can say NULL is a setting, array_nulls.
CREATE OR REPLACE FUNCTION sqlvec._array_with_nulls(
    value jsonb, array_type oid, column_name text, slot text, INOUT bound text[], OUT expression text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_type oid := (SELECT t.typelem FROM pg_type AS t WHERE t.oid = array_type);
    v_item jsonb;
    v_items text[] := '{}';
BEGIN
    FOR v_item IN SELECT * FROM jsonb_array_elements(value) LOOP
        IF v_item = 'null' THEN
            v_items := v_items || 'NULL'::text;
        ELSE
            bound := bound || sqlvec._json_text(v_item, v_type);
            PERFORM sqlvec._check_value(bound[cardinality(bound)], v_item, v_type, format_type(v_type, -1), column_name);
            v_items := v_items || format('((%s)[%s])::%s', slot, cardinality(bound), sqlvec._type_name(v_type));
        END IF;
    END LOOP;
    expression := format('ARRAY[%s]::%s', array_to_string(v_items, ', '), sqlvec._type_name(array_type));
END
$body$;

-- One comparison `column op value`; appends what it binds to `bound`.
CREATE OR REPLACE FUNCTION sqlvec._filter_comparison(
    rel oid, alias text, column_name text, op text, value jsonb, slot text, INOUT bound text[], OUT condition text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record := sqlvec._column(rel, column_name);
    v_type text := format_type(v_column.type_oid, -1); -- "bpchar", where "character" would cut to one
    -- Types of Postgres itself have the numbers below 10000.
    v_cast text := CASE WHEN v_column.type_oid < 10000::oid THEN 'pg_catalog.' || quote_ident(v_column.type_name) ELSE sqlvec._type_name(v_column.type_oid) END;
    v_left text := format('%I.%I', alias, column_name);
    v_strategy int := CASE op WHEN '$lt' THEN 1 WHEN '$lte' THEN 2 WHEN '$gte' THEN 4 WHEN '$gt' THEN 5 ELSE 3 END;
    v_operator text;
    v_kind text := jsonb_typeof(value);
    v_array record;
BEGIN
    IF op = '$is_null' THEN
        IF v_kind <> 'boolean' THEN
            RAISE EXCEPTION 'filter: "$is_null" of column "%" is true or false, not %', column_name, value
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        condition := format('%s IS %sNULL', v_left, CASE WHEN value = 'true' THEN '' ELSE 'NOT ' END);
        RETURN;
    ELSIF op IN ('$eq', '$ne') AND v_kind = 'null' THEN
        condition := format('%s IS %sNULL', v_left, CASE op WHEN '$eq' THEN '' ELSE 'NOT ' END);
        RETURN;
    ELSIF op = '$contains' THEN
        IF v_column.type_oid <> 'jsonb'::regtype AND (SELECT t.typcategory FROM pg_type AS t WHERE t.oid = v_column.type_oid) <> 'A' THEN
            RAISE EXCEPTION 'filter: "$contains" needs an array or jsonb column; "%" of table % is of type %',
                column_name, sqlvec._qualified(rel), v_type
                USING ERRCODE = 'datatype_mismatch';
        END IF;
        IF v_column.type_oid <> 'jsonb'::regtype AND value @> 'null' THEN
            v_array := sqlvec._array_with_nulls(CASE v_kind WHEN 'array' THEN value ELSE '[null]' END, v_column.type_oid, column_name, slot, bound);
            bound := v_array.bound;
            condition := format('%s OPERATOR(pg_catalog.@>) %s', v_left, v_array.expression);
            RETURN;
        END IF;
        bound := bound || sqlvec._json_text(CASE WHEN v_kind = 'array' OR v_column.type_oid = 'jsonb'::regtype
                                                 THEN value ELSE jsonb_build_array(value) END, v_column.type_oid);
        PERFORM sqlvec._check_value(bound[cardinality(bound)], value, v_column.type_oid, v_type, column_name);
        condition := format('%s OPERATOR(pg_catalog.@>) ((%s)[%s])::%s', v_left, slot, cardinality(bound), v_cast);
        RETURN;
    END IF;

    v_operator := sqlvec._btree_operator(v_column.type_oid, v_strategy);
    IF v_operator IS NULL THEN
        RAISE EXCEPTION 'filter: column "%" of table % is of type %, which has no comparison operators',
            column_name, sqlvec._qualified(rel), v_type
            USING ERRCODE = 'datatype_mismatch', HINT = 'Use where_sql for such a column.';
    ELSIF op = '$in' THEN
        IF (SELECT t.typcategory FROM pg_type AS t WHERE t.oid = v_column.type_oid) = 'A' THEN
            RAISE EXCEPTION 'filter: "$in" is not for array columns such as "%"', column_name
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Use $contains, or $or around equalities.';
        ELSIF v_kind <> 'array' THEN
            RAISE EXCEPTION 'filter: "$in" of column "%" needs a JSON array, not %', column_name, v_kind
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        -- No row equals null, which is left out; that of JSON is a value like any other.
        bound := bound || (SELECT coalesce(array_agg(sqlvec._json_text(e, v_column.type_oid)), '{}')
                           FROM jsonb_array_elements(value) AS e
                           WHERE e <> 'null' OR v_column.type_oid = 'jsonb'::regtype)::text;
        PERFORM sqlvec._check_value(bound[cardinality(bound)], value, v_column.type_oid, v_type || '[]', column_name);
        condition := format('%s %s ANY (((%s)[%s])::%s[])', v_left, v_operator, slot, cardinality(bound), v_cast);
        RETURN;
    ELSIF op = '$between' THEN
        IF v_kind <> 'array' OR jsonb_array_length(value) <> 2 THEN
            RAISE EXCEPTION 'filter: "$between" of column "%" needs a JSON array of two values', column_name
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        bound := bound || sqlvec._json_text(value -> 0, v_column.type_oid) || sqlvec._json_text(value -> 1, v_column.type_oid);
        PERFORM sqlvec._check_value(bound[cardinality(bound) - i], value -> (1 - i), v_column.type_oid, v_type, column_name)
        FROM generate_series(0, 1) AS i;
        condition := format('%1$s %2$s ((%4$s)[%5$s])::%7$s AND %1$s %3$s ((%4$s)[%6$s])::%7$s', v_left,
                            sqlvec._btree_operator(v_column.type_oid, 4), sqlvec._btree_operator(v_column.type_oid, 2),
                            slot, cardinality(bound) - 1, cardinality(bound), v_cast);
        RETURN;
    ELSIF op NOT IN ('$eq', '$ne', '$gt', '$gte', '$lt', '$lte') THEN
        RAISE EXCEPTION 'filter: unknown operator "%" for column "%"', op, column_name
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Operators are: $eq $ne $in $gt $gte $lt $lte $between $is_null $contains, and $and $or $not around conditions.';
    ELSIF v_kind = 'object' AND v_column.type_oid NOT IN ('json'::regtype, 'jsonb'::regtype) THEN
        RAISE EXCEPTION 'filter: column "%" cannot be compared with a JSON object', column_name
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_kind = 'array' AND value @> 'null' AND (SELECT t.typcategory FROM pg_type AS t WHERE t.oid = v_column.type_oid) = 'A' THEN
        v_array := sqlvec._array_with_nulls(value, v_column.type_oid, column_name, slot, bound);
        bound := v_array.bound;
        condition := format('%s%s %s %s', CASE op WHEN '$ne' THEN 'NOT ' ELSE '' END, v_left, v_operator, v_array.expression);
        RETURN;
    END IF;
    bound := bound || CASE WHEN v_kind = 'array' OR v_column.type_oid IN ('json'::regtype, 'jsonb'::regtype)
                           THEN sqlvec._json_text(value, v_column.type_oid) ELSE value #>> '{}' END;
    PERFORM sqlvec._check_value(bound[cardinality(bound)], value, v_column.type_oid, v_type, column_name);
    condition := format('%s%s %s ((%s)[%s])::%s', CASE op WHEN '$ne' THEN 'NOT ' ELSE '' END,
                        v_left, v_operator, slot, cardinality(bound), v_cast);
END
$body$;

-- A whole filter. `slot` is the SQL that names the array of bound values, e.g. $3.
CREATE OR REPLACE FUNCTION sqlvec._filter(
    rel oid, alias text, filter jsonb, slot text, INOUT bound text[], OUT condition text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_keys jsonb;
    v_key text;
    v_value jsonb;
    v_item jsonb;
    v_ops jsonb;
    v_one record;
    v_alternatives text[];
    v_conditions text[] := '{}';
BEGIN
    IF jsonb_typeof(filter) <> 'object' THEN
        RAISE EXCEPTION 'filter: a JSON object is needed, not %', jsonb_typeof(filter)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'E.g. {"tenant_id": 7, "year": {"$gte": 2020}}.';
    END IF;
    -- Keys by jsonpath: a loop over a query would cost more than all that is done in it.
    v_keys := jsonb_path_query_array(filter, '$.keyvalue().key');
    FOR i IN 0 .. jsonb_array_length(v_keys) - 1 LOOP
        v_key := v_keys ->> i;
        v_value := filter -> v_key;
        IF v_key IN ('$and', '$or') THEN
            IF jsonb_typeof(v_value) <> 'array' OR jsonb_array_length(v_value) = 0 THEN
                RAISE EXCEPTION 'filter: "%" needs a JSON array of conditions', v_key USING ERRCODE = 'invalid_parameter_value';
            END IF;
            v_alternatives := '{}';
            FOR v_item IN SELECT * FROM jsonb_array_elements(v_value) LOOP
                v_one := sqlvec._filter(rel, alias, v_item, slot, bound);
                bound := v_one.bound;
                v_alternatives := v_alternatives || v_one.condition;
            END LOOP;
            v_conditions := v_conditions
                || format('(%s)', array_to_string(v_alternatives, CASE v_key WHEN '$or' THEN ' OR ' ELSE ' AND ' END));
        ELSIF v_key = '$not' THEN
            v_one := sqlvec._filter(rel, alias, v_value, slot, bound);
            bound := v_one.bound;
            v_conditions := v_conditions || format('(NOT %s)', v_one.condition);
        ELSIF v_key LIKE '$%' THEN
            RAISE EXCEPTION 'filter: unknown operator "%"', v_key
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Around conditions stand $and, $or and $not.';
        ELSE
            -- {"column": value} is short for {"column": {"$eq": value}}.
            IF jsonb_typeof(v_value) <> 'object' OR NOT jsonb_path_exists(v_value, '$.keyvalue().key ? (@ starts with "$")') THEN
                v_value := jsonb_build_object('$eq', v_value);
            END IF;
            v_ops := jsonb_path_query_array(v_value, '$.keyvalue().key');
            FOR j IN 0 .. jsonb_array_length(v_ops) - 1 LOOP
                v_one := sqlvec._filter_comparison(rel, alias, v_key, v_ops ->> j, v_value -> (v_ops ->> j), slot, bound);
                bound := v_one.bound;
                v_conditions := v_conditions || format('(%s)', v_one.condition);
            END LOOP;
        END IF;
    END LOOP;
    condition := CASE WHEN v_conditions = '{}' THEN 'true' ELSE '(' || array_to_string(v_conditions, ' AND ') || ')' END;
END
$body$;

-- What filter and where_sql ask of a row, with the values of filter for $3. sqlvec._plan_search writes the
-- same out, where a call more would show.
CREATE OR REPLACE FUNCTION sqlvec._condition(
    rel oid, relname name, filter jsonb, where_sql text, OUT bound text[], OUT condition text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    bound := '{}';
    condition := 'true';
    IF filter IS NOT NULL THEN
        SELECT f.bound, f.condition INTO bound, condition FROM sqlvec._filter(rel, relname, filter, '$3', bound) AS f;
    END IF;
    IF where_sql IS NOT NULL THEN
        condition := format(E'%s AND (%s\n)', condition, where_sql);
    END IF;
END
$body$;

-- A compiled filter as explain_* shows it; NULL where nothing is left out.
CREATE OR REPLACE FUNCTION sqlvec._explained_filter(condition text, bound text[]) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN condition <> 'true'
            THEN condition || CASE WHEN cardinality(bound) > 0 THEN ' with $3 = ' || bound::text ELSE '' END END;

-- Corpus statistics of BM25 columns: how many documents, and how many hold each term.
--
-- They behave like the planner's: CALL sqlvec.analyze_bm25 refreshes them, and scores are exact with
-- respect to what it stored. Terms betray what documents say, so that, unlike the catalog, these
-- tables have policies: who may not read a code may not read its statistics.

CREATE TABLE IF NOT EXISTS sqlvec.bm25_corpus (
    id             int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    derived_id     int NOT NULL REFERENCES sqlvec.derived ON DELETE CASCADE,
    tenant         text, -- NULL for the whole table
    documents      bigint NOT NULL,
    average_length float8 NOT NULL,
    terms          bigint NOT NULL,
    collisions     bigint NOT NULL, -- terms that share their dimension with another
    changes        bigint, -- rows inserted and deleted until then, as the server counts
    analyzed_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (derived_id, tenant)
);
COMMENT ON TABLE sqlvec.bm25_corpus IS
    'What sqlvec.analyze_bm25 counted: one row per BM25 column, or per tenant. Read it through sqlvec.bm25_health.';

CREATE TABLE IF NOT EXISTS sqlvec.bm25_frequency (
    corpus_id int NOT NULL REFERENCES sqlvec.bm25_corpus ON DELETE CASCADE,
    lexeme    text COLLATE "C" NOT NULL,
    documents int NOT NULL,
    tiers     int[] NOT NULL, -- documents in which it reaches the tiers 1 to 4
    collides  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (corpus_id, lexeme)
);
COMMENT ON TABLE sqlvec.bm25_frequency IS
    'In how many documents each term stood when sqlvec.analyze_bm25 counted.';

-- Whether the current role sees rows of a tenant, where row security decides that.
CREATE OR REPLACE FUNCTION sqlvec._sees_tenant(derived_id int, tenant text) RETURNS boolean
LANGUAGE plpgsql STABLE COST 10000
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_type pg_catalog.oid;
    v_sees boolean;
BEGIN
    -- This guards a policy: nothing in it may follow the search_path of the role that it is about.
    SELECT d.* INTO v_derived FROM sqlvec._derived AS d WHERE d.id OPERATOR(pg_catalog.=) derived_id;
    IF NOT pg_catalog.row_security_active(v_derived.relation) THEN
        RETURN true;
    END IF;
    SELECT c.type_oid INTO v_type FROM sqlvec._column(v_derived.relation, v_derived.tenant_column) AS c;
    EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM %s AS t WHERE t.%I %s $1::%s)', sqlvec._qualified(v_derived.relation), v_derived.tenant_column,
                              sqlvec._btree_operator(v_type, 3), sqlvec._type_name(v_type))
    INTO v_sees USING tenant;
    RETURN v_sees;
END
$body$;

-- May the current role read the codes of a derived column, or what they are made from? Where name and
-- oid of the table agree, as they do unless it was renamed or restored, that takes look-ups by key alone.
CREATE OR REPLACE FUNCTION sqlvec._reads_code(derived_id int) RETURNS boolean
LANGUAGE sql STABLE COST 10000
BEGIN ATOMIC
    SELECT coalesce(
        (SELECT pg_catalog.has_column_privilege(r.oid, d.target_attnums[1], 'SELECT')
                OR (SELECT bool_and(pg_catalog.has_column_privilege(r.oid, n, 'SELECT')) FROM unnest(d.source_attnums) AS n)
         FROM sqlvec.derived AS d
         JOIN sqlvec.relation AS r ON r.id = d.relation_id
         JOIN pg_catalog.pg_class AS c ON c.oid = r.oid AND c.relname = r.table_name
         JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.target_attnums[1] AND a.attname = d.target_columns[1]
         WHERE d.id = derived_id),
        (SELECT pg_catalog.has_column_privilege(d.relation, d.target_columns[1]::text, 'SELECT')
                OR (SELECT bool_and(pg_catalog.has_column_privilege(d.relation, s::text, 'SELECT')) FROM unnest(d.source_columns) AS s)
         FROM sqlvec._derived AS d WHERE d.id = derived_id AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL),
        false);
END;

-- A function of its own keeps the plans of searches short.
CREATE OR REPLACE FUNCTION sqlvec._reads_corpus(corpus_id int) RETURNS boolean
LANGUAGE sql STABLE COST 10000
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM sqlvec.bm25_corpus AS c WHERE c.id = corpus_id);
END;

-- BM25 columns whose statistics the current role may write.
CREATE OR REPLACE FUNCTION sqlvec._owned_bm25() RETURNS SETOF int
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT d.id FROM sqlvec._derived AS d WHERE d.kind = 'bm25' AND sqlvec._owns(d.relation);
END;

ALTER TABLE sqlvec.bm25_corpus ENABLE ROW LEVEL SECURITY;
ALTER TABLE sqlvec.bm25_frequency ENABLE ROW LEVEL SECURITY;
DO $do$
DECLARE
    v_corpus text := 'derived_id = ANY (ARRAY(SELECT sqlvec._owned_bm25()))';
    v_frequency text := 'corpus_id = ANY (ARRAY(SELECT c.id FROM sqlvec.bm25_corpus AS c WHERE c.derived_id IN (SELECT sqlvec._owned_bm25())))';
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_policy WHERE polrelid = 'sqlvec.bm25_corpus'::regclass) THEN
        CREATE POLICY reading ON sqlvec.bm25_corpus FOR SELECT
            USING (sqlvec._reads_code(derived_id) AND (tenant IS NULL OR sqlvec._sees_tenant(derived_id, tenant)));
        CREATE POLICY reading ON sqlvec.bm25_frequency FOR SELECT USING (sqlvec._reads_corpus(corpus_id));
        EXECUTE format('CREATE POLICY adding ON sqlvec.bm25_corpus FOR INSERT WITH CHECK (%s)', v_corpus);
        EXECUTE format('CREATE POLICY changing ON sqlvec.bm25_corpus FOR UPDATE USING (%s)', v_corpus);
        EXECUTE format('CREATE POLICY removing ON sqlvec.bm25_corpus FOR DELETE USING (%s)', v_corpus);
        EXECUTE format('CREATE POLICY adding ON sqlvec.bm25_frequency FOR INSERT WITH CHECK (%s)', v_frequency);
        EXECUTE format('CREATE POLICY changing ON sqlvec.bm25_frequency FOR UPDATE USING (%s)', v_frequency);
        EXECUTE format('CREATE POLICY removing ON sqlvec.bm25_frequency FOR DELETE USING (%s)', v_frequency);
    END IF;
END
$do$;

-- Rows that came to a table and left it so far, as the server counts; what this session has not
-- reported to it yet included.
CREATE OR REPLACE FUNCTION sqlvec._changes(rel oid) RETURNS bigint
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT sum(pg_catalog.pg_stat_get_tuples_inserted(t.leaf) + pg_catalog.pg_stat_get_xact_tuples_inserted(t.leaf)
               + pg_catalog.pg_stat_get_tuples_deleted(t.leaf) + pg_catalog.pg_stat_get_xact_tuples_deleted(t.leaf))::bigint
    FROM sqlvec._leaves(rel) AS t;
END;

-- Count documents and terms of a BM25 column anew. Answers the mean length of its documents, NULL
-- where there are none.
CREATE OR REPLACE FUNCTION sqlvec._count_bm25(derived sqlvec._derived) RETURNS float8
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_terms text := quote_ident(coalesce(derived.target_columns[2], derived.source_columns[1]));
    v_table text := sqlvec._qualified(derived.relation);
    v_weights real[] := sqlvec._bm25_weights(derived.options);
    v_tenant text := CASE WHEN derived.tenant_column IS NULL THEN 'NULL::text' ELSE format('t.%I::text', derived.tenant_column) END;
    v_length float8;
BEGIN
    IF row_security_active(derived.relation) THEN
        RAISE EXCEPTION 'row security hides rows of table % from role "%"', v_table, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Count as the owner of the table or as a role with BYPASSRLS.';
    END IF;
    DELETE FROM sqlvec.bm25_frequency AS f USING sqlvec.bm25_corpus AS c WHERE c.id = f.corpus_id AND c.derived_id = derived.id;
    DELETE FROM sqlvec.bm25_corpus AS c WHERE c.derived_id = derived.id;
    EXECUTE format(
        'INSERT INTO sqlvec.bm25_corpus (derived_id, tenant, documents, average_length, terms, collisions, changes) '
        'SELECT $1, %1$s, count(*), avg(sqlvec._bm25_length(t.%2$s, $2)), 0, 0, $3 FROM %3$s AS t WHERE t.%2$s IS NOT NULL%4$s GROUP BY 2',
        v_tenant, v_terms, v_table, CASE WHEN derived.tenant_column IS NULL THEN '' ELSE format(' AND t.%I IS NOT NULL', derived.tenant_column) END)
    USING derived.id, v_weights, sqlvec._changes(derived.relation);
    IF derived.tenant_column IS NULL THEN
        -- ts_stat counts in one pass through C.
        EXECUTE format(
            'INSERT INTO sqlvec.bm25_frequency (corpus_id, lexeme, documents, tiers) '
            'SELECT c.id, s.lexeme, s.documents, s.tiers FROM sqlvec.bm25_corpus AS c, '
            '(SELECT ltrim(w.word, $2) AS lexeme, max(w.ndoc) AS documents, sqlvec._tier_counts(left(w.word, 1), w.ndoc) AS tiers '
            ' FROM ts_stat(%L) AS w WHERE w.word <> chr(5) GROUP BY 1) AS s WHERE c.derived_id = $1',
            format('SELECT t.%s FROM %s AS t', v_terms, v_table))
        USING derived.id, chr(1) || chr(2) || chr(3) || chr(4);
    ELSE
        EXECUTE format(
            'INSERT INTO sqlvec.bm25_frequency (corpus_id, lexeme, documents, tiers) '
            'SELECT s.id, ltrim(s.word, $2), max(s.n), sqlvec._tier_counts(left(s.word, 1), s.n) '
            'FROM (SELECT c.id, u.lexeme AS word, count(*)::int AS n '
            '      FROM %3$s AS t JOIN sqlvec.bm25_corpus AS c ON c.derived_id = $1 AND c.tenant = %1$s, unnest(t.%2$s) AS u '
            '      GROUP BY c.id, u.lexeme) AS s WHERE s.word <> chr(5) GROUP BY 1, 2',
            v_tenant, v_terms, v_table)
        USING derived.id, chr(1) || chr(2) || chr(3) || chr(4);
    END IF;
    UPDATE sqlvec.bm25_frequency AS f SET collides = true
    FROM (SELECT n.corpus_id, n.lexeme
          FROM (SELECT f.corpus_id, f.lexeme, count(*) OVER (PARTITION BY f.corpus_id, sqlvec._bm25_dimension(f.lexeme)) AS n
                FROM sqlvec.bm25_frequency AS f JOIN sqlvec.bm25_corpus AS c ON c.id = f.corpus_id AND c.derived_id = derived.id) AS n
          WHERE n.n > 1) AS same
    WHERE f.corpus_id = same.corpus_id AND f.lexeme = same.lexeme;
    UPDATE sqlvec.bm25_corpus AS c
    SET terms = f.terms, collisions = f.collisions
    FROM (SELECT f.corpus_id, count(*) AS terms, count(*) FILTER (WHERE f.collides) AS collisions
          FROM sqlvec.bm25_frequency AS f JOIN sqlvec.bm25_corpus AS o ON o.id = f.corpus_id AND o.derived_id = derived.id
          GROUP BY f.corpus_id) AS f
    WHERE f.corpus_id = c.id;
    SELECT sum(c.documents * c.average_length) / nullif(sum(c.documents), 0) INTO v_length
    FROM sqlvec.bm25_corpus AS c WHERE c.derived_id = derived.id;
    RETURN nullif(v_length, 0);
END
$body$;

-- Tier counts of one term: state of the aggregate below.
CREATE OR REPLACE FUNCTION sqlvec._tier_counted(counts int[], mark text, documents int) RETURNS int[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN mark >= ' ' COLLATE "C" THEN counts
            ELSE counts[:ascii(mark) - 1] || documents || counts[ascii(mark) + 1:] END;
DO $do$
BEGIN
    IF pg_catalog.to_regprocedure('sqlvec._tier_counts(text, int)') IS NULL THEN
        CREATE AGGREGATE sqlvec._tier_counts(mark text, documents int) (
            SFUNC = sqlvec._tier_counted, STYPE = int[], INITCOND = '{0,0,0,0}', PARALLEL = SAFE);
    END IF;
END
$do$;

-- Give a BM25 column the mean length of its documents as they are now. Its weights are suspect from
-- here on, and searches compute scores from the terms, until a backfill has compared them.
CREATE OR REPLACE FUNCTION sqlvec._reencode_bm25(derived sqlvec._derived, average_length float8) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_encoder text;
BEGIN
    -- Transactions that write with the old trigger must have ended before rows are compared.
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', sqlvec._qualified(derived.relation));
    -- Encoders never change: this is another one.
    v_encoder := sqlvec._own_encoder_name(derived.relation, derived.target_column);
    INSERT INTO sqlvec.encoder (name, kind, dimensions, code_type, code_dimensions, options, owner)
    SELECT v_encoder, e.kind, e.dimensions, e.code_type, e.code_dimensions,
           e.options || jsonb_build_object('average_length', average_length), e.owner
    FROM sqlvec.encoder AS e WHERE e.name = derived.encoder;
    UPDATE sqlvec.derived AS d SET encoder = v_encoder, suspect = true, reweighed = derived.maintained OR derived.reweighed WHERE d.id = derived.id;
    DELETE FROM sqlvec.encoder AS e WHERE e.name = derived.encoder;
    PERFORM sqlvec._write_maintain(derived.relation_id);
END
$body$;

-- Comparisons of analyze_bm25, which has no search_path of its own: it commits.
CREATE OR REPLACE FUNCTION sqlvec._check_drift(drift real) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF drift IS NULL OR NOT drift BETWEEN 0 AND 1000 THEN
        RAISE EXCEPTION 'drift is a fraction, 0 or more, not %', drift USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._has_drifted(options jsonb, average_length float8, drift real) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN abs(average_length / (options ->> 'average_length')::float8 - 1) > drift;

CREATE OR REPLACE FUNCTION sqlvec._begin_analyze(rel regclass, drift real, OUT derived_ids int[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM sqlvec._check_drift(drift);
    PERFORM sqlvec._require_owner(rel);
    derived_ids := ARRAY(SELECT d.id FROM sqlvec._derived_of(rel) AS d
                         WHERE d.kind = 'bm25' AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL ORDER BY d.id);
    IF cardinality(derived_ids) = 0 THEN
        RAISE EXCEPTION 'table % has no BM25 column', rel
            USING ERRCODE = 'undefined_column', HINT = 'Declare one with CALL sqlvec.add_bm25(...).';
    END IF;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.analyze_bm25(rel regclass, drift real = 0.1) LANGUAGE plpgsql
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_id int;
    v_length pg_catalog.float8;
BEGIN
    FOREACH v_id IN ARRAY sqlvec._begin_analyze(rel, drift) LOOP
        -- A partitioned table before its partitions, as what changes it locks them.
        PERFORM sqlvec._hold_to_read(coalesce(pg_catalog.pg_partition_root(rel), rel)::pg_catalog.oid);
        -- Another session may be at it, and change the encoder meanwhile.
        PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('sqlvec.analyze_bm25'), v_id);
        v_derived := sqlvec._derived_now(v_id, rel);
        v_length := sqlvec._count_bm25(v_derived);
        IF sqlvec._has_drifted(v_derived.options, v_length, drift) THEN
            PERFORM sqlvec._reencode_bm25(v_derived, v_length);
            CALL sqlvec.backfill(v_derived.relation, v_derived.target_column);
        END IF;
    END LOOP;
END
$body$;

COMMENT ON PROCEDURE sqlvec.analyze_bm25(regclass, real) IS
    'Refresh the statistics of every BM25 column of a table: documents, their mean length, frequencies of terms. Where the mean length has moved by more than `drift` (a fraction), weights are encoded anew in committed batches, which cannot run inside a transaction block.';

CREATE OR REPLACE VIEW sqlvec.bm25_health WITH (security_invoker = true) AS
SELECT s.relation,
       s.target_column,
       s.tenant,
       s.documents,
       s.average_length AS avgdl,
       s.terms,
       s.collisions,
       s.analyzed_at,
       s.changes_since,
       s.analyzed_at IS NULL OR s.suspect OR s.changes_since > 50 + 0.1 * s.total AS stale,
       CASE WHEN s.suspect THEN format('weights are being encoded anew; CALL sqlvec.backfill(%L, %L);', s.relation, s.target_column)
            WHEN s.analyzed_at IS NULL THEN format('never counted; CALL sqlvec.analyze_bm25(%L);', s.relation)
            WHEN s.changes_since > 50 + 0.1 * s.total THEN format('many rows have changed; CALL sqlvec.analyze_bm25(%L);', s.relation)
       END AS advice,
       s.encoded_avgdl
FROM (SELECT d.relation::regclass AS relation, coalesce(d.target_column, d.known_target) AS target_column, d.suspect,
             c.tenant, c.documents, c.average_length, c.terms, c.collisions, c.analyzed_at,
             -- The server counts from zero again after a crash.
             n.changes - CASE WHEN n.changes >= c.changes THEN c.changes ELSE 0 END AS changes_since,
             sum(c.documents) OVER (PARTITION BY d.id) AS total, (d.options ->> 'average_length')::float8 AS encoded_avgdl
      FROM sqlvec._derived AS d
      LEFT JOIN sqlvec.bm25_corpus AS c ON c.derived_id = d.id
      CROSS JOIN LATERAL (SELECT sqlvec._changes(d.relation) AS changes) AS n
      WHERE d.kind = 'bm25') AS s;

COMMENT ON VIEW sqlvec.bm25_health IS
    'Statistics of each BM25 column (and tenant): documents, their mean length, terms, terms that share a dimension, when they were counted, rows inserted and deleted since, and whether to count again; encoded_avgdl is the mean length that the weights are made with.';

-- sqlvec.add_bm25: declare a text column searchable by BM25.

-- The tsvector of a text. Where it would be too long for Postgres, what comes after the first part
-- keeps its words but loses their positions, and words after about 600 kB of different ones are lost.
CREATE OR REPLACE FUNCTION sqlvec._bm25_long_tsvector(config regconfig, body text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $body$
DECLARE
    v_terms tsvector := '';
    v_piece text;
    v_start int := 1;
BEGIN
    BEGIN
        RETURN to_tsvector(config, body);
    EXCEPTION WHEN program_limit_exceeded THEN
        NULL;
    END;
    WHILE v_start <= length(body) AND pg_column_size(v_terms) < 600000 LOOP
        v_piece := substr(body, v_start, 50000);
        IF v_start + 50000 <= length(body) AND v_piece ~ '\s' THEN
            v_piece := regexp_replace(v_piece, '\S*$', ''); -- up to the last space
        END IF;
        v_terms := v_terms || CASE WHEN v_start = 1 THEN to_tsvector(config, v_piece) ELSE strip(to_tsvector(config, v_piece)) END;
        v_start := v_start + length(v_piece);
    END LOOP;
    RETURN v_terms;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._bm25_tsvector(config regconfig, body text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN octet_length(body) <= 100000 THEN to_tsvector(config, body) ELSE sqlvec._bm25_long_tsvector(config, body) END;

-- The tsvector of several texts, each under its label. NULL where all of them are.
CREATE OR REPLACE FUNCTION sqlvec._bm25_fields(config regconfig, labels "char"[], bodies text[]) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_terms tsvector;
    v_field tsvector;
BEGIN
    FOR n IN 1 .. cardinality(bodies) LOOP
        CONTINUE WHEN bodies[n] IS NULL;
        v_field := setweight(sqlvec._bm25_tsvector(config, bodies[n]), labels[n]);
        v_terms := CASE WHEN v_terms IS NULL THEN v_field
                        WHEN pg_column_size(v_terms) + pg_column_size(v_field) < 900000 THEN v_terms || v_field
                        ELSE v_terms END;
    END LOOP;
    RETURN v_terms;
END
$body$;

-- The tsvector expression of an encoder over the expressions of its sources. Without its configuration
-- there are no codes, but writes go on.
CREATE OR REPLACE FUNCTION sqlvec._bm25_tsvector_expression(options jsonb, arguments text[]) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN (options ->> 'tsvector')::boolean THEN arguments[1]
                WHEN c.name IS NULL THEN 'NULL::pg_catalog.tsvector'
                WHEN options -> 'labels' = 'null'
                THEN format('sqlvec._bm25_tsvector(%L::pg_catalog.regconfig, (%s)::pg_catalog.text)', c.name, arguments[1])
                ELSE format('sqlvec._bm25_fields(%L::pg_catalog.regconfig, %L, ARRAY[%s])', c.name,
                            (SELECT array_agg(l) FROM jsonb_array_elements_text(options -> 'labels') AS l),
                            (SELECT string_agg(format('(%s)::pg_catalog.text', a), ', ') FROM unnest(arguments) AS a)) END
    FROM (SELECT sqlvec._bm25_config(options, true) AS name) AS c;
END;

-- Weights of the labels D, C, B, A as an SQL constant.
CREATE OR REPLACE FUNCTION sqlvec._bm25_weights(options jsonb) RETURNS real[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN options -> 'weights' <> 'null'
            THEN (SELECT array_agg(w::real) FROM jsonb_array_elements_text(options -> 'weights') AS w) END;

-- k1, b, mean length and weights as SQL constants. Rows of the catalog belong to whoever owns the table:
-- whatever they say, this is four numbers.
CREATE OR REPLACE FUNCTION sqlvec._bm25_constants(options jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('%s, %s, %s, %s', (options ->> 'k1')::numeric, (options ->> 'b')::numeric, (options ->> 'average_length')::numeric,
              coalesce(quote_literal(sqlvec._bm25_weights(options)::numeric[]::text), 'NULL'));

CREATE OR REPLACE FUNCTION sqlvec._bm25_expression(options jsonb, arguments text[]) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT format(CASE WHEN (options ->> 'tsvector')::boolean THEN '(sqlvec._bm25_document(%s, %s)).code'
                       ELSE 'sqlvec._bm25_document(%s, %s)' END,
                  sqlvec._bm25_tsvector_expression(options, arguments), sqlvec._bm25_constants(options));
END;

-- Labels and weights of fields: equal weights share a label, the heaviest gets A. An error for fields
-- that no four labels can tell apart.
CREATE OR REPLACE FUNCTION sqlvec._bm25_labels(fields jsonb, columns text[], OUT labels text[], OUT weights real[])
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_different real[];
BEGIN
    v_different := ARRAY(SELECT DISTINCT (fields ->> c)::real FROM unnest(columns) AS c ORDER BY 1 DESC);
    IF cardinality(v_different) > 4 THEN
        RAISE EXCEPTION 'fields have % different weights; a tsvector tells four apart', cardinality(v_different)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give some fields the same weight.';
    END IF;
    labels := ARRAY(SELECT chr(64 + array_position(v_different, (fields ->> c.name)::real))
                    FROM unnest(columns) WITH ORDINALITY AS c (name, position) ORDER BY c.position);
    weights := ARRAY(SELECT coalesce(v_different[n], 1) FROM generate_series(4, 1, -1) AS n);
END
$body$;

-- An error for anything but an object of positive numbers.
CREATE OR REPLACE FUNCTION sqlvec._check_fields(fields jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_name text;
    v_weight jsonb;
BEGIN
    IF jsonb_typeof(fields) <> 'object' OR fields = '{}' THEN
        RAISE EXCEPTION 'fields is a JSON object of columns and their weights, not %', fields
            USING ERRCODE = 'invalid_parameter_value', HINT = 'E.g. {"title": 2.0, "body": 1.0}.';
    END IF;
    FOR v_name, v_weight IN SELECT * FROM jsonb_each(fields) LOOP
        IF jsonb_typeof(v_weight) <> 'number' OR v_weight::text::numeric NOT BETWEEN 0.001 AND 1000 THEN
            RAISE EXCEPTION 'the weight of field "%" is a number from 0.001 to 1000, not %', v_name, v_weight
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
END
$body$;

-- Mean length of documents over a sample of at most about 1,000 rows; 100 terms where there are none.
CREATE OR REPLACE FUNCTION sqlvec._bm25_sample_length(rel oid, options jsonb, sources name[]) RETURNS float8
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_length float8;
    v_pages float8 := (SELECT sum(pg_relation_size(t.leaf)) FROM sqlvec._leaves(rel) AS t) / current_setting('block_size')::int;
BEGIN
    EXECUTE format('SELECT avg(nullif(sqlvec._bm25_length(%s, %L), 0)) FROM (SELECT t.* FROM %s AS t TABLESAMPLE SYSTEM (%s) LIMIT 1000) AS t',
                   sqlvec._bm25_tsvector_expression(options, ARRAY(SELECT format('t.%I', s) FROM unnest(sources) AS s)),
                   sqlvec._bm25_weights(options), sqlvec._qualified(rel), least(100, 20000 / greatest(v_pages, 1)))
    INTO v_length;
    RETURN coalesce(v_length, 100);
END
$body$;

-- Whether a valid GIN index stands on a column.
CREATE OR REPLACE FUNCTION sqlvec._has_gin(rel oid, column_name name) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'gin'
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = rel AND i.indisvalid AND i.indpred IS NULL AND a.attname = column_name);
END;

-- Every search reads the pending entries of the index, and every insert without them takes several
-- times as long: a short list of them.
CREATE OR REPLACE FUNCTION sqlvec._gin_index_sql(rel oid, column_name name, online boolean) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT format('CREATE INDEX %s%I ON %s USING gin (%I) WITH (gin_pending_list_limit = 512)',
                  CASE WHEN online AND c.relkind <> 'p' THEN 'CONCURRENTLY ' ELSE '' END,
                  sqlvec._index_name(rel, format('ix_%s_%s', c.relname, column_name)), sqlvec._qualified(rel), column_name)
    FROM pg_catalog.pg_class AS c WHERE c.oid = rel;
END;

CREATE OR REPLACE PROCEDURE sqlvec.add_bm25(
    rel regclass, column_name text, config regconfig = 'pg_catalog.english', k1 real = 1.2, b real = 0.75, target text = NULL,
    fields jsonb = NULL, tenant text = NULL
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_column record;
    v_column_type oid;
    v_sources text[];
    v_targets text[];
    v_labels record;
    v_options jsonb;
    v_encoder text;
    v_terms text;
    v_filled boolean;
BEGIN
    IF rel IS NULL OR config IS NULL OR k1 IS NULL OR b IS NULL THEN
        RAISE EXCEPTION 'add_bm25 needs a table, a text search configuration, k1 and b' USING ERRCODE = 'null_value_not_allowed';
    ELSIF NOT k1 BETWEEN 0 AND 100 THEN
        RAISE EXCEPTION 'k1 is a number from 0 to 100, not %', k1 USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT b BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION 'b is a number from 0 to 1, not %', b USING ERRCODE = 'invalid_parameter_value';
    ELSIF column_name IS NULL AND fields IS NULL THEN
        RAISE EXCEPTION 'add_bm25 needs a column' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Name it, or several with their weights: fields => ''{"title": 2.0, "body": 1.0}''.';
    END IF;
    PERFORM sqlvec._require_table(rel);
    IF fields IS NOT NULL THEN
        PERFORM sqlvec._check_fields(fields);
    END IF;
    -- In the order of the table's columns; _column refuses one that is not there.
    v_sources := CASE WHEN column_name IS NULL THEN ARRAY(SELECT f FROM jsonb_object_keys(fields) AS f ORDER BY (sqlvec._column(rel, f)).attnum)
                      ELSE ARRAY[column_name] END;
    FOR n IN 1 .. cardinality(v_sources) LOOP
        v_column := sqlvec._column(rel, v_sources[n]);
        IF NOT (v_column.type_name = 'tsvector' AND cardinality(v_sources) = 1)
           AND (SELECT t.typcategory FROM pg_type AS t WHERE t.oid = v_column.type_oid) <> 'S' THEN
            RAISE EXCEPTION 'column "%" of table % is of type %, not %', v_sources[n], rel, format_type(v_column.type_oid, NULL),
                CASE WHEN cardinality(v_sources) = 1 THEN 'text or tsvector' ELSE 'text' END
                USING ERRCODE = 'datatype_mismatch';
        END IF;
    END LOOP;
    IF v_column.type_name = 'tsvector' AND fields IS NOT NULL THEN
        IF column_name IS NULL OR EXISTS (SELECT FROM jsonb_object_keys(fields) AS f WHERE f NOT IN ('A', 'B', 'C', 'D')) THEN
            RAISE EXCEPTION 'fields of tsvector column "%" are its labels A, B, C and D, not %', v_sources[1], fields
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Name the column itself as column_name.';
        END IF;
    ELSIF column_name IS NOT NULL AND fields IS NOT NULL THEN
        RAISE EXCEPTION 'give a column or fields, not both' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'A tsvector column takes both: its fields are the weights of its labels.';
    END IF;
    IF tenant IS NOT NULL THEN
        v_column_type := (sqlvec._column(rel, tenant)).type_oid;
        IF sqlvec._btree_operator(v_column_type, 3) IS NULL THEN
            RAISE EXCEPTION 'column "%" of table % is of type %, whose values cannot be compared', tenant, rel, format_type(v_column_type, NULL)
                USING ERRCODE = 'datatype_mismatch';
        END IF;
    END IF;

    v_options := jsonb_build_object(
        'config', (SELECT format('%I.%I', n.nspname, c.cfgname) FROM pg_ts_config AS c JOIN pg_namespace AS n ON n.oid = c.cfgnamespace
                   WHERE c.oid = config),
        'config_oid', config::oid, 'k1', k1, 'b', b, 'tsvector', v_column.type_name = 'tsvector', 'labels', NULL, 'weights', NULL);
    IF v_options ->> 'config' IS NULL THEN
        RAISE EXCEPTION 'text search configuration % does not exist', config USING ERRCODE = 'undefined_object';
    END IF;
    IF column_name IS NULL THEN
        v_labels := sqlvec._bm25_labels(fields, v_sources);
        v_options := v_options || jsonb_build_object('labels', v_labels.labels, 'weights', v_labels.weights);
    ELSIF fields IS NOT NULL THEN
        v_options := v_options || jsonb_build_object('weights', ARRAY(SELECT coalesce((fields ->> l)::real, 1) FROM unnest('{D,C,B,A}'::text[]) AS l));
    END IF;

    target := coalesce(target, sqlvec._name(array_to_string(v_sources, '_') || '_bm25'));
    v_targets := CASE WHEN v_column.type_name = 'tsvector' THEN ARRAY[target] ELSE ARRAY[target, sqlvec._name(target || '_tsv')] END;
    PERFORM sqlvec._claim_targets(rel, v_sources, v_targets);
    v_options := v_options || jsonb_build_object('average_length', sqlvec._bm25_sample_length(rel, v_options, v_sources));
    v_encoder := sqlvec._own_encoder_name(rel, target);
    INSERT INTO sqlvec.encoder (name, kind, dimensions, code_type, code_dimensions, options, owner)
    VALUES (v_encoder, 'bm25', NULL, 'sparsevec', 1000000000, v_options, sqlvec._owner(rel));

    v_filled := sqlvec._add_target(rel, target, v_encoder, 'sparsevec', 1000000000);
    IF cardinality(v_targets) = 2 THEN
        v_filled := sqlvec._add_target(rel, v_targets[2], v_encoder, 'tsvector', NULL) OR v_filled;
    END IF;
    PERFORM sqlvec._declare(rel, v_sources, v_targets, v_encoder, true, 'inner_product', v_filled, tenant);

    v_terms := CASE cardinality(v_targets) WHEN 2 THEN v_targets[2] ELSE v_sources[1] END;
    IF NOT sqlvec._has_gin(rel, v_terms)
       AND (SELECT sum(pg_relation_size(t.leaf)) FROM sqlvec._leaves(rel) AS t) <= 32 * 1024 * 1024 THEN
        EXECUTE sqlvec._gin_index_sql(rel, v_terms, false);
    END IF;
END
$body$;

COMMENT ON PROCEDURE sqlvec.add_bm25(regclass, text, regconfig, real, real, text, jsonb, text) IS
    'Declare text column `column_name`, or several with their weights in `fields`, searchable by BM25: adds sparsevec column `target` with the term weights and tsvector column `target`_tsv that finds them, kept by the trigger of the table; a small table gets its GIN index at once. A tsvector column of the application gets the weights only. tenant names a column whose values have statistics of their own. Then: CALL sqlvec.backfill, the index, CALL sqlvec.analyze_bm25.';

-- Approximate indexes on a vector column: which there are, and which could be built.

-- Codes that are one immutable pgvector expression need no column. An index on one is known by the
-- text that pg_get_indexdef prints under search_path pg_catalog; for Matryoshka prefixes the index
-- itself tells the number of dimensions.
CREATE OR REPLACE FUNCTION sqlvec._expression_ways(rel oid, column_name text) RETURNS TABLE (
    way text, kind text, code_type text, dimensions int, expression text, query_expression text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record := sqlvec._column(rel, column_name);
    v_schema name := sqlvec._vector_schema();
BEGIN
    IF v_source.type_name NOT IN ('vector', 'halfvec') OR v_source.dimensions IS NULL THEN
        RETURN;
    END IF;
    way := 'expression:binary'; kind := 'binary'; code_type := 'bit'; dimensions := v_source.dimensions;
    expression := format('((%I.binary_quantize(%I))::bit(%s))', v_schema, column_name, dimensions);
    query_expression := 'sqlvec._binary(sqlvec._as_vector($2))';
    RETURN NEXT;
    IF v_source.type_name = 'vector' THEN
        way := 'expression:halfvec'; kind := 'halfvec'; code_type := 'halfvec';
        expression := format('((%I)::%I.halfvec(%s))', column_name, v_schema, dimensions);
        query_expression := 'sqlvec._halfvec($2)';
        RETURN NEXT;
        FOR dimensions IN
            SELECT DISTINCT a.atttypmod FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indexrelid AND a.attnum = 1
            WHERE i.indrelid = rel AND i.indexprs IS NOT NULL AND a.atttypmod BETWEEN 1 AND v_source.dimensions - 1
            ORDER BY a.atttypmod
        LOOP
            way := format('expression:truncate(%s)', dimensions); kind := 'truncate';
            expression := format('((%1$I.l2_normalize(%1$I.subvector(%2$I, 1, %3$s)))::%1$I.halfvec(%3$s))',
                                 v_schema, column_name, dimensions);
            query_expression := format('sqlvec._truncate_halfvec(sqlvec._as_vector($2), %s)', dimensions);
            RETURN NEXT;
        END LOOP;
    END IF;
END
$body$;

-- Derived columns of one source that their trigger keeps, by present names. The search's short cut
-- through what sqlvec._derived answers for all tables: it starts from the trigger. Every search asks
-- this, so what is seldom needed is asked of functions: a subquery would be set up each time.
CREATE OR REPLACE FUNCTION sqlvec._maintained_of(rel oid, source name, source_attnum smallint, source_typmod int) RETURNS TABLE (
    target_column name, target_attnum smallint, encoder text, kind text, levels int, code_type text, metric text
) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT t.attname, t.attnum, d.encoder, e.kind, coalesce((e.options ->> 'levels')::int, 1), e.code_type, d.metric
    FROM sqlvec.relation AS r
    JOIN sqlvec.derived AS d ON d.relation_id = r.id
    JOIN sqlvec.encoder AS e ON e.name = d.encoder
    -- Column numbers hold for the table the catalog knows, names for a partition or a restored copy.
    JOIN pg_catalog.pg_attribute AS t ON t.attrelid = rel AND NOT t.attisdropped
         AND t.attnum = CASE WHEN r.oid = rel THEN d.target_attnums[1] ELSE (sqlvec._attnums(rel, d.target_columns[1:1]))[1] END
    WHERE r.id = ANY (ARRAY(SELECT i.id FROM sqlvec._relation_ids(rel) AS i WHERE i.fires = 'A')) AND NOT d.suspect
      AND CASE WHEN r.oid = rel THEN source_attnum = d.source_attnums[1] ELSE source = d.source_columns[1] END
      AND source_typmod IN (-1, e.dimensions) AND t.atttypmod IN (-1, e.code_dimensions)
      -- The trigger of the table that the catalog row names, or of a restored one: of a table that is gone,
      -- privileges are NULL.
      AND (r.oid = coalesce(pg_catalog.pg_partition_root(rel), rel) OR pg_catalog.has_table_privilege(r.oid, 'SELECT') IS NULL)
      -- No other column has taken the name of a renamed one: the trigger writes by name.
      AND (source = d.source_columns[1] OR NOT sqlvec._has_column(rel, d.source_columns[1]))
      AND (t.attname = d.target_columns[1] OR NOT sqlvec._has_column(rel, d.target_columns[1]))
      -- The caller may read the codes.
      AND pg_catalog.has_column_privilege(rel, t.attnum, 'SELECT');
END;

CREATE OR REPLACE FUNCTION sqlvec._maintained_of(rel oid, source name) RETURNS TABLE (
    target_column name, target_attnum smallint, encoder text, kind text, levels int, code_type text, metric text
) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT m.* FROM pg_catalog.pg_attribute AS s CROSS JOIN LATERAL sqlvec._maintained_of(rel, source, s.attnum, s.atttypmod) AS m
    WHERE s.attrelid = rel AND s.attname = source;
END;

-- The metric of an operator class, NULL for one that is not pgvector's.
CREATE OR REPLACE FUNCTION sqlvec._opclass_metric(opclass name) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE split_part(opclass, '_', 2) WHEN 'l2' THEN 'l2' WHEN 'ip' THEN 'inner_product' WHEN 'cosine' THEN 'cosine'
                                        WHEN 'l1' THEN 'l1' WHEN 'hamming' THEN 'hamming' WHEN 'jaccard' THEN 'jaccard' END;

-- Valid approximate indexes of a table; attnum is 0 for an expression.
CREATE OR REPLACE FUNCTION sqlvec._ann_indexes(rel oid) RETURNS TABLE (
    index_oid oid, index_name name, partial boolean, opclass name, attnum smallint
) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT i.indexrelid, c.relname, i.indpred IS NOT NULL, o.opcname, i.indkey[0]
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[0]
    JOIN pg_catalog.pg_am AS m ON m.oid = o.opcmethod AND m.amname IN ('hnsw', 'ivfflat')
    -- What Postgres itself brings has the numbers below 12000, so most indexes need no further look. Not
    -- 16384: an extension made in single-user mode, for an image, has numbers in between.
    WHERE i.indrelid = rel AND i.indclass[0] >= 12000 AND i.indisvalid AND i.indislive;
END;

-- One way to find candidates for a column.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._way') IS NULL THEN
        CREATE TYPE sqlvec._way AS (
            way              text,  -- 'source', the name of a derived column, 'expression:' and a kind
            kind             text,  -- 'source' or the kind of encoder
            levels           int,   -- of a binary code
            rank             int,   -- codes in a column before expressions before the column itself
            metric           text,  -- of the search it serves; NULL where any will do
            index_name       name,  -- NULL for a derived column without an index
            partial          boolean,
            column_used      name,  -- NULL for an expression
            encoder          text,  -- of the column
            expression       text,
            query_expression text,  -- the code of the query $2; NULL for the query itself or what the encoder makes of it
            code_metric      text   -- of the index
        );
    END IF;
END
$do$;

-- Ways that have a valid HNSW or IVFFlat index, and derived columns that have none, in order of
-- preference. Every search asks this, so it takes one pass over the few indexes of the table, and has
-- catalogs read by key even where they are small enough that the planner would read them whole.
CREATE OR REPLACE FUNCTION sqlvec._ways(rel oid, column_name text, attnum smallint, typmod int) RETURNS sqlvec._way[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off
AS $body$
DECLARE
    v_row record;
    v_metric text;
    v_ways sqlvec._way[] := '{}';
BEGIN
    FOR v_row IN
        SELECT i.index_oid, i.index_name, i.partial, i.opclass, i.attnum,
               d.target_column, d.encoder, d.kind, d.levels, d.code_type, d.metric
        FROM (SELECT m.* FROM sqlvec._maintained_of(rel, column_name, _ways.attnum, typmod) AS m
              WHERE m.kind <> 'hubness') AS d -- which is searched for itself, with queries of its own
        FULL JOIN sqlvec._ann_indexes(rel) AS i ON i.attnum = d.target_attnum
        ORDER BY d.target_column IS NULL, i.attnum > 0, i.index_name
    LOOP
        IF v_row.target_column IS NOT NULL THEN
            v_metric := CASE v_row.code_type WHEN 'bit' THEN 'hamming' ELSE v_row.metric END;
            v_ways := v_ways || ROW(v_row.target_column, v_row.kind, v_row.levels, 1, v_row.metric,
                CASE WHEN v_row.opclass = sqlvec._opclass(v_row.code_type, v_metric) THEN v_row.index_name END,
                v_row.partial, v_row.target_column, v_row.encoder, NULL, NULL, v_metric)::sqlvec._way;
        ELSIF v_row.attnum = _ways.attnum THEN
            v_metric := sqlvec._opclass_metric(v_row.opclass);
            v_ways := v_ways || ROW('source', 'source', 1, 3, v_metric, v_row.index_name, v_row.partial, column_name, NULL, NULL, NULL, v_metric)::sqlvec._way;
        ELSIF v_row.attnum = 0 THEN
            v_metric := sqlvec._opclass_metric(v_row.opclass);
            v_ways := v_ways || ARRAY(
                SELECT ROW(w.way, w.kind, 1, 2, CASE WHEN w.kind <> 'binary' THEN v_metric END, v_row.index_name, v_row.partial,
                           NULL, NULL, w.expression, w.query_expression, v_metric)::sqlvec._way
                FROM sqlvec._expression_ways(rel, column_name) AS w
                WHERE w.expression = pg_get_indexdef(v_row.index_oid, 1, false));
        END IF;
    END LOOP;
    RETURN v_ways;
END
$body$;

-- The metric a search uses when it names none: the one that derived columns of the column were
-- declared for, else that of its indexes, where there is just one; cosine (hamming for bits) where
-- nothing says otherwise.
CREATE OR REPLACE FUNCTION sqlvec._default_metric(rel oid, column_name text, type_name text, ways sqlvec._way[]) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_way sqlvec._way;
    v_rank int;
    v_metric text;
    v_metrics text[] := '{}';
BEGIN
    FOREACH v_way IN ARRAY ways LOOP
        CONTINUE WHEN v_way.metric IS NULL OR v_way.metric = ANY (v_metrics) OR (v_rank = 1 AND v_way.rank > 1);
        v_rank := v_way.rank;
        v_metrics := v_metrics || v_way.metric;
    END LOOP;
    IF cardinality(v_metrics) > 1 THEN
        RAISE EXCEPTION 'column "%" of table % is indexed for several metrics: %',
            column_name, sqlvec._qualified(rel), array_to_string(v_metrics, ', ')
            USING ERRCODE = 'ambiguous_parameter', HINT = 'Name one: metric => ''cosine''.';
    END IF;
    IF v_metrics <> '{}' THEN
        RETURN v_metrics[1];
    ELSIF type_name = 'bit' THEN
        RETURN 'hamming';
    ELSIF type_name IN ('vector', 'halfvec') AND EXISTS (SELECT FROM sqlvec.encoder AS e WHERE e.kind IN ('fde', 'hubness')) THEN
        -- The norm of these codes says something.
        v_metric := (SELECT d.metric FROM sqlvec._derived_of(rel) AS d WHERE d.kind IN ('fde', 'hubness') AND d.target_column = column_name LIMIT 1);
    END IF;
    RETURN coalesce(v_metric, 'cosine');
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.plan_index(rel regclass, column_name text, metric text = NULL) RETURNS TABLE (
    name text, method text, opclass text, statement text, note text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record := sqlvec._column(rel, column_name);
    v_ways sqlvec._way[] := sqlvec._ways(rel, column_name, v_source.attnum, coalesce(v_source.dimensions, -1));
    v_metric text;
    v_partitioned boolean := (SELECT c.relkind = 'p' FROM pg_class AS c WHERE c.oid = rel);
    v_way record;
    v_index text;
    v_limit int;
BEGIN
    FOR v_way IN
        SELECT d.target_column FROM sqlvec._derived_of(rel) AS d
        WHERE column_name = ANY (d.source_columns || d.target_columns) AND NOT sqlvec._has_unfinished_index(rel, d.target_column, d.encoded_columns)
    LOOP
        name := 'unfinished'; method := 'btree'; opclass := NULL;
        statement := sqlvec._unfinished_index_sql(rel, v_way.target_column, true);
        note := 'lets a search see at once that every row has its code';
        RETURN NEXT;
    END LOOP;
    FOR v_way IN
        SELECT coalesce(d.target_columns[2], d.source_columns[1]) AS terms FROM sqlvec._derived_of(rel) AS d
        WHERE d.kind = 'bm25' AND d.maintained AND column_name = ANY (d.source_columns || d.target_columns)
    LOOP
        name := v_way.terms; method := 'gin'; opclass := 'tsvector_ops';
        statement := sqlvec._gin_index_sql(rel, v_way.terms, true);
        note := CASE WHEN sqlvec._has_gin(rel, v_way.terms) THEN 'is there already'
                     WHEN v_partitioned THEN 'Postgres refuses CONCURRENTLY on a partitioned table; "sqlvec index build" builds partition by partition' END;
        RETURN NEXT;
    END LOOP;
    IF method = 'gin' THEN
        RETURN;
    ELSIF v_source.type_name NOT IN ('vector', 'halfvec', '_vector', '_halfvec', 'bit', 'sparsevec') THEN
        IF EXISTS (SELECT FROM sqlvec._derived_of(rel) AS d WHERE column_name = ANY (d.source_columns || d.target_columns)) THEN
            RETURN;
        END IF;
        RAISE EXCEPTION 'column "%" of table % is of type %, not vector, halfvec, sparsevec or bit(n)',
            column_name, sqlvec._qualified(rel), format_type(v_source.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch',
                  HINT = 'A column of texts is indexed after sqlvec.add_bm25, one of multi-vectors after sqlvec.add_fde.';
    END IF;
    v_metric := sqlvec._checked_metric(
        coalesce(metric, sqlvec._default_metric(rel, column_name, v_source.type_name, v_ways)), v_source.type_name);
    FOR v_way IN
        SELECT 'source' AS way, quote_ident(column_name) AS expression, column_name AS stem,
               v_source.type_name::text AS code_type, v_source.dimensions, v_source.dimensions AS source_dimensions
        WHERE v_source.type_name NOT IN ('_vector', '_halfvec')
        UNION ALL
        SELECT d.target_column, quote_ident(d.target_column), d.target_column, d.code_type, d.code_dimensions, d.dimensions
        FROM sqlvec._derived_of(rel) AS d
        WHERE d.source_column = plan_index.column_name AND d.kind NOT IN ('pool', 'centroid', 'hubness') AND d.metric = v_metric AND d.maintained
        UNION ALL
        SELECT x.way, x.expression, column_name || '_' || x.kind || '_expression', x.code_type, x.dimensions, x.dimensions
        FROM sqlvec._expression_ways(rel, column_name) AS x
    LOOP
        name := v_way.way; method := 'hnsw'; note := NULL;
        opclass := sqlvec._opclass(v_way.code_type, CASE WHEN v_way.code_type = 'bit' AND v_metric <> 'jaccard' THEN 'hamming' ELSE v_metric END);
        v_limit := CASE v_way.code_type WHEN 'vector' THEN 2000 WHEN 'halfvec' THEN 4000 WHEN 'bit' THEN 64000 END;
        v_index := format('ix_%s_%s', (SELECT c.relname FROM pg_class AS c WHERE c.oid = rel), v_way.stem);
        -- One for another metric may have the name.
        IF EXISTS (SELECT FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_opclass AS o ON o.oid = i.indclass[0]
                   WHERE i.indrelid = rel AND c.relname = sqlvec._name(v_index || '_hnsw') AND o.opcname <> plan_index.opclass) THEN
            v_index := v_index || '_' || v_metric;
        END IF;
        statement := format('CREATE INDEX CONCURRENTLY %I ON %s USING hnsw (%s %I.%I)', sqlvec._index_name(rel, v_index || '_hnsw'),
            sqlvec._qualified(rel), v_way.expression, sqlvec._vector_schema(), opclass);
        IF v_way.dimensions IS NULL AND v_way.code_type <> 'sparsevec' THEN
            statement := NULL;
            note := format('column "%s" names no dimensions, which an index needs', column_name);
        ELSIF v_way.dimensions > v_limit THEN
            statement := NULL;
            note := format('%s dimensions are over the limit of %s; %s', v_way.dimensions, v_limit,
                CASE WHEN v_way.source_dimensions < v_way.dimensions THEN format('"levels" up to %s fit', v_limit / v_way.source_dimensions)
                     WHEN v_way.dimensions <= 4000 THEN 'encoders "halfvec" and "binary" fit' ELSE 'encoder "binary" fits, "truncate" may' END);
        ELSIF EXISTS (SELECT FROM unnest(v_ways) AS x
                      WHERE x.way = v_way.way AND x.index_name IS NOT NULL AND coalesce(x.metric, v_metric) = v_metric AND NOT x.partial) THEN
            note := 'is there already';
        ELSIF v_partitioned THEN
            note := 'Postgres refuses CONCURRENTLY on a partitioned table; "sqlvec index build" builds partition by partition';
        END IF;
        RETURN NEXT;
    END LOOP;
END
$body$;

COMMENT ON FUNCTION sqlvec.plan_index(regclass, text, text) IS
    'Indexes that would serve searches on a column, each with its CREATE INDEX CONCURRENTLY: on the column, on each derived column, on each code that is a plain expression; for BM25 the GIN index on its tsvector.';

-- Arguments of the search functions: checked, and resolved to what they name.

CREATE OR REPLACE FUNCTION sqlvec._relation_of(rel_type regtype) RETURNS oid
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_rel oid := (SELECT c.oid FROM pg_type AS t JOIN pg_class AS c ON c.oid = t.typrelid
                  WHERE t.oid = rel_type AND c.relkind <> 'c');
BEGIN
    IF v_rel IS NULL THEN
        RAISE EXCEPTION 'rel is the table as a typed NULL row, not a value of type %', rel_type
            USING ERRCODE = 'datatype_mismatch', HINT = 'E.g. sqlvec.vector_search(NULL::doc, ''embedding'', ...).';
    END IF;
    RETURN v_rel;
END
$body$;

-- The single column that keys a table, checked or found.
CREATE OR REPLACE FUNCTION sqlvec._key_column(rel oid, key_column text) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_keys name[];
BEGIN
    IF key_column IS NOT NULL THEN
        PERFORM sqlvec._column(rel, key_column);
        RETURN key_column;
    END IF;
    v_keys := ARRAY(SELECT a.attname FROM pg_index AS i, unnest(i.indkey[0:i.indnkeyatts - 1]) AS k (attnum)
                    JOIN pg_attribute AS a ON a.attnum = k.attnum
                    WHERE i.indrelid = rel AND i.indisprimary AND a.attrelid = rel);
    IF cardinality(v_keys) <> 1 THEN
        RAISE EXCEPTION 'table % has % primary key', sqlvec._qualified(rel),
            CASE cardinality(v_keys) WHEN 0 THEN 'no' ELSE 'a composite' END
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Name a unique column: key_column => ''...''; or use the search that returns whole rows.';
    END IF;
    RETURN v_keys[1];
END
$body$;

-- Refuses numbers out of range before anything is looked up. Answers true, because an assignment costs a
-- third of a PERFORM, which runs a query.
CREATE OR REPLACE FUNCTION sqlvec._check_search(
    column_name text, query_dimensions int, k int, candidates int, oversample float8, mode text
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'k is a number from 1 to 10000, not %', k USING ERRCODE = 'invalid_parameter_value';
    ELSIF candidates IS NOT NULL AND oversample IS NOT NULL THEN
        RAISE EXCEPTION 'candidates and oversample say the same thing: give one' USING ERRCODE = 'invalid_parameter_value';
    ELSIF candidates < k OR candidates > 1000000 THEN
        RAISE EXCEPTION 'candidates is a number from k (%) to 1000000, not %', k, candidates USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT (oversample >= 1 AND oversample <= 1000) THEN
        RAISE EXCEPTION 'oversample is a number from 1 to 1000, not %', oversample USING ERRCODE = 'invalid_parameter_value';
    ELSIF query_dimensions IS NULL THEN
        RAISE EXCEPTION 'the query is NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF mode IS NULL OR column_name IS NULL THEN
        RAISE EXCEPTION 'column_name and mode cannot be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    RETURN true;
END
$body$;

-- The type of a query by its short name.
CREATE OR REPLACE FUNCTION sqlvec._query_type(query_type text) RETURNS regtype
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE query_type WHEN 'vector' THEN 'vector'::regtype WHEN 'sparsevec' THEN 'sparsevec'::regtype WHEN 'bit' THEN 'bit'::regtype END;

-- The column to search, once it fits the query.
CREATE OR REPLACE FUNCTION sqlvec._searched_column(
    rel oid, column_name text, query_type text, query_dimensions int, OUT type_name name, OUT dimensions int
) LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record := sqlvec._column(rel, column_name);
BEGIN
    IF v_source.type_name <> query_type AND NOT (query_type = 'vector' AND v_source.type_name = 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, which a % query cannot search',
            column_name, sqlvec._qualified(rel), format_type(v_source.type_oid, NULL), query_type
            USING ERRCODE = 'datatype_mismatch',
                  HINT = CASE WHEN v_source.type_name IN ('vector', 'halfvec') THEN 'Use sqlvec.vector_search.'
                              WHEN v_source.type_name = 'bit' THEN 'Use sqlvec.bit_search.'
                              WHEN v_source.type_name = 'sparsevec' THEN 'Use sqlvec.sparse_search.'
                              ELSE 'Columns that can be searched are of type vector, halfvec, sparsevec or bit(n).' END;
    ELSIF v_source.dimensions <> query_dimensions THEN
        RAISE EXCEPTION 'column "%" of table % has % dimensions, the query has %',
            column_name, sqlvec._qualified(rel), v_source.dimensions, query_dimensions
            USING ERRCODE = 'data_exception';
    END IF;
    type_name := v_source.type_name;
    dimensions := v_source.dimensions;
END
$body$;

-- The statements of a search, written from parts that are quoted or bound already.
--
-- Candidates carry only where the row is (ctid, tableoid, or its key) and its exact distance; whole
-- rows are fetched after the final LIMIT.

-- Names that stand beside the caller's condition are ones that no application has, or its tables
-- would be taken for ours.

-- Rows of `source` (a FROM item) that meet `condition`, nearest first.
--   carry      what a candidate carries, as select list; `carried` are its names
--   answer     the hit or key of a candidate h; `tie_break` orders equal distances
--   code       SQL of the indexed value, NULL for an exact search; `code_query` is what it is compared with
--   encoded    condition that every row has its code; NULL where none can lack it
--   whole      whether all matches are read if too few are found
--
-- `statement` serves nearly every search and is kept small, because it is planned at each call. It
-- answers nothing at all when rows lack their code or the scan found too few; then `fallback` is
-- run. Either way the whole answer comes from one statement, with one snapshot: a code that is
-- written or emptied in between changes nothing.
CREATE OR REPLACE FUNCTION sqlvec._search_statement(
    source text, condition text, searched text, distance text, k int, carry text, carried text, answer text, tie_break text,
    code text, code_operator text, code_query text, encoded text, candidate_count int, whole boolean,
    OUT statement text, OUT fallback text
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    -- Adding zero keeps an approximate index out of an exact comparison.
    v_exact text := format('SELECT %s, (%s) OPERATOR(pg_catalog.+) 0::pg_catalog.float8 AS distance FROM %s WHERE %s AND %s IS NOT NULL',
                           carry, distance, source, condition, searched);
    v_order text := concat_ws(', ', 'distance', tie_break);
    v_read_all text := format(E'SELECT %1$s, h.distance, true FROM (\n  %2$s\n  ORDER BY %3$s LIMIT %4$s) AS h\n'
                              'WHERE h.distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8 ORDER BY %3$s', answer, v_exact, v_order, k);
    -- Distances are exact whatever finds the rows.
    v_scan text := format('SELECT %s, %s AS distance FROM %s WHERE %s AND %s IS NOT NULL', carry, distance, source, condition, code);
    v_nearest text := format('ORDER BY %s %s %s LIMIT %s', code, code_operator, code_query, candidate_count);
BEGIN
    IF code IS NULL THEN
        statement := v_read_all;
        RETURN;
    END IF;
    statement := format(E'SELECT %1$s, h.distance, %2$s FROM (\n  SELECT *, pg_catalog.count(*) OVER () AS found FROM (\n    %3$s\n    %4$s) AS f\n'
                        '  WHERE distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8 ORDER BY %5$s LIMIT %6$s) AS h\nWHERE true%7$s%8$s ORDER BY %5$s',
                        answer,
                        -- An index that was asked for is a budget: say so when it ran out.
                        CASE WHEN whole THEN 'true' ELSE 'h.found OPERATOR(pg_catalog.>=) ' || k END,
                        v_scan, v_nearest, v_order, k,
                        CASE WHEN whole THEN ' AND h.found OPERATOR(pg_catalog.>=) ' || candidate_count END,
                        ' AND ' || encoded);
    IF encoded IS NULL THEN
        fallback := CASE WHEN whole THEN v_read_all END;
        RETURN;
    END IF;

    -- What has no code is compared one by one. Where every row has its code it was the scan that
    -- ended early: no use in running it again.
    fallback := format(E'WITH "sqlvec found" AS MATERIALIZED (\n  (%s%s\n   %s)\n  UNION ALL\n  (%s AND %s IS NULL\n   ORDER BY distance LIMIT %s)\n'
                       '), "sqlvec counted" AS (SELECT pg_catalog.count(*) AS n FROM "sqlvec found" WHERE distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8)',
                       v_scan, CASE WHEN whole THEN ' AND NOT ' || encoded END, v_nearest, v_exact, code, k);
    IF NOT whole THEN
        fallback := format(E'%s\nSELECT %s, h.distance, (SELECT n FROM "sqlvec counted") OPERATOR(pg_catalog.>=) %s FROM (\n  SELECT * FROM "sqlvec found" ORDER BY %s LIMIT %3$s) AS h\n'
                           'WHERE h.distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8 ORDER BY %4$s', fallback, answer, k, v_order);
        RETURN;
    END IF;
    -- Then, and only then, all matches are read, so that a short answer means few matches and a cut
    -- scan is no answer.
    fallback := format(E'%s,\n"sqlvec exact" AS (%s AND (SELECT n FROM "sqlvec counted") OPERATOR(pg_catalog.<) %s)\nSELECT %s, h.distance, true FROM (\n'
                       '  SELECT %s, distance FROM "sqlvec found" WHERE (SELECT n FROM "sqlvec counted") OPERATOR(pg_catalog.>=) %3$s\n'
                       '  UNION ALL SELECT %5$s, distance FROM "sqlvec exact"\n'
                       '  ORDER BY %6$s LIMIT %7$s) AS h\nWHERE h.distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8 ORDER BY %6$s',
                       fallback, v_exact, candidate_count, answer, carried, v_order, k);
END
$body$;

-- Keys as text that reads back as the same value under any settings.
CREATE OR REPLACE FUNCTION sqlvec._exact_text(x float8) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET extra_float_digits = 1 RETURN x::text;

CREATE OR REPLACE FUNCTION sqlvec._exact_text(x real) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET extra_float_digits = 1 RETURN x::text;

CREATE OR REPLACE FUNCTION sqlvec._exact_text(x timestamptz) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET datestyle = 'ISO' RETURN x::text;

CREATE OR REPLACE FUNCTION sqlvec._exact_text(x anyarray) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET extra_float_digits = 1 SET datestyle = 'ISO' AS 'SELECT x::pg_catalog.text';

-- How a statement turns a value of a type, %s, into text.
CREATE OR REPLACE FUNCTION sqlvec._as_text(type_oid oid) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN type_oid IN ('pg_catalog.float4'::regtype, 'pg_catalog.float8'::regtype, 'pg_catalog.timestamptz'::regtype)
              OR EXISTS (SELECT FROM pg_catalog.pg_type AS t WHERE t.oid = type_oid AND t.typcategory = 'A')
            THEN 'sqlvec._exact_text(%s)' ELSE '%s::pg_catalog.text' END;

-- The statement that ends a search of several steps: the rows or keys at $1, $2 with scores $3 and
-- complete $4, the best first.
--   alias      the table is read under this name
--   k          rows to answer, NULL all
--   place      what a step answers as row_id and row_table: the address, or the key as text
--   address    the same as it stands in the table, to be made text as row_id, by as_text, when few rows are left
--   tie_break  which of equal scores comes first: by key where there is one that may be read
CREATE OR REPLACE FUNCTION sqlvec._hit_statement(
    rel oid, alias text, key_column text, key_type regtype, k int, OUT place text, OUT address text, OUT as_text text, OUT tie_break text, OUT answer text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_keys name[] := CASE WHEN key_type IS NOT NULL THEN ARRAY[sqlvec._key_column(rel, key_column)]::name[]
                          ELSE ARRAY(SELECT a.attname FROM pg_index AS i, unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS n (attnum, position)
                                     JOIN pg_attribute AS a ON a.attnum = n.attnum
                                     WHERE i.indrelid = rel AND i.indisprimary AND a.attrelid = rel ORDER BY n.position) END;
    v_type text;
BEGIN
    tie_break := coalesce((SELECT string_agg(format('%s.%I', alias, c.name), ', ' ORDER BY c.position)
                           FROM unnest(v_keys) WITH ORDINALITY AS c (name, position)
                           WHERE has_column_privilege(rel, c.name::text, 'SELECT')), format('%1$s.tableoid, %1$s.ctid', alias));
    IF key_type IS NULL THEN
        as_text := sqlvec._as_text('tid'::regtype);
        place := format('%1$s.ctid::pg_catalog.text AS row_id, %1$s.tableoid AS row_table', alias);
        address := format('%1$s.ctid AS address, %1$s.tableoid AS row_table', alias);
        -- Cast as a whole: a cast in the condition would keep it behind the policies. The alias is one that no
        -- table has.
        answer := format('SELECT (%1$s.*)::%2$s, "sqlvec hit".score, $4::pg_catalog.bool FROM unnest($1::pg_catalog.tid[], $2, $3) AS "sqlvec hit" (row_id, row_table, score) '
                         'JOIN %2$s AS %1$s ON %1$s.ctid OPERATOR(pg_catalog.=) "sqlvec hit".row_id AND %1$s.tableoid OPERATOR(pg_catalog.=) "sqlvec hit".row_table '
                         'ORDER BY "sqlvec hit".score DESC NULLS LAST, %3$s LIMIT %4$s', alias, sqlvec._qualified(rel), tie_break, coalesce(k::text, 'ALL'));
        RETURN;
    END IF;
    v_type := sqlvec._type_name((sqlvec._column(rel, v_keys[1])).type_oid);
    as_text := sqlvec._as_text((sqlvec._column(rel, v_keys[1])).type_oid);
    place := format(as_text, format('%s.%I', alias, v_keys[1])) || ' AS row_id, 0::pg_catalog.oid AS row_table';
    address := format('%s.%I AS address, 0::pg_catalog.oid AS row_table', alias, v_keys[1]);
    answer := format('SELECT "sqlvec hit".row_id::%1$s::%2$s, "sqlvec hit".score, $4::pg_catalog.bool FROM unnest($1, $2, $3) AS "sqlvec hit" (row_id, row_table, score) '
                     'ORDER BY "sqlvec hit".score DESC NULLS LAST, "sqlvec hit".row_id::%1$s LIMIT %3$s', v_type, sqlvec._type_name(key_type), coalesce(k::text, 'ALL'));
END
$body$;

-- How a statement finds the rows at places that sqlvec._hit_statement gave: what the array of places is cast
-- to as a whole, and the condition on "sqlvec hit". A cast in the condition would keep it behind the policies.
CREATE OR REPLACE FUNCTION sqlvec._at_place(rel oid, alias text, key_column text, key_type regtype, OUT places text, OUT condition text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_key text;
    v_type oid;
BEGIN
    IF key_type IS NULL THEN
        places := 'pg_catalog.tid[]';
        condition := format('%1$s.ctid OPERATOR(pg_catalog.=) "sqlvec hit".place AND %1$s.tableoid OPERATOR(pg_catalog.=) "sqlvec hit".row_table', alias);
        RETURN;
    END IF;
    v_key := sqlvec._key_column(rel, key_column);
    v_type := (sqlvec._column(rel, v_key)).type_oid;
    IF (SELECT t.typcategory = 'A' FROM pg_type AS t WHERE t.oid = v_type) THEN
        -- An array of arrays would be one of their elements.
        places := 'pg_catalog.text[]';
        condition := format('%s.%I %s "sqlvec hit".place::%s', alias, v_key, sqlvec._btree_operator(v_type, 3), sqlvec._type_name(v_type));
        RETURN;
    END IF;
    places := sqlvec._type_name(v_type) || '[]';
    condition := format('%s.%I %s "sqlvec hit".place', alias, v_key, sqlvec._btree_operator(v_type, 3));
END
$body$;

-- Whether rows can be told apart by their address.
CREATE OR REPLACE FUNCTION sqlvec._has_addresses(rel oid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT c.relkind IN ('r', 'p', 'm') AND NOT EXISTS (SELECT FROM sqlvec._foreign_parts(rel))
    FROM pg_catalog.pg_class AS c WHERE c.oid = rel;
END;

-- An error unless rows can be told apart by where they are: by address, or by a key, for which the search
-- `by_key` is. Of the keys of views nobody knows, nor of those of a table with a foreign one among its
-- partitions, which can have no unique index.
CREATE OR REPLACE FUNCTION sqlvec._check_places(rel oid, key_column text, key_type regtype, by_key text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_kind "char" := (SELECT c.relkind FROM pg_class AS c WHERE c.oid = rel);
BEGIN
    IF key_type IS NULL AND NOT sqlvec._has_addresses(rel) THEN
        RAISE EXCEPTION 'rows of a view or foreign table have no address to answer candidates by'
            USING ERRCODE = 'wrong_object_type',
                  DETAIL = coalesce((SELECT format('Among the partitions or children of table %s is foreign table %s.', sqlvec._qualified(rel), sqlvec._qualified(f.part))
                                     FROM sqlvec._foreign_parts(rel) AS f LIMIT 1), format('%s is one.', sqlvec._qualified(rel))),
                  HINT = format('Use sqlvec.%s with a key column.', by_key);
    ELSIF key_type IS NOT NULL AND v_kind IN ('r', 'p') AND NOT sqlvec._identifies(rel, sqlvec._key_column(rel, key_column))
          AND NOT EXISTS (SELECT FROM sqlvec._foreign_parts(rel)) THEN
        RAISE EXCEPTION 'column "%" of table % does not identify its rows', sqlvec._key_column(rel, key_column), sqlvec._qualified(rel)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Rows of several lists are brought together by a key that is NOT NULL and UNIQUE.';
    END IF;
END
$body$;

-- The k best of the scores that steps have found, with all that tie with the last of them.
CREATE OR REPLACE FUNCTION sqlvec._best_hits(
    found_scores float8[], found_ids text[], found_tables oid[], k int, OUT scores float8[], OUT row_ids text[], OUT row_tables oid[]
) LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(h.score ORDER BY h.score DESC), array_agg(h.row_id ORDER BY h.score DESC), array_agg(h.row_table ORDER BY h.score DESC)
    FROM (SELECT a.score, a.row_id, a.row_table, rank() OVER (ORDER BY a.score DESC) AS place
          FROM unnest(found_scores, found_ids, found_tables) AS a (score, row_id, row_table) WHERE a.score IS NOT NULL) AS h
    WHERE h.place <= k;
END;

-- The search engine: one plan for every search function.
--
-- Every identifier is quoted, every value is bound: $1 is the caller's params, $2 the query, $3 the
-- values of filter.

-- Candidates that a code needs, as a multiple of k and at least so many. Signs of 384 dimensions
-- reach a recall@10 of 0.98 with 400 candidates on 11,611 real texts, where made-up clusters need
-- 100 (python -m benchmarks quantized): real neighbours lie closer together. Four levels need
-- 100, but a graph built with pgvector's default ef_construction finds those only among 300.
CREATE OR REPLACE FUNCTION sqlvec._default_candidates(kind text, levels int, k int) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE kind
    WHEN 'source' THEN k
    WHEN 'halfvec' THEN greatest(2 * k, 20)
    WHEN 'truncate' THEN greatest(10 * k, 100)
    WHEN 'linear' THEN greatest(20 * k, 200)
    ELSE greatest(k, 10) * CASE levels WHEN 1 THEN 40 ELSE 30 END
END;

-- Rows of a table that the planner expects under a condition, and its cost of reading them. Under the
-- caller's search_path: the condition may hold his SQL, and policies, expressions of indexes and
-- constraints of the table are looked at on the way. As JSON, because names may hold anything.
CREATE OR REPLACE FUNCTION sqlvec._estimate(
    statement text, params text[], bound text[], caller_path text, OUT matching float8, OUT cost float8
) LANGUAGE plpgsql
AS $body$
DECLARE
    v_path pg_catalog.text := pg_catalog.current_setting('search_path');
    v_now pg_catalog.text; -- assigned to, where PERFORM would run a query
    v_plan pg_catalog.json;
BEGIN
    v_now := pg_catalog.set_config('search_path', caller_path, true);
    EXECUTE pg_catalog.format('EXPLAIN (FORMAT JSON) %s', statement) INTO v_plan USING params, NULL::int, bound;
    v_now := pg_catalog.set_config('search_path', v_path, true);
    matching := pg_catalog.json_extract_path_text(v_plan, '0', 'Plan', 'Plan Rows');
    cost := pg_catalog.json_extract_path_text(v_plan, '0', 'Plan', 'Total Cost');
END
$body$;

-- The first way that serves the metric and the mode; NULL when mode is auto and there is none.
CREATE OR REPLACE FUNCTION sqlvec._choose_way(ways sqlvec._way[], rel oid, column_name text, metric text, mode text) RETURNS sqlvec._way
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_way sqlvec._way;
    v_usable text[] := '{}';
BEGIN
    FOREACH v_way IN ARRAY ways LOOP
        CONTINUE WHEN v_way.index_name IS NULL OR v_way.metric <> metric;
        IF (mode = 'auto' AND NOT v_way.partial) OR mode IN (v_way.index_name, v_way.way) THEN
            RETURN v_way;
        END IF;
        v_usable := v_usable || concat_ws(' by index ', nullif(v_way.way, 'source'), v_way.index_name);
    END LOOP;
    IF mode <> 'auto' THEN
        RAISE EXCEPTION 'mode "%" is neither auto, exact, nor a derived column or index that can search column "%" of table % by %',
            mode, column_name, sqlvec._qualified(rel), metric
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = CASE WHEN v_usable = '{}' THEN 'It has no valid index; sqlvec.plan_index proposes some.'
                              ELSE 'There are: ' || array_to_string(v_usable, ', ') || '.' END;
    END IF;
    RETURN NULL;
END
$body$;

-- The condition, for the end of a statement, that no row of a table `source` lacks its code.
--
-- A btree that was built empty has one page until the first entry comes, so the size of the partial
-- index over such rows tells in a fraction of the time that planning a look into it takes. The size
-- is read while the statement runs: who wrote a row that its snapshot sees had made the index grow
-- before. indcheckxmin marks an index that may lack rows which an old snapshot still sees. 1978 is
-- int4_ops of btree: sqlvec._unfinished_index_sql indexes the constant 1. A table that is not alone has
-- children with rows that the index does not know.
CREATE OR REPLACE FUNCTION sqlvec._all_encoded(rel oid, alone boolean, source text, target_column name, source_column name) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_page int := current_setting('block_size');
    v_index oid;
BEGIN
    IF alone THEN
        SELECT i.indexrelid INTO v_index
        FROM pg_index AS i
        WHERE i.indrelid = rel AND i.indpred IS NOT NULL AND i.indisvalid AND NOT i.indcheckxmin AND i.indclass[0] = 1978
          AND pg_relation_size(i.indexrelid) = v_page
          AND pg_get_expr(i.indpred, rel) = format('((%I IS NULL) AND (%I IS NOT NULL))', target_column, source_column)
        LIMIT 1;
    END IF;
    IF v_index IS NULL THEN
        RETURN format('NOT EXISTS (SELECT FROM %s WHERE %I IS NULL AND %I IS NOT NULL)', source, target_column, source_column);
    END IF;
    RETURN format('(SELECT pg_catalog.pg_relation_size(%s) OPERATOR(pg_catalog.=) %s)', v_index, v_page);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._plan_search(
    rel_type regtype, column_name text, query_type text, query_dimensions int, k int, filter jsonb, where_sql text, params text[],
    candidates int, oversample float8, INOUT metric text, mode text, key_column text, key_type regtype, caller_path text,
    depth int = NULL,         -- rows to answer, of which k are to be sure; NULL is k
    places boolean = false,   -- answer where rows are, as sqlvec._hit_statement does, instead of rows or keys
    OUT statement text,       -- answers (hit or key, distance, complete); with places (row_id, row_table, distance, complete)
    OUT fallback text,        -- is run when the statement answers nothing; NULL where that is the answer
    OUT bound text[],         -- values for $3
    OUT settings text[],      -- what sqlvec._set_scan sets; NULL without an index
    OUT way text, OUT index_name text, OUT candidate_count int, OUT reason text, OUT condition text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
-- Expressions of indexes are compared as they are printed.
SET quote_all_identifiers = off
AS $body$
DECLARE
    v_checked CONSTANT boolean := sqlvec._check_search(column_name, query_dimensions, k, candidates, oversample, mode);
    rel oid;
    v_class record;
    v_column record;
    v_filter record;
    v_estimate record;
    v_made record;
    v_type text;
    v_dimensions int;
    v_alias text;
    v_table text;
    v_from text;
    v_alone boolean;
    v_query text;
    v_key text;
    -- Of pgvector, quoted: under this search_path its types are printed with it.
    v_schema text := coalesce(nullif(left(sqlvec._query_type('vector')::text, -length('.vector')), ''), 'pg_catalog');
    v_carry text;
    v_carried text;
    v_answer text;
    v_order text;
    v_searched text;
    v_ways sqlvec._way[];
    v_way sqlvec._way;
    v_total float8;
    v_matching float8;
    v_cost float8;
    v_page float8;
    v_conditional boolean;
    v_ties text;
    v_tied text;
    v_code text;
    v_code_operator text;
    v_code_query text;
    v_encoded text;
BEGIN
    SELECT c.oid, c.relname, c.relkind, c.reltuples::float8 AS reltuples, c.relpages::float8 AS relpages,
           c.relhassubclass,
           c.relnamespace::regnamespace::text AS schema_name, a.attnum, a.atttypid, a.atttypmod
    INTO v_class
    FROM pg_type AS t JOIN pg_class AS c ON c.oid = t.typrelid
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped
    WHERE t.oid = rel_type AND c.relkind <> 'c';
    rel := coalesce(v_class.oid, sqlvec._relation_of(rel_type));
    -- What does not fit at first sight is a domain, a halfvec column, or an error to explain.
    IF v_class.atttypid = sqlvec._query_type(query_type) AND v_class.atttypmod = query_dimensions THEN
        v_type := query_type;
        v_dimensions := query_dimensions;
    ELSE
        v_column := sqlvec._searched_column(rel, column_name, query_type, query_dimensions);
        v_type := v_column.type_name;
        v_dimensions := v_column.dimensions;
    END IF;
    v_ways := sqlvec._ways(rel, column_name, v_class.attnum, v_class.atttypmod);
    IF metric IS NOT NULL THEN
        metric := sqlvec._checked_metric(metric, v_type);
    ELSIF cardinality(v_ways) = 1 THEN
        metric := coalesce((v_ways[1]).metric, sqlvec._default_metric(rel, column_name, v_type, v_ways));
    ELSE
        metric := sqlvec._default_metric(rel, column_name, v_type, v_ways);
    END IF;

    v_alias := quote_ident(v_class.relname);
    v_table := v_class.schema_name || '.' || v_alias;
    -- Of a table without children an address says all.
    v_alone := v_class.relkind IN ('r', 'm') AND NOT v_class.relhassubclass;
    v_from := CASE WHEN v_alone THEN 'ONLY ' ELSE '' END || v_table || ' AS ' || v_alias;
    bound := '{}';
    condition := 'true';
    IF filter IS NOT NULL THEN
        v_filter := sqlvec._filter(rel, v_class.relname, filter, '$3', bound);
        bound := v_filter.bound;
        condition := v_filter.condition;
    END IF;
    IF where_sql IS NOT NULL THEN
        condition := format(E'%s AND (%s\n)', condition, where_sql);
    END IF;
    IF v_type IN ('vector', 'halfvec') AND v_dimensions IS NULL THEN
        -- A column without dimensions may hold vectors that the query cannot be compared with.
        condition := format('sqlvec._dims(%s.%I) OPERATOR(pg_catalog.=) %s AND %s', v_alias, column_name, query_dimensions, condition);
    END IF;
    v_conditional := condition <> 'true' OR row_security_active(rel);

    IF mode = 'exact' THEN
        reason := 'asked for';
    ELSE
        -- The first way is nearly always the one.
        v_way := v_ways[1];
        IF mode <> 'auto' OR v_way.metric IS DISTINCT FROM metric OR v_way.index_name IS NULL OR v_way.partial THEN
            v_way := sqlvec._choose_way(v_ways, rel, column_name, metric, mode);
        END IF;
        IF v_way.way IS NULL THEN
            reason := format('no valid index serves %s on this column', metric);
        ELSE
            candidate_count := coalesce(candidates, ceil(k::float8 * oversample)::int,
                                        greatest(sqlvec._default_candidates(v_way.kind, v_way.levels, k), CASE v_way.kind WHEN 'source' THEN 1 ELSE 2 END * depth));
            reason := CASE WHEN mode = 'auto' THEN 'the first index that fits' ELSE 'asked for' END;
        END IF;
    END IF;

    -- Reading every match may be cheaper than walking the graph. Both are weighed in the planner's
    -- units: the scan that it would choose, with one more page for a vector that is stored out of
    -- line, against a random page for each row that the graph visits until enough have matched.
    IF mode = 'auto' AND v_way.way IS NOT NULL THEN
        IF v_conditional OR v_class.relkind <> 'r' OR v_class.reltuples <= 0 THEN
            v_estimate := sqlvec._estimate(format('SELECT FROM %s WHERE %s', v_from, condition), params, bound, caller_path);
            v_matching := v_estimate.matching;
            v_cost := v_estimate.cost;
        ELSE
            v_matching := v_class.reltuples;
            v_cost := v_class.relpages * current_setting('seq_page_cost')::float8
                      + v_class.reltuples * current_setting('cpu_tuple_cost')::float8;
        END IF;
        v_total := greatest(v_class.reltuples, v_matching, 1);
        v_page := current_setting('random_page_cost')::float8;
        IF query_dimensions > 500 THEN
            v_cost := v_cost + v_matching * v_page;
        END IF;
        IF v_cost <= greatest(candidate_count, 40) * v_total / greatest(v_matching, 1) * v_page THEN
            reason := format('about %s of %s rows match: cheaper to read than to find %s of them in %s',
                             v_matching, v_total, candidate_count, v_way.index_name);
            v_way := NULL;
            candidate_count := NULL;
        ELSIF v_conditional THEN
            reason := format('%s; about %s of %s rows match', reason, v_matching, v_total);
        END IF;
    END IF;
    way := coalesce(v_way.way, 'exact');
    index_name := v_way.index_name;
    IF v_way.way IS NOT NULL THEN
        settings := sqlvec._scan_settings(candidate_count, v_total, v_matching, mode = 'auto');
    END IF;

    -- Views and foreign tables have no row address, or none to rely on: their candidates carry the row.
    IF key_type IS NOT NULL THEN
        v_key := sqlvec._key_column(rel, key_column);
        v_carry := format('%s.%I', v_alias, v_key);
        IF places THEN
            v_answer := format(sqlvec._as_text((sqlvec._column(rel, v_key)).type_oid), 'h.key') || ', 0::pg_catalog.oid';
        ELSE
            v_carry := v_carry || '::' || sqlvec._type_name(key_type);
            v_answer := 'h.key';
        END IF;
        v_carry := v_carry || ' AS key'; v_carried := 'key'; v_order := 'key';
    ELSIF v_alone OR places OR sqlvec._has_addresses(rel) THEN
        v_carry := format('%1$s.ctid AS row_id, %1$s.tableoid AS row_table', v_alias); v_carried := 'row_id, row_table'; v_order := 'row_table, row_id';
        IF places THEN
            v_answer := 'h.row_id::pg_catalog.text, h.row_table';
            -- Legs order equal rows alike: by primary key, where it may be read.
            SELECT string_agg(format(', %s.%I AS tie_%s', v_alias, a.attname, n.position), '' ORDER BY n.position),
                   string_agg(format(', tie_%s', n.position), '' ORDER BY n.position)
            INTO v_ties, v_tied
            FROM pg_index AS i, unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS n (attnum, position)
            JOIN pg_attribute AS a ON a.attnum = n.attnum
            WHERE i.indrelid = rel AND i.indisprimary AND a.attrelid = rel AND has_column_privilege(rel, a.attnum, 'SELECT');
            IF v_tied <> '' THEN
                v_carry := v_carry || v_ties; v_carried := v_carried || v_tied; v_order := substr(v_tied, 3);
            END IF;
        ELSIF v_alone THEN
            v_carry := v_alias || '.ctid AS row_id'; v_carried := 'row_id'; v_order := 'row_id';
            v_answer := format('(SELECT (d.*)::%1$s FROM ONLY %1$s AS d WHERE d.ctid OPERATOR(pg_catalog.=) h.row_id)', v_table);
        ELSE
            v_answer := format('(SELECT (d.*)::%1$s FROM %1$s AS d WHERE d.ctid OPERATOR(pg_catalog.=) h.row_id AND d.tableoid OPERATOR(pg_catalog.=) h.row_table)', v_table);
        END IF;
    ELSE
        v_carry := format('(%s.*)::%s AS row_value', v_alias, v_table); v_carried := 'row_value'; v_answer := 'h.row_value';
    END IF;
    v_query := CASE v_type WHEN 'halfvec' THEN 'sqlvec._halfvec($2)' ELSE '$2' END;
    IF v_way.way IS NOT NULL THEN
        v_code := coalesce(v_way.expression, v_alias || '.' || quote_ident(v_way.column_used));
        v_code_operator := sqlvec._operator(v_way.code_metric, v_schema);
        v_code_query := CASE WHEN v_way.encoder IS NOT NULL THEN sqlvec._encode_expression(v_way.encoder, '{$2}') ELSE coalesce(v_way.query_expression, v_query) END;
        -- What is immutable the planner computes; anything else would be computed row by row.
        IF v_code_query <> v_query AND split_part(v_code_query, '(', 1)
           NOT IN ('sqlvec._halfvec', 'sqlvec._binary', 'sqlvec._binary_centred', 'sqlvec._truncate_halfvec', 'sqlvec._truncate_vector') THEN
            v_code_query := '(SELECT ' || v_code_query || ')';
        END IF;
        IF v_way.rank = 1 THEN
            v_encoded := sqlvec._all_encoded(rel, v_alone, v_from, v_way.column_used, column_name);
        END IF;
    END IF;
    v_searched := format('%s.%I', v_alias, column_name);
    v_made := sqlvec._search_statement(
        v_from, condition, v_searched, v_searched || ' ' || sqlvec._operator(metric, v_schema) || ' ' || v_query, coalesce(depth, k),
        v_carry, v_carried, v_answer, v_order, v_code, v_code_operator, v_code_query, v_encoded, candidate_count, mode = 'auto');
    statement := v_made.statement;
    fallback := v_made.fallback;
END
$body$;

-- What sqlvec._set_scan sets for a scan of an approximate index: rows come in any order, because they
-- are sorted anew. Where all that is asked for is to be found (`whole`), the scan may visit as many as
-- were expected; the limits of an index that was asked for by name are the caller's.
CREATE OR REPLACE FUNCTION sqlvec._scan_settings(candidate_count int, total float8, matching float8, whole boolean) RETURNS text[]
LANGUAGE sql STABLE
RETURN ARRAY[
    greatest(least(candidate_count, 1000), nullif(current_setting('hnsw.ef_search', true), '')::int)::text,
    'relaxed_order', 'relaxed_order', 'off',
    CASE WHEN whole THEN greatest(least(4 * candidate_count * total / greatest(matching, 1), 1e9),
                                  nullif(current_setting('hnsw.max_scan_tuples', true), '')::float8, 20000)::bigint::text END,
    CASE WHEN whole THEN greatest(16, nullif(current_setting('hnsw.scan_mem_multiplier', true), '')::float8)::text END];

-- Calls into pgvector, whose settings cannot be read before its library is loaded.
CREATE OR REPLACE FUNCTION sqlvec._load_pgvector() RETURNS boolean
LANGUAGE sql STABLE
RETURN hamming_distance(B'1', B'1') = 0;

-- Settings for an index scan, for this transaction; answers what they were. NULL changes nothing.
-- jit is off because the branch that is hardly ever run would make the planner ask for it.
CREATE OR REPLACE FUNCTION sqlvec._set_scan(settings text[]) RETURNS text[]
LANGUAGE plpgsql STRICT
AS $body$
DECLARE
    v_before pg_catalog.text[];
BEGIN
    IF NOT sqlvec._load_pgvector() THEN
        RETURN NULL;
    END IF;
    v_before := ARRAY[pg_catalog.current_setting('hnsw.ef_search'), pg_catalog.current_setting('hnsw.iterative_scan'),
                      pg_catalog.current_setting('ivfflat.iterative_scan'), pg_catalog.current_setting('jit'),
                      pg_catalog.current_setting('hnsw.max_scan_tuples'), pg_catalog.current_setting('hnsw.scan_mem_multiplier')];
    settings := ARRAY[pg_catalog.set_config('hnsw.ef_search', settings[1], true),
                      pg_catalog.set_config('hnsw.iterative_scan', settings[2], true),
                      pg_catalog.set_config('ivfflat.iterative_scan', settings[3], true),
                      pg_catalog.set_config('jit', settings[4], true),
                      pg_catalog.set_config('hnsw.max_scan_tuples', coalesce(settings[5], v_before[5]), true),
                      pg_catalog.set_config('hnsw.scan_mem_multiplier', coalesce(settings[6], v_before[6]), true)];
    RETURN v_before;
END
$body$;

-- sqlvec.vector_search, sqlvec.vector_search_keys: nearest rows of a vector or halfvec column.

-- The query, unless it is a zero vector, to which a cosine is undefined: every distance would be NaN.
CREATE OR REPLACE FUNCTION sqlvec._refuse_zero(query vector, metric text) RETURNS vector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    -- The product alone may be zero for want of float32 range.
    IF metric = 'cosine' AND sqlvec._dot(query, query) = 0::float8 AND (sqlvec._integer_parts(query)).unit IS NULL THEN
        RAISE EXCEPTION 'the cosine distance to a zero vector is undefined' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN _refuse_zero.query;
END
$body$;

-- The cosine distance up to which rows are wanted, with room for rounding; infinite without a model of cosines.
CREATE OR REPLACE FUNCTION sqlvec._farthest(model text, query vector, min_relevance float8, metric text) RETURNS float8
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN CASE WHEN model IS NULL OR metric <> 'cosine' THEN 'Infinity'
                -- A little less relevant: a flat curve turns what rounding does to a probability into distance.
                ELSE coalesce(sqlvec.relevance_bound(model, query, greatest(min_relevance - 1e-12, 0)), 'Infinity') END;
END
$body$;

-- The search as one leg of several: places and distances of `depth` rows, of which k are to be sure, the
-- nearest first. STABLE, so that it sees the snapshot of the statement that searches. No SET: the caller's
-- where_sql and policies run inside.
CREATE OR REPLACE FUNCTION sqlvec._run_vector(
    rel_type regtype, column_name text, query vector, k int, depth int, filter jsonb, where_sql text, params text[], metric text, mode text,
    key_column text, key_type regtype,
    model text = NULL, min_relevance float8 = NULL, -- what is less relevant by this model is left out
    OUT row_ids text[], OUT row_tables oid[], OUT scores float8[], OUT complete boolean, OUT metric_used text
) LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    p pg_catalog.record;
    v_before pg_catalog.text[];
    v_arrays CONSTANT pg_catalog.text := 'SELECT pg_catalog.array_agg(a.row_id) FILTER (WHERE a.near) AS row_ids, pg_catalog.array_agg(a.row_table) FILTER (WHERE a.near) AS row_tables, '
                              'pg_catalog.array_agg(a.distance) FILTER (WHERE a.near) AS distances, pg_catalog.bool_and(a.complete) AS complete '
                              -- The nearest stays in any case: how relevant it is says why nothing is left.
                              'FROM (SELECT f.*, f.distance OPERATOR(pg_catalog.<=) $4 OR pg_catalog.row_number() OVER () OPERATOR(pg_catalog.=) 1 AS near '
                              'FROM (%s) AS f (row_id, row_table, distance, complete)) AS a';
    v_found pg_catalog.record;
    v_farthest pg_catalog.float8;
BEGIN
    p := sqlvec._plan_search(
        rel_type, column_name, 'vector', sqlvec._dims(query), k, filter, where_sql, params, NULL, NULL, metric, mode,
        key_column, key_type, pg_catalog.current_setting('search_path'), depth, true);
    query := sqlvec._refuse_zero(query, p.metric);
    v_farthest := sqlvec._farthest(model, query, min_relevance, p.metric);
    v_before := sqlvec._set_scan(p.settings);
    EXECUTE pg_catalog.format(v_arrays, p.statement) INTO v_found USING params, query, p.bound, v_farthest;
    IF v_found.complete IS NULL AND p.fallback IS NOT NULL THEN
        EXECUTE pg_catalog.format(v_arrays, p.fallback) INTO v_found USING params, query, p.bound, v_farthest;
    END IF;
    v_before := sqlvec._set_scan(v_before);
    row_ids := v_found.row_ids; row_tables := v_found.row_tables; scores := v_found.distances;
    complete := coalesce(v_found.complete, true);
    metric_used := p.metric;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.vector_search(
    rel anyelement, column_name text, query vector, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, metric text = NULL, mode text = 'auto'
) RETURNS TABLE (hit anyelement, distance float8, complete boolean)
LANGUAGE plpgsql ROWS 10
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_before pg_catalog.text[];
BEGIN
    v_plan := sqlvec._plan_search(
        pg_catalog.pg_typeof(rel), column_name, 'vector', sqlvec._dims(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, NULL, NULL, pg_catalog.current_setting('search_path'));
    query := sqlvec._refuse_zero(query, v_plan.metric);
    v_before := sqlvec._set_scan(v_plan.settings);
    RETURN QUERY EXECUTE v_plan.statement USING params, query, v_plan.bound;
    IF NOT FOUND AND v_plan.fallback IS NOT NULL THEN
        RETURN QUERY EXECUTE v_plan.fallback USING params, query, v_plan.bound;
    END IF;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.vector_search(anyelement, text, vector, int, jsonb, text, text[], int, float8, text, text) IS
    'Rows of table rel (a typed NULL row, NULL::doc) nearest to query in a vector or halfvec column, by exact distance; metric l2, inner_product, cosine or l1. k 1 to 10000; filter is JSON over the columns, where_sql is trusted SQL over the bare table name with values ($1)[i] from params; candidates or oversample (x k) say how many rows are rescored; mode is auto, exact, or the name of a derived column or index. complete is false only when an index named by mode ended before k rows.';

-- key stands fourth because Postgres resolves the type of a result column from the position that
-- its argument has in the call.
CREATE OR REPLACE FUNCTION sqlvec.vector_search_keys(
    rel anyelement, column_name text, query vector, INOUT key anycompatible, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, metric text = NULL, mode text = 'auto',
    key_column text = NULL, OUT distance float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql ROWS 10
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_before pg_catalog.text[];
BEGIN
    v_plan := sqlvec._plan_search(
        pg_catalog.pg_typeof(rel), column_name, 'vector', sqlvec._dims(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, key_column, pg_catalog.pg_typeof(key),
        pg_catalog.current_setting('search_path'));
    query := sqlvec._refuse_zero(query, v_plan.metric);
    v_before := sqlvec._set_scan(v_plan.settings);
    RETURN QUERY EXECUTE v_plan.statement USING params, query, v_plan.bound;
    IF NOT FOUND AND v_plan.fallback IS NOT NULL THEN
        RETURN QUERY EXECUTE v_plan.fallback USING params, query, v_plan.bound;
    END IF;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.vector_search_keys(anyelement, text, vector, anycompatible, int, jsonb, text, text[], int, float8, text, text, text) IS
    'The rows of sqlvec.vector_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands right after the query (key => NULL::uuid): needs SELECT on the searched and key columns only.';

-- sqlvec.bit_search, sqlvec.bit_search_keys: nearest rows of a bit column.

CREATE OR REPLACE FUNCTION sqlvec.bit_search(
    rel anyelement, column_name text, query bit, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, metric text = NULL, mode text = 'auto'
) RETURNS TABLE (hit anyelement, distance float8, complete boolean)
LANGUAGE plpgsql ROWS 10
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_before pg_catalog.text[];
BEGIN
    v_plan := sqlvec._plan_search(
        pg_catalog.pg_typeof(rel), column_name, 'bit', pg_catalog.length(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, NULL, NULL, pg_catalog.current_setting('search_path'));
    v_before := sqlvec._set_scan(v_plan.settings);
    RETURN QUERY EXECUTE v_plan.statement USING params, query, v_plan.bound;
    IF NOT FOUND AND v_plan.fallback IS NOT NULL THEN
        RETURN QUERY EXECUTE v_plan.fallback USING params, query, v_plan.bound;
    END IF;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.bit_search(anyelement, text, bit, int, jsonb, text, text[], int, float8, text, text) IS
    'Rows of table rel nearest to query in a bit(n) column; metric hamming or jaccard. k 1 to 10000; filter is JSON over the columns, where_sql is trusted SQL over the bare table name with values ($1)[i] from params; candidates or oversample (x k) say how many rows are rescored; mode is auto, exact, or the name of a derived column or index. complete is false only when an index named by mode ended before k rows.';

-- key stands fourth because Postgres resolves the type of a result column from the position that
-- its argument has in the call.
CREATE OR REPLACE FUNCTION sqlvec.bit_search_keys(
    rel anyelement, column_name text, query bit, INOUT key anycompatible, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, metric text = NULL, mode text = 'auto',
    key_column text = NULL, OUT distance float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql ROWS 10
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_before pg_catalog.text[];
BEGIN
    v_plan := sqlvec._plan_search(
        pg_catalog.pg_typeof(rel), column_name, 'bit', pg_catalog.length(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, key_column, pg_catalog.pg_typeof(key),
        pg_catalog.current_setting('search_path'));
    v_before := sqlvec._set_scan(v_plan.settings);
    RETURN QUERY EXECUTE v_plan.statement USING params, query, v_plan.bound;
    IF NOT FOUND AND v_plan.fallback IS NOT NULL THEN
        RETURN QUERY EXECUTE v_plan.fallback USING params, query, v_plan.bound;
    END IF;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.bit_search_keys(anyelement, text, bit, anycompatible, int, jsonb, text, text[], int, float8, text, text, text) IS
    'The rows of sqlvec.bit_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands right after the query (key => NULL::uuid): needs SELECT on the searched and key columns only.';

-- sqlvec.sparse_search, sqlvec.sparse_search_keys: nearest rows of a sparsevec column.

CREATE OR REPLACE FUNCTION sqlvec._sparse_dimensions(x sparsevec) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN split_part(x::text, '/', 2)::int;

CREATE OR REPLACE FUNCTION sqlvec.sparse_search(
    rel anyelement, column_name text, query sparsevec, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, metric text = NULL, mode text = 'auto'
) RETURNS TABLE (hit anyelement, distance float8, complete boolean)
LANGUAGE plpgsql ROWS 10
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_before pg_catalog.text[];
BEGIN
    v_plan := sqlvec._plan_search(
        pg_catalog.pg_typeof(rel), column_name, 'sparsevec', sqlvec._sparse_dimensions(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, NULL, NULL, pg_catalog.current_setting('search_path'));
    v_before := sqlvec._set_scan(v_plan.settings);
    RETURN QUERY EXECUTE v_plan.statement USING params, query, v_plan.bound;
    IF NOT FOUND AND v_plan.fallback IS NOT NULL THEN
        RETURN QUERY EXECUTE v_plan.fallback USING params, query, v_plan.bound;
    END IF;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.sparse_search(anyelement, text, sparsevec, int, jsonb, text, text[], int, float8, text, text) IS
    'Rows of table rel nearest to query in a sparsevec column; metric l2, inner_product, cosine or l1. k 1 to 10000; filter is JSON over the columns, where_sql is trusted SQL over the bare table name with values ($1)[i] from params; candidates or oversample (x k) say how many rows are rescored; mode is auto, exact, or the name of a derived column or index. complete is false only when an index named by mode ended before k rows.';

-- key stands fourth because Postgres resolves the type of a result column from the position that
-- its argument has in the call.
CREATE OR REPLACE FUNCTION sqlvec.sparse_search_keys(
    rel anyelement, column_name text, query sparsevec, INOUT key anycompatible, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, metric text = NULL, mode text = 'auto',
    key_column text = NULL, OUT distance float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql ROWS 10
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_before pg_catalog.text[];
BEGIN
    v_plan := sqlvec._plan_search(
        pg_catalog.pg_typeof(rel), column_name, 'sparsevec', sqlvec._sparse_dimensions(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, key_column, pg_catalog.pg_typeof(key),
        pg_catalog.current_setting('search_path'));
    v_before := sqlvec._set_scan(v_plan.settings);
    RETURN QUERY EXECUTE v_plan.statement USING params, query, v_plan.bound;
    IF NOT FOUND AND v_plan.fallback IS NOT NULL THEN
        RETURN QUERY EXECUTE v_plan.fallback USING params, query, v_plan.bound;
    END IF;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.sparse_search_keys(anyelement, text, sparsevec, anycompatible, int, jsonb, text, text[], int, float8, text, text, text) IS
    'The rows of sqlvec.sparse_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands right after the query (key => NULL::uuid): needs SELECT on the searched and key columns only.';

-- sqlvec.build_neighbours, sqlvec.expand: a graph of nearest neighbours in an ordinary table, and the
-- rows that can be reached from the hits of a search along its edges.

-- Similarity as the weight of an edge.
CREATE OR REPLACE FUNCTION sqlvec._similarity(metric text, distance float8) RETURNS real
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE metric WHEN 'cosine' THEN 1 - distance WHEN 'inner_product' THEN 0 - distance ELSE 1 / (1 + distance) END::real;

-- The type of the keys in a table of edges, made here or by the application; an error for any other.
CREATE OR REPLACE FUNCTION sqlvec._edges(edges oid, OUT key_type oid)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    SELECT k.atttypid INTO key_type
    FROM pg_attribute AS k
    JOIN pg_attribute AS n ON n.attrelid = edges AND n.attname = 'neighbour' AND n.atttypid = k.atttypid
    JOIN pg_attribute AS w ON w.attrelid = edges AND w.attname = 'weight' AND w.atttypid IN ('real'::regtype, 'float8'::regtype)
    JOIN pg_class AS c ON c.oid = edges AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    WHERE k.attrelid = edges AND k.attname = 'key';
    IF NOT FOUND OR sqlvec._btree_operator(key_type, 3) IS NULL OR (SELECT t.typcategory = 'A' FROM pg_type AS t WHERE t.oid = key_type) THEN
        RAISE EXCEPTION '% is no table of edges', coalesce(sqlvec._qualified(edges), 'NULL')
            USING ERRCODE = 'wrong_object_type',
                  HINT = 'It has columns "key" and "neighbour" of one type that can be ordered and is no array, and "weight" of type real or double precision; sqlvec.build_neighbours makes one.';
    END IF;
END
$body$;

-- What a build works with, found and checked; makes the table of edges where it is not there.
CREATE OR REPLACE FUNCTION sqlvec._neighbours_graph(
    rel regclass, column_name text, neighbours int, into_table text, batch int,
    OUT edges oid, OUT source_attnum smallint, OUT key_attnum smallint, OUT source_column name, OUT key_column name, OUT key_type text, OUT metric text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_source record;
    v_class record;
    v_table text;
    v_type oid;
BEGIN
    IF rel IS NULL OR column_name IS NULL THEN
        RAISE EXCEPTION 'build_neighbours needs a table and a column' USING ERRCODE = 'null_value_not_allowed';
    ELSIF neighbours IS NULL OR neighbours NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'neighbours is a number from 1 to 1000, not %', neighbours USING ERRCODE = 'invalid_parameter_value';
    ELSIF batch IS NULL OR batch < 1 THEN
        RAISE EXCEPTION 'batch is a number of rows, 1 or more, not %', batch USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_source := sqlvec._column(rel, column_name);
    SELECT c.relname, c.relkind, n.nspname INTO v_class
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = rel;
    IF v_class.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '% is not a table', rel USING ERRCODE = 'wrong_object_type';
    ELSIF v_source.type_name NOT IN ('vector', 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, not vector or halfvec',
            column_name, rel, format_type(v_source.type_oid, NULL)
            USING ERRCODE = 'datatype_mismatch';
    ELSIF into_table = '' OR octet_length(into_table) > 63 THEN
        RAISE EXCEPTION 'into_table "%" is not a table name of 1 to 63 bytes', into_table USING ERRCODE = 'invalid_name';
    ELSIF EXISTS (SELECT FROM sqlvec._leaves(rel) AS t WHERE row_security_active(t.leaf)) OR row_security_active(rel) THEN
        RAISE EXCEPTION 'row security hides rows of table % from role "%"', rel, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Run the build as the owner of the table or as a role with BYPASSRLS.';
    END IF;
    SELECT max(a.attnum), max(a.attname), max(a.atttypid) INTO key_attnum, key_column, v_type
    FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = rel AND i.indisprimary HAVING count(*) = 1;
    IF key_column IS NULL THEN
        RAISE EXCEPTION 'table % has no primary key of one column', rel
            USING ERRCODE = 'invalid_parameter_value', HINT = 'The edges refer to its rows by that column.';
    ELSIF (SELECT t.typcategory = 'A' FROM pg_type AS t WHERE t.oid = v_type) THEN
        RAISE EXCEPTION 'primary key "%" of table % is of type %: edges do not refer to arrays', key_column, rel, format_type(v_type, -1)
            USING ERRCODE = 'datatype_mismatch', HINT = 'sqlvec.expand takes an array of keys, which would not tell its arrays apart.';
    END IF;
    source_attnum := v_source.attnum;
    source_column := column_name;
    key_type := sqlvec._type_name(v_type);
    metric := sqlvec._default_metric(rel, column_name, v_source.type_name, sqlvec._ways(rel, column_name, v_source.attnum, coalesce(v_source.dimensions, -1)));

    v_table := format('%I.%I', v_class.nspname, coalesce(into_table, sqlvec._name(v_class.relname || '_neighbours')));
    edges := to_regclass(v_table);
    IF edges IS NULL THEN
        -- Updates and deletes of a row find its edges by either column; the weight is for sqlvec.expand.
        EXECUTE format('CREATE TABLE %1$s (key %2$s NOT NULL REFERENCES %3$s (%4$I) ON UPDATE CASCADE ON DELETE CASCADE, '
                       'neighbour %2$s NOT NULL REFERENCES %3$s (%4$I) ON UPDATE CASCADE ON DELETE CASCADE, '
                       'weight real NOT NULL, PRIMARY KEY (key, neighbour))',
                       v_table, key_type, sqlvec._qualified(rel), key_column);
        EXECUTE format('CREATE INDEX ON %s (neighbour, weight DESC)', v_table);
        edges := v_table::regclass;
    ELSIF sqlvec._edges(edges) <> v_type THEN
        RAISE EXCEPTION 'table % has keys of type %, table % of type %', v_table, format_type(sqlvec._edges(edges), -1), rel, format_type(v_type, -1)
            USING ERRCODE = 'datatype_mismatch', HINT = 'Name another table: into_table => ''...''.';
    ELSIF row_security_active(edges) THEN
        RAISE EXCEPTION 'row security hides edges of table % from role "%"', v_table, current_user
            USING ERRCODE = 'insufficient_privilege', HINT = 'Run the build as the owner of the table or as a role with BYPASSRLS.';
    END IF;
END
$body$;

-- Hold table and edges for a batch. Names may have changed since the last one.
CREATE OR REPLACE FUNCTION sqlvec._hold_graph(rel oid, graph record, OUT source_column name, OUT key_column name)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM sqlvec._hold_to_read(rel);
    PERFORM sqlvec._hold_to_read(graph.edges);
    SELECT s.attname, k.attname INTO source_column, key_column
    FROM pg_attribute AS s JOIN pg_attribute AS k ON k.attrelid = s.attrelid AND k.attnum = graph.key_attnum AND NOT k.attisdropped
    WHERE s.attrelid = rel AND s.attnum = graph.source_attnum AND NOT s.attisdropped;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'column "%" or "%" of table % was dropped while its neighbours were searched for',
            graph.source_column, graph.key_column, sqlvec._qualified(rel) USING ERRCODE = 'undefined_column';
    END IF;
END
$body$;

-- Which rows t are to be done: all or, with `missing`, those whose vector has no edges.
CREATE OR REPLACE FUNCTION sqlvec._neighbours_condition(rel oid, graph record, missing boolean) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN CASE WHEN missing THEN format('%s AND NOT EXISTS (SELECT FROM %s AS e WHERE e.key %s t.%I)',
                                         sqlvec._has_neighbours(graph.source_column, graph.metric), sqlvec._qualified(graph.edges),
                                         sqlvec._btree_operator((sqlvec._column(rel, graph.key_column)).type_oid, 3), graph.key_column)
                ELSE 'true' END;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._count_neighbours(rel oid, graph record, missing boolean) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_count bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s AS t WHERE %s', sqlvec._qualified(rel), sqlvec._neighbours_condition(rel, graph, missing)) INTO v_count;
    RETURN v_count;
END
$body$;

-- Tell other sessions how far a build is, until the end of the transaction.
CREATE OR REPLACE FUNCTION sqlvec._show_neighbours(phase text, done bigint, total bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM set_config('application_name', format('sqlvec: %s %s/%s', phase, done, greatest(done, total)), true);
END
$body$;

-- The next keys of a table, as text, of the rows that are to be done.
CREATE OR REPLACE FUNCTION sqlvec._neighbours_keys(
    rel oid, graph record, missing boolean, after text, batch int
) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_type oid := (sqlvec._column(rel, graph.key_column)).type_oid;
    v_keys text[];
BEGIN
    EXECUTE format('SELECT array_agg(s.key::text ORDER BY s.key) FROM (SELECT t.%1$I AS key FROM %2$s AS t WHERE %3$s AND %4$s ORDER BY t.%1$I LIMIT $2) AS s',
                   graph.key_column, sqlvec._qualified(rel),
                   CASE WHEN after IS NULL THEN 'true' ELSE format('t.%I %s $1::%s', graph.key_column, sqlvec._btree_operator(v_type, 5), graph.key_type) END,
                   sqlvec._neighbours_condition(rel, graph, missing))
    INTO v_keys USING after, batch;
    RETURN v_keys;
END
$body$;

-- Whether row t has a vector that a search takes: the zero vector has no cosine.
CREATE OR REPLACE FUNCTION sqlvec._has_neighbours(column_name text, metric text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format(CASE metric WHEN 'cosine' THEN 'sqlvec._norm(t.%I) OPERATOR(pg_catalog.>) 0::pg_catalog.float8' ELSE 't.%I IS NOT NULL' END, column_name);

-- Find the neighbours of some rows anew. No SET: triggers of the application may run inside.
CREATE OR REPLACE FUNCTION sqlvec._neighbours_batch(rel oid, graph record, neighbours int, keys text[]) RETURNS void
LANGUAGE plpgsql
AS $body$
DECLARE
    v_edges pg_catalog.text := sqlvec._qualified(graph.edges);
    v_equal pg_catalog.text := sqlvec._btree_operator((sqlvec._column(rel, graph.key_column)).type_oid, 3);
    v_search pg_catalog.text := pg_catalog.format(
        'INSERT INTO %1$s (key, neighbour, weight) '
        'SELECT t.%2$I, n.key, sqlvec._similarity(%3$L, n.distance) FROM %4$s AS t CROSS JOIN LATERAL ('
        'SELECT s.key, s.distance FROM sqlvec.vector_search_keys(NULL::%4$s, %5$L, sqlvec._as_vector(t.%5$I), NULL::%6$s, k => $2, metric => %3$L) AS s '
        'WHERE NOT (s.key %7$s t.%2$I) ORDER BY s.distance, s.key LIMIT $3) AS n '
        'WHERE t.%2$I %7$s ANY ($1::%6$s[]) AND %8$s ON CONFLICT DO NOTHING',
        v_edges, graph.key_column, graph.metric, sqlvec._qualified(rel), graph.source_column, graph.key_type, v_equal,
        sqlvec._has_neighbours(graph.source_column, graph.metric));
BEGIN
    EXECUTE pg_catalog.format('DELETE FROM %s AS e WHERE e.key %s ANY ($1::%s[])', v_edges, v_equal, graph.key_type) USING keys;
    FOR v_attempt IN 1 .. 5 LOOP
        BEGIN
            EXECUTE v_search USING keys, neighbours OPERATOR(pg_catalog.+) 1, neighbours;
            RETURN;
        EXCEPTION WHEN foreign_key_violation THEN
            -- A row that was found is deleted meanwhile; the next search no longer sees it.
            IF v_attempt OPERATOR(pg_catalog.=) 5 THEN
                RAISE;
            END IF;
        END;
    END LOOP;
END
$body$;

-- Remove the edges of some rows that do not lead back.
CREATE OR REPLACE FUNCTION sqlvec._drop_one_sided(rel oid, graph record, keys text[]) RETURNS void
LANGUAGE plpgsql
AS $body$
BEGIN
    EXECUTE pg_catalog.format('DELETE FROM %1$s AS e WHERE e.key %2$s ANY ($1::%3$s[]) AND NOT EXISTS ('
                              'SELECT FROM %1$s AS b WHERE b.key %2$s e.neighbour AND b.neighbour %2$s e.key)',
                              sqlvec._qualified(graph.edges),
                              sqlvec._btree_operator((sqlvec._column(rel, graph.key_column)).type_oid, 3), graph.key_type) USING keys;
END
$body$;

-- As for sqlvec.backfill: fails at once inside a transaction block, under a name that says why.
CREATE OR REPLACE PROCEDURE sqlvec._build_neighbours_cannot_run_inside_a_transaction_block() LANGUAGE plpgsql
AS $body$
BEGIN
    COMMIT;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.build_neighbours(
    rel regclass, column_name text, neighbours int = 10, into_table text = NULL, batch int = 100,
    mutual boolean = false, rebuild boolean = false
) LANGUAGE plpgsql
AS $body$
DECLARE
    v_graph pg_catalog.record;
    v_keys pg_catalog.text[];
    v_after pg_catalog.text;
    v_done bigint := 0;
    v_total bigint;
    v_all boolean := coalesce(rebuild OR mutual, false);
BEGIN
    v_graph := sqlvec._neighbours_graph(rel, column_name, neighbours, into_table, batch);
    CALL sqlvec._build_neighbours_cannot_run_inside_a_transaction_block();
    -- Whatever the session's default: each batch has to see what others have committed, names above all.
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    LOOP
        SELECT h.source_column, h.key_column INTO v_graph.source_column, v_graph.key_column FROM sqlvec._hold_graph(rel, v_graph) AS h;
        v_total := coalesce(v_total, sqlvec._count_neighbours(rel, v_graph, NOT v_all));
        PERFORM sqlvec._show_neighbours('neighbours', v_done, v_total);
        v_keys := sqlvec._neighbours_keys(rel, v_graph, NOT v_all, v_after, batch);
        EXIT WHEN v_keys IS NULL;
        PERFORM sqlvec._neighbours_batch(rel, v_graph, neighbours, v_keys);
        v_after := v_keys[pg_catalog.cardinality(v_keys)];
        v_done := v_done OPERATOR(pg_catalog.+) pg_catalog.cardinality(v_keys);
        COMMIT AND CHAIN;
    END LOOP;
    v_after := NULL;
    v_done := 0;
    WHILE mutual LOOP
        SELECT h.source_column, h.key_column INTO v_graph.source_column, v_graph.key_column FROM sqlvec._hold_graph(rel, v_graph) AS h;
        PERFORM sqlvec._show_neighbours('one-sided edges', v_done, v_total);
        v_keys := sqlvec._neighbours_keys(rel, v_graph, false, v_after, batch);
        EXIT WHEN v_keys IS NULL;
        PERFORM sqlvec._drop_one_sided(rel, v_graph, v_keys);
        v_after := v_keys[pg_catalog.cardinality(v_keys)];
        v_done := v_done OPERATOR(pg_catalog.+) pg_catalog.cardinality(v_keys);
        COMMIT AND CHAIN;
    END LOOP;
    -- A caller goes on at the isolation of the session.
    COMMIT;
END
$body$;

COMMENT ON PROCEDURE sqlvec.build_neighbours(regclass, text, int, text, int, boolean, boolean) IS
    'Write the `neighbours` nearest rows of every row of a vector column into table into_table (by default <table>_neighbours) of the same schema: key, neighbour, weight (cosine, or the similarity of the column''s metric). Commits per batch, and meanwhile says in application_name, as pg_stat_activity shows it, how many rows are done; called again it goes on with rows that have no edges yet, with rebuild it does all anew. mutual keeps edges that lead both ways only, and always does all.';

-- The CTE of the rows that one edge leads to from those of CTE `origin`: key, and the largest score times
-- weight. $4 is how many edges of a row are followed in either direction, then of both together.
CREATE OR REPLACE FUNCTION sqlvec._step(edges oid, equal text, origin text) RETURNS text
LANGUAGE sql STABLE
RETURN format(
    E'(\n  SELECT e.key, max(f.score * e.weight) AS score FROM %1$s AS f CROSS JOIN LATERAL (\n'
    '    SELECT n.key, least(max(n.weight), 1)::float8 AS weight FROM (\n'
    '      (SELECT x.neighbour AS key, x.weight FROM %2$s AS x WHERE x.key %3$s f.key AND x.weight > 0 ORDER BY x.weight DESC LIMIT $4)\n'
    '      UNION ALL\n'
    '      (SELECT x.key, x.weight FROM %2$s AS x WHERE x.neighbour %3$s f.key AND x.weight > 0 ORDER BY x.weight DESC LIMIT $4)) AS n\n'
    '    WHERE NOT (n.key %3$s f.key) GROUP BY n.key ORDER BY max(n.weight) DESC, n.key LIMIT $4) AS e\n'
    '  WHERE f.score > 0 GROUP BY e.key)', origin, sqlvec._qualified(edges), equal);

CREATE OR REPLACE FUNCTION sqlvec.expand(
    edges regclass, keys anyarray, scores float8[], hops int = 1, decay float8 = 0.7, limit_edges int = 20, blend float8 = 0
) RETURNS TABLE (key anyelement, score float8, hop int)
LANGUAGE plpgsql STABLE ROWS 200 SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_type oid := sqlvec._edges(edges);
    v_equal text := sqlvec._btree_operator(v_type, 3);
    v_with text := format('WITH hop0 AS MATERIALIZED (SELECT u.key, max(u.score) AS score FROM unnest($1::%s[], $2) AS u (key, score) GROUP BY u.key)',
                          sqlvec._type_name(v_type));
    v_known text := 'SELECT h.key FROM hop0 AS h';
    v_found text := 'SELECT h.key, h.score, 0 AS hop FROM hop0 AS h';
BEGIN
    IF keys IS NULL AND scores IS NULL THEN
        RETURN; -- a search that found nothing
    ELSIF cardinality(keys) IS DISTINCT FROM cardinality(scores) THEN
        RAISE EXCEPTION 'expand takes as many keys as scores, not % and %', coalesce(cardinality(keys), 0), coalesce(cardinality(scores), 0)
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF array_position(keys, NULL) IS NOT NULL OR array_position(scores, NULL) IS NOT NULL OR 'NaN' = ANY (scores) THEN
        RAISE EXCEPTION 'no key and no score of expand is NULL, and no score NaN' USING ERRCODE = 'null_value_not_allowed';
    ELSIF (hops BETWEEN 0 AND 2) IS NOT TRUE THEN
        RAISE EXCEPTION 'hops is a number from 0 to 2, not %', hops USING ERRCODE = 'invalid_parameter_value';
    ELSIF (decay > 0 AND decay <= 1 AND blend >= 0 AND blend <= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'decay is a number above 0 and up to 1, blend one from 0 to 1, not % and %', decay, blend
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (limit_edges BETWEEN 1 AND 10000) IS NOT TRUE THEN
        RAISE EXCEPTION 'limit_edges is a number from 1 to 10000, not %', limit_edges USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR v_hop IN 1 .. greatest(hops, ceil(blend)::int) LOOP
        v_with := v_with || format(E',\nstep%1$s AS MATERIALIZED %2$s', v_hop, sqlvec._step(edges, v_equal, 'hop' || v_hop - 1));
        EXIT WHEN v_hop > hops;
        v_with := v_with || format(E',\nhop%1$s AS MATERIALIZED (\n  SELECT s.key, s.score * $3 AS score FROM step%1$s AS s\n'
                                   '  WHERE NOT EXISTS (SELECT FROM (%2$s) AS k WHERE k.key %3$s s.key))', v_hop, v_known, v_equal);
        v_known := v_known || format(' UNION ALL SELECT h.key FROM hop%s AS h', v_hop);
        v_found := v_found || format(' UNION ALL SELECT h.key, h.score, %1$s FROM hop%1$s AS h', v_hop);
    END LOOP;
    IF blend > 0 THEN
        v_found := format('SELECT f.key, CASE f.hop WHEN 0 THEN f.score * (1 - $5) + coalesce(s.score, 0) * $5 ELSE f.score END AS score, f.hop '
                          'FROM (%s) AS f LEFT JOIN step1 AS s ON s.key %s f.key', v_found, v_equal);
    END IF;
    RETURN QUERY EXECUTE format(E'%s\nSELECT a.key::%s, a.score, a.hop FROM (%s) AS a ORDER BY a.score DESC, a.hop, a.key', v_with,
                                (SELECT sqlvec._type_name(t.typelem) FROM pg_type AS t WHERE t.oid = pg_typeof(keys)), v_found)
        USING keys, scores, decay, limit_edges, blend;
END
$body$;

COMMENT ON FUNCTION sqlvec.expand(regclass, anyarray, float8[], int, float8, int, float8) IS
    'The rows of keys and those that up to `hops` (0 to 2) edges lead to, with scores: that of a row reached is the largest score * weight * decay over the edges that reach it, in either direction, of each row the `limit_edges` heaviest. With blend the rows of keys themselves score (1 - blend) * score + blend * the largest score * weight of an edge from another of them. edges is a table of sqlvec.build_neighbours, or any with columns key, neighbour and weight (0 to 1).';

-- sqlvec.carve: fewer query tokens (ball carving; Dhulipala and others 2024, arXiv:2405.19504, section C.3).

CREATE OR REPLACE FUNCTION sqlvec._cosine(a halfvec, b halfvec) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 1 - (a <=> b);
CREATE OR REPLACE FUNCTION sqlvec._total(tokens halfvec[]) RETURNS halfvec
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN (SELECT sum(t::vector) FROM unnest(tokens) AS t)::halfvec;

CREATE OR REPLACE FUNCTION sqlvec.carve(query halfvec[], threshold float8) RETURNS halfvec[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_tokens query%TYPE := ARRAY(SELECT u.token FROM unnest(query) WITH ORDINALITY AS u (token, n) WHERE u.token IS NOT NULL ORDER BY u.n);
    v_left int[] := ARRAY(SELECT generate_series(1, cardinality(v_tokens)));
    v_ball int[];
    v_carved query%TYPE := '{}';
BEGIN
    IF NOT coalesce(threshold BETWEEN 0 AND 1, false) THEN
        RAISE EXCEPTION 'threshold is a cosine from 0 to 1, not %', threshold USING ERRCODE = 'invalid_parameter_value';
    ELSIF query IS NULL THEN
        RETURN NULL;
    END IF;
    WHILE cardinality(v_left) > 0 LOOP
        -- A zero vector has no cosine and stays alone; what would not fit halfvec as a sum is left for later.
        v_ball := ARRAY(SELECT c.n FROM (
                            SELECT n, sum(sqlvec._norm(v_tokens[n])) OVER (ORDER BY n) AS reach FROM unnest(v_left) AS n
                            WHERE n = v_left[1] OR nullif(sqlvec._cosine(v_tokens[n], v_tokens[v_left[1]]), 'NaN') >= threshold) AS c
                        WHERE c.n = v_left[1] OR c.reach < 65504 ORDER BY c.n);
        v_carved := v_carved || sqlvec._total(ARRAY(SELECT v_tokens[n] FROM unnest(v_ball) AS n));
        v_left := ARRAY(SELECT n FROM unnest(v_left) AS n WHERE n <> ALL (v_ball) ORDER BY n);
    END LOOP;
    RETURN v_carved;
END
$body$;

COMMENT ON FUNCTION sqlvec.carve(halfvec[], float8) IS
    'Ball carving of query tokens: each token takes along the later ones whose cosine to it is at least threshold (0 to 1; 0.7 or more keeps the ranking), and they stand as their sum. MaxSim with fewer tokens: the same where those of a ball share their best document token, otherwise a little less.';

-- How many candidates a MaxSim search reads: it lists some by their codes, scores the first exactly, and
-- goes on while rows that it has not scored are expected to belong among the k best.
--
-- What candidates are listed by only estimates MaxSim. How well is seen on the candidates themselves: the
-- regression of exact scores on estimates holds for rows not read yet too, because candidates are chosen
-- by the estimate alone. Beyond the list estimates fall by about the same step whenever the rank doubles.
-- The two tell how many of the rows left should beat the k-th score found; once that is less than
-- k * (1 - recall), the search ends.
--
-- A middle stage, MaxSim on pooled tokens, spares most candidates the exact score: the first ones get all
-- three, later ones the exact one only where its regression on the estimate and the pooled score leaves
-- them a chance of half a thousandth or so.

-- Whether as many were found as were asked for.
CREATE OR REPLACE FUNCTION sqlvec._as_many(row_ids text[], wanted int) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(cardinality(row_ids), 0) >= wanted;

-- Share of a standard normal distribution above x, to seven digits (Abramowitz and Stegun 26.2.17; erfc
-- came with PostgreSQL 16).
CREATE OR REPLACE FUNCTION sqlvec._normal_tail(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN _normal_tail.x < 0 THEN 1 - t.tail WHEN _normal_tail.x >= 0 THEN t.tail END
    FROM (SELECT least(abs(_normal_tail.x), 30) AS size, 1 / (1 + 0.2316419 * least(abs(_normal_tail.x), 30)) AS t) AS a,
    LATERAL (SELECT exp(- a.size * a.size / 2) * 0.3989422804014327
                    * a.t * (0.319381530 + a.t * (-0.356563782 + a.t * (1.781477937 + a.t * (-1.821255978 + a.t * 1.330274429)))) AS tail) AS t;
END;

-- Where a search stands.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._maxsim_state') IS NULL THEN
        CREATE TYPE sqlvec._maxsim_state AS (
            wanted     int,      -- candidates to score, those scored among them
            bar        float8,   -- pooled + tilt * estimate below which a candidate is not scored exactly; NULL
            tilt       float8,   -- scores all
            estimates  float8[], -- of the candidates so far, with their pooled and exact scores and where they are
            pooled     float8[],
            scores     float8[],
            row_ids    text[],
            row_tables oid[],
            missing    float8,   -- how many of the k best are expected among rows that were not read
            finished   boolean,
            exhaustive boolean,  -- reading all that match is the way to go on
            complete   boolean
        );
    END IF;
END
$do$;

CREATE OR REPLACE FUNCTION sqlvec._maxsim_start(wanted int) RETURNS sqlvec._maxsim_state
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ROW(wanted, NULL, NULL, '{}', '{}', '{}', '{}', '{}', NULL, false, false, true)::sqlvec._maxsim_state;

-- What sqlvec._set_scan sets for a step. A query lies far from all documents of a graph of encodings, which
-- is walked well only with a list several times as long as what is wanted of it.
CREATE OR REPLACE FUNCTION sqlvec._maxsim_settings(wanted int, total float8, matching float8, whole boolean) RETURNS text[]
LANGUAGE sql STABLE
RETURN sqlvec._scan_settings(4 * wanted, total, matching, whole);

-- Straight line of y over x with the variance around it, or above it where that is more: on that side rows
-- are missed. Never falling: a higher estimate is no worse.
CREATE OR REPLACE FUNCTION sqlvec._line(x float8[], y float8[], OUT slope float8, OUT intercept float8, OUT variance float8)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT b.slope, b.intercept,
           (SELECT greatest(avg(d.above * d.above), avg(d.above * d.above) FILTER (WHERE d.above > 0))
            FROM (SELECT p.y - b.intercept - b.slope * p.x AS above FROM unnest(_line.x, _line.y) AS p (x, y)) AS d)
    FROM (SELECT regr_avgx(p.y, p.x) AS x, regr_avgy(p.y, p.x) AS y, regr_sxx(p.y, p.x) AS xx, regr_sxy(p.y, p.x) AS xy
          FROM unnest(x, y) AS p (x, y)) AS r,
    LATERAL (SELECT CASE WHEN r.xx > 0 THEN greatest(r.xy / r.xx, 0) ELSE 0 END AS slope) AS l,
    LATERAL (SELECT l.slope, r.y - l.slope * r.x AS intercept) AS b;
END;

-- The plane through z over x and y, where z is known, with the variance around it.
CREATE OR REPLACE FUNCTION sqlvec._plane(
    x float8[], y float8[], z float8[], OUT x_slope float8, OUT y_slope float8, OUT intercept float8, OUT variance float8
) LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT b.x_slope, b.y_slope, r.z - b.x_slope * r.x - b.y_slope * r.y,
           greatest(r.zz - b.x_slope * r.xz - b.y_slope * r.yz, 0) / greatest(r.n - 3, 1)
    FROM (SELECT count(*)::float8 AS n, avg(p.x) AS x, avg(p.y) AS y, avg(p.z) AS z,
                 regr_sxx(p.y, p.x) AS xx, regr_syy(p.y, p.x) AS yy, regr_sxy(p.y, p.x) AS xy,
                 regr_sxy(p.z, p.x) AS xz, regr_sxy(p.z, p.y) AS yz, regr_syy(p.z, p.x) AS zz
          FROM unnest(x, y, z) AS p (x, y, z) WHERE p.x IS NOT NULL AND p.y IS NOT NULL AND p.z IS NOT NULL) AS r,
    LATERAL (SELECT r.xx * r.yy - r.xy * r.xy AS size) AS d,
    -- Where x and y say the same, y says it all.
    LATERAL (SELECT CASE WHEN d.size > 1e-9 * r.xx * r.yy THEN (r.xz * r.yy - r.yz * r.xy) / d.size ELSE 0 END AS x_slope,
                    CASE WHEN d.size > 1e-9 * r.xx * r.yy THEN (r.yz * r.xx - r.xz * r.xy) / d.size
                         WHEN r.yy > 0 THEN r.yz / r.yy ELSE 0 END AS y_slope) AS b;
END;

-- The state after the candidates of one step.
--   coming    estimates of candidates that are listed for later steps, best first
--   given     candidates that the list has found
--   matching  rows that meet the condition, as far as the planner can tell
--   fixed     candidates to read whatever is expected; NULL where that is for the expectation to say
--   budget    most candidates to read
--   whole     all matches may be read instead
--   scanned   an index gave the candidates, which may have ended early
CREATE OR REPLACE FUNCTION sqlvec._maxsim_advance(
    state sqlvec._maxsim_state, estimates float8[], pooled float8[], scores float8[], row_ids text[], row_tables oid[], coming float8[], given bigint,
    k int, matching float8, recall float8, fixed int, budget int, whole boolean, scanned boolean
) RETURNS sqlvec._maxsim_state
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    s sqlvec._maxsim_state := state;
    v_count float8;
    v_left float8;
    v_estimates float8[];
    v_listed int;
    v_step float8;
    v_kth float8;
    v_line record;
    v_plane record;
    v_deviation float8;
    v_allowed float8 := (1 - recall) * k;
    v_wanted float8;
BEGIN
    s.estimates := s.estimates || estimates;
    s.pooled := s.pooled || pooled;
    s.scores := s.scores || scores;
    s.row_ids := s.row_ids || row_ids;
    s.row_tables := s.row_tables || row_tables;
    s.complete := NOT scanned OR coalesce(given, cardinality(state.estimates)) >= k;
    IF coalesce(given, cardinality(state.estimates)) < s.wanted THEN
        -- No more match, or the scan has ended. With k rows that is an answer; with fewer it may have been
        -- cut short.
        s.finished := true;
        s.exhaustive := whole AND NOT s.complete;
        RETURN s;
    END IF;
    v_count := cardinality(s.estimates);
    v_kth := (SELECT u.score FROM unnest(s.scores) AS u (score) WHERE u.score IS NOT NULL ORDER BY u.score DESC OFFSET k - 1 LIMIT 1);
    IF EXISTS (SELECT FROM unnest(s.pooled) AS u (score) WHERE u.score IS NOT NULL) THEN
        v_line := sqlvec._line(s.estimates, s.pooled);
        v_plane := sqlvec._plane(s.estimates, s.pooled, s.scores);
        IF v_plane.y_slope > 0 THEN
            s.tilt := v_plane.x_slope / v_plane.y_slope;
            s.bar := (v_kth - v_plane.intercept - 3.25 * sqrt(v_plane.variance)) / v_plane.y_slope;
        END IF;
        v_line.intercept := v_plane.intercept + v_plane.y_slope * v_line.intercept;
        v_line.variance := v_plane.variance + v_plane.y_slope * v_plane.y_slope * v_line.variance;
        v_line.slope := greatest(v_plane.x_slope + v_plane.y_slope * v_line.slope, 0);
    ELSE
        v_line := sqlvec._line(s.estimates, s.scores);
    END IF;
    IF fixed IS NOT NULL THEN
        s.finished := s.wanted >= fixed;
        s.wanted := fixed;
        RETURN s;
    END IF;

    v_left := greatest(matching / v_count, 1);
    v_estimates := ARRAY(SELECT u.estimate FROM unnest(s.estimates) AS u (estimate) ORDER BY u.estimate DESC) || coming;
    v_listed := cardinality(v_estimates);
    v_step := (v_estimates[greatest(v_listed / 2, 1)] - v_estimates[v_listed]) / ln(2::float8);
    v_deviation := greatest(sqrt(v_line.variance), 1e-9);
    -- Sum over ranks count * e^t, from the last one back: what is expected beyond each.
    SELECT max(b.beyond), min(b.rank) FILTER (WHERE b.beyond <= v_allowed) INTO s.missing, v_wanted
    FROM (SELECT v_count * exp(t.here) AS rank,
                 sum(sqlvec._normal_tail((v_kth - v_line.intercept - v_line.slope * e.estimate) / v_deviation) * r.rank * t.width) OVER (ORDER BY t.here DESC) AS beyond
          FROM (SELECT (i - 1) * ln(v_left) / 64 AS here, ln(v_left) / 64 AS width FROM generate_series(1, 64) AS i) AS t,
          LATERAL (SELECT v_count * exp(t.here + t.width / 2) AS rank) AS r,
          LATERAL (SELECT v_estimates[least(ceil(r.rank), v_listed)::int] - v_step * ln(greatest(r.rank / v_listed, 1)) AS estimate) AS e) AS b;
    -- Without a k-th score nothing can be said.
    s.missing := coalesce(s.missing, k);
    s.finished := s.missing <= v_allowed;
    IF s.finished THEN
        RETURN s;
    END IF;
    v_wanted := coalesce(v_wanted, matching);
    s.exhaustive := whole AND matching <= budget AND v_wanted > 0.7 * matching;
    s.complete := s.wanted < budget;
    s.finished := s.exhaustive OR NOT s.complete;
    -- An index is asked again for those that it has given.
    s.wanted := least(greatest(v_wanted, 2 * v_count), CASE WHEN scanned THEN 8 ELSE 4 END * v_count, budget);
    RETURN s;
END
$body$;

-- MaxSim as an expression of the statement that searches.

CREATE OR REPLACE FUNCTION sqlvec._vectors(x halfvec[]) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN x::vector[];

-- One aggregate per query token goes over a document once, in half the time of sqlvec.maxsim, which cannot
-- know how many tokens a query has. Statements for many are long in planning; there, and where the number
-- is NULL, the function is called, which workers share.
CREATE OR REPLACE FUNCTION sqlvec._maxsim_expression(type_name text, tokens text, query text, query_tokens int) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_half boolean := type_name = '_halfvec';
    v_query text := CASE WHEN v_half THEN query ELSE format('sqlvec._vectors(%s)', query) END;
    v_sum text;
BEGIN
    IF query_tokens IS NULL OR query_tokens > 128 THEN
        RETURN format(CASE WHEN v_half THEN 'sqlvec.maxsim(%s, %s)' ELSE 'sqlvec.maxsim_vector(%s, %s)' END, tokens, v_query);
    END IF;
    v_sum := (SELECT string_agg(format('pg_catalog.min("sqlvec token".x %s (%s)[%s])', sqlvec._operator('inner_product'), v_query, n),
                                ' OPERATOR(pg_catalog.+) ' ORDER BY n) FROM generate_series(1, query_tokens) AS n);
    RETURN format('(SELECT %s(0::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s)) FROM (SELECT pg_catalog.unnest(%s) AS x) AS "sqlvec token")',
                  CASE WHEN NOT v_half THEN 'sqlvec._number' END, v_sum, tokens);
END
$body$;

-- How a MaxSim search of a table is written: the statements that are the same for each of its steps.
--
-- $1 is the caller's params, $2 the query, $3 the values of filter. Candidates are listed for $4, the code
-- of the query, or of signs $11, and $12 beside it: $7 of them, without the rows at $5 and $6. A step reads
-- those at $5 and $6 with estimates $13; it compares them with $8, bar and tilt of the middle stage are $9
-- and $10.

-- An error unless the query is made of vectors that fit the column, `dimensions` where it names them.
CREATE OR REPLACE FUNCTION sqlvec._check_tokens(query halfvec[], column_name text, rel oid, dimensions int) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_least int;
    v_most int;
    v_vectors int;
BEGIN
    SELECT min(sqlvec._dims(q)), max(sqlvec._dims(q)), count(q) INTO v_least, v_most, v_vectors FROM unnest(query) AS q;
    IF query IS NULL THEN
        RAISE EXCEPTION 'the query is NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF v_vectors = 0 OR v_vectors <> cardinality(query) THEN
        RAISE EXCEPTION 'the query has %', CASE v_vectors WHEN 0 THEN 'no vectors' ELSE 'NULL among its vectors' END
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_least <> v_most THEN
        RAISE EXCEPTION 'the query has vectors of % and of % dimensions', v_least, v_most USING ERRCODE = 'data_exception';
    ELSIF dimensions <> v_most THEN
        RAISE EXCEPTION 'column "%" of table % has vectors of % dimensions, the query of %', column_name, sqlvec._qualified(rel), dimensions, v_most
            USING ERRCODE = 'data_exception';
    END IF;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._has_matrices(encoder text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN EXISTS (SELECT FROM sqlvec.encoder AS e JOIN sqlvec.encoder_vector AS v ON v.encoder = e.name
               WHERE e.name = _has_matrices.encoder AND v.part = 'sign'
                 AND v.position = (e.options ->> 'repetitions')::int * (e.options ->> 'projection')::int);

-- Encodings of a multi-vector column that the trigger keeps, of itself or of its pooled tokens (`pooled`
-- says which), each with an index where it has one that is valid and by inner product or, for bits, by
-- Hamming distance; and the milliseconds that reading a million codes takes, about: short ones stand in
-- the rows.
CREATE OR REPLACE FUNCTION sqlvec._fde_ways(rel oid, column_name name) RETURNS TABLE (
    target_column name, encoder text, code_type text, pooled name, index_name name, read_ms float8
) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.target_column, e.encoder, e.code_type, s.pooled, i.index_name,
           CASE WHEN c.bytes < 1900 THEN 300 + c.bytes / 2 ELSE 3000 + 1.4 * c.bytes END
    FROM (SELECT column_name AS source, NULL::name AS pooled
          UNION ALL
          SELECT p.target_column, p.target_column FROM sqlvec._maintained_of(rel, column_name) AS p WHERE p.kind = 'pool') AS s
    CROSS JOIN LATERAL sqlvec._maintained_of(rel, s.source) AS e
    CROSS JOIN LATERAL (SELECT CASE o.code_type WHEN 'bit' THEN o.code_dimensions / 8.0 ELSE 2.0 * o.code_dimensions END AS bytes
                        FROM sqlvec.encoder AS o WHERE o.name = e.encoder) AS c
    LEFT JOIN sqlvec._ann_indexes(rel) AS i
           ON i.attnum = e.target_attnum AND NOT i.partial
          AND i.opclass = CASE e.code_type WHEN 'bit' THEN 'bit_hamming_ops' ELSE 'halfvec_ip_ops' END
    -- The matrices may be missing (a data-only restore): no query has a code then.
    WHERE e.kind = 'fde' AND sqlvec._has_matrices(e.encoder)
    ORDER BY i.index_name IS NULL, s.pooled IS NOT NULL, e.target_column, i.index_name;
END;

-- Whether no two rows have the same value of a column, nor any NULL. Rows of tables that inherit may.
CREATE OR REPLACE FUNCTION sqlvec._identifies(rel oid, column_name name) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
RETURN EXISTS (SELECT FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
               WHERE i.indrelid = rel AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indnkeyatts = 1
                 AND a.attname = column_name AND a.attnotnull)
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits AS h JOIN pg_catalog.pg_class AS c ON c.oid = h.inhparent
                       WHERE h.inhparent = rel AND c.relkind = 'r');

CREATE OR REPLACE FUNCTION sqlvec._plan_maxsim(
    rel oid, column_name text, query halfvec[], k int, filter jsonb, where_sql text, params text[], candidates int, oversample float8,
    mode text, recall float8, pooled text, carve float8, rescore boolean, key_column text, key_type regtype, caller_path text,
    depth int = NULL,         -- rows to answer, of which k are to be sure; NULL is k
    OUT direct text,          -- answers a view, whose rows have no address; then nothing else is set
    OUT listed text,          -- candidates with their estimates, best first; NULL where all matches are read
    OUT step text,            -- scores of candidates
    OUT exhaustive text,      -- the k best of all that match, as arrays of scores and places
    OUT waiting text,         -- the same for rows that wait for their code; NULL when there are none
    OUT unlisted text,        -- rows that wait for their code, without scores; NULL when there are none
    OUT everything text,      -- all that match, without scores
    OUT carved text,          -- scores of the rows at $5, $6 with the whole query; NULL unless it was carved
    OUT answer text,          -- rows or keys of places $1, $2 with scores $3
    OUT prepare text,         -- answers $4, $11, $12 and $8, code, signs, strong signs and tokens of the query, for query $1 and
                              -- carve $2: the types are always the same, or a session could not search tables of either kind
    OUT whole boolean,        -- everything may be read instead
    OUT bound text[], OUT condition text, OUT way text, OUT index_name text, OUT middle text,
    OUT kept int,             -- of the candidates: k, more where they are to be scored again
    OUT first int, OUT fixed int, OUT budget int, OUT matching float8, OUT total float8, OUT reason text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_class record;
    v_source record;
    v_way record;
    v_hit record;
    v_alias text;
    v_from text;
    v_tokens text;
    v_fits text := '';
    v_count CONSTANT int := cardinality(query);
    v_compared int;
    v_exact text;
    v_score text;
    v_code text;
    v_distance text;
    v_at record;
    v_located text;
    v_matching text;
    v_best text;
    v_list text;
    v_arrays CONSTANT text := 'SELECT pg_catalog.array_agg(h.score) AS scores, pg_catalog.array_agg(h.row_id) AS row_ids, '
                              'pg_catalog.array_agg(h.row_table) AS row_tables FROM ';
    v_pooled text;
    v_read text;
    v_ready text;
    v_encoded boolean;
BEGIN
    PERFORM sqlvec._check_search(column_name, 1, k, candidates, oversample, mode);
    IF NOT coalesce(recall > 0 AND recall <= 1, false) THEN
        RAISE EXCEPTION 'recall is a number above 0, at most 1, not %', recall USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT (carve BETWEEN 0 AND 1) THEN
        RAISE EXCEPTION 'carve is a cosine from 0 to 1, not %', carve USING ERRCODE = 'invalid_parameter_value';
    ELSIF pooled IS NULL OR rescore IS NULL THEN
        RAISE EXCEPTION 'pooled and rescore cannot be NULL' USING ERRCODE = 'null_value_not_allowed', HINT = 'pooled is auto, none, or the name of a pooled column; rescore is true or false.';
    END IF;
    SELECT c.relname, c.relkind, c.relhassubclass, c.reltuples::float8 AS reltuples INTO v_class FROM pg_class AS c WHERE c.oid = rel;
    v_source := sqlvec._multivector_column(rel, column_name);
    PERFORM sqlvec._check_tokens(query, column_name, rel, v_source.dimensions);

    v_alias := quote_ident(v_class.relname);
    v_from := format('%s AS %s', sqlvec._qualified(rel), v_alias);
    SELECT c.bound, c.condition INTO bound, condition FROM sqlvec._condition(rel, v_class.relname, filter, where_sql) AS c;
    v_tokens := format('%s.%I', v_alias, column_name);
    -- Workers share calls of a function, not aggregates over each row.
    v_exact := sqlvec._maxsim_expression(v_source.type_name, v_tokens, '$2', CASE WHEN current_setting('max_parallel_workers_per_gather')::int < 2 THEN v_count END);
    IF v_source.dimensions IS NULL THEN
        -- A column without dimensions may hold vectors that the query cannot be compared with. Rows with a
        -- code do not, and the planner knows nothing of this condition: neither reads it.
        v_fits := format('sqlvec._dims(%s) OPERATOR(pg_catalog.=) %s AND ', v_tokens, sqlvec._dims(query));
    END IF;
    IF key_type IS NULL AND NOT sqlvec._has_addresses(rel) THEN
        IF NOT rescore THEN
            PERFORM sqlvec._check_places(rel, NULL, NULL, 'maxsim_search_keys');
        END IF;
        way := 'exact'; reason := 'rows of a view or foreign table have no address';
        direct := format('SELECT h.row_value, h.score, true FROM (SELECT (%1$s.*)::%2$s AS row_value, %3$s AS score FROM %4$s WHERE %5$s) AS h '
                         'WHERE h.score IS NOT NULL ORDER BY h.score DESC LIMIT %6$s',
                         v_alias, sqlvec._qualified(rel), v_exact, v_from, v_fits || condition, k);
        RETURN;
    END IF;
    v_hit := sqlvec._hit_statement(rel, v_alias, key_column, key_type, CASE WHEN rescore THEN k END);
    answer := v_hit.answer;
    v_matching := format('FROM %s WHERE %s AND %s IS NOT NULL', v_from, v_fits || condition, v_tokens);
    v_read := v_arrays || format('(SELECT %s AS score, %s ', v_exact, v_hit.place);
    v_best := format(' ORDER BY 1 DESC NULLS LAST, %s LIMIT %s) AS h WHERE h.score IS NOT NULL', v_hit.tie_break, coalesce(depth, k));
    v_list := v_arrays || format('(SELECT NULL::pg_catalog.float8 AS score, %s ', v_hit.place);
    exhaustive := v_read || v_matching || v_best;
    everything := v_list || v_matching || ') AS h';

    kept := greatest(CASE WHEN carve IS NULL THEN k ELSE 2 * k END, depth);
    first := coalesce(candidates, ceil(k * oversample)::int, CASE WHEN rescore THEN greatest(10 * k, 100, depth) ELSE greatest(40 * k, 400) END);
    fixed := CASE WHEN candidates IS NOT NULL OR oversample IS NOT NULL THEN first END;
    budget := coalesce(fixed, greatest(100 * k, 4000));
    way := 'exact';
    IF mode = 'exact' OR recall = 1 AND mode = 'auto' THEN
        reason := CASE WHEN mode = 'exact' THEN 'asked for' ELSE 'recall 1 takes all matching rows' END;
        RETURN;
    END IF;
    -- Steps tell the rows they have seen by their keys.
    IF key_type IS NOT NULL AND rescore AND NOT sqlvec._identifies(rel, sqlvec._key_column(rel, key_column)) THEN
        IF mode <> 'auto' THEN
            RAISE EXCEPTION 'column "%" of table % does not identify its rows', key_column, sqlvec._qualified(rel)
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'Candidates are told apart by a key that is NOT NULL and UNIQUE; mode auto or exact reads all matching rows.';
        END IF;
        reason := 'the key column is not NOT NULL and UNIQUE, so that candidates cannot be told apart';
        RETURN;
    END IF;
    SELECT w.* INTO v_way FROM sqlvec._fde_ways(rel, column_name) AS w WHERE mode IN ('auto', w.target_column, w.index_name) LIMIT 1;
    IF NOT FOUND THEN
        IF mode <> 'auto' THEN
            RAISE EXCEPTION 'mode "%" is neither auto, exact, nor an encoding of column "%" of table % or an index on one',
                mode, column_name, sqlvec._qualified(rel)
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = coalesce('There are: ' || (SELECT string_agg(concat_ws(' by index ', w.target_column, w.index_name), ', ')
                                                        FROM sqlvec._fde_ways(rel, column_name) AS w) || '.',
                                      'It has no encoding that its trigger keeps and the role may read; CALL sqlvec.add_fde declares one.');
        END IF;
        reason := 'no encoding of this column that its trigger keeps and the role may read';
        RETURN;
    END IF;
    way := v_way.target_column;

    IF condition <> 'true' OR row_security_active(rel) OR v_class.relkind <> 'r' OR v_class.reltuples <= 0 THEN
        matching := (sqlvec._estimate(format('SELECT FROM %s WHERE %s', v_from, condition), params, bound, caller_path)).matching;
    ELSE
        matching := v_class.reltuples;
    END IF;
    total := greatest(v_class.reltuples, matching, 1);
    IF mode = 'auto' AND matching <= 1.5 * first THEN
        way := 'exact';
        reason := format('about %s of %s rows match: cheaper to read than to find %s candidates', matching, total, first);
        RETURN;
    END IF;
    -- A graph gives most of the nearest codes, reading gives all of them: at the price of up to a hundred
    -- milliseconds, as much as exact scores of a thousand candidates, it is worth more.
    index_name := CASE WHEN mode = v_way.index_name OR matching * v_way.read_ms > 1e8 THEN v_way.index_name END;
    reason := concat_ws('; ', CASE WHEN mode <> 'auto' THEN 'asked for' END,
                        CASE WHEN v_way.index_name IS NULL THEN format('no valid index on column "%s"', way)
                             WHEN index_name IS NULL THEN 'so few codes are read sooner than searched well' END,
                        format('about %s of %s rows match', matching, total));

    middle := CASE pooled
        WHEN 'none' THEN NULL
        WHEN 'auto' THEN (SELECT p.target_column FROM sqlvec._maintained_of(rel, column_name) AS p WHERE p.kind = 'pool' ORDER BY p.target_column LIMIT 1)
        ELSE (SELECT p.target_column FROM sqlvec._maintained_of(rel, column_name) AS p WHERE p.kind = 'pool' AND p.target_column = pooled) END;
    IF middle IS NULL AND pooled NOT IN ('auto', 'none') THEN
        RAISE EXCEPTION '"%" is not a column of pooled tokens of column "%" of table %', pooled, column_name, sqlvec._qualified(rel)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'pooled is auto, none, or the name of a column that sqlvec.add_pooled declared.';
    END IF;
    IF fixed IS NOT NULL AND middle IS NOT NULL THEN
        first := least(fixed, greatest(10 * k, 100));
    END IF;
    v_code := format('%s.%I', v_alias, v_way.target_column);
    whole := mode = 'auto';
    prepare := format('SELECT q.*, %s AS tokens FROM (%s) AS q', CASE WHEN carve IS NULL THEN '$1' ELSE 'sqlvec.carve($1, $2)' END,
                      sqlvec._fde_query(v_way.encoder, '$1'));
    v_compared := CASE WHEN carve IS NULL THEN v_count ELSE cardinality(sqlvec.carve(query, carve)) END;
    v_score := sqlvec._maxsim_expression(v_source.type_name, 'c.tokens', '$8', v_compared);
    -- A row may wait for its pooled tokens.
    v_pooled := CASE WHEN middle IS NULL THEN 'NULL::pg_catalog.float8'
                     ELSE sqlvec._maxsim_expression(v_source.type_name, format('coalesce(%s.%I, %s)', v_alias, middle, v_tokens), '$8', v_compared) END;
    v_distance := format(CASE WHEN v_way.code_type <> 'bit' THEN '%1$s %2$s $4'
                              WHEN index_name IS NULL THEN '(%1$s %2$s $11) OPERATOR(pg_catalog.+) (%1$s %2$s $12)'
                              ELSE '%1$s %2$s $11' END,
                         v_code, sqlvec._operator(CASE v_way.code_type WHEN 'bit' THEN 'hamming' ELSE 'inner_product' END));
    listed := format(
        E'SELECT pg_catalog.array_agg(s.estimate) AS estimates, pg_catalog.array_agg(s.row_id) AS row_ids,\n'
        '  pg_catalog.array_agg(s.row_table) AS row_tables, pg_catalog.max(s.found) AS found\n'
        'FROM (\n  SELECT c.* FROM (\n    SELECT %s AS row_id, c.row_table, c.estimate, pg_catalog.count(*) OVER () AS found\n'
        '    FROM (SELECT %s, 0::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s) AS estimate\n      FROM %s WHERE %s AND %s IS NOT NULL ORDER BY %s LIMIT $7) AS c) AS c\n'
        '%s  ORDER BY c.estimate DESC) AS s',
        format(v_hit.as_text, 'c.address'), v_hit.address, v_distance, v_from, condition, v_code,
        -- By its estimate no index is found to order by.
        CASE WHEN index_name IS NULL THEN '3 DESC' ELSE v_distance END,
        CASE WHEN index_name IS NOT NULL
             THEN E'  WHERE NOT EXISTS (SELECT FROM unnest($5, $6) AS h (row_id, row_table)\n'
                  '                    WHERE h.row_id OPERATOR(pg_catalog.=) c.row_id AND h.row_table OPERATOR(pg_catalog.=) c.row_table)\n' ELSE '' END);
    v_at := sqlvec._at_place(rel, v_alias, key_column, key_type);
    v_located := format('unnest($5::%s, $5, $6, $13) AS "sqlvec hit" (place, row_id, row_table, estimate) JOIN %s ON %s', v_at.places, v_from, v_at.condition);
    -- OFFSET 0 keeps the pooled score from being computed again wherever it is compared.
    step := format(
        E'SELECT pg_catalog.array_agg(s.estimate) AS estimates, pg_catalog.array_agg(s.pooled) AS pooled, pg_catalog.array_agg(s.score) AS scores,\n'
        '  pg_catalog.array_agg(s.row_id) AS row_ids, pg_catalog.array_agg(s.row_table) AS row_tables\n'
        'FROM (\n  SELECT c.*, %s AS score\n  FROM (\n    SELECT "sqlvec hit".row_id, "sqlvec hit".row_table, "sqlvec hit".estimate, %s AS tokens, %s AS pooled\n'
        '    FROM %s\n    OFFSET 0) AS c) AS s',
        CASE WHEN middle IS NULL THEN v_score ELSE format('CASE WHEN (c.pooled OPERATOR(pg_catalog.+) ($10 OPERATOR(pg_catalog.*) c.estimate) OPERATOR(pg_catalog.<) $9) IS NOT TRUE THEN %s END', v_score) END,
        v_tokens, v_pooled, v_located);
    v_ready := 'SELECT ' || sqlvec._all_encoded(rel, NOT v_class.relhassubclass, v_from, v_way.target_column, coalesce(v_way.pooled, column_name))
               || CASE WHEN v_way.pooled IS NULL THEN '' ELSE ' AND ' || sqlvec._all_encoded(rel, NOT v_class.relhassubclass, v_from, v_way.pooled, column_name) END;
    -- Policies run inside, which may need the caller's search_path.
    PERFORM set_config('search_path', caller_path, true);
    EXECUTE v_ready INTO v_encoded;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF NOT v_encoded THEN
        v_matching := format('%s AND %s IS NULL', v_matching, v_code);
        waiting := v_read || v_matching || v_best;
        unlisted := v_list || v_matching || ') AS h';
    END IF;
    IF carve IS NOT NULL THEN
        carved := v_arrays || format('(SELECT %s AS score, "sqlvec hit".row_id, "sqlvec hit".row_table FROM %s) AS h', v_exact, v_located);
    END IF;
END
$body$;

-- sqlvec.maxsim_search, sqlvec.maxsim_search_keys: the k multi-vectors with the highest MaxSim.

-- Lets workers share a table that is small but for its tokens, which are stored out of line and count for
-- nothing in its size; answers the settings before.
CREATE OR REPLACE FUNCTION sqlvec._set_parallel(settings text[]) RETURNS text[]
LANGUAGE plpgsql
AS $body$
DECLARE
    v_before pg_catalog.text[] := ARRAY[pg_catalog.current_setting('min_parallel_table_scan_size'), pg_catalog.current_setting('jit')];
BEGIN
    PERFORM pg_catalog.set_config('min_parallel_table_scan_size', settings[1], true), pg_catalog.set_config('jit', settings[2], true);
    RETURN v_before;
END
$body$;

-- The tokens of a query numbered from 1, whatever its dimensions and lower bounds.
CREATE OR REPLACE FUNCTION sqlvec._numbered(tokens halfvec[]) RETURNS halfvec[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN CASE WHEN tokens IS NOT NULL THEN ARRAY(SELECT t FROM unnest(tokens) AS t) END;

-- Plan a search and run it, up to the statement that answers its rows or keys. STABLE, so that every step
-- sees the snapshot of the statement that searches. No SET: the caller's where_sql and policies run inside.
CREATE OR REPLACE FUNCTION sqlvec._run_maxsim(
    rel_type regtype, column_name text, query halfvec[], k int, filter jsonb, where_sql text, params text[], candidates int, oversample float8,
    mode text, recall float8, pooled text, carve float8, rescore boolean, key_column text, key_type regtype, depth int = NULL,
    OUT direct text, OUT answer text, OUT bound text[], OUT row_ids text[], OUT row_tables oid[], OUT scores float8[], OUT complete boolean
) LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    p pg_catalog.record;
    v_state sqlvec._maxsim_state;
    v_query pg_catalog.record;
    v_listed pg_catalog.record;
    v_found pg_catalog.record;
    v_from int := 0;
    v_to int;
    v_before pg_catalog.text[];
    v_now pg_catalog.text[];
BEGIN
    query := sqlvec._numbered(query);
    p := sqlvec._plan_maxsim(sqlvec._relation_of(rel_type), column_name, query, k, filter, where_sql, params, candidates, oversample, mode,
                             recall, pooled, carve, rescore, key_column, key_type, pg_catalog.current_setting('search_path'), depth);
    direct := p.direct;
    answer := p.answer;
    bound := p.bound;
    complete := true;
    IF p.direct IS NOT NULL THEN
        RETURN;
    END IF;
    IF p.step IS NOT NULL THEN
        EXECUTE p.prepare INTO v_query USING query, carve;
    END IF;
    IF NOT rescore THEN
        IF p.step IS NOT NULL THEN
            v_before := sqlvec._set_scan(sqlvec._maxsim_settings(p.first, p.total, p.matching, p.whole));
            EXECUTE p.listed INTO v_found
            USING params, query, p.bound, v_query.code, NULL::pg_catalog.text[], NULL::pg_catalog.oid[], p.first, v_query.tokens, NULL::pg_catalog.float8, NULL::pg_catalog.float8, v_query.signs,
                  v_query.strong;
            PERFORM sqlvec._set_scan(v_before);
            scores := v_found.estimates; row_ids := v_found.row_ids; row_tables := v_found.row_tables;
            complete := p.index_name IS NULL OR sqlvec._as_many(row_ids, p.first);
        END IF;
        -- Rows that have no code yet are candidates too; an early end of the scan makes all of them so.
        IF p.step IS NULL OR NOT complete AND p.whole THEN
            EXECUTE p.everything INTO v_found USING params, query, p.bound;
            scores := v_found.scores; row_ids := v_found.row_ids; row_tables := v_found.row_tables;
            complete := true;
        ELSIF p.unlisted IS NOT NULL THEN
            EXECUTE p.unlisted INTO v_found USING params, query, p.bound;
            scores := pg_catalog.array_cat(scores, v_found.scores);
            row_ids := pg_catalog.array_cat(row_ids, v_found.row_ids);
            row_tables := pg_catalog.array_cat(row_tables, v_found.row_tables);
        END IF;
        RETURN;
    END IF;
    IF p.step IS NOT NULL THEN
        v_state := sqlvec._maxsim_start(p.first);
        LOOP
            -- Reading all codes once lists all that any step may want; an index is asked again for more.
            IF p.index_name IS NOT NULL OR v_from OPERATOR(pg_catalog.=) 0 THEN
                v_now := sqlvec._set_scan(sqlvec._maxsim_settings(v_state.wanted, p.total, p.matching, p.whole));
                v_before := coalesce(v_before, v_now);
                EXECUTE p.listed INTO v_listed
                USING params, query, p.bound, v_query.code, v_state.row_ids, v_state.row_tables,
                      CASE WHEN p.index_name IS NULL THEN p.budget ELSE v_state.wanted END, v_query.tokens, v_state.bar, v_state.tilt, v_query.signs,
                      v_query.strong;
                v_from := 0;
            END IF;
            v_to := (v_from OPERATOR(pg_catalog.+) v_state.wanted) OPERATOR(pg_catalog.-) pg_catalog.cardinality(v_state.scores);
            EXECUTE p.step INTO v_found
            USING params, query, p.bound, v_query.code, v_listed.row_ids[v_from OPERATOR(pg_catalog.+) 1:v_to], v_listed.row_tables[v_from OPERATOR(pg_catalog.+) 1:v_to], v_state.wanted,
                  v_query.tokens, v_state.bar, v_state.tilt, v_query.signs, v_query.strong, v_listed.estimates[v_from OPERATOR(pg_catalog.+) 1:v_to];
            v_state := sqlvec._maxsim_advance(v_state, v_found.estimates, v_found.pooled, v_found.scores, v_found.row_ids, v_found.row_tables,
                                              v_listed.estimates[v_to OPERATOR(pg_catalog.+) 1:], v_listed.found, k, p.matching, recall, p.fixed, p.budget, p.whole,
                                              p.index_name IS NOT NULL);
            v_from := v_to;
            EXIT WHEN v_state.finished;
        END LOOP;
        PERFORM sqlvec._set_scan(v_before);
    END IF;
    IF p.step IS NULL OR v_state.exhaustive THEN
        v_before := sqlvec._set_parallel(ARRAY['0', 'off']);
        EXECUTE p.exhaustive INTO v_found USING params, query, p.bound;
        PERFORM sqlvec._set_parallel(v_before);
        scores := v_found.scores; row_ids := v_found.row_ids; row_tables := v_found.row_tables;
        RETURN;
    END IF;
    complete := v_state.complete;
    v_found := sqlvec._best_hits(v_state.scores, v_state.row_ids, v_state.row_tables, p.kept);
    IF p.carved IS NOT NULL THEN
        EXECUTE p.carved INTO v_found
        USING params, query, p.bound, v_query.code, v_found.row_ids, v_found.row_tables, NULL::int, v_query.tokens, NULL::pg_catalog.float8, NULL::pg_catalog.float8,
              v_query.signs, v_query.strong, v_found.scores;
    END IF;
    IF p.waiting IS NOT NULL THEN
        v_query := v_found;
        EXECUTE p.waiting INTO v_found USING params, query, p.bound;
        v_found.scores := pg_catalog.array_cat(v_query.scores, v_found.scores);
        v_found.row_ids := pg_catalog.array_cat(v_query.row_ids, v_found.row_ids);
        v_found.row_tables := pg_catalog.array_cat(v_query.row_tables, v_found.row_tables);
    END IF;
    v_found := sqlvec._best_hits(v_found.scores, v_found.row_ids, v_found.row_tables, coalesce(depth, k));
    scores := v_found.scores; row_ids := v_found.row_ids; row_tables := v_found.row_tables;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.maxsim_search(
    rel anyelement, column_name text, query halfvec[], k int = 10, filter jsonb = NULL, where_sql text = NULL, params text[] = NULL,
    candidates int = NULL, oversample float8 = NULL, mode text = 'auto', recall float8 = 0.95, pooled text = 'auto', carve float8 = NULL, rescore boolean = true,
    OUT hit anyelement, OUT score float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 10
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_maxsim(pg_catalog.pg_typeof(rel), column_name, query, k, filter, where_sql, params, candidates, oversample, mode,
                                recall, pooled, carve, rescore, NULL, NULL);
    IF v_run.direct IS NOT NULL THEN
        RETURN QUERY EXECUTE v_run.direct USING params, query, v_run.bound;
    ELSE
        RETURN QUERY EXECUTE v_run.answer USING v_run.row_ids, v_run.row_tables, v_run.scores, v_run.complete;
    END IF;
END
$body$;

COMMENT ON FUNCTION sqlvec.maxsim_search(anyelement, text, halfvec[], int, jsonb, text, text[], int, float8, text, float8, text, float8, boolean) IS
    'Rows of table rel (a typed NULL row, NULL::doc) with the highest MaxSim between query and a halfvec[] or vector[] column, best first, equal scores by primary key. Candidates come from a fixed dimensional encoding of the column, by its index or by reading the codes, and are scored exactly; their number grows until the expected share of the true k best among them is recall (above 0 to 1), or is candidates, or oversample (x k). k 1 to 10000; filter is JSON over the columns, where_sql is trusted SQL over the bare table name with values ($1)[i] from params; mode is auto, exact, or the name of an encoding or its index; pooled is auto, none or the column of pooled tokens that spares candidates the exact score; carve merges query tokens of that cosine while candidates are compared; rescore => false answers the candidates, by default greater of 400 and 40 x k, with the scores that the encoding estimates, NULL for a row that has none. complete is false when the budget (greater of 4000 and 100 x k candidates) or the index named by mode ended the search first.';

-- key stands fourth because Postgres resolves the type of a result column from the position that
-- its argument has in the call.
CREATE OR REPLACE FUNCTION sqlvec.maxsim_search_keys(
    rel anyelement, column_name text, query halfvec[], INOUT key anycompatible, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, mode text = 'auto', recall float8 = 0.95, pooled text = 'auto',
    carve float8 = NULL, rescore boolean = true, key_column text = NULL, OUT score float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 10
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_maxsim(pg_catalog.pg_typeof(rel), column_name, query, k, filter, where_sql, params, candidates, oversample, mode,
                                recall, pooled, carve, rescore, key_column, pg_catalog.pg_typeof(key));
    RETURN QUERY EXECUTE v_run.answer USING v_run.row_ids, v_run.row_tables, v_run.scores, v_run.complete;
END
$body$;

COMMENT ON FUNCTION sqlvec.maxsim_search_keys(anyelement, text, halfvec[], anycompatible, int, jsonb, text, text[], int, float8, text, float8, text, float8, boolean, text) IS
    'The rows of sqlvec.maxsim_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands right after the query (key => NULL::uuid): needs SELECT on the multi-vector and key columns only, and on its encoding to use that.';

-- sqlvec.explain_maxsim_search: what maxsim_search does with the same arguments, and why.

-- A line of EXPLAIN without the codes and multi-vectors that stand in it as constants.
CREATE OR REPLACE FUNCTION sqlvec._shortened(line text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN regexp_replace(line, '''([^'']{20})[^'']{80,}''', '''\1...''', 'g');

CREATE OR REPLACE FUNCTION sqlvec.explain_maxsim_search(
    rel anyelement, column_name text, query halfvec[], k int = 10, filter jsonb = NULL, where_sql text = NULL, params text[] = NULL,
    candidates int = NULL, oversample float8 = NULL, mode text = 'auto', recall float8 = 0.95, pooled text = 'auto', carve float8 = NULL,
    rescore boolean = true
) RETURNS TABLE (topic text, detail text)
LANGUAGE plpgsql
AS $body$
DECLARE
    v_rel pg_catalog.oid := sqlvec._relation_of(pg_catalog.pg_typeof(rel));
    p pg_catalog.record;
    v_state sqlvec._maxsim_state;
    v_query pg_catalog.record;
    v_listed pg_catalog.record;
    v_found pg_catalog.record;
    v_from int := 0;
    v_to int;
    v_limit int;
    v_before pg_catalog.text[];
    v_now pg_catalog.text[];
    v_problem pg_catalog.record;
    v_origin pg_catalog.text;
    v_line pg_catalog.text;
    v_step int := 0;
    v_listed_by CONSTANT pg_catalog.text := E'\n-- $1 = params, $2 = query, $3 = values of filter, $4 or $11 and $12 = code of the query, $5 and $6 = rows seen before, '
                                 '$7 = candidates';
BEGIN
    query := sqlvec._numbered(query);
    p := sqlvec._plan_maxsim(v_rel, column_name, query, k, filter, where_sql, params, candidates, oversample, mode, recall, pooled, carve,
                             rescore, NULL, NULL, pg_catalog.current_setting('search_path'));
    v_origin := CASE WHEN p.index_name IS NULL THEN pg_catalog.format('all codes in %I', p.way)
                     ELSE pg_catalog.format('index %I on %I', p.index_name, p.way) END;
    topic := 'plan';
    detail := CASE WHEN NOT rescore AND p.step IS NULL THEN 'all matching rows as candidates, without scores'
                   WHEN NOT rescore THEN pg_catalog.format('%s candidates from %s, with estimates for scores', p.first,
                                                           v_origin)
                   WHEN p.step IS NULL THEN pg_catalog.format('exact: MaxSim with every matching row, keep %s', k)
                   ELSE pg_catalog.format('%s from %s, then %sexact MaxSim on %I',
                                          CASE WHEN p.fixed IS NULL THEN pg_catalog.format('candidates, %s at first,', p.first)
                                               ELSE pg_catalog.format('%s candidates', p.fixed) END,
                                          v_origin,
                                          CASE WHEN p.middle IS NULL THEN '' ELSE pg_catalog.format('MaxSim on the pooled tokens in %I, then ', p.middle) END,
                                          column_name) END;
    RETURN NEXT;
    topic := 'why'; detail := p.reason;
    RETURN NEXT;
    detail := sqlvec._explained_filter(p.condition, p.bound);
    IF detail IS NOT NULL THEN
        topic := 'filter';
        RETURN NEXT;
    END IF;
    IF pg_catalog.row_security_active(v_rel) THEN
        topic := 'row security'; detail := pg_catalog.format('policies for role %I apply inside the search', current_user);
        RETURN NEXT;
    END IF;
    FOR v_problem IN SELECT d.target_column, d.problem FROM sqlvec.derived_column AS d
                     WHERE d.relation::pg_catalog.oid OPERATOR(pg_catalog.=) coalesce(pg_catalog.pg_partition_root(v_rel)::pg_catalog.oid, v_rel)
                       AND d.kind OPERATOR(pg_catalog.=) ANY ('{fde,pool}'::pg_catalog.text[]) AND d.problem IS NOT NULL
    LOOP
        topic := pg_catalog.format('column %I', v_problem.target_column); detail := v_problem.problem;
        RETURN NEXT;
    END LOOP;
    IF p.step IS NULL OR NOT rescore THEN
        v_line := CASE WHEN rescore THEN coalesce(p.direct, p.exhaustive) ELSE coalesce(p.listed, p.everything) END;
        topic := 'statement';
        detail := pg_catalog.concat(v_line, v_listed_by);
        RETURN NEXT;
        IF p.step IS NULL THEN
            FOR v_line IN EXECUTE pg_catalog.concat('EXPLAIN ', v_line) USING params, query, p.bound LOOP
                topic := 'explain'; detail := sqlvec._shortened(v_line);
                RETURN NEXT;
            END LOOP;
            RETURN;
        END IF;
        EXECUTE p.prepare INTO v_query USING query, carve;
        FOR v_line IN EXECUTE pg_catalog.concat('EXPLAIN ', v_line)
                      USING params, query, p.bound, v_query.code, NULL::pg_catalog.text[], NULL::pg_catalog.oid[], p.first, v_query.tokens, NULL::pg_catalog.float8, NULL::pg_catalog.float8, v_query.signs,
                            v_query.strong LOOP
            topic := 'explain'; detail := sqlvec._shortened(v_line);
            RETURN NEXT;
        END LOOP;
        RETURN;
    END IF;
    IF p.waiting IS NOT NULL THEN
        topic := 'unfinished';
        detail := pg_catalog.format('rows without a code are compared one by one; CALL sqlvec.backfill(%L);',
                                    coalesce(pg_catalog.pg_partition_root(v_rel), v_rel)::pg_catalog.regclass);
        RETURN NEXT;
    END IF;
    topic := 'statement'; detail := pg_catalog.concat(p.listed, v_listed_by);
    RETURN NEXT;
    detail := pg_catalog.concat(p.step, E'\n-- $5 and $6 = rows of the list with estimates $13, $8 = query to compare with, $9 and $10 = least pooled score + $10 * estimate');
    RETURN NEXT;
    EXECUTE p.prepare INTO v_query USING query, carve;
    IF carve IS NOT NULL THEN
        topic := 'query'; detail := pg_catalog.format('%s tokens carved to %s', pg_catalog.cardinality(query), pg_catalog.cardinality(v_query.tokens));
        RETURN NEXT;
    END IF;
    -- The search itself, step by step, with the plans of the first.
    v_state := sqlvec._maxsim_start(p.first);
    LOOP
        v_step := v_step OPERATOR(pg_catalog.+) 1;
        IF p.index_name IS NOT NULL OR v_step OPERATOR(pg_catalog.=) 1 THEN
            v_now := sqlvec._set_scan(sqlvec._maxsim_settings(v_state.wanted, p.total, p.matching, p.whole));
            v_before := coalesce(v_before, v_now);
            v_limit := CASE WHEN p.index_name IS NULL THEN p.budget ELSE v_state.wanted END;
            IF v_step OPERATOR(pg_catalog.=) 1 THEN
                FOR v_line IN EXECUTE pg_catalog.concat('EXPLAIN (ANALYZE, TIMING OFF, BUFFERS OFF) ', p.listed)
                              USING params, query, p.bound, v_query.code, v_state.row_ids, v_state.row_tables, v_limit, v_query.tokens, v_state.bar, v_state.tilt,
                                    v_query.signs, v_query.strong LOOP
                    topic := 'explain'; detail := sqlvec._shortened(v_line);
                    RETURN NEXT;
                END LOOP;
            END IF;
            EXECUTE p.listed INTO v_listed
            USING params, query, p.bound, v_query.code, v_state.row_ids, v_state.row_tables, v_limit, v_query.tokens, v_state.bar, v_state.tilt,
                  v_query.signs, v_query.strong;
            v_from := 0;
        END IF;
        v_to := (v_from OPERATOR(pg_catalog.+) v_state.wanted) OPERATOR(pg_catalog.-) pg_catalog.cardinality(v_state.scores);
        IF v_step OPERATOR(pg_catalog.=) 1 THEN
            FOR v_line IN EXECUTE pg_catalog.concat('EXPLAIN (ANALYZE, TIMING OFF, BUFFERS OFF) ', p.step)
                          USING params, query, p.bound, v_query.code, v_listed.row_ids[:v_to], v_listed.row_tables[:v_to], v_limit, v_query.tokens, v_state.bar,
                                v_state.tilt, v_query.signs, v_query.strong, v_listed.estimates[:v_to] LOOP
                topic := 'explain'; detail := sqlvec._shortened(v_line);
                RETURN NEXT;
            END LOOP;
        END IF;
        EXECUTE p.step INTO v_found
        USING params, query, p.bound, v_query.code, v_listed.row_ids[v_from OPERATOR(pg_catalog.+) 1:v_to], v_listed.row_tables[v_from OPERATOR(pg_catalog.+) 1:v_to], v_limit, v_query.tokens,
              v_state.bar, v_state.tilt, v_query.signs, v_query.strong, v_listed.estimates[v_from OPERATOR(pg_catalog.+) 1:v_to];
        topic := pg_catalog.format('step %s', v_step);
        detail := pg_catalog.format('%s candidates', v_state.wanted);
        v_state := sqlvec._maxsim_advance(v_state, v_found.estimates, v_found.pooled, v_found.scores, v_found.row_ids, v_found.row_tables,
                                          v_listed.estimates[v_to OPERATOR(pg_catalog.+) 1:], v_listed.found, k, p.matching, recall, p.fixed, p.budget, p.whole, p.index_name IS NOT NULL);
        detail := pg_catalog.concat(
            detail, pg_catalog.format(', %s scored exactly so far', (SELECT pg_catalog.count(s) FROM pg_catalog.unnest(v_state.scores) AS s)),
            CASE WHEN v_state.missing IS NOT NULL
                 THEN pg_catalog.format('; expected to be missing: %s of the %s best', pg_catalog.round(v_state.missing::numeric, 2), k) END,
            CASE WHEN v_state.exhaustive THEN '; read all that match instead' WHEN NOT v_state.complete THEN '; the budget ends here' END);
        RETURN NEXT;
        v_from := v_to;
        EXIT WHEN v_state.finished;
    END LOOP;
    PERFORM sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.explain_maxsim_search(anyelement, text, halfvec[], int, jsonb, text, text[], int, float8, text, float8, text, float8, boolean) IS
    'What sqlvec.maxsim_search does with the same arguments: the plan and its reason, filter, state of the codes, statement, its EXPLAIN ANALYZE, and how many candidates each step took and why it was not the last. Runs the search.';

-- What a BM25 query asks of a column: words that score, conditions that restrict, and their
-- frequencies in the corpus.

-- The BM25 column that column_name means: its only source, or itself; with NULL the only one of the
-- table. `field`: also one of several sources.
CREATE OR REPLACE FUNCTION sqlvec._bm25_column(rel oid, column_name text, field boolean = false) RETURNS sqlvec._derived
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_id int := (SELECT r.id FROM sqlvec._relation_ids(rel) AS r LIMIT 1);
    v_derived sqlvec._derived;
    v_known text[] := '{}';
    v_result sqlvec._derived;
    v_fields boolean;
    v_field_of name;
BEGIN
    IF v_id IS NULL THEN
        -- The trigger is gone: look through the whole catalog.
        SELECT r.id INTO v_id FROM sqlvec._relation AS r WHERE r.relation = coalesce(pg_partition_root(rel), rel);
    END IF;
    FOR v_derived IN
        SELECT d.* FROM sqlvec._derived AS d
        WHERE d.relation_id = v_id AND d.kind = 'bm25' AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL
        ORDER BY column_name IS NOT DISTINCT FROM d.target_column DESC, d.id
    LOOP
        v_fields := cardinality(v_derived.source_columns) > 1;
        IF column_name IS NULL OR column_name = ANY (v_derived.target_columns)
           OR column_name = ANY (v_derived.source_columns) AND (field OR NOT v_fields) THEN
            IF v_result.id IS NOT NULL AND NOT field AND v_result.target_column IS DISTINCT FROM column_name THEN
                RAISE EXCEPTION 'table % has several BM25 columns%', sqlvec._qualified(rel), coalesce(' on "' || column_name || '"', '')
                    USING ERRCODE = 'ambiguous_column', HINT = format('Name one: %I or %I.', v_result.target_column, v_derived.target_column);
            END IF;
            v_result := coalesce(v_result, v_derived);
        ELSIF column_name = ANY (v_derived.source_columns) THEN
            v_field_of := v_derived.target_column;
        END IF;
        v_known := v_known || format('%I (of %s)', v_derived.target_column,
                                     (SELECT string_agg(quote_ident(s), ', ') FROM unnest(v_derived.source_columns) AS s));
    END LOOP;
    IF v_result.id IS NULL THEN
        IF column_name IS NOT NULL THEN
            PERFORM sqlvec._column(rel, column_name);
        END IF;
        IF v_field_of IS NOT NULL THEN
            RAISE EXCEPTION 'column "%" of table % is one of several fields of BM25 column "%"', column_name, sqlvec._qualified(rel), v_field_of
                USING ERRCODE = 'ambiguous_column', HINT = format('Search all of them by its name, %L.', v_field_of);
        END IF;
        RAISE EXCEPTION 'table % has no BM25 column%', sqlvec._qualified(rel), coalesce(' on "' || column_name || '"', '')
            USING ERRCODE = 'undefined_column',
                  HINT = CASE WHEN v_known = '{}' THEN format('CALL sqlvec.add_bm25(%L, %L);', sqlvec._qualified(rel), coalesce(column_name, '...'))
                              ELSE 'It has: ' || array_to_string(v_known, '; ') || '.' END;
    END IF;
    RETURN v_result;
END
$body$;

-- A lexeme as tsquery input.
CREATE OR REPLACE FUNCTION sqlvec._quote_lexeme(lexeme text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''';

-- Read a query. Words are alternatives; "a phrase" and +word are required, -word and -"phrase"
-- excluded; word* stands for its completions; OR makes what stands on both sides alternatives of one
-- another. Any text is a query.
--   lexemes, counts  the words that score and how often each stands in the query
--   required, excluded  what a document must and must not match; NULL for nothing
--   prefixes            what completes a word; matches like a word
CREATE OR REPLACE FUNCTION sqlvec._parse_bm25(
    config regconfig, query text, OUT lexemes text[], OUT counts int[], OUT required tsquery, OUT excluded tsquery, OUT prefixes tsquery
) LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $body$
DECLARE
    v_token text[];
    v_sign text;
    v_text text;
    v_words text := '';
    v_clause tsquery;
    v_is_required boolean;
    v_or boolean := false;           -- the last token was OR
    v_last tsquery;                  -- the clause before, to be joined by OR
    v_last_required boolean := false;
    v_completed int := 0;            -- prefixes so far
BEGIN
    query := left(query, 10000);
    IF query !~* '["+*-]|\yor\y' THEN
        v_words := query; -- plain words, as most queries are
    ELSE
        FOR v_token IN SELECT regexp_matches(query, '([+-]?)"([^"]*)"?|([+-]?)([^\s"]+)', 'g') LOOP
            v_sign := coalesce(v_token[1], v_token[3]);
            v_text := coalesce(v_token[2], v_token[4]);
            IF v_token[4] IS NOT NULL AND v_sign = '' AND lower(v_text) = 'or' THEN
                v_or := v_last IS NOT NULL;
                CONTINUE;
            END IF;
            v_clause := NULL;
            IF to_tsvector(config, v_text) = '' THEN
                NULL; -- a stop word asks for nothing, and to_tsquery would say so aloud
            ELSIF v_token[4] ~ '^[^*]*\w[^*]*\*+$' AND v_completed < 20 THEN
                -- Each asks the index for all its completions: those after the twentieth are words.
                v_completed := v_completed + 1;
                v_clause := to_tsquery(config, '''' || replace(replace(rtrim(v_text, '*'), '\', ' '), '''', ' ') || ''':*');
                IF v_sign <> '-' THEN
                    prefixes := coalesce(prefixes || v_clause, v_clause);
                END IF;
            ELSE
                v_clause := CASE WHEN v_token[2] IS NOT NULL THEN phraseto_tsquery(config, v_text) ELSE plainto_tsquery(config, v_text) END;
                IF v_sign <> '-' THEN
                    v_words := v_words || ' ' || v_text;
                END IF;
            END IF;
            CONTINUE WHEN v_clause IS NULL;
            IF v_sign = '-' THEN
                excluded := coalesce(excluded || v_clause, v_clause);
                v_or := false;
                CONTINUE;
            END IF;
            v_is_required := v_sign = '+' OR v_token[2] IS NOT NULL;
            IF v_or THEN
                -- Put the alternatives in the place of the one before.
                v_clause := v_last || v_clause;
                v_is_required := v_is_required OR v_last_required;
            ELSIF v_last_required THEN
                required := coalesce(required && v_last, v_last);
            END IF;
            v_last := v_clause; v_last_required := v_is_required; v_or := false;
        END LOOP;
        IF v_last_required THEN
            required := coalesce(required && v_last, v_last);
        END IF;
    END IF;
    SELECT array_agg(t.lexeme ORDER BY t.lexeme), array_agg(t.n ORDER BY t.lexeme) INTO lexemes, counts
    FROM (SELECT u.lexeme, coalesce(cardinality(u.positions), 1) AS n
          FROM unnest(to_tsvector(config, v_words)) AS u
          ORDER BY 2 DESC, 1 LIMIT 1000) AS t;
    lexemes := coalesce(lexemes, '{}');
    counts := coalesce(counts, '{}');
END
$body$;

-- A document that is found must match this; NULL for a query that asks for nothing.
CREATE OR REPLACE FUNCTION sqlvec._bm25_condition(lexemes text[], required tsquery, excluded tsquery, prefixes tsquery) RETURNS tsquery
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN c.positive IS NULL THEN NULL WHEN excluded IS NULL THEN c.positive ELSE c.positive && !!excluded END
    FROM (SELECT CASE WHEN required IS NOT NULL THEN required
                      WHEN lexemes = '{}' THEN prefixes
                      WHEN prefixes IS NULL THEN w.words
                      ELSE w.words || prefixes END AS positive
          FROM (SELECT string_agg(sqlvec._quote_lexeme(l), ' | ')::tsquery AS words FROM unnest(lexemes) AS l) AS w) AS c;
END;

DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._bm25_query') IS NULL THEN
        CREATE TYPE sqlvec._bm25_query AS (
            derived   sqlvec._derived,
            tenant    text,
            condition tsquery,  -- what a document must match; NULL for nothing to search
            required  tsquery,
            excluded  tsquery,
            prefixes  tsquery,
            documents float8,   -- in the corpus
            counted   boolean,  -- by analyze_bm25
            lexemes   text[],   -- the words, then completions of prefixes
            weights   float8[], -- idf times occurrences in the query
            documents_with int[],
            tiers     int[],    -- four numbers for each lexeme: documents in which it reaches a tier
            collides  boolean   -- a word shares its dimension with another term of the corpus
        );
    END IF;
END
$do$;

-- Rows that match, but at most 10,000.
CREATE OR REPLACE FUNCTION sqlvec._count_documents(rel oid, condition text, word tsquery, bound text[]) RETURNS int
LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_count int;
BEGIN
    EXECUTE pg_catalog.format('SELECT pg_catalog.count(*) FROM (SELECT FROM %s AS t WHERE %s LIMIT 10000) AS c', sqlvec._qualified(rel), condition)
    INTO v_count USING word, bound;
    RETURN v_count;
END
$body$;

-- Sorts behind every other in collation C.
CREATE OR REPLACE FUNCTION sqlvec._last_character() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN chr(CASE getdatabaseencoding() WHEN 'UTF8' THEN 1114111 ELSE 255 END);

-- Read a query and look its words up. `tenant` comes from the caller or from the filter.
CREATE OR REPLACE FUNCTION sqlvec._prepare_bm25(rel oid, column_name text, query text, filter jsonb, tenant text) RETURNS sqlvec._bm25_query
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $body$
DECLARE
    q sqlvec._bm25_query;
    v_parsed record;
    v_corpus record;
    v_prefix text[];
    v_terms text;
    v_tenant text := '';
    v_bound text[];
    v_countable boolean;
BEGIN
    IF query IS NULL THEN
        RAISE EXCEPTION 'the query is NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    q.derived := sqlvec._bm25_column(rel, column_name);
    q.tenant := tenant;
    IF (q.derived).tenant_column IS NOT NULL THEN
        IF q.tenant IS NULL THEN
            q.tenant := CASE jsonb_typeof(filter -> (q.derived).tenant_column)
                            WHEN 'object' THEN filter -> (q.derived).tenant_column ->> '$eq'
                            WHEN 'array' THEN NULL
                            ELSE filter ->> (q.derived).tenant_column END;
        END IF;
        IF q.tenant IS NULL THEN
            RAISE EXCEPTION 'column "%" of table % has statistics of its own for each "%"', (q.derived).target_column, sqlvec._qualified(rel), (q.derived).tenant_column
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = format('Search one of them: tenant => ''...'', or filter => ''{"%s": ...}''.', (q.derived).tenant_column);
        END IF;
        -- As the column writes the value.
        EXECUTE format('SELECT ($1::%s)::text', format_type((sqlvec._column(rel, (q.derived).tenant_column)).type_oid, -1)) INTO q.tenant USING q.tenant;
        v_tenant := format(' AND t.%I::text = ($2)[1]', (q.derived).tenant_column);
        v_bound := ARRAY[q.tenant];
    ELSIF q.tenant IS NOT NULL THEN
        RAISE EXCEPTION 'column "%" of table % was not declared with a tenant', (q.derived).target_column, sqlvec._qualified(rel)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Use filter.';
    END IF;

    v_parsed := sqlvec._parse_bm25(sqlvec._bm25_config((q.derived).options)::regconfig, query);
    q.lexemes := v_parsed.lexemes; q.required := v_parsed.required; q.excluded := v_parsed.excluded; q.prefixes := v_parsed.prefixes;
    q.condition := sqlvec._bm25_condition(v_parsed.lexemes, v_parsed.required, v_parsed.excluded, v_parsed.prefixes);
    IF q.condition IS NULL THEN
        RETURN q;
    END IF;

    -- Equality finds one of many tenants by the index.
    IF q.tenant IS NULL THEN
        SELECT c.id, c.documents INTO v_corpus FROM sqlvec.bm25_corpus AS c WHERE c.derived_id = (q.derived).id AND c.tenant IS NULL;
    ELSE
        SELECT c.id, c.documents INTO v_corpus FROM sqlvec.bm25_corpus AS c WHERE c.derived_id = (q.derived).id AND c.tenant = q.tenant;
    END IF;
    q.counted := FOUND;
    IF q.prefixes IS NOT NULL THEN
        -- Its completions: the most frequent that the statistics know.
        FOR v_prefix IN SELECT regexp_matches(q.prefixes::text, '''((?:[^'']|'''')*)'':\*', 'g') LOOP
            v_prefix[1] := replace(replace(v_prefix[1], '''''', ''''), '\\', '\');
            q.lexemes := q.lexemes || ARRAY(
                SELECT f.lexeme FROM sqlvec.bm25_frequency AS f
                WHERE f.corpus_id = v_corpus.id AND f.lexeme >= v_prefix[1] COLLATE "C" AND f.lexeme < (v_prefix[1] || sqlvec._last_character()) COLLATE "C"
                      AND f.lexeme <> ALL (q.lexemes)
                ORDER BY f.documents DESC, f.lexeme LIMIT greatest(0, least(64, 1000 - cardinality(q.lexemes))));
        END LOOP;
    END IF;
    SELECT array_agg(coalesce(f.documents, -1) ORDER BY w.n), coalesce(bool_or(f.collides), false),
           string_agg(coalesce(array_to_string(f.tiers, ','), '0,0,0,0'), ',' ORDER BY w.n)
    INTO q.documents_with, q.collides, v_terms
    FROM unnest(q.lexemes) WITH ORDINALITY AS w (lexeme, n)
    LEFT JOIN (SELECT g.* FROM sqlvec.bm25_frequency AS g WHERE g.corpus_id = v_corpus.id AND g.lexeme = ANY (q.lexemes)) AS f
           ON f.lexeme = w.lexeme;
    q.tiers := ('{' || v_terms || '}')::int[];
    -- Words that the statistics do not know may share a dimension all the same.
    q.collides := q.collides OR (SELECT count(DISTINCT sqlvec._bm25_dimension(l)) < count(*) FROM unnest(q.lexemes) AS l);

    q.documents := v_corpus.documents;
    v_terms := coalesce((q.derived).target_columns[2], (q.derived).source_columns[1]);
    v_countable := NOT row_security_active(rel) AND has_column_privilege(rel, v_terms, 'SELECT');
    v_terms := format('t.%I', v_terms);
    IF NOT q.counted THEN
        q.documents := CASE WHEN v_countable THEN sqlvec._count_documents(rel, v_terms || ' IS NOT NULL' || v_tenant, NULL, v_bound) ELSE 10000 END;
        IF q.documents = 10000 AND v_tenant = '' THEN
            q.documents := greatest(q.documents, (SELECT sum(c.reltuples) FROM sqlvec._leaves(rel) AS t JOIN pg_class AS c ON c.oid = t.leaf));
        END IF;
    END IF;
    -- Words that the statistics do not know. Under row security counting one would read the table, so it
    -- counts as rare.
    FOR n IN 1 .. cardinality(q.lexemes) LOOP
        IF q.documents_with[n] = -1 THEN
            q.documents_with[n] := CASE WHEN v_countable
                THEN sqlvec._count_documents(rel, v_terms || ' OPERATOR(pg_catalog.@@) $1' || v_tenant, sqlvec._quote_lexeme(q.lexemes[n])::tsquery, v_bound)
                ELSE 1 END;
        END IF;
    END LOOP;
    q.weights := ARRAY(
        SELECT coalesce(v_parsed.counts[w.n], 1) * ln(1 + (greatest(q.documents, w.df) - w.df + 0.5::float8) / (w.df + 0.5::float8))
        FROM unnest(q.documents_with) WITH ORDINALITY AS w (df, n) ORDER BY w.n);
    RETURN q;
END
$body$;

-- The words of a query.
CREATE OR REPLACE FUNCTION sqlvec._words(condition tsquery) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN (numnode(condition) + 1) / 2;

-- The score that no document can exceed.
CREATE OR REPLACE FUNCTION sqlvec._bm25_maximum(q sqlvec._bm25_query) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce((SELECT sum(w) FROM unnest((q).weights) AS w), 0) * ((((q).derived).options ->> 'k1')::float8 + 1);

-- The words with their weights as a vector: a score is 0 - (code <#> this).
CREATE OR REPLACE FUNCTION sqlvec._bm25_vector(lexemes text[], weights float8[]) RETURNS sparsevec
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET extra_float_digits = 1
BEGIN ATOMIC
    SELECT ('{' || coalesce(string_agg(d.dimension || ':' || d.weight, ','), '') || '}/1000000000')::sparsevec
    FROM (SELECT sqlvec._bm25_dimension(w.lexeme) AS dimension, sum(w.weight)::real AS weight
          FROM unnest(lexemes, weights) AS w (lexeme, weight) GROUP BY 1) AS d
    WHERE d.weight > 0;
END;

-- The score of one document from its terms: what its code gives, for documents whose code is not there
-- or cannot be trusted.
CREATE OR REPLACE FUNCTION sqlvec._bm25_score(
    terms tsvector, lexemes text[], query_weights float8[], k1 float8, b float8, average_length float8, weights real[]
) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT coalesce(sum(q.weight * t.frequency * (k1 + 1) / (t.frequency + k1 * (1 - b + b * t.length / average_length))), 0)
    FROM (SELECT u.lexeme, u.frequency, sum(u.frequency) OVER () AS length FROM sqlvec._bm25_terms(terms, weights) AS u) AS t
    JOIN unnest(lexemes, query_weights) AS q (lexeme, weight) ON q.lexeme = t.lexeme;
END;

-- SQL of the score of row `alias` from its terms, with the words in $5 and their weights in $6.
CREATE OR REPLACE FUNCTION sqlvec._bm25_score_expression(options jsonb, terms text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('sqlvec._bm25_score(%s, $5, $6, %s)', terms, sqlvec._bm25_constants(options));

-- BM25 indexes of other extensions, as finders of candidates. Scores, and what a query means, stay
-- sqlvec's own: what such an index finds is matched and scored like everything else.

-- The BM25 index of an extension that serves a column, NULL columns where there is none. All of them
-- call their access method bm25: the extension it belongs to tells them apart.
CREATE OR REPLACE FUNCTION sqlvec._bm25_native_index(
    rel oid, columns name[], backend text, OUT extension name, OUT index_oid oid, OUT column_name name, OUT options text[]
) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.extname, i.indexrelid, a.attname, c.reloptions
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'bm25'
    JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_am'::regclass AND d.objid = m.oid AND d.deptype = 'e'
    JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = rel AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = rel AND i.indisvalid AND i.indpred IS NULL
      AND e.extname = CASE backend WHEN 'paradedb' THEN 'pg_search' ELSE backend END
      -- VectorChord indexes a column of its own type, the others the text.
      AND (a.attname = ANY (columns) OR e.extname = 'vchord_bm25')
    ORDER BY c.relname
    LIMIT 1;
END;

-- How rows `alias` are found through such an index: a condition and an order over the words in $7.
-- `place` is the schema of the extension's operators, `key` the key column of a ParadeDB index,
-- `tokenizer` the one that filled a column of VectorChord.
CREATE OR REPLACE FUNCTION sqlvec._bm25_native_sql(
    backend text, alias text, column_name text, index_name text, place text, key text, tokenizer text,
    OUT condition text, OUT ordering text
) LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    condition := 'true';
    CASE backend
    WHEN 'pg_textsearch' THEN
        ordering := format('%s.%I OPERATOR(%I.<@>) %3$I.to_bm25query($7, %L)', alias, column_name, place, index_name);
    WHEN 'paradedb' THEN
        condition := format('%s.%I OPERATOR(%I.|||) $7', alias, column_name, place);
        ordering := format('pdb.score(%s.%I) DESC', alias, key);
    WHEN 'vchord_bm25' THEN
        ordering := format('%s.%I OPERATOR(%I.<&>) %3$I.to_bm25query(%L::pg_catalog.regclass, tokenizer_catalog.tokenize($7, %L)::%3$I.bm25vector)',
                           alias, column_name, place, index_name, tokenizer);
    END CASE;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._check_backend(backend text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF backend IS NULL OR backend NOT IN ('auto', 'sqlvec', 'pg_textsearch', 'paradedb', 'vchord_bm25') THEN
        RAISE EXCEPTION 'backend "%" is unknown', backend
            USING ERRCODE = 'invalid_parameter_value', HINT = 'There are: auto, sqlvec, pg_textsearch, paradedb, vchord_bm25.';
    END IF;
END
$body$;

-- The native index that a search uses: the one asked for, or with auto a pg_textsearch index of the
-- same configuration, k1 and b, which ranks alike. The other two split text in ways of their own.
-- NULL columns: none.
CREATE OR REPLACE FUNCTION sqlvec._bm25_native(
    rel oid, derived sqlvec._derived, backend text, plain boolean, alias text, OUT name text, OUT condition text, OUT ordering text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_index record;
    v_place name;
    v_tokenizers text[];
    v_options jsonb;
BEGIN
    IF backend = 'sqlvec' OR backend = 'auto' AND NOT (plain AND EXISTS (SELECT FROM pg_am AS m WHERE m.amname = 'bm25')) THEN
        RETURN;
    END IF;
    SELECT * INTO v_index FROM sqlvec._bm25_native_index(rel, derived.source_columns, CASE backend WHEN 'auto' THEN 'pg_textsearch' ELSE backend END);
    v_options := (SELECT coalesce(jsonb_object_agg(split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), '{}') FROM unnest(v_index.options) AS o);
    IF backend = 'auto' THEN
        IF v_index.index_oid IS NULL OR cardinality(derived.source_columns) > 1
           OR (v_options ->> 'text_config')::regconfig IS DISTINCT FROM sqlvec._bm25_config(derived.options)::regconfig
           OR coalesce((v_options ->> 'k1')::float8, 1.2) <> (derived.options ->> 'k1')::float8
           OR coalesce((v_options ->> 'b')::float8, 0.75) <> (derived.options ->> 'b')::float8 THEN
            RETURN;
        END IF;
    ELSIF v_index.index_oid IS NULL THEN
        RAISE EXCEPTION 'no index of % serves column "%" of table %', backend, array_to_string(derived.source_columns, ', '), sqlvec._qualified(rel)
            USING ERRCODE = 'undefined_object', HINT = 'Use backend => ''sqlvec'', or build one.';
    END IF;
    name := CASE backend WHEN 'auto' THEN 'pg_textsearch' ELSE backend END;
    SELECT n.nspname INTO v_place
    FROM pg_operator AS o JOIN pg_namespace AS n ON n.oid = o.oprnamespace
    JOIN pg_depend AS d ON d.classid = 'pg_operator'::regclass AND d.objid = o.oid AND d.deptype = 'e'
    JOIN pg_extension AS e ON e.oid = d.refobjid
    WHERE e.extname = v_index.extension AND o.oprname = CASE name WHEN 'pg_textsearch' THEN '<@>' WHEN 'paradedb' THEN '|||' ELSE '<&>' END
    LIMIT 1;
    IF name = 'vchord_bm25' THEN
        v_tokenizers := ARRAY[nullif(current_setting('sqlvec.vchord_tokenizer', true), '')];
        IF v_tokenizers[1] IS NULL THEN
            RAISE EXCEPTION 'which tokenizer filled column "%"?', v_index.column_name
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Say it: SET sqlvec.vchord_tokenizer = ''...'';';
        END IF;
    END IF;
    SELECT s.condition, s.ordering INTO condition, ordering
    FROM sqlvec._bm25_native_sql(name, alias, v_index.column_name, sqlvec._qualified(v_index.index_oid), v_place,
                                 v_options ->> 'key_field', v_tokenizers[1]) AS s;
END
$body$;

-- Which documents a BM25 search reads: one tsquery after another, until no other could be among the k best.
--
-- MaxScore (Turtle and Flood 1995) over an index that knows tiers of weight. Each word adds at most its
-- idf times k1 + 1 to a score, and to the documents where it reaches no tier above the l-th, at most
-- the limit of that tier. A search reads the documents that hold the cheapest of these (word, tier)
-- first; the k-th score found then tells which combinations of the rest could still beat it, and only
-- documents that hold one of those are read. Scores and ranks are exact, the bounds only save work.

-- How far each word has been read: 5 not at all, l > 0 in all documents where it reaches tier l, 0 in
-- all. Takes the items with the most bound per document first, until about `budget` documents.
CREATE OR REPLACE FUNCTION sqlvec._bm25_caps(weights float8[], documents_with int[], tiers int[], tiered boolean, budget float8) RETURNS int[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT array_agg(c.cap ORDER BY c.word)
    FROM (
        SELECT o.word, coalesce(min(o.level) FILTER (WHERE o.reads <= budget OR o.place = 1), 5) AS cap
        FROM (
            SELECT r.word, r.level, row_number() OVER cheapest AS place,
                   sum(r.cost) OVER (cheapest ROWS UNBOUNDED PRECEDING) AS reads
            FROM (
                -- A level comes after the higher ones of its word.
                SELECT i.word, i.level, i.cost, max(i.cost / i.gain) OVER (PARTITION BY i.word ORDER BY i.level DESC) AS price
                FROM (
                    SELECT w.word, l.level,
                           greatest(CASE WHEN l.level = 0 THEN documents_with[w.word] ELSE tiers[4 * w.word - 4 + l.level] END
                                    - CASE WHEN l.level = 4 OR NOT tiered THEN 0 ELSE tiers[4 * w.word - 3 + l.level] END, 0)::float8 AS cost,
                           greatest(w.weight * CASE WHEN tiered THEN sqlvec._bm25_tier(l.level + 1) - sqlvec._bm25_tier(l.level) ELSE 1 END,
                                    1e-9) AS gain
                    FROM unnest(weights) WITH ORDINALITY AS w (weight, word)
                    JOIN generate_series(0, 4) AS l (level) ON tiered OR l.level = 0
                ) AS i
            ) AS r
            WINDOW cheapest AS (ORDER BY r.price, r.word, r.level DESC)
        ) AS o
        GROUP BY o.word
    ) AS c;
END;

-- The documents in which a word reaches tier `level`.
CREATE OR REPLACE FUNCTION sqlvec._bm25_item(lexeme text, level int) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN level = 0 THEN sqlvec._quote_lexeme(lexeme) ELSE sqlvec._quote_lexeme(chr(level) || lexeme) END;

-- The documents that have been read; character 5 marks those that are read whatever they weigh.
CREATE OR REPLACE FUNCTION sqlvec._bm25_read(lexemes text[], caps int[], tiered boolean) RETURNS tsquery
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT (string_agg(sqlvec._bm25_item(w.lexeme, w.cap), ' | ')
            || CASE WHEN tiered THEN ' | ' || sqlvec._quote_lexeme(chr(5)) ELSE '' END)::tsquery
    FROM unnest(lexemes, caps) AS w (lexeme, cap)
    WHERE w.cap < 5;
END;

-- The most that a word can add to the score of a document that has not been read.
CREATE OR REPLACE FUNCTION sqlvec._bm25_bound(weight float8, cap int, k1 float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN weight * (k1 + 1) * sqlvec._bm25_tier(cap);

-- Where a search stands.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._bm25_state') IS NULL THEN
        CREATE TYPE sqlvec._bm25_state AS (
            words    text[],   -- of the query, the heaviest first
            weights  float8[],
            documents_with int[],
            tiers    int[],
            tiered   boolean,  -- the index knows tiers, and they can be trusted
            caps     int[],    -- how far each word has been read, see _bm25_caps
            budget   float8,   -- documents to read in the next step
            step     tsquery,  -- what to read now; NULL when all is done
            finished boolean,  -- nothing comes after this step
            least    float8,   -- scores below need not be found; NULL: all are wanted
            scores   float8[], -- of the best found so far, with where they are
            row_ids  text[],   -- address, or key where keys are asked for
            row_tables oid[]
        );
    END IF;
END
$do$;

-- Documents, not read yet, whose bounds add up to more than `need`, as a tsquery: '' for all of them,
-- NULL for none; and what share of the corpus they are if words stand independently. Counts down
-- `steps` and gives up below zero. Words from `word` on.
CREATE OR REPLACE FUNCTION sqlvec._bm25_beyond(
    state sqlvec._bm25_state, documents float8, k1 float8, need float8, word int, INOUT steps int, OUT beyond text, OUT share float8
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_rest float8 := 0;
    v_inner record;
    v_before text;
    v_parts text[] := '{}';
BEGIN
    steps := steps - 1;
    share := 0;
    IF need < 0 THEN
        beyond := '';
        share := 1;
        RETURN;
    END IF;
    FOR n IN word .. cardinality(state.words) LOOP
        v_rest := v_rest + sqlvec._bm25_bound(state.weights[n], state.caps[n], k1);
    END LOOP;
    IF v_rest <= need OR steps < 0 THEN
        RETURN;
    END IF;
    -- Without this word, then with it in each tier. A tier that asks no less of the other words than
    -- the one below adds nothing.
    v_inner := sqlvec._bm25_beyond(state, documents, k1, need, word + 1, steps);
    steps := v_inner.steps;
    v_before := v_inner.beyond;
    share := v_inner.share;
    IF v_before = '' THEN
        beyond := '';
        RETURN;
    ELSIF v_before IS NOT NULL THEN
        v_parts := ARRAY[v_before];
    END IF;
    FOR v_level IN 0 .. CASE WHEN state.tiered THEN state.caps[word] - 1 ELSE 0 END LOOP
        EXIT WHEN state.caps[word] = 0;
        v_inner := sqlvec._bm25_beyond(
            state, documents, k1,
            need - sqlvec._bm25_bound(state.weights[word], CASE WHEN state.tiered THEN v_level + 1 ELSE 5 END, k1), word + 1, steps);
        steps := v_inner.steps;
        CONTINUE WHEN v_inner.beyond IS NOT DISTINCT FROM v_before;
        v_before := v_inner.beyond;
        share := share + v_inner.share / greatest(documents, 1)
                 * CASE WHEN v_level = 0 THEN state.documents_with[word] ELSE state.tiers[4 * word - 4 + v_level] END;
        v_parts := v_parts || CASE WHEN v_before = '' THEN sqlvec._bm25_item(state.words[word], v_level)
                                   ELSE format('(%s & %s)', sqlvec._bm25_item(state.words[word], v_level), v_before) END;
        EXIT WHEN v_before = '';
    END LOOP;
    beyond := CASE cardinality(v_parts) WHEN 0 THEN NULL WHEN 1 THEN v_parts[1] ELSE '(' || array_to_string(v_parts, ' | ') || ')' END;
END
$body$;

-- The next step of a search. `once`: read everything that matches in one step.
CREATE OR REPLACE FUNCTION sqlvec._bm25_step(q sqlvec._bm25_query, state sqlvec._bm25_state, k int, once boolean) RETURNS sqlvec._bm25_state
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    s sqlvec._bm25_state := state;
    v_k1 float8 := ((q).derived).options ->> 'k1';
    v_read tsquery := sqlvec._bm25_read(s.words, s.caps, s.tiered);
    v_threshold float8;
    v_beyond record;
BEGIN
    s.step := NULL;
    IF s.finished THEN
        RETURN s;
    ELSIF once OR s.words = '{}' THEN
        s.step := q.condition;
        s.finished := true;
        RETURN s;
    END IF;
    IF array_remove(s.caps, 0) = '{}' THEN
        -- Every word has been read: what is left matches by a prefix alone.
        s.finished := true;
        IF q.prefixes IS NOT NULL AND cardinality(s.scores) < k THEN
            s.step := q.condition && !!v_read;
        END IF;
        RETURN s;
    END IF;
    IF cardinality(s.scores) >= k OR s.least > 0 THEN
        -- Scores add up in single precision: leave room for its rounding.
        v_threshold := greatest(s.scores[k], s.least) * (1 - 1e-5);
        v_beyond := sqlvec._bm25_beyond(s, q.documents, v_k1, v_threshold, 1, 200);
        IF v_beyond.steps >= 0 AND v_beyond.beyond IS NULL THEN
            s.finished := true;
            RETURN s;
        ELSIF v_beyond.steps >= 0 AND v_beyond.beyond <> '' AND v_beyond.share * q.documents <= 2 * s.budget THEN
            s.step := v_beyond.beyond::tsquery;
            s.finished := true;
        END IF;
    END IF;
    IF s.step IS NULL THEN
        -- Read on, four times as much as before.
        LOOP
            s.caps := sqlvec._bm25_caps(s.weights, s.documents_with, s.tiers, s.tiered, s.budget);
            s.budget := s.budget * 4;
            EXIT WHEN s.caps <> state.caps;
        END LOOP;
        IF v_read IS NULL AND q.prefixes IS NULL AND array_remove(s.caps, 0) = '{}' THEN
            -- The words are rare enough to read all that matches at once.
            s.step := q.condition;
            s.finished := true;
            RETURN s;
        END IF;
        s.step := sqlvec._bm25_read(s.words, s.caps, s.tiered);
    END IF;
    IF v_read IS NOT NULL THEN
        s.step := s.step && !!v_read;
    END IF;
    -- What is read holds a word of the query, unless it was marked; what else must be true of it?
    IF q.required IS NOT NULL THEN
        s.step := s.step && q.required;
    ELSIF s.tiered AND v_read IS NULL THEN
        s.step := s.step && sqlvec._bm25_condition(q.lexemes, NULL, NULL, q.prefixes);
    END IF;
    IF q.excluded IS NOT NULL THEN
        s.step := s.step && !!q.excluded;
    END IF;
    RETURN s;
END
$body$;

-- The best k of two lists, and the ties of the last.
CREATE OR REPLACE FUNCTION sqlvec._bm25_merge(
    state sqlvec._bm25_state, scores float8[], row_ids text[], row_tables oid[], k int
) RETURNS sqlvec._bm25_state
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    s sqlvec._bm25_state := state;
BEGIN
    IF scores IS NULL THEN
        RETURN s;
    ELSIF s.scores = '{}' THEN
        s.scores := scores; s.row_ids := row_ids; s.row_tables := row_tables;
        RETURN s;
    END IF;
    SELECT b.scores, b.row_ids, b.row_tables INTO s.scores, s.row_ids, s.row_tables
    FROM sqlvec._best_hits(s.scores || scores, s.row_ids || row_ids, s.row_tables || row_tables, k) AS b;
    RETURN s;
END
$body$;

-- How a BM25 search of a table is written: the statements that are the same for each of its steps.

CREATE OR REPLACE FUNCTION sqlvec._plan_bm25(
    rel oid, column_name text, query text, k int, filter jsonb, where_sql text, candidates int, oversample float8,
    tenant text, backend text, key_column text, key_type regtype, caller_path text,
    OUT q sqlvec._bm25_query, OUT state sqlvec._bm25_state, OUT bound text[], OUT condition text,
    OUT vector sparsevec,    -- $2
    OUT once boolean,        -- one step, because no index helps
    OUT compared text,       -- SQL of the score of a row, 0 where it does not match
    OUT maximum float8,      -- score that no document can exceed
    OUT step text,           -- the statement of a step: answers arrays of scores and row addresses
    OUT waiting text,        -- the same for rows that have no terms yet; NULL when there are none
    OUT native text,         -- the same for candidates of another extension's index, for words in $7; NULL without one
    OUT candidate_count int, -- of those
    OUT answer text,         -- the rows or keys of addresses $1, $2 with scores $3
    OUT seqscan text,        -- what enable_seqscan is set to
    OUT reason text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_relname name := (SELECT c.relname FROM pg_class AS c WHERE c.oid = rel);
    v_alias text := quote_ident(v_relname);
    v_from text := format('%s AS %s', sqlvec._qualified(rel), v_alias);
    v_terms text;
    v_hit record;
    v_score text;
    v_arrays text;
    v_before text;
    v_between text;
    v_after text;
    v_waiting text;
    v_unfinished boolean;
    v_reads_codes boolean;
    v_reads_text boolean;
    v_stale boolean;
    v_text text;
    v_text_score text;
    v_word_order int[];
    v_native record;
BEGIN
    PERFORM sqlvec._check_search(coalesce(column_name, ''), 1, k, candidates, oversample, 'auto');
    PERFORM sqlvec._check_backend(backend);
    q := sqlvec._prepare_bm25(rel, column_name, query, filter, tenant);
    v_derived := q.derived;
    IF q.tenant IS NOT NULL THEN
        filter := jsonb_build_object('$and', jsonb_build_array(jsonb_build_object(v_derived.tenant_column, q.tenant), coalesce(filter, '{}')));
    END IF;
    SELECT c.bound, c.condition INTO bound, condition FROM sqlvec._condition(rel, v_relname, filter, where_sql) AS c;

    v_terms := coalesce(v_derived.target_columns[2], v_derived.source_columns[1]);
    v_reads_codes := has_column_privilege(rel, v_terms, 'SELECT') AND has_column_privilege(rel, v_derived.target_column::text, 'SELECT');
    v_reads_text := (SELECT bool_and(has_column_privilege(rel, c::text, 'SELECT')) FROM unnest(v_derived.source_columns) AS c);
    IF NOT v_reads_codes AND NOT v_reads_text THEN
        RAISE EXCEPTION 'role "%" may read neither the text nor the BM25 columns of table %', current_user, sqlvec._qualified(rel)
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('GRANT SELECT (%I, %I) ON %s TO %I;', v_derived.target_column, v_terms, sqlvec._qualified(rel), current_user);
    END IF;
    IF q.condition IS NULL THEN
        RETURN;
    END IF;
    -- Terms that no trigger kept, or that were there before it, may be those of another text.
    v_stale := NOT v_derived.maintained AND NOT v_derived.reweighed AND cardinality(v_derived.target_columns) = 2;
    IF v_stale AND v_reads_text THEN
        v_reads_codes := false;
    END IF;

    -- Terms that were not weighed as the catalog says now bring tiers that mean nothing.
    v_word_order := ARRAY(SELECT w.n FROM unnest(q.weights) WITH ORDINALITY AS w (weight, n) ORDER BY w.weight DESC, w.n);
    state.words := ARRAY(SELECT q.lexemes[n] FROM unnest(v_word_order) AS n);
    state.weights := ARRAY(SELECT q.weights[n] FROM unnest(v_word_order) AS n);
    state.documents_with := ARRAY(SELECT q.documents_with[n] FROM unnest(v_word_order) AS n);
    state.tiers := ARRAY(SELECT q.tiers[4 * n - 4 + l] FROM unnest(v_word_order) WITH ORDINALITY AS o (n, place), generate_series(1, 4) AS l ORDER BY o.place, l);
    state.tiered := cardinality(v_derived.target_columns) = 2 AND v_derived.maintained
                    AND NOT EXISTS (SELECT FROM unnest(q.lexemes) AS l WHERE octet_length(l) > 2000);
    state.caps := array_fill(5, ARRAY[cardinality(state.words)]);
    state.budget := 1000 + 20 * k;
    state.finished := false;
    state.scores := '{}'; state.row_ids := '{}'; state.row_tables := '{}';

    once := true;
    seqscan := current_setting('enable_seqscan');
    IF v_stale AND v_reads_text THEN
        reason := format('one pass over the text: column %I may be stale', v_terms);
    ELSIF NOT v_reads_codes THEN
        reason := format('one pass over the text: role "%s" may not read columns %I and %I', current_user, v_derived.target_column, v_terms);
    ELSIF row_security_active(rel) AND NOT (SELECT p.proleakproof FROM pg_proc AS p WHERE p.oid = 'ts_match_vq(tsvector, tsquery)'::regprocedure) THEN
        reason := 'one pass: under row security Postgres reads the rows that the policy allows before it looks at words';
    ELSIF NOT sqlvec._has_gin(rel, v_terms) THEN
        reason := format('one pass: no GIN index on column %I', v_terms);
    ELSE
        once := false;
        IF where_sql IS NULL THEN
            -- A step reads few rows, whatever the planner expects of its tsquery.
            seqscan := 'off';
        END IF;
        reason := CASE WHEN state.tiered THEN 'the index knows tiers of weight'
                       WHEN cardinality(v_derived.target_columns) = 1 THEN format('bounds of whole words: tsvector %I is the application''s', v_terms)
                       ELSE 'bounds of whole words: weights are being encoded anew' END;
    END IF;

    v_unfinished := false;
    IF v_reads_codes AND v_reads_text THEN
        v_waiting := format('SELECT EXISTS (SELECT FROM %s WHERE %s)', v_from,
                            sqlvec._unfinished(v_derived.target_column, v_derived.source_columns, v_alias || '.'));
        -- Policies run inside, which may need the caller's search_path.
        PERFORM set_config('search_path', caller_path, true);
        EXECUTE v_waiting INTO v_unfinished;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    END IF;
    v_text := sqlvec._bm25_tsvector_expression(
        v_derived.options, ARRAY(SELECT format('%s.%I', v_alias, c) FROM unnest(v_derived.source_columns) AS c));
    vector := sqlvec._bm25_vector(q.lexemes, q.weights);
    maximum := sqlvec._bm25_maximum(q);
    IF NOT v_derived.maintained OR q.collides THEN
        v_score := sqlvec._bm25_score_expression(v_derived.options, format('%s.%I', v_alias, v_terms));
        v_text_score := sqlvec._bm25_score_expression(v_derived.options, v_text);
    ELSE
        -- Of the code, made here for a row that has none: equal rows score the same to the last digit.
        v_score := format('%s.%I', v_alias, v_derived.target_column);
        IF v_unfinished THEN
            v_score := format('coalesce(%s, (sqlvec._bm25_document(%s.%I, %s)).code)', v_score, v_alias, v_terms, sqlvec._bm25_constants(v_derived.options));
        END IF;
        v_text_score := format('(sqlvec._bm25_document(%s, %s)).code', v_text, sqlvec._bm25_constants(v_derived.options));
        v_score := format('0::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s OPERATOR(%I.<#>) $2)', v_score, sqlvec._vector_schema());
        v_text_score := format('0::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s OPERATOR(%I.<#>) $2)', v_text_score, sqlvec._vector_schema());
    END IF;

    compared := CASE WHEN v_reads_codes THEN v_score ELSE v_text_score END;
    IF q.required IS NOT NULL OR q.excluded IS NOT NULL THEN
        compared := format('CASE WHEN %s OPERATOR(pg_catalog.@@) $4 THEN %s END', CASE WHEN v_reads_codes THEN format('%s.%I', v_alias, v_terms) ELSE v_text END, compared);
    END IF;
    IF v_reads_codes AND v_unfinished THEN
        -- A row may wait for its terms as well.
        compared := format('CASE WHEN %s.%I IS NOT NULL THEN %s %sELSE %s END', v_alias, v_terms, compared,
                           CASE WHEN q.required IS NULL AND q.excluded IS NULL THEN '' ELSE format('WHEN NOT %s OPERATOR(pg_catalog.@@) $4 THEN 0::pg_catalog.float8 ', v_text) END,
                           v_text_score);
    END IF;
    compared := format('coalesce(%s, 0::pg_catalog.float8)', compared);

    IF key_type IS NULL THEN
        PERFORM sqlvec._check_places(rel, NULL, NULL, 'bm25_search_keys');
    END IF;
    v_hit := sqlvec._hit_statement(rel, v_alias, key_column, key_type, k);
    answer := v_hit.answer;
    v_arrays := 'SELECT pg_catalog.array_agg(h.score) AS scores, pg_catalog.array_agg(h.row_id) AS row_ids, '
                'pg_catalog.array_agg(h.row_table) AS row_tables';
    v_before := v_arrays || ' FROM (SELECT ';
    v_between := format(' AS score, %s FROM %s WHERE %s AND ', v_hit.place, v_from, condition);
    v_after := format(' ORDER BY 1 DESC, %s LIMIT %s) AS h', v_hit.tie_break, k);
    IF v_reads_codes THEN
        -- The row is asked again: while the pending list of a GIN index is moved, the index knows a new row by one
        -- word and not yet by another that the query excludes, and trusts itself.
        step := v_before || v_score || v_between
                || format(CASE WHEN once THEN '%1$s.%2$I OPERATOR(pg_catalog.@@) $4'
                               ELSE '%1$s.%2$I OPERATOR(pg_catalog.@@) $4 AND (%1$s.%2$I OPERATOR(pg_catalog.@@) $4) IS TRUE' END, v_alias, v_terms)
                || v_after;
    END IF;
    IF NOT v_reads_codes OR v_unfinished AND cardinality(v_derived.target_columns) = 2 THEN
        waiting := v_before || v_text_score || v_between
                   || CASE WHEN v_reads_codes THEN format('%s.%I IS NULL AND ', v_alias, v_derived.target_columns[2]) ELSE '' END
                   || v_text || ' OPERATOR(pg_catalog.@@) $4' || v_after;
    END IF;
    IF NOT v_reads_codes THEN
        step := waiting;
        waiting := NULL;
    END IF;
    v_native := sqlvec._bm25_native(rel, v_derived, backend, q.required IS NULL AND q.excluded IS NULL AND q.prefixes IS NULL, v_alias);
    IF v_native.name IS NOT NULL THEN
        reason := format('candidates from an index of %s', v_native.name);
        candidate_count := coalesce(candidates, ceil(k * oversample)::int, greatest(4 * k, 100));
        native := 'WITH "sqlvec found" AS MATERIALIZED (SELECT ' || v_score
                  || format(' AS score, %8$s, %1$s.%2$I AS terms FROM %3$s WHERE %4$s AND %5$s ORDER BY %6$s LIMIT %7$s) ',
                            v_alias, v_terms, v_from, condition, v_native.condition, v_native.ordering, candidate_count, v_hit.place)
                  || v_arrays || format(
                         ', (SELECT pg_catalog.count(*) FROM "sqlvec found") OPERATOR(pg_catalog.<) %s AS whole FROM (SELECT c.score, c.row_id, c.row_table '
                         'FROM "sqlvec found" AS c WHERE c.terms OPERATOR(pg_catalog.@@) $4 ORDER BY 1 DESC, 3, 2 LIMIT %s) AS h', candidate_count, k);
    END IF;
END
$body$;

-- sqlvec.bm25_search, sqlvec.bm25_search_keys: the k documents with the highest BM25 score.

-- The score from which on rows are wanted. A little less relevant: a flat curve turns what rounding does to
-- a probability into score.
CREATE OR REPLACE FUNCTION sqlvec._least_score(model text, maximum float8, min_relevance float8, condition tsquery) RETURNS float8
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN sqlvec.relevance_score_bound(model, maximum, greatest(min_relevance - 1e-12, 0), sqlvec._words(condition));
END
$body$;

-- Plan a search and run it, up to the statement that answers its rows or keys: NULL for a query that
-- asks for nothing. STABLE, so that every step sees the snapshot of the statement that searches. No
-- SET: the caller's where_sql and policies run inside.
CREATE OR REPLACE FUNCTION sqlvec._run_bm25(
    rel_type regtype, column_name text, query text, k int, filter jsonb, where_sql text, params text[], candidates int, oversample float8,
    tenant text, backend text, key_column text, key_type regtype,
    model text = NULL, min_relevance float8 = NULL, -- what is less relevant by this model need not be found
    OUT answer text, OUT row_ids text[], OUT row_tables oid[], OUT scores float8[], OUT complete boolean,
    -- What a hybrid search scores other rows with, see sqlvec._plan_bm25.
    OUT compared text, OUT vector sparsevec, OUT bound text[], OUT condition tsquery, OUT lexemes text[], OUT weights float8[], OUT maximum float8
) LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    p pg_catalog.record;
    v_state sqlvec._bm25_state;
    v_found pg_catalog.record;
    v_jit pg_catalog.text := pg_catalog.current_setting('jit');
    v_seqscan pg_catalog.text := pg_catalog.current_setting('enable_seqscan');
BEGIN
    p := sqlvec._plan_bm25(sqlvec._relation_of(rel_type), column_name, query, k, filter, where_sql, candidates, oversample, tenant, backend,
                           key_column, key_type, pg_catalog.current_setting('search_path'));
    answer := p.answer;
    IF answer IS NULL THEN
        RETURN;
    END IF;
    compared := p.compared; vector := p.vector; bound := p.bound;
    condition := (p.q).condition; lexemes := (p.q).lexemes; weights := (p.q).weights; maximum := p.maximum;
    v_state := p.state;
    IF model IS NOT NULL THEN
        v_state.least := sqlvec._least_score(model, maximum, min_relevance, condition);
    END IF;
    complete := true;
    PERFORM pg_catalog.set_config('jit', 'off', true), pg_catalog.set_config('enable_seqscan', p.seqscan, true);
    IF p.native IS NOT NULL THEN
        EXECUTE p.native INTO v_found USING params, p.vector, p.bound, (p.q).condition, (p.q).lexemes, (p.q).weights, query;
        v_state := sqlvec._bm25_merge(v_state, v_found.scores, v_found.row_ids, v_found.row_tables, k);
        v_state.finished := true;
        -- Candidates of another index are a budget: say so when it ran out.
        complete := v_found.whole OR pg_catalog.cardinality(v_state.scores) OPERATOR(pg_catalog.>=) k;
    END IF;
    LOOP
        v_state := sqlvec._bm25_step(p.q, v_state, k, p.once);
        EXIT WHEN v_state.step IS NULL;
        EXECUTE p.step INTO v_found USING params, p.vector, p.bound, v_state.step, (p.q).lexemes, (p.q).weights;
        v_state := sqlvec._bm25_merge(v_state, v_found.scores, v_found.row_ids, v_found.row_tables, k);
    END LOOP;
    IF p.waiting IS NOT NULL THEN
        EXECUTE p.waiting INTO v_found USING params, p.vector, p.bound, (p.q).condition, (p.q).lexemes, (p.q).weights;
        v_state := sqlvec._bm25_merge(v_state, v_found.scores, v_found.row_ids, v_found.row_tables, k);
    END IF;
    PERFORM pg_catalog.set_config('jit', v_jit, true), pg_catalog.set_config('enable_seqscan', v_seqscan, true);
    row_ids := v_state.row_ids;
    row_tables := v_state.row_tables;
    scores := v_state.scores;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.bm25_search(
    rel anyelement, column_name text, query text, k int = 10, filter jsonb = NULL, where_sql text = NULL, params text[] = NULL,
    candidates int = NULL, oversample float8 = NULL, tenant text = NULL, backend text = 'auto',
    OUT hit anyelement, OUT score float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 10
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_bm25(pg_catalog.pg_typeof(rel), column_name, query, k, filter, where_sql, params, candidates, oversample, tenant,
                              backend, NULL, NULL);
    IF v_run.answer IS NOT NULL THEN
        RETURN QUERY EXECUTE v_run.answer USING v_run.row_ids, v_run.row_tables, v_run.scores, v_run.complete;
    END IF;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.bm25_search_keys(
    rel anyelement, column_name text, query text, INOUT key anycompatible, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, tenant text = NULL, backend text = 'auto',
    key_column text = NULL, OUT score float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 10
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_bm25(pg_catalog.pg_typeof(rel), column_name, query, k, filter, where_sql, params, candidates, oversample, tenant,
                              backend, key_column, pg_catalog.pg_typeof(key));
    IF v_run.answer IS NOT NULL THEN
        RETURN QUERY EXECUTE v_run.answer USING v_run.row_ids, v_run.row_tables, v_run.scores, v_run.complete;
    END IF;
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_search(anyelement, text, text, int, jsonb, text, text[], int, float8, text, text) IS
    'The k rows of table rel with the highest BM25 score for query, best first, equal scores by primary key. column_name is the text column or the BM25 column, NULL the only one. In the query, words are alternatives; "a phrase" and +word are required, -word excluded, word* completed. k 1 to 10000; filter is JSON over the columns, where_sql is trusted SQL over the bare table name with values ($1)[i] from params; tenant picks one of separate statistics; backend is auto, sqlvec or a native index, of which candidates or oversample (x k) rows are rescored.';
COMMENT ON FUNCTION sqlvec.bm25_search_keys(anyelement, text, text, anycompatible, int, jsonb, text, text[], int, float8, text, text, text) IS
    'The rows of sqlvec.bm25_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands right after the query (key => NULL::uuid): needs SELECT on the key column and the columns that add_bm25 made only.';

-- sqlvec.bm25_tsquery, bm25_query, bm25_score, bm25_headline: the parts of a BM25 search, one by one.

CREATE OR REPLACE FUNCTION sqlvec.bm25_tsquery(rel anyelement, column_name text, query text) RETURNS tsquery
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived := sqlvec._bm25_column(sqlvec._relation_of(pg_typeof(rel)), column_name);
    v_parsed record;
BEGIN
    v_parsed := sqlvec._parse_bm25(sqlvec._bm25_config(v_derived.options)::regconfig, query);
    RETURN sqlvec._bm25_condition(v_parsed.lexemes, v_parsed.required, v_parsed.excluded, v_parsed.prefixes);
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_tsquery(anyelement, text, text) IS
    'What a document must match to be found by sqlvec.bm25_search with this query, as a tsquery; NULL for a query that asks for nothing.';

CREATE OR REPLACE FUNCTION sqlvec.bm25_query(rel anyelement, column_name text, query text, tenant text = NULL) RETURNS sparsevec
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    q sqlvec._bm25_query := sqlvec._prepare_bm25(sqlvec._relation_of(pg_typeof(rel)), column_name, query, NULL, tenant);
BEGIN
    RETURN sqlvec._bm25_vector(coalesce((q).lexemes, '{}'), coalesce((q).weights, '{}'));
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_query(anyelement, text, text, text) IS
    'The weights of the words of a query, inverse document frequency times occurrences, as a vector: the BM25 score of a row is 0 - (body_bm25 <#> this).';

CREATE OR REPLACE FUNCTION sqlvec.bm25_maximum(rel anyelement, column_name text, query text, tenant text = NULL) RETURNS float8
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    q sqlvec._bm25_query := sqlvec._prepare_bm25(sqlvec._relation_of(pg_typeof(rel)), column_name, query, NULL, tenant);
BEGIN
    RETURN sqlvec._bm25_maximum(q);
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_maximum(anyelement, text, text, text) IS
    'The score that no document can exceed for this query: the sum of inverse document frequencies times k1 + 1. A share of it compares across queries, as sqlvec.relevance_score needs.';

CREATE OR REPLACE FUNCTION sqlvec.bm25_score(hit anyelement, column_name text, query text, tenant text = NULL) RETURNS float8
LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_rel pg_catalog.oid := sqlvec._relation_of(pg_catalog.pg_typeof(hit));
    q sqlvec._bm25_query;
    v_tenant pg_catalog.name := (sqlvec._bm25_column(v_rel, column_name)).tenant_column;
    v_terms pg_catalog.text;
    v_score pg_catalog.float8;
BEGIN
    IF tenant IS NULL AND v_tenant IS NOT NULL THEN
        EXECUTE pg_catalog.format('SELECT ($1).%I::pg_catalog.text', v_tenant) INTO tenant USING hit;
        IF tenant IS NULL THEN
            RETURN NULL; -- belongs to nobody, and no statistics say how rare its words are
        END IF;
    END IF;
    q := sqlvec._prepare_bm25(v_rel, column_name, query, NULL, tenant);
    IF (q).condition IS NULL THEN
        RETURN 0;
    END IF;
    v_terms := sqlvec._bm25_tsvector_expression(
        ((q).derived).options, ARRAY(SELECT pg_catalog.format('($1).%I', c) FROM pg_catalog.unnest(((q).derived).source_columns) AS c));
    EXECUTE pg_catalog.concat('SELECT ', sqlvec._bm25_score_expression(((q).derived).options, v_terms))
    INTO v_score USING hit, NULL, NULL, NULL, (q).lexemes, (q).weights;
    RETURN v_score;
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_score(anyelement, text, text, text) IS
    'BM25 score of one row of a table (sqlvec.bm25_score(d, ''body'', ''words'') FROM doc AS d), computed from its text: 0 where no word of the query stands in it. Of phrases, + and - only the words count.';

CREATE OR REPLACE FUNCTION sqlvec.bm25_headline(hit anyelement, column_name text, query text, options text = '') RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_rel oid := sqlvec._relation_of(pg_typeof(hit));
    v_derived sqlvec._derived := sqlvec._bm25_column(v_rel, column_name, true);
    v_parsed record;
    v_condition tsquery;
    v_text text;
BEGIN
    IF (sqlvec._column(v_rel, column_name)).type_name = 'tsvector' OR column_name = ANY (v_derived.target_columns) THEN
        RAISE EXCEPTION 'column "%" holds no text to highlight', column_name
            USING ERRCODE = 'datatype_mismatch',
                  HINT = 'Name the text column, or use ts_headline with sqlvec.bm25_tsquery.';
    END IF;
    v_parsed := sqlvec._parse_bm25(sqlvec._bm25_config(v_derived.options)::regconfig, query);
    EXECUTE format('SELECT ($1).%I::text', column_name) INTO v_text USING hit;
    -- Whatever scored, and phrases where they stand.
    v_condition := sqlvec._bm25_condition(v_parsed.lexemes, NULL, NULL, v_parsed.prefixes);
    v_condition := coalesce(v_condition || v_parsed.required, v_condition, v_parsed.required);
    RETURN CASE WHEN v_condition IS NULL THEN v_text
                ELSE ts_headline(sqlvec._bm25_config(v_derived.options)::regconfig, v_text, v_condition, options) END;
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_headline(anyelement, text, text, text) IS
    'The words of the query in text column column_name of a row, highlighted by ts_headline with its options. Select it from the hits of a search, so that it runs on those alone.';

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

-- sqlvec.relevance and its parts: scores mapped to calibrated probabilities by a model of the catalog.
--
-- A score x of a query q maps to sigma(a sign(x) |x|^k + b), where a > 0, b and k depend on the query
-- alone (Rossi et al. 2024, arXiv:2408.04887). They are found once per query; for each candidate a
-- scalar expression is left, and its inverse is the score at which relevance reaches a wanted value.

-- What a model knows of a query vector: mean, spread and soft maxima of its cosines to the centroids,
-- then its cosines to the directions. The dot products are sums of integers below 2^24, and so the
-- same everywhere (see docs/encoders.md). NULL for the zero vector, and for a
-- model that was restored without its vectors.
CREATE OR REPLACE FUNCTION sqlvec._relevance_features(m sqlvec.relevance_model, query vector) RETURNS float8[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_count int := greatest(cardinality(m.slope), cardinality(m.intercept), cardinality(m.exponent)) - 1;
    v_high query%TYPE := (sqlvec._integer_parts(query)).high;
    v_norm float8 := sqrt(sqlvec._dot(v_high, v_high));
    v_cosines float8[];
    v_directions float8[];
    v_features float8[] := '{}';
BEGIN
    IF v_high IS NULL OR v_count = 0 THEN
        RETURN CASE WHEN v_count = 0 AND v_high IS NOT NULL THEN v_features END;
    END IF;
    SELECT array_agg(sqlvec._dot(v_high, v.value) / v_norm ORDER BY v.position) FILTER (WHERE v.part = 'centroid'),
           array_agg(sqlvec._dot(v_high, v.value) / v_norm / 4000 ORDER BY v.position) FILTER (WHERE v.part = 'direction')
    INTO v_cosines, v_directions
    FROM sqlvec.relevance_vector AS v WHERE v.model = m.name;
    IF v_cosines IS NOT NULL THEN
        SELECT array_agg(c.x * c.scale ORDER BY c.position) INTO v_cosines
        FROM unnest(v_cosines, m.centroid_scale) WITH ORDINALITY AS c (x, scale, position);
        SELECT ARRAY[s.mean, sqrt((SELECT sum(c.weight * (c.x - s.mean) * (c.x - s.mean)) FROM unnest(v_cosines, m.centroid_weight) AS c (x, weight)))]
        INTO v_features
        FROM (SELECT sum(c.weight * c.x) AS mean FROM unnest(v_cosines, m.centroid_weight) AS c (x, weight)) AS s;
        v_features := v_features || ARRAY(
            SELECT ln((SELECT sum(c.weight * exp(b.sharpness * c.x)) FROM unnest(v_cosines, m.centroid_weight) AS c (x, weight))) / b.sharpness
            FROM unnest(m.sharpness) WITH ORDINALITY AS b (sharpness, position) ORDER BY b.position);
    END IF;
    v_features := v_features || coalesce(v_directions, '{}');
    RETURN CASE WHEN cardinality(v_features) = v_count THEN v_features END;
END
$body$;

-- Bias plus weighted features.
CREATE OR REPLACE FUNCTION sqlvec._weighted(weights float8[], features float8[]) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN weights[1] + coalesce((SELECT sum(t.w * t.f) FROM unnest(weights[2:], features) AS t (w, f)), 0);

-- exp() of Postgres raises an error instead of returning 0 or infinity, so its arguments are limited;
-- least and greatest would turn NULL into a limit.
CREATE OR REPLACE FUNCTION sqlvec._logistic(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN x IS NOT NULL THEN 1 / (1 + exp(-least(greatest(x, -36), 36))) END;

CREATE OR REPLACE FUNCTION sqlvec._softplus(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN greatest(x, 0) + ln(1 + exp(-least(abs(x), 36)));

-- The three numbers of a query from its features. A family with a constant exponent has it as bias.
CREATE OR REPLACE FUNCTION sqlvec._relevance_curve(
    m sqlvec.relevance_model, features float8[], OUT slope float8, OUT intercept float8, OUT exponent float8
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    slope := sqlvec._softplus(sqlvec._weighted(m.slope, features));
    intercept := sqlvec._weighted(m.intercept, features);
    exponent := CASE WHEN m.family = 'power' THEN 0.1::float8 + 1.9::float8 * sqlvec._logistic(sqlvec._weighted(m.exponent, features)) ELSE m.exponent[1] END;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.relevance_parameters(
    model text, query vector, OUT slope float8, OUT intercept float8, OUT exponent float8
) LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    m sqlvec.relevance_model := sqlvec._relevance_model(model, ARRAY['vector']);
    v_features float8[];
    v_curve record;
BEGIN
    IF m.dimensions <> sqlvec._dims(query) THEN
        RAISE EXCEPTION 'relevance model "%" takes query vectors of % dimensions, not %', model, m.dimensions, sqlvec._dims(query)
            USING ERRCODE = 'data_exception';
    END IF;
    IF query IS NOT NULL THEN
        v_features := sqlvec._relevance_features(m, query);
    END IF;
    IF v_features IS NULL THEN
        RETURN; -- no query, one without a direction, or a model that was restored without its vectors
    END IF;
    v_curve := sqlvec._relevance_curve(m, v_features);
    slope := v_curve.slope; intercept := v_curve.intercept; exponent := v_curve.exponent;
END
$body$;

COMMENT ON FUNCTION sqlvec.relevance_parameters(text, vector) IS
    'The curve of a query vector under a relevance model, for sqlvec.relevance_at. Call it in FROM, so that it runs once. NULL for the zero vector, which has no cosines.';

CREATE OR REPLACE FUNCTION sqlvec.relevance_score_parameters(
    model text, maximum float8, terms int = 1, OUT slope float8, OUT intercept float8, OUT exponent float8
) LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    m sqlvec.relevance_model := sqlvec._relevance_model(model, ARRAY['text', 'tokens']);
    v_curve record;
BEGIN
    IF maximum > 0 AND maximum < 'Infinity' AND terms > 0 THEN
        v_curve := sqlvec._relevance_curve(m, ARRAY[ln(maximum), ln(terms::float8)]);
        slope := v_curve.slope; intercept := v_curve.intercept; exponent := v_curve.exponent;
    END IF;
END
$body$;

COMMENT ON FUNCTION sqlvec.relevance_score_parameters(text, float8, int) IS
    'The curve of a text or multi-vector query under a relevance model, for sqlvec.relevance_at of score / maximum. maximum is the best score the query can have (sqlvec.bm25_maximum; for MaxSim its number of vectors), terms its number of words. NULL where maximum is not above 0: such a query asks for nothing.';

CREATE OR REPLACE FUNCTION sqlvec.relevance_at(slope float8, intercept float8, exponent float8, x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN x < 'NaN' AND slope IS NOT NULL
            THEN 1 / (1 + exp(-least(greatest(slope * sign(x) * power(least(greatest(abs(x), 1e-100::float8), 10), exponent) + intercept, -36), 36))) END;

COMMENT ON FUNCTION sqlvec.relevance_at(float8, float8, float8, float8) IS
    'Relevance of score x, a cosine or a share of the maximum, on the curve that sqlvec.relevance_parameters or relevance_score_parameters returned: sigma(slope sign(x) |x|^exponent + intercept). NULL for NaN.';

CREATE OR REPLACE FUNCTION sqlvec.relevance(model text, query vector, cosine float8) RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT sqlvec.relevance_at(p.slope, p.intercept, p.exponent, relevance.cosine)
    FROM sqlvec.relevance_parameters(relevance.model, relevance.query) AS p;
END;

COMMENT ON FUNCTION sqlvec.relevance(text, vector, float8) IS
    'Calibrated probability that a row with this cosine to the query is relevant. For many rows call sqlvec.relevance_parameters once and relevance_at per row.';

CREATE OR REPLACE FUNCTION sqlvec.relevance_score(model text, score float8, maximum float8, terms int = 1) RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT sqlvec.relevance_at(p.slope, p.intercept, p.exponent, relevance_score.score / nullif(relevance_score.maximum, 0))
    FROM sqlvec.relevance_score_parameters(relevance_score.model, relevance_score.maximum, relevance_score.terms) AS p;
END;

COMMENT ON FUNCTION sqlvec.relevance_score(text, float8, float8, int) IS
    'Calibrated probability that a row with this BM25 or MaxSim score is relevant; maximum and terms as in sqlvec.relevance_score_parameters.';

-- Where the curve reaches a relevance: infinite where all scores do, or none.
CREATE OR REPLACE FUNCTION sqlvec._relevance_inverse(slope float8, intercept float8, exponent float8, min_relevance float8) RETURNS float8
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_u float8;
BEGIN
    IF min_relevance IS NULL OR slope IS NULL THEN
        RETURN NULL;
    ELSIF NOT min_relevance BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION 'min_relevance is a probability from 0 to 1, not %', min_relevance
            USING ERRCODE = 'invalid_parameter_value';
    -- What the clamped curve reaches everywhere, and nowhere.
    ELSIF min_relevance <= sqlvec._logistic(-36) THEN
        RETURN '-Infinity';
    ELSIF min_relevance > sqlvec._logistic(36) THEN
        RETURN 'Infinity';
    END IF;
    v_u := ln(min_relevance / (1 - min_relevance)) - intercept;
    -- Compared before dividing: nothing may overflow.
    IF abs(v_u) > slope * power(10, exponent) THEN
        RETURN sign(v_u) * 'Infinity';
    ELSIF v_u = 0 THEN
        RETURN 0;
    END IF;
    -- Scores below 1e-100 are as good as 0, and neither division nor product may underflow.
    RETURN sign(v_u) * exp(greatest((ln(abs(v_u)) - ln(slope)) / exponent, -230));
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.relevance_bound(model text, query vector, min_relevance float8) RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 1 - sqlvec._relevance_inverse(p.slope, p.intercept, p.exponent, relevance_bound.min_relevance)
    FROM sqlvec.relevance_parameters(relevance_bound.model, relevance_bound.query) AS p;
END;

COMMENT ON FUNCTION sqlvec.relevance_bound(text, vector, float8) IS
    'Cosine distance up to which rows have at least min_relevance, so that a search can stop there. Above 2 where all rows do, below 0 where none does, infinite where no cosine at all makes the difference; NULL for the zero vector.';

CREATE OR REPLACE FUNCTION sqlvec.relevance_score_bound(model text, maximum float8, min_relevance float8, terms int = 1) RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT relevance_score_bound.maximum * sqlvec._relevance_inverse(p.slope, p.intercept, p.exponent, relevance_score_bound.min_relevance)
    FROM sqlvec.relevance_score_parameters(relevance_score_bound.model, relevance_score_bound.maximum, relevance_score_bound.terms) AS p;
END;

COMMENT ON FUNCTION sqlvec.relevance_score_bound(text, float8, float8, int) IS
    'BM25 or MaxSim score from which on rows have at least min_relevance: -Infinity where all have, above maximum or Infinity where none has.';

-- The weights of a fused model. With numbers next to 0 products would underflow, which is an error.
CREATE OR REPLACE FUNCTION sqlvec._fused_weights(slope float8[]) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT CASE WHEN t.weight < 1e-100::float8 THEN 0 ELSE t.weight END FROM unnest(slope) WITH ORDINALITY AS t (weight, n) ORDER BY t.n);

CREATE OR REPLACE FUNCTION sqlvec.relevance_fused(
    model text, vector_relevance float8 = NULL, text_relevance float8 = NULL, tokens_relevance float8 = NULL
) RETURNS float8
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    m sqlvec.relevance_model := sqlvec._relevance_model(model, ARRAY['fused']);
    v_legs float8[] := ARRAY[vector_relevance, text_relevance, tokens_relevance];
    v_weights float8[] := sqlvec._fused_weights(m.slope);
    v_logit float8 := m.intercept[1];
BEGIN
    IF num_nonnulls(VARIADIC v_legs) = 0 THEN
        RETURN NULL;
    END IF;
    FOR i IN 1 .. 3 LOOP
        IF NOT v_legs[i] BETWEEN 0 AND 1 THEN
            RAISE EXCEPTION 'relevance is a probability from 0 to 1, not %', v_legs[i] USING ERRCODE = 'invalid_parameter_value';
        END IF;
        -- Weights are positive, so that agreement of the legs never counts against a row.
        v_logit := v_logit + CASE WHEN v_legs[i] IS NULL THEN m.intercept[i + 1]
                                  ELSE v_weights[i] * ln(greatest(v_legs[i], 2.3e-16) / greatest(1 - v_legs[i], 2.3e-16)) END;
    END LOOP;
    RETURN sqlvec._logistic(v_logit);
END
$body$;

COMMENT ON FUNCTION sqlvec.relevance_fused(text, float8, float8, float8) IS
    'Calibrated probability from those of the legs, NULL for a leg that did not find the row or was not asked; NULL when all are.';

CREATE OR REPLACE FUNCTION sqlvec.relevance_threshold(model text, recall float8 = 0.95) RETURNS float8
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    m sqlvec.relevance_model := sqlvec._relevance_model(model, ARRAY['vector', 'text', 'tokens', 'fused']);
BEGIN
    FOR i IN 1 .. cardinality(m.recalls) LOOP
        IF m.recalls[i] = recall THEN
            RETURN m.thresholds[i];
        END IF;
    END LOOP;
    RAISE EXCEPTION 'relevance model "%" has no threshold for a recall of %', model, recall
        USING ERRCODE = 'invalid_parameter_value',
              HINT = CASE WHEN m.recalls = '{}' THEN 'It was fitted without judgements; choose a relevance yourself, such as 0.5.'
                          ELSE 'It has those for: ' || array_to_string(m.recalls, ', ') || '.' END;
END
$body$;

COMMENT ON FUNCTION sqlvec.relevance_threshold(text, float8) IS
    'The min_relevance that kept this share of the relevant candidates of queries held out of the fit.';

-- sqlvec.autocut: where a ranked list ends by the shape of its scores, without labels.
--
-- The algorithm of Weaviate (entities/autocut): scores and ranks are both scaled to 0..1; where the
-- curve of the scores runs farthest from the diagonal, a jump follows.

CREATE OR REPLACE FUNCTION sqlvec.autocut(scores float8[], jumps int = 1) RETURNS int
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    n int := cardinality(scores);
    v_first float8;
    v_span float8;
    v_above float8[];
    v_found int := 0;
BEGIN
    IF n IS NULL OR jumps IS NULL THEN
        RETURN NULL;
    ELSIF jumps < 1 THEN
        RAISE EXCEPTION 'jumps is 1 or more, not %', jumps USING ERRCODE = 'invalid_parameter_value';
    ELSIF array_ndims(scores) > 1 THEN
        RAISE EXCEPTION 'scores is a list, not an array of % dimensions', array_ndims(scores) USING ERRCODE = 'array_subscript_error';
    ELSIF EXISTS (SELECT FROM unnest(scores) AS s WHERE s IS NULL OR s IN ('NaN', 'Infinity', '-Infinity')) THEN
        RAISE EXCEPTION 'scores hold NULL, NaN or infinity' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    scores := ARRAY(SELECT s FROM unnest(scores) WITH ORDINALITY AS t (s, i) ORDER BY i); -- numbered from 1
    v_first := scores[1];
    v_span := scores[n] - v_first;
    IF n < 3 OR v_span = 0 THEN
        RETURN n; -- two points lie on the diagonal, equal ones have no shape
    END IF;
    v_above := ARRAY(SELECT (s - v_first) / v_span - (i - 1)::float8 / (n - 1) FROM unnest(scores) WITH ORDINALITY AS t (s, i) ORDER BY i);
    FOR i IN 2 .. n LOOP
        IF v_above[i] > v_above[i - 1] AND v_above[i] > coalesce(v_above[i + 1], v_above[i - 2]) THEN
            v_found := v_found + 1;
            IF v_found = jumps THEN
                RETURN i - 1;
            END IF;
        END IF;
    END LOOP;
    RETURN n;
END
$body$;

COMMENT ON FUNCTION sqlvec.autocut(float8[], int) IS
    'How many rows of a list to keep: those before the jump number `jumps` in its scores or distances, best first. All of them where there is no jump.';

-- Arguments of the functions that shape a list of hits: mmr, compress, refine, best_per_group.
--
-- An aggregate over no hits is NULL, and so a NULL list is an empty one.

-- Refuses numbers that rank nothing.
CREATE OR REPLACE FUNCTION sqlvec._check_scores(label text, scores float8[], hits int) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF array_ndims(scores) > 1 THEN
        RAISE EXCEPTION '% is a list, not an array of % dimensions', label, array_ndims(scores) USING ERRCODE = 'array_subscript_error';
    ELSIF coalesce(cardinality(scores), 0) <> hits THEN
        RAISE EXCEPTION '% has length %, the list of hits %', label, coalesce(cardinality(scores), 0), hits USING ERRCODE = 'array_subscript_error';
    ELSIF EXISTS (SELECT FROM unnest(scores) AS s WHERE s IS NULL OR s IN ('NaN', 'Infinity', '-Infinity')) THEN
        RAISE EXCEPTION '% holds NULL, NaN or infinity', label USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

-- Postgres raises an error where a product of two numbers that are not zero is.
CREATE OR REPLACE FUNCTION sqlvec._flushed(x float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN CASE WHEN abs(x) > 1e-150::float8 THEN x WHEN x IS NOT NULL THEN 0 END;

CREATE OR REPLACE FUNCTION sqlvec._check_k(k int) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'k is a number from 1 to 10000, not %', k USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._check_share(label text, share float8) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF NOT coalesce(share BETWEEN 0 AND 1, false) THEN
        RAISE EXCEPTION '% is a number from 0 to 1, not %', label, share USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

-- Refuses a list of vectors that cannot be compared with each other.
CREATE OR REPLACE FUNCTION sqlvec._check_vectors(vectors vector[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_least int;
    v_most int;
BEGIN
    IF array_ndims(vectors) > 1 THEN
        RAISE EXCEPTION 'vectors is a list, not an array of % dimensions', array_ndims(vectors) USING ERRCODE = 'array_subscript_error';
    END IF;
    SELECT min(sqlvec._dims(v)), max(sqlvec._dims(v)) INTO v_least, v_most FROM unnest(vectors) AS v;
    IF v_least <> v_most THEN
        RAISE EXCEPTION 'vectors of % and of % dimensions cannot be compared', v_least, v_most USING ERRCODE = 'data_exception';
    END IF;
END
$body$;

-- Vectors at length 1, numbered from 1: inner products of these are cosines. Zero stays zero, NULL NULL.
CREATE OR REPLACE FUNCTION sqlvec._unit_vectors(vectors vector[]) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT l2_normalize(v) FROM unnest(vectors) AS v);

-- The cosine of two unit vectors; 0 where there is none.
CREATE OR REPLACE FUNCTION sqlvec._unit_cosine(a vector, b vector) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN coalesce(0 - (a <#> b), 0);

-- sqlvec.mmr: maximal marginal relevance (Carbonell and Goldstein 1998, doi:10.1145/290941.291025).
--
-- Each hit keeps its largest cosine to those chosen so far, so that a choice costs one pass over the
-- hits however many were chosen before.

CREATE OR REPLACE FUNCTION sqlvec._nearer(units vector[], nearest float8[], chosen vector) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT greatest(u.cosine, sqlvec._unit_cosine(u.x, chosen)) FROM unnest(units, nearest) AS u (x, cosine));

CREATE OR REPLACE FUNCTION sqlvec.mmr(vectors vector[], relevance float8[], k int = 10, diversity float8 = 0.3)
RETURNS TABLE ("position" int, score float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_units vectors%TYPE;
    v_nearest float8[];
    v_left float8[]; -- the relevance of what is not chosen yet
    v_hits int := coalesce(cardinality(vectors), 0);
BEGIN
    PERFORM sqlvec._check_k(k), sqlvec._check_share('diversity', diversity), sqlvec._check_vectors(vectors),
            sqlvec._check_scores('relevance', relevance, v_hits);
    v_units := sqlvec._unit_vectors(vectors);
    v_left := ARRAY(SELECT sqlvec._flushed(r) FROM unnest(relevance) AS r);
    diversity := sqlvec._flushed(diversity);
    FOR v_rank IN 1 .. least(k, v_hits) LOOP
        SELECT h.n, h.score INTO "position", score
        FROM (SELECT t.n, (1 - diversity) * t.relevance - diversity * coalesce(t.cosine, 0) AS score
              FROM unnest(v_left, v_nearest) WITH ORDINALITY AS t (relevance, cosine, n)
              WHERE t.relevance IS NOT NULL) AS h
        ORDER BY h.score DESC, h.n LIMIT 1;
        RETURN NEXT;
        v_left["position"] := NULL;
        v_nearest := sqlvec._nearer(v_units, v_nearest, v_units["position"]);
    END LOOP;
END
$body$;

COMMENT ON FUNCTION sqlvec.mmr(vector[], float8[], int, float8) IS
    'Maximal marginal relevance: k hits that are relevant and differ from each other, as positions in the lists (from 1) in the order chosen, with their score (1 - diversity) relevance - diversity (largest cosine to one chosen before). relevance on the scale of a cosine, one number for each vector; diversity 0 to 1, where 0 is the order of relevance. Of equal scores the earlier position; NULL and zero vectors resemble nothing.';

-- sqlvec.compress: a few hits that stand for all of them (semantic compression; Raja and Vats 2025,
-- arXiv:2507.19715), chosen greedily to maximise a mean of three terms, each of them 0 to 1:
--
--   coverage   facility location: the mean over all hits of the cosine to the nearest one chosen, where
--              a hit counts by its relevance
--   diversity  1 - the mean cosine of the pairs chosen
--   relevance  the mean relevance of those chosen
--
-- Coverage and relevance alone are submodular, and greedy choice then reaches 1 - 1/e of the best value
-- (Nemhauser, Wolsey and Fisher 1978); diversity has no such guarantee.
--
-- All pairs are compared once. Their weighted cosines become integers up to 2^14, of which float32 adds
-- 1000 exactly. What a choice gains in coverage is then an L1 distance between what it covers and what
-- is covered: max(0, x - y) = (|x - y| + x - y) / 2.

-- How much each vector covers of all of them, whose weights are 0 to 1. What points away is not covered.
CREATE OR REPLACE FUNCTION sqlvec._covers(units vector[], weights float8[]) RETURNS vector[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT ARRAY(SELECT round(16384 * w.weight * greatest(sqlvec._unit_cosine(u, w.x), 0)) FROM unnest(units, weights) AS w (x, weight))::vector
             FROM unnest(units) AS u);

CREATE OR REPLACE FUNCTION sqlvec._l1_distances(covers vector[], covered float8[]) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT c <+> m.covered FROM (SELECT covered::vector AS covered OFFSET 0) AS m, unnest(covers) AS c);

CREATE OR REPLACE FUNCTION sqlvec._more_similar(units vector[], totals float8[], chosen vector) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(SELECT u.total + greatest(sqlvec._unit_cosine(u.x, chosen), 0) FROM unnest(units, totals) AS u (x, total));

CREATE OR REPLACE FUNCTION sqlvec.compress(
    vectors vector[], k int = 10, relevance float8[] = NULL, coverage float8 = 0.2, diversity float8 = 0
) RETURNS TABLE ("position" int, score float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_hits int := coalesce(cardinality(vectors), 0);
    v_left float8[]; -- the relevance of what is not chosen yet
    v_most float8;
    v_weights float8[];
    v_units vectors%TYPE;
    v_covers vectors%TYPE;
    v_sums float8[];
    v_total float8;
    v_covered float8[] := array_fill(0::float8, ARRAY[v_hits]);
    v_similar float8[] := v_covered; -- the sum of the cosines to what is chosen
    v_rest float8;
    v_pair float8;
BEGIN
    PERFORM sqlvec._check_k(k), sqlvec._check_share('coverage', coverage), sqlvec._check_share('diversity', diversity),
            sqlvec._check_vectors(vectors);
    IF relevance IS NOT NULL THEN
        PERFORM sqlvec._check_scores('relevance', relevance, v_hits);
    END IF;
    IF coverage + diversity > 1 + 1e-9 THEN
        RAISE EXCEPTION 'coverage and diversity are at most 1 together, not % and %', coverage, diversity USING ERRCODE = 'invalid_parameter_value',
            HINT = 'What they leave is the weight of relevance.';
    ELSIF v_hits > 1000 THEN
        RAISE EXCEPTION 'sqlvec.compress compares at most 1000 hits with each other, not %', v_hits USING ERRCODE = 'program_limit_exceeded',
            HINT = 'Give it the best of them.';
    ELSIF v_hits = 0 THEN
        RETURN;
    END IF;
    k := least(k, v_hits);
    v_rest := CASE WHEN relevance IS NULL THEN 0 ELSE greatest(1 - coverage - diversity, 0) / k END;
    v_pair := sqlvec._flushed(diversity) / greatest(k * (k - 1.0::float8) / 2, 1);
    coverage := sqlvec._flushed(coverage);
    v_left := CASE WHEN relevance IS NULL THEN v_covered ELSE ARRAY(SELECT sqlvec._flushed(r) FROM unnest(relevance) AS r) END;

    -- What weighs next to nothing weighs nothing, or its share would underflow.
    v_most := (SELECT max(r) FROM unnest(v_left) AS r);
    v_weights := ARRAY(SELECT CASE WHEN v_most <= 0 THEN 1 WHEN r > v_most * 1e-9::float8 THEN r / v_most ELSE 0 END FROM unnest(v_left) AS r);
    v_units := sqlvec._unit_vectors(vectors);
    v_covers := sqlvec._covers(v_units, v_weights);
    v_sums := sqlvec._l1_distances(v_covers, v_covered);
    v_total := (SELECT sum(round(16384 * w)) FROM unnest(v_weights) AS w);
    FOR v_rank IN 1 .. k LOOP
        SELECT h.n, h.score INTO "position", score
        FROM (SELECT t.n, coverage * ((t.distance + t.sum - c.sum) / 2 / v_total) + v_pair * (v_rank - 1 - t.likeness) + v_rest * t.relevance AS score
              FROM (SELECT sum(c) AS sum FROM unnest(v_covered) AS c) AS c,
                   unnest(sqlvec._l1_distances(v_covers, v_covered), v_sums, v_similar, v_left) WITH ORDINALITY AS t (distance, sum, likeness, relevance, n)
              WHERE t.relevance IS NOT NULL) AS h
        ORDER BY h.score DESC, h.n LIMIT 1;
        RETURN NEXT;
        v_left["position"] := NULL;
        v_covered := ARRAY(SELECT greatest(t.before, t.more) FROM unnest(v_covered, sqlvec._real_array(v_covers["position"])) AS t (before, more));
        v_similar := sqlvec._more_similar(v_units, v_similar, v_units["position"]);
    END LOOP;
END
$body$;

COMMENT ON FUNCTION sqlvec.compress(vector[], int, float8[], float8, float8) IS
    'Semantic compression: k hits that stand for all of them, as positions in the list (from 1) in the order chosen, with what each adds to the objective: coverage (mean cosine of all hits to the nearest one chosen, weighted by relevance) + diversity (1 - mean cosine of the pairs chosen) + relevance (mean of those chosen), with the weights coverage, diversity and, where relevance is given, what these leave of 1. All three lie between 0 and 1 however many hits there are, at most 1000. Cosines below 0 count as 0. Of equal scores the earlier position; NULL and zero vectors resemble and cover nothing.';

-- sqlvec.refine: hits ranked by what they and their neighbours among the hits are like (SuperGlobal;
-- Shao and others 2023, arXiv:2308.06954).
--
-- A hit is replaced by the weighted mean of itself, with weight 1, and its nearest hits, with weight
-- beta x cosine. The inner product with a mean is the mean of the inner products, so that the means
-- themselves are needed for the few hits alone that expand the query.

-- Of each unit vector itself and its nearest others, `size` in all, with weights that sum to 1.
CREATE OR REPLACE FUNCTION sqlvec._nearest_hits(units vector[], size int, beta float8, OUT places int[], OUT weights float8[])
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(p.place ORDER BY p.hit, p.weight DESC, p.place), array_agg(p.weight / p.total ORDER BY p.hit, p.weight DESC, p.place)
    FROM (SELECT h.hit, h.place, h.weight, sum(h.weight) OVER (PARTITION BY h.hit) AS total
          FROM (SELECT u.n AS hit, c.n AS place, CASE c.cosine WHEN 2 THEN 1 ELSE beta * greatest(c.cosine, 0) END AS weight
                FROM unnest(units) WITH ORDINALITY AS u (x, n),
                     -- Above all cosines, so that each comes before its duplicates.
                     LATERAL (SELECT o.n, CASE WHEN o.n = u.n THEN 2 ELSE sqlvec._unit_cosine(u.x, o.x) END AS cosine
                              FROM unnest(units) WITH ORDINALITY AS o (x, n) ORDER BY 2 DESC, 1 LIMIT size) AS c) AS h) AS p;
END;

-- For each vector the mean over its neighbours of their cosine to x.
CREATE OR REPLACE FUNCTION sqlvec._mean_cosines(units vector[], places int[], weights float8[], x vector) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_cosines float8[] := ARRAY(SELECT sqlvec._unit_cosine(u, x) FROM unnest(units) AS u);
    v_size int := cardinality(places) / cardinality(units);
BEGIN
    RETURN ARRAY(SELECT sum(p.weight * v_cosines[p.place]) FROM unnest(places, weights) WITH ORDINALITY AS p (place, weight, n)
                 GROUP BY (p.n - 1) / v_size ORDER BY (p.n - 1) / v_size);
END
$body$;

-- The largest component of the means of some hits in each dimension.
CREATE OR REPLACE FUNCTION sqlvec._largest_components(units vector[], places int[], weights float8[], hits int[]) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(c.largest ORDER BY c.dimension)::vector
    FROM (SELECT m.dimension, max(m.component) AS largest
          FROM (SELECT h.hit, c.dimension, sum(p.weight * c.value) AS component
                FROM (SELECT cardinality(places) / cardinality(units) AS size) AS s, unnest(hits) AS h (hit),
                     unnest(places[(h.hit - 1) * s.size + 1 : h.hit * s.size], weights[(h.hit - 1) * s.size + 1 : h.hit * s.size]) AS p (place, weight),
                     unnest(units[p.place]::real[]) WITH ORDINALITY AS c (value, dimension)
                GROUP BY 1, 2) AS m
          GROUP BY 1) AS c;
END;

CREATE OR REPLACE FUNCTION sqlvec.refine(query vector, vectors vector[], neighbours int = 9, beta float8 = 0.15, expand boolean = false)
RETURNS TABLE ("position" int, score float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 100 SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_hits int := coalesce(cardinality(vectors), 0);
    v_query vectors%TYPE := sqlvec._unit_vectors(ARRAY[query]);
    v_units vectors%TYPE;
    v_near record;
    v_scores float8[];
    v_expanded float8[];
    v_best int[];
BEGIN
    IF query IS NULL THEN
        RAISE EXCEPTION 'the query is NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF neighbours IS NULL OR neighbours NOT BETWEEN 0 AND 1000 THEN
        RAISE EXCEPTION 'neighbours is a number from 0 to 1000, not %', neighbours USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_hits > 1000 THEN
        RAISE EXCEPTION 'sqlvec.refine compares at most 1000 hits with each other, not %', v_hits USING ERRCODE = 'program_limit_exceeded',
            HINT = 'Give it the best of them.';
    END IF;
    PERFORM sqlvec._check_share('beta', beta), sqlvec._check_vectors(vectors), sqlvec._check_vectors(vectors || query), sqlvec._refuse_zero(query, 'cosine');
    IF v_hits = 0 THEN
        RETURN;
    END IF;
    v_units := sqlvec._unit_vectors(vectors);
    v_near := sqlvec._nearest_hits(v_units, least(neighbours + 1, v_hits), sqlvec._flushed(beta));
    v_scores := sqlvec._mean_cosines(v_units, v_near.places, v_near.weights, v_query[1]);
    IF expand THEN
        v_best := ARRAY(SELECT s.n FROM unnest(v_scores) WITH ORDINALITY AS s (score, n) ORDER BY s.score DESC, s.n LIMIT neighbours + 1);
        v_expanded := sqlvec._mean_cosines(v_units, v_near.places, v_near.weights,
                                           sqlvec._largest_components(v_units, v_near.places, v_near.weights, v_best));
        v_scores := ARRAY(SELECT (s.score + s.expanded) / 2 FROM unnest(v_scores, v_expanded) AS s (score, expanded));
    END IF;
    RETURN QUERY SELECT s.n::int, s.score FROM unnest(v_scores) WITH ORDINALITY AS s (score, n) ORDER BY s.score DESC, s.n;
END
$body$;

COMMENT ON FUNCTION sqlvec.refine(vector, vector[], int, float8, boolean) IS
    'Order of hits, as positions in the list (from 1), by the cosine of query to each of them averaged with its nearest hits: itself with weight 1, the neighbours nearest others with weight beta x cosine (SuperGlobal, first step). expand adds the second step, made for image descriptors: half of the score is then the inner product with the largest components of the neighbours + 1 best. At most 1000 hits; of equal scores the earlier position; NULL and zero vectors have the cosine 0 to everything.';

-- sqlvec.average: one query from several, as HyDE asks with the mean of the query and of answers that a
-- language model made up (Gao and others 2022, arXiv:2212.10496).

-- pgvector sums in float8 and rounds once.
CREATE OR REPLACE FUNCTION sqlvec._mean(vectors vector[]) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN (SELECT avg(v) FROM unnest(vectors) AS v);

CREATE OR REPLACE FUNCTION sqlvec.average(vectors vector[], unit boolean = true) RETURNS vector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_units vectors%TYPE;
    v_mean vectors%TYPE;
    v_place bigint;
BEGIN
    IF unit IS NULL THEN
        RAISE EXCEPTION 'unit cannot be NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF coalesce(cardinality(vectors), 0) = 0 THEN
        RAISE EXCEPTION 'there are no vectors to average' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM sqlvec._check_vectors(vectors);
    v_place := (SELECT min(t.n) FROM unnest(vectors) WITH ORDINALITY AS t (x, n) WHERE t.x IS NULL);
    IF v_place IS NOT NULL THEN
        RAISE EXCEPTION 'vector % is NULL', v_place USING ERRCODE = 'null_value_not_allowed';
    ELSIF NOT unit THEN
        RETURN sqlvec._mean(vectors);
    END IF;
    v_units := sqlvec._unit_vectors(vectors);
    v_place := (SELECT min(t.n) FROM unnest(v_units) WITH ORDINALITY AS t (x, n) WHERE sqlvec._norm(t.x) = 0);
    IF v_place IS NOT NULL THEN
        RAISE EXCEPTION 'vector % is zero and has no direction', v_place USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_mean := ARRAY[sqlvec._mean(v_units)];
    IF sqlvec._norm(v_mean[1]) < 1e-6::float8 THEN
        RAISE EXCEPTION 'the directions of the vectors cancel out' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN sqlvec._unit(v_mean[1]);
END
$body$;

COMMENT ON FUNCTION sqlvec.average(vector[], boolean) IS
    'The mean of vectors, for a query made of several (HyDE): with unit the mean of their directions at length 1, else the mean as it is. Sums run in float8. An error for an empty list and for NULL; with unit for zero vectors, and where the directions cancel out.';

-- sqlvec.best_per_group: the best hits of each group, for example the best passage of each document.

CREATE OR REPLACE FUNCTION sqlvec.best_per_group(groups text[], scores float8[], k int = 10, per_group int = 1)
RETURNS TABLE ("position" int, score float8)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM sqlvec._check_k(k), sqlvec._check_scores('scores', scores, coalesce(cardinality(groups), 0));
    IF per_group IS NULL OR per_group < 1 THEN
        RAISE EXCEPTION 'per_group is 1 or more, not %', per_group USING ERRCODE = 'invalid_parameter_value';
    ELSIF array_ndims(groups) > 1 THEN
        RAISE EXCEPTION 'groups is a list, not an array of % dimensions', array_ndims(groups) USING ERRCODE = 'array_subscript_error';
    END IF;
    RETURN QUERY
        SELECT h.n::int, h.score
        FROM (SELECT g.n, g.score, row_number() OVER (PARTITION BY g.name COLLATE "C", CASE WHEN g.name IS NULL THEN g.n END ORDER BY g.score DESC, g.n) AS place
              FROM unnest(groups, scores) WITH ORDINALITY AS g (name, score, n)) AS h
        WHERE h.place <= per_group
        ORDER BY h.score DESC, h.n LIMIT k;
END
$body$;

COMMENT ON FUNCTION sqlvec.best_per_group(text[], float8[], int, int) IS
    'The k best hits with at most per_group of each group, as positions in the lists (from 1) with their scores, the best first. groups names the group of each hit, NULL one of its own; a larger score is better (for distances give 0 - distance). Of equal scores the earlier position.';

-- sqlvec.boolean_relevance: AND, OR and NOT over the relevance to several queries.
--
-- An embedding hardly knows AND and OR, and NOT least of all: "trees without fruit" lies near fruit
-- (BoolQuestions; Zhang and others, Findings of EMNLP 2024). Here every part of a question is a query of
-- its own, a relevance model makes probabilities of its cosines, and these are combined.

-- The queries of an expression that can find rows, those under an even number of NOTs. An error where it
-- is no expression over so many queries.
CREATE OR REPLACE FUNCTION sqlvec._boolean_finders(expression jsonb, queries int, negated boolean = false, depth int = 1) RETURNS int[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_hint CONSTANT text := 'E.g. {"and": [1, {"not": 2}]}: an object with one of the keys and, or, not; numbers are positions in the list, from 1.';
    v_operator text;
    v_operands jsonb;
    v_operand jsonb;
    v_number numeric;
    v_finders int[] := '{}';
BEGIN
    IF expression IS NULL THEN
        RAISE EXCEPTION 'the expression is NULL' USING ERRCODE = 'null_value_not_allowed', HINT = v_hint;
    ELSIF depth > 100 THEN
        RAISE EXCEPTION 'the expression is nested deeper than 100 operators' USING ERRCODE = 'program_limit_exceeded';
    ELSIF jsonb_typeof(expression) = 'number' THEN
        v_number := expression::numeric;
        IF v_number NOT BETWEEN 1 AND queries OR v_number <> trunc(v_number) THEN
            RAISE EXCEPTION 'the expression names query %, there are %', v_number, queries USING ERRCODE = 'invalid_parameter_value', HINT = v_hint;
        END IF;
        RETURN CASE WHEN negated THEN '{}' ELSE ARRAY[v_number::int] END;
    ELSIF jsonb_typeof(expression) <> 'object' OR (SELECT count(*) FROM jsonb_object_keys(expression)) <> 1 THEN
        RAISE EXCEPTION 'this is no expression: %', left(expression::text, 200) USING ERRCODE = 'invalid_parameter_value', HINT = v_hint;
    END IF;
    SELECT e.key, e.value INTO v_operator, v_operands FROM jsonb_each(expression) AS e;
    IF v_operator = 'not' THEN
        RETURN sqlvec._boolean_finders(v_operands, queries, NOT negated, depth + 1);
    ELSIF v_operator NOT IN ('and', 'or') THEN
        RAISE EXCEPTION 'unknown operator "%" in the expression', v_operator USING ERRCODE = 'invalid_parameter_value', HINT = v_hint;
    ELSIF jsonb_typeof(v_operands) <> 'array' OR v_operands = '[]' THEN
        RAISE EXCEPTION 'operator "%" takes a list that is not empty, not %', v_operator, left(v_operands::text, 200)
            USING ERRCODE = 'invalid_parameter_value', HINT = v_hint;
    END IF;
    FOR v_operand IN SELECT jsonb_array_elements(v_operands) LOOP
        v_finders := v_finders || sqlvec._boolean_finders(v_operand, queries, negated, depth + 1);
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT f FROM unnest(v_finders) AS f ORDER BY f);
END
$body$;

-- The relevance of many rows. `relevances` holds that of all rows to query 1, then to query 2, and so on.
CREATE OR REPLACE FUNCTION sqlvec._boolean_relevances(expression jsonb, relevances float8[], hits int, combine text) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_operator text;
    v_operands jsonb;
    v_operand jsonb;
    v_found float8[];
    v_next float8[];
BEGIN
    IF jsonb_typeof(expression) = 'number' THEN
        RETURN relevances[(expression::int - 1) * hits + 1 : expression::int * hits];
    END IF;
    SELECT e.key, e.value INTO v_operator, v_operands FROM jsonb_each(expression) AS e;
    IF v_operator = 'not' THEN
        RETURN ARRAY(SELECT 1 - p FROM unnest(sqlvec._boolean_relevances(v_operands, relevances, hits, combine)) AS p);
    END IF;
    FOR v_operand IN SELECT jsonb_array_elements(v_operands) LOOP
        v_next := sqlvec._boolean_relevances(v_operand, relevances, hits, combine);
        v_found := CASE WHEN v_found IS NULL THEN v_next ELSE ARRAY(
            SELECT CASE WHEN t.a IS NULL OR t.b IS NULL THEN NULL
                        WHEN combine = 'minimum' THEN CASE v_operator WHEN 'and' THEN least(t.a, t.b) ELSE greatest(t.a, t.b) END
                        WHEN v_operator = 'and' THEN sqlvec._flushed(t.a) * sqlvec._flushed(t.b)
                        ELSE t.a + t.b * (1 - t.a) END
            FROM unnest(v_found, v_next) AS t (a, b)) END;
    END LOOP;
    RETURN v_found;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._check_combine(combine text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF combine IS NULL OR combine NOT IN ('product', 'minimum') THEN
        RAISE EXCEPTION 'combine is product or minimum, not "%"', combine USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.boolean_relevance(expression jsonb, relevance float8[], combine text = 'product') RETURNS float8
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF array_ndims(relevance) > 1 THEN
        RAISE EXCEPTION 'relevance is a list, not an array of % dimensions', array_ndims(relevance) USING ERRCODE = 'array_subscript_error';
    ELSIF EXISTS (SELECT FROM unnest(relevance) AS r WHERE r NOT BETWEEN 0 AND 1) THEN
        RAISE EXCEPTION 'relevance holds a number that is no probability from 0 to 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM sqlvec._check_combine(combine), sqlvec._boolean_finders(expression, coalesce(cardinality(relevance), 0));
    RETURN (sqlvec._boolean_relevances(expression, ARRAY(SELECT r FROM unnest(relevance) AS r), 1, combine))[1];
END
$body$;

COMMENT ON FUNCTION sqlvec.boolean_relevance(jsonb, float8[], text) IS
    'Relevance to a question that is made of several, from those to each: expression is JSON such as {"and": [1, {"not": 2}]} or {"or": [1, 2]} whose numbers are positions in the list relevance, from 1. combine product takes them as independent: and is the product, or is 1 - the product of 1 - p; minimum takes the least and the largest. not is 1 - p in both. NULL where one that is needed is NULL.';

-- How the legs of a hybrid search become one score.

-- The rows that the legs of a search found. Arrays are parallel, one element per row.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._hybrid_rows') IS NULL THEN
        CREATE TYPE sqlvec._hybrid_rows AS (
            row_ids       text[],   -- where they are, see _hit_statement
            row_tables    oid[],
            text_scores   float8[], -- NULL: not found by the leg, and not computed
            text_ranks    int[],    -- NULL: not found by the leg; equal scores share a rank
            distances     float8[],
            vector_ranks  int[],
            tokens_scores float8[],
            tokens_ranks  int[],
            cosines       float8[], -- where a relevance model asks for them
            groups        text[],   -- where rows are grouped
            vectors       vector[]  -- where they are to differ
        );
    END IF;
END
$do$;

-- Places and scores of up to three legs as one list.
CREATE OR REPLACE FUNCTION sqlvec._hybrid_union(
    text_ids text[], text_tables oid[], text_scores float8[], vector_ids text[], vector_tables oid[], distances float8[],
    tokens_ids text[], tokens_tables oid[], tokens_scores float8[]
) RETURNS sqlvec._hybrid_rows
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT ROW(array_agg(row_id), array_agg(row_table), array_agg(t.score), array_agg(t.rank), array_agg(v.distance), array_agg(v.rank),
               array_agg(m.score), array_agg(m.rank), NULL, NULL, NULL)::sqlvec._hybrid_rows
    FROM (SELECT u.row_id, u.row_table, u.score, rank() OVER (ORDER BY u.score DESC)::int AS rank
          FROM unnest(_hybrid_union.text_ids, _hybrid_union.text_tables, _hybrid_union.text_scores) AS u (row_id, row_table, score)) AS t
    FULL JOIN (SELECT u.row_id, u.row_table, u.distance, rank() OVER (ORDER BY u.distance)::int AS rank
               FROM unnest(_hybrid_union.vector_ids, _hybrid_union.vector_tables, _hybrid_union.distances) AS u (row_id, row_table, distance)) AS v
        USING (row_id, row_table)
    FULL JOIN (SELECT u.row_id, u.row_table, u.score, rank() OVER (ORDER BY u.score DESC)::int AS rank
               FROM unnest(_hybrid_union.tokens_ids, _hybrid_union.tokens_tables, _hybrid_union.tokens_scores) AS u (row_id, row_table, score)) AS m
        USING (row_id, row_table);
END;

CREATE OR REPLACE FUNCTION sqlvec.rrf(rank bigint, k int = 60) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1::float8 / (k + rank);

COMMENT ON FUNCTION sqlvec.rrf(bigint, int) IS
    'What a rank, from 1, adds to a score of reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): 1 / (k + rank). NULL for NULL: a list without the row adds nothing.';

-- Distribution-based score fusion: where a score lies between mean - 3 and mean + 3 standard deviations
-- of its list. 0.5 where all are equal.
CREATE OR REPLACE FUNCTION sqlvec._distribution(score float8, mean float8, deviation float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN score IS NOT NULL THEN CASE WHEN deviation > 0 THEN (score - mean) / (6 * deviation) + 0.5 ELSE 0.5 END END;

-- Where a score lies between the least it could be and the best of its list; `alone` where these are the same.
-- NULL, a row without the source of the leg, lies at the bottom.
CREATE OR REPLACE FUNCTION sqlvec._between(score float8, bottom float8, top float8, alone float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN score IS NULL THEN 0 WHEN top > bottom THEN (score - bottom) / (top - bottom) ELSE alone END;

-- One score per row; weights of text, vector and tokens, 0 for a leg that was not asked.
--   rrf     reciprocal rank fusion over the rows that a leg found
--   dbsf    distribution-based score fusion, as Qdrant does it, over the same
--   convex  scores between the least that is possible (BM25 0, cosine -1) and the best of this query, added
--           by weight (TM2C2 of Bruch, Gai and Ingber, TOIS 2023, arXiv:2210.11934). MaxSim starts from 0,
--           what it has where no token is like another; distances without a bound from the worst of this query
--   relevance  the probabilities `relevances` themselves
CREATE OR REPLACE FUNCTION sqlvec._fuse(fusion text, weights float8[], rrf_k int, metric text, r sqlvec._hybrid_rows, relevances float8[]) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH scored AS (
        SELECT u.n, u.text_rank, u.vector_rank, u.tokens_rank, u.text_score, CASE WHEN abs(u.distance) < 'Infinity' THEN CASE metric WHEN 'cosine' THEN 1 - u.distance ELSE - u.distance END END AS vector_score,
               u.tokens_score
        FROM unnest((r).text_scores, (r).text_ranks, (r).distances, (r).vector_ranks, (r).tokens_scores, (r).tokens_ranks)
            WITH ORDINALITY AS u (text_score, text_rank, distance, vector_rank, tokens_score, tokens_rank, n)
    ), of_list AS (
        SELECT avg(s.text_score) FILTER (WHERE s.text_rank IS NOT NULL) AS text_mean, stddev_samp(s.text_score) FILTER (WHERE s.text_rank IS NOT NULL) AS text_deviation,
               avg(s.vector_score) FILTER (WHERE s.vector_rank IS NOT NULL) AS vector_mean, stddev_samp(s.vector_score) FILTER (WHERE s.vector_rank IS NOT NULL) AS vector_deviation,
               avg(s.tokens_score) FILTER (WHERE s.tokens_rank IS NOT NULL) AS tokens_mean, stddev_samp(s.tokens_score) FILTER (WHERE s.tokens_rank IS NOT NULL) AS tokens_deviation,
               max(s.text_score) AS text_top, max(s.vector_score) AS vector_top, max(s.tokens_score) AS tokens_top,
               CASE metric WHEN 'cosine' THEN -1 ELSE min(s.vector_score) END AS vector_bottom
        FROM scored AS s
    )
    SELECT CASE fusion WHEN 'relevance' THEN relevances ELSE array_agg(CASE fusion
        WHEN 'rrf' THEN coalesce(weights[1] * sqlvec.rrf(s.text_rank, rrf_k), 0) + coalesce(weights[2] * sqlvec.rrf(s.vector_rank, rrf_k), 0)
                        + coalesce(weights[3] * sqlvec.rrf(s.tokens_rank, rrf_k), 0)
        WHEN 'dbsf' THEN coalesce(weights[1] * sqlvec._distribution(CASE WHEN s.text_rank IS NOT NULL THEN s.text_score END, l.text_mean, l.text_deviation), 0)
                         + coalesce(weights[2] * sqlvec._distribution(CASE WHEN s.vector_rank IS NOT NULL THEN s.vector_score END, l.vector_mean, l.vector_deviation), 0)
                         + coalesce(weights[3] * sqlvec._distribution(CASE WHEN s.tokens_rank IS NOT NULL THEN s.tokens_score END, l.tokens_mean, l.tokens_deviation), 0)
        ELSE (weights[1] * sqlvec._between(s.text_score, 0, l.text_top, 0) + weights[2] * sqlvec._between(s.vector_score, l.vector_bottom, l.vector_top, 1)
              + weights[3] * sqlvec._between(s.tokens_score, 0, l.tokens_top, 0)) / (weights[1] + weights[2] + weights[3]) END ORDER BY s.n) END
    FROM scored AS s, of_list AS l;
END;

-- What a relevance model says of the rows of a hybrid search.

-- The curves of one query: those of the legs, and how a fused model combines them.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._hybrid_curves') IS NULL THEN
        CREATE TYPE sqlvec._hybrid_curves AS (
            vector_slope float8, vector_intercept float8, vector_exponent float8, -- NULL: the model or the query lacks the leg
            text_slope float8, text_intercept float8, text_exponent float8,
            tokens_slope float8, tokens_intercept float8, tokens_exponent float8,
            text_maximum float8, -- what scores are divided by
            tokens       int,
            bias         float8,
            slopes       float8[], -- of vector, text and tokens; NULL for a model of one leg
            missing      float8[]  -- what a leg counts for that does not know a row
        );
    END IF;
END
$do$;

CREATE OR REPLACE FUNCTION sqlvec._logit(p float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p IS NOT NULL THEN ln(greatest(p, 2.3e-16::float8) / greatest(1 - p, 2.3e-16::float8)) END;

-- The relevance that rows need. No row has it where even the best is too little for a question with an answer.
CREATE OR REPLACE FUNCTION sqlvec._least_relevance(m sqlvec.relevance_model, relevances float8[], min_relevance float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN min_relevance IS NOT NULL AND max(u.relevance) < (m).min_best THEN 'Infinity' ELSE min_relevance END
    FROM unnest(relevances) AS u (relevance);
END;

-- The model of a leg: the model itself, or the one that a fused model combines; NULL for none.
CREATE OR REPLACE FUNCTION sqlvec._model_of(m sqlvec.relevance_model, leg text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE (m).leg WHEN 'fused' THEN (m).models[CASE _model_of.leg WHEN 'vector' THEN 1 WHEN 'text' THEN 2 WHEN 'tokens' THEN 3 END]
                    WHEN _model_of.leg THEN (m).name END;

CREATE OR REPLACE FUNCTION sqlvec._hybrid_curves(
    m sqlvec.relevance_model, query_vector vector, text_maximum float8, text_terms int, tokens int
) RETURNS sqlvec._hybrid_curves
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    c sqlvec._hybrid_curves;
    v_model text;
BEGIN
    v_model := sqlvec._model_of(m, 'vector');
    IF v_model IS NOT NULL THEN
        SELECT p.slope, p.intercept, p.exponent INTO c.vector_slope, c.vector_intercept, c.vector_exponent
        FROM sqlvec.relevance_parameters(v_model, query_vector) AS p;
    END IF;
    v_model := sqlvec._model_of(m, 'text');
    IF v_model IS NOT NULL THEN
        SELECT p.slope, p.intercept, p.exponent INTO c.text_slope, c.text_intercept, c.text_exponent
        FROM sqlvec.relevance_score_parameters(v_model, text_maximum, text_terms) AS p;
        c.text_maximum := nullif(text_maximum, 0);
    END IF;
    v_model := sqlvec._model_of(m, 'tokens');
    IF v_model IS NOT NULL THEN
        SELECT p.slope, p.intercept, p.exponent INTO c.tokens_slope, c.tokens_intercept, c.tokens_exponent
        FROM sqlvec.relevance_score_parameters(v_model, tokens) AS p;
        c.tokens := tokens;
    END IF;
    IF m.leg = 'fused' THEN
        c.bias := m.intercept[1];
        c.slopes := sqlvec._fused_weights(m.slope);
        c.missing := m.intercept[2:4];
    END IF;
    RETURN c;
END
$body$;

-- Relevance of each row. A text score of 0 says that the leg does not know the row.
CREATE OR REPLACE FUNCTION sqlvec._hybrid_relevance(c sqlvec._hybrid_curves, r sqlvec._hybrid_rows) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(CASE WHEN (c).slopes IS NULL THEN coalesce(l.by_vector, l.by_text, l.by_tokens)
                          WHEN num_nonnulls(l.by_vector, l.by_text, l.by_tokens) > 0
                          THEN sqlvec._logistic((c).bias + coalesce((c).slopes[1] * sqlvec._logit(l.by_vector), (c).missing[1])
                                                + coalesce((c).slopes[2] * sqlvec._logit(l.by_text), (c).missing[2])
                                                + coalesce((c).slopes[3] * sqlvec._logit(l.by_tokens), (c).missing[3])) END ORDER BY l.n)
    FROM (SELECT u.n,
                 sqlvec.relevance_at((c).vector_slope, (c).vector_intercept, (c).vector_exponent, u.cosine) AS by_vector,
                 sqlvec.relevance_at((c).text_slope, (c).text_intercept, (c).text_exponent, nullif(u.text_score, 0) / (c).text_maximum) AS by_text,
                 sqlvec.relevance_at((c).tokens_slope, (c).tokens_intercept, (c).tokens_exponent, u.tokens_score / (c).tokens) AS by_tokens
          FROM unnest((r).cosines, (r).text_scores, (r).tokens_scores) WITH ORDINALITY AS u (cosine, text_score, tokens_score, n)) AS l;
END;

-- How a hybrid search is written: its arguments checked, its columns found, its statements put together.

-- The column of a leg: the one that was named, or the only one of its types that holds no codes.
CREATE OR REPLACE FUNCTION sqlvec._only_column(rel oid, types name[], column_name text, argument text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_names text[];
BEGIN
    IF column_name IS NOT NULL THEN
        RETURN column_name;
    END IF;
    v_names := ARRAY(
        SELECT a.attname FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
        WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped
              AND CASE t.typtype WHEN 'd' THEN (sqlvec._column(rel, a.attname)).type_name ELSE t.typname END = ANY (types)
              AND a.attname <> ALL (ARRAY(SELECT unnest(d.target_columns) FROM sqlvec._derived_of(rel) AS d WHERE d.target_column IS NOT NULL))
        ORDER BY a.attnum);
    IF cardinality(v_names) = 1 THEN
        RETURN v_names[1];
    END IF;
    RAISE EXCEPTION 'table % has % of type %', sqlvec._qualified(rel), CASE cardinality(v_names) WHEN 0 THEN 'no column' ELSE 'several columns' END,
        replace(array_to_string(ARRAY(SELECT CASE WHEN t LIKE '\_%' THEN substr(t, 2) || '[]' ELSE t END FROM unnest(types) AS t), ' or '), '"', '')
        USING ERRCODE = CASE cardinality(v_names) WHEN 0 THEN 'undefined_column' ELSE 'ambiguous_column' END,
              HINT = CASE cardinality(v_names) WHEN 0 THEN format('Name the column to search: %s => ''...''.', argument)
                          ELSE format('Name one: %s => %L; there are %s.', argument, v_names[1],
                                      (SELECT string_agg(quote_ident(n), ', ') FROM unnest(v_names) AS n)) END;
END
$body$;

-- Weights of text, vector and tokens, 0 for a leg that is not asked. Where none are given legs weigh the
-- same, but in a convex combination: there the cosine lies between -1 and 1, and of that range real rows
-- fill a small part.
CREATE OR REPLACE FUNCTION sqlvec._leg_weights(weights jsonb, fusion text, asked boolean[]) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_legs CONSTANT text[] := ARRAY['text', 'vector', 'tokens'];
    v_weights float8[] := CASE fusion WHEN 'convex' THEN '{0.2,0.8,0.8}' ELSE '{1,1,1}' END;
    v_key text;
    v_value jsonb;
BEGIN
    IF weights IS NOT NULL THEN
        IF fusion = 'relevance' THEN
            RAISE EXCEPTION 'fusion "relevance" takes its weights from the model' USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave out weights.';
        ELSIF jsonb_typeof(weights) <> 'object' THEN
            RAISE EXCEPTION 'weights is a JSON object, not %', jsonb_typeof(weights)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'E.g. {"text": 1, "vector": 2}.';
        END IF;
        FOR v_key, v_value IN SELECT * FROM jsonb_each(weights) LOOP
            IF v_key <> ALL (v_legs) THEN
                RAISE EXCEPTION 'weights: there is no leg "%"', v_key USING ERRCODE = 'invalid_parameter_value', HINT = 'Legs are text, vector and tokens.';
            ELSIF jsonb_typeof(v_value) <> 'number' OR v_value::numeric < 0 OR v_value::numeric > 1e9 THEN
                RAISE EXCEPTION 'weights: leg "%" has weight %', v_key, v_value
                    USING ERRCODE = 'invalid_parameter_value', HINT = 'A weight is a number from 0 to 1e9.';
            END IF;
            v_weights[array_position(v_legs, v_key)] := v_value::float8;
        END LOOP;
        FOR i IN 1 .. 3 LOOP
            IF asked[i] AND NOT weights ? v_legs[i] THEN
                RAISE EXCEPTION 'weights names no weight for leg "%"', v_legs[i]
                    USING ERRCODE = 'invalid_parameter_value', HINT = 'Name all legs that are asked, or leave out weights.';
            END IF;
        END LOOP;
    END IF;
    v_weights := ARRAY(SELECT CASE WHEN a.asked THEN a.weight ELSE 0 END FROM unnest(v_weights, asked) WITH ORDINALITY AS a (weight, asked, n) ORDER BY a.n);
    IF 0 = ALL (v_weights) THEN
        RAISE EXCEPTION 'the weights of all legs are 0' USING ERRCODE = 'invalid_parameter_value', HINT = 'Give one leg at least a weight above 0.';
    END IF;
    RETURN v_weights;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._plan_hybrid(
    rel oid, asked boolean[], k int, candidates int, oversample float8, fusion text, weights jsonb, model text, min_relevance float8, autocut int,
    min_results int, mode text, rrf_k int, group_column text, group_size int, diversity float8, query_tokens halfvec[], key_column text, key_type regtype,
    tenant text, INOUT filter jsonb, INOUT text_column text, INOUT vector_column text, INOUT tokens_column text, -- of the legs that are asked; vector_column also where rows are to differ
    OUT depth int,             -- rows that each leg gives
    OUT leg_weights float8[],  -- of text, vector, tokens
    OUT legs boolean[],        -- which of them are searched
    OUT m sqlvec.relevance_model,
    OUT fills boolean,         -- scores that a leg has not given are computed
    OUT cuts_text boolean,     -- min_relevance bounds the scores of the leg, and of its list nothing else is
    OUT cuts_vector boolean    -- asked than what reaches the bound
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_leg text;
    v_leg_model text;
    v_served text[] := '{}'; -- models of legs that are asked
BEGIN
    IF true <> ALL (asked) THEN
        RAISE EXCEPTION 'a hybrid search needs something to search for' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give query_text, query_vector or query_tokens, or several of them.';
    ELSIF fusion IS NULL OR fusion NOT IN ('rrf', 'convex', 'dbsf', 'relevance') THEN
        RAISE EXCEPTION 'fusion "%" is not known', fusion USING ERRCODE = 'invalid_parameter_value', HINT = 'It is rrf, convex, dbsf or relevance.';
    ELSIF mode IS NULL OR mode NOT IN ('auto', 'exact') THEN
        RAISE EXCEPTION 'mode is auto or exact, not "%"', mode USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT coalesce(rrf_k BETWEEN 1 AND 1000000, false) THEN
        RAISE EXCEPTION 'rrf_k is a number from 1 to 1000000, not %', rrf_k USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT coalesce(min_relevance BETWEEN 0 AND 1, min_relevance IS NULL) THEN
        RAISE EXCEPTION 'min_relevance is a probability from 0 to 1, not %', min_relevance USING ERRCODE = 'invalid_parameter_value';
    ELSIF autocut < 1 THEN
        RAISE EXCEPTION 'autocut is the number of jumps, 1 or more, not %', autocut USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT coalesce(min_results BETWEEN 0 AND k, false) THEN
        RAISE EXCEPTION 'min_results is a number from 0 to k (%), not %', k, min_results USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT coalesce(group_size BETWEEN 1 AND 1000, false) THEN
        RAISE EXCEPTION 'group_size is a number from 1 to 1000, not %', group_size USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT coalesce(diversity BETWEEN 0 AND 1, diversity IS NULL) THEN
        RAISE EXCEPTION 'diversity is a number from 0 to 1, not %', diversity USING ERRCODE = 'invalid_parameter_value';
    ELSIF diversity > 0 AND k > 1000 THEN
        RAISE EXCEPTION 'with diversity k is at most 1000, not %', k USING ERRCODE = 'invalid_parameter_value';
    ELSIF model IS NULL AND (fusion = 'relevance' OR min_relevance IS NOT NULL) THEN
        RAISE EXCEPTION '% needs a relevance model', CASE WHEN fusion = 'relevance' THEN 'fusion "relevance"' ELSE 'min_relevance' END
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Name it: relevance => ''...''; the command sqlvec relevance fit makes one. Without a model, autocut cuts by the shape of the scores.';
    END IF;
    PERFORM sqlvec._check_search('', 1, k, candidates, oversample, 'auto');
    PERFORM sqlvec._check_places(rel, key_column, key_type, 'hybrid_search_keys');
    -- Scores of a hundred rows or more say how those of a query are spread.
    depth := coalesce(candidates, ceil(k * oversample)::int, greatest(100, 10 * k));
    IF depth > 10000 THEN
        IF coalesce(candidates, 0) > 10000 OR oversample IS NOT NULL THEN
            RAISE EXCEPTION 'a leg of a hybrid search gives 10000 candidates at most, not %', depth USING ERRCODE = 'invalid_parameter_value';
        END IF;
        depth := 10000;
    END IF;
    leg_weights := sqlvec._leg_weights(weights, fusion, asked);
    fills := fusion IN ('convex', 'relevance') OR model IS NOT NULL;
    -- What a leg without weight found would stand in the list for nothing.
    legs := ARRAY(SELECT a.asked AND (a.weight > 0 OR model IS NOT NULL) FROM unnest(asked, leg_weights) WITH ORDINALITY AS a (asked, weight, n) ORDER BY a.n);
    IF group_column IS NOT NULL THEN
        PERFORM sqlvec._column(rel, group_column);
    END IF;

    IF asked[1] OR tenant IS NOT NULL THEN
        v_derived := sqlvec._bm25_column(rel, text_column);
        text_column := v_derived.target_column;
        IF tenant IS NOT NULL AND v_derived.tenant_column IS NULL THEN
            RAISE EXCEPTION 'column "%" of table % was not declared with a tenant', text_column, sqlvec._qualified(rel)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Use filter.';
        ELSIF tenant IS NOT NULL THEN
            -- Every leg is the tenant's.
            filter := jsonb_build_object('$and', jsonb_build_array(jsonb_build_object(v_derived.tenant_column, tenant), coalesce(filter, '{}')));
        END IF;
    END IF;
    IF asked[2] OR diversity IS NOT NULL THEN
        vector_column := sqlvec._only_column(rel, ARRAY['vector', 'halfvec'], vector_column, 'vector_column');
    END IF;
    IF asked[3] THEN
        tokens_column := sqlvec._only_column(rel, ARRAY['_halfvec', '_vector'], tokens_column, 'tokens_column');
        PERFORM sqlvec._check_tokens(query_tokens, tokens_column, rel, (sqlvec._multivector_column(rel, tokens_column)).dimensions);
    END IF;

    IF model IS NULL THEN
        RETURN;
    END IF;
    m := sqlvec._relevance_model(model, ARRAY['vector', 'text', 'tokens', 'fused']);
    FOR i IN 1 .. 3 LOOP
        v_leg := (ARRAY['text', 'vector', 'tokens'])[i];
        v_leg_model := sqlvec._model_of(m, v_leg);
        CONTINUE WHEN v_leg_model IS NULL OR NOT asked[i];
        v_served := v_served || v_leg_model;
        PERFORM sqlvec._check_relevance(v_leg_model, v_leg, rel, CASE i
            -- A text model may name the text or the column that add_bm25 made of it.
            WHEN 1 THEN coalesce((SELECT c.column_name FROM sqlvec.relevance_model AS r, sqlvec._relevance_column(r) AS c
                                  WHERE r.name = v_leg_model AND c.column_name = ANY (v_derived.source_columns || v_derived.target_columns)), v_derived.source_columns[1])
            WHEN 2 THEN vector_column ELSE tokens_column END);
    END LOOP;
    IF cardinality(v_served) = 1 THEN
        -- What the others know is not unknown of a row but was not asked.
        m := sqlvec._relevance_model(v_served[1], ARRAY['vector', 'text', 'tokens']);
    ELSIF v_served = '{}' THEN
        RAISE EXCEPTION 'relevance model "%" is of leg "%", which this search does not ask', model, m.leg
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give the query of that leg, or a model of a leg that is asked.';
    END IF;
    cuts_text := m.leg = 'text' AND min_relevance IS NOT NULL AND min_results = 0 AND fusion <> 'dbsf';
    cuts_vector := m.leg = 'vector' AND min_relevance IS NOT NULL AND min_results = 0 AND fusion <> 'dbsf';
END
$body$;

-- The statements that follow the legs. In `gather`, $1 is params, $2 the weights of the words, $3 the values of
-- filter, $4 the tsquery, $5 and $6 words and weights, as in a BM25 search; $7 to $14 the rows that were
-- found with scores and ranks, $15 the query vector, $16 the query tokens.
CREATE OR REPLACE FUNCTION sqlvec._hybrid_statements(
    rel oid, key_column text, key_type regtype, text_score text, vector_column text, query_dimensions int, metric text, cosine boolean,
    tokens_column text, query_tokens int, group_column text, differ boolean,
    OUT gather text, -- the rows with what their legs have not given, equal scores in the order of the key
    OUT answer text  -- rows or keys of places $1, $2 in that order, with what stands in $3 to $10; $11 is complete
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_alias text := (SELECT quote_ident(c.relname) FROM pg_class AS c WHERE c.oid = rel);
    v_hit record := sqlvec._hit_statement(rel, v_alias, key_column, key_type, NULL);
    v_from text := format('%s AS %s', sqlvec._qualified(rel), v_alias);
    v_at record := sqlvec._at_place(rel, v_alias, key_column, key_type);
    v_vector text := v_alias || '.' || quote_ident(vector_column);
    v_query text := '$15';
    v_tokens text := v_alias || '.' || quote_ident(tokens_column);
    v_null CONSTANT text := 'NULL::pg_catalog.float8';
    v_fits text := '';
    v_end text := '';
BEGIN
    IF vector_column IS NOT NULL AND (sqlvec._column(rel, vector_column)).dimensions IS NULL AND query_dimensions IS NOT NULL THEN
        -- A column without dimensions may hold vectors that the query cannot be compared with.
        v_fits := format('CASE WHEN sqlvec._dims(%s) OPERATOR(pg_catalog.=) %s THEN ', v_vector, query_dimensions);
        v_end := ' END';
    END IF;
    IF vector_column IS NOT NULL AND (sqlvec._column(rel, vector_column)).type_name = 'halfvec' THEN
        v_query := 'sqlvec._halfvec($15)';
    END IF;
    gather := format(
        E'SELECT pg_catalog.array_agg(g.row_id) AS row_ids, pg_catalog.array_agg(g.row_table) AS row_tables, pg_catalog.array_agg(g.text_score) AS text_scores,\n'
        '  pg_catalog.array_agg(g.text_rank) AS text_ranks, pg_catalog.array_agg(g.distance) AS distances, pg_catalog.array_agg(g.vector_rank) AS vector_ranks,\n'
        '  pg_catalog.array_agg(g.tokens_score) AS tokens_scores, pg_catalog.array_agg(g.tokens_rank) AS tokens_ranks,\n'
        '  pg_catalog.array_agg(g.cosine) AS cosines, pg_catalog.array_agg(g.group_of) AS groups, pg_catalog.array_agg(g.own_vector) AS vectors\n'
        'FROM (\n  SELECT "sqlvec hit".row_id, "sqlvec hit".row_table, "sqlvec hit".text_rank, "sqlvec hit".vector_rank, "sqlvec hit".tokens_rank,\n'
        '    coalesce("sqlvec hit".text_score, %1$s) AS text_score,\n'
        '    coalesce("sqlvec hit".distance, %2$s) AS distance,\n'
        '    coalesce("sqlvec hit".tokens_score, %3$s) AS tokens_score,\n'
        '    %4$s AS cosine, %5$s AS group_of, %6$s AS own_vector\n'
        '  FROM unnest($7::%10$s, $7, $8, $9, $10, $11, $12, $13, $14)\n'
        '    AS "sqlvec hit" (place, row_id, row_table, text_score, text_rank, distance, vector_rank, tokens_score, tokens_rank)\n'
        '  JOIN %7$s ON %8$s\n  ORDER BY %9$s) AS g',
        coalesce(text_score, v_null),
        CASE WHEN metric IS NULL THEN v_null ELSE format('%ssqlvec._number(%s %s %s)%s', v_fits, v_vector, sqlvec._operator(metric), v_query, v_end) END,
        CASE WHEN tokens_column IS NULL THEN v_null ELSE sqlvec._maxsim_expression((sqlvec._column(rel, tokens_column)).type_name, v_tokens, '$16', query_tokens) END,
        CASE WHEN cosine THEN format('%ssqlvec._number(1::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s %s %s))%s', v_fits, v_vector, sqlvec._operator('cosine'), v_query, v_end)
             ELSE v_null END,
        CASE WHEN group_column IS NULL THEN 'NULL::pg_catalog.text' ELSE format('%s.%I::pg_catalog.text', v_alias, group_column) END,
        CASE WHEN differ THEN format('%s(%s::%I.vector)%s', v_fits, v_vector, sqlvec._vector_schema(), v_end) ELSE format('NULL::%I.vector', sqlvec._vector_schema()) END,
        v_from, v_at.condition, v_hit.tie_break, v_at.places);
    answer := format(
        E'SELECT %s, "sqlvec hit".score, "sqlvec hit".relevance, "sqlvec hit".text_score, "sqlvec hit".text_rank, "sqlvec hit".distance,\n'
        '  "sqlvec hit".vector_rank, "sqlvec hit".tokens_score, "sqlvec hit".tokens_rank, $11::pg_catalog.bool\n'
        'FROM unnest($1::%s, $2, $3, $4, $5, $6, $7, $8, $9, $10) WITH ORDINALITY\n'
        '  AS "sqlvec hit" (place, row_table, score, relevance, text_score, text_rank, distance, vector_rank, tokens_score, tokens_rank, turn)%s\n'
        'ORDER BY "sqlvec hit".turn',
        CASE WHEN key_type IS NULL THEN format('(%s.*)::%s', v_alias, sqlvec._qualified(rel)) ELSE format('"sqlvec hit".place::%s', sqlvec._type_name(key_type)) END,
        v_at.places, CASE WHEN key_type IS NULL THEN format(E'\nJOIN %s ON %s', v_from, v_at.condition) ELSE '' END);
END
$body$;

-- Which rows are answered, best first, as positions in the list.
--   min_results  so many of the best stay whatever their relevance
--   jumps        autocut
--   differ       diversity, 0 to 1
CREATE OR REPLACE FUNCTION sqlvec._hybrid_order(
    r sqlvec._hybrid_rows, scores float8[], relevances float8[], k int, min_relevance float8, jumps int, min_results int, grouped boolean, group_size int, differ float8,
    OUT places int[],
    OUT fit int,       -- rows that no cut took away
    OUT enough boolean -- groups, where they are asked for, give k rows
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_scores float8[];
    v_low float8;
    v_span float8;
BEGIN
    SELECT array_agg(o.n ORDER BY o.place), array_agg(o.score ORDER BY o.place) INTO places, v_scores
    FROM (SELECT u.n, u.score, u.relevance, row_number() OVER (ORDER BY u.score DESC NULLS LAST, u.n) AS place
          FROM unnest(scores, relevances) WITH ORDINALITY AS u (score, relevance, n)) AS o
    WHERE min_relevance IS NULL OR o.relevance >= min_relevance OR o.place <= min_results;
    places := coalesce(places, '{}');
    IF jumps IS NOT NULL AND places <> '{}' THEN
        places := places[: greatest(sqlvec.autocut(array_remove(v_scores, NULL), jumps), min_results)];
    END IF;
    fit := cardinality(places);
    IF grouped THEN
        SELECT coalesce(array_agg(g.n ORDER BY g.place), '{}') INTO places
        FROM (SELECT p.n, p.place, row_number() OVER (PARTITION BY coalesce('=' || (r).groups[p.n], p.place::text) ORDER BY p.place) AS in_group
              FROM unnest(places) WITH ORDINALITY AS p (n, place)) AS g
        WHERE g.in_group <= group_size;
    END IF;
    -- What lies deeper than a cut would be cut as well.
    enough := NOT grouped OR cardinality(places) >= k OR fit < cardinality(scores);
    IF differ > 0 AND places <> '{}' THEN
        -- Each choice looks at all that are left.
        places := places[: 1000];
        -- Scores of a fusion have no scale of their own.
        v_low := (SELECT min(scores[p]) FROM unnest(places) AS p);
        v_span := nullif((SELECT max(scores[p]) FROM unnest(places) AS p) - v_low, 0);
        places := ARRAY(
            SELECT places[s.position]
            FROM sqlvec.mmr(ARRAY(SELECT (r).vectors[p.n] FROM unnest(places) WITH ORDINALITY AS p (n, place) ORDER BY p.place),
                            ARRAY(SELECT CASE WHEN v_span IS NULL THEN 1 ELSE coalesce((scores[p.n] - v_low) / v_span, 0) END FROM unnest(places) WITH ORDINALITY AS p (n, place) ORDER BY p.place),
                            k, differ) WITH ORDINALITY AS s (position, score, turn)
            ORDER BY s.turn);
    END IF;
    places := places[: k];
END
$body$;

-- sqlvec.hybrid_search, sqlvec.hybrid_search_keys: text, vector and multi-vector search as one ranked list.
--
-- Each leg gives its best rows with their places and scores; one statement reads the rows at these places
-- for what is missing; then scores are fused, cut, and the rows that are left answered.

-- What a leg gives, with what other rows are scored by.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._leg') IS NULL THEN
        CREATE TYPE sqlvec._leg AS (
            row_ids text[], row_tables oid[], scores float8[], complete boolean,
            -- of the text leg, see sqlvec._plan_bm25
            compared text, vector sparsevec, bound text[], condition tsquery, lexemes text[], weights float8[], maximum float8,
            -- of the vector leg
            metric text
        );
    END IF;
END
$do$;

-- What is answered: rows with their scores, best first.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._hybrid_hits') IS NULL THEN
        CREATE TYPE sqlvec._hybrid_hits AS (
            row_ids text[], row_tables oid[], scores float8[], relevances float8[], text_scores float8[], text_ranks int[],
            distances float8[], vector_ranks int[], tokens_scores float8[], tokens_ranks int[]
        );
    END IF;
END
$do$;

CREATE OR REPLACE FUNCTION sqlvec._hybrid_hits(r sqlvec._hybrid_rows, scores float8[], relevances float8[], places int[]) RETURNS sqlvec._hybrid_hits
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT ROW(array_agg(u.row_id ORDER BY o.place), array_agg(u.row_table ORDER BY o.place), array_agg(u.score ORDER BY o.place),
               array_agg(u.relevance ORDER BY o.place), array_agg(u.text_score ORDER BY o.place), array_agg(u.text_rank ORDER BY o.place),
               array_agg(u.distance ORDER BY o.place), array_agg(u.vector_rank ORDER BY o.place),
               array_agg(u.tokens_score ORDER BY o.place), array_agg(u.tokens_rank ORDER BY o.place))::sqlvec._hybrid_hits
    FROM unnest((r).row_ids, (r).row_tables, scores, relevances, (r).text_scores, (r).text_ranks, (r).distances, (r).vector_ranks, (r).tokens_scores, (r).tokens_ranks)
        WITH ORDINALITY AS u (row_id, row_table, score, relevance, text_score, text_rank, distance, vector_rank, tokens_score, tokens_rank, n)
    JOIN unnest(places) WITH ORDINALITY AS o (n, place) ON o.n = u.n;
END;

-- A line for sqlvec.explain_hybrid_search about a leg.
CREATE OR REPLACE FUNCTION sqlvec._about_leg(leg sqlvec._leg, column_name text, depth int, weight float8, more text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('%s rows of %s asked of %I', coalesce(cardinality((leg).row_ids), 0), depth, column_name) || coalesce(', weight ' || weight, '')
       || coalesce('; ' || more, '') || CASE WHEN (leg).complete THEN '' ELSE '; ended before all that was asked was found' END;

-- A line about the fusion, and one about the model.
CREATE OR REPLACE FUNCTION sqlvec._about_fusion(fusion text, rrf_k int, m sqlvec.relevance_model, min_relevance float8, c sqlvec._hybrid_curves) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY['fusion', CASE fusion WHEN 'rrf' THEN format('rrf: weight / (%s + rank), over the legs that gave the row', rrf_k)
                                   WHEN 'dbsf' THEN 'dbsf: score between mean - 3 and mean + 3 deviations of its leg, over the legs that gave the row'
                                   WHEN 'convex' THEN 'convex: score between the least possible and the best, computed where a leg has not given the row'
                                   ELSE 'relevance: the probability itself' END]
       || CASE WHEN (m).name IS NULL THEN '{}'
               ELSE ARRAY['model', format('%s of leg %s', (m).name, (m).leg) || coalesce(': ' || array_to_string((m).models, ', '), '')
                    || CASE WHEN min_relevance IS NOT NULL AND (m).leg IN ('vector', 'text') THEN coalesce(format('; relevance %s is reached at a %s of %s', min_relevance,
                            CASE (m).leg WHEN 'vector' THEN 'cosine' ELSE 'share of the best possible score' END,
                            CASE (m).leg WHEN 'vector' THEN sqlvec._relevance_inverse((c).vector_slope, (c).vector_intercept, (c).vector_exponent, min_relevance)
                                         ELSE sqlvec._relevance_inverse((c).text_slope, (c).text_intercept, (c).text_exponent, min_relevance) END), '') ELSE '' END] END;

-- Every other text with the one after it.
CREATE OR REPLACE FUNCTION sqlvec._pairs(texts text[]) RETURNS TABLE (topic text, detail text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT texts[i], texts[i + 1] FROM generate_series(1, cardinality(texts), 2) AS i;
END;

-- A line about what the cuts left.
CREATE OR REPLACE FUNCTION sqlvec._about_cut(scores float8[], relevances float8[], fit int, m sqlvec.relevance_model, min_relevance float8, jumps int, min_results int) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT format('%s of %s rows are left', fit, coalesce(cardinality(scores), 0))
           || CASE WHEN min_relevance IS NULL THEN ''
                   ELSE format(', those with a relevance of %s or more; the best has %s', min_relevance, coalesce(round(max(u.relevance)::numeric, 4)::text, 'none'))
                        || CASE WHEN max(u.relevance) < (m).min_best
                                THEN format('; none is relevant, for the best row of a question with an answer has %s or more', round((m).min_best::numeric, 4)) ELSE '' END END
           || CASE WHEN jumps IS NULL THEN '' ELSE format(', those before jump %s of the scores', jumps) END
           || CASE WHEN min_results > 0 AND (min_relevance IS NOT NULL OR jumps IS NOT NULL) THEN format(', %s at the least', min_results) ELSE '' END
    FROM unnest(relevances) AS u (relevance);
END;

-- Whether a leg has given as many rows as it was asked for, and so may have more.
CREATE OR REPLACE FUNCTION sqlvec._has_more(depth int, legs int[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(depth <= ANY (legs), false);

-- How deep the legs are asked next; NULL where they have been asked for all that they give.
CREATE OR REPLACE FUNCTION sqlvec._deeper(depth int) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN depth < 10000 THEN least(4 * depth, 10000) END;

-- The whole search up to the statement that answers its rows or keys, which is NULL when there are none.
-- STABLE, so that every leg sees the snapshot of the statement that searches. No SET: the caller's where_sql
-- and policies run inside.
CREATE OR REPLACE FUNCTION sqlvec._run_hybrid(
    rel_type regtype, query_text text, query_vector vector, query_tokens halfvec[], k int, filter jsonb, where_sql text, params text[],
    candidates int, oversample float8, fusion text, weights jsonb, model text, min_relevance float8, autocut int, min_results int,
    text_column text, vector_column text, tokens_column text, metric text, mode text, tenant text, backend text, rrf_k int,
    group_column text, group_size int, diversity float8, key_column text, key_type regtype,
    OUT answer text, OUT hits sqlvec._hybrid_hits, OUT complete boolean, OUT gather text, OUT notes text[]
) LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_rel pg_catalog.oid := sqlvec._relation_of(rel_type);
    v_asked boolean[] := ARRAY[query_text IS NOT NULL, query_vector IS NOT NULL, query_tokens IS NOT NULL];
    p pg_catalog.record;
    v_depth int;
    v_text sqlvec._leg;
    v_vector sqlvec._leg;
    v_tokens sqlvec._leg;
    v_rows sqlvec._hybrid_rows;
    v_curves sqlvec._hybrid_curves;
    v_statement pg_catalog.record;
    v_order pg_catalog.record;
    v_scores pg_catalog.float8[];
    v_relevances pg_catalog.float8[];
BEGIN
    query_tokens := sqlvec._numbered(query_tokens);
    p := sqlvec._plan_hybrid(v_rel, v_asked, k, candidates, oversample, fusion, weights, model, min_relevance, autocut, min_results, mode, rrf_k,
                             group_column, group_size, diversity, query_tokens, key_column, key_type, tenant, filter, text_column, vector_column,
                             tokens_column);
    v_depth := p.depth;
    LOOP
        notes := '{}';
        IF p.legs[1] THEN
            SELECT r.row_ids, r.row_tables, r.scores, coalesce(r.complete, true), r.compared, r.vector, r.bound, r.condition, r.lexemes, r.weights, r.maximum, NULL
            INTO v_text
            FROM sqlvec._run_bm25(rel_type, p.text_column, query_text, v_depth, p.filter, where_sql, params, NULL, NULL, tenant, backend, key_column, key_type,
                                  CASE WHEN p.cuts_text THEN (p.m).name END, min_relevance) AS r;
            notes := pg_catalog.array_cat(notes, ARRAY['text', sqlvec._about_leg(v_text, p.text_column, v_depth, p.leg_weights[1],
                                                              CASE WHEN v_text.condition IS NULL THEN 'the query asks for nothing' END)]);
        END IF;
        IF p.legs[2] THEN
            SELECT r.row_ids, r.row_tables, r.scores, r.complete, NULL, NULL, NULL, NULL, NULL, NULL, NULL, r.metric_used INTO v_vector
            FROM sqlvec._run_vector(rel_type, p.vector_column, query_vector, k, v_depth, p.filter, where_sql, params, metric, mode, key_column, key_type,
                                    CASE WHEN p.cuts_vector THEN (p.m).name END, min_relevance) AS r;
            notes := pg_catalog.array_cat(notes, ARRAY['vector', sqlvec._about_leg(v_vector, p.vector_column, v_depth, p.leg_weights[2], v_vector.metric)]);
        END IF;
        IF p.legs[3] THEN
            SELECT r.row_ids, r.row_tables, r.scores, r.complete, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL INTO v_tokens
            FROM sqlvec._run_maxsim(rel_type, p.tokens_column, query_tokens, k, p.filter, where_sql, params, NULL, NULL, mode, 0.95::pg_catalog.float8, 'auto', NULL, true,
                                    key_column, key_type, v_depth) AS r;
            notes := pg_catalog.array_cat(notes, ARRAY['tokens', sqlvec._about_leg(v_tokens, p.tokens_column, v_depth, p.leg_weights[3], NULL)]);
        END IF;
        complete := coalesce(v_text.complete, true) AND coalesce(v_vector.complete, true) AND coalesce(v_tokens.complete, true);
        v_rows := sqlvec._hybrid_union(v_text.row_ids, v_text.row_tables, v_text.scores, v_vector.row_ids, v_vector.row_tables, v_vector.scores,
                                       v_tokens.row_ids, v_tokens.row_tables, v_tokens.scores);
        v_statement := sqlvec._hybrid_statements(
            v_rel, key_column, key_type, CASE WHEN p.fills THEN v_text.compared END, p.vector_column, sqlvec._dims(query_vector),
            CASE WHEN p.fills THEN v_vector.metric END, sqlvec._model_of(p.m, 'vector') IS NOT NULL AND p.legs[2], CASE WHEN p.fills AND p.legs[3] THEN p.tokens_column END,
            pg_catalog.cardinality(query_tokens), group_column, diversity IS NOT NULL);
        gather := v_statement.gather;
        EXECUTE gather INTO v_rows
        USING params, v_text.vector, v_text.bound, v_text.condition, v_text.lexemes, v_text.weights,
              v_rows.row_ids, v_rows.row_tables, v_rows.text_scores, v_rows.text_ranks, v_rows.distances, v_rows.vector_ranks, v_rows.tokens_scores, v_rows.tokens_ranks,
              query_vector, query_tokens;
        IF model IS NOT NULL THEN
            v_curves := sqlvec._hybrid_curves(p.m, query_vector, v_text.maximum, sqlvec._words(v_text.condition), pg_catalog.cardinality(query_tokens));
            v_relevances := sqlvec._hybrid_relevance(v_curves, v_rows);
        END IF;
        v_scores := sqlvec._fuse(fusion, p.leg_weights, rrf_k, v_vector.metric, v_rows, v_relevances);
        v_order := sqlvec._hybrid_order(v_rows, v_scores, v_relevances, k, sqlvec._least_relevance(p.m, v_relevances, min_relevance), autocut, min_results,
                                        group_column IS NOT NULL, group_size, diversity);
        -- Groups that are short of k rows may have them further down.
        EXIT WHEN v_order.enough OR NOT sqlvec._has_more(v_depth, ARRAY[pg_catalog.cardinality(v_text.row_ids), pg_catalog.cardinality(v_vector.row_ids),
                                                                        pg_catalog.cardinality(v_tokens.row_ids)]);
        v_depth := sqlvec._deeper(v_depth);
        IF v_depth IS NULL THEN
            complete := false;
            EXIT;
        END IF;
    END LOOP;
    notes := pg_catalog.array_cat(notes, sqlvec._about_fusion(fusion, rrf_k, p.m, min_relevance, v_curves));
    notes := pg_catalog.array_cat(notes, ARRAY['cut', sqlvec._about_cut(v_scores, v_relevances, v_order.fit, p.m, min_relevance, autocut, min_results)]);
    answer := v_statement.answer;
    hits := sqlvec._hybrid_hits(v_rows, v_scores, v_relevances, v_order.places);
END
$body$;

-- PL/pgSQL refuses an argument and a column of one name, `relevance`; SQL does not.
CREATE OR REPLACE FUNCTION sqlvec._hybrid_search(
    rel anyelement, query_text text = NULL, query_vector vector = NULL, query_tokens halfvec[] = NULL, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, fusion text = 'rrf', weights jsonb = NULL, model text = NULL,
    min_relevance float8 = NULL, autocut int = NULL, min_results int = 0, text_column text = NULL, vector_column text = NULL, tokens_column text = NULL,
    metric text = NULL, mode text = 'auto', tenant text = NULL, backend text = 'auto', rrf_k int = 60, group_column text = NULL, group_size int = 1,
    diversity float8 = NULL
) RETURNS TABLE (hit anyelement, score float8, relevance float8, text_score float8, text_rank int, vector_distance float8, vector_rank int, tokens_score float8, tokens_rank int,
    complete boolean)
LANGUAGE plpgsql STABLE ROWS 10
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_hybrid(pg_catalog.pg_typeof(rel), query_text, query_vector, query_tokens, k, filter, where_sql, params, candidates, oversample,
                                fusion, weights, model, min_relevance, autocut, min_results, text_column, vector_column, tokens_column, metric, mode,
                                tenant, backend, rrf_k, group_column, group_size, diversity, NULL, NULL);
    RETURN QUERY EXECUTE v_run.answer
    USING (v_run.hits).row_ids, (v_run.hits).row_tables, (v_run.hits).scores, (v_run.hits).relevances, (v_run.hits).text_scores, (v_run.hits).text_ranks,
          (v_run.hits).distances, (v_run.hits).vector_ranks, (v_run.hits).tokens_scores, (v_run.hits).tokens_ranks, v_run.complete;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.hybrid_search(
    rel anyelement, query_text text = NULL, query_vector vector = NULL, query_tokens halfvec[] = NULL, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, fusion text = 'rrf', weights jsonb = NULL, relevance text = NULL,
    min_relevance float8 = NULL, autocut int = NULL, min_results int = 0, text_column text = NULL, vector_column text = NULL, tokens_column text = NULL,
    metric text = NULL, mode text = 'auto', tenant text = NULL, backend text = 'auto', rrf_k int = 60, group_column text = NULL, group_size int = 1,
    diversity float8 = NULL
) RETURNS TABLE (hit anyelement, score float8, relevance float8, text_score float8, text_rank int, vector_distance float8, vector_rank int, tokens_score float8, tokens_rank int,
    complete boolean)
LANGUAGE sql STABLE ROWS 10
AS $body$
    SELECT * FROM sqlvec._hybrid_search(hybrid_search.rel,
        hybrid_search.query_text, hybrid_search.query_vector, hybrid_search.query_tokens, hybrid_search.k, hybrid_search.filter,
        hybrid_search.where_sql, hybrid_search.params, hybrid_search.candidates, hybrid_search.oversample, hybrid_search.fusion,
        hybrid_search.weights, hybrid_search.relevance, hybrid_search.min_relevance, hybrid_search.autocut, hybrid_search.min_results,
        hybrid_search.text_column, hybrid_search.vector_column, hybrid_search.tokens_column, hybrid_search.metric, hybrid_search.mode,
        hybrid_search.tenant, hybrid_search.backend, hybrid_search.rrf_k, hybrid_search.group_column, hybrid_search.group_size,
        hybrid_search.diversity)
$body$;

COMMENT ON FUNCTION sqlvec.hybrid_search(anyelement, text, vector, halfvec[], int, jsonb, text, text[], int, float8, text, jsonb, text, float8, int, int, text, text, text, text, text, text, text, int, text, int, float8) IS
    'Rows of table rel (a typed NULL row, NULL::doc) found by words, by a vector, by a multi-vector, or by several of these, as one list, best first; equal scores by primary key. Each leg gives candidates (or oversample x k; by default the greater of 100 and 10 x k) rows; fusion is rrf (reciprocal ranks, constant rrf_k), convex (scores from the least possible to the best found; what a leg has not given is computed), dbsf (distribution-based) or relevance (the probability that the model named by relevance gives); weights is JSON such as {"text": 1, "vector": 2}. With a model, relevance is a probability and min_relevance cuts, everything where no row reaches min_best of the model; autocut cuts before that many jumps of the score; the min_results best rows stay in any case. No rows is a legal answer. group_column then keeps the group_size best rows of each value, compared as text; diversity 0 to 1 trades score for rows that differ (maximal marginal relevance). The columns are found where the table has one of a kind, else text_column, vector_column and tokens_column name them. k, filter, where_sql, params, metric, mode (auto or exact), tenant and backend are as in the searches of the legs. complete is false when a leg ended before all that was asked was found.';

-- key stands second: what follows has a default, and Postgres resolves the type of a result column from the
-- position that its argument has in the call.
CREATE OR REPLACE FUNCTION sqlvec._hybrid_search_keys(
    rel anyelement, INOUT key anycompatible, query_text text = NULL, query_vector vector = NULL, query_tokens halfvec[] = NULL, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, fusion text = 'rrf', weights jsonb = NULL, model text = NULL,
    min_relevance float8 = NULL, autocut int = NULL, min_results int = 0, text_column text = NULL, vector_column text = NULL, tokens_column text = NULL,
    metric text = NULL, mode text = 'auto', tenant text = NULL, backend text = 'auto', rrf_k int = 60, group_column text = NULL, group_size int = 1,
    diversity float8 = NULL,
    key_column text = NULL, OUT score float8, OUT relevance float8, OUT text_score float8, OUT text_rank int, OUT vector_distance float8, OUT vector_rank int, OUT tokens_score float8, OUT tokens_rank int, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 10
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_hybrid(pg_catalog.pg_typeof(rel), query_text, query_vector, query_tokens, k, filter, where_sql, params, candidates, oversample,
                                fusion, weights, model, min_relevance, autocut, min_results, text_column, vector_column, tokens_column, metric, mode,
                                tenant, backend, rrf_k, group_column, group_size, diversity, key_column, pg_catalog.pg_typeof(key));
    RETURN QUERY EXECUTE v_run.answer
    USING (v_run.hits).row_ids, (v_run.hits).row_tables, (v_run.hits).scores, (v_run.hits).relevances, (v_run.hits).text_scores, (v_run.hits).text_ranks,
          (v_run.hits).distances, (v_run.hits).vector_ranks, (v_run.hits).tokens_scores, (v_run.hits).tokens_ranks, v_run.complete;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.hybrid_search_keys(
    rel anyelement, INOUT key anycompatible, query_text text = NULL, query_vector vector = NULL, query_tokens halfvec[] = NULL, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, fusion text = 'rrf', weights jsonb = NULL, relevance text = NULL,
    min_relevance float8 = NULL, autocut int = NULL, min_results int = 0, text_column text = NULL, vector_column text = NULL, tokens_column text = NULL,
    metric text = NULL, mode text = 'auto', tenant text = NULL, backend text = 'auto', rrf_k int = 60, group_column text = NULL, group_size int = 1,
    diversity float8 = NULL,
    key_column text = NULL, OUT score float8, OUT relevance float8, OUT text_score float8, OUT text_rank int, OUT vector_distance float8, OUT vector_rank int, OUT tokens_score float8, OUT tokens_rank int, OUT complete boolean
) RETURNS SETOF record
LANGUAGE sql STABLE ROWS 10
AS $body$
    SELECT * FROM sqlvec._hybrid_search_keys(hybrid_search_keys.rel, hybrid_search_keys.key,
        hybrid_search_keys.query_text, hybrid_search_keys.query_vector, hybrid_search_keys.query_tokens, hybrid_search_keys.k,
        hybrid_search_keys.filter, hybrid_search_keys.where_sql, hybrid_search_keys.params, hybrid_search_keys.candidates,
        hybrid_search_keys.oversample, hybrid_search_keys.fusion, hybrid_search_keys.weights, hybrid_search_keys.relevance,
        hybrid_search_keys.min_relevance, hybrid_search_keys.autocut, hybrid_search_keys.min_results, hybrid_search_keys.text_column,
        hybrid_search_keys.vector_column, hybrid_search_keys.tokens_column, hybrid_search_keys.metric, hybrid_search_keys.mode,
        hybrid_search_keys.tenant, hybrid_search_keys.backend, hybrid_search_keys.rrf_k, hybrid_search_keys.group_column,
        hybrid_search_keys.group_size, hybrid_search_keys.diversity, hybrid_search_keys.key_column)
$body$;

COMMENT ON FUNCTION sqlvec.hybrid_search_keys(anyelement, anycompatible, text, vector, halfvec[], int, jsonb, text, text[], int, float8, text, jsonb, text, float8, int, int, text, text, text, text, text, text, text, int, text, int, float8, text) IS
    'The rows of sqlvec.hybrid_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands second (key => NULL::uuid): needs SELECT on the key column and on those that the legs search only.';

-- sqlvec.boolean_search, sqlvec.boolean_search_keys: rows by their relevance to several queries.
--
-- Every query that is not negated finds rows by itself; then the cosines of all that were found to all
-- queries are computed exactly.

-- The expression with every query under an odd number of NOTs under a number of its own, higher by `queries`.
CREATE OR REPLACE FUNCTION sqlvec._negated_apart(expression jsonb, queries int, negated boolean = false) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF jsonb_typeof(expression) = 'number' THEN
        RETURN to_jsonb(expression::int + CASE WHEN negated THEN queries ELSE 0 END);
    ELSIF expression ? 'not' THEN
        RETURN jsonb_build_object('not', sqlvec._negated_apart(expression -> 'not', queries, NOT negated));
    END IF;
    RETURN (SELECT jsonb_build_object(e.key, (SELECT jsonb_agg(sqlvec._negated_apart(o, queries, negated)) FROM jsonb_array_elements(e.value) AS o))
            FROM jsonb_each(expression) AS e);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._plan_boolean(
    rel oid, column_name text, INOUT queries vector[], expression jsonb, k int, candidates int, oversample float8, model text, min_relevance float8,
    combine text, mode text, key_column text, key_type regtype,
    OUT finders int[],       -- the queries that find rows
    OUT depth int,           -- how many each
    OUT most int,            -- how many at most, where that is too few; NULL where the caller has said how many
    OUT slopes float8[], OUT intercepts float8[], OUT exponents float8[], -- the curve of each query
    OUT gather text,         -- of the rows at places $1, $2 the cosines to the queries $3
    OUT answer text          -- see sqlvec._hit_statement
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_alias text := (SELECT quote_ident(c.relname) FROM pg_class AS c WHERE c.oid = rel);
    v_hit record;
    v_at record;
    v_curve record;
    v_cosines text;
BEGIN
    PERFORM sqlvec._check_search(column_name, 1, k, candidates, oversample, mode), sqlvec._check_combine(combine);
    IF model IS NULL THEN
        RAISE EXCEPTION 'a boolean search needs a relevance model of the column' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Name it: relevance => ''...''; the command sqlvec relevance fit makes one.';
    ELSIF NOT coalesce(min_relevance BETWEEN 0 AND 1, min_relevance IS NULL) THEN
        RAISE EXCEPTION 'min_relevance is a probability from 0 to 1, not %', min_relevance USING ERRCODE = 'invalid_parameter_value';
    ELSIF array_ndims(queries) > 1 THEN
        RAISE EXCEPTION 'queries is a list, not an array of % dimensions', array_ndims(queries) USING ERRCODE = 'array_subscript_error';
    END IF;
    PERFORM sqlvec._check_places(rel, key_column, key_type, 'boolean_search_keys');
    queries := ARRAY(SELECT q FROM unnest(queries) AS q);
    finders := sqlvec._boolean_finders(expression, cardinality(queries));
    IF finders = '{}' THEN
        RAISE EXCEPTION 'every query of the expression is negated, and none finds rows' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Say what is wanted as well: {"and": [1, {"not": 2}]}.';
    ELSIF cardinality(queries) > 100 THEN
        RAISE EXCEPTION 'a boolean search takes at most 100 queries, not %', cardinality(queries) USING ERRCODE = 'program_limit_exceeded';
    END IF;
    depth := coalesce(candidates, ceil(k * oversample)::int, greatest(100, 10 * k));
    IF depth > 10000 AND num_nonnulls(candidates, oversample) > 0 THEN
        RAISE EXCEPTION 'a query of a boolean search gives 10000 candidates at most, not %', depth USING ERRCODE = 'invalid_parameter_value';
    END IF;
    depth := least(depth, 10000);
    most := CASE WHEN num_nonnulls(candidates, oversample) = 0 THEN least(16 * depth, 10000) END;
    PERFORM sqlvec._check_relevance(model, 'vector', rel, column_name);
    FOR i IN 1 .. cardinality(queries) LOOP
        IF queries[i] IS NULL THEN
            RAISE EXCEPTION 'query % is NULL', i USING ERRCODE = 'null_value_not_allowed';
        END IF;
        PERFORM sqlvec._searched_column(rel, column_name, 'vector', sqlvec._dims(queries[i])), sqlvec._refuse_zero(queries[i], 'cosine');
        v_curve := sqlvec.relevance_parameters(model, queries[i]);
        slopes[i] := v_curve.slope; intercepts[i] := v_curve.intercept; exponents[i] := v_curve.exponent;
    END LOOP;

    v_hit := sqlvec._hit_statement(rel, v_alias, key_column, key_type, k);
    v_at := sqlvec._at_place(rel, v_alias, key_column, key_type);
    answer := v_hit.answer;
    SELECT string_agg(format('sqlvec._number(1::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s.%I %s %s))', v_alias, column_name, sqlvec._operator('cosine'),
                             format(CASE c.type_name WHEN 'halfvec' THEN 'sqlvec._halfvec(($3)[%s])' ELSE '($3)[%s]' END, i)), ', ' ORDER BY i)
    INTO v_cosines FROM generate_series(1, cardinality(queries)) AS i, sqlvec._column(rel, column_name) AS c;
    gather := format(
        'SELECT pg_catalog.array_agg("sqlvec hit".row_id) AS row_ids, pg_catalog.array_agg("sqlvec hit".row_table) AS row_tables, '
        'pg_catalog.array_agg(ARRAY[%s]) AS cosines FROM unnest($1::%s, $1, $2) AS "sqlvec hit" (place, row_id, row_table) JOIN %s AS %s ON %s',
        v_cosines, v_at.places, sqlvec._qualified(rel), v_alias, v_at.condition);
END
$body$;

-- The last of so many distances; NULL where there are fewer: then every row was found.
CREATE OR REPLACE FUNCTION sqlvec._last_distance(distances float8[], depth int) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN distances[depth];

CREATE OR REPLACE FUNCTION sqlvec._distinct_places(row_ids text[], row_tables oid[], OUT ids text[], OUT tables oid[])
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(p.row_id), array_agg(p.row_table) FROM (SELECT DISTINCT u.row_id, u.row_table FROM unnest(row_ids, row_tables) AS u (row_id, row_table)) AS p;
END;

-- Relevance of rows by their cosines, a list for each row, NULL below min_relevance. Nothing can be missing
-- where no other row has as much as the k-th: for a query that finds, such a row has at most the relevance
-- of the last one found, and under NOT it may have none.
CREATE OR REPLACE FUNCTION sqlvec._score_boolean(
    expression jsonb, finders int[], slopes float8[], intercepts float8[], exponents float8[], cosines float8[], last_distances float8[],
    k int, min_relevance float8, combine text, OUT relevances float8[], OUT done boolean
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_queries int := cardinality(slopes);
    v_hits int := coalesce(array_length(cosines, 1), 0);
    v_bound float8;
BEGIN
    relevances := sqlvec._boolean_relevances(expression, ARRAY(
        SELECT sqlvec.relevance_at(slopes[q], intercepts[q], exponents[q], cosines[r][q]) FROM generate_series(1, v_queries) AS q, generate_series(1, v_hits) AS r
        ORDER BY q, r), v_hits, combine);
    IF array_position(last_distances, NULL) IS NULL THEN
        v_bound := (sqlvec._boolean_relevances(sqlvec._negated_apart(expression, v_queries), ARRAY(
            SELECT coalesce((SELECT sqlvec.relevance_at(slopes[q], intercepts[q], exponents[q], 1 - l.distance)
                             FROM unnest(finders, last_distances) AS l (finder, distance) WHERE l.finder = q), 0)
            FROM generate_series(1, 2 * v_queries) AS q ORDER BY q), 1, combine))[1];
    END IF;
    done := v_bound IS NULL OR coalesce(v_bound < min_relevance, false)
            OR (SELECT count(*) >= k FROM unnest(relevances) AS r WHERE r >= v_bound);
    relevances := ARRAY(SELECT CASE WHEN min_relevance IS NULL OR r >= min_relevance THEN r END FROM unnest(relevances) AS r);
END
$body$;

-- How many rows each query gives next; NULL for no more. No rows at all say that none is relevant, and so
-- may only be answered once everything has been read, unless the caller has said how much to read.
CREATE OR REPLACE FUNCTION sqlvec._boolean_depth(depth int, most int, found text[]) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN most IS NOT NULL AND depth < most THEN least(4 * depth, most)
            WHEN most IS NOT NULL AND depth < 1000000 AND coalesce(cardinality(found), 0) = 0 THEN least(16 * depth, 1000000) END;

-- The search up to the statement that answers its rows or keys. STABLE, so that every query sees the snapshot
-- of the statement that searches. No SET: the caller's where_sql and policies run inside.
CREATE OR REPLACE FUNCTION sqlvec._run_boolean(
    rel_type regtype, column_name text, queries vector[], expression jsonb, k int, filter jsonb, where_sql text, params text[],
    candidates int, oversample float8, model text, min_relevance float8, mode text, combine text, key_column text, key_type regtype,
    OUT answer text, OUT row_ids text[], OUT row_tables oid[], OUT relevances float8[], OUT complete boolean
) LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_depth int;
    v_finder int;
    v_leg pg_catalog.record;
    v_last pg_catalog.float8[];
    v_places pg_catalog.record;
    v_rows pg_catalog.record;
    v_scored pg_catalog.record;
    v_best pg_catalog.record;
BEGIN
    v_plan := sqlvec._plan_boolean(sqlvec._relation_of(rel_type), column_name, queries, expression, k, candidates, oversample, model, min_relevance, combine, mode,
                                   key_column, key_type);
    v_depth := v_plan.depth;
    LOOP
        row_ids := '{}'; row_tables := '{}'; v_last := '{}'; complete := true;
        FOREACH v_finder IN ARRAY v_plan.finders LOOP
            v_leg := sqlvec._run_vector(rel_type, column_name, (v_plan.queries)[v_finder], k, v_depth, filter, where_sql, params, 'cosine', mode, key_column, key_type);
            row_ids := pg_catalog.array_cat(row_ids, v_leg.row_ids);
            row_tables := pg_catalog.array_cat(row_tables, v_leg.row_tables);
            v_last := pg_catalog.array_append(v_last, sqlvec._last_distance(v_leg.scores, v_depth));
            complete := complete AND v_leg.complete;
        END LOOP;
        v_places := sqlvec._distinct_places(row_ids, row_tables);
        EXECUTE v_plan.gather INTO v_rows USING v_places.ids, v_places.tables, v_plan.queries;
        v_scored := sqlvec._score_boolean(expression, v_plan.finders, v_plan.slopes, v_plan.intercepts, v_plan.exponents, v_rows.cosines, v_last, k, min_relevance, combine);
        v_best := sqlvec._best_hits(v_scored.relevances, v_rows.row_ids, v_rows.row_tables, k);
        EXIT WHEN v_scored.done;
        v_depth := sqlvec._boolean_depth(v_depth, v_plan.most, v_best.row_ids);
        EXIT WHEN v_depth IS NULL;
    END LOOP;
    answer := v_plan.answer;
    row_ids := v_best.row_ids; row_tables := v_best.row_tables; relevances := v_best.scores;
    complete := complete AND v_scored.done;
END
$body$;

-- PL/pgSQL refuses an argument and a column of one name, `relevance`; SQL does not.
CREATE OR REPLACE FUNCTION sqlvec._boolean_search(
    rel anyelement, column_name text, queries vector[], expression jsonb, k int, filter jsonb, where_sql text, params text[],
    candidates int, oversample float8, model text, min_relevance float8, mode text, combine text
) RETURNS TABLE (hit anyelement, relevance float8, complete boolean)
LANGUAGE plpgsql STABLE ROWS 10
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_boolean(pg_catalog.pg_typeof(rel), column_name, queries, expression, k, filter, where_sql, params, candidates, oversample, model,
                                 min_relevance, mode, combine, NULL, NULL);
    RETURN QUERY EXECUTE v_run.answer USING v_run.row_ids, v_run.row_tables, v_run.relevances, v_run.complete;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.boolean_search(
    rel anyelement, column_name text, queries vector[], expression jsonb, k int = 10, filter jsonb = NULL, where_sql text = NULL, params text[] = NULL,
    candidates int = NULL, oversample float8 = NULL, relevance text = NULL, min_relevance float8 = NULL, mode text = 'auto', combine text = 'product'
) RETURNS TABLE (hit anyelement, relevance float8, complete boolean)
LANGUAGE sql STABLE ROWS 10
AS $body$
    SELECT * FROM sqlvec._boolean_search(boolean_search.rel, boolean_search.column_name, boolean_search.queries, boolean_search.expression, boolean_search.k,
        boolean_search.filter, boolean_search.where_sql, boolean_search.params, boolean_search.candidates, boolean_search.oversample, boolean_search.relevance,
        boolean_search.min_relevance, boolean_search.mode, boolean_search.combine)
$body$;

COMMENT ON FUNCTION sqlvec.boolean_search(anyelement, text, vector[], jsonb, int, jsonb, text, text[], int, float8, text, float8, text, text) IS
    'Rows of table rel (a typed NULL row, NULL::doc) by their relevance to several query vectors, combined as sqlvec.boolean_relevance does: expression is JSON such as {"and": [1, {"not": 2}]} over positions in queries. relevance names the model of the column, which is required; min_relevance cuts. Each query that is not under NOT finds candidates (or oversample x k) rows by cosine, by default the greater of 100 and 10 x k and up to 16 times as many where others could be as relevant; the cosines of all of these to all queries are exact. No rows is a legal answer. k, filter, where_sql, params and mode are as in sqlvec.vector_search. complete is false where rows that were not candidates could belong to the answer.';

-- key stands fifth because Postgres resolves the type of a result column from the position that its argument
-- has in the call.
CREATE OR REPLACE FUNCTION sqlvec._boolean_search_keys(
    rel anyelement, column_name text, queries vector[], expression jsonb, INOUT key anycompatible, k int, filter jsonb, where_sql text, params text[],
    candidates int, oversample float8, model text, min_relevance float8, mode text, combine text, key_column text,
    OUT relevance float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 10
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_boolean(pg_catalog.pg_typeof(rel), column_name, queries, expression, k, filter, where_sql, params, candidates, oversample, model,
                                 min_relevance, mode, combine, key_column, pg_catalog.pg_typeof(key));
    RETURN QUERY EXECUTE v_run.answer USING v_run.row_ids, v_run.row_tables, v_run.relevances, v_run.complete;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.boolean_search_keys(
    rel anyelement, column_name text, queries vector[], expression jsonb, INOUT key anycompatible, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, relevance text = NULL, min_relevance float8 = NULL, mode text = 'auto',
    combine text = 'product', key_column text = NULL, OUT relevance float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE sql STABLE ROWS 10
AS $body$
    SELECT * FROM sqlvec._boolean_search_keys(boolean_search_keys.rel, boolean_search_keys.column_name, boolean_search_keys.queries,
        boolean_search_keys.expression, boolean_search_keys.key, boolean_search_keys.k, boolean_search_keys.filter, boolean_search_keys.where_sql,
        boolean_search_keys.params, boolean_search_keys.candidates, boolean_search_keys.oversample, boolean_search_keys.relevance,
        boolean_search_keys.min_relevance, boolean_search_keys.mode, boolean_search_keys.combine, boolean_search_keys.key_column)
$body$;

COMMENT ON FUNCTION sqlvec.boolean_search_keys(anyelement, text, vector[], jsonb, anycompatible, int, jsonb, text, text[], int, float8, text, float8, text, text, text) IS
    'The rows of sqlvec.boolean_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands right after the expression (key => NULL::uuid): needs SELECT on the searched and key columns only.';

-- sqlvec.explain_bm25_search: what bm25_search does with the same arguments, and why.

CREATE OR REPLACE FUNCTION sqlvec.explain_bm25_search(
    rel anyelement, column_name text, query text, k int = 10, filter jsonb = NULL, where_sql text = NULL, params text[] = NULL,
    candidates int = NULL, oversample float8 = NULL, tenant text = NULL, backend text = 'auto'
) RETURNS TABLE (topic text, detail text)
LANGUAGE plpgsql
AS $body$
DECLARE
    v_rel pg_catalog.oid := sqlvec._relation_of(pg_catalog.pg_typeof(rel));
    v_plan pg_catalog.record;
    q sqlvec._bm25_query;
    v_state sqlvec._bm25_state;
    v_line pg_catalog.text;
    v_found pg_catalog.record;
    v_seqscan pg_catalog.text := pg_catalog.current_setting('enable_seqscan');
    v_step int := 0;
BEGIN
    v_plan := sqlvec._plan_bm25(v_rel, column_name, query, k, filter, where_sql, candidates, oversample, tenant, backend, NULL, NULL,
                                 pg_catalog.current_setting('search_path'));
    q := v_plan.q;
    topic := 'column';
    detail := pg_catalog.format('%I of %s', ((q).derived).target_column, pg_catalog.array_to_string(((q).derived).source_columns, ', '));
    RETURN NEXT;
    topic := 'query'; detail := coalesce((q).condition::pg_catalog.text, 'asks for nothing: no rows');
    RETURN NEXT;
    IF (q).condition IS NULL THEN
        RETURN;
    END IF;
    topic := 'statistics';
    detail := pg_catalog.format('%s documents, %s', (q).documents, CASE WHEN (q).counted THEN 'counted by analyze_bm25'
        ELSE pg_catalog.format('counted now; CALL sqlvec.analyze_bm25(%L);', ((q).derived).relation::pg_catalog.regclass) END);
    RETURN NEXT;
    FOR n IN 1 .. pg_catalog.cardinality((q).lexemes) LOOP
        topic := 'word';
        detail := pg_catalog.format('%s: in %s documents, weight %s', (q).lexemes[n], (q).documents_with[n], pg_catalog.round((q).weights[n]::numeric, 4));
        RETURN NEXT;
    END LOOP;
    topic := 'plan'; detail := v_plan.reason;
    RETURN NEXT;
    detail := sqlvec._explained_filter(v_plan.condition, v_plan.bound);
    IF detail IS NOT NULL THEN
        topic := 'filter';
        RETURN NEXT;
    END IF;
    IF (q).collides OR NOT ((q).derived).maintained THEN
        topic := 'scores';
        detail := CASE WHEN (q).collides THEN 'computed from the terms: a word shares its dimension with another term'
                       ELSE 'computed from the terms: the weights are not kept or being encoded anew' END;
        RETURN NEXT;
    END IF;
    IF v_plan.waiting IS NOT NULL THEN
        topic := 'unfinished';
        detail := pg_catalog.format('rows without weights are read one by one; CALL sqlvec.backfill(%L, %L);', ((q).derived).relation::pg_catalog.regclass, ((q).derived).target_column);
        RETURN NEXT;
    END IF;
    IF v_plan.native IS NOT NULL THEN
        topic := 'statement'; detail := pg_catalog.concat(v_plan.native, E'\n-- $4 = tsquery of the query, $7 = the query');
        RETURN NEXT;
        RETURN;
    END IF;
    topic := 'statement';
    detail := pg_catalog.concat(v_plan.step, E'\n-- $1 = params, $2 = weights of the words, $3 = values of filter, $4 = tsquery of the step');
    RETURN NEXT;
    -- The search itself, step by step, with the plan of each.
    v_state := v_plan.state;
    LOOP
        v_state := sqlvec._bm25_step(q, v_state, k, v_plan.once);
        EXIT WHEN (v_state).step IS NULL;
        v_step := v_step OPERATOR(pg_catalog.+) 1;
        topic := pg_catalog.format('step %s', v_step);
        detail := (v_state).step::pg_catalog.text;
        RETURN NEXT;
        PERFORM pg_catalog.set_config('enable_seqscan', v_plan.seqscan, true);
        FOR v_line IN EXECUTE pg_catalog.concat('EXPLAIN (ANALYZE, TIMING OFF, BUFFERS OFF) ', v_plan.step)
                      USING params, v_plan.vector, v_plan.bound, (v_state).step, (q).lexemes, (q).weights LOOP
            topic := 'explain'; detail := v_line;
            RETURN NEXT;
        END LOOP;
        EXECUTE v_plan.step INTO v_found USING params, v_plan.vector, v_plan.bound, (v_state).step, (q).lexemes, (q).weights;
        PERFORM pg_catalog.set_config('enable_seqscan', v_seqscan, true);
        v_state := sqlvec._bm25_merge(v_state, v_found.scores, v_found.row_ids, v_found.row_tables, k);
    END LOOP;
    topic := 'answer'; detail := pg_catalog.concat(v_plan.answer, E'\n-- $1, $2, $3 = addresses and scores of the rows found, $4 = complete');
    RETURN NEXT;
    FOR v_line IN EXECUTE pg_catalog.concat('EXPLAIN ', v_plan.answer) USING (v_state).row_ids, (v_state).row_tables, (v_state).scores, true LOOP
        topic := 'explain'; detail := v_line;
        RETURN NEXT;
    END LOOP;
END
$body$;

COMMENT ON FUNCTION sqlvec.explain_bm25_search(anyelement, text, text, int, jsonb, text, text[], int, float8, text, text) IS
    'What sqlvec.bm25_search does with the same arguments: words with their frequencies and weights, the plan and its reason, filter, and each step of the search with its EXPLAIN ANALYZE. Runs the search.';

-- sqlvec.explain_search: what vector_search would do with the same arguments, and why.

CREATE OR REPLACE FUNCTION sqlvec.explain_search(
    rel anyelement, column_name text, query vector, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, metric text = NULL, mode text = 'auto'
) RETURNS TABLE (topic text, detail text)
LANGUAGE plpgsql
AS $body$
DECLARE
    v_rel pg_catalog.oid := sqlvec._relation_of(pg_catalog.pg_typeof(rel));
    v_plan pg_catalog.record;
    v_before pg_catalog.text[];
    v_line pg_catalog.text;
    v_derived pg_catalog.record;
    v_waiting bigint;
BEGIN
    v_plan := sqlvec._plan_search(
        pg_catalog.pg_typeof(rel), column_name, 'vector', sqlvec._dims(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, NULL, NULL, pg_catalog.current_setting('search_path'));
    query := sqlvec._refuse_zero(query, v_plan.metric);

    topic := 'plan';
    detail := CASE
        WHEN v_plan.way OPERATOR(pg_catalog.=) 'exact'::pg_catalog.text THEN pg_catalog.format('exact: compare the query with every matching row, keep %s', k)
        WHEN v_plan.way OPERATOR(pg_catalog.=) 'source'::pg_catalog.text THEN pg_catalog.format('one stage: %s rows from index %I on the column itself', v_plan.candidate_count, v_plan.index_name)
        ELSE pg_catalog.format('two stages: %s candidates from index %I on %s, then exact distances on %I',
                               v_plan.candidate_count, v_plan.index_name, v_plan.way, column_name) END;
    RETURN NEXT;
    topic := 'why'; detail := v_plan.reason;
    RETURN NEXT;
    topic := 'metric'; detail := v_plan.metric;
    RETURN NEXT;
    detail := sqlvec._explained_filter(v_plan.condition, v_plan.bound);
    IF detail IS NOT NULL THEN
        topic := 'filter';
        RETURN NEXT;
    END IF;
    IF pg_catalog.row_security_active(v_rel) THEN
        topic := 'row security'; detail := pg_catalog.format('policies for role %I apply inside the search', current_user);
        RETURN NEXT;
    END IF;
    FOR v_derived IN SELECT d.* FROM sqlvec.derived_column AS d
                     WHERE d.relation::pg_catalog.oid OPERATOR(pg_catalog.=) coalesce(pg_catalog.pg_partition_root(v_rel)::pg_catalog.oid, v_rel)
                       AND d.source_column OPERATOR(pg_catalog.=) explain_search.column_name
    LOOP
        topic := pg_catalog.format('column %I', v_derived.target_column);
        detail := v_derived.problem;
        IF detail IS NULL THEN
            EXECUTE pg_catalog.format('SELECT pg_catalog.count(*) FROM %s AS t WHERE t.%I IS NULL AND t.%I IS NOT NULL',
                                      sqlvec._qualified(v_rel), v_derived.target_column, v_derived.source_column) INTO v_waiting;
            detail := CASE WHEN v_waiting OPERATOR(pg_catalog.=) 0::bigint THEN pg_catalog.format('%s, every row has its code', v_derived.kind)
                           ELSE pg_catalog.format('%s, %s rows wait for their code and are compared one by one; CALL sqlvec.backfill(%L, %L);',
                                                  v_derived.kind, v_waiting, v_derived.relation, v_derived.target_column) END;
            IF NOT sqlvec._has_unfinished_index(v_derived.relation, v_derived.target_column, ARRAY[v_derived.source_column]) THEN
                detail := pg_catalog.concat(detail, '; each search reads the table to know that: ',
                                            sqlvec._unfinished_index_sql(v_derived.relation, v_derived.target_column, true), ';');
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF v_plan.settings IS NOT NULL THEN
        topic := 'settings';
        detail := pg_catalog.format('hnsw.ef_search = %s, hnsw.iterative_scan = %s, ivfflat.iterative_scan = %s, jit = %s, hnsw.max_scan_tuples = %s, '
                                    'hnsw.scan_mem_multiplier = %s (empty: as they are); put back afterwards',
                                    VARIADIC v_plan.settings);
        RETURN NEXT;
    END IF;
    topic := 'statement'; detail := pg_catalog.concat(v_plan.statement, E'\n-- $1 = params, $2 = query, $3 = values of filter');
    RETURN NEXT;
    IF v_plan.fallback IS NOT NULL THEN
        topic := 'fallback'; detail := pg_catalog.concat(v_plan.fallback, E'\n-- run when the statement answers nothing: the scan ended early or rows lack their code');
        RETURN NEXT;
    END IF;
    v_before := sqlvec._set_scan(v_plan.settings);
    topic := 'explain';
    FOR v_line IN EXECUTE pg_catalog.concat('EXPLAIN ', v_plan.statement) USING params, query, v_plan.bound LOOP
        detail := v_line;
        RETURN NEXT;
    END LOOP;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.explain_search(anyelement, text, vector, int, jsonb, text, text[], int, float8, text, text) IS
    'What sqlvec.vector_search would do with the same arguments: plan, reason, metric, filter, state of the codes, settings, statement and its EXPLAIN. Reads; searches nothing.';

-- sqlvec.explain_hybrid_search: what hybrid_search does with the same arguments, and why.

CREATE OR REPLACE FUNCTION sqlvec.explain_hybrid_search(
    rel anyelement, query_text text = NULL, query_vector vector = NULL, query_tokens halfvec[] = NULL, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, fusion text = 'rrf', weights jsonb = NULL, relevance text = NULL,
    min_relevance float8 = NULL, autocut int = NULL, min_results int = 0, text_column text = NULL, vector_column text = NULL, tokens_column text = NULL,
    metric text = NULL, mode text = 'auto', tenant text = NULL, backend text = 'auto', rrf_k int = 60, group_column text = NULL, group_size int = 1,
    diversity float8 = NULL
) RETURNS TABLE (topic text, detail text)
LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_hybrid(pg_catalog.pg_typeof(rel), query_text, query_vector, query_tokens, k, filter, where_sql, params, candidates, oversample,
                                fusion, weights, relevance, min_relevance, autocut, min_results, text_column, vector_column, tokens_column, metric, mode,
                                tenant, backend, rrf_k, group_column, group_size, diversity, NULL, NULL);
    RETURN QUERY SELECT n.topic, n.detail FROM sqlvec._pairs(v_run.notes) AS n;
    topic := 'gather';
    detail := pg_catalog.concat(v_run.gather, E'\n-- $1 = params, $2 = weights of the words, $3 = values of filter, $4 = tsquery, $5, $6 = words and weights, '
                              '$7 to $14 = places, scores and ranks of what the legs gave, $15 = query_vector, $16 = query_tokens');
    RETURN NEXT;
    topic := 'answer'; detail := pg_catalog.concat(v_run.answer, E'\n-- $1 to $10 = places, scores and ranks of the hits, $11 = complete');
    RETURN NEXT;
END
$body$;

COMMENT ON FUNCTION sqlvec.explain_hybrid_search(anyelement, text, vector, halfvec[], int, jsonb, text, text[], int, float8, text, jsonb, text, float8, int, int, text, text, text, text, text, text, text, int, text, int, float8) IS
    'What sqlvec.hybrid_search does with the same arguments: rows and weight of each leg, the fusion, the model, how many rows the cuts leave and why, and the statements that follow the legs. Runs the search. How a leg finds its rows say sqlvec.explain_bm25_search, explain_search and explain_maxsim_search.';

-- sqlvec.check: is the installation whole?

-- Problems as rows, so that every client can show them.
CREATE OR REPLACE FUNCTION sqlvec._findings() RETURNS TABLE (severity text, problem text, remedy text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_vector text := (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'vector');
    v_derived record;
    v_stale bigint;
BEGIN
    IF v_vector IS NULL THEN
        RETURN QUERY SELECT 'error', 'extension "vector" is not installed', 'CREATE EXTENSION vector;';
    ELSIF string_to_array(substring(v_vector, '^[0-9]+[.][0-9]+'), '.')::int[] < ARRAY[0, 8] THEN
        RETURN QUERY SELECT 'error', format('pgvector is %s, sqlvec needs 0.8.0', v_vector), 'ALTER EXTENSION vector UPDATE;';
    ELSIF string_to_array(substring(v_vector, '^[0-9]+[.][0-9]+[.][0-9]+'), '.')::int[] < ARRAY[0, 8, 4] THEN
        -- No more than a note: what is promised to work must pass.
        RETURN QUERY SELECT 'note', format('pgvector is %s; 0.8.4 mends faults of HNSW indexes', v_vector), 'ALTER EXTENSION vector UPDATE;';
    END IF;
    IF NOT has_schema_privilege('public', 'sqlvec', 'USAGE') THEN
        RETURN QUERY SELECT 'error', 'schema sqlvec may not be used by everyone: writes to tables with derived columns fail',
                            'GRANT USAGE ON SCHEMA sqlvec TO PUBLIC;';
    END IF;
    RETURN QUERY
        SELECT 'warning', format('column "%s" of table %s: %s', d.target_column, d.relation, split_part(d.problem, '; ', 1)),
               split_part(d.problem, '; ', 2)
        FROM sqlvec.derived_column AS d WHERE d.problem IS NOT NULL;
    -- What was changed past every trigger, such as a partition while it was detached, shows only in
    -- the codes themselves: compare some.
    FOR v_derived IN
        SELECT d.*, d AS derived, greatest(c.reltuples, 1) AS rows FROM sqlvec._derived AS d JOIN pg_class AS c ON c.oid = d.relation
        WHERE d.maintained AND d.target_column IS NOT NULL AND has_table_privilege(d.relation, 'SELECT')
              AND NOT EXISTS (SELECT FROM sqlvec.derived_column AS c WHERE c.relation = d.relation AND c.target_column = d.target_column AND c.problem IS NOT NULL)
    LOOP
        EXECUTE format('SELECT count(*) FROM (SELECT t.* FROM %s AS t TABLESAMPLE SYSTEM (%s) LIMIT 1000) AS t WHERE t.%I IS NOT NULL AND %s',
                       sqlvec._qualified(v_derived.relation), least(100, 1000000 / v_derived.rows), v_derived.target_column,
                       sqlvec._waits(v_derived.derived, true))
        INTO v_stale;
        IF v_stale > 0 THEN
            RETURN QUERY SELECT 'warning', format('column "%s" of table %s: %s of at most 1000 codes looked at are stale',
                                                  v_derived.target_column, v_derived.relation::regclass, v_stale),
                                format('CALL sqlvec.backfill(%L, %L, verify => true);', v_derived.relation::regclass, v_derived.target_column);
        END IF;
    END LOOP;
    RETURN QUERY
        SELECT DISTINCT 'warning', format('BM25 column "%s" of table %s: %s', h.target_column, h.relation, split_part(h.advice, '; ', 1)), split_part(h.advice, '; ', 2)
        FROM sqlvec.bm25_health AS h WHERE h.advice IS NOT NULL;
    RETURN QUERY
        SELECT 'note', format('the catalog speaks of table %I.%I, which is gone', r.schema_name, r.table_name),
               format('DELETE FROM sqlvec.relation WHERE id = %s;', r.id)
        FROM sqlvec.relation AS r JOIN sqlvec._relation AS l USING (id) WHERE l.relation IS NULL;
    RETURN QUERY
        SELECT 'note', format('relevance model "%s" was fitted for column "%s" of table %I.%I, which is gone', m.name, m.column_name, m.schema_name, m.table_name),
               format('CALL sqlvec.drop_relevance_model(%L);', m.name)
        FROM sqlvec.relevance_model AS m
        WHERE m.leg <> 'fused' AND (sqlvec._relevance_column(m)).relation IS NULL;
    RETURN QUERY
        SELECT 'error', format('fused relevance model "%s" needs model "%s" of leg "%s", which is gone', m.name, leg.model, leg.name),
               format('CALL sqlvec.drop_relevance_model(%L);', m.name)
        FROM sqlvec.relevance_model AS m, unnest(m.models, '{vector,text,tokens}'::text[]) AS leg (model, name)
        WHERE leg.model IS NOT NULL AND NOT EXISTS (SELECT FROM sqlvec.relevance_model AS l WHERE l.name = leg.model AND l.leg = leg.name);
    RETURN QUERY
        SELECT 'warning', format('backfill of column "%s" of table %s stopped at block %s of %s', p.target_column, p.relation, p.blocks_done, p.blocks_total),
               format('CALL sqlvec.backfill(%L, %L);', p.relation, p.target_column)
        FROM sqlvec.backfill_progress AS p
        WHERE p.state = 'running' AND p.updated_at < now() - interval '5 minutes';
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.check() LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_finding record;
    v_errors text[] := '{}';
    v_in_order boolean := true;
BEGIN
    FOR v_finding IN SELECT * FROM sqlvec._findings() LOOP
        IF v_finding.severity = 'error' THEN
            v_errors := v_errors || (v_finding.problem || ' (' || v_finding.remedy || ')');
        ELSE
            v_in_order := v_in_order AND v_finding.severity = 'note';
            RAISE WARNING '%', v_finding.problem USING HINT = v_finding.remedy;
        END IF;
    END LOOP;
    IF v_errors <> '{}' THEN
        RAISE EXCEPTION 'sqlvec % cannot work here: %', sqlvec.version(), array_to_string(v_errors, '; ')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF v_in_order THEN
        RAISE NOTICE 'sqlvec % is in order', sqlvec.version();
    END IF;
END
$body$;

COMMENT ON PROCEDURE sqlvec.check() IS
    'Self-test of the installation: an error for what cannot work, a warning with its remedy for what is out of order, a notice when all is well.';

-- Everyone may call the functions and read the catalog; writes are checked row by row by
-- sqlvec._guard, those of the statistics by policies. Catalog rows never change in place except for
-- names that are followed.

GRANT USAGE ON SCHEMA sqlvec TO PUBLIC;
GRANT SELECT ON ALL TABLES IN SCHEMA sqlvec TO PUBLIC;
GRANT INSERT, DELETE ON sqlvec.encoder, sqlvec.encoder_vector, sqlvec.relevance_model, sqlvec.relevance_vector TO PUBLIC;
GRANT INSERT, UPDATE, DELETE ON sqlvec.relation, sqlvec.derived, sqlvec.backfill_state TO PUBLIC;
GRANT INSERT, UPDATE, DELETE ON sqlvec.bm25_corpus, sqlvec.bm25_frequency TO PUBLIC;
