-- sqlvec.backfill: codes for the rows that were there before the column was declared.

-- Which rows `t` of a table wait for their code: those without one or, to verify, those whose code
-- differs from what their source gives.
CREATE OR REPLACE FUNCTION sqlvec._waits(derived sqlvec._derived, verify boolean) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE WHEN NOT verify THEN sqlvec._unfinished((derived).target_column, (derived).encoded_columns, 't.')
                WHEN cardinality((derived).target_columns) = 1
                THEN format('sqlvec._differ(t.%I, %s)', (derived).target_column, sqlvec._code_expression(derived, 't.'))
                ELSE format('(SELECT %s FROM %s AS c (%s))',
                            (SELECT string_agg(format('sqlvec._differ(t.%I, c%s)', t.name, t.position), ' OR ')
                             FROM unnest((derived).target_columns) WITH ORDINALITY AS t (name, position)),
                            sqlvec._code_expression(derived, 't.'),
                            (SELECT string_agg('c' || n, ', ') FROM generate_subscripts((derived).target_columns, 1) AS n)) END;
END;

-- The rows `t` of one leaf table that wait between tids $1 and $2, at most $3 of them, locked. Foreign
-- keys that refer to them are not in the way. A sweep has to read the table in its order: batch by batch the
-- index over the rows that wait would lead through all that were done before, so the condition is put
-- in words that are not the index's.
CREATE OR REPLACE FUNCTION sqlvec._waiting_rows(leaf oid, derived sqlvec._derived, verify boolean, sweep boolean, wait boolean) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT format('FROM ONLY %s AS t WHERE t.ctid OPERATOR(pg_catalog.>=) $1 AND t.ctid OPERATOR(pg_catalog.<) $2 AND %s LIMIT $3 FOR NO KEY UPDATE %s',
                  sqlvec._qualified(leaf),
                  CASE WHEN sweep AND NOT verify
                       THEN format('pg_catalog.num_nulls(t.%I) OPERATOR(pg_catalog.=) 1 AND %s', (derived).target_column,
                                   sqlvec._has_source((derived).encoded_columns, 't.'))
                       ELSE sqlvec._waits(derived, verify) END,
                  CASE WHEN wait THEN '' ELSE 'SKIP LOCKED' END);
END;

-- The first tid of a block.
CREATE OR REPLACE FUNCTION sqlvec._block_tid(block bigint) RETURNS tid
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN format('(%s,0)', block)::tid;

-- What an UPDATE of rows `t` sets.
CREATE OR REPLACE FUNCTION sqlvec._assignment(derived sqlvec._derived) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE WHEN cardinality((derived).target_columns) = 1
                THEN format('%I = %s', (derived).target_column, sqlvec._code_expression(derived, 't.'))
                ELSE format('(%s) = (SELECT c.* FROM %s AS c)',
                            (SELECT string_agg(quote_ident(t.name), ', ' ORDER BY t.position)
                             FROM unnest((derived).target_columns) WITH ORDINALITY AS t (name, position)),
                            sqlvec._code_expression(derived, 't.')) END;
END;

-- What a derived column is bound to now: its encoder, the name of the table, and the numbers of columns with these names.
-- Text, because arrays have no operator of their own that a caller's search_path could not shadow.
CREATE OR REPLACE FUNCTION sqlvec._bound_to(derived sqlvec._derived, rel oid) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT concat_ws(' ', (SELECT d.encoder FROM sqlvec.derived AS d WHERE d.id = (derived).id), sqlvec._qualified(rel),
                     (SELECT string_agg(a.attnum::text, ' ' ORDER BY a.attname) FROM pg_catalog.pg_attribute AS a
                      WHERE a.attrelid = rel AND a.attname = ANY ((derived).source_columns || (derived).target_columns)));
END;

-- Whether another column is derived from this one.
CREATE OR REPLACE FUNCTION sqlvec._is_source(derived sqlvec._derived) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM sqlvec.derived AS d
                   WHERE d.relation_id = (derived).relation_id AND (derived).known_target = ANY (d.source_columns));
