-- The statement of a search, written from parts that are quoted or bound already.
--
-- Candidates carry only where the row is (ctid, tableoid, or its key) and its exact distance; whole
-- rows are fetched after the final LIMIT.

-- Names that stand beside the caller's condition are ones that no application has, or its tables
-- would be taken for ours.

-- The statement: rows of `source` (a FROM item) that meet `condition`, nearest first.
--   carry      what a candidate carries, as select list; `carried` are its names
--   answer     the hit or key of a candidate h; `tie_break` orders equal distances
--   code       SQL of the indexed value, NULL for an exact search; `code_query` is what it is compared with
--   code_column  whether rows may still lack the code; `whole` whether all matches are read if too few are found
CREATE OR REPLACE FUNCTION sqlvec._search_statement(
    source text, condition text, searched text, distance text, k int, carry text, carried text, answer text, tie_break text,
    code text, code_operator text, code_query text, code_column boolean, candidate_count int, whole boolean
) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    -- Adding zero keeps an approximate index out of an exact comparison.
    v_exact text := format('SELECT %s, (%s) + 0::float8 AS distance FROM %s WHERE %s AND %s IS NOT NULL',
                           carry, distance, source, condition, searched);
    v_order text := concat_ws(', ', 'distance', tie_break);
    v_found text;
BEGIN
    IF code IS NULL THEN
        RETURN format(E'SELECT %1$s, h.distance, true FROM (\n  SELECT * FROM (%2$s) AS s\n  ORDER BY %3$s LIMIT %4$s) AS h\n'
                      'WHERE h.distance <> ''NaN'' ORDER BY %3$s', answer, v_exact, v_order, k);
    END IF;
    -- Distances are exact whatever finds the rows.
    v_found := format(E'(SELECT %s, %s AS distance FROM %s\n   WHERE %s AND %s IS NOT NULL\n   ORDER BY %5$s %s %s LIMIT %s)',
                      carry, distance, source, condition, code, code_operator, code_query, candidate_count);
    IF code_column THEN
        -- What has no code yet is compared one by one.
        v_found := format(E'%s\n  UNION ALL\n  (%s AND %s IS NULL\n   ORDER BY distance LIMIT %s)', v_found, v_exact, code, k);
    END IF;
    v_found := format(E'WITH "sqlvec found" AS MATERIALIZED (\n  %s\n), "sqlvec counted" AS (SELECT count(*) AS n FROM "sqlvec found" WHERE distance <> ''NaN'')',
                      v_found);
    IF NOT whole THEN
        -- An index that was asked for is a budget: say so when it ran out.
        RETURN format(E'%s\nSELECT %s, h.distance, (SELECT n FROM "sqlvec counted") >= %s FROM (\n  SELECT * FROM "sqlvec found" ORDER BY %s LIMIT %3$s) AS h\n'
                      'WHERE h.distance <> ''NaN'' ORDER BY %4$s', v_found, answer, k, v_order);
    END IF;
    -- The scan of an index may end before it has found the candidates: then, and only then, all
    -- matches are read, so that a short answer means few matches and a cut scan is no answer.
    RETURN format(E'%s,\n"sqlvec exact" AS (%s AND (SELECT n FROM "sqlvec counted") < %s)\nSELECT %s, h.distance, true FROM (\n'
                  '  SELECT %s, distance FROM "sqlvec found" WHERE (SELECT n FROM "sqlvec counted") >= %3$s\n'
                  '  UNION ALL SELECT %5$s, distance FROM "sqlvec exact"\n'
                  '  ORDER BY %6$s LIMIT %7$s) AS h\nWHERE h.distance <> ''NaN'' ORDER BY %6$s',
                  v_found, v_exact, candidate_count, answer, carried, v_order, k);
END
$body$;
