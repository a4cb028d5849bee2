-- How a MaxSim search of a table is written: the statements that are the same for each of its steps.
--
-- $1 is the caller's params, $2 the query, $3 the values of filter. Candidates are listed for $4, the code
-- of the query, or of signs $11, and $12 beside it: $7 of them, without the rows at $5 and $6. A step reads
-- those at $5 and $6 with estimates $13; it compares them with $8, bar and tilt of the middle stage are $9
-- and $10.

-- An error unless the query is made of vectors that fit the column, `dimensions` where it names them.
CREATE OR REPLACE FUNCTION sqlvec._check_tokens(query halfvec[], column_name text, rel oid, dimensions int) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_least int;
    v_most int;
    v_vectors int;
BEGIN
    SELECT min(sqlvec._dims(q)), max(sqlvec._dims(q)), count(q) INTO v_least, v_most, v_vectors FROM unnest(query) AS q;
    IF query IS NULL THEN
        RAISE EXCEPTION 'the query is NULL' USING ERRCODE = 'null_value_not_allowed';
    ELSIF v_vectors = 0 OR v_vectors <> cardinality(query) THEN
        RAISE EXCEPTION 'the query has %', CASE v_vectors WHEN 0 THEN 'no vectors' ELSE 'NULL among its vectors' END
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF v_least <> v_most THEN
        RAISE EXCEPTION 'the query has vectors of % and of % dimensions', v_least, v_most USING ERRCODE = 'data_exception';
    ELSIF dimensions <> v_most THEN
        RAISE EXCEPTION 'column "%" of table % has vectors of % dimensions, the query of %', column_name, sqlvec._qualified(rel), dimensions, v_most
            USING ERRCODE = 'data_exception';
    END IF;
END
$body$;

CREATE OR REPLACE FUNCTION sqlvec._has_matrices(encoder text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN EXISTS (SELECT FROM sqlvec.encoder AS e JOIN sqlvec.encoder_vector AS v ON v.encoder = e.name
               WHERE e.name = _has_matrices.encoder AND v.part = 'sign'
                 AND v.position = (e.options ->> 'repetitions')::int * (e.options ->> 'projection')::int);

-- Encodings of a multi-vector column that the trigger keeps, of itself or of its pooled tokens (`pooled`
-- says which), each with an index where it has one that is valid and by inner product or, for bits, by
-- Hamming distance; and the milliseconds that reading a million codes takes, about: short ones stand in
-- the rows.
CREATE OR REPLACE FUNCTION sqlvec._fde_ways(rel oid, column_name name) RETURNS TABLE (
    target_column name, encoder text, code_type text, pooled name, index_name name, read_ms float8
) LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.target_column, e.encoder, e.code_type, s.pooled, i.index_name,
           CASE WHEN c.bytes < 1900 THEN 300 + c.bytes / 2 ELSE 3000 + 1.4 * c.bytes END
    FROM (SELECT column_name AS source, NULL::name AS pooled
          UNION ALL
          SELECT p.target_column, p.target_column FROM sqlvec._maintained_of(rel, column_name) AS p WHERE p.kind = 'pool') AS s
    CROSS JOIN LATERAL sqlvec._maintained_of(rel, s.source) AS e
    CROSS JOIN LATERAL (SELECT CASE o.code_type WHEN 'bit' THEN o.code_dimensions / 8.0 ELSE 2.0 * o.code_dimensions END AS bytes
                        FROM sqlvec.encoder AS o WHERE o.name = e.encoder) AS c
    LEFT JOIN sqlvec._ann_indexes(rel) AS i
           ON i.attnum = e.target_attnum AND NOT i.partial
          AND i.opclass = CASE e.code_type WHEN 'bit' THEN 'bit_hamming_ops' ELSE 'halfvec_ip_ops' END
    -- The matrices may be missing (a data-only restore): no query has a code then.
    WHERE e.kind = 'fde' AND sqlvec._has_matrices(e.encoder)
    ORDER BY i.index_name IS NULL, s.pooled IS NOT NULL, e.target_column, i.index_name;
END;

-- Whether no two rows have the same value of a column, nor any NULL. Rows of tables that inherit may.
CREATE OR REPLACE FUNCTION sqlvec._identifies(rel oid, column_name name) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
RETURN EXISTS (SELECT FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
               WHERE i.indrelid = rel AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indnkeyatts = 1
                 AND a.attname = column_name AND a.attnotnull)
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits AS h JOIN pg_catalog.pg_class AS c ON c.oid = h.inhparent
                       WHERE h.inhparent = rel AND c.relkind = 'r');

