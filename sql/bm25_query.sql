-- What a BM25 query asks of a column: words that score, conditions that restrict, and their
-- frequencies in the corpus.

-- The BM25 column that column_name means: its only source, or itself; with NULL the only one of the
-- table. `field`: also one of several sources.
CREATE OR REPLACE FUNCTION sqlvec._bm25_column(rel oid, column_name text, field boolean = false) RETURNS sqlvec._derived
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_id int := (SELECT r.id FROM sqlvec._relation_ids(rel) AS r LIMIT 1);
    v_derived sqlvec._derived;
    v_known text[] := '{}';
    v_result sqlvec._derived;
    v_fields boolean;
    v_field_of name;
BEGIN
    IF v_id IS NULL THEN
        -- The trigger is gone: look through the whole catalog.
        SELECT r.id INTO v_id FROM sqlvec._relation AS r WHERE r.relation = coalesce(pg_partition_root(rel), rel);
    END IF;
    FOR v_derived IN
        SELECT d.* FROM sqlvec._derived AS d
        WHERE d.relation_id = v_id AND d.kind = 'bm25' AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL
        ORDER BY column_name IS NOT DISTINCT FROM d.target_column DESC, d.id
    LOOP
        v_fields := cardinality(v_derived.source_columns) > 1;
        IF column_name IS NULL OR column_name = ANY (v_derived.target_columns)
           OR column_name = ANY (v_derived.source_columns) AND (field OR NOT v_fields) THEN
            IF v_result.id IS NOT NULL AND NOT field AND v_result.target_column IS DISTINCT FROM column_name THEN
                RAISE EXCEPTION 'table % has several BM25 columns%', sqlvec._qualified(rel), coalesce(' on "' || column_name || '"', '')
                    USING ERRCODE = 'ambiguous_column', HINT = format('Name one: %I or %I.', v_result.target_column, v_derived.target_column);
            END IF;
            v_result := coalesce(v_result, v_derived);
        ELSIF column_name = ANY (v_derived.source_columns) THEN
            v_field_of := v_derived.target_column;
        END IF;
        v_known := v_known || format('%I (of %s)', v_derived.target_column,
                                     (SELECT string_agg(quote_ident(s), ', ') FROM unnest(v_derived.source_columns) AS s));
    END LOOP;
    IF v_result.id IS NULL THEN
        IF column_name IS NOT NULL THEN
            PERFORM sqlvec._column(rel, column_name);
        END IF;
        IF v_field_of IS NOT NULL THEN
            RAISE EXCEPTION 'column "%" of table % is one of several fields of BM25 column "%"', column_name, sqlvec._qualified(rel), v_field_of
                USING ERRCODE = 'ambiguous_column', HINT = format('Search all of them by its name, %L.', v_field_of);
        END IF;
        RAISE EXCEPTION 'table % has no BM25 column%', sqlvec._qualified(rel), coalesce(' on "' || column_name || '"', '')
            USING ERRCODE = 'undefined_column',
                  HINT = CASE WHEN v_known = '{}' THEN format('CALL sqlvec.add_bm25(%L, %L);', sqlvec._qualified(rel), coalesce(column_name, '...'))
                              ELSE 'It has: ' || array_to_string(v_known, '; ') || '.' END;
    END IF;
    RETURN v_result;
END
$body$;

