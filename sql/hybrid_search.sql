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
