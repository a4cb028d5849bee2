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
