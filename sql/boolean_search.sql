-- sqlvec.boolean_search, sqlvec.boolean_search_keys: rows by their relevance to several queries.
--
-- Every query that is not negated finds rows by itself; then the cosines of all that were found to all
-- queries are computed exactly.

-- The expression with every query under an odd number of NOTs under a number of its own, higher by `queries`.
CREATE OR REPLACE FUNCTION sqlvec._negated_apart(expression jsonb, queries int, negated boolean = false) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF jsonb_typeof(expression) = 'number' THEN
        RETURN to_jsonb(expression::int + CASE WHEN negated THEN queries ELSE 0 END);
    ELSIF expression ? 'not' THEN
        RETURN jsonb_build_object('not', sqlvec._negated_apart(expression -> 'not', queries, NOT negated));
    END IF;
    RETURN (SELECT jsonb_build_object(e.key, (SELECT jsonb_agg(sqlvec._negated_apart(o, queries, negated)) FROM jsonb_array_elements(e.value) AS o))
            FROM jsonb_each(expression) AS e);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._plan_boolean(
    rel oid, column_name text, INOUT queries vector[], expression jsonb, k int, candidates int, oversample float8, model text, min_relevance float8,
    combine text, mode text, key_column text, key_type regtype,
    OUT finders int[],       -- the queries that find rows
    OUT depth int,           -- how many each
    OUT most int,            -- how many at most, where that is too few; NULL where the caller has said how many
    OUT slopes float8[], OUT intercepts float8[], OUT exponents float8[], -- the curve of each query
    OUT gather text,         -- of the rows at places $1, $2 the cosines to the queries $3
    OUT answer text          -- see sqlvec._hit_statement
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_alias text := (SELECT quote_ident(c.relname) FROM pg_class AS c WHERE c.oid = rel);
    v_hit record;
    v_at record;
    v_curve record;
    v_cosines text;
BEGIN
    PERFORM sqlvec._check_search(column_name, 1, k, candidates, oversample, mode), sqlvec._check_combine(combine);
    IF model IS NULL THEN
        RAISE EXCEPTION 'a boolean search needs a relevance model of the column' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Name it: relevance => ''...''; the command sqlvec relevance fit makes one.';
    ELSIF NOT coalesce(min_relevance BETWEEN 0 AND 1, min_relevance IS NULL) THEN
        RAISE EXCEPTION 'min_relevance is a probability from 0 to 1, not %', min_relevance USING ERRCODE = 'invalid_parameter_value';
    ELSIF array_ndims(queries) > 1 THEN
        RAISE EXCEPTION 'queries is a list, not an array of % dimensions', array_ndims(queries) USING ERRCODE = 'array_subscript_error';
    END IF;
    PERFORM sqlvec._check_places(rel, key_column, key_type, 'boolean_search_keys');
    queries := ARRAY(SELECT q FROM unnest(queries) AS q);
    finders := sqlvec._boolean_finders(expression, cardinality(queries));
    IF finders = '{}' THEN
        RAISE EXCEPTION 'every query of the expression is negated, and none finds rows' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Say what is wanted as well: {"and": [1, {"not": 2}]}.';
    ELSIF cardinality(queries) > 100 THEN
        RAISE EXCEPTION 'a boolean search takes at most 100 queries, not %', cardinality(queries) USING ERRCODE = 'program_limit_exceeded';
    END IF;
    depth := coalesce(candidates, ceil(k * oversample)::int, greatest(100, 10 * k));
    IF depth > 10000 AND num_nonnulls(candidates, oversample) > 0 THEN
        RAISE EXCEPTION 'a query of a boolean search gives 10000 candidates at most, not %', depth USING ERRCODE = 'invalid_parameter_value';
    END IF;
    depth := least(depth, 10000);
    most := CASE WHEN num_nonnulls(candidates, oversample) = 0 THEN least(16 * depth, 10000) END;
    PERFORM sqlvec._check_relevance(model, 'vector', rel, column_name);
    FOR i IN 1 .. cardinality(queries) LOOP
        IF queries[i] IS NULL THEN
            RAISE EXCEPTION 'query % is NULL', i USING ERRCODE = 'null_value_not_allowed';
        END IF;
        PERFORM sqlvec._searched_column(rel, column_name, 'vector', sqlvec._dims(queries[i])), sqlvec._refuse_zero(queries[i], 'cosine');
        v_curve := sqlvec.relevance_parameters(model, queries[i]);
        slopes[i] := v_curve.slope; intercepts[i] := v_curve.intercept; exponents[i] := v_curve.exponent;
    END LOOP;

    v_hit := sqlvec._hit_statement(rel, v_alias, key_column, key_type, k);
    v_at := sqlvec._at_place(rel, v_alias, key_column, key_type);
    answer := v_hit.answer;
    SELECT string_agg(format('sqlvec._number(1::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s.%I %s %s))', v_alias, column_name, sqlvec._operator('cosine'),
                             format(CASE c.type_name WHEN 'halfvec' THEN 'sqlvec._halfvec(($3)[%s])' ELSE '($3)[%s]' END, i)), ', ' ORDER BY i)
    INTO v_cosines FROM generate_series(1, cardinality(queries)) AS i, sqlvec._column(rel, column_name) AS c;
    gather := format(
        'SELECT pg_catalog.array_agg("sqlvec hit".row_id) AS row_ids, pg_catalog.array_agg("sqlvec hit".row_table) AS row_tables, '
        'pg_catalog.array_agg(ARRAY[%s]) AS cosines FROM unnest($1::%s, $1, $2) AS "sqlvec hit" (place, row_id, row_table) JOIN %s AS %s ON %s',
        v_cosines, v_at.places, sqlvec._qualified(rel), v_alias, v_at.condition);
END
$body$;

-- The last of so many distances; NULL where there are fewer: then every row was found.
CREATE OR REPLACE FUNCTION sqlvec._last_distance(distances float8[], depth int) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN distances[depth];

CREATE OR REPLACE FUNCTION sqlvec._distinct_places(row_ids text[], row_tables oid[], OUT ids text[], OUT tables oid[])
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(p.row_id), array_agg(p.row_table) FROM (SELECT DISTINCT u.row_id, u.row_table FROM unnest(row_ids, row_tables) AS u (row_id, row_table)) AS p;
END;

-- Relevance of rows by their cosines, a list for each row, NULL below min_relevance. Nothing can be missing
-- where no other row has as much as the k-th: for a query that finds, such a row has at most the relevance
-- of the last one found, and under NOT it may have none.
CREATE OR REPLACE FUNCTION sqlvec._score_boolean(
    expression jsonb, finders int[], slopes float8[], intercepts float8[], exponents float8[], cosines float8[], last_distances float8[],
    k int, min_relevance float8, combine text, OUT relevances float8[], OUT done boolean
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_queries int := cardinality(slopes);
    v_hits int := coalesce(array_length(cosines, 1), 0);
    v_bound float8;
BEGIN
    relevances := sqlvec._boolean_relevances(expression, ARRAY(
        SELECT sqlvec.relevance_at(slopes[q], intercepts[q], exponents[q], cosines[r][q]) FROM generate_series(1, v_queries) AS q, generate_series(1, v_hits) AS r
        ORDER BY q, r), v_hits, combine);
    IF array_position(last_distances, NULL) IS NULL THEN
        v_bound := (sqlvec._boolean_relevances(sqlvec._negated_apart(expression, v_queries), ARRAY(
            SELECT coalesce((SELECT sqlvec.relevance_at(slopes[q], intercepts[q], exponents[q], 1 - l.distance)
                             FROM unnest(finders, last_distances) AS l (finder, distance) WHERE l.finder = q), 0)
            FROM generate_series(1, 2 * v_queries) AS q ORDER BY q), 1, combine))[1];
    END IF;
    done := v_bound IS NULL OR coalesce(v_bound < min_relevance, false)
            OR (SELECT count(*) >= k FROM unnest(relevances) AS r WHERE r >= v_bound);
    relevances := ARRAY(SELECT CASE WHEN min_relevance IS NULL OR r >= min_relevance THEN r END FROM unnest(relevances) AS r);
END
$body$;

-- How many rows each query gives next; NULL for no more. No rows at all say that none is relevant, and so
-- may only be answered once everything has been read, unless the caller has said how much to read.
CREATE OR REPLACE FUNCTION sqlvec._boolean_depth(depth int, most int, found text[]) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN most IS NOT NULL AND depth < most THEN least(4 * depth, most)
            WHEN most IS NOT NULL AND depth < 1000000 AND coalesce(cardinality(found), 0) = 0 THEN least(16 * depth, 1000000) END;

-- The search up to the statement that answers its rows or keys. STABLE, so that every query sees the snapshot
-- of the statement that searches. No SET: the caller's where_sql and policies run inside.
CREATE OR REPLACE FUNCTION sqlvec._run_boolean(
    rel_type regtype, column_name text, queries vector[], expression jsonb, k int, filter jsonb, where_sql text, params text[],
    candidates int, oversample float8, model text, min_relevance float8, mode text, combine text, key_column text, key_type regtype,
    OUT answer text, OUT row_ids text[], OUT row_tables oid[], OUT relevances float8[], OUT complete boolean
) LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_depth int;
    v_finder int;
    v_leg pg_catalog.record;
    v_last pg_catalog.float8[];
    v_places pg_catalog.record;
    v_rows pg_catalog.record;
    v_scored pg_catalog.record;
    v_best pg_catalog.record;
BEGIN
    v_plan := sqlvec._plan_boolean(sqlvec._relation_of(rel_type), column_name, queries, expression, k, candidates, oversample, model, min_relevance, combine, mode,
                                   key_column, key_type);
    v_depth := v_plan.depth;
    LOOP
        row_ids := '{}'; row_tables := '{}'; v_last := '{}'; complete := true;
        FOREACH v_finder IN ARRAY v_plan.finders LOOP
            v_leg := sqlvec._run_vector(rel_type, column_name, (v_plan.queries)[v_finder], k, v_depth, filter, where_sql, params, 'cosine', mode, key_column, key_type);
            row_ids := pg_catalog.array_cat(row_ids, v_leg.row_ids);
            row_tables := pg_catalog.array_cat(row_tables, v_leg.row_tables);
            v_last := pg_catalog.array_append(v_last, sqlvec._last_distance(v_leg.scores, v_depth));
            complete := complete AND v_leg.complete;
        END LOOP;
        v_places := sqlvec._distinct_places(row_ids, row_tables);
        EXECUTE v_plan.gather INTO v_rows USING v_places.ids, v_places.tables, v_plan.queries;
        v_scored := sqlvec._score_boolean(expression, v_plan.finders, v_plan.slopes, v_plan.intercepts, v_plan.exponents, v_rows.cosines, v_last, k, min_relevance, combine);
        v_best := sqlvec._best_hits(v_scored.relevances, v_rows.row_ids, v_rows.row_tables, k);
        EXIT WHEN v_scored.done;
        v_depth := sqlvec._boolean_depth(v_depth, v_plan.most, v_best.row_ids);
        EXIT WHEN v_depth IS NULL;
    END LOOP;
    answer := v_plan.answer;
    row_ids := v_best.row_ids; row_tables := v_best.row_tables; relevances := v_best.scores;
    complete := complete AND v_scored.done;
END
$body$;

-- PL/pgSQL refuses an argument and a column of one name, `relevance`; SQL does not.
CREATE OR REPLACE FUNCTION sqlvec._boolean_search(
    rel anyelement, column_name text, queries vector[], expression jsonb, k int, filter jsonb, where_sql text, params text[],
    candidates int, oversample float8, model text, min_relevance float8, mode text, combine text
) RETURNS TABLE (hit anyelement, relevance float8, complete boolean)
LANGUAGE plpgsql STABLE ROWS 10
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_boolean(pg_catalog.pg_typeof(rel), column_name, queries, expression, k, filter, where_sql, params, candidates, oversample, model,
                                 min_relevance, mode, combine, NULL, NULL);
    RETURN QUERY EXECUTE v_run.answer USING v_run.row_ids, v_run.row_tables, v_run.relevances, v_run.complete;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.boolean_search(
    rel anyelement, column_name text, queries vector[], expression jsonb, k int = 10, filter jsonb = NULL, where_sql text = NULL, params text[] = NULL,
    candidates int = NULL, oversample float8 = NULL, relevance text = NULL, min_relevance float8 = NULL, mode text = 'auto', combine text = 'product'
) RETURNS TABLE (hit anyelement, relevance float8, complete boolean)
LANGUAGE sql STABLE ROWS 10
AS $body$
    SELECT * FROM sqlvec._boolean_search(boolean_search.rel, boolean_search.column_name, boolean_search.queries, boolean_search.expression, boolean_search.k,
        boolean_search.filter, boolean_search.where_sql, boolean_search.params, boolean_search.candidates, boolean_search.oversample, boolean_search.relevance,
        boolean_search.min_relevance, boolean_search.mode, boolean_search.combine)
$body$;

COMMENT ON FUNCTION sqlvec.boolean_search(anyelement, text, vector[], jsonb, int, jsonb, text, text[], int, float8, text, float8, text, text) IS
    'Rows of table rel (a typed NULL row, NULL::doc) by their relevance to several query vectors, combined as sqlvec.boolean_relevance does: expression is JSON such as {"and": [1, {"not": 2}]} over positions in queries. relevance names the model of the column, which is required; min_relevance cuts. Each query that is not under NOT finds candidates (or oversample x k) rows by cosine, by default the greater of 100 and 10 x k and up to 16 times as many where others could be as relevant; the cosines of all of these to all queries are exact. No rows is a legal answer. k, filter, where_sql, params and mode are as in sqlvec.vector_search. complete is false where rows that were not candidates could belong to the answer.';

-- key stands fifth because Postgres resolves the type of a result column from the position that its argument
-- has in the call.
CREATE OR REPLACE FUNCTION sqlvec._boolean_search_keys(
    rel anyelement, column_name text, queries vector[], expression jsonb, INOUT key anycompatible, k int, filter jsonb, where_sql text, params text[],
    candidates int, oversample float8, model text, min_relevance float8, mode text, combine text, key_column text,
    OUT relevance float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 10
AS $body$
DECLARE
    v_run pg_catalog.record;
BEGIN
    v_run := sqlvec._run_boolean(pg_catalog.pg_typeof(rel), column_name, queries, expression, k, filter, where_sql, params, candidates, oversample, model,
                                 min_relevance, mode, combine, key_column, pg_catalog.pg_typeof(key));
    RETURN QUERY EXECUTE v_run.answer USING v_run.row_ids, v_run.row_tables, v_run.relevances, v_run.complete;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.boolean_search_keys(
    rel anyelement, column_name text, queries vector[], expression jsonb, INOUT key anycompatible, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, relevance text = NULL, min_relevance float8 = NULL, mode text = 'auto',
    combine text = 'product', key_column text = NULL, OUT relevance float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE sql STABLE ROWS 10
AS $body$
    SELECT * FROM sqlvec._boolean_search_keys(boolean_search_keys.rel, boolean_search_keys.column_name, boolean_search_keys.queries,
        boolean_search_keys.expression, boolean_search_keys.key, boolean_search_keys.k, boolean_search_keys.filter, boolean_search_keys.where_sql,
        boolean_search_keys.params, boolean_search_keys.candidates, boolean_search_keys.oversample, boolean_search_keys.relevance,
        boolean_search_keys.min_relevance, boolean_search_keys.mode, boolean_search_keys.combine, boolean_search_keys.key_column)
$body$;

COMMENT ON FUNCTION sqlvec.boolean_search_keys(anyelement, text, vector[], jsonb, anycompatible, int, jsonb, text, text[], int, float8, text, float8, text, text, text) IS
    'The rows of sqlvec.boolean_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands right after the expression (key => NULL::uuid): needs SELECT on the searched and key columns only.';
