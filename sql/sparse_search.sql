-- sqlvec.sparse_search, sqlvec.sparse_search_keys: nearest rows of a sparsevec column.

CREATE OR REPLACE FUNCTION sqlvec._sparse_dimensions(x sparsevec) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN split_part(x::text, '/', 2)::int;

CREATE OR REPLACE FUNCTION sqlvec.sparse_search(
    rel anyelement, column_name text, query sparsevec, k int = 10, filter jsonb = NULL, where_sql text = NULL,
    params text[] = NULL, candidates int = NULL, oversample float8 = NULL, metric text = NULL, mode text = 'auto'
) RETURNS TABLE (hit anyelement, distance float8, complete boolean)
LANGUAGE plpgsql ROWS 10
AS $body$
DECLARE
    v_plan pg_catalog.record;
    v_before pg_catalog.text[];
BEGIN
    v_plan := sqlvec._plan_search(
        pg_catalog.pg_typeof(rel), column_name, 'sparsevec', sqlvec._sparse_dimensions(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, NULL, NULL, pg_catalog.current_setting('search_path'));
    v_before := sqlvec._set_scan(v_plan.settings);
    RETURN QUERY EXECUTE v_plan.statement USING params, query, v_plan.bound;
    IF NOT FOUND AND v_plan.fallback IS NOT NULL THEN
        RETURN QUERY EXECUTE v_plan.fallback USING params, query, v_plan.bound;
    END IF;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.sparse_search(anyelement, text, sparsevec, int, jsonb, text, text[], int, float8, text, text) IS
    'Rows of table rel nearest to query in a sparsevec column; metric l2, inner_product, cosine or l1. k 1 to 10000; filter is JSON over the columns, where_sql is trusted SQL over the bare table name with values ($1)[i] from params; candidates or oversample (x k) say how many rows are rescored; mode is auto, exact, or the name of a derived column or index. complete is false only when an index named by mode ended before k rows.';

-- key stands fourth because Postgres resolves the type of a result column from the position that
-- its argument has in the call.
CREATE OR REPLACE FUNCTION sqlvec.sparse_search_keys(
    rel anyelement, column_name text, query sparsevec, INOUT key anycompatible, k int = 10, filter jsonb = NULL, where_sql text = NULL,
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
        pg_catalog.pg_typeof(rel), column_name, 'sparsevec', sqlvec._sparse_dimensions(query), k, filter,
        where_sql, params, candidates, oversample, metric, mode, key_column, pg_catalog.pg_typeof(key),
        pg_catalog.current_setting('search_path'));
    v_before := sqlvec._set_scan(v_plan.settings);
    RETURN QUERY EXECUTE v_plan.statement USING params, query, v_plan.bound;
    IF NOT FOUND AND v_plan.fallback IS NOT NULL THEN
        RETURN QUERY EXECUTE v_plan.fallback USING params, query, v_plan.bound;
    END IF;
    v_before := sqlvec._set_scan(v_before);
END
$body$;

COMMENT ON FUNCTION sqlvec.sparse_search_keys(anyelement, text, sparsevec, anycompatible, int, jsonb, text, text[], int, float8, text, text, text) IS
    'The rows of sqlvec.sparse_search as values of the key column (by default the primary key) cast to the type of key, a typed NULL that stands right after the query (key => NULL::uuid): needs SELECT on the searched and key columns only.';
