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