END;

-- Have the trigger, for the rest of this transaction, leave the codes alone that are computed here. It
-- still compares the source, unless no other trigger could have changed that (bit 1 of tgtype is
-- BEFORE, bit 4 UPDATE): comparing reads a long vector twice. It has to where a code is a source itself.
CREATE OR REPLACE FUNCTION sqlvec._stand_aside(leaf oid, derived sqlvec._derived) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM set_config('sqlvec.maintain', CASE WHEN EXISTS (
        SELECT FROM pg_trigger AS t
        WHERE t.tgrelid = leaf AND NOT t.tgisinternal AND t.tgtype & 18::smallint = 18::smallint AND t.tgname <> '~sqlvec'
    ) OR sqlvec._is_source(derived) THEN 'off' ELSE 'skip' END, true);
    -- A crash may lose the last batches, which are then done again: no commit needs to wait for the disk.
    PERFORM set_config('synchronous_commit', 'off', true);
    -- To compile the statement of a batch takes longer than to run it.
    PERFORM set_config('jit', 'off', true);
END
$body$;

-- The statement that encodes rows that wait, as sqlvec._waiting_rows finds them. Locks only rows it can
-- have at once, unless told to wait.
CREATE OR REPLACE FUNCTION sqlvec._batch_statement(leaf oid, derived sqlvec._derived, verify boolean, sweep boolean, wait boolean) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN format(
        'WITH had AS MATERIALIZED (SELECT ARRAY(SELECT t.ctid %5$s) AS rows), '
        'done AS (UPDATE ONLY %1$s AS t SET %4$s WHERE t.ctid OPERATOR(pg_catalog.=) ANY ((SELECT h.rows FROM had AS h)::pg_catalog.tid[]) '
        'RETURNING t.%3$I IS NOT NULL OR NOT %2$s AS encoded) '
        'SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE d.encoded), '
        '(SELECT (pg_catalog.max(r)::pg_catalog.text::pg_catalog.point)[0] FROM had AS h, pg_catalog.unnest(h.rows) AS r) FROM done AS d',
        sqlvec._qualified(leaf), sqlvec._has_source(derived.encoded_columns, 't.'), derived.target_column,
        sqlvec._assignment(derived), sqlvec._waiting_rows(leaf, derived, verify, sweep, wait));
END
$body$;

-- Encode up to `batch` rows that wait, of one leaf table between two blocks; last_block is the last one
-- it took rows from. No SET: the application's triggers run inside.
CREATE OR REPLACE FUNCTION sqlvec._backfill_batch(
    leaf oid, derived sqlvec._derived, statement text, first_block bigint, end_block bigint, batch int, OUT done int, OUT last_block bigint
) LANGUAGE plpgsql
AS $body$
DECLARE
    v_encoded int;
    v_message pg_catalog.text;
BEGIN
    PERFORM sqlvec._stand_aside(leaf, derived);
    EXECUTE statement INTO done, v_encoded, last_block
    USING sqlvec._block_tid(first_block), sqlvec._block_tid(end_block), batch;
    IF v_encoded OPERATOR(pg_catalog.<) done THEN
        RAISE EXCEPTION 'encoder "%" gives no code for rows of table %', derived.encoder, sqlvec._qualified(leaf)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Its rows in sqlvec.encoder_vector are missing, or a trigger of the table empties the column.';
    END IF;
EXCEPTION WHEN data_exception THEN
    GET STACKED DIAGNOSTICS v_message = MESSAGE_TEXT;
    RAISE EXCEPTION 'encoder "%" cannot encode column "%" of table %: %', derived.encoder, derived.source_column, sqlvec._qualified(leaf), v_message
        USING ERRCODE = SQLSTATE,
              DETAIL = pg_catalog.format('A row in blocks %s to %s of the table; everything before is committed.', first_block, end_block);
END
$body$;

