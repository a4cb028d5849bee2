-- Which documents a BM25 search reads: one tsquery after another, until no other could be among the k best.
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
                           greatest(w.weight * CASE WHEN tiered THEN sqlvec._bm25_tier(l.level + 1) - sqlvec._bm25_tier(l.level) ELSE 1 END,
                                    1e-9) AS gain
                    FROM unnest(weights) WITH ORDINALITY AS w (weight, word)
                    JOIN generate_series(0, 4) AS l (level) ON tiered OR l.level = 0
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
RETURN weight * (k1 + 1) * sqlvec._bm25_tier(cap);

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
            least    float8,   -- scores below need not be found; NULL: all are wanted
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
    IF cardinality(s.scores) >= k OR s.least > 0 THEN
        -- Scores add up in single precision: leave room for its rounding.
        v_threshold := greatest(s.scores[k], s.least) * (1 - 1e-5);
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
    SELECT b.scores, b.row_ids, b.row_tables INTO s.scores, s.row_ids, s.row_tables
    FROM sqlvec._best_hits(s.scores || scores, s.row_ids || row_ids, s.row_tables || row_tables, k) AS b;
    RETURN s;
END
$body$;
