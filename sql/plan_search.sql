-- The search engine: one plan for every search function.
--
-- Every identifier is quoted, every value is bound: $1 is the caller's params, $2 the query, $3 the
-- values of filter.

-- Candidates that a code needs, as a multiple of k and at least so many. Signs of 384 dimensions
-- reach a recall@10 of 0.98 with 400 candidates on 11,611 real texts, where made-up clusters need
-- 100 (python -m benchmarks quantized): real neighbours lie closer together. Four levels need
-- 100, but a graph built with pgvector's default ef_construction finds those only among 300.
CREATE OR REPLACE FUNCTION sqlvec._default_candidates(kind text, levels int, k int) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE kind
    WHEN 'source' THEN k
    WHEN 'halfvec' THEN greatest(2 * k, 20)
    WHEN 'truncate' THEN greatest(10 * k, 100)
    WHEN 'linear' THEN greatest(20 * k, 200)
    ELSE greatest(k, 10) * CASE levels WHEN 1 THEN 40 ELSE 30 END
END;

-- Rows of a table that the planner expects under a condition, and its cost of reading them. Under the
-- caller's search_path: the condition may hold his SQL, and policies, expressions of indexes and
-- constraints of the table are looked at on the way. As JSON, because names may hold anything.
CREATE OR REPLACE FUNCTION sqlvec._estimate(
    statement text, params text[], bound text[], caller_path text, OUT matching float8, OUT cost float8
) LANGUAGE plpgsql
AS $body$
DECLARE
    v_path pg_catalog.text := pg_catalog.current_setting('search_path');
    v_now pg_catalog.text; -- assigned to, where PERFORM would run a query
    v_plan pg_catalog.json;
BEGIN
    v_now := pg_catalog.set_config('search_path', caller_path, true);
    EXECUTE pg_catalog.format('EXPLAIN (FORMAT JSON) %s', statement) INTO v_plan USING params, NULL::int, bound;
    v_now := pg_catalog.set_config('search_path', v_path, true);
    matching := pg_catalog.json_extract_path_text(v_plan, '0', 'Plan', 'Plan Rows');
    cost := pg_catalog.json_extract_path_text(v_plan, '0', 'Plan', 'Total Cost');
END
$body$;

-- The first way that serves the metric and the mode; NULL when mode is auto and there is none.
CREATE OR REPLACE FUNCTION sqlvec._choose_way(ways sqlvec._way[], rel oid, column_name text, metric text, mode text) RETURNS sqlvec._way
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_way sqlvec._way;
    v_usable text[] := '{}';
BEGIN
    FOREACH v_way IN ARRAY ways LOOP
        CONTINUE WHEN v_way.index_name IS NULL OR v_way.metric <> metric;
        IF (mode = 'auto' AND NOT v_way.partial) OR mode IN (v_way.index_name, v_way.way) THEN
            RETURN v_way;
        END IF;
        v_usable := v_usable || concat_ws(' by index ', nullif(v_way.way, 'source'), v_way.index_name);
    END LOOP;
    IF mode <> 'auto' THEN
        RAISE EXCEPTION 'mode "%" is neither auto, exact, nor a derived column or index that can search column "%" of table % by %',
            mode, column_name, sqlvec._qualified(rel), metric
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = CASE WHEN v_usable = '{}' THEN 'It has no valid index; sqlvec.plan_index proposes some.'
                              ELSE 'There are: ' || array_to_string(v_usable, ', ') || '.' END;
    END IF;
    RETURN NULL;
END
$body$;

-- The condition, for the end of a statement, that no row of a table `source` lacks its code.
--
-- A btree that was built empty has one page until the first entry comes, so the size of the partial
-- index over such rows tells in a fraction of the time that planning a look into it takes. The size
-- is read while the statement runs: who wrote a row that its snapshot sees had made the index grow
-- before. indcheckxmin marks an index that may lack rows which an old snapshot still sees. 1978 is
-- int4_ops of btree: sqlvec._unfinished_index_sql indexes the constant 1. A table that is not alone has
-- children with rows that the index does not know.
CREATE OR REPLACE FUNCTION sqlvec._all_encoded(rel oid, alone boolean, source text, target_column name, source_column name) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_page int := current_setting('block_size');
    v_index oid;
