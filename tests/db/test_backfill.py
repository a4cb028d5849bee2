"""Backfill: batches, locks, interruption, two at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from sqlvec.embedded import Server

WRONG = "SELECT count(*) FROM doc WHERE code IS DISTINCT FROM binary_quantize(embedding)::bit(16)"


def fill(connection: psycopg.Connection[Any], rows: int) -> None:
    connection.execute("CREATE TABLE doc (id int PRIMARY KEY, note text, embedding vector(16))")
    connection.execute(
        "INSERT INTO doc SELECT i, repeat('x', i %% 90), CASE WHEN i %% 9 > 0 THEN"
        " (SELECT array_agg(sin(i * j)) FROM generate_series(1, 16) AS j)::vector END"
        " FROM generate_series(1, %s) AS i",
        [rows],
    )
    connection.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")


@pytest.fixture
def database(tmp_database: Callable[..., str]) -> str:
    return tmp_database()


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def progress(connection: psycopg.Connection[Any]) -> Any:
    return connection.execute(
        "SELECT state, blocks_done = blocks_total, rows_done FROM sqlvec.backfill_progress"
    ).fetchone()


@pytest.mark.parametrize("batch", [1, 7, 1000, 100000])
def test_every_row_gets_its_code(db: psycopg.Connection[Any], batch: int) -> None:
    fill(db, 300 if batch == 1 else 3000)
    assert progress(db)[0] == "pending"
    (missing,) = db.execute("SELECT count(embedding) FROM doc").fetchone() or (0,)
    (blocks,) = db.execute("SELECT blocks_total FROM sqlvec.backfill_progress").fetchone() or (0,)
    db.execute("CALL sqlvec.backfill('doc', batch => %s)", [batch])
    assert db.execute(WRONG).fetchone() == (0,)
    assert progress(db) == ("done", True, missing)
    # The table has grown by the updates; what there was to do has not.
    assert db.execute("SELECT blocks_total FROM sqlvec.backfill_progress").fetchone() == (blocks,)
    # A second run finds nothing to do.
    db.execute("CALL sqlvec.backfill('doc', 'code')")
    assert progress(db) == ("done", True, 0)


def read_of_index(db: psycopg.Connection[Any], doc: str = "doc") -> tuple[int, int]:
    """Entries read of the index over the rows that wait, and pages read of the table."""
    db.execute("SELECT pg_stat_force_next_flush()")
    row = db.execute(
        "SELECT s.idx_tup_read, pg_stat_get_blocks_fetched(%s::regclass)"
        " FROM pg_stat_user_indexes AS s WHERE s.indexrelname LIKE '%%unfinished'",
        [doc],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def test_a_sweep_does_not_go_through_the_index(db: psycopg.Connection[Any], database: str) -> None:
    """Batch by batch through the entries of all batches before, which an old snapshot keeps.

    The planner would take it after a bulk load: statistics say that no row waits.
    """
    fill(db, 3000)
    db.execute("DELETE FROM doc WHERE embedding IS NULL")
    db.execute("CALL sqlvec.backfill('doc')")
    db.execute("UPDATE doc SET note = repeat('x', 1200)")
    db.execute("VACUUM (FULL, ANALYZE) doc")
    db.execute("SET sqlvec.maintain = off; UPDATE doc SET code = NULL; RESET sqlvec.maintain")
    before, _ = read_of_index(db)
    with psycopg.connect(database) as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT")
        db.execute("CALL sqlvec.backfill('doc', batch => 100)")
    entries, _ = read_of_index(db)
    # Once or twice at the end, to see that nothing is left; not once for each of 27 batches.
    assert entries - before <= 3 * 3000
    assert db.execute(WRONG).fetchone() == (0,)


def test_few_rows_are_found_without_a_sweep(db: psycopg.Connection[Any]) -> None:
    fill(db, 3000)
    db.execute("CALL sqlvec.backfill('doc')")
    db.execute("VACUUM ANALYZE doc")
    db.execute("SET sqlvec.maintain = off; UPDATE doc SET code = NULL WHERE id IN (7, 2999);")
    db.execute("RESET sqlvec.maintain")
    (pages,) = db.execute("SELECT pg_relation_size('doc') / 8192").fetchone() or (0,)
    _, before = read_of_index(db)
    db.execute("CALL sqlvec.backfill('doc')")
    _, after = read_of_index(db)
    assert db.execute(WRONG).fetchone() == (0,)
    assert progress(db) == ("done", True, 2)
    assert after - before < pages / 2


def test_batches_are_committed_and_bounded(db: psycopg.Connection[Any], database: str) -> None:
    fill(db, 2000)
    db.execute("CREATE TABLE seen (xid bigint, n int)")
    db.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen"
        " SELECT pg_current_xact_id()::text::bigint, count(*) FROM new_rows; RETURN NULL; END $$"
    )
    db.execute(
        "CREATE TRIGGER note AFTER UPDATE ON doc REFERENCING NEW TABLE AS new_rows"
        " FOR EACH STATEMENT EXECUTE FUNCTION note()"
    )
    db.execute("CALL sqlvec.backfill('doc', batch => 50)")
    row = db.execute(
        "SELECT count(DISTINCT xid) = count(*), max(n) <= 50, count(*) >= 35, sum(n) FROM seen WHERE n > 0"
    ).fetchone()
    (missing,) = db.execute("SELECT count(embedding) FROM doc").fetchone() or (0,)
    assert row == (True, True, True, missing)


def test_it_goes_on_where_it_stopped(db: psycopg.Connection[Any], database: str) -> None:
    fill(db, 4000)
    # The hundredth row of the table's second half cannot be updated.
    db.execute("ALTER TABLE doc ADD CONSTRAINT stop CHECK (id <> 3001 OR code IS NULL) NOT VALID")
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute("CALL sqlvec.backfill('doc', batch => 100)")
    state, _, done = progress(db)
    assert state == "running"
    assert 0 < done < 3001
    (block,) = db.execute("SELECT block FROM sqlvec.backfill_state").fetchone() or (0,)
    assert block > 0
    db.execute("ALTER TABLE doc DROP CONSTRAINT stop")
    db.execute("CALL sqlvec.backfill('doc')")
    assert db.execute(WRONG).fetchone() == (0,)
    (missing,) = db.execute("SELECT count(embedding) FROM doc").fetchone() or (0,)
    assert progress(db) == ("done", True, missing)


def test_locked_rows_are_waited_for_last(db: psycopg.Connection[Any], database: str) -> None:
    fill(db, 2000)
    with psycopg.connect(database) as holder:
        holder.execute("SELECT id FROM doc WHERE id IN (10, 1500) FOR UPDATE")
        thread = threading.Thread(target=run_backfill, args=(database, 100))
        thread.start()
        deadline = time.monotonic() + 20
        while db.execute(
            "SELECT count(*) FROM doc WHERE code IS NULL AND embedding IS NOT NULL"
        ).fetchone() != (2,):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # Only the two locked rows are left, and the backfill holds no other lock while it waits.
        assert thread.is_alive()
        db.execute("UPDATE doc SET note = 'free' WHERE id NOT IN (10, 1500)")
        holder.execute("UPDATE doc SET note = 'was locked' WHERE id = 10")
        holder.commit()
    thread.join(20)
    assert not thread.is_alive()
    assert db.execute(WRONG).fetchone() == (0,)


def test_rows_that_others_refer_to_are_not_in_the_way(
    db: psycopg.Connection[Any], database: str
) -> None:
    """A foreign key that is being checked holds no row back: no key changes here."""
    fill(db, 500)
    db.execute("CREATE TABLE mention (doc_id int REFERENCES doc (id))")
    with psycopg.connect(database) as writer:
        writer.execute("INSERT INTO mention SELECT id FROM doc WHERE id < 50")
        db.execute("SET lock_timeout = '5s'")
        db.execute("CALL sqlvec.backfill('doc', batch => 100)")
        assert db.execute(WRONG).fetchone() == (0,)
        writer.commit()


def run_backfill(
    dsn: str, batch: int, isolation: str = "read committed", table: str = "doc"
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"SET default_transaction_isolation = '{isolation}'")
        connection.execute("CALL sqlvec.backfill(%s, batch => %s)", [table, batch])


def test_two_backfills_and_writers_at_once(db: psycopg.Connection[Any], database: str) -> None:
    fill(db, 6000)
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # Reported by the assertion below.
            failures.append(error)

    def write() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            for i in range(300):
                connection.execute(
                    "UPDATE doc SET embedding = embedding * array_fill(-1::real, ARRAY[16])::vector"
                    " WHERE id IN (%s, %s)",
                    [(i * 37) % 6000, (i * 101) % 6000],
                )
                connection.execute(
                    "INSERT INTO doc SELECT %s, '', embedding FROM doc WHERE id = 1", [10000 + i]
                )

    threads = [
        threading.Thread(target=guarded, args=(work,))
        for work in (
            lambda: run_backfill(database, 200),
            lambda: run_backfill(database, 300),
            write,
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert db.execute(WRONG).fetchone() == (0,)
    assert progress(db)[:2] == ("done", True)


def test_partitions(db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TABLE doc (id int, embedding vector(16)) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE low PARTITION OF doc FOR VALUES FROM (0) TO (100)")
    db.execute(
        "CREATE TABLE high PARTITION OF doc FOR VALUES FROM (100) TO (999) PARTITION BY LIST (id)"
    )
    db.execute("CREATE TABLE leaf PARTITION OF high DEFAULT")
    db.execute(
        "INSERT INTO doc SELECT i, (SELECT array_agg(cos(i * j)) FROM generate_series(1, 16) AS j)::vector"
        " FROM generate_series(1, 300) AS i"
    )
    db.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
    db.execute("CALL sqlvec.backfill('doc', batch => 30)")
    assert db.execute(WRONG).fetchone() == (0,)
    assert progress(db) == ("done", True, 300)


def test_several_columns(db: psycopg.Connection[Any]) -> None:
    fill(db, 500)
    db.execute(
        """CALL sqlvec.add_quantized('doc', 'embedding', 'truncate', options => '{"dimensions": 4}')"""
    )
    db.execute("CALL sqlvec.add_quantized('doc', 'embedding_truncate', 'binary', 'tiny')")
    db.execute("CALL sqlvec.backfill('doc')")
    row = db.execute(
        "SELECT count(*) FILTER (WHERE num_nulls(code, embedding_truncate, tiny) > 0) FROM doc WHERE embedding IS NOT NULL"
    ).fetchone()
    assert row == (0,)
    assert db.execute(
        "SELECT bool_and(tiny = binary_quantize(embedding_truncate)::bit(4)) FROM doc"
    ).fetchone() == (True,)


class TestStaleCodes:
    """Codes that no trigger kept are left out of searches until they have been compared."""

    def problem(self, db: psycopg.Connection[Any]) -> Any:
        (problem,) = db.execute("SELECT problem FROM sqlvec.derived_column").fetchone() or (None,)
        return problem

    def mend(self, db: psycopg.Connection[Any]) -> None:
        """Run the command that the view names, until it names none."""
        for _ in range(2):
            db.execute(self.problem(db).split("; ", 1)[1])
        assert self.problem(db) is None

    @pytest.mark.parametrize("switched_on_again", [False, True])
    def test_trigger_switched_off(
        self, db: psycopg.Connection[Any], switched_on_again: bool
    ) -> None:
        fill(db, 1000)
        db.execute("CALL sqlvec.backfill('doc')")
        db.execute("ALTER TABLE doc DISABLE TRIGGER ALL")
        db.execute(
            "UPDATE doc SET embedding = (SELECT embedding FROM doc WHERE id = 1) WHERE id > 500"
        )
        if switched_on_again:
            db.execute("ALTER TABLE doc ENABLE TRIGGER ALL")
        with pytest.raises(
            psycopg.errors.ObjectNotInPrerequisiteState, match="does not keep its codes"
        ):
            db.execute("CALL sqlvec.backfill('doc')")
        self.mend(db)
        assert db.execute(WRONG).fetchone() == (0,)

    def test_names_of_columns_swapped(self, db: psycopg.Connection[Any]) -> None:
        """The new model's vectors take over the name of the old ones."""
        fill(db, 1000)
        db.execute("CALL sqlvec.backfill('doc')")
        db.execute("ALTER TABLE doc ADD embedding_new vector(16)")
        db.execute("UPDATE doc SET embedding_new = (SELECT embedding FROM doc WHERE id = 1)")
        db.execute("ALTER TABLE doc RENAME embedding TO embedding_old")
        db.execute("ALTER TABLE doc RENAME embedding_new TO embedding")
        db.execute("UPDATE doc SET note = 'x', embedding_old = embedding_old, code = NULL")
        assert "another column has taken the name" in self.problem(db)
        self.mend(db)
        assert db.execute(WRONG.replace("embedding", "embedding_old")).fetchone() == (0,)
        db.execute(
            "INSERT INTO doc (id, embedding_old) SELECT 5000, embedding_old FROM doc WHERE id = 2"
        )
        assert db.execute(WRONG.replace("embedding", "embedding_old")).fetchone() == (0,)

    def test_rows_from_replication_without_their_codes(self, db: psycopg.Connection[Any]) -> None:
        fill(db, 10)
        db.execute("SET session_replication_role = replica")
        db.execute("INSERT INTO doc (id, embedding) SELECT id + 100, embedding FROM doc")
        db.execute("RESET session_replication_role")
        db.execute("CALL sqlvec.backfill('doc')")
        assert db.execute(WRONG).fetchone() == (0,)

    def test_verify_finds_what_no_catalog_tells(self, db: psycopg.Connection[Any]) -> None:
        """A partition that was changed while it was detached."""
        db.execute("CREATE TABLE doc (id int, embedding vector(16)) PARTITION BY RANGE (id)")
        db.execute("CREATE TABLE part PARTITION OF doc FOR VALUES FROM (0) TO (1000)")
        db.execute(
            "INSERT INTO doc SELECT i, (SELECT array_agg(cos(i * j)) FROM generate_series(1, 16) AS j)::vector"
            " FROM generate_series(1, 300) AS i"
        )
        db.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
        db.execute("CALL sqlvec.backfill('doc')")
        db.execute("ALTER TABLE doc DETACH PARTITION part")
        db.execute(
            "UPDATE part SET embedding = (SELECT embedding FROM part WHERE id = 1) WHERE id > 100"
        )
        db.execute("ALTER TABLE doc ATTACH PARTITION part FOR VALUES FROM (0) TO (1000)")
        (problem, remedy) = db.execute(
            "SELECT problem, remedy FROM sqlvec._findings() WHERE severity <> 'note'"
        ).fetchone() or ("", "")
        assert "of at most 1000 codes looked at are stale" in problem
        db.execute(remedy)
        assert db.execute(WRONG).fetchone() == (0,)
        assert db.execute(
            "SELECT count(*) FROM sqlvec._findings() WHERE severity <> 'note'"
        ).fetchone() == (0,)