CREATE OR REPLACE FUNCTION sqlvec._plan_maxsim(
    rel oid, column_name text, query halfvec[], k int, filter jsonb, where_sql text, params text[], candidates int, oversample float8,
    mode text, recall float8, pooled text, carve float8, rescore boolean, key_column text, key_type regtype, caller_path text,
    depth int = NULL,         -- rows to answer, of which k are to be sure; NULL is k
    OUT direct text,          -- answers a view, whose rows have no address; then nothing else is set
    OUT listed text,          -- candidates with their estimates, best first; NULL where all matches are read
    OUT step text,            -- scores of candidates
    OUT exhaustive text,      -- the k best of all that match, as arrays of scores and places
    OUT waiting text,         -- the same for rows that wait for their code; NULL when there are none
    OUT unlisted text,        -- rows that wait for their code, without scores; NULL when there are none
    OUT everything text,      -- all that match, without scores
    OUT carved text,          -- scores of the rows at $5, $6 with the whole query; NULL unless it was carved
    OUT answer text,          -- rows or keys of places $1, $2 with scores $3
    OUT prepare text,         -- answers $4, $11, $12 and $8, code, signs, strong signs and tokens of the query, for query $1 and
                              -- carve $2: the types are always the same, or a session could not search tables of either kind
    OUT whole boolean,        -- everything may be read instead
    OUT bound text[], OUT condition text, OUT way text, OUT index_name text, OUT middle text,
    OUT kept int,             -- of the candidates: k, more where they are to be scored again
    OUT first int, OUT fixed int, OUT budget int, OUT matching float8, OUT total float8, OUT reason text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_class record;
    v_source record;
    v_way record;
    v_hit record;
    v_alias text;
    v_from text;
    v_tokens text;
    v_fits text := '';
    v_count CONSTANT int := cardinality(query);
    v_compared int;
    v_exact text;
    v_score text;
    v_code text;
    v_distance text;
    v_at record;
    v_located text;
    v_matching text;
    v_best text;
    v_list text;
    v_arrays CONSTANT text := 'SELECT pg_catalog.array_agg(h.score) AS scores, pg_catalog.array_agg(h.row_id) AS row_ids, '
                              'pg_catalog.array_agg(h.row_table) AS row_tables FROM ';
    v_pooled text;
    v_read text;
    v_ready text;
    v_encoded boolean;
BEGIN
    PERFORM sqlvec._check_search(column_name, 1, k, candidates, oversample, mode);
    IF NOT coalesce(recall > 0 AND recall <= 1, false) THEN
        RAISE EXCEPTION 'recall is a number above 0, at most 1, not %', recall USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT (carve BETWEEN 0 AND 1) THEN
        RAISE EXCEPTION 'carve is a cosine from 0 to 1, not %', carve USING ERRCODE = 'invalid_parameter_value';
    ELSIF pooled IS NULL OR rescore IS NULL THEN
        RAISE EXCEPTION 'pooled and rescore cannot be NULL' USING ERRCODE = 'null_value_not_allowed', HINT = 'pooled is auto, none, or the name of a pooled column; rescore is true or false.';
    END IF;
    SELECT c.relname, c.relkind, c.relhassubclass, c.reltuples::float8 AS reltuples INTO v_class FROM pg_class AS c WHERE c.oid = rel;
    v_source := sqlvec._multivector_column(rel, column_name);
    PERFORM sqlvec._check_tokens(query, column_name, rel, v_source.dimensions);

    v_alias := quote_ident(v_class.relname);
    v_from := format('%s AS %s', sqlvec._qualified(rel), v_alias);
    SELECT c.bound, c.condition INTO bound, condition FROM sqlvec._condition(rel, v_class.relname, filter, where_sql) AS c;
    v_tokens := format('%s.%I', v_alias, column_name);
    -- Workers share calls of a function, not aggregates over each row.
    v_exact := sqlvec._maxsim_expression(v_source.type_name, v_tokens, '$2', CASE WHEN current_setting('max_parallel_workers_per_gather')::int < 2 THEN v_count END);
    IF v_source.dimensions IS NULL THEN
        -- A column without dimensions may hold vectors that the query cannot be compared with. Rows with a
        -- code do not, and the planner knows nothing of this condition: neither reads it.
        v_fits := format('sqlvec._dims(%s) OPERATOR(pg_catalog.=) %s AND ', v_tokens, sqlvec._dims(query));
    END IF;
    IF key_type IS NULL AND NOT sqlvec._has_addresses(rel) THEN
        IF NOT rescore THEN
            PERFORM sqlvec._check_places(rel, NULL, NULL, 'maxsim_search_keys');
        END IF;
        way := 'exact'; reason := 'rows of a view or foreign table have no address';
        direct := format('SELECT h.row_value, h.score, true FROM (SELECT (%1$s.*)::%2$s AS row_value, %3$s AS score FROM %4$s WHERE %5$s) AS h '
                         'WHERE h.score IS NOT NULL ORDER BY h.score DESC LIMIT %6$s',
                         v_alias, sqlvec._qualified(rel), v_exact, v_from, v_fits || condition, k);
        RETURN;
    END IF;
    v_hit := sqlvec._hit_statement(rel, v_alias, key_column, key_type, CASE WHEN rescore THEN k END);
    answer := v_hit.answer;
    v_matching := format('FROM %s WHERE %s AND %s IS NOT NULL', v_from, v_fits || condition, v_tokens);
    v_read := v_arrays || format('(SELECT %s AS score, %s ', v_exact, v_hit.place);
    v_best := format(' ORDER BY 1 DESC NULLS LAST, %s LIMIT %s) AS h WHERE h.score IS NOT NULL', v_hit.tie_break, coalesce(depth, k));
    v_list := v_arrays || format('(SELECT NULL::pg_catalog.float8 AS score, %s ', v_hit.place);
    exhaustive := v_read || v_matching || v_best;
    everything := v_list || v_matching || ') AS h';

    kept := greatest(CASE WHEN carve IS NULL THEN k ELSE 2 * k END, depth);
    first := coalesce(candidates, ceil(k * oversample)::int, CASE WHEN rescore THEN greatest(10 * k, 100, depth) ELSE greatest(40 * k, 400) END);
    fixed := CASE WHEN candidates IS NOT NULL OR oversample IS NOT NULL THEN first END;
    budget := coalesce(fixed, greatest(100 * k, 4000));
    way := 'exact';
    IF mode = 'exact' OR recall = 1 AND mode = 'auto' THEN
        reason := CASE WHEN mode = 'exact' THEN 'asked for' ELSE 'recall 1 takes all matching rows' END;
        RETURN;
    END IF;
    -- Steps tell the rows they have seen by their keys.
    IF key_type IS NOT NULL AND rescore AND NOT sqlvec._identifies(rel, sqlvec._key_column(rel, key_column)) THEN
        IF mode <> 'auto' THEN
            RAISE EXCEPTION 'column "%" of table % does not identify its rows', key_column, sqlvec._qualified(rel)
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'Candidates are told apart by a key that is NOT NULL and UNIQUE; mode auto or exact reads all matching rows.';
        END IF;
        reason := 'the key column is not NOT NULL and UNIQUE, so that candidates cannot be told apart';
        RETURN;
    END IF;
    SELECT w.* INTO v_way FROM sqlvec._fde_ways(rel, column_name) AS w WHERE mode IN ('auto', w.target_column, w.index_name) LIMIT 1;
    IF NOT FOUND THEN
        IF mode <> 'auto' THEN
            RAISE EXCEPTION 'mode "%" is neither auto, exact, nor an encoding of column "%" of table % or an index on one',
                mode, column_name, sqlvec._qualified(rel)
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = coalesce('There are: ' || (SELECT string_agg(concat_ws(' by index ', w.target_column, w.index_name), ', ')
                                                        FROM sqlvec._fde_ways(rel, column_name) AS w) || '.',
                                      'It has no encoding that its trigger keeps and the role may read; CALL sqlvec.add_fde declares one.');
        END IF;
        reason := 'no encoding of this column that its trigger keeps and the role may read';
        RETURN;
    END IF;
    way := v_way.target_column;

    IF condition <> 'true' OR row_security_active(rel) OR v_class.relkind <> 'r' OR v_class.reltuples <= 0 THEN
        matching := (sqlvec._estimate(format('SELECT FROM %s WHERE %s', v_from, condition), params, bound, caller_path)).matching;
    ELSE
        matching := v_class.reltuples;
    END IF;
    total := greatest(v_class.reltuples, matching, 1);
    IF mode = 'auto' AND matching <= 1.5 * first THEN
        way := 'exact';
        reason := format('about %s of %s rows match: cheaper to read than to find %s candidates', matching, total, first);
        RETURN;
    END IF;
    -- A graph gives most of the nearest codes, reading gives all of them: at the price of up to a hundred
    -- milliseconds, as much as exact scores of a thousand candidates, it is worth more.
    index_name := CASE WHEN mode = v_way.index_name OR matching * v_way.read_ms > 1e8 THEN v_way.index_name END;
    reason := concat_ws('; ', CASE WHEN mode <> 'auto' THEN 'asked for' END,
                        CASE WHEN v_way.index_name IS NULL THEN format('no valid index on column "%s"', way)
                             WHEN index_name IS NULL THEN 'so few codes are read sooner than searched well' END,
                        format('about %s of %s rows match', matching, total));

    middle := CASE pooled
        WHEN 'none' THEN NULL
        WHEN 'auto' THEN (SELECT p.target_column FROM sqlvec._maintained_of(rel, column_name) AS p WHERE p.kind = 'pool' ORDER BY p.target_column LIMIT 1)
        ELSE (SELECT p.target_column FROM sqlvec._maintained_of(rel, column_name) AS p WHERE p.kind = 'pool' AND p.target_column = pooled) END;
    IF middle IS NULL AND pooled NOT IN ('auto', 'none') THEN
        RAISE EXCEPTION '"%" is not a column of pooled tokens of column "%" of table %', pooled, column_name, sqlvec._qualified(rel)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'pooled is auto, none, or the name of a column that sqlvec.add_pooled declared.';
    END IF;
    IF fixed IS NOT NULL AND middle IS NOT NULL THEN
        first := least(fixed, greatest(10 * k, 100));
    END IF;
    v_code := format('%s.%I', v_alias, v_way.target_column);
    whole := mode = 'auto';
    prepare := format('SELECT q.*, %s AS tokens FROM (%s) AS q', CASE WHEN carve IS NULL THEN '$1' ELSE 'sqlvec.carve($1, $2)' END,
                      sqlvec._fde_query(v_way.encoder, '$1'));
    v_compared := CASE WHEN carve IS NULL THEN v_count ELSE cardinality(sqlvec.carve(query, carve)) END;
    v_score := sqlvec._maxsim_expression(v_source.type_name, 'c.tokens', '$8', v_compared);
    -- A row may wait for its pooled tokens.
    v_pooled := CASE WHEN middle IS NULL THEN 'NULL::pg_catalog.float8'
                     ELSE sqlvec._maxsim_expression(v_source.type_name, format('coalesce(%s.%I, %s)', v_alias, middle, v_tokens), '$8', v_compared) END;
    v_distance := format(CASE WHEN v_way.code_type <> 'bit' THEN '%1$s %2$s $4'
                              WHEN index_name IS NULL THEN '(%1$s %2$s $11) OPERATOR(pg_catalog.+) (%1$s %2$s $12)'
                              ELSE '%1$s %2$s $11' END,
                         v_code, sqlvec._operator(CASE v_way.code_type WHEN 'bit' THEN 'hamming' ELSE 'inner_product' END));
    listed := format(
        E'SELECT pg_catalog.array_agg(s.estimate) AS estimates, pg_catalog.array_agg(s.row_id) AS row_ids,\n'
        '  pg_catalog.array_agg(s.row_table) AS row_tables, pg_catalog.max(s.found) AS found\n'
        'FROM (\n  SELECT c.* FROM (\n    SELECT %s AS row_id, c.row_table, c.estimate, pg_catalog.count(*) OVER () AS found\n'
        '    FROM (SELECT %s, 0::pg_catalog.float8 OPERATOR(pg_catalog.-) (%s) AS estimate\n      FROM %s WHERE %s AND %s IS NOT NULL ORDER BY %s LIMIT $7) AS c) AS c\n'
        '%s  ORDER BY c.estimate DESC) AS s',
        format(v_hit.as_text, 'c.address'), v_hit.address, v_distance, v_from, condition, v_code,
        -- By its estimate no index is found to order by.
        CASE WHEN index_name IS NULL THEN '3 DESC' ELSE v_distance END,
        CASE WHEN index_name IS NOT NULL
             THEN E'  WHERE NOT EXISTS (SELECT FROM unnest($5, $6) AS h (row_id, row_table)\n'
                  '                    WHERE h.row_id OPERATOR(pg_catalog.=) c.row_id AND h.row_table OPERATOR(pg_catalog.=) c.row_table)\n' ELSE '' END);
    v_at := sqlvec._at_place(rel, v_alias, key_column, key_type);
    v_located := format('unnest($5::%s, $5, $6, $13) AS "sqlvec hit" (place, row_id, row_table, estimate) JOIN %s ON %s', v_at.places, v_from, v_at.condition);
    -- OFFSET 0 keeps the pooled score from being computed again wherever it is compared.
    step := format(
        E'SELECT pg_catalog.array_agg(s.estimate) AS estimates, pg_catalog.array_agg(s.pooled) AS pooled, pg_catalog.array_agg(s.score) AS scores,\n'
        '  pg_catalog.array_agg(s.row_id) AS row_ids, pg_catalog.array_agg(s.row_table) AS row_tables\n'
        'FROM (\n  SELECT c.*, %s AS score\n  FROM (\n    SELECT "sqlvec hit".row_id, "sqlvec hit".row_table, "sqlvec hit".estimate, %s AS tokens, %s AS pooled\n'
        '    FROM %s\n    OFFSET 0) AS c) AS s',
        CASE WHEN middle IS NULL THEN v_score ELSE format('CASE WHEN (c.pooled OPERATOR(pg_catalog.+) ($10 OPERATOR(pg_catalog.*) c.estimate) OPERATOR(pg_catalog.<) $9) IS NOT TRUE THEN %s END', v_score) END,
        v_tokens, v_pooled, v_located);
    v_ready := 'SELECT ' || sqlvec._all_encoded(rel, NOT v_class.relhassubclass, v_from, v_way.target_column, coalesce(v_way.pooled, column_name))
               || CASE WHEN v_way.pooled IS NULL THEN '' ELSE ' AND ' || sqlvec._all_encoded(rel, NOT v_class.relhassubclass, v_from, v_way.pooled, column_name) END;
    -- Policies run inside, which may need the caller's search_path.
    PERFORM set_config('search_path', caller_path, true);
    EXECUTE v_ready INTO v_encoded;
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF NOT v_encoded THEN
        v_matching := format('%s AND %s IS NULL', v_matching, v_code);
        waiting := v_read || v_matching || v_best;
        unlisted := v_list || v_matching || ') AS h';
    END IF;
    IF carve IS NOT NULL THEN
        carved := v_arrays || format('(SELECT %s AS score, "sqlvec hit".row_id, "sqlvec hit".row_table FROM %s) AS h', v_exact, v_located);
    END IF;
END
$body$;
