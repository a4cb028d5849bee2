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