BEGIN
    IF alone THEN
        SELECT i.indexrelid INTO v_index
        FROM pg_index AS i
        WHERE i.indrelid = rel AND i.indpred IS NOT NULL AND i.indisvalid AND NOT i.indcheckxmin AND i.indclass[0] = 1978
          AND pg_relation_size(i.indexrelid) = v_page
          AND pg_get_expr(i.indpred, rel) = format('((%I IS NULL) AND (%I IS NOT NULL))', target_column, source_column)
        LIMIT 1;
    END IF;
    IF v_index IS NULL THEN
        RETURN format('NOT EXISTS (SELECT FROM %s WHERE %I IS NULL AND %I IS NOT NULL)', source, target_column, source_column);
    END IF;
    RETURN format('(SELECT pg_catalog.pg_relation_size(%s) OPERATOR(pg_catalog.=) %s)', v_index, v_page);
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._plan_search(
    rel_type regtype, column_name text, query_type text, query_dimensions int, k int, filter jsonb, where_sql text, params text[],
    candidates int, oversample float8, INOUT metric text, mode text, key_column text, key_type regtype, caller_path text,
    depth int = NULL,         -- rows to answer, of which k are to be sure; NULL is k
    places boolean = false,   -- answer where rows are, as sqlvec._hit_statement does, instead of rows or keys
    OUT statement text,       -- answers (hit or key, distance, complete); with places (row_id, row_table, distance, complete)
    OUT fallback text,        -- is run when the statement answers nothing; NULL where that is the answer
    OUT bound text[],         -- values for $3
    OUT settings text[],      -- what sqlvec._set_scan sets; NULL without an index
    OUT way text, OUT index_name text, OUT candidate_count int, OUT reason text, OUT condition text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
-- Expressions of indexes are compared as they are printed.
SET quote_all_identifiers = off
AS $body$
DECLARE
    v_checked CONSTANT boolean := sqlvec._check_search(column_name, query_dimensions, k, candidates, oversample, mode);
    rel oid;
    v_class record;
    v_column record;
    v_filter record;
    v_estimate record;
    v_made record;
    v_type text;
    v_dimensions int;
    v_alias text;
    v_table text;
    v_from text;
    v_alone boolean;
    v_query text;
    v_key text;
    -- Of pgvector, quoted: under this search_path its types are printed with it.
    v_schema text := coalesce(nullif(left(sqlvec._query_type('vector')::text, -length('.vector')), ''), 'pg_catalog');
    v_carry text;
    v_carried text;
    v_answer text;
    v_order text;
    v_searched text;
    v_ways sqlvec._way[];
    v_way sqlvec._way;
    v_total float8;
    v_matching float8;
    v_cost float8;
    v_page float8;
    v_conditional boolean;
    v_ties text;
    v_tied text;
    v_code text;
    v_code_operator text;
    v_code_query text;
    v_encoded text;
BEGIN
    SELECT c.oid, c.relname, c.relkind, c.reltuples::float8 AS reltuples, c.relpages::float8 AS relpages,
           c.relhassubclass,
           c.relnamespace::regnamespace::text AS schema_name, a.attnum, a.atttypid, a.atttypmod
    INTO v_class
    FROM pg_type AS t JOIN pg_class AS c ON c.oid = t.typrelid
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped
    WHERE t.oid = rel_type AND c.relkind <> 'c';
    rel := coalesce(v_class.oid, sqlvec._relation_of(rel_type));
    -- What does not fit at first sight is a domain, a halfvec column, or an error to explain.
    IF v_class.atttypid = sqlvec._query_type(query_type) AND v_class.atttypmod = query_dimensions THEN
        v_type := query_type;
        v_dimensions := query_dimensions;
    ELSE
        v_column := sqlvec._searched_column(rel, column_name, query_type, query_dimensions);
        v_type := v_column.type_name;
        v_dimensions := v_column.dimensions;
    END IF;
    v_ways := sqlvec._ways(rel, column_name, v_class.attnum, v_class.atttypmod);
    IF metric IS NOT NULL THEN
        metric := sqlvec._checked_metric(metric, v_type);
    ELSIF cardinality(v_ways) = 1 THEN
        metric := coalesce((v_ways[1]).metric, sqlvec._default_metric(rel, column_name, v_type, v_ways));
    ELSE
        metric := sqlvec._default_metric(rel, column_name, v_type, v_ways);
    END IF;

    v_alias := quote_ident(v_class.relname);
    v_table := v_class.schema_name || '.' || v_alias;
    -- Of a table without children an address says all.
    v_alone := v_class.relkind IN ('r', 'm') AND NOT v_class.relhassubclass;
    v_from := CASE WHEN v_alone THEN 'ONLY ' ELSE '' END || v_table || ' AS ' || v_alias;
    bound := '{}';
    condition := 'true';
    IF filter IS NOT NULL THEN
        v_filter := sqlvec._filter(rel, v_class.relname, filter, '$3', bound);
        bound := v_filter.bound;
        condition := v_filter.condition;
    END IF;
    IF where_sql IS NOT NULL THEN
        condition := format(E'%s AND (%s\n)', condition, where_sql);
    END IF;
    IF v_type IN ('vector', 'halfvec') AND v_dimensions IS NULL THEN
        -- A column without dimensions may hold vectors that the query cannot be compared with.
        condition := format('sqlvec._dims(%s.%I) OPERATOR(pg_catalog.=) %s AND %s', v_alias, column_name, query_dimensions, condition);
    END IF;
    v_conditional := condition <> 'true' OR row_security_active(rel);

    IF mode = 'exact' THEN
        reason := 'asked for';
    ELSE
        -- The first way is nearly always the one.
        v_way := v_ways[1];
        IF mode <> 'auto' OR v_way.metric IS DISTINCT FROM metric OR v_way.index_name IS NULL OR v_way.partial THEN
            v_way := sqlvec._choose_way(v_ways, rel, column_name, metric, mode);
        END IF;
        IF v_way.way IS NULL THEN
            reason := format('no valid index serves %s on this column', metric);
        ELSE
            candidate_count := coalesce(candidates, ceil(k::float8 * oversample)::int,
                                        greatest(sqlvec._default_candidates(v_way.kind, v_way.levels, k), CASE v_way.kind WHEN 'source' THEN 1 ELSE 2 END * depth));
            reason := CASE WHEN mode = 'auto' THEN 'the first index that fits' ELSE 'asked for' END;
        END IF;
    END IF;

    -- Reading every match may be cheaper than walking the graph. Both are weighed in the planner's
    -- units: the scan that it would choose, with one more page for a vector that is stored out of
    -- line, against a random page for each row that the graph visits until enough have matched.
    IF mode = 'auto' AND v_way.way IS NOT NULL THEN
        IF v_conditional OR v_class.relkind <> 'r' OR v_class.reltuples <= 0 THEN
            v_estimate := sqlvec._estimate(format('SELECT FROM %s WHERE %s', v_from, condition), params, bound, caller_path);
            v_matching := v_estimate.matching;
            v_cost := v_estimate.cost;
        ELSE
            v_matching := v_class.reltuples;
            v_cost := v_class.relpages * current_setting('seq_page_cost')::float8
                      + v_class.reltuples * current_setting('cpu_tuple_cost')::float8;
        END IF;
        v_total := greatest(v_class.reltuples, v_matching, 1);
        v_page := current_setting('random_page_cost')::float8;
        IF query_dimensions > 500 THEN
            v_cost := v_cost + v_matching * v_page;
        END IF;
        IF v_cost <= greatest(candidate_count, 40) * v_total / greatest(v_matching, 1) * v_page THEN
            reason := format('about %s of %s rows match: cheaper to read than to find %s of them in %s',
                             v_matching, v_total, candidate_count, v_way.index_name);
            v_way := NULL;
            candidate_count := NULL;
        ELSIF v_conditional THEN
            reason := format('%s; about %s of %s rows match', reason, v_matching, v_total);
        END IF;
    END IF;
    way := coalesce(v_way.way, 'exact');
    index_name := v_way.index_name;
    IF v_way.way IS NOT NULL THEN
        settings := sqlvec._scan_settings(candidate_count, v_total, v_matching, mode = 'auto');
    END IF;

    -- Views and foreign tables have no row address, or none to rely on: their candidates carry the row.
    IF key_type IS NOT NULL THEN
        v_key := sqlvec._key_column(rel, key_column);
        v_carry := format('%s.%I', v_alias, v_key);
        IF places THEN
            v_answer := format(sqlvec._as_text((sqlvec._column(rel, v_key)).type_oid), 'h.key') || ', 0::pg_catalog.oid';
        ELSE
            v_carry := v_carry || '::' || sqlvec._type_name(key_type);
            v_answer := 'h.key';
        END IF;
        v_carry := v_carry || ' AS key'; v_carried := 'key'; v_order := 'key';
    ELSIF v_alone OR places OR sqlvec._has_addresses(rel) THEN
        v_carry := format('%1$s.ctid AS row_id, %1$s.tableoid AS row_table', v_alias); v_carried := 'row_id, row_table'; v_order := 'row_table, row_id';
        IF places THEN
            v_answer := 'h.row_id::pg_catalog.text, h.row_table';
            -- Legs order equal rows alike: by primary key, where it may be read.
            SELECT string_agg(format(', %s.%I AS tie_%s', v_alias, a.attname, n.position), '' ORDER BY n.position),
                   string_agg(format(', tie_%s', n.position), '' ORDER BY n.position)
            INTO v_ties, v_tied
            FROM pg_index AS i, unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS n (attnum, position)
            JOIN pg_attribute AS a ON a.attnum = n.attnum
            WHERE i.indrelid = rel AND i.indisprimary AND a.attrelid = rel AND has_column_privilege(rel, a.attnum, 'SELECT');
            IF v_tied <> '' THEN
                v_carry := v_carry || v_ties; v_carried := v_carried || v_tied; v_order := substr(v_tied, 3);
            END IF;
        ELSIF v_alone THEN
            v_carry := v_alias || '.ctid AS row_id'; v_carried := 'row_id'; v_order := 'row_id';
            v_answer := format('(SELECT (d.*)::%1$s FROM ONLY %1$s AS d WHERE d.ctid OPERATOR(pg_catalog.=) h.row_id)', v_table);
        ELSE
            v_answer := format('(SELECT (d.*)::%1$s FROM %1$s AS d WHERE d.ctid OPERATOR(pg_catalog.=) h.row_id AND d.tableoid OPERATOR(pg_catalog.=) h.row_table)', v_table);
        END IF;
    ELSE
        v_carry := format('(%s.*)::%s AS row_value', v_alias, v_table); v_carried := 'row_value'; v_answer := 'h.row_value';
    END IF;
    v_query := CASE v_type WHEN 'halfvec' THEN 'sqlvec._halfvec($2)' ELSE '$2' END;
    IF v_way.way IS NOT NULL THEN
        v_code := coalesce(v_way.expression, v_alias || '.' || quote_ident(v_way.column_used));
        v_code_operator := sqlvec._operator(v_way.code_metric, v_schema);
        v_code_query := CASE WHEN v_way.encoder IS NOT NULL THEN sqlvec._encode_expression(v_way.encoder, '{$2}') ELSE coalesce(v_way.query_expression, v_query) END;
        -- What is immutable the planner computes; anything else would be computed row by row.
        IF v_code_query <> v_query AND split_part(v_code_query, '(', 1)
           NOT IN ('sqlvec._halfvec', 'sqlvec._binary', 'sqlvec._binary_centred', 'sqlvec._truncate_halfvec', 'sqlvec._truncate_vector') THEN
            v_code_query := '(SELECT ' || v_code_query || ')';
        END IF;
        IF v_way.rank = 1 THEN
            v_encoded := sqlvec._all_encoded(rel, v_alone, v_from, v_way.column_used, column_name);
        END IF;
    END IF;
    v_searched := format('%s.%I', v_alias, column_name);
    v_made := sqlvec._search_statement(
        v_from, condition, v_searched, v_searched || ' ' || sqlvec._operator(metric, v_schema) || ' ' || v_query, coalesce(depth, k),
        v_carry, v_carried, v_answer, v_order, v_code, v_code_operator, v_code_query, v_encoded, candidate_count, mode = 'auto');
    statement := v_made.statement;
    fallback := v_made.fallback;
END
$body$;

-- What sqlvec._set_scan sets for a scan of an approximate index: rows come in any order, because they
-- are sorted anew. Where all that is asked for is to be found (`whole`), the scan may visit as many as
-- were expected; the limits of an index that was asked for by name are the caller's.
CREATE OR REPLACE FUNCTION sqlvec._scan_settings(candidate_count int, total float8, matching float8, whole boolean) RETURNS text[]
LANGUAGE sql STABLE
RETURN ARRAY[
    greatest(least(candidate_count, 1000), nullif(current_setting('hnsw.ef_search', true), '')::int)::text,
    'relaxed_order', 'relaxed_order', 'off',
    CASE WHEN whole THEN greatest(least(4 * candidate_count * total / greatest(matching, 1), 1e9),
                                  nullif(current_setting('hnsw.max_scan_tuples', true), '')::float8, 20000)::bigint::text END,
    CASE WHEN whole THEN greatest(16, nullif(current_setting('hnsw.scan_mem_multiplier', true), '')::float8)::text END];

-- Calls into pgvector, whose settings cannot be read before its library is loaded.
CREATE OR REPLACE FUNCTION sqlvec._load_pgvector() RETURNS boolean
LANGUAGE sql STABLE
RETURN hamming_distance(B'1', B'1') = 0;

-- Settings for an index scan, for this transaction; answers what they were. NULL changes nothing.
-- jit is off because the branch that is hardly ever run would make the planner ask for it.
CREATE OR REPLACE FUNCTION sqlvec._set_scan(settings text[]) RETURNS text[]
LANGUAGE plpgsql STRICT
AS $body$
DECLARE
    v_before pg_catalog.text[];
BEGIN
    IF NOT sqlvec._load_pgvector() THEN
        RETURN NULL;
    END IF;
    v_before := ARRAY[pg_catalog.current_setting('hnsw.ef_search'), pg_catalog.current_setting('hnsw.iterative_scan'),
                      pg_catalog.current_setting('ivfflat.iterative_scan'), pg_catalog.current_setting('jit'),
                      pg_catalog.current_setting('hnsw.max_scan_tuples'), pg_catalog.current_setting('hnsw.scan_mem_multiplier')];
    settings := ARRAY[pg_catalog.set_config('hnsw.ef_search', settings[1], true),
                      pg_catalog.set_config('hnsw.iterative_scan', settings[2], true),
                      pg_catalog.set_config('ivfflat.iterative_scan', settings[3], true),
                      pg_catalog.set_config('jit', settings[4], true),
                      pg_catalog.set_config('hnsw.max_scan_tuples', coalesce(settings[5], v_before[5]), true),
                      pg_catalog.set_config('hnsw.scan_mem_multiplier', coalesce(settings[6], v_before[6]), true)];
    RETURN v_before;
END
$body$;