def test_encoder_that_gives_no_code(db: psycopg.Connection[Any]) -> None:
    fill(db, 100)
    db.execute(
        """CALL sqlvec.add_quantized('doc', 'embedding', 'linear', 'lin', options => '{"dimensions": 4}')"""
    )
    db.execute("CREATE TABLE saved AS SELECT * FROM sqlvec.encoder_vector")
    db.execute("DELETE FROM sqlvec.encoder_vector")
    db.execute("SET statement_timeout = '20s'")
    with pytest.raises(
        psycopg.errors.ObjectNotInPrerequisiteState,
        match="gives no code for rows of table public.doc",
    ):
        db.execute("CALL sqlvec.backfill('doc', 'lin')")
    db.execute("INSERT INTO sqlvec.encoder_vector SELECT * FROM saved")
    db.execute("CALL sqlvec.backfill('doc', 'lin')")
    assert db.execute(
        "SELECT count(*) FROM doc WHERE embedding IS NOT NULL AND lin IS NULL"
    ).fetchone() == (0,)


def test_trigger_that_turns_updates_away(db: psycopg.Connection[Any]) -> None:
    fill(db, 100)
    db.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
    )
    db.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE ON doc FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    db.execute("SET statement_timeout = '20s'")
    with pytest.raises(
        psycopg.errors.ObjectNotInPrerequisiteState,
        match="rows of table public.doc cannot be updated",
    ):
        db.execute("CALL sqlvec.backfill('doc')")


