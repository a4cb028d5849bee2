-- Locks that keep the names of a table for a transaction that will use them.

-- Lock a table against changes of its name and columns until the end of the transaction, by the name that
-- the statement `lock` is given. Names may change until the lock is there; they come from the system
-- cache, which knows what others have committed whatever the snapshot of the transaction.
CREATE OR REPLACE FUNCTION sqlvec._hold(rel oid, lock text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    v_name text;
BEGIN
    LOOP
        v_name := rel::regclass::text;
        IF v_name ~ '^[0-9]+$' THEN -- the bare number: a name of digits would be quoted
            RAISE EXCEPTION 'a table was dropped while work on it went on' USING ERRCODE = 'undefined_table';
        END IF;
        BEGIN
            EXECUTE format(lock, v_name);
        EXCEPTION WHEN undefined_table OR invalid_schema_name THEN
            IF rel::regclass::text = v_name THEN
                RAISE;
            END IF;
            CONTINUE; -- has another name by now
        END;
        EXIT WHEN to_regclass(v_name) = rel;
    END LOOP;
END
$body$;

-- The same for what reads a table, with no more rights than to read some of its columns.
CREATE OR REPLACE FUNCTION sqlvec._hold_to_read(rel oid) RETURNS void
LANGUAGE sql
BEGIN ATOMIC
    SELECT sqlvec._hold(rel, CASE WHEN pg_catalog.has_table_privilege(rel, 'SELECT') THEN 'LOCK TABLE ONLY %s IN ACCESS SHARE MODE'
                                  ELSE 'SELECT FROM ONLY %s WHERE false' END);
END;

-- The same for a batch of a backfill. What changes a partitioned table locks that first, then its
-- partitions: a batch goes the same way, and before any row of the catalog.
CREATE OR REPLACE FUNCTION sqlvec._hold_leaf(leaf oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF (SELECT c.relispartition FROM pg_class AS c WHERE c.oid = leaf) THEN
        PERFORM sqlvec._hold_to_read(a.relid::oid)
        FROM (SELECT p.relid FROM pg_partition_ancestors(leaf) WITH ORDINALITY AS p (relid, position)
              WHERE p.relid <> leaf AND has_any_column_privilege(p.relid, 'SELECT') ORDER BY p.position DESC) AS a;
    END IF;
    PERFORM sqlvec._hold(leaf, 'LOCK TABLE ONLY %s IN ROW EXCLUSIVE MODE');
END
$body$;
