-- The statements of a search, written from parts that are quoted or bound already.
--
-- Candidates carry only where the row is (ctid, tableoid, or its key) and its exact distance; whole
-- rows are fetched after the final LIMIT.

-- Names that stand beside the caller's condition are ones that no application has, or its tables
-- would be taken for ours.

-- Rows of `source` (a FROM item) that meet `condition`, nearest first.
--   carry      what a candidate carries, as select list; `carried` are its names
--   answer     the hit or key of a candidate h; `tie_break` orders equal distances
--   code       SQL of the indexed value, NULL for an exact search; `code_query` is what it is compared with
--   encoded    condition that every row has its code; NULL where none can lack it
--   whole      whether all matches are read if too few are found
--
-- `statement` serves nearly every search and is kept small, because it is planned at each call. It
-- answers nothing at all when rows lack their code or the scan found too few; then `fallback` is
-- run. Either way the whole answer comes from one statement, with one snapshot: a code that is
-- written or emptied in between changes nothing.
CREATE OR REPLACE FUNCTION sqlvec._search_statement(
    source text, condition text, searched text, distance text, k int, carry text, carried text, answer text, tie_break text,
    code text, code_operator text, code_query text, encoded text, candidate_count int, whole boolean,
    OUT statement text, OUT fallback text
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    -- Adding zero keeps an approximate index out of an exact comparison.
    v_exact text := format('SELECT %s, (%s) OPERATOR(pg_catalog.+) 0::pg_catalog.float8 AS distance FROM %s WHERE %s AND %s IS NOT NULL',
                           carry, distance, source, condition, searched);
    v_order text := concat_ws(', ', 'distance', tie_break);
    v_read_all text := format(E'SELECT %1$s, h.distance, true FROM (\n  %2$s\n  ORDER BY %3$s LIMIT %4$s) AS h\n'
                              'WHERE h.distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8 ORDER BY %3$s', answer, v_exact, v_order, k);
    -- Distances are exact whatever finds the rows.
    v_scan text := format('SELECT %s, %s AS distance FROM %s WHERE %s AND %s IS NOT NULL', carry, distance, source, condition, code);
    v_nearest text := format('ORDER BY %s %s %s LIMIT %s', code, code_operator, code_query, candidate_count);
BEGIN
    IF code IS NULL THEN
        statement := v_read_all;
        RETURN;
    END IF;
    statement := format(E'SELECT %1$s, h.distance, %2$s FROM (\n  SELECT *, pg_catalog.count(*) OVER () AS found FROM (\n    %3$s\n    %4$s) AS f\n'
                        '  WHERE distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8 ORDER BY %5$s LIMIT %6$s) AS h\nWHERE true%7$s%8$s ORDER BY %5$s',
                        answer,
                        -- An index that was asked for is a budget: say so when it ran out.
                        CASE WHEN whole THEN 'true' ELSE 'h.found OPERATOR(pg_catalog.>=) ' || k END,
                        v_scan, v_nearest, v_order, k,
                        CASE WHEN whole THEN ' AND h.found OPERATOR(pg_catalog.>=) ' || candidate_count END,
                        ' AND ' || encoded);
    IF encoded IS NULL THEN
        fallback := CASE WHEN whole THEN v_read_all END;
        RETURN;
    END IF;

    -- What has no code is compared one by one. Where every row has its code it was the scan that
    -- ended early: no use in running it again.
    fallback := format(E'WITH "sqlvec found" AS MATERIALIZED (\n  (%s%s\n   %s)\n  UNION ALL\n  (%s AND %s IS NULL\n   ORDER BY distance LIMIT %s)\n'
                       '), "sqlvec counted" AS (SELECT pg_catalog.count(*) AS n FROM "sqlvec found" WHERE distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8)',
                       v_scan, CASE WHEN whole THEN ' AND NOT ' || encoded END, v_nearest, v_exact, code, k);
    IF NOT whole THEN
        fallback := format(E'%s\nSELECT %s, h.distance, (SELECT n FROM "sqlvec counted") OPERATOR(pg_catalog.>=) %s FROM (\n  SELECT * FROM "sqlvec found" ORDER BY %s LIMIT %3$s) AS h\n'
                           'WHERE h.distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8 ORDER BY %4$s', fallback, answer, k, v_order);
        RETURN;
    END IF;
    -- Then, and only then, all matches are read, so that a short answer means few matches and a cut
    -- scan is no answer.
    fallback := format(E'%s,\n"sqlvec exact" AS (%s AND (SELECT n FROM "sqlvec counted") OPERATOR(pg_catalog.<) %s)\nSELECT %s, h.distance, true FROM (\n'
                       '  SELECT %s, distance FROM "sqlvec found" WHERE (SELECT n FROM "sqlvec counted") OPERATOR(pg_catalog.>=) %3$s\n'
                       '  UNION ALL SELECT %5$s, distance FROM "sqlvec exact"\n'
                       '  ORDER BY %6$s LIMIT %7$s) AS h\nWHERE h.distance OPERATOR(pg_catalog.<>) ''NaN''::pg_catalog.float8 ORDER BY %6$s',
                       fallback, v_exact, candidate_count, answer, carried, v_order, k);
END
$body$;

-- Keys as text that reads back as the same value under any settings.
CREATE OR REPLACE FUNCTION sqlvec._exact_text(x float8) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET extra_float_digits = 1 RETURN x::text;

CREATE OR REPLACE FUNCTION sqlvec._exact_text(x real) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET extra_float_digits = 1 RETURN x::text;

CREATE OR REPLACE FUNCTION sqlvec._exact_text(x timestamptz) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET datestyle = 'ISO' RETURN x::text;

CREATE OR REPLACE FUNCTION sqlvec._exact_text(x anyarray) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET extra_float_digits = 1 SET datestyle = 'ISO' AS 'SELECT x::pg_catalog.text';

-- How a statement turns a value of a type, %s, into text.
CREATE OR REPLACE FUNCTION sqlvec._as_text(type_oid oid) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN type_oid IN ('pg_catalog.float4'::regtype, 'pg_catalog.float8'::regtype, 'pg_catalog.timestamptz'::regtype)
              OR EXISTS (SELECT FROM pg_catalog.pg_type AS t WHERE t.oid = type_oid AND t.typcategory = 'A')
            THEN 'sqlvec._exact_text(%s)' ELSE '%s::pg_catalog.text' END;

-- The statement that ends a search of several steps: the rows or keys at $1, $2 with scores $3 and
-- complete $4, the best first.
--   alias      the table is read under this name
--   k          rows to answer, NULL all
--   place      what a step answers as row_id and row_table: the address, or the key as text
--   address    the same as it stands in the table, to be made text as row_id, by as_text, when few rows are left
--   tie_break  which of equal scores comes first: by key where there is one that may be read
CREATE OR REPLACE FUNCTION sqlvec._hit_statement(
    rel oid, alias text, key_column text, key_type regtype, k int, OUT place text, OUT address text, OUT as_text text, OUT tie_break text, OUT answer text
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_keys name[] := CASE WHEN key_type IS NOT NULL THEN ARRAY[sqlvec._key_column(rel, key_column)]::name[]
                          ELSE ARRAY(SELECT a.attname FROM pg_index AS i, unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS n (attnum, position)
                                     JOIN pg_attribute AS a ON a.attnum = n.attnum
                                     WHERE i.indrelid = rel AND i.indisprimary AND a.attrelid = rel ORDER BY n.position) END;
    v_type text;
BEGIN
    tie_break := coalesce((SELECT string_agg(format('%s.%I', alias, c.name), ', ' ORDER BY c.position)
                           FROM unnest(v_keys) WITH ORDINALITY AS c (name, position)
                           WHERE has_column_privilege(rel, c.name::text, 'SELECT')), format('%1$s.tableoid, %1$s.ctid', alias));
    IF key_type IS NULL THEN
        as_text := sqlvec._as_text('tid'::regtype);
        place := format('%1$s.ctid::pg_catalog.text AS row_id, %1$s.tableoid AS row_table', alias);
        address := format('%1$s.ctid AS address, %1$s.tableoid AS row_table', alias);
        -- Cast as a whole: a cast in the condition would keep it behind the policies. The alias is one that no
        -- table has.
        answer := format('SELECT (%1$s.*)::%2$s, "sqlvec hit".score, $4::pg_catalog.bool FROM unnest($1::pg_catalog.tid[], $2, $3) AS "sqlvec hit" (row_id, row_table, score) '
                         'JOIN %2$s AS %1$s ON %1$s.ctid OPERATOR(pg_catalog.=) "sqlvec hit".row_id AND %1$s.tableoid OPERATOR(pg_catalog.=) "sqlvec hit".row_table '
                         'ORDER BY "sqlvec hit".score DESC NULLS LAST, %3$s LIMIT %4$s', alias, sqlvec._qualified(rel), tie_break, coalesce(k::text, 'ALL'));
        RETURN;
    END IF;
    v_type := sqlvec._type_name((sqlvec._column(rel, v_keys[1])).type_oid);
    as_text := sqlvec._as_text((sqlvec._column(rel, v_keys[1])).type_oid);
    place := format(as_text, format('%s.%I', alias, v_keys[1])) || ' AS row_id, 0::pg_catalog.oid AS row_table';
    address := format('%s.%I AS address, 0::pg_catalog.oid AS row_table', alias, v_keys[1]);
    answer := format('SELECT "sqlvec hit".row_id::%1$s::%2$s, "sqlvec hit".score, $4::pg_catalog.bool FROM unnest($1, $2, $3) AS "sqlvec hit" (row_id, row_table, score) '
                     'ORDER BY "sqlvec hit".score DESC NULLS LAST, "sqlvec hit".row_id::%1$s LIMIT %3$s', v_type, sqlvec._type_name(key_type), coalesce(k::text, 'ALL'));
END
$body$;

-- How a statement finds the rows at places that sqlvec._hit_statement gave: what the array of places is cast
-- to as a whole, and the condition on "sqlvec hit". A cast in the condition would keep it behind the policies.
CREATE OR REPLACE FUNCTION sqlvec._at_place(rel oid, alias text, key_column text, key_type regtype, OUT places text, OUT condition text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_key text;
    v_type oid;
BEGIN
    IF key_type IS NULL THEN
        places := 'pg_catalog.tid[]';
        condition := format('%1$s.ctid OPERATOR(pg_catalog.=) "sqlvec hit".place AND %1$s.tableoid OPERATOR(pg_catalog.=) "sqlvec hit".row_table', alias);
        RETURN;
    END IF;
    v_key := sqlvec._key_column(rel, key_column);
    v_type := (sqlvec._column(rel, v_key)).type_oid;
    IF (SELECT t.typcategory = 'A' FROM pg_type AS t WHERE t.oid = v_type) THEN
        -- An array of arrays would be one of their elements.
        places := 'pg_catalog.text[]';
        condition := format('%s.%I %s "sqlvec hit".place::%s', alias, v_key, sqlvec._btree_operator(v_type, 3), sqlvec._type_name(v_type));
        RETURN;
    END IF;
    places := sqlvec._type_name(v_type) || '[]';
    condition := format('%s.%I %s "sqlvec hit".place', alias, v_key, sqlvec._btree_operator(v_type, 3));
END
$body$;

-- Whether rows can be told apart by their address.
CREATE OR REPLACE FUNCTION sqlvec._has_addresses(rel oid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT c.relkind IN ('r', 'p', 'm') AND NOT EXISTS (SELECT FROM sqlvec._foreign_parts(rel))
    FROM pg_catalog.pg_class AS c WHERE c.oid = rel;
END;

-- An error unless rows can be told apart by where they are: by address, or by a key, for which the search
-- `by_key` is. Of the keys of views nobody knows, nor of those of a table with a foreign one among its
-- partitions, which can have no unique index.
CREATE OR REPLACE FUNCTION sqlvec._check_places(rel oid, key_column text, key_type regtype, by_key text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_kind "char" := (SELECT c.relkind FROM pg_class AS c WHERE c.oid = rel);
BEGIN
    IF key_type IS NULL AND NOT sqlvec._has_addresses(rel) THEN
        RAISE EXCEPTION 'rows of a view or foreign table have no address to answer candidates by'
            USING ERRCODE = 'wrong_object_type',
                  DETAIL = coalesce((SELECT format('Among the partitions or children of table %s is foreign table %s.', sqlvec._qualified(rel), sqlvec._qualified(f.part))
                                     FROM sqlvec._foreign_parts(rel) AS f LIMIT 1), format('%s is one.', sqlvec._qualified(rel))),
                  HINT = format('Use sqlvec.%s with a key column.', by_key);
    ELSIF key_type IS NOT NULL AND v_kind IN ('r', 'p') AND NOT sqlvec._identifies(rel, sqlvec._key_column(rel, key_column))
          AND NOT EXISTS (SELECT FROM sqlvec._foreign_parts(rel)) THEN
        RAISE EXCEPTION 'column "%" of table % does not identify its rows', sqlvec._key_column(rel, key_column), sqlvec._qualified(rel)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Rows of several lists are brought together by a key that is NOT NULL and UNIQUE.';
    END IF;
END
$body$;

-- The k best of the scores that steps have found, with all that tie with the last of them.
CREATE OR REPLACE FUNCTION sqlvec._best_hits(
    found_scores float8[], found_ids text[], found_tables oid[], k int, OUT scores float8[], OUT row_ids text[], OUT row_tables oid[]
) LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(h.score ORDER BY h.score DESC), array_agg(h.row_id ORDER BY h.score DESC), array_agg(h.row_table ORDER BY h.score DESC)
    FROM (SELECT a.score, a.row_id, a.row_table, rank() OVER (ORDER BY a.score DESC) AS place
          FROM unnest(found_scores, found_ids, found_tables) AS a (score, row_id, row_table) WHERE a.score IS NOT NULL) AS h
    WHERE h.place <= k;
END;