def test_inside_a_transaction_block(db: psycopg.Connection[Any]) -> None:
    fill(db, 100)
    with pytest.raises(psycopg.errors.InvalidTransactionTermination) as caught, db.transaction():
        db.execute("CALL sqlvec.backfill('doc')")
    assert "backfill_cannot_run_inside_a_transaction_block" in str(caught.value.diag.context)
    assert progress(db)[0] == "pending"


def test_refusals(db: psycopg.Connection[Any]) -> None:
    fill(db, 10)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="1 or more, not 0"):
        db.execute("CALL sqlvec.backfill('doc', batch => 0)")
    with pytest.raises(
        psycopg.errors.UndefinedColumn, match='no derived column "nothing"'
    ) as caught:
        db.execute("CALL sqlvec.backfill('doc', 'nothing')")
    assert caught.value.diag.message_hint == "It has: code."
    db.execute("CREATE TABLE plain (id int)")
    with pytest.raises(
        psycopg.errors.UndefinedColumn, match="table public.plain has no derived column"
    ) as caught:
        db.execute("CALL sqlvec.backfill('plain')")
    assert "add_quantized" in str(caught.value.diag.message_hint)


def test_values_that_a_code_cannot_hold(db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE TABLE doc (id int, embedding vector(2))")
    db.execute("INSERT INTO doc VALUES (1, '[1e10,0]')")
    db.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'halfvec', 'code')")
    with pytest.raises(
        psycopg.errors.NumericValueOutOfRange,
        match='cannot encode column "embedding" of table public.doc: .*out of range for type halfvec',
    ):
        db.execute("CALL sqlvec.backfill('doc')")


