-- The server's part of a backfill whose codes are computed by a client: which columns, which rows, and
-- the UPDATE. A sweep ends where sqlvec.backfill goes on: with every row that the client left alone.

-- What a client may encode: per derived column with one code, its encoder and the leaf tables. Nothing
-- where sqlvec.backfill has something to refuse, to verify or to mend.
CREATE OR REPLACE FUNCTION sqlvec._bulk_columns(rel oid, target text)
RETURNS TABLE (derived_id int, kind text, encoder text, leaf oid)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT d.id, d.kind, d.encoder, t.leaf
    FROM sqlvec._derived_of(rel) AS d CROSS JOIN sqlvec._leaves(rel) AS t
    WHERE (_bulk_columns.target IS NULL OR d.target_column = _bulk_columns.target)
      AND d.maintained AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL
      AND cardinality(d.source_columns) = 1 AND cardinality(d.target_columns) = 1
      AND NOT row_security_active(rel)
      AND NOT EXISTS (SELECT FROM sqlvec._leaves(rel) AS l WHERE row_security_active(l.leaf))
      AND has_database_privilege(current_database(), 'TEMPORARY')
    ORDER BY d.id, t.leaf;
END;

-- Lock up to `batch` rows that wait, and read them, each as the bytes of a halfvec[] or, of one vector, of
-- a vector[]; their codes are expected in table "sqlvec codes" of this transaction. No rows when the column is not what it was when the client looked.
CREATE OR REPLACE FUNCTION sqlvec._bulk_read(
    derived_id int, encoder text, leaf oid, first_block bigint, end_block bigint, batch int, sweep boolean
) RETURNS TABLE (tid tid, source bytea)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_derived sqlvec._derived;
BEGIN
    PERFORM sqlvec._hold_leaf(leaf);
    SELECT d.* INTO v_derived FROM sqlvec._derived AS d
    WHERE d.id = derived_id AND d.encoder = _bulk_read.encoder AND d.maintained
      AND d.source_column IS NOT NULL AND d.target_column IS NOT NULL;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- For this transaction only: behind a pooler the next one may be on another session.
    EXECUTE format('CREATE TEMPORARY TABLE "sqlvec codes" ON COMMIT DROP AS SELECT t.ctid AS tid, t.%I AS code FROM ONLY %s AS t LIMIT 0',
                   v_derived.target_column, sqlvec._qualified(leaf));
    RETURN QUERY EXECUTE format('SELECT t.ctid, array_send(%s) %s',
                                format(CASE v_derived.kind WHEN 'hubness' THEN 'ARRAY[sqlvec._as_vector(t.%I)]' ELSE 'sqlvec._halfvecs(t.%I)' END,
                                       v_derived.source_column),
                                sqlvec._waiting_rows(leaf, v_derived, false, sweep, false))
        USING sqlvec._block_tid(first_block), sqlvec._block_tid(end_block), batch;
END
$body$;

-- Give the rows that were read the codes in "sqlvec codes"; how many took theirs. No SET: the
-- application's triggers run inside.
CREATE OR REPLACE FUNCTION sqlvec._bulk_write(derived_id int, leaf oid) RETURNS int
LANGUAGE plpgsql
AS $body$
DECLARE
    v_derived sqlvec._derived := sqlvec._derived_now(derived_id, leaf);
    v_done int;
BEGIN
    PERFORM sqlvec._stand_aside(leaf, v_derived);
    -- The array is for the plan, which may not read the table.
    EXECUTE pg_catalog.format(
        'UPDATE ONLY %s AS t SET %I = c.code FROM pg_temp."sqlvec codes" AS c '
        'WHERE t.ctid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT a.tid FROM pg_temp."sqlvec codes" AS a)) AND t.ctid OPERATOR(pg_catalog.=) c.tid',
        sqlvec._qualified(leaf), v_derived.target_column);
    GET DIAGNOSTICS v_done = ROW_COUNT;
    RETURN v_done;
END
$body$;
