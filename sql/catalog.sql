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