def test_row_security_that_hides_rows(db: psycopg.Connection[Any]) -> None:
    fill(db, 100)
    db.execute("DROP ROLE IF EXISTS sqlvec_hidden")
    db.execute("CREATE ROLE sqlvec_hidden")
    try:
        db.execute("ALTER TABLE doc OWNER TO sqlvec_hidden")
        db.execute("ALTER TABLE doc ENABLE ROW LEVEL SECURITY")
        db.execute("ALTER TABLE doc FORCE ROW LEVEL SECURITY")
        db.execute("SET ROLE sqlvec_hidden")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row security hides rows"):
            db.execute("CALL sqlvec.backfill('doc')")
    finally:
        db.execute("RESET ROLE")
        db.execute("DROP OWNED BY sqlvec_hidden CASCADE")
        db.execute("DROP ROLE sqlvec_hidden")


def test_expressions_that_need_the_search_path(db: psycopg.Connection[Any], database: str) -> None:
    """The planner writes out SQL functions in statistics and indexes of every table it looks at."""
    db.execute(
        "CREATE FUNCTION inner_one(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN $1; END $$;"
        "CREATE FUNCTION outer_one(text) RETURNS text IMMUTABLE LANGUAGE sql AS"
        " 'SELECT inner_one($1)'"
    )
    fill(db, 300)
    db.execute("CREATE STATISTICS ON (outer_one(note)), (id % 3) FROM doc")
    run_backfill(database, 1000)
    assert db.execute(WRONG).fetchone() == (0,)