-- A lexeme as tsquery input.
CREATE OR REPLACE FUNCTION sqlvec._quote_lexeme(lexeme text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''';

-- Read a query. Words are alternatives; "a phrase" and +word are required, -word and -"phrase"
-- excluded; word* stands for its completions; OR makes what stands on both sides alternatives of one
-- another. Any text is a query.
--   lexemes, counts  the words that score and how often each stands in the query
--   required, excluded  what a document must and must not match; NULL for nothing
--   prefixes            what completes a word; matches like a word
CREATE OR REPLACE FUNCTION sqlvec._parse_bm25(
    config regconfig, query text, OUT lexemes text[], OUT counts int[], OUT required tsquery, OUT excluded tsquery, OUT prefixes tsquery
) LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $body$
DECLARE
    v_token text[];
    v_sign text;
    v_text text;
    v_words text := '';
    v_clause tsquery;
    v_is_required boolean;
    v_or boolean := false;           -- the last token was OR
    v_last tsquery;                  -- the clause before, to be joined by OR
    v_last_required boolean := false;
    v_completed int := 0;            -- prefixes so far
BEGIN
    query := left(query, 10000);
    IF query !~* '["+*-]|\yor\y' THEN
        v_words := query; -- plain words, as most queries are
    ELSE
        FOR v_token IN SELECT regexp_matches(query, '([+-]?)"([^"]*)"?|([+-]?)([^\s"]+)', 'g') LOOP
            v_sign := coalesce(v_token[1], v_token[3]);
            v_text := coalesce(v_token[2], v_token[4]);
            IF v_token[4] IS NOT NULL AND v_sign = '' AND lower(v_text) = 'or' THEN
                v_or := v_last IS NOT NULL;
                CONTINUE;
            END IF;
            v_clause := NULL;
            IF to_tsvector(config, v_text) = '' THEN
                NULL; -- a stop word asks for nothing, and to_tsquery would say so aloud
            ELSIF v_token[4] ~ '^[^*]*\w[^*]*\*+$' AND v_completed < 20 THEN
                -- Each asks the index for all its completions: those after the twentieth are words.
                v_completed := v_completed + 1;
                v_clause := to_tsquery(config, '''' || replace(replace(rtrim(v_text, '*'), '\', ' '), '''', ' ') || ''':*');
                IF v_sign <> '-' THEN
                    prefixes := coalesce(prefixes || v_clause, v_clause);
                END IF;
            ELSE
                v_clause := CASE WHEN v_token[2] IS NOT NULL THEN phraseto_tsquery(config, v_text) ELSE plainto_tsquery(config, v_text) END;
                IF v_sign <> '-' THEN
                    v_words := v_words || ' ' || v_text;
                END IF;
            END IF;
            CONTINUE WHEN v_clause IS NULL;
            IF v_sign = '-' THEN
                excluded := coalesce(excluded || v_clause, v_clause);
                v_or := false;
                CONTINUE;
            END IF;
            v_is_required := v_sign = '+' OR v_token[2] IS NOT NULL;
            IF v_or THEN
                -- Put the alternatives in the place of the one before.
                v_clause := v_last || v_clause;
                v_is_required := v_is_required OR v_last_required;
            ELSIF v_last_required THEN
                required := coalesce(required && v_last, v_last);
            END IF;
            v_last := v_clause; v_last_required := v_is_required; v_or := false;
        END LOOP;
        IF v_last_required THEN
            required := coalesce(required && v_last, v_last);
        END IF;
    END IF;
    SELECT array_agg(t.lexeme ORDER BY t.lexeme), array_agg(t.n ORDER BY t.lexeme) INTO lexemes, counts
    FROM (SELECT u.lexeme, coalesce(cardinality(u.positions), 1) AS n
          FROM unnest(to_tsvector(config, v_words)) AS u
          ORDER BY 2 DESC, 1 LIMIT 1000) AS t;
    lexemes := coalesce(lexemes, '{}');
    counts := coalesce(counts, '{}');
END
$body$;

-- A document that is found must match this; NULL for a query that asks for nothing.
CREATE OR REPLACE FUNCTION sqlvec._bm25_condition(lexemes text[], required tsquery, excluded tsquery, prefixes tsquery) RETURNS tsquery
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN c.positive IS NULL THEN NULL WHEN excluded IS NULL THEN c.positive ELSE c.positive && !!excluded END
    FROM (SELECT CASE WHEN required IS NOT NULL THEN required
                      WHEN lexemes = '{}' THEN prefixes
                      WHEN prefixes IS NULL THEN w.words
                      ELSE w.words || prefixes END AS positive
          FROM (SELECT string_agg(sqlvec._quote_lexeme(l), ' | ')::tsquery AS words FROM unnest(lexemes) AS l) AS w) AS c;
END;

DO $do$
BEGIN
    IF pg_catalog.to_regtype('sqlvec._bm25_query') IS NULL THEN
        CREATE TYPE sqlvec._bm25_query AS (
            derived   sqlvec._derived,
            tenant    text,
            condition tsquery,  -- what a document must match; NULL for nothing to search
            required  tsquery,
            excluded  tsquery,
            prefixes  tsquery,
            documents float8,   -- in the corpus
            counted   boolean,  -- by analyze_bm25
            lexemes   text[],   -- the words, then completions of prefixes
            weights   float8[], -- idf times occurrences in the query
            documents_with int[],
            tiers     int[],    -- four numbers for each lexeme: documents in which it reaches a tier
            collides  boolean   -- a word shares its dimension with another term of the corpus
        );
    END IF;
END
$do$;

-- Rows that match, but at most 10,000.
CREATE OR REPLACE FUNCTION sqlvec._count_documents(rel oid, condition text, word tsquery, bound text[]) RETURNS int
LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_count int;
BEGIN
    EXECUTE pg_catalog.format('SELECT pg_catalog.count(*) FROM (SELECT FROM %s AS t WHERE %s LIMIT 10000) AS c', sqlvec._qualified(rel), condition)
    INTO v_count USING word, bound;
    RETURN v_count;
END
$body$;

-- Sorts behind every other in collation C.
CREATE OR REPLACE FUNCTION sqlvec._last_character() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN chr(CASE getdatabaseencoding() WHEN 'UTF8' THEN 1114111 ELSE 255 END);

-- Read a query and look its words up. `tenant` comes from the caller or from the filter.
CREATE OR REPLACE FUNCTION sqlvec._prepare_bm25(rel oid, column_name text, query text, filter jsonb, tenant text) RETURNS sqlvec._bm25_query
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $body$
DECLARE
    q sqlvec._bm25_query;
    v_parsed record;
    v_corpus record;
    v_prefix text[];
    v_terms text;
    v_tenant text := '';
    v_bound text[];
    v_countable boolean;
BEGIN
    IF query IS NULL THEN
        RAISE EXCEPTION 'the query is NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    q.derived := sqlvec._bm25_column(rel, column_name);
    q.tenant := tenant;
    IF (q.derived).tenant_column IS NOT NULL THEN
        IF q.tenant IS NULL THEN
            q.tenant := CASE jsonb_typeof(filter -> (q.derived).tenant_column)
                            WHEN 'object' THEN filter -> (q.derived).tenant_column ->> '$eq'
                            WHEN 'array' THEN NULL
                            ELSE filter ->> (q.derived).tenant_column END;
        END IF;
        IF q.tenant IS NULL THEN
            RAISE EXCEPTION 'column "%" of table % has statistics of its own for each "%"', (q.derived).target_column, sqlvec._qualified(rel), (q.derived).tenant_column
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = format('Search one of them: tenant => ''...'', or filter => ''{"%s": ...}''.', (q.derived).tenant_column);
        END IF;
        -- As the column writes the value.
        EXECUTE format('SELECT ($1::%s)::text', format_type((sqlvec._column(rel, (q.derived).tenant_column)).type_oid, -1)) INTO q.tenant USING q.tenant;
        v_tenant := format(' AND t.%I::text = ($2)[1]', (q.derived).tenant_column);
        v_bound := ARRAY[q.tenant];
    ELSIF q.tenant IS NOT NULL THEN
        RAISE EXCEPTION 'column "%" of table % was not declared with a tenant', (q.derived).target_column, sqlvec._qualified(rel)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Use filter.';
    END IF;

    v_parsed := sqlvec._parse_bm25(sqlvec._bm25_config((q.derived).options)::regconfig, query);
    q.lexemes := v_parsed.lexemes; q.required := v_parsed.required; q.excluded := v_parsed.excluded; q.prefixes := v_parsed.prefixes;
    q.condition := sqlvec._bm25_condition(v_parsed.lexemes, v_parsed.required, v_parsed.excluded, v_parsed.prefixes);
    IF q.condition IS NULL THEN
        RETURN q;
    END IF;

    -- Equality finds one of many tenants by the index.
    IF q.tenant IS NULL THEN
        SELECT c.id, c.documents INTO v_corpus FROM sqlvec.bm25_corpus AS c WHERE c.derived_id = (q.derived).id AND c.tenant IS NULL;
    ELSE
        SELECT c.id, c.documents INTO v_corpus FROM sqlvec.bm25_corpus AS c WHERE c.derived_id = (q.derived).id AND c.tenant = q.tenant;
    END IF;
    q.counted := FOUND;
    IF q.prefixes IS NOT NULL THEN
        -- Its completions: the most frequent that the statistics know.
        FOR v_prefix IN SELECT regexp_matches(q.prefixes::text, '''((?:[^'']|'''')*)'':\*', 'g') LOOP
            v_prefix[1] := replace(replace(v_prefix[1], '''''', ''''), '\\', '\');
            q.lexemes := q.lexemes || ARRAY(
                SELECT f.lexeme FROM sqlvec.bm25_frequency AS f
                WHERE f.corpus_id = v_corpus.id AND f.lexeme >= v_prefix[1] COLLATE "C" AND f.lexeme < (v_prefix[1] || sqlvec._last_character()) COLLATE "C"
                      AND f.lexeme <> ALL (q.lexemes)
                ORDER BY f.documents DESC, f.lexeme LIMIT greatest(0, least(64, 1000 - cardinality(q.lexemes))));
        END LOOP;
    END IF;
    SELECT array_agg(coalesce(f.documents, -1) ORDER BY w.n), coalesce(bool_or(f.collides), false),
           string_agg(coalesce(array_to_string(f.tiers, ','), '0,0,0,0'), ',' ORDER BY w.n)
    INTO q.documents_with, q.collides, v_terms
    FROM unnest(q.lexemes) WITH ORDINALITY AS w (lexeme, n)
    LEFT JOIN (SELECT g.* FROM sqlvec.bm25_frequency AS g WHERE g.corpus_id = v_corpus.id AND g.lexeme = ANY (q.lexemes)) AS f
           ON f.lexeme = w.lexeme;
    q.tiers := ('{' || v_terms || '}')::int[];
    -- Words that the statistics do not know may share a dimension all the same.
    q.collides := q.collides OR (SELECT count(DISTINCT sqlvec._bm25_dimension(l)) < count(*) FROM unnest(q.lexemes) AS l);

    q.documents := v_corpus.documents;
    v_terms := coalesce((q.derived).target_columns[2], (q.derived).source_columns[1]);
    v_countable := NOT row_security_active(rel) AND has_column_privilege(rel, v_terms, 'SELECT');
    v_terms := format('t.%I', v_terms);
    IF NOT q.counted THEN
        q.documents := CASE WHEN v_countable THEN sqlvec._count_documents(rel, v_terms || ' IS NOT NULL' || v_tenant, NULL, v_bound) ELSE 10000 END;
        IF q.documents = 10000 AND v_tenant = '' THEN
            q.documents := greatest(q.documents, (SELECT sum(c.reltuples) FROM sqlvec._leaves(rel) AS t JOIN pg_class AS c ON c.oid = t.leaf));
        END IF;
    END IF;
    -- Words that the statistics do not know. Under row security counting one would read the table, so it
    -- counts as rare.
    FOR n IN 1 .. cardinality(q.lexemes) LOOP
        IF q.documents_with[n] = -1 THEN
            q.documents_with[n] := CASE WHEN v_countable
                THEN sqlvec._count_documents(rel, v_terms || ' OPERATOR(pg_catalog.@@) $1' || v_tenant, sqlvec._quote_lexeme(q.lexemes[n])::tsquery, v_bound)
                ELSE 1 END;
        END IF;
    END LOOP;
    q.weights := ARRAY(
        SELECT coalesce(v_parsed.counts[w.n], 1) * ln(1 + (greatest(q.documents, w.df) - w.df + 0.5::float8) / (w.df + 0.5::float8))
        FROM unnest(q.documents_with) WITH ORDINALITY AS w (df, n) ORDER BY w.n);
    RETURN q;
END
$body$;

-- The words of a query.
CREATE OR REPLACE FUNCTION sqlvec._words(condition tsquery) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN (numnode(condition) + 1) / 2;

-- The score that no document can exceed.
CREATE OR REPLACE FUNCTION sqlvec._bm25_maximum(q sqlvec._bm25_query) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce((SELECT sum(w) FROM unnest((q).weights) AS w), 0) * ((((q).derived).options ->> 'k1')::float8 + 1);

-- The words with their weights as a vector: a score is 0 - (code <#> this).
CREATE OR REPLACE FUNCTION sqlvec._bm25_vector(lexemes text[], weights float8[]) RETURNS sparsevec
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET extra_float_digits = 1
BEGIN ATOMIC
    SELECT ('{' || coalesce(string_agg(d.dimension || ':' || d.weight, ','), '') || '}/1000000000')::sparsevec
    FROM (SELECT sqlvec._bm25_dimension(w.lexeme) AS dimension, sum(w.weight)::real AS weight
          FROM unnest(lexemes, weights) AS w (lexeme, weight) GROUP BY 1) AS d
    WHERE d.weight > 0;
END;

-- The score of one document from its terms: what its code gives, for documents whose code is not there
-- or cannot be trusted.
CREATE OR REPLACE FUNCTION sqlvec._bm25_score(
    terms tsvector, lexemes text[], query_weights float8[], k1 float8, b float8, average_length float8, weights real[]
) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT coalesce(sum(q.weight * t.frequency * (k1 + 1) / (t.frequency + k1 * (1 - b + b * t.length / average_length))), 0)
    FROM (SELECT u.lexeme, u.frequency, sum(u.frequency) OVER () AS length FROM sqlvec._bm25_terms(terms, weights) AS u) AS t
    JOIN unnest(lexemes, query_weights) AS q (lexeme, weight) ON q.lexeme = t.lexeme;
END;

-- SQL of the score of row `alias` from its terms, with the words in $5 and their weights in $6.
CREATE OR REPLACE FUNCTION sqlvec._bm25_score_expression(options jsonb, terms text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN format('sqlvec._bm25_score(%s, $5, $6, %s)', terms, sqlvec._bm25_constants(options));
