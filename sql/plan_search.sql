-- The search engine: one statement is planned and written for every search function.
--
-- Candidates carry only where the row is (ctid, tableoid, or its key) and its exact distance; whole
-- rows are fetched after the final LIMIT. Every identifier is quoted, every value is bound: $1 is the
-- caller's params, $2 the query, $3 the values of filter.

CREATE OR REPLACE FUNCTION sqlvec._relation_of(rel_type regtype) RETURNS oid
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_rel oid := (SELECT nullif(t.typrelid, 0) FROM pg_type AS t WHERE t.oid = rel_type);
BEGIN
    IF v_rel IS NULL THEN
        RAISE EXCEPTION 'rel is the table as a typed NULL row, not a value of type %', rel_type
            USING ERRCODE = 'datatype_mismatch', HINT = 'E.g. sqlvec.vector_search(NULL::doc, ''embedding'', …).';
    END IF;
    RETURN v_rel;
END
$body$;

-- The single column that keys a table, checked or found.
CREATE OR REPLACE FUNCTION sqlvec._key_column(rel oid, key_column text) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_keys name[];
BEGIN
    IF key_column IS NOT NULL THEN
        PERFORM sqlvec._column(rel, key_column);
        RETURN key_column;
    END IF;
    v_keys := ARRAY(SELECT a.attname FROM pg_index AS i, unnest(i.indkey) AS k (attnum)
                    JOIN pg_attribute AS a ON a.attnum = k.attnum
                    WHERE i.indrelid = rel AND i.indisprimary AND a.attrelid = rel);
    IF cardinality(v_keys) <> 1 THEN
        RAISE EXCEPTION 'table % has % primary key', sqlvec._qualified(rel),
            CASE cardinality(v_keys) WHEN 0 THEN 'no' ELSE 'a composite' END
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Name a unique column: key_column => ''…''; or use the search that returns whole rows.';
    END IF;
    RETURN v_keys[1];
END
$body$;

-- Candidates that a code needs, as a multiple of k and at least so many, for a recall@10 of about
-- 0.985 on 11,000 real texts in 384 dimensions (python -m benchmarks quantized): ten candidates
-- are enough for made-up clusters, real neighbours lie closer together.
CREATE OR REPLACE FUNCTION sqlvec._default_candidates(kind text, k int) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE kind
    WHEN 'source' THEN k
    WHEN 'halfvec' THEN greatest(2 * k, 20)
    WHEN 'truncate' THEN greatest(10 * k, 100)
    WHEN 'linear' THEN greatest(20 * k, 200)
    ELSE greatest(40 * k, 400)
END;

-- Rows the planner expects from a table under a condition, which may hold the caller's SQL and so
-- is read under the caller's search_path.
CREATE OR REPLACE FUNCTION sqlvec._estimated_rows(statement text, params text[], bound text[], caller_path text) RETURNS float8
LANGUAGE plpgsql
AS $body$
DECLARE
    v_path text := pg_catalog.current_setting('search_path');
    v_plan jsonb;