def test_a_role_that_may_not_update(db: psycopg.Connection[Any], database: str) -> None:
    fill(db, 30)
    db.execute("DROP ROLE IF EXISTS sqlvec_filler; CREATE ROLE sqlvec_filler")
    db.execute("GRANT SELECT ON doc TO sqlvec_filler")
    try:
        db.execute("SET ROLE sqlvec_filler")
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            db.execute("CALL sqlvec.backfill('doc')")
        assert 'role "sqlvec_filler" may not read and update table public.doc' in str(caught.value)
        db.execute("RESET ROLE")
        db.execute(caught.value.diag.message_hint or "")
        # Codes that are suspect are compared; that they are right only the owner may note down.
        db.execute("UPDATE sqlvec.derived SET suspect = true")
        db.execute("SET ROLE sqlvec_filler")
        notices: list[str | None] = []
        db.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        db.execute("CALL sqlvec.backfill('doc')")
        assert "until the owner of table public.doc says so" in (notices[-1] or "")
        db.execute("RESET ROLE")
        assert db.execute(WRONG).fetchone() == (0,)
        db.execute("CALL sqlvec.backfill('doc')")
        assert db.execute("SELECT suspect FROM sqlvec.derived").fetchone() == (False,)
    finally:
        db.execute("RESET ROLE")
        db.execute("DROP OWNED BY sqlvec_filler; DROP ROLE sqlvec_filler")