-- Where a sweep over one leaf table starts or goes on, the block it ends before, how many blocks
-- to take at first, and whether to read them: less than a batch the index finds at once, in one step to the
-- end. NULL when the column was dropped meanwhile.
CREATE OR REPLACE FUNCTION sqlvec._begin_sweep(derived_id int, leaf oid, batch int, verify boolean, caller_path text,
    OUT block bigint, OUT end_block bigint, OUT step bigint, OUT sweep boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $body$
DECLARE
    v_derived sqlvec._derived;
    v_waiting int;
    v_path text := current_setting('search_path');
BEGIN
    PERFORM sqlvec._hold_leaf(_begin_sweep.leaf);
    INSERT INTO sqlvec.backfill_state AS s (derived_id, leaf, end_block)
    SELECT d.id, _begin_sweep.leaf, pg_relation_size(_begin_sweep.leaf) / current_setting('block_size')::int
    FROM sqlvec.derived AS d WHERE d.id = _begin_sweep.derived_id
    ON CONFLICT ON CONSTRAINT backfill_state_pkey DO UPDATE
    SET end_block = excluded.end_block,
        block = CASE WHEN s.finished_at IS NULL THEN s.block ELSE 0 END,
        rows_done = CASE WHEN s.finished_at IS NULL THEN s.rows_done ELSE 0 END,
        started_at = CASE WHEN s.finished_at IS NULL THEN s.started_at ELSE clock_timestamp() END,
        updated_at = clock_timestamp(), finished_at = NULL
    RETURNING s.block, s.end_block INTO _begin_sweep.block, _begin_sweep.end_block;
    -- A batch of blocks, as far as the statistics of the table can tell.
    step := greatest(1, least(4096, coalesce(
        (SELECT batch * c.relpages::bigint / nullif(greatest(c.reltuples, 0)::bigint, 0)
         FROM pg_class AS c WHERE c.oid = _begin_sweep.leaf), 8)));
    sweep := true;
    SELECT d.* INTO v_derived FROM sqlvec._derived AS d
    WHERE d.id = _begin_sweep.derived_id AND NOT (verify OR d.suspect)
      AND CASE WHEN d.target_column IS NOT NULL AND array_position(d.encoded_columns, NULL) IS NULL
               THEN sqlvec._has_unfinished_index(_begin_sweep.leaf, d.target_column, d.encoded_columns) END;
    IF FOUND THEN
        -- Under the caller's search_path: the planner looks at expressions of the table's indexes on the way.
        PERFORM set_config('search_path', caller_path, true);
        EXECUTE pg_catalog.format('SELECT pg_catalog.count(*) FROM (SELECT FROM ONLY %s WHERE %s LIMIT $1) AS w', sqlvec._qualified(leaf),
                                  sqlvec._unfinished(v_derived.target_column, v_derived.encoded_columns, ''))
        INTO v_waiting USING batch;
        PERFORM pg_catalog.set_config('search_path', v_path, true);
        IF v_waiting < batch THEN
            step := greatest(end_block - block, 1);
            sweep := false;
        END IF;
    END IF;
END
$body$;

-- Note a batch that took `had` rows up to last_block and finished `done` of them; where to go on from,
-- and by how many blocks.
CREATE OR REPLACE FUNCTION sqlvec._go_on(
    derived_id int, leaf oid, INOUT block bigint, INOUT step bigint, batch int, had int, done int, last_block bigint
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    -- A full batch may have left rows behind, from its last block on; those of a batch that finished
    -- none are left to the passes after the sweep.
    v_next bigint := CASE WHEN had < batch THEN block + step ELSE greatest(block, last_block) + (done = 0)::int END;
BEGIN
    step := greatest(1, least(4096, greatest(v_next - block, 1) * batch / greatest(had, 1), step * 2));
    block := v_next;
    UPDATE sqlvec.backfill_state AS s
    SET block = greatest(s.block, v_next), rows_done = s.rows_done + done, updated_at = clock_timestamp()
    WHERE s.derived_id = _go_on.derived_id AND s.leaf = _go_on.leaf;
END
$body$;

-- Commits at once, so that a call inside a transaction block fails before any work, in a
-- function whose name says why.
CREATE OR REPLACE PROCEDURE sqlvec._backfill_cannot_run_inside_a_transaction_block() LANGUAGE plpgsql
AS $body$
BEGIN
    COMMIT;
END
$body$;

-- What a backfill works on, checked: the derived columns and the leaf tables.
CREATE OR REPLACE FUNCTION sqlvec._begin_backfill(rel regclass, target text, batch int, OUT derived_ids int[], OUT leaves oid[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $body$
DECLARE
    v_leaf oid;
BEGIN
    IF batch IS NULL OR batch < 1 THEN
        RAISE EXCEPTION 'batch is a number of rows, 1 or more, not %', batch USING ERRCODE = 'invalid_parameter_value';
    END IF;
    derived_ids := ARRAY(SELECT d.id FROM sqlvec._derived_of(rel) AS d
                         WHERE target IS NULL OR d.target_column = target ORDER BY d.id);
    IF cardinality(derived_ids) = 0 THEN
        RAISE EXCEPTION 'table % has no derived column%', rel, coalesce(' "' || target || '"', '')
            USING ERRCODE = 'undefined_column',
                  HINT = coalesce(sqlvec._derived_columns_of(rel), 'Declare one with CALL sqlvec.add_quantized(...).');
    END IF;
    IF EXISTS (SELECT FROM sqlvec._derived AS d WHERE d.id = ANY (derived_ids) AND NOT d.maintained AND NOT d.suspect) THEN
        RAISE EXCEPTION 'the trigger of table % does not keep its codes: new ones would go stale', rel
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('SELECT problem FROM sqlvec.derived_column; mostly CALL sqlvec.repair(%L); helps.', rel);
    END IF;
    leaves := ARRAY(SELECT t.leaf FROM sqlvec._leaves(rel) AS t ORDER BY t.leaf);
    FOR v_leaf IN SELECT rel FROM pg_class AS c WHERE c.oid = rel AND c.relkind = 'f' UNION ALL SELECT f.part FROM sqlvec._foreign_parts(rel) AS f LOOP
        RAISE NOTICE 'rows of foreign table % get their codes where they are', sqlvec._qualified(v_leaf)
            USING HINT = 'Run the backfill of the table behind it there.';
    END LOOP;
    FOREACH v_leaf IN ARRAY leaves LOOP
        IF row_security_active(v_leaf) OR row_security_active(rel) THEN
            RAISE EXCEPTION 'row security hides rows of table % from role "%"', sqlvec._qualified(v_leaf), current_user
                USING ERRCODE = 'insufficient_privilege',
                      HINT = 'Run the backfill as the owner of the table or as a role with BYPASSRLS.';
        ELSIF NOT (has_any_column_privilege(v_leaf, 'SELECT') AND has_any_column_privilege(v_leaf, 'UPDATE')) THEN
            RAISE EXCEPTION 'role "%" may not read and update table %', current_user, sqlvec._qualified(v_leaf)
                USING ERRCODE = 'insufficient_privilege',
                      HINT = format('GRANT SELECT, UPDATE ON %s TO %I;', sqlvec._qualified(v_leaf), current_user);
        END IF;
    END LOOP;
END
$body$;

-- Note rows that were done behind the sweep, or that the whole table is.
CREATE OR REPLACE FUNCTION sqlvec._note_rows(derived_id int, leaf oid, done int, finished boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    UPDATE sqlvec.backfill_state AS s
    SET rows_done = s.rows_done + done, updated_at = clock_timestamp(),
        block = CASE WHEN finished THEN s.end_block ELSE s.block END,
        finished_at = CASE WHEN finished THEN clock_timestamp() ELSE s.finished_at END
    WHERE s.derived_id = _note_rows.derived_id AND s.leaf = _note_rows.leaf;
END
$body$;

CREATE OR REPLACE PROCEDURE sqlvec.backfill(
    rel regclass, target text = NULL, batch int = 1000, verify boolean = false
) LANGUAGE plpgsql
AS $body$
DECLARE
    v_ids int[];
    v_id int;
    v_derived sqlvec._derived;
    v_leaves pg_catalog.oid[];
    v_leaf pg_catalog.oid;
    v_block bigint;
    v_end bigint;
    v_step bigint;
    v_sweep boolean;
    v_rows int;
    v_last bigint;
    v_known pg_catalog.text;
    v_statement pg_catalog.text;
    v_left boolean;
    v_waits int := 0;
BEGIN
    SELECT b.derived_ids, b.leaves INTO v_ids, v_leaves FROM sqlvec._begin_backfill(rel, target, batch) AS b;
    CALL sqlvec._backfill_cannot_run_inside_a_transaction_block();
    -- Whatever the session's default: each batch has to see what others have committed, names above all.
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;

    FOREACH v_id IN ARRAY v_ids LOOP
        FOREACH v_leaf IN ARRAY v_leaves LOOP
            -- A partition may be gone by now.
            CONTINUE WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) v_leaf);
            -- Nothing where the column was dropped meanwhile, which is found out below.
            SELECT b.block, b.end_block, b.step, b.sweep INTO v_block, v_end, v_step, v_sweep FROM sqlvec._begin_sweep(v_id, v_leaf, batch, verify, pg_catalog.current_setting('search_path')) AS b;
            COMMIT AND CHAIN;
            v_known := NULL;

            -- Sweep forward in short transactions, over rows nobody else has locked. Rows that the
            -- updates append behind the end are encoded already.
            WHILE v_block OPERATOR(pg_catalog.<) v_end LOOP
                -- Names and encoder may change between two transactions; the view is read again only when they do.
                PERFORM sqlvec._hold_leaf(v_leaf);
                IF v_known IS NULL OR sqlvec._bound_to(v_derived, v_leaf) OPERATOR(pg_catalog.<>) v_known THEN
                    v_derived := sqlvec._derived_now(v_id, v_leaf);
                    v_known := sqlvec._bound_to(v_derived, v_leaf);
                    v_statement := sqlvec._batch_statement(v_leaf, v_derived, verify OR v_derived.suspect, v_sweep, false);
                END IF;
                SELECT b.done, b.last_block INTO v_rows, v_last
                FROM sqlvec._backfill_batch(v_leaf, v_derived, v_statement, v_block, v_block OPERATOR(pg_catalog.+) v_step, batch) AS b;
                SELECT n.block, n.step INTO v_block, v_step
                FROM sqlvec._go_on(v_id, v_leaf, v_block, v_step, batch, v_rows, v_rows, v_last) AS n;
                COMMIT AND CHAIN;
            END LOOP;

            -- What was locked by others, or written behind the sweep. When only locked rows are
            -- left, wait for one of them at a time, holding nothing else: no deadlock is possible.
            LOOP
                PERFORM sqlvec._hold_leaf(v_leaf);
                v_derived := sqlvec._derived_now(v_id, v_leaf);
                EXECUTE pg_catalog.format('SELECT EXISTS (SELECT FROM ONLY %s AS t WHERE %s)', sqlvec._qualified(v_leaf),
                                          sqlvec._waits(v_derived, verify OR v_derived.suspect))
                INTO v_left;
                EXIT WHEN NOT v_left;
                v_statement := sqlvec._batch_statement(v_leaf, v_derived, verify OR v_derived.suspect, false, false);
                v_rows := (sqlvec._backfill_batch(v_leaf, v_derived, v_statement, 0, 4294967295, batch)).done;
                IF v_rows OPERATOR(pg_catalog.=) 0 THEN
                    v_statement := sqlvec._batch_statement(v_leaf, v_derived, verify OR v_derived.suspect, false, true);
                    v_rows := (sqlvec._backfill_batch(v_leaf, v_derived, v_statement, 0, 4294967295, 1)).done;
                    -- Another backfill may have been faster, but not time and again.
                    v_waits := CASE WHEN v_rows OPERATOR(pg_catalog.=) 0 THEN v_waits OPERATOR(pg_catalog.+) 1 ELSE 0 END;
                    IF v_waits OPERATOR(pg_catalog.>) 100 THEN
                        RAISE EXCEPTION 'rows of table % cannot be updated', sqlvec._qualified(v_leaf)
                            USING ERRCODE = 'object_not_in_prerequisite_state',
                                  HINT = 'A trigger of the table turns the update away; every other row has its code.';
                    END IF;
                END IF;
                PERFORM sqlvec._note_rows(v_id, v_leaf, v_rows, false);
                COMMIT AND CHAIN;
            END LOOP;
            PERFORM sqlvec._note_rows(v_id, v_leaf, 0, true);
            COMMIT AND CHAIN;
        END LOOP;

        v_derived := sqlvec._derived_now(v_id, rel);
        IF v_derived.suspect AND NOT sqlvec._owns(rel) THEN
            RAISE NOTICE 'the codes of column "%" are right now, but searches leave them aside until the owner of table % says so',
                v_derived.target_column, sqlvec._qualified(rel)
                USING HINT = pg_catalog.format('The owner: CALL sqlvec.backfill(%L, %L);', sqlvec._qualified(rel), v_derived.target_column);
        ELSIF v_derived.suspect THEN
            UPDATE sqlvec.derived AS d SET suspect = false, reweighed = false WHERE d.id OPERATOR(pg_catalog.=) v_id;
            COMMIT AND CHAIN;
        END IF;
        IF sqlvec._owns(rel) AND NOT sqlvec._has_unfinished_index(rel, v_derived.target_column, v_derived.encoded_columns) THEN
            IF NOT sqlvec._index_unfinished(rel, v_derived.target_column) THEN
                RAISE NOTICE 'searches of % look for rows without a code by reading the table', rel
                    USING HINT = pg_catalog.format('Make that instant: %s;', sqlvec._unfinished_index_sql(rel, v_derived.target_column, true));
            END IF;
            COMMIT AND CHAIN;
        END IF;
    END LOOP;
    -- A caller goes on at the isolation of the session.
    COMMIT;
END
$body$;

COMMENT ON PROCEDURE sqlvec.backfill(regclass, text, int, boolean) IS
    'Fill derived columns of rows that have none, in committed batches that skip locked rows; started again, it goes on where it stopped. verify compares the codes that are there with their source too, and mends those that differ. Cannot run inside a transaction block.';

CREATE OR REPLACE VIEW sqlvec.backfill_progress AS
SELECT d.relation::regclass AS relation,
       d.target_column,
       CASE WHEN pg_catalog.count(s.derived_id) = 0 THEN 'pending'
            WHEN pg_catalog.count(s.finished_at) = pg_catalog.count(*) THEN 'done'
            ELSE 'running' END AS state,
       pg_catalog.sum(coalesce(least(s.block, s.end_block), 0))::bigint AS blocks_done,
       pg_catalog.sum(coalesce(s.end_block, b.blocks))::bigint AS blocks_total,
       coalesce(pg_catalog.sum(s.rows_done), 0)::bigint AS rows_done,
       pg_catalog.min(s.started_at) AS started_at,
       pg_catalog.max(s.updated_at) AS updated_at
FROM sqlvec._derived AS d
CROSS JOIN LATERAL (
    SELECT t.leaf,
           pg_catalog.pg_relation_size(t.leaf) / pg_catalog.current_setting('block_size')::int AS blocks
    FROM sqlvec._leaves(d.relation) AS t
) AS b
LEFT JOIN sqlvec.backfill_state AS s ON s.derived_id = d.id AND s.leaf = b.leaf
GROUP BY d.id, d.relation, d.target_column;

COMMENT ON VIEW sqlvec.backfill_progress IS
    'How far the backfill of each derived column is, in blocks of the table and rows encoded. state: pending, running (or interrupted: see updated_at), done.';
