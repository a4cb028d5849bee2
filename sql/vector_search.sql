-- sqlvec.vector_search, sqlvec.vector_search_keys: nearest rows of a vector or halfvec column.

-- The query, unless it is a zero vector, to which a cosine is undefined: every distance would be NaN.
CREATE OR REPLACE FUNCTION sqlvec._refuse_zero(query vector, metric text) RETURNS vector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    -- The product alone may be zero for want of float32 range.
    IF metric = 'cosine' AND sqlvec._dot(query, query) = 0::float8 AND (sqlvec._integer_parts(query)).unit IS NULL THEN
        RAISE EXCEPTION 'the cosine distance to a zero vector is undefined' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN _refuse_zero.query;
END
$body$;

-- The cosine distance up to which rows are wanted, with room for rounding; infinite without a model of cosines.
CREATE OR REPLACE FUNCTION sqlvec._farthest(model text, query vector, min_relevance float8, metric text) RETURNS float8
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN CASE WHEN model IS NULL OR metric <> 'cosine' THEN 'Infinity'
                -- A little less relevant: a flat curve turns what rounding does to a probability into distance.
                ELSE coalesce(sqlvec.relevance_bound(model, query, greatest(min_relevance - 1e-12, 0)), 'Infinity') END;
END
$body$;

-- The search as one leg of several: places and distances of `depth` rows, of which k are to be sure, the
-- nearest first. STABLE, so that it sees the snapshot of the statement that searches. No SET: the caller's
-- where_sql and policies run inside.
CREATE OR REPLACE FUNCTION sqlvec._run_vector(
    rel_type regtype, column_name text, query vector, k int, depth int, filter jsonb, where_sql text, params text[], metric text, mode text,
    key_column text, key_type regtype,
    model text = NULL, min_relevance float8 = NULL, -- what is less relevant by this model is left out
    OUT row_ids text[], OUT row_tables oid[], OUT scores float8[], OUT complete boolean, OUT metric_used text
) LANGUAGE plpgsql STABLE
AS $body$
DECLARE
    p pg_catalog.record;
    v_before pg_catalog.text[];
    v_arrays CONSTANT pg_catalog.text := 'SELECT pg_catalog.array_agg(a.row_id) FILTER (WHERE a.near) AS row_ids, pg_catalog.array_agg(a.row_table) FILTER (WHERE a.near) AS row_tables, '
                              'pg_catalog.array_agg(a.distance) FILTER (WHERE a.near) AS distances, pg_catalog.bool_and(a.complete) AS complete '
                              -- The nearest stays in any case: how relevant it is says why nothing is left.
                              'FROM (SELECT f.*, f.distance OPERATOR(pg_catalog.<=) $4 OR pg_catalog.row_number() OVER () OPERATOR(pg_catalog.=) 1 AS near '
                              'FROM (%s) AS f (row_id, row_table, distance, complete)) AS a';
    v_found pg_catalog.record;
    v_farthest pg_catalog.float8;
BEGIN
    p := sqlvec._plan_search(
        rel_type, column_name, 'vector', sqlvec._dims(query), k, filter, where_sql, params, NULL, NULL, metric, mode,
        key_column, key_type, pg_catalog.current_setting('search_path'), depth, true);
    query := sqlvec._refuse_zero(query, p.metric);
    v_farthest := sqlvec._farthest(model, query, min_relevance, p.metric);
    v_before := sqlvec._set_scan(p.settings);
    EXECUTE pg_catalog.format(v_arrays, p.statement) INTO v_found USING params, query, p.bound, v_farthest;
    IF v_found.complete IS NULL AND p.fallback IS NOT NULL THEN
        EXECUTE pg_catalog.format(v_arrays, p.fallback) INTO v_found USING params, query, p.bound, v_farthest;
    END IF;
    v_before := sqlvec._set_scan(v_before);
    row_ids := v_found.row_ids; row_tables := v_found.row_tables; scores := v_found.distances;
    complete := coalesce(v_found.complete, true);
    metric_used := p.metric;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec.vector_search(
    rel anyelement, column_name text, query vector, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, metric text = NULL, mode text = 'auto'
) RETURNS TABLE (hit anyelement, distance float8, complete boolean)
LANGUAGE plpgsql ROWS 10
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_before pg_catalog.text[];
BEGIN
    v_plan := sqlvec._plan_search(
        pg_catalog.pg_typeof(rel), column_name, 'vector', sqlvec._dims(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, NULL, NULL, pg_catalog.current_setting('search_path'));
    query := sqlvec._refuse_zero(query, v_plan.metric);
    v_before := sqlvec._set_scan(v_plan.settings);
    RETURN QUERY EXECUTE v_plan.statement USING params, query, v_plan.bound;
    IF NOT FOUND AND v_plan.fallback IS NOT NULL THEN
        RETURN QUERY EXECUTE v_plan.fallback USING params, query, v_plan.bound;
    END IF;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.vector_search(anyelement, text, vector, int, jsonb, text, text[], int, float8, text, text) IS
    'Rows of table rel (a typed NULL row, NULL::doc) nearest to query in a vector or halfvec column, by exact distance; metric l2, inner_product, cosine or l1. k 1 to 10000; filter is JSON over the columns, where_sql is trusted SQL over the bare table name with values ($1)[i] from params; candidates or oversample (x k) say how many rows are rescored; mode is auto, exact, or the name of a derived column or index. complete is false only when an index named by mode ended before k rows.';

-- key stands fourth because Postgres resolves the type of a result column from the position that
-- its argument has in the call.
CREATE OR REPLACE FUNCTION sqlvec.vector_search_keys(
    rel anyelement, column_name text, query vector, INOUT key anycompatible, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, metric text = NULL, mode text = 'auto',
    key_column text = NULL, OUT distance float8, OUT complete boolean
) RETURNS SETOF record
LANGUAGE plpgsql ROWS 10
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_before pg_catalog.text[];
BEGIN
    v_plan := sqlvec._plan_search(
        pg_catalog.pg_typeof(rel), column_name, 'vector', sqlvec._dims(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, key_column, pg_catalog.pg_typeof(key),
        pg_catalog.current_setting('search_path'));
    query := sqlvec._refuse_zero(query, v_plan.metric);
    v_before := sqlvec._set_scan(v_plan.settings);
    RETURN QUERY EXECUTE v_plan.statement USING params, query, v_plan.bound;
    IF NOT FOUND AND v_plan.fallback IS NOT NULL THEN
        RETURN QUERY EXECUTE v_plan.fallback USING params, query, v_plan.bound;
    END IF;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.vector_search_keys(anyelement, text, vector, anycompatible, int, jsonb, text, text[], int, float8, text, text, text) IS
    'The rows of sqlvec.vector_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands right after the query (key => NULL::uuid): needs SELECT on the searched and key columns only.';