def slow_down(db: psycopg.Connection[Any], tables: tuple[str, ...] = ("doc",)) -> None:
    """Let every batch take a while."""
    db.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.01); RETURN NULL; END $$"
    )
    for table in tables:
        db.execute(f"CREATE TRIGGER slow AFTER UPDATE ON {table} EXECUTE FUNCTION slow()")


def wait_for_rows(db: psycopg.Connection[Any], rows: int) -> None:
    """Wait until a backfill has done so many."""
    deadline = time.monotonic() + 20
    while progress(db)[2] < rows:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE doc RENAME TO former; CREATE TABLE doc (LIKE former);"
        " INSERT INTO doc (id, embedding) SELECT id, embedding FROM former",
        "ALTER TABLE doc RENAME TO former; ALTER TABLE former RENAME embedding TO meaning",
    ],
    ids=["swapped", "renamed"],
)
@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_renamed_meanwhile(
    db: psycopg.Connection[Any], database: str, change: str, isolation: str
) -> None:
    fill(db, 3000)
    slow_down(db)
    started = threading.Thread(target=run_backfill, args=(database, 50, isolation))
    started.start()
    wait_for_rows(db, 200)
    with db.transaction():
        db.execute(change)
        time.sleep(0.1)  # for the next batch to come and wait
    started.join(20)
    assert not started.is_alive()
    (left,) = db.execute(
        "SELECT count(*) FROM former AS f WHERE code IS NULL AND id % 9 > 0"
    ).fetchone() or (None,)
    assert left == 0
    if "CREATE TABLE" in change:  # a stranger, which nobody has declared
        assert db.execute("SELECT count(code) FROM doc").fetchone() == (0,)


def test_a_partition_dropped_before_its_turn(db: psycopg.Connection[Any], database: str) -> None:
    db.execute(
        "CREATE TABLE doc (id int PRIMARY KEY, embedding vector(16)) PARTITION BY RANGE (id)"
    )
    for part in range(3):
        values = f"FROM ({part * 1000}) TO ({part * 1000 + 1000})"
        db.execute(f"CREATE TABLE part{part} PARTITION OF doc FOR VALUES {values}")
    db.execute(
        "INSERT INTO doc SELECT i, array_fill(sin(i), ARRAY[16])::vector"
        " FROM generate_series(0, 2999) AS i"
    )
    db.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
    slow_down(db, ("part0",))
    started = threading.Thread(target=run_backfill, args=(database, 50))
    started.start()
    wait_for_rows(db, 100)
    db.execute("ALTER TABLE doc DETACH PARTITION part1 CONCURRENTLY")
    db.execute("DROP TABLE part1")
    started.join(20)
    assert not started.is_alive()
    assert db.execute("SELECT count(*), count(code) FROM doc").fetchone() == (2000, 2000)


def test_schema_renamed_meanwhile(db: psycopg.Connection[Any], database: str) -> None:
    fill(db, 3000)
    db.execute("CREATE SCHEMA old; ALTER TABLE doc SET SCHEMA old")
    slow_down(db, ("old.doc",))
    started = threading.Thread(
        target=run_backfill, args=(database, 50, "read committed", "old.doc")
    )
    started.start()
    wait_for_rows(db, 200)
    with db.transaction():
        db.execute("LOCK TABLE old.doc IN ACCESS EXCLUSIVE MODE; ALTER SCHEMA old RENAME TO new")
        time.sleep(0.1)  # for the next batch to come and wait
    started.join(20)
    assert not started.is_alive()
    assert db.execute(WRONG.replace("doc", "new.doc")).fetchone() == (0,)


