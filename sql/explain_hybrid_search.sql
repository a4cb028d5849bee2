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
