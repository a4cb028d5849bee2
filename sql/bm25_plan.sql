-- How a BM25 search of a table is written: the statements that are the same for each of its steps.

CREATE OR REPLACE FUNCTION sqlvec._plan_bm25(
    rel oid, column_name text, query text, k int, filter jsonb, where_sql text, candidates int, oversample float8,
    tenant text, backend text, key_column text, key_type regtype, caller_path text,
    OUT q sqlvec._bm25_query, OUT state sqlvec._bm25_state, OUT bound text[], OUT condition text,
    OUT vector sparsevec,    -- $2
    OUT once boolean,        -- one step, because no index helps
    OUT compared text,       -- SQL of the score of a row, 0 where it does not match
    OUT maximum float8,      -- score that no document can exceed
    OUT step text,           -- the statement of a step: answers arrays of scores and row addresses
    OUT waiting text,        -- the same for rows that have no terms yet; NULL when there are none
    OUT native text,         -- the same for candidates of another extension's index, for words in $7; NULL without one
    OUT candidate_count int, -- of those
    OUT answer text,         -- the rows or keys of addresses $1, $2 with scores $3
    OUT seqscan text,        -- what enable_seqscan is set to
    OUT reason text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_relname name := (SELECT c.relname FROM pg_class AS c WHERE c.oid = rel);
    v_alias text := quote_ident(v_relname);
    v_from text := format('%s AS %s', sqlvec._qualified(rel), v_alias);
    v_terms text;
    v_hit record;
    v_score text;
    v_arrays text;
    v_before text;
    v_between text;
    v_after text;
    v_waiting text;
    v_unfinished boolean;
    v_reads_codes boolean;
    v_reads_text boolean;
    v_stale boolean;
    v_text text;
    v_text_score text;
    v_word_order int[];
    v_native record;
BEGIN
    PERFORM sqlvec._check_search(coalesce(column_name, ''), 1, k, candidates, oversample, 'auto');
    PERFORM sqlvec._check_backend(backend);
    q := sqlvec._prepare_bm25(rel, column_name, query, filter, tenant);
    v_derived := q.derived;
    IF q.tenant IS NOT NULL THEN
        filter := jsonb_build_object('$and', jsonb_build_array(jsonb_build_object(v_derived.tenant_column, q.tenant), coalesce(filter, '{}')));
    END IF;
    SELECT c.bound, c.condition INTO bound, condition FROM sqlvec._condition(rel, v_relname, filter, where_sql) AS c;

    v_terms := coalesce(v_derived.target_columns[2], v_derived.source_columns[1]);
    v_reads_codes := has_column_privilege(rel, v_terms, 'SELECT') AND has_column_privilege(rel, v_derived.target_column::text, 'SELECT');
    v_reads_text := (SELECT bool_and(has_column_privilege(rel, c::text, 'SELECT')) FROM unnest(v_derived.source_columns) AS c);
    IF NOT v_reads_codes AND NOT v_reads_text THEN
        RAISE EXCEPTION 'role "%" may read neither the text nor the BM25 columns of table %', current_user, sqlvec._qualified(rel)
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('GRANT SELECT (%I, %I) ON %s TO %I;', v_derived.target_column, v_terms, sqlvec._qualified(rel), current_user);
    END IF;
    IF q.condition IS NULL THEN
        RETURN;
    END IF;
    -- Terms that no trigger kept, or that were there before it, may be those of another text.
    v_stale := NOT v_derived.maintained AND NOT v_derived.reweighed AND cardinality(v_derived.target_columns) = 2;
    IF v_stale AND v_reads_text THEN
        v_reads_codes := false;
    END IF;

    -- Terms that were not weighed as the catalog says now bring tiers that mean nothing.
    v_word_order := ARRAY(SELECT w.n FROM unnest(q.weights) WITH ORDINALITY AS w (weight, n) ORDER BY w.weight DESC, w.n);
    state.words := ARRAY(SELECT q.lexemes[n] FROM unnest(v_word_order) AS n);
    state.weights := ARRAY(SELECT q.weights[n] FROM unnest(v_word_order) AS n);
    state.documents_with := ARRAY(SELECT q.documents_with[n] FROM unnest(v_word_order) AS n);
    state.tiers := ARRAY(SELECT q.tiers[4 * n - 4 + l] FROM unnest(v_word_order) WITH ORDINALITY AS o (n, place), generate_series(1, 4) AS l ORDER BY o.place, l);
    state.tiered := cardinality(v_derived.target_columns) = 2 AND v_derived.maintained
                    AND NOT EXISTS (SELECT FROM unnest(q.lexemes) AS l WHERE octet_length(l) > 2000);
    state.caps := array_fill(5, ARRAY[cardinality(state.words)]);
    state.budget := 1000 + 20 * k;
    state.finished := false;
    state.scores := '{}'; state.row_ids := '{}'; state.row_tables := '{}';

    once := true;
    seqscan := current_setting('enable_seqscan');
    IF v_stale AND v_reads_text THEN
        reason := format('one pass over the text: column %I may be stale', v_terms);
    ELSIF NOT v_reads_codes THEN
        reason := format('one pass over the text: role "%s" may not read columns %I and %I', current_user, v_derived.target_column, v_terms);
    ELSIF row_security_active(rel) AND NOT (SELECT p.proleakproof FROM pg_proc AS p WHERE p.oid = 'ts_match_vq(tsvector, tsquery)'::regprocedure) THEN
        reason := 'one pass: under row security Postgres reads the rows that the policy allows before it looks at words';
    ELSIF NOT sqlvec._has_gin(rel, v_terms) THEN
        reason := format('one pass: no GIN index on column %I', v_terms);
    ELSE
        once := false;
        IF where_sql IS NULL THEN
            -- A step reads few rows, whatever the planner expects of its tsquery.
            seqscan := 'off';
        END IF;
        reason := CASE WHEN state.tiered THEN 'the index knows tiers of weight'
                       WHEN cardinality(v_derived.target_columns) = 1 THEN format('bounds of whole words: tsvector %I is the application''s', v_terms)
                       ELSE 'bounds of whole words: weights are being encoded anew' END;
    END IF;

    v_unfinished := false;
    IF v_reads_codes AND v_reads_text THEN
        v_waiting := format('SELECT EXISTS (SELECT FROM %s WHERE %s)', v_from,
                            sqlvec._unfinished(v_derived.target_column, v_derived.source_columns, v_alias || '.'));
        -- Policies run inside, which may need the caller's search_path.
        PERFORM set_config('search_path', caller_path, true);
        EXECUTE v_waiting INTO v_unfinished;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    END IF;
    v_text := sqlvec._bm25_tsvector_expression(
        v_derived.options, ARRAY(SELECT format('%s.%I', v_alias, c) FROM unnest(v_derived.source_columns) AS c));
    vector := sqlvec._bm25_vector(q.lexemes, q.weights);
    maximum := sqlvec._bm25_maximum(q);
    IF NOT v_derived.maintained OR q.collides THEN
        v_score := sqlvec._bm25_score_expression(v_derived.options, format('%s.%I', v_alias, v_terms));
        v_text_score := sqlvec._bm25_score_expression(v_derived.options, v_text);
    ELSE
        -- Of the code, made here for a row that has none: equal rows score the same to the last digit.
        v_score := format('%s.%I', v_alias, v_derived.target_column);
        IF v_unfinished THEN
            v_score := format('coalesce(%s, (sqlvec._bm25_document(%s.%I, %s)).code)', v_score, v_alias, v_terms, sqlvec._bm25_constants(v_derived.options));
        END IF;
        v_text_score := format('(sqlvec._bm25_document(%s, %s)).code', v_text, sqlvec._bm25_constants(v_derived.options));
        v_score := format('0::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s OPERATOR(%I.<#>) $2)', v_score, sqlvec._vector_schema());
        v_text_score := format('0::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s OPERATOR(%I.<#>) $2)', v_text_score, sqlvec._vector_schema());
    END IF;

    compared := CASE WHEN v_reads_codes THEN v_score ELSE v_text_score END;
    IF q.required IS NOT NULL OR q.excluded IS NOT NULL THEN
        compared := format('CASE WHEN %s OPERATOR(pg_catalog.@@) $4 THEN %s END', CASE WHEN v_reads_codes THEN format('%s.%I', v_alias, v_terms) ELSE v_text END, compared);
    END IF;
    IF v_reads_codes AND v_unfinished THEN
        -- A row may wait for its terms as well.
        compared := format('CASE WHEN %s.%I IS NOT NULL THEN %s %sELSE %s END', v_alias, v_terms, compared,
                           CASE WHEN q.required IS NULL AND q.excluded IS NULL THEN '' ELSE format('WHEN NOT %s OPERATOR(pg_catalog.@@) $4 THEN 0::pg_catalog.float8 ', v_text) END,
                           v_text_score);
    END IF;
    compared := format('coalesce(%s, 0::pg_catalog.float8)', compared);

    IF key_type IS NULL THEN
        PERFORM sqlvec._check_places(rel, NULL, NULL, 'bm25_search_keys');
    END IF;
    v_hit := sqlvec._hit_statement(rel, v_alias, key_column, key_type, k);
    answer := v_hit.answer;
    v_arrays := 'SELECT pg_catalog.array_agg(h.score) AS scores, pg_catalog.array_agg(h.row_id) AS row_ids, '
                'pg_catalog.array_agg(h.row_table) AS row_tables';
    v_before := v_arrays || ' FROM (SELECT ';
    v_between := format(' AS score, %s FROM %s WHERE %s AND ', v_hit.place, v_from, condition);
    v_after := format(' ORDER BY 1 DESC, %s LIMIT %s) AS h', v_hit.tie_break, k);
    IF v_reads_codes THEN
        -- The row is asked again: while the pending list of a GIN index is moved, the index knows a new row by one
        -- word and not yet by another that the query excludes, and trusts itself.
        step := v_before || v_score || v_between
                || format(CASE WHEN once THEN '%1$s.%2$I OPERATOR(pg_catalog.@@) $4'
                               ELSE '%1$s.%2$I OPERATOR(pg_catalog.@@) $4 AND (%1$s.%2$I OPERATOR(pg_catalog.@@) $4) IS TRUE' END, v_alias, v_terms)
                || v_after;
    END IF;
    IF NOT v_reads_codes OR v_unfinished AND cardinality(v_derived.target_columns) = 2 THEN
        waiting := v_before || v_text_score || v_between
                   || CASE WHEN v_reads_codes THEN format('%s.%I IS NULL AND ', v_alias, v_derived.target_columns[2]) ELSE '' END
                   || v_text || ' OPERATOR(pg_catalog.@@) $4' || v_after;
    END IF;
    IF NOT v_reads_codes THEN
        step := waiting;
        waiting := NULL;
    END IF;
    v_native := sqlvec._bm25_native(rel, v_derived, backend, q.required IS NULL AND q.excluded IS NULL AND q.prefixes IS NULL, v_alias);
    IF v_native.name IS NOT NULL THEN
        reason := format('candidates from an index of %s', v_native.name);
        candidate_count := coalesce(candidates, ceil(k * oversample)::int, greatest(4 * k, 100));
        native := 'WITH "sqlvec found" AS MATERIALIZED (SELECT ' || v_score
                  || format(' AS score, %8$s, %1$s.%2$I AS terms FROM %3$s WHERE %4$s AND %5$s ORDER BY %6$s LIMIT %7$s) ',
                            v_alias, v_terms, v_from, condition, v_native.condition, v_native.ordering, candidate_count, v_hit.place)
                  || v_arrays || format(
                         ', (SELECT pg_catalog.count(*) FROM "sqlvec found") OPERATOR(pg_catalog.<) %s AS whole FROM (SELECT c.score, c.row_id, c.row_table '
                         'FROM "sqlvec found" AS c WHERE c.terms OPERATOR(pg_catalog.@@) $4 ORDER BY 1 DESC, 3, 2 LIMIT %s) AS h', candidate_count, k);
    END IF;
END
$body$;