def test_a_batch_holds_all_levels_of_partitions(db: psycopg.Connection[Any]) -> None:
    """Root first: an UPDATE of a leaf looks up the bounds of every level, after it has locked the leaf."""
    db.execute(
        "CREATE TABLE doc (id int PRIMARY KEY, embedding vector(16)) PARTITION BY RANGE (id)"
    )
    db.execute("CREATE TABLE half PARTITION OF doc DEFAULT PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE quarter PARTITION OF half DEFAULT")
    with db.transaction():
        db.execute("SELECT sqlvec._hold_leaf('quarter'::regclass)")
        held = db.execute(
            "SELECT relation::regclass::text FROM pg_locks WHERE pid = pg_backend_pid()"
            " AND relation IN ('doc'::regclass, 'half'::regclass, 'quarter'::regclass)"
        ).fetchall()
    assert {name for (name,) in held} == {"doc", "half", "quarter"}


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_lock_in_spite_of_an_old_snapshot(
    db: psycopg.Connection[Any], database: str, isolation: str
) -> None:
    fill(db, 10)
    (oid,) = db.execute("SELECT 'doc'::regclass::oid").fetchone() or (None,)
    with psycopg.connect(database) as holder, psycopg.connect(database) as waiter:
        waiter.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        waiter.execute("SET LOCAL statement_timeout = '10s'")
        waiter.execute("SELECT FROM pg_class")
        holder.execute("ALTER TABLE doc RENAME TO former")
        holder.execute("CREATE TABLE doc (id int)")
        lock = "SELECT sqlvec._hold(%s, 'LOCK TABLE ONLY %%s IN ROW EXCLUSIVE MODE')"
        waiting = threading.Thread(target=waiter.execute, args=(lock, [oid]))
        waiting.start()
        time.sleep(0.2)
        holder.commit()
        waiting.join(20)
        assert not waiting.is_alive()
        locked = db.execute(
            "SELECT count(*) FROM pg_locks WHERE relation = %s AND mode = 'RowExclusiveLock'", [oid]
        )
        assert locked.fetchone() == (1,)


class TestDroppedMeanwhile:
    """Who drops a column waits for the batch under way; the backfill says what has happened."""

    def run(self, db: psycopg.Connection[Any], database: str, after: int) -> list[str]:
        """Drop column code when a backfill has done so many rows; return what that says."""
        said: list[str] = []

        def backfill() -> None:
            try:
                run_backfill(database, 50)
            except psycopg.Error as error:
                said.append(str(error))

        started = threading.Thread(target=backfill)
        started.start()
        wait_for_rows(db, after)
        db.execute("CALL sqlvec.drop_derived('doc', 'code')")
        started.join(20)
        assert not started.is_alive()
        return said

    @pytest.mark.parametrize("after", [100, 200, 300])
    def test_the_only_column(self, db: psycopg.Connection[Any], database: str, after: int) -> None:
        fill(db, 3000)
        slow_down(db)
        (said,) = self.run(db, database, after)
        assert "a derived column of table public.doc was dropped while work on it went on" in said
        assert db.execute("SELECT count(*) FROM sqlvec.derived_column").fetchone() == (0,)

    def test_one_of_two(self, db: psycopg.Connection[Any], database: str) -> None:
        fill(db, 3000)
        db.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'halfvec', 'half')")
        slow_down(db)
        (said,) = self.run(db, database, 100)
        assert "a derived column of table public.doc was dropped" in said
        db.execute("CALL sqlvec.backfill('doc')")
        assert db.execute(
            "SELECT count(*) FROM doc WHERE half IS NULL AND embedding IS NOT NULL"
        ).fetchone() == (0,)

    def test_of_a_partitioned_table(self, db: psycopg.Connection[Any], database: str) -> None:
        db.execute("CREATE TABLE doc (id int, embedding vector(16)) PARTITION BY RANGE (id)")
        for low in (0, 1000, 2000):
            bounds = f"FROM ({low}) TO ({low + 1000})"
            db.execute(f"CREATE TABLE doc_{low} PARTITION OF doc FOR VALUES {bounds}")
        db.execute(
            "INSERT INTO doc SELECT i, array_fill(i, ARRAY[16])::vector"
            " FROM generate_series(0, 2999) AS i"
        )
        db.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
        slow_down(db, tables=("doc_0", "doc_1000", "doc_2000"))
        (said,) = self.run(db, database, 300)
        assert "a derived column of table public.doc_0 was dropped" in said

    def test_a_wrong_name_locks_nothing(self, db: psycopg.Connection[Any], database: str) -> None:
        fill(db, 10)
        with psycopg.connect(database) as reader:
            reader.execute("SELECT FROM doc")
            for table, name in (("doc", "typo"), (None, "code")):
                with pytest.raises(psycopg.errors.UndefinedColumn, match="no derived column"):
                    db.execute("SET statement_timeout = '5s'")
                    db.execute("CALL sqlvec.drop_derived(%s::regclass, %s)", [table, name])

    def test_a_name_that_was_taken_over_meanwhile(
        self, db: psycopg.Connection[Any], database: str
    ) -> None:
        fill(db, 10)
        failures: list[BaseException] = []

        def drop() -> None:
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("SET default_transaction_isolation = 'repeatable read'")
                try:
                    connection.execute("CALL sqlvec.drop_derived('doc', 'code')")
                except psycopg.Error as error:
                    failures.append(error)

        with db.transaction():
            db.execute("ALTER TABLE doc RENAME code TO former; ALTER TABLE doc ADD code text")
            db.execute("SET LOCAL sqlvec.maintain = off; UPDATE doc SET code = 'precious'")
            dropping = threading.Thread(target=drop)
            dropping.start()
            time.sleep(0.5)  # for it to come and wait
        dropping.join(20)
        assert [type(error) for error in failures] == [psycopg.errors.SerializationFailure]
        assert db.execute("SELECT DISTINCT code FROM doc").fetchall() == [("precious",)]

    def test_by_hand(self, db: psycopg.Connection[Any]) -> None:
        fill(db, 10)
        db.execute("ALTER TABLE doc DROP COLUMN code")
        with pytest.raises(psycopg.errors.UndefinedColumn) as caught:
            db.execute("CALL sqlvec.backfill('doc')")
        assert 'column "code" of table public.doc is gone' in str(caught.value)
        db.execute(caught.value.diag.message_hint or "")
        assert db.execute("SELECT count(*) FROM sqlvec.derived_column").fetchone() == (0,)


