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
