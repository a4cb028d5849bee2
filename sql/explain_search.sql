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