def test_killed_server(start_server: Callable[..., Server], request: pytest.FixtureRequest) -> None:
    """Kill -9 in the middle: after the restart a second run ends with every code right."""
    from sqlalchemy import NullPool, create_engine

    from sqlvec import catalog
    from tests.db.server import sqlalchemy_url

    server = start_server(settings={"fsync": "on", "full_page_writes": "on"})
    dsn = server.create_database("crash")
    with create_engine(sqlalchemy_url(dsn), poolclass=NullPool).connect() as connection:
        catalog.install(connection, create_extension=True)
    with psycopg.connect(dsn, autocommit=True) as session:
        fill(session, 20000)
        # Slow enough to be caught in the middle.
        session.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END $$"
        )
        session.execute("CREATE TRIGGER slow AFTER UPDATE ON doc EXECUTE FUNCTION slow()")
        started = threading.Thread(target=interrupted_backfill, args=(dsn,))
        started.start()
        deadline = time.monotonic() + 30
        while (progress(session) or (None, None, 0))[2] < 2000:
            assert time.monotonic() < deadline
    server.kill()
    started.join(30)
    server.start()
    with psycopg.connect(dsn, autocommit=True) as session:
        state, _, done = progress(session)
        (missing,) = session.execute("SELECT count(embedding) FROM doc").fetchone() or (0,)
        assert state == "running"
        # Batches do not wait for the disk, so the last ones may be lost, and are done again.
        assert 0 < done < missing
        assert session.execute(
            "SELECT count(*) FROM doc WHERE code IS NOT NULL"
            " AND code <> binary_quantize(embedding)::bit(16)"
        ).fetchone() == (0,)
        session.execute("DROP TRIGGER slow ON doc")
        session.execute("CALL sqlvec.backfill('doc')")
        assert session.execute(WRONG).fetchone() == (0,)
        assert progress(session)[:2] == ("done", True)


def interrupted_backfill(dsn: str) -> None:
    with pytest.raises(psycopg.OperationalError):
        run_backfill(dsn, 100)
