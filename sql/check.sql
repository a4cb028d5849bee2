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