BEGIN
    PERFORM pg_catalog.set_config('search_path', caller_path, true);
    EXECUTE 'EXPLAIN (FORMAT JSON) ' || statement INTO v_plan USING params, NULL::int, bound;
    PERFORM pg_catalog.set_config('search_path', v_path, true);
    RETURN v_plan -> 0 -> 'Plan' ->> 'Plan Rows';
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._plan_search(
    rel oid, column_name text, query_type text, query_dimensions int, k int, filter jsonb, where_sql text,
    params text[], candidates int, oversample float8, INOUT metric text, INOUT mode text, key_column text, key_type regtype, caller_path text,
    OUT statement text,       -- answers (hit or key, distance, complete)
    OUT bound text[],         -- values for $3
    OUT settings text[],      -- what sqlvec._set_scan sets; NULL without an index
    OUT way text, OUT index_name text, OUT candidate_count int, OUT reason text, OUT condition text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_class record;
    v_source record;
    v_alias text;
    v_from text;
    v_query text := '$2';
    v_distance text;
    v_carried text;
    v_carry text;
    v_order text;
    v_fetch text;
    v_exact text;
    v_code text;
    v_ways sqlvec._way[];
    v_way sqlvec._way;
    v_usable sqlvec._way[] := '{}';
    v_total float8;
    v_matching float8;
    v_conditional boolean;
BEGIN
    bound := '{}';
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'k is a number from 1 to 10000, not %', k USING ERRCODE = 'invalid_parameter_value';
    ELSIF candidates IS NOT NULL AND oversample IS NOT NULL THEN
        RAISE EXCEPTION 'candidates and oversample say the same thing: give one' USING ERRCODE = 'invalid_parameter_value';
    ELSIF candidates < k OR candidates > 1000000 THEN
        RAISE EXCEPTION 'candidates is a number from k (%) to 1000000, not %', k, candidates USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT (oversample >= 1 AND oversample <= 1000) THEN
        RAISE EXCEPTION 'oversample is a number from 1 to 1000, not %', oversample USING ERRCODE = 'invalid_parameter_value';
    ELSIF query_dimensions IS NULL THEN
        RAISE EXCEPTION 'the query is NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF mode IS NULL OR column_name IS NULL THEN
        RAISE EXCEPTION 'column_name and mode cannot be NULL' USING ERRCODE = 'null_value_not_allowed';
    END IF;

    SELECT c.relname, c.relkind, c.reltuples INTO v_class FROM pg_class AS c WHERE c.oid = rel;
    v_source := sqlvec._column(rel, column_name);
    IF v_source.type_name <> query_type AND NOT (query_type = 'vector' AND v_source.type_name = 'halfvec') THEN
        RAISE EXCEPTION 'column "%" of table % is of type %, which a % query cannot search',
            column_name, sqlvec._qualified(rel), format_type(v_source.type_oid, NULL), query_type
            USING ERRCODE = 'datatype_mismatch',
                  HINT = CASE v_source.type_name WHEN 'vector' THEN 'Use sqlvec.vector_search.' WHEN 'halfvec' THEN 'Use sqlvec.vector_search.'
                         WHEN 'bit' THEN 'Use sqlvec.bit_search.' WHEN 'sparsevec' THEN 'Use sqlvec.sparse_search.'
                         ELSE 'Columns that can be searched are of type vector, halfvec, sparsevec or bit(n).' END;
    ELSIF v_source.dimensions <> query_dimensions THEN
        RAISE EXCEPTION 'column "%" of table % has % dimensions, the query has %',
            column_name, sqlvec._qualified(rel), v_source.dimensions, query_dimensions
            USING ERRCODE = 'data_exception';
    END IF;
    v_ways := sqlvec._ways(rel, column_name);
    metric := sqlvec._checked_metric(
        coalesce(metric, sqlvec._default_metric(rel, column_name, v_source.type_name, v_ways)), v_source.type_name);

    v_alias := quote_ident(v_class.relname);
    v_from := format('%s AS %s', sqlvec._qualified(rel), v_alias);
    IF v_source.type_name = 'halfvec' THEN
        v_query := 'sqlvec._halfvec($2)';
    END IF;
    v_distance := format('%s.%I %s %s', v_alias, column_name, sqlvec._operator(metric), v_query);

    condition := 'true';
    IF filter IS NOT NULL THEN
        SELECT f.bound, f.condition INTO bound, condition FROM sqlvec._filter(rel, v_class.relname, filter, '$3', bound) AS f;
    END IF;
    IF where_sql IS NOT NULL THEN
        condition := format(E'%s AND (%s\n)', condition, where_sql);
    END IF;

    IF key_type IS NOT NULL THEN
        v_carried := 'key';
        v_carry := format('%s.%I::%s AS key', v_alias, sqlvec._key_column(rel, key_column), key_type);
        v_fetch := 'h.key';
        v_order := 'distance, key';
    ELSIF v_class.relkind IN ('r', 'p', 'm') THEN
        v_carried := 'row_id, row_table';
        v_carry := format('%1$s.ctid AS row_id, %1$s.tableoid AS row_table', v_alias);
        v_fetch := format('(SELECT d FROM %s AS d WHERE d.ctid = h.row_id AND d.tableoid = h.row_table)',
                                     sqlvec._qualified(rel));
        v_order := 'distance, row_table, row_id';
    ELSE
        -- Views and foreign tables have no row address.
        v_carried := 'row_value';
        v_carry := v_alias || ' AS row_value';
        v_fetch := 'h.row_value';
        v_order := 'distance';
    END IF;

    -- Adding zero keeps an approximate index out of an exact search.
    v_exact := format('SELECT %s, (%s) + 0::float8 AS distance FROM %s WHERE %s AND %s.%I IS NOT NULL',
                                 v_carry, v_distance, v_from, condition, v_alias, column_name);

    -- Which way? Exact, or the first index that fits.
    v_conditional := condition <> 'true' OR row_security_active(rel);
    IF mode = 'exact' THEN
        way := 'exact';
        reason := 'asked for';
    ELSE
        FOREACH v_way IN ARRAY v_ways LOOP
            IF v_way.index_name IS NOT NULL AND coalesce(v_way.metric, metric) = metric THEN
                v_usable := v_usable || v_way;
            END IF;
        END LOOP;
        -- They come in order of preference.
        v_way := NULL;
        FOR v_index IN 1 .. cardinality(v_usable) LOOP
            IF (mode = 'auto' AND NOT v_usable[v_index].partial)
               OR mode IN (v_usable[v_index].index_name, v_usable[v_index].way) THEN
                v_way := v_usable[v_index];
                EXIT;
            END IF;
        END LOOP;
        IF v_way.way IS NULL THEN
            IF mode <> 'auto' THEN
                RAISE EXCEPTION 'mode "%" is neither auto, exact, nor a derived column or index that can search column "%" of table % by %',
                    mode, column_name, sqlvec._qualified(rel), metric
                    USING ERRCODE = 'invalid_parameter_value',
                          HINT = coalesce('There are: ' || (SELECT string_agg(concat_ws(' by index ', nullif(w.way, 'source'), w.index_name), ', ')
                                                            FROM unnest(v_usable) AS w) || '.',
                                          'It has no valid index; sqlvec.plan_index proposes some.');
            END IF;
            way := 'exact';
            reason := format('no valid index serves %s on this column', metric);
        ELSE
            way := v_way.way;
            index_name := v_way.index_name;
            candidate_count := coalesce(candidates, ceil(k::float8 * oversample)::int, sqlvec._default_candidates(v_way.kind, k));
            reason := CASE WHEN mode = 'auto' THEN 'the first index that fits' ELSE 'asked for' END;
        END IF;
    END IF;

    -- Reading every match is cheaper than the graph when the graph would be walked further than
    -- there are matches: about candidates * total / matching rows.
    IF mode = 'auto' AND way <> 'exact' THEN
        v_total := CASE WHEN v_class.reltuples > 0 THEN v_class.reltuples
                        ELSE sqlvec._estimated_rows('SELECT FROM ' || v_from, params, bound, caller_path) END;
        v_matching := CASE WHEN v_conditional
                           THEN sqlvec._estimated_rows(format('SELECT FROM %s WHERE %s', v_from, condition), params, bound, caller_path)
                           ELSE v_total END;
        IF v_matching * v_matching <= candidate_count::float8 * v_total THEN
            reason := format('about %s of %s rows match: cheaper to read than to find %s of them in %s',
                                        v_matching, v_total, candidate_count, index_name);
            way := 'exact';
            index_name := NULL;
        ELSIF v_conditional THEN
            reason := format('%s; about %s of %s rows match', reason, v_matching, v_total);
        END IF;
    END IF;

    IF way = 'exact' THEN
        candidate_count := NULL;
        statement := format(
            'SELECT %1$s, h.distance, true FROM (SELECT * FROM (%2$s) AS s ORDER BY %3$s LIMIT %4$s) AS h '
            'WHERE h.distance <> ''NaN'' ORDER BY %3$s',
            v_fetch, v_exact, v_order, k);
        RETURN;
    END IF;

    -- Candidates are sorted by exact distance in the end: the scan may hand them over in any order.
    settings := ARRAY[
        greatest(least(candidate_count, 1000), nullif(current_setting('hnsw.ef_search', true), '')::int)::text,
        'relaxed_order', 'relaxed_order', 'off'];
    v_code := CASE WHEN v_way.column_used IS NULL THEN v_way.expression
                   ELSE format('%s.%I', v_alias, v_way.column_used) END;
    -- Distances are exact whatever finds the rows; what has no code yet is compared one by one.
    statement := format(
        E'WITH found AS MATERIALIZED (\n  (SELECT %1$s, %2$s AS distance FROM %3$s\n   WHERE %4$s AND %5$s IS NOT NULL\n'
        '   ORDER BY %5$s %6$s %7$s LIMIT %8$s)',
        v_carry, v_distance, v_from, condition, v_code, sqlvec._operator(v_way.code_metric),
        coalesce('(SELECT ' || v_way.query_expression || ')', v_query), candidate_count);
    IF v_way.column_used <> column_name THEN
        statement := statement || format(
            E'\n  UNION ALL\n  (SELECT %1$s, (%2$s) + 0::float8 AS distance FROM %3$s\n   WHERE %4$s AND %5$s IS NULL AND %6$s.%7$I IS NOT NULL\n'
            '   ORDER BY distance LIMIT %8$s)',
            v_carry, v_distance, v_from, condition, v_code, v_alias, column_name, k);
    END IF;
    statement := statement || format(
        E'\n), counted AS (SELECT count(*) AS n FROM found WHERE distance <> ''NaN'')');
    IF mode = 'auto' THEN
        -- The scan of an index may end before k rows passed the filter: then, and only then, all
        -- matches are read, so that a short answer means few matches.
        statement := statement || format(
            E',\nexact AS (%s AND (SELECT n FROM counted) < %s)\n'
            'SELECT %s, h.distance, true FROM (\n'
            '  SELECT %s, distance FROM found WHERE (SELECT n FROM counted) >= %s UNION ALL SELECT %s, distance FROM exact\n'
            '  ORDER BY %s LIMIT %s) AS h\nWHERE h.distance <> ''NaN'' ORDER BY %s',
            v_exact, k, v_fetch, v_carried, k, v_carried, v_order, k, v_order);
    ELSE
        -- An index that was asked for is a budget: say so when it ran out.
        statement := statement || format(
            E'\nSELECT %1$s, h.distance, (SELECT n FROM counted) >= %2$s FROM (SELECT * FROM found ORDER BY %3$s LIMIT %2$s) AS h\n'
            'WHERE h.distance <> ''NaN'' ORDER BY %3$s',
            v_fetch, k, v_order);
    END IF;
END
$body$;

-- Calls into pgvector, whose settings cannot be read before its library is loaded.
CREATE OR REPLACE FUNCTION sqlvec._load_pgvector() RETURNS boolean
LANGUAGE sql STABLE
RETURN hamming_distance(B'1', B'1') = 0;

-- Settings for an index scan, for this transaction; answers what they were. NULL changes nothing.
-- jit is off because the branch that is hardly ever run would make the planner ask for it.
CREATE OR REPLACE FUNCTION sqlvec._set_scan(settings text[]) RETURNS text[]
LANGUAGE plpgsql
AS $body$
DECLARE
    v_before text[];
BEGIN
    IF settings IS NULL OR NOT sqlvec._load_pgvector() THEN
        RETURN NULL;
    END IF;
    v_before := ARRAY[pg_catalog.current_setting('hnsw.ef_search'), pg_catalog.current_setting('hnsw.iterative_scan'),
                      pg_catalog.current_setting('ivfflat.iterative_scan'), pg_catalog.current_setting('jit')];
    PERFORM pg_catalog.set_config('hnsw.ef_search', settings[1], true),
            pg_catalog.set_config('hnsw.iterative_scan', settings[2], true),
            pg_catalog.set_config('ivfflat.iterative_scan', settings[3], true),
            pg_catalog.set_config('jit', settings[4], true);
    RETURN v_before;
END
$body$;
