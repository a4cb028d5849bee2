-- How a hybrid search is written: its arguments checked, its columns found, its statements put together.

-- The column of a leg: the one that was named, or the only one of its types that holds no codes.
CREATE OR REPLACE FUNCTION sqlvec._only_column(rel oid, types name[], column_name text, argument text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_names text[];
BEGIN
    IF column_name IS NOT NULL THEN
        RETURN column_name;
    END IF;
    v_names := ARRAY(
        SELECT a.attname FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
        WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped
              AND CASE t.typtype WHEN 'd' THEN (sqlvec._column(rel, a.attname)).type_name ELSE t.typname END = ANY (types)
              AND a.attname <> ALL (ARRAY(SELECT unnest(d.target_columns) FROM sqlvec._derived_of(rel) AS d WHERE d.target_column IS NOT NULL))
        ORDER BY a.attnum);
    IF cardinality(v_names) = 1 THEN
        RETURN v_names[1];
    END IF;
    RAISE EXCEPTION 'table % has % of type %', sqlvec._qualified(rel), CASE cardinality(v_names) WHEN 0 THEN 'no column' ELSE 'several columns' END,
        replace(array_to_string(ARRAY(SELECT CASE WHEN t LIKE '\_%' THEN substr(t, 2) || '[]' ELSE t END FROM unnest(types) AS t), ' or '), '"', '')
        USING ERRCODE = CASE cardinality(v_names) WHEN 0 THEN 'undefined_column' ELSE 'ambiguous_column' END,
              HINT = CASE cardinality(v_names) WHEN 0 THEN format('Name the column to search: %s => ''...''.', argument)
                          ELSE format('Name one: %s => %L; there are %s.', argument, v_names[1],
                                      (SELECT string_agg(quote_ident(n), ', ') FROM unnest(v_names) AS n)) END;
END
$body$;

-- Weights of text, vector and tokens, 0 for a leg that is not asked. Where none are given legs weigh the
-- same, but in a convex combination: there the cosine lies between -1 and 1, and of that range real rows
-- fill a small part.
CREATE OR REPLACE FUNCTION sqlvec._leg_weights(weights jsonb, fusion text, asked boolean[]) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_legs CONSTANT text[] := ARRAY['text', 'vector', 'tokens'];
    v_weights float8[] := CASE fusion WHEN 'convex' THEN '{0.2,0.8,0.8}' ELSE '{1,1,1}' END;
    v_key text;
    v_value jsonb;
BEGIN
    IF weights IS NOT NULL THEN
        IF fusion = 'relevance' THEN
            RAISE EXCEPTION 'fusion "relevance" takes its weights from the model' USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave out weights.';
        ELSIF jsonb_typeof(weights) <> 'object' THEN
            RAISE EXCEPTION 'weights is a JSON object, not %', jsonb_typeof(weights)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'E.g. {"text": 1, "vector": 2}.';
        END IF;
        FOR v_key, v_value IN SELECT * FROM jsonb_each(weights) LOOP
            IF v_key <> ALL (v_legs) THEN
                RAISE EXCEPTION 'weights: there is no leg "%"', v_key USING ERRCODE = 'invalid_parameter_value', HINT = 'Legs are text, vector and tokens.';
            ELSIF jsonb_typeof(v_value) <> 'number' OR v_value::numeric < 0 OR v_value::numeric > 1e9 THEN
                RAISE EXCEPTION 'weights: leg "%" has weight %', v_key, v_value
                    USING ERRCODE = 'invalid_parameter_value', HINT = 'A weight is a number from 0 to 1e9.';
            END IF;
            v_weights[array_position(v_legs, v_key)] := v_value::float8;
        END LOOP;
        FOR i IN 1 .. 3 LOOP
            IF asked[i] AND NOT weights ? v_legs[i] THEN
                RAISE EXCEPTION 'weights names no weight for leg "%"', v_legs[i]
                    USING ERRCODE = 'invalid_parameter_value', HINT = 'Name all legs that are asked, or leave out weights.';
            END IF;
        END LOOP;
    END IF;
    v_weights := ARRAY(SELECT CASE WHEN a.asked THEN a.weight ELSE 0 END FROM unnest(v_weights, asked) WITH ORDINALITY AS a (weight, asked, n) ORDER BY a.n);
    IF 0 = ALL (v_weights) THEN
        RAISE EXCEPTION 'the weights of all legs are 0' USING ERRCODE = 'invalid_parameter_value', HINT = 'Give one leg at least a weight above 0.';
    END IF;
    RETURN v_weights;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._plan_hybrid(
    rel oid, asked boolean[], k int, candidates int, oversample float8, fusion text, weights jsonb, model text, min_relevance float8, autocut int,
    min_results int, mode text, rrf_k int, group_column text, group_size int, diversity float8, query_tokens halfvec[], key_column text, key_type regtype,
    tenant text, INOUT filter jsonb, INOUT text_column text, INOUT vector_column text, INOUT tokens_column text, -- of the legs that are asked; vector_column also where rows are to differ
    OUT depth int,             -- rows that each leg gives
    OUT leg_weights float8[],  -- of text, vector, tokens
    OUT legs boolean[],        -- which of them are searched
    OUT m sqlvec.relevance_model,
    OUT fills boolean,         -- scores that a leg has not given are computed
    OUT cuts_text boolean,     -- min_relevance bounds the scores of the leg, and of its list nothing else is
    OUT cuts_vector boolean    -- asked than what reaches the bound
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_leg text;
    v_leg_model text;
    v_served text[] := '{}'; -- models of legs that are asked
BEGIN
    IF true <> ALL (asked) THEN
        RAISE EXCEPTION 'a hybrid search needs something to search for' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give query_text, query_vector or query_tokens, or several of them.';
    ELSIF fusion IS NULL OR fusion NOT IN ('rrf', 'convex', 'dbsf', 'relevance') THEN
        RAISE EXCEPTION 'fusion "%" is not known', fusion USING ERRCODE = 'invalid_parameter_value', HINT = 'It is rrf, convex, dbsf or relevance.';
    ELSIF mode IS NULL OR mode NOT IN ('auto', 'exact') THEN
        RAISE EXCEPTION 'mode is auto or exact, not "%"', mode USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT coalesce(rrf_k BETWEEN 1 AND 1000000, false) THEN
        RAISE EXCEPTION 'rrf_k is a number from 1 to 1000000, not %', rrf_k USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT coalesce(min_relevance BETWEEN 0 AND 1, min_relevance IS NULL) THEN
        RAISE EXCEPTION 'min_relevance is a probability from 0 to 1, not %', min_relevance USING ERRCODE = 'invalid_parameter_value';
    ELSIF autocut < 1 THEN
        RAISE EXCEPTION 'autocut is the number of jumps, 1 or more, not %', autocut USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT coalesce(min_results BETWEEN 0 AND k, false) THEN
        RAISE EXCEPTION 'min_results is a number from 0 to k (%), not %', k, min_results USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT coalesce(group_size BETWEEN 1 AND 1000, false) THEN
        RAISE EXCEPTION 'group_size is a number from 1 to 1000, not %', group_size USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT coalesce(diversity BETWEEN 0 AND 1, diversity IS NULL) THEN
        RAISE EXCEPTION 'diversity is a number from 0 to 1, not %', diversity USING ERRCODE = 'invalid_parameter_value';
    ELSIF diversity > 0 AND k > 1000 THEN
        RAISE EXCEPTION 'with diversity k is at most 1000, not %', k USING ERRCODE = 'invalid_parameter_value';
    ELSIF model IS NULL AND (fusion = 'relevance' OR min_relevance IS NOT NULL) THEN
        RAISE EXCEPTION '% needs a relevance model', CASE WHEN fusion = 'relevance' THEN 'fusion "relevance"' ELSE 'min_relevance' END
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Name it: relevance => ''...''; the command sqlvec relevance fit makes one. Without a model, autocut cuts by the shape of the scores.';
    END IF;
    PERFORM sqlvec._check_search('', 1, k, candidates, oversample, 'auto');
    PERFORM sqlvec._check_places(rel, key_column, key_type, 'hybrid_search_keys');
    -- Scores of a hundred rows or more say how those of a query are spread.
    depth := coalesce(candidates, ceil(k * oversample)::int, greatest(100, 10 * k));
    IF depth > 10000 THEN
        IF coalesce(candidates, 0) > 10000 OR oversample IS NOT NULL THEN
            RAISE EXCEPTION 'a leg of a hybrid search gives 10000 candidates at most, not %', depth USING ERRCODE = 'invalid_parameter_value';
        END IF;
        depth := 10000;
    END IF;
    leg_weights := sqlvec._leg_weights(weights, fusion, asked);
    fills := fusion IN ('convex', 'relevance') OR model IS NOT NULL;
    -- What a leg without weight found would stand in the list for nothing.
    legs := ARRAY(SELECT a.asked AND (a.weight > 0 OR model IS NOT NULL) FROM unnest(asked, leg_weights) WITH ORDINALITY AS a (asked, weight, n) ORDER BY a.n);
    IF group_column IS NOT NULL THEN
        PERFORM sqlvec._column(rel, group_column);
    END IF;

    IF asked[1] OR tenant IS NOT NULL THEN
        v_derived := sqlvec._bm25_column(rel, text_column);
        text_column := v_derived.target_column;
        IF tenant IS NOT NULL AND v_derived.tenant_column IS NULL THEN
            RAISE EXCEPTION 'column "%" of table % was not declared with a tenant', text_column, sqlvec._qualified(rel)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Use filter.';
        ELSIF tenant IS NOT NULL THEN
            -- Every leg is the tenant's.
            filter := jsonb_build_object('$and', jsonb_build_array(jsonb_build_object(v_derived.tenant_column, tenant), coalesce(filter, '{}')));
        END IF;
    END IF;
    IF asked[2] OR diversity IS NOT NULL THEN
        vector_column := sqlvec._only_column(rel, ARRAY['vector', 'halfvec'], vector_column, 'vector_column');
    END IF;
    IF asked[3] THEN
        tokens_column := sqlvec._only_column(rel, ARRAY['_halfvec', '_vector'], tokens_column, 'tokens_column');
        PERFORM sqlvec._check_tokens(query_tokens, tokens_column, rel, (sqlvec._multivector_column(rel, tokens_column)).dimensions);
    END IF;

    IF model IS NULL THEN
        RETURN;
    END IF;
    m := sqlvec._relevance_model(model, ARRAY['vector', 'text', 'tokens', 'fused']);
    FOR i IN 1 .. 3 LOOP
        v_leg := (ARRAY['text', 'vector', 'tokens'])[i];
        v_leg_model := sqlvec._model_of(m, v_leg);
        CONTINUE WHEN v_leg_model IS NULL OR NOT asked[i];
        v_served := v_served || v_leg_model;
        PERFORM sqlvec._check_relevance(v_leg_model, v_leg, rel, CASE i
            -- A text model may name the text or the column that add_bm25 made of it.
            WHEN 1 THEN coalesce((SELECT c.column_name FROM sqlvec.relevance_model AS r, sqlvec._relevance_column(r) AS c
                                  WHERE r.name = v_leg_model AND c.column_name = ANY (v_derived.source_columns || v_derived.target_columns)), v_derived.source_columns[1])
            WHEN 2 THEN vector_column ELSE tokens_column END);
    END LOOP;
    IF cardinality(v_served) = 1 THEN
        -- What the others know is not unknown of a row but was not asked.
        m := sqlvec._relevance_model(v_served[1], ARRAY['vector', 'text', 'tokens']);
    ELSIF v_served = '{}' THEN
        RAISE EXCEPTION 'relevance model "%" is of leg "%", which this search does not ask', model, m.leg
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give the query of that leg, or a model of a leg that is asked.';
    END IF;
    cuts_text := m.leg = 'text' AND min_relevance IS NOT NULL AND min_results = 0 AND fusion <> 'dbsf';
    cuts_vector := m.leg = 'vector' AND min_relevance IS NOT NULL AND min_results = 0 AND fusion <> 'dbsf';
END
$body$;

-- The statements that follow the legs. In `gather`, $1 is params, $2 the weights of the words, $3 the values of
-- filter, $4 the tsquery, $5 and $6 words and weights, as in a BM25 search; $7 to $14 the rows that were
-- found with scores and ranks, $15 the query vector, $16 the query tokens.
CREATE OR REPLACE FUNCTION sqlvec._hybrid_statements(
    rel oid, key_column text, key_type regtype, text_score text, vector_column text, query_dimensions int, metric text, cosine boolean,
    tokens_column text, query_tokens int, group_column text, differ boolean,
    OUT gather text, -- the rows with what their legs have not given, equal scores in the order of the key
    OUT answer text  -- rows or keys of places $1, $2 in that order, with what stands in $3 to $10; $11 is complete
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_alias text := (SELECT quote_ident(c.relname) FROM pg_class AS c WHERE c.oid = rel);
    v_hit record := sqlvec._hit_statement(rel, v_alias, key_column, key_type, NULL);
    v_from text := format('%s AS %s', sqlvec._qualified(rel), v_alias);
    v_at record := sqlvec._at_place(rel, v_alias, key_column, key_type);
    v_vector text := v_alias || '.' || quote_ident(vector_column);
    v_query text := '$15';
    v_tokens text := v_alias || '.' || quote_ident(tokens_column);
    v_null CONSTANT text := 'NULL::pg_catalog.float8';
    v_fits text := '';
    v_end text := '';
BEGIN
    IF vector_column IS NOT NULL AND (sqlvec._column(rel, vector_column)).dimensions IS NULL AND query_dimensions IS NOT NULL THEN
        -- A column without dimensions may hold vectors that the query cannot be compared with.
        v_fits := format('CASE WHEN sqlvec._dims(%s) OPERATOR(pg_catalog.=) %s THEN ', v_vector, query_dimensions);
        v_end := ' END';
    END IF;
    IF vector_column IS NOT NULL AND (sqlvec._column(rel, vector_column)).type_name = 'halfvec' THEN
        v_query := 'sqlvec._halfvec($15)';
    END IF;
    gather := format(
        E'SELECT pg_catalog.array_agg(g.row_id) AS row_ids, pg_catalog.array_agg(g.row_table) AS row_tables, pg_catalog.array_agg(g.text_score) AS text_scores,\n'
        '  pg_catalog.array_agg(g.text_rank) AS text_ranks, pg_catalog.array_agg(g.distance) AS distances, pg_catalog.array_agg(g.vector_rank) AS vector_ranks,\n'
        '  pg_catalog.array_agg(g.tokens_score) AS tokens_scores, pg_catalog.array_agg(g.tokens_rank) AS tokens_ranks,\n'
        '  pg_catalog.array_agg(g.cosine) AS cosines, pg_catalog.array_agg(g.group_of) AS groups, pg_catalog.array_agg(g.own_vector) AS vectors\n'
        'FROM (\n  SELECT "sqlvec hit".row_id, "sqlvec hit".row_table, "sqlvec hit".text_rank, "sqlvec hit".vector_rank, "sqlvec hit".tokens_rank,\n'
        '    coalesce("sqlvec hit".text_score, %1$s) AS text_score,\n'
        '    coalesce("sqlvec hit".distance, %2$s) AS distance,\n'
        '    coalesce("sqlvec hit".tokens_score, %3$s) AS tokens_score,\n'
        '    %4$s AS cosine, %5$s AS group_of, %6$s AS own_vector\n'
        '  FROM unnest($7::%10$s, $7, $8, $9, $10, $11, $12, $13, $14)\n'
        '    AS "sqlvec hit" (place, row_id, row_table, text_score, text_rank, distance, vector_rank, tokens_score, tokens_rank)\n'
        '  JOIN %7$s ON %8$s\n  ORDER BY %9$s) AS g',
        coalesce(text_score, v_null),
        CASE WHEN metric IS NULL THEN v_null ELSE format('%ssqlvec._number(%s %s %s)%s', v_fits, v_vector, sqlvec._operator(metric), v_query, v_end) END,
        CASE WHEN tokens_column IS NULL THEN v_null ELSE sqlvec._maxsim_expression((sqlvec._column(rel, tokens_column)).type_name, v_tokens, '$16', query_tokens) END,
        CASE WHEN cosine THEN format('%ssqlvec._number(1::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s %s %s))%s', v_fits, v_vector, sqlvec._operator('cosine'), v_query, v_end)
             ELSE v_null END,
        CASE WHEN group_column IS NULL THEN 'NULL::pg_catalog.text' ELSE format('%s.%I::pg_catalog.text', v_alias, group_column) END,
        CASE WHEN differ THEN format('%s(%s::%I.vector)%s', v_fits, v_vector, sqlvec._vector_schema(), v_end) ELSE format('NULL::%I.vector', sqlvec._vector_schema()) END,
        v_from, v_at.condition, v_hit.tie_break, v_at.places);
    answer := format(
        E'SELECT %s, "sqlvec hit".score, "sqlvec hit".relevance, "sqlvec hit".text_score, "sqlvec hit".text_rank, "sqlvec hit".distance,\n'
        '  "sqlvec hit".vector_rank, "sqlvec hit".tokens_score, "sqlvec hit".tokens_rank, $11::pg_catalog.bool\n'
        'FROM unnest($1::%s, $2, $3, $4, $5, $6, $7, $8, $9, $10) WITH ORDINALITY\n'
        '  AS "sqlvec hit" (place, row_table, score, relevance, text_score, text_rank, distance, vector_rank, tokens_score, tokens_rank, turn)%s\n'
        'ORDER BY "sqlvec hit".turn',
        CASE WHEN key_type IS NULL THEN format('(%s.*)::%s', v_alias, sqlvec._qualified(rel)) ELSE format('"sqlvec hit".place::%s', sqlvec._type_name(key_type)) END,
        v_at.places, CASE WHEN key_type IS NULL THEN format(E'\nJOIN %s ON %s', v_from, v_at.condition) ELSE '' END);
END
$body$;

-- Which rows are answered, best first, as positions in the list.
--   min_results  so many of the best stay whatever their relevance
--   jumps        autocut
--   differ       diversity, 0 to 1
CREATE OR REPLACE FUNCTION sqlvec._hybrid_order(
    r sqlvec._hybrid_rows, scores float8[], relevances float8[], k int, min_relevance float8, jumps int, min_results int, grouped boolean, group_size int, differ float8,
    OUT places int[],
    OUT fit int,       -- rows that no cut took away
    OUT enough boolean -- groups, where they are asked for, give k rows
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_scores float8[];
    v_low float8;
    v_span float8;
BEGIN
    SELECT array_agg(o.n ORDER BY o.place), array_agg(o.score ORDER BY o.place) INTO places, v_scores
    FROM (SELECT u.n, u.score, u.relevance, row_number() OVER (ORDER BY u.score DESC NULLS LAST, u.n) AS place
          FROM unnest(scores, relevances) WITH ORDINALITY AS u (score, relevance, n)) AS o
    WHERE min_relevance IS NULL OR o.relevance >= min_relevance OR o.place <= min_results;
    places := coalesce(places, '{}');
    IF jumps IS NOT NULL AND places <> '{}' THEN
        places := places[: greatest(sqlvec.autocut(array_remove(v_scores, NULL), jumps), min_results)];
    END IF;
    fit := cardinality(places);
    IF grouped THEN
        SELECT coalesce(array_agg(g.n ORDER BY g.place), '{}') INTO places
        FROM (SELECT p.n, p.place, row_number() OVER (PARTITION BY coalesce('=' || (r).groups[p.n], p.place::text) ORDER BY p.place) AS in_group
              FROM unnest(places) WITH ORDINALITY AS p (n, place)) AS g
        WHERE g.in_group <= group_size;
    END IF;
    -- What lies deeper than a cut would be cut as well.
    enough := NOT grouped OR cardinality(places) >= k OR fit < cardinality(scores);
    IF differ > 0 AND places <> '{}' THEN
        -- Each choice looks at all that are left.
        places := places[: 1000];
        -- Scores of a fusion have no scale of their own.
        v_low := (SELECT min(scores[p]) FROM unnest(places) AS p);
        v_span := nullif((SELECT max(scores[p]) FROM unnest(places) AS p) - v_low, 0);
        places := ARRAY(
            SELECT places[s.position]
            FROM sqlvec.mmr(ARRAY(SELECT (r).vectors[p.n] FROM unnest(places) WITH ORDINALITY AS p (n, place) ORDER BY p.place),
                            ARRAY(SELECT CASE WHEN v_span IS NULL THEN 1 ELSE coalesce((scores[p.n] - v_low) / v_span, 0) END FROM unnest(places) WITH ORDINALITY AS p (n, place) ORDER BY p.place),
                            k, differ) WITH ORDINALITY AS s (position, score, turn)
            ORDER BY s.turn);
    END IF;
    places := places[: k];
END
$body$;
