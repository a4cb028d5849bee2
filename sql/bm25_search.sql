-- sqlvec.bm25_search: the k documents with the highest BM25 score, found without reading the others.
--
-- MaxScore (Turtle and Flood 1995) over an index that knows tiers of weight. Each word adds at most its
-- idf times k1 + 1 to a score, and to the documents where it reaches no tier above the l-th, at most
-- the limit of that tier. A search reads the documents that hold the cheapest of these (word, tier)
-- first; the k-th score found then tells which combinations of the rest could still beat it, and only
-- documents that hold one of those are read. Scores and ranks are exact, the bounds only save work.

-- How far each word has been read: 5 not at all, l > 0 in all documents where it reaches tier l, 0 in
-- all. Takes the items with the most bound per document first, until about `budget` documents.
CREATE OR REPLACE FUNCTION sqlvec._bm25_caps(weights float8[], documents_with int[], tiers int[], tiered boolean, budget float8) RETURNS int[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT array_agg(c.cap ORDER BY c.word)
    FROM (
        SELECT o.word, coalesce(min(o.level) FILTER (WHERE o.reads <= budget OR o.place = 1), 5) AS cap
        FROM (
            SELECT r.word, r.level, row_number() OVER cheapest AS place,
                   sum(r.cost) OVER (cheapest ROWS UNBOUNDED PRECEDING) AS reads
            FROM (
                -- A level comes after the higher ones of its word.
                SELECT i.word, i.level, i.cost, max(i.cost / i.gain) OVER (PARTITION BY i.word ORDER BY i.level DESC) AS price
                FROM (
                    SELECT w.word, l.level,
                           greatest(CASE WHEN l.level = 0 THEN documents_with[w.word] ELSE tiers[4 * w.word - 4 + l.level] END
                                    - CASE WHEN l.level = 4 OR NOT tiered THEN 0 ELSE tiers[4 * w.word - 3 + l.level] END, 0)::float8 AS cost,
                           greatest(w.weight * CASE WHEN tiered THEN l.gain ELSE 1 END, 1e-9) AS gain
                    FROM unnest(weights) WITH ORDINALITY AS w (weight, word)
                    JOIN (VALUES (0, 0.64), (1, 0.13), (2, 0.09), (3, 0.07), (4, 0.07)) AS l (level, gain) ON tiered OR l.level = 0
                ) AS i
            ) AS r
            WINDOW cheapest AS (ORDER BY r.price, r.word, r.level DESC)
        ) AS o
        GROUP BY o.word
    ) AS c;
END;

-- The documents in which a word reaches tier `level`.
CREATE OR REPLACE FUNCTION sqlvec._bm25_item(lexeme text, level int) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN level = 0 THEN sqlvec._quote_lexeme(lexeme) ELSE sqlvec._quote_lexeme(chr(level) || lexeme) END;

-- The documents that have been read; character 5 marks those that are read whatever they weigh.
CREATE OR REPLACE FUNCTION sqlvec._bm25_read(lexemes text[], caps int[], tiered boolean) RETURNS tsquery
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT (string_agg(sqlvec._bm25_item(w.lexeme, w.cap), ' | ')
            || CASE WHEN tiered THEN ' | ' || sqlvec._quote_lexeme(chr(5)) ELSE '' END)::tsquery
    FROM unnest(lexemes, caps) AS w (lexeme, cap)
    WHERE w.cap < 5;
END;

-- The most that a word can add to the score of a document that has not been read.
CREATE OR REPLACE FUNCTION sqlvec._bm25_bound(weight float8, cap int, k1 float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN weight * (k1 + 1) * CASE cap WHEN 0 THEN 0 WHEN 1 THEN 0.64 WHEN 2 THEN 0.77 WHEN 3 THEN 0.86 WHEN 4 THEN 0.93 ELSE 1 END;

-- Where a search stands.
DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._bm25_state') IS NULL THEN
        CREATE TYPE sqlvec._bm25_state AS (
            words    text[],   -- of the query, the heaviest first
            weights  float8[],
            documents_with int[],
            tiers    int[],
            tiered   boolean,  -- the index knows tiers, and they can be trusted
            caps     int[],    -- how far each word has been read, see _bm25_caps
            budget   float8,   -- documents to read in the next step
            step     tsquery,  -- what to read now; NULL when all is done
            finished boolean,  -- nothing comes after this step
            scores   float8[], -- of the best found so far, with where they are
            row_ids  text[],   -- address, or key where keys are asked for
            row_tables oid[]
        );
    END IF;
END
$do$;

-- Documents, not read yet, whose bounds add up to more than `need`, as a tsquery: '' for all of them,
-- NULL for none; and what share of the corpus they are if words stand independently. Counts down
-- `steps` and gives up below zero. Words from `word` on.
CREATE OR REPLACE FUNCTION sqlvec._bm25_beyond(
    state sqlvec._bm25_state, documents float8, k1 float8, need float8, word int, INOUT steps int, OUT beyond text, OUT share float8
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_rest float8 := 0;
    v_inner record;
    v_before text;
    v_parts text[] := '{}';
BEGIN
    steps := steps - 1;
    share := 0;
    IF need < 0 THEN
        beyond := '';
        share := 1;
        RETURN;
    END IF;
    FOR n IN word .. cardinality(state.words) LOOP
        v_rest := v_rest + sqlvec._bm25_bound(state.weights[n], state.caps[n], k1);
    END LOOP;
    IF v_rest <= need OR steps < 0 THEN
        RETURN;
    END IF;
    -- Without this word, then with it in each tier. A tier that asks no less of the other words than
    -- the one below adds nothing.
    v_inner := sqlvec._bm25_beyond(state, documents, k1, need, word + 1, steps);
    steps := v_inner.steps;
    v_before := v_inner.beyond;
    share := v_inner.share;
    IF v_before = '' THEN
        beyond := '';
        RETURN;
    ELSIF v_before IS NOT NULL THEN
        v_parts := ARRAY[v_before];
    END IF;
    FOR v_level IN 0 .. CASE WHEN state.tiered THEN state.caps[word] - 1 ELSE 0 END LOOP
        EXIT WHEN state.caps[word] = 0;
        v_inner := sqlvec._bm25_beyond(
            state, documents, k1,
            need - sqlvec._bm25_bound(state.weights[word], CASE WHEN state.tiered THEN v_level + 1 ELSE 5 END, k1), word + 1, steps);
        steps := v_inner.steps;
        CONTINUE WHEN v_inner.beyond IS NOT DISTINCT FROM v_before;
        v_before := v_inner.beyond;
        share := share + v_inner.share / greatest(documents, 1)
                 * CASE WHEN v_level = 0 THEN state.documents_with[word] ELSE state.tiers[4 * word - 4 + v_level] END;
        v_parts := v_parts || CASE WHEN v_before = '' THEN sqlvec._bm25_item(state.words[word], v_level)
                                   ELSE format('(%s & %s)', sqlvec._bm25_item(state.words[word], v_level), v_before) END;
        EXIT WHEN v_before = '';
    END LOOP;
    beyond := CASE cardinality(v_parts) WHEN 0 THEN NULL WHEN 1 THEN v_parts[1] ELSE '(' || array_to_string(v_parts, ' | ') || ')' END;
END
$body$;

-- The next step of a search. `once`: read everything that matches in one step.
CREATE OR REPLACE FUNCTION sqlvec._bm25_step(q sqlvec._bm25_query, state sqlvec._bm25_state, k int, once boolean) RETURNS sqlvec._bm25_state
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    s sqlvec._bm25_state := state;
    v_k1 float8 := ((q).derived).options ->> 'k1';
    v_read tsquery := sqlvec._bm25_read(s.words, s.caps, s.tiered);
    v_threshold float8;
    v_beyond record;
BEGIN
    s.step := NULL;
    IF s.finished THEN
        RETURN s;
    ELSIF once OR s.words = '{}' THEN
        s.step := q.condition;
        s.finished := true;
        RETURN s;
    END IF;
    IF array_remove(s.caps, 0) = '{}' THEN
        -- Every word has been read: what is left matches by a prefix alone.
        s.finished := true;
        IF q.prefixes IS NOT NULL AND cardinality(s.scores) < k THEN
            s.step := q.condition && !!v_read;
        END IF;
        RETURN s;
    END IF;
    IF cardinality(s.scores) >= k THEN
        -- Scores add up in single precision: leave room for its rounding.
        v_threshold := s.scores[k] * (1 - 1e-5);
        v_beyond := sqlvec._bm25_beyond(s, q.documents, v_k1, v_threshold, 1, 200);
        IF v_beyond.steps >= 0 AND v_beyond.beyond IS NULL THEN
            s.finished := true;
            RETURN s;
        ELSIF v_beyond.steps >= 0 AND v_beyond.beyond <> '' AND v_beyond.share * q.documents <= 2 * s.budget THEN
            s.step := v_beyond.beyond::tsquery;
            s.finished := true;
        END IF;
    END IF;
    IF s.step IS NULL THEN
        -- Read on, four times as much as before.
        LOOP
            s.caps := sqlvec._bm25_caps(s.weights, s.documents_with, s.tiers, s.tiered, s.budget);
            s.budget := s.budget * 4;
            EXIT WHEN s.caps <> state.caps;
        END LOOP;
        IF v_read IS NULL AND q.prefixes IS NULL AND array_remove(s.caps, 0) = '{}' THEN
            -- The words are rare enough to read all that matches at once.
            s.step := q.condition;
            s.finished := true;
            RETURN s;
        END IF;
        s.step := sqlvec._bm25_read(s.words, s.caps, s.tiered);
    END IF;
    IF v_read IS NOT NULL THEN
        s.step := s.step && !!v_read;
    END IF;
    -- What is read holds a word of the query, unless it was marked; what else must be true of it?
    IF q.required IS NOT NULL THEN
        s.step := s.step && q.required;
    ELSIF s.tiered AND v_read IS NULL THEN
        s.step := s.step && sqlvec._bm25_condition(q.lexemes, NULL, NULL, q.prefixes);
    END IF;
    IF q.excluded IS NOT NULL THEN
        s.step := s.step && !!q.excluded;
    END IF;
    RETURN s;
END
$body$;

-- How to search a table: everything that is the same for each step.
CREATE OR REPLACE FUNCTION sqlvec._plan_bm25(
    rel oid, column_name text, query text, k int, filter jsonb, where_sql text, candidates int, oversample float8,
    tenant text, backend text, key_column text, key_type regtype,
    OUT q sqlvec._bm25_query, OUT state sqlvec._bm25_state, OUT bound text[], OUT condition text,
    OUT vector sparsevec,    -- $2
    OUT once boolean,        -- one step, because no index helps
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
    v_keys name[];
    v_order text;
    v_score text;
    v_arrays text;
    v_before text;
    v_between text;
    v_after text;
    v_unfinished boolean;
    v_reads_codes boolean;
    v_reads_text boolean;
    v_stale boolean;
    v_text text;
    v_text_score text;
    v_place text;
    v_word_order int[];
    v_native record;
BEGIN
    PERFORM sqlvec._check_search(coalesce(column_name, ''), 1, k, candidates, oversample, 'auto');
    q := sqlvec._prepare_bm25(rel, column_name, query, filter, tenant);
    v_derived := q.derived;
    IF q.tenant IS NOT NULL THEN
        filter := jsonb_build_object('$and', jsonb_build_array(jsonb_build_object(v_derived.tenant_column, q.tenant), coalesce(filter, '{}')));
    END IF;
    bound := '{}';
    condition := 'true';
    IF filter IS NOT NULL THEN
        SELECT f.bound, f.condition INTO bound, condition FROM sqlvec._filter(rel, v_relname, filter, '$3', bound) AS f;
    END IF;
    IF where_sql IS NOT NULL THEN
        condition := format(E'%s AND (%s\n)', condition, where_sql);
    END IF;

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
    ELSIF row_security_active(rel) THEN
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
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE %s)', v_from,
                       sqlvec._unfinished(v_derived.target_column, v_derived.source_columns, v_alias || '.'))
        INTO v_unfinished;
    END IF;
    v_text := sqlvec._bm25_tsvector_expression(
        v_derived.options, ARRAY(SELECT format('%s.%I', v_alias, c) FROM unnest(v_derived.source_columns) AS c));
    vector := sqlvec._bm25_vector(q.lexemes, q.weights);
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

    -- Equal scores: by primary key, where there is one.
    v_keys := CASE WHEN key_type IS NOT NULL THEN ARRAY[sqlvec._key_column(rel, key_column)]::name[]
                   ELSE ARRAY(SELECT a.attname FROM pg_index AS i, unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS n (attnum, position)
                              JOIN pg_attribute AS a ON a.attnum = n.attnum
                              WHERE i.indrelid = rel AND i.indisprimary AND a.attrelid = rel ORDER BY n.position) END;
    v_order := coalesce((SELECT string_agg(format('%s.%I', v_alias, c.name), ', ' ORDER BY c.position)
                         FROM unnest(v_keys) WITH ORDINALITY AS c (name, position)
                         WHERE has_column_privilege(rel, c.name::text, 'SELECT')), format('%1$s.tableoid, %1$s.ctid', v_alias));
    v_arrays := 'SELECT pg_catalog.array_agg(h.score) AS scores, pg_catalog.array_agg(h.row_id) AS row_ids, '
                'pg_catalog.array_agg(h.row_table) AS row_tables';
    v_before := v_arrays || ' FROM (SELECT ';
    v_place := CASE WHEN key_type IS NULL THEN format('%1$s.ctid::pg_catalog.text AS row_id, %1$s.tableoid AS row_table', v_alias)
                    ELSE format('%s.%I::pg_catalog.text AS row_id, 0::pg_catalog.oid AS row_table', v_alias, v_keys[1]) END;
    v_between := format(' AS score, %s FROM %s WHERE %s AND ', v_place, v_from, condition);
    v_after := format(' ORDER BY 1 DESC, %s LIMIT %s) AS h', v_order, k);
    IF v_reads_codes THEN
        step := v_before || v_score || v_between || format('%s.%I OPERATOR(pg_catalog.@@) $4', v_alias, v_terms) || v_after;
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
                            v_alias, v_terms, v_from, condition, v_native.condition, v_native.ordering, candidate_count, v_place)
                  || v_arrays || format(
                         ', (SELECT pg_catalog.count(*) FROM "sqlvec found") OPERATOR(pg_catalog.<) %s AS whole FROM (SELECT c.score, c.row_id, c.row_table '
                         'FROM "sqlvec found" AS c WHERE c.terms OPERATOR(pg_catalog.@@) $4 ORDER BY 1 DESC, 3, 2 LIMIT %s) AS h', candidate_count, k);
    END IF;
    IF key_type IS NULL THEN
        answer := format('SELECT (%1$s.*)::%2$s, h.score, $4::pg_catalog.bool FROM unnest($1, $2, $3) AS h (row_id, row_table, score) '
                         'JOIN %3$s ON %1$s.ctid OPERATOR(pg_catalog.=) h.row_id::pg_catalog.tid AND %1$s.tableoid OPERATOR(pg_catalog.=) h.row_table '
                         'ORDER BY h.score DESC, %4$s LIMIT %5$s', v_alias, sqlvec._qualified(rel), v_from, v_order, k);
    ELSE
        answer := format('SELECT h.row_id::%1$s::%2$s, h.score, $4::pg_catalog.bool FROM unnest($1, $2, $3) AS h (row_id, row_table, score) '
                         'ORDER BY h.score DESC, h.row_id::%1$s LIMIT %3$s',
                         (SELECT format_type(c.type_oid, -1) FROM sqlvec._column(rel, v_keys[1]) AS c), format_type(key_type, -1), k);
    END IF;
END
$body$;

-- The best k of two lists, and the ties of the last.
CREATE OR REPLACE FUNCTION sqlvec._bm25_merge(
    state sqlvec._bm25_state, scores float8[], row_ids text[], row_tables oid[], k int
) RETURNS sqlvec._bm25_state
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    s sqlvec._bm25_state := state;
BEGIN
    IF scores IS NULL THEN
        RETURN s;
    ELSIF s.scores = '{}' THEN
        s.scores := scores; s.row_ids := row_ids; s.row_tables := row_tables;
        RETURN s;
    END IF;
    SELECT array_agg(h.score ORDER BY h.score DESC), array_agg(h.row_id ORDER BY h.score DESC), array_agg(h.row_table ORDER BY h.score DESC)
    INTO s.scores, s.row_ids, s.row_tables
    FROM (SELECT a.score, a.row_id, a.row_table, rank() OVER (ORDER BY a.score DESC) AS place
          FROM unnest(s.scores || scores, s.row_ids || row_ids, s.row_tables || row_tables) AS a (score, row_id, row_table)) AS h
    WHERE h.place <= k;
    RETURN s;
END
$body$;

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

CREATE OR REPLACE FUNCTION sqlvec.bm25_tsquery(rel anyelement, column_name text, query text) RETURNS tsquery
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived := sqlvec._bm25_column(sqlvec._relation_of(pg_typeof(rel)), column_name);
    v_parsed record;
BEGIN
    v_parsed := sqlvec._parse_bm25(sqlvec._bm25_config(v_derived.options)::regconfig, query);
    RETURN sqlvec._bm25_condition(v_parsed.lexemes, v_parsed.required, v_parsed.excluded, v_parsed.prefixes);
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_tsquery(anyelement, text, text) IS
    'What a document must match to be found by sqlvec.bm25_search with this query, as a tsquery; NULL for a query that asks for nothing.';

CREATE OR REPLACE FUNCTION sqlvec.bm25_query(rel anyelement, column_name text, query text, tenant text = NULL) RETURNS sparsevec
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    q sqlvec._bm25_query := sqlvec._prepare_bm25(sqlvec._relation_of(pg_typeof(rel)), column_name, query, NULL, tenant);
BEGIN
    RETURN sqlvec._bm25_vector(coalesce((q).lexemes, '{}'), coalesce((q).weights, '{}'));
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_query(anyelement, text, text, text) IS
    'The weights of the words of a query, inverse document frequency times occurrences, as a vector: the BM25 score of a row is 0 - (body_bm25 <#> this).';

CREATE OR REPLACE FUNCTION sqlvec.bm25_score(hit anyelement, column_name text, query text, tenant text = NULL) RETURNS float8
LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_rel oid := sqlvec._relation_of(pg_catalog.pg_typeof(hit));
    q sqlvec._bm25_query;
    v_tenant name := (sqlvec._bm25_column(v_rel, column_name)).tenant_column;
    v_terms text;
    v_score float8;
BEGIN
    IF tenant IS NULL AND v_tenant IS NOT NULL THEN
        EXECUTE pg_catalog.format('SELECT ($1).%I::pg_catalog.text', v_tenant) INTO tenant USING hit;
    END IF;
    q := sqlvec._prepare_bm25(v_rel, column_name, query, NULL, tenant);
    IF (q).condition IS NULL THEN
        RETURN 0;
    END IF;
    v_terms := sqlvec._bm25_tsvector_expression(
        ((q).derived).options, ARRAY(SELECT pg_catalog.format('($1).%I', c) FROM pg_catalog.unnest(((q).derived).source_columns) AS c));
    EXECUTE 'SELECT ' || sqlvec._bm25_score_expression(((q).derived).options, v_terms)
    INTO v_score USING hit, NULL, NULL, NULL, (q).lexemes, (q).weights;
    RETURN v_score;
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_score(anyelement, text, text, text) IS
    'BM25 score of one row of a table (sqlvec.bm25_score(d, ''body'', ''words'') FROM doc AS d), computed from its text: 0 where no word of the query stands in it. Of phrases, + and - only the words count.';

CREATE OR REPLACE FUNCTION sqlvec.bm25_headline(hit anyelement, column_name text, query text, options text = '') RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_rel oid := sqlvec._relation_of(pg_typeof(hit));
    v_derived sqlvec._derived := sqlvec._bm25_column(v_rel, column_name);
    v_parsed record;
    v_condition tsquery;
    v_text text;
BEGIN
    IF (sqlvec._column(v_rel, column_name)).type_name = 'tsvector' OR column_name = ANY (v_derived.target_columns) THEN
        RAISE EXCEPTION 'column "%" holds no text to highlight', column_name
            USING ERRCODE = 'datatype_mismatch',
                  HINT = 'Name the text column, or use ts_headline with sqlvec.bm25_tsquery.';
    END IF;
    v_parsed := sqlvec._parse_bm25(sqlvec._bm25_config(v_derived.options)::regconfig, query);
    EXECUTE format('SELECT ($1).%I::text', column_name) INTO v_text USING hit;
    -- Whatever scored, and phrases where they stand.
    v_condition := sqlvec._bm25_condition(v_parsed.lexemes, NULL, NULL, v_parsed.prefixes);
    v_condition := coalesce(v_condition || v_parsed.required, v_condition, v_parsed.required);
    RETURN CASE WHEN v_condition IS NULL THEN v_text
                ELSE ts_headline(sqlvec._bm25_config(v_derived.options)::regconfig, v_text, v_condition, options) END;
END
$body$;

COMMENT ON FUNCTION sqlvec.bm25_headline(anyelement, text, text, text) IS
    'The words of the query in text column column_name of a row, highlighted by ts_headline with its options. Select it from the hits of a search, so that it runs on those alone.';

CREATE OR REPLACE FUNCTION sqlvec.explain_bm25_search(
    rel anyelement, column_name text, query text, k int = 10, filter jsonb = NULL, where_sql text = NULL, params text[] = NULL,
    candidates int = NULL, oversample float8 = NULL, tenant text = NULL, backend text = 'auto'
) RETURNS TABLE (topic text, detail text)
LANGUAGE plpgsql
AS $body$
DECLARE
    v_rel oid := sqlvec._relation_of(pg_catalog.pg_typeof(rel));
    v_plan record;
    q sqlvec._bm25_query;
    v_state sqlvec._bm25_state;
    v_line text;
    v_found record;
    v_seqscan text := pg_catalog.current_setting('enable_seqscan');
    v_step int := 0;
BEGIN
    v_plan := sqlvec._plan_bm25(v_rel, column_name, query, k, filter, where_sql, candidates, oversample, tenant, backend, NULL, NULL);
    q := v_plan.q;
    topic := 'column';
    detail := pg_catalog.format('%I of %s', ((q).derived).target_column, pg_catalog.array_to_string(((q).derived).source_columns, ', '));
    RETURN NEXT;
    topic := 'query'; detail := coalesce((q).condition::text, 'asks for nothing: no rows');
    RETURN NEXT;
    IF (q).condition IS NULL THEN
        RETURN;
    END IF;
    topic := 'statistics';
    detail := pg_catalog.format('%s documents, %s', (q).documents, CASE WHEN (q).counted THEN 'counted by analyze_bm25'
        ELSE pg_catalog.format('counted now; CALL sqlvec.analyze_bm25(%L);', ((q).derived).relation::regclass) END);
    RETURN NEXT;
    FOR n IN 1 .. pg_catalog.cardinality((q).lexemes) LOOP
        topic := 'word';
        detail := pg_catalog.format('%s: in %s documents, weight %s', (q).lexemes[n], (q).documents_with[n], pg_catalog.round((q).weights[n]::numeric, 4));
        RETURN NEXT;
    END LOOP;
    topic := 'plan'; detail := v_plan.reason;
    RETURN NEXT;
    IF v_plan.condition <> 'true' THEN
        topic := 'filter';
        detail := v_plan.condition || CASE WHEN pg_catalog.cardinality(v_plan.bound) > 0 THEN ' with $3 = ' || v_plan.bound::text ELSE '' END;
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
        detail := pg_catalog.format('rows without weights are read one by one; CALL sqlvec.backfill(%L, %L);', ((q).derived).relation::regclass, ((q).derived).target_column);
        RETURN NEXT;
    END IF;
    IF v_plan.native IS NOT NULL THEN
        topic := 'statement'; detail := v_plan.native || E'\n-- $4 = tsquery of the query, $7 = the query';
        RETURN NEXT;
        RETURN;
    END IF;
    topic := 'statement';
    detail := v_plan.step || E'\n-- $1 = params, $2 = weights of the words, $3 = values of filter, $4 = tsquery of the step';
    RETURN NEXT;
    -- The search itself, step by step, with the plan of each.
    v_state := v_plan.state;
    LOOP
        v_state := sqlvec._bm25_step(q, v_state, k, v_plan.once);
        EXIT WHEN (v_state).step IS NULL;
        v_step := v_step + 1;
        topic := pg_catalog.format('step %s', v_step);
        detail := (v_state).step::text;
        RETURN NEXT;
        PERFORM pg_catalog.set_config('enable_seqscan', v_plan.seqscan, true);
        FOR v_line IN EXECUTE 'EXPLAIN (ANALYZE, TIMING OFF, BUFFERS OFF) ' || v_plan.step
                      USING params, v_plan.vector, v_plan.bound, (v_state).step, (q).lexemes, (q).weights LOOP
            topic := 'explain'; detail := v_line;
            RETURN NEXT;
        END LOOP;
        EXECUTE v_plan.step INTO v_found USING params, v_plan.vector, v_plan.bound, (v_state).step, (q).lexemes, (q).weights;
        PERFORM pg_catalog.set_config('enable_seqscan', v_seqscan, true);
        v_state := sqlvec._bm25_merge(v_state, v_found.scores, v_found.row_ids, v_found.row_tables, k);
    END LOOP;
END
$body$;

COMMENT ON FUNCTION sqlvec.explain_bm25_search(anyelement, text, text, int, jsonb, text, text[], int, float8, text, text) IS
    'What sqlvec.bm25_search does with the same arguments: words with their frequencies and weights, the plan and its reason, filter, and each step of the search with its EXPLAIN ANALYZE. Runs the search.';
