-- sqlvec.bm25_search, sqlvec.bm25_search_keys: the k documents with the highest BM25 score.

-- Run a plan. STABLE, so that every step sees the snapshot of the statement that searches. No SET:
-- the caller's where_sql and policies run inside.
CREATE OR REPLACE FUNCTION sqlvec._run_bm25(
    q sqlvec._bm25_query, INOUT state sqlvec._bm25_state, params text[], bound text[], vector sparsevec, k int,
    once boolean, step text, waiting text, native text, query text, seqscan text, OUT complete boolean
) LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_found record;
    v_jit text := pg_catalog.current_setting('jit');
    v_seqscan text := pg_catalog.current_setting('enable_seqscan');
BEGIN
    complete := true;
    PERFORM pg_catalog.set_config('jit', 'off', true), pg_catalog.set_config('enable_seqscan', seqscan, true);
    IF native IS NOT NULL THEN
        EXECUTE native INTO v_found USING params, vector, bound, (q).condition, (q).lexemes, (q).weights, query;
        state := sqlvec._bm25_merge(state, v_found.scores, v_found.row_ids, v_found.row_tables, k);
        state.finished := true;
        -- Candidates of another index are a budget: say so when it ran out.
        complete := v_found.whole OR pg_catalog.cardinality((state).scores) >= k;
    END IF;
    LOOP
        state := sqlvec._bm25_step(q, state, k, once);
        EXIT WHEN (state).step IS NULL;
        EXECUTE step INTO v_found USING params, vector, bound, (state).step, (q).lexemes, (q).weights;
        state := sqlvec._bm25_merge(state, v_found.scores, v_found.row_ids, v_found.row_tables, k);
    END LOOP;
    IF waiting IS NOT NULL THEN
        EXECUTE waiting INTO v_found USING params, vector, bound, (q).condition, (q).lexemes, (q).weights;
        state := sqlvec._bm25_merge(state, v_found.scores, v_found.row_ids, v_found.row_tables, k);
    END IF;
    PERFORM pg_catalog.set_config('jit', v_jit, true), pg_catalog.set_config('enable_seqscan', v_seqscan, true);
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
    v_plan record;
    v_run record;
BEGIN
    v_plan := sqlvec._plan_bm25(sqlvec._relation_of(pg_catalog.pg_typeof(rel)), column_name, query, k, filter, where_sql,
                                candidates, oversample, tenant, backend, NULL, NULL);
    IF v_plan.step IS NULL THEN
        RETURN;
    END IF;
    v_run := sqlvec._run_bm25(v_plan.q, v_plan.state, params, v_plan.bound, v_plan.vector, k, v_plan.once, v_plan.step, v_plan.waiting,
                                v_plan.native, query, v_plan.seqscan);
    RETURN QUERY EXECUTE v_plan.answer USING (v_run.state).row_ids, (v_run.state).row_tables, (v_run.state).scores, v_run.complete;
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
    v_plan record;
    v_run record;
BEGIN
    v_plan := sqlvec._plan_bm25(sqlvec._relation_of(pg_catalog.pg_typeof(rel)), column_name, query, k, filter, where_sql,
                                candidates, oversample, tenant, backend, key_column, pg_catalog.pg_typeof(key));
    IF v_plan.step IS NULL THEN
        RETURN;
    END IF;
    v_run := sqlvec._run_bm25(v_plan.q, v_plan.state, params, v_plan.bound, v_plan.vector, k, v_plan.once, v_plan.step, v_plan.waiting,
                                v_plan.native, query, v_plan.seqscan);
    RETURN QUERY EXECUTE v_plan.answer USING (v_run.state).row_ids, (v_run.state).row_tables, (v_run.state).scores, v_run.complete;
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_search(anyelement, text, text, int, jsonb, text, text[], int, float8, text, text) IS
    'The k rows of table rel with the highest BM25 score for query, best first, equal scores by primary key. column_name is the text column or the BM25 column, NULL the only one. In the query, words are alternatives; "a phrase" and +word are required, -word excluded, word* completed. k 1 to 10000; filter is JSON over the columns, where_sql is trusted SQL over the bare table name with values ($1)[i] from params; tenant picks one of separate statistics; backend is auto, sqlvec or a native index, of which candidates or oversample (x k) rows are rescored.';
COMMENT ON FUNCTION sqlvec.bm25_search_keys(anyelement, text, text, anycompatible, int, jsonb, text, text[], int, float8, text, text, text) IS
    'The rows of sqlvec.bm25_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands right after the query (key => NULL::uuid): needs SELECT on the key column and the columns that add_bm25 made only.';
