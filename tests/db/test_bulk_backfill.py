"""Backfill of multi-vectors in numpy: the codes of the server, locks, interruption, what is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlvec import bulk_backfill, manage
from sqlvec.bulk_backfill import Encode
from sqlvec.errors import DeclarationError
from sqlvec.manage import Progress
from sqlvec.types.multivector import MultiVector
from sqlvec.types.psycopg import register_multivectors
from tests.db.server import sqlalchemy_url

DB = psycopg.Connection[Any]

SMALL = "repetitions => 3, simhash_bits => 2, projection => 2"

WRONG = """
    SELECT count(*) FROM doc AS t, sqlvec.derived_column AS d
    WHERE d.target_column = 'tokens_fde'
      AND t.tokens_fde IS DISTINCT FROM sqlvec.fde_document(d.encoder, t.tokens)
"""

WAITING = "SELECT count(*) FROM doc WHERE tokens IS NOT NULL AND tokens_fde IS NULL"


@pytest.fixture
def database(tmp_database: Callable[..., str]) -> str:
    return tmp_database()


@pytest.fixture
def db(database: str) -> Iterator[DB]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def engine(database: str) -> Engine:
    return create_engine(sqlalchemy_url(database), poolclass=NullPool)


class Encoded:
    """Counts what numpy encodes, and does something before each."""

    def __init__(self) -> None:
        self.documents = 0
        self.before: Callable[[], object] = lambda: None

    def load(self, connection: Connection, encoder: str) -> Encode:
        encode = bulk_backfill._load_fde(connection, encoder)

        def counted(tokens: MultiVector) -> bytes:
            self.before()
            code = encode(tokens)
            self.documents += 1
            return code

        return counted


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Encoded:
    counter = Encoded()
    monkeypatch.setattr(bulk_backfill, "_LOADERS", {"fde": counter.load})
    return counter


def fill(db: DB, rows: int, table: str = "doc", tokens_type: str = "halfvec(4)[]") -> None:
    """Make a table of multi-vectors of 1 to 9 tokens, every seventh NULL."""
    db.execute(
        f"CREATE TABLE IF NOT EXISTS {table} (id int PRIMARY KEY, note text, tokens {tokens_type})"
    )
    register_multivectors(db)
    rng = np.random.default_rng(rows)
    with db.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "text", tokens_type.replace("(4)", "")])
        for i in range(rows):
            tokens = rng.standard_normal((i % 9 + 1, 4)).astype(np.float16)
            copy.write_row((i, "x" * (i % 90), tokens if i % 7 else None))


def scalar(db: DB, statement: str) -> Any:
    (found,) = db.execute(statement).fetchone() or (None,)
    return found


def state(db: DB) -> Any:
    return db.execute(
        "SELECT state, blocks_done = blocks_total, rows_done FROM sqlvec.backfill_progress"
    ).fetchone()


@pytest.mark.parametrize("tokens_type", ["halfvec(4)[]", "vector(4)[]"])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_codes_equal_those_of_the_server(
    db: DB, engine: Engine, encoded: Encoded, tokens_type: str, batch: int
) -> None:
    fill(db, 60 if batch == 1 else 300, tokens_type=tokens_type)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    missing = scalar(db, WAITING)
    seen: list[Progress] = []
    manage.backfill(engine, "doc", "tokens_fde", batch=batch, progress=seen.append)
    assert encoded.documents == missing
    assert scalar(db, WRONG.replace("t.tokens)", "t.tokens::halfvec[])")) == 0
    assert state(db) == ("done", True, missing)
    assert {progress.phase for progress in seen} == {"encoding"}
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total > 0
    # A second run finds nothing to do.
    manage.backfill(engine, "doc")
    assert encoded.documents == missing
    assert state(db) == ("done", True, 0)


def test_a_code_of_default_size(db: DB, engine: Engine, encoded: Encoded) -> None:
    fill(db, 100)
    db.execute(
        "CALL sqlvec.add_fde('doc', 'tokens', projection => 4, simhash_bits => 6,"
        " final_dimensions => 500)"
    )
    manage.backfill(engine, "doc")
    assert scalar(db, WRONG) == 0
    assert encoded.documents > 80


def test_signs(db: DB, engine: Engine, encoded: Encoded) -> None:
    fill(db, 100)
    db.execute("INSERT INTO doc (id, tokens) VALUES (1000, '{}')")
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL}, bits => true)")
    manage.backfill(engine, "doc")
    assert scalar(db, WRONG.replace("fde_document", "fde_document_bits") + " AND id < 1000") == 0
    assert scalar(db, "SELECT tokens_fde = 0::bit(48) FROM doc WHERE id = 1000")
    assert encoded.documents == 85 + 1


@pytest.mark.parametrize("method", ["hierarchical", "sequential"])
def test_an_encoding_of_pooled_tokens(
    db: DB, engine: Engine, encoded: Encoded, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Both columns in the order of their declaration, without the server."""
    loaders = {"fde": encoded.load, "pool": bulk_backfill._load_pool}
    monkeypatch.setattr(bulk_backfill, "_LOADERS", loaders)
    fill(db, 200)
    db.execute("INSERT INTO doc (id, tokens) VALUES (1000, '{}'), (1001, '{NULL}')")
    db.execute("CALL sqlvec.add_pooled('doc', 'tokens', %s, 'pooled')", [method])
    db.execute(f"CALL sqlvec.add_fde('doc', 'pooled', target => 'tokens_fde', {SMALL})")
    manage.backfill(engine, "doc", batch=50)
    assert scalar(db, WRONG.replace("t.tokens)", "t.pooled)") + " AND id < 1000") == 0
    assert scalar(db, WAITING) == 0
    pooled = """
        SELECT bool_and(t.pooled = sqlvec.pool(d.encoder, t.tokens)), count(t.pooled)
        FROM doc AS t, sqlvec.derived_column AS d
        WHERE d.target_column = 'pooled' AND t.id < 1000 AND t.tokens IS NOT NULL
    """
    assert db.execute(pooled).fetchone() == (True, 171)
    assert encoded.documents >= 171


def test_arrays_that_are_no_matrices(db: DB, engine: Engine, encoded: Encoded) -> None:
    """The server takes those with NULLs or several dimensions of the array itself."""
    fill(db, 100)
    db.execute("""
        INSERT INTO doc (id, tokens) VALUES
            (1000, '{}'), (1001, '{NULL}'), (1002, ARRAY['[1,2,3,4]', NULL]::halfvec[]),
            (1003, '[0:1]={"[1,2,3,4]","[4,3,2,1]"}'), (1004, '{{"[1,2,3,4]"},{"[4,3,2,1]"}}')
    """)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    manage.backfill(engine, "doc")
    assert scalar(db, WAITING) == 0
    assert scalar(db, f"{WRONG} AND id NOT IN (1000, 1001)") == 0
    assert db.execute(
        "SELECT id FROM doc WHERE tokens_fde::vector = array_fill(0, ARRAY[24])::vector ORDER BY id"
    ).fetchall() == [(1000,), (1001,)]
    assert encoded.documents == 85 + 2


def test_vectors_of_other_dimensions(db: DB, engine: Engine) -> None:
    fill(db, 300, tokens_type="halfvec[]")
    db.execute("CREATE TABLE bad AS SELECT 42 AS id, '{\"[1,2]\"}'::halfvec[] AS tokens")
    db.execute("UPDATE doc SET tokens = bad.tokens FROM bad WHERE doc.id = bad.id")
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    message = 'cannot encode column "tokens" of table public.doc: .* of 4 dimensions, not 2'
    with pytest.raises(DBAPIError, match=message):
        manage.backfill(engine, "doc", batch=1)
    # The others in its block apart, everything is done.
    assert 1 <= scalar(db, WAITING) < 200
    db.execute("UPDATE doc SET tokens = NULL WHERE id = 42")
    manage.backfill(engine, "doc")
    assert scalar(db, WRONG) == 0


def test_matrices_that_are_missing(db: DB, engine: Engine) -> None:
    fill(db, 50)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    db.execute("CREATE TABLE saved AS SELECT * FROM sqlvec.encoder_vector")
    db.execute("DELETE FROM sqlvec.encoder_vector")
    with pytest.raises(DBAPIError, match="gives no code for rows of table public.doc"):
        manage.backfill(engine, "doc")
    db.execute("INSERT INTO sqlvec.encoder_vector SELECT * FROM saved")
    manage.backfill(engine, "doc")
    assert scalar(db, WRONG) == 0


def test_several_columns(db: DB, engine: Engine, encoded: Encoded) -> None:
    """One of another kind, and one derived from the code."""
    fill(db, 200)
    db.execute("ALTER TABLE doc ADD embedding vector(4) DEFAULT '[1,-2,3,-4]'")
    db.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary')")
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    db.execute("CALL sqlvec.add_quantized('doc', 'tokens_fde', 'binary', 'tiny')")
    manage.backfill(engine, "doc")
    assert scalar(db, WRONG) == 0
    assert encoded.documents == scalar(db, "SELECT count(tokens) FROM doc")
    statement = """
        SELECT count(embedding_binary) = count(*)
               AND bool_and(tiny = binary_quantize(tokens_fde)::bit(24)) AND count(tiny) = count(tokens)
        FROM doc
    """
    assert scalar(db, statement)
    assert scalar(db, "SELECT count(*) FROM sqlvec.derived_column WHERE problem IS NULL") == 3


def test_partitions_and_odd_names(db: DB, engine: Engine, encoded: Encoded) -> None:
    db.execute('CREATE SCHEMA "a ""b"" %s"')
    db.execute('SET search_path = "a ""b"" %s", public')
    db.execute(
        'CREATE TABLE "Doc :x" (id int, "My Tokens" halfvec(4)[], PRIMARY KEY (id))'
        " PARTITION BY RANGE (id)"
    )
    db.execute('CREATE TABLE low PARTITION OF "Doc :x" FOR VALUES FROM (0) TO (100)')
    db.execute('CREATE TABLE "hi%gh" PARTITION OF "Doc :x" FOR VALUES FROM (100) TO (999)')
    fill(db, 300, "source")
    db.execute('INSERT INTO "Doc :x" SELECT id, tokens FROM source')
    db.execute(f"CALL sqlvec.add_fde('\"Doc :x\"', 'My Tokens', target => 'The %s code', {SMALL})")
    manage.backfill(engine, '"a ""b"" %s"."Doc :x"', "The %s code", batch=50)
    missing = scalar(db, 'SELECT count("My Tokens") FROM "Doc :x"')
    assert state(db) == ("done", True, missing)
    assert encoded.documents == missing
    assert (
        scalar(
            db,
            'SELECT count(*) FROM "Doc :x", sqlvec.derived_column AS d WHERE "The %s code"'
            ' IS DISTINCT FROM sqlvec.fde_document(d.encoder, "My Tokens")',
        )
        == 0
    )


def test_no_update_is_lost(db: DB, database: str, engine: Engine, encoded: Encoded) -> None:
    """Rows are locked from when they are read until their codes are written."""
    fill(db, 300)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    swap = "UPDATE doc SET tokens = (SELECT o.tokens FROM doc AS o WHERE o.id = 295) WHERE id = %s"
    refused: list[int] = []

    def waits() -> None:
        with psycopg.connect(database, autocommit=True) as writer:
            writer.execute(swap, [1])

    writer = threading.Thread(target=waits)

    def write() -> None:
        if encoded.documents == 0:
            writer.start()
        if encoded.documents % 50 == 3:
            with psycopg.connect(database, autocommit=True) as other:
                other.execute("SET lock_timeout = '10ms'")
                for row in (2, 299):
                    try:
                        other.execute(swap, [row])
                    except psycopg.errors.LockNotAvailable:
                        refused.append(row)

    encoded.before = write
    manage.backfill(engine, "doc", batch=100)
    writer.join(20)
    # The first batch held row 2; a row that is not read yet is free, and its own trigger encodes it.
    assert refused and 299 not in refused
    assert scalar(db, WRONG) == 0
    same = "SELECT count(DISTINCT tokens::text) FROM doc WHERE id IN (1, 295, 299)"
    assert scalar(db, same) == 1


def test_a_trigger_that_changes_what_is_encoded(db: DB, engine: Engine) -> None:
    """The code read from the old tokens is not kept."""
    fill(db, 60)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    db.execute(
        "CREATE FUNCTION first_token() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.tokens := NEW.tokens[1:1]; RETURN NEW; END $$"
    )
    db.execute(
        "CREATE TRIGGER first_token BEFORE UPDATE ON doc FOR EACH ROW EXECUTE FUNCTION first_token()"
    )
    manage.backfill(engine, "doc", batch=20)
    assert scalar(db, "SELECT max(cardinality(tokens)) FROM doc") == 1
    assert scalar(db, WRONG) == 0


def test_locked_rows_are_left_to_the_end(
    db: DB, database: str, engine: Engine, encoded: Encoded
) -> None:
    fill(db, 500)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    waiting = scalar(db, WAITING)
    with psycopg.connect(database) as holder:
        holder.execute("SELECT FROM doc WHERE id IN (10, 400) FOR UPDATE")
        released = threading.Event()

        def release(progress: Progress) -> None:
            if not released.is_set() and scalar(db, WAITING) == 2:
                released.set()
                holder.execute("UPDATE doc SET tokens = tokens[1:1] WHERE id = 10")
                holder.commit()

        manage.backfill(engine, "doc", batch=100, progress=release)
    assert released.is_set()
    assert encoded.documents == waiting - 2
    assert scalar(db, WRONG) == 0


class Stop(KeyboardInterrupt):
    """What Ctrl-C raises, without ending the test run."""


@pytest.mark.parametrize("where", ["reading", "between batches"])
def test_interrupted_it_keeps_its_work_and_goes_on(
    db: DB, engine: Engine, encoded: Encoded, where: str
) -> None:
    fill(db, 1000)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    missing = scalar(db, WAITING)

    def stop(*_: object) -> None:
        if encoded.documents >= 250:
            raise Stop

    if where == "reading":
        encoded.before = stop
    with pytest.raises(Stop):
        manage.backfill(engine, "doc", batch=100, progress=stop)
    done = missing - scalar(db, WAITING)
    assert 100 <= done < 400
    assert state(db) == ("running", False, done)
    # Nothing is left behind: neither a lock nor a session.
    db.execute("SET lock_timeout = '5s'")
    db.execute("SELECT FROM doc FOR UPDATE")
    encoded.documents = 0
    encoded.before = lambda: None
    manage.backfill(engine, "doc", batch=100)
    assert encoded.documents == missing - done
    assert scalar(db, WRONG) == 0
    assert state(db) == ("done", True, missing)


def test_killed_it_goes_on(db: DB, engine: Engine, encoded: Encoded) -> None:
    fill(db, 500)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    missing = scalar(db, WAITING)
    kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'COPY %'"

    def stop() -> None:
        if encoded.documents == 250:
            assert scalar(db, kill) == 1

    encoded.before = stop
    with pytest.raises(DBAPIError):
        manage.backfill(engine, "doc", batch=100)
    done = missing - scalar(db, WAITING)
    assert 100 <= done < 400
    assert state(db) == ("running", False, done)
    encoded.before = lambda: None
    manage.backfill(engine, "doc", batch=100)
    assert scalar(db, WRONG) == 0
    assert state(db) == ("done", True, missing)


def test_two_at_once_and_writers(db: DB, database: str, engine: Engine) -> None:
    fill(db, 1500)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    failures: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # Reported by the assertion below.
            failures.append(error)

    def write() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            for i in range(100):
                connection.execute(
                    "UPDATE doc SET tokens = tokens[1:1] || tokens WHERE id IN (%s, %s)",
                    [(i * 37) % 1500, (i * 101) % 1500],
                )
                connection.execute(
                    "INSERT INTO doc (id, tokens) SELECT %s, tokens FROM doc WHERE id = 1",
                    [10000 + i],
                )

    works = (
        lambda: manage.backfill(engine, "doc", batch=70),
        lambda: manage.backfill(engine, "doc", batch=110),
        write,
    )
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert scalar(db, WRONG) == 0
    assert state(db)[:2] == ("done", True)


def test_nothing_is_left_in_the_session(db: DB, database: str, encoded: Encoded) -> None:
    """A transaction pooler may give every transaction another session."""
    fill(db, 300)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    pooled = create_engine(sqlalchemy_url(database), pool_size=1, max_overflow=1)
    seen: list[Any] = []

    def look() -> None:
        seen.append(None)
        statement = text(
            "SELECT current_setting('sqlvec.maintain', true), pg_my_temp_schema() = 0 OR NOT EXISTS"
            " (SELECT FROM pg_class WHERE relnamespace = pg_my_temp_schema())"
        )
        with pooled.connect() as connection:
            assert connection.execute(statement).one()[:] in (("", True), (None, True))

    manage.backfill(pooled, "doc", batch=100)
    look()
    look()
    prepared = text("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%_bulk_%'")
    with pooled.connect() as connection:
        assert connection.scalar(prepared) == 0
    pooled.dispose()
    assert encoded.documents > 200


def role(db: DB, database: str, name: str) -> Engine:
    """Return an engine of a role that may do everything with the table but owns nothing."""
    url = sqlalchemy_url(database).set(username=name)
    db.execute(f"DROP ROLE IF EXISTS {name}")
    # A server that asks for a password is given the one of the superuser.
    password = psycopg.sql.quote(url.password or name)
    db.execute(f"CREATE ROLE {name} LOGIN PASSWORD {password}")
    db.execute(f"GRANT ALL ON doc TO {name}")
    return create_engine(url, poolclass=NullPool)


def test_where_row_security_hides_rows(db: DB, database: str, encoded: Encoded) -> None:
    fill(db, 50)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    other = role(db, database, "sqlvec_reader")
    try:
        db.execute("ALTER TABLE doc ENABLE ROW LEVEL SECURITY")
        db.execute("CREATE POLICY odd ON doc USING (id % 2 = 1)")
        with pytest.raises(DBAPIError, match="row security hides rows of table public.doc"):
            manage.backfill(other, "doc")
        assert encoded.documents == 0
        # Its owner sees every row.
        db.execute("ALTER TABLE doc DISABLE ROW LEVEL SECURITY")
        manage.backfill(other, "doc")
        assert encoded.documents == scalar(db, "SELECT count(tokens) FROM doc")
    finally:
        db.execute("DROP OWNED BY sqlvec_reader")
        db.execute("DROP ROLE sqlvec_reader")


def test_without_the_right_to_temporary_tables(
    db: DB, database: str, engine: Engine, encoded: Encoded
) -> None:
    fill(db, 50)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    other = role(db, database, "sqlvec_modest")
    try:
        db.execute(
            "DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC',"
            " current_database()); END $$"
        )
        manage.backfill(other, "doc")
    finally:
        db.execute("DROP OWNED BY sqlvec_modest")
        db.execute("DROP ROLE sqlvec_modest")
    assert encoded.documents == 0
    assert scalar(db, WRONG) == 0


def test_suspect_codes_are_compared(db: DB, engine: Engine, encoded: Encoded) -> None:
    fill(db, 50)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    manage.backfill(engine, "doc")
    db.execute('ALTER TABLE doc DISABLE TRIGGER "~sqlvec"')
    db.execute("UPDATE doc SET tokens = (SELECT o.tokens FROM doc AS o WHERE o.id = 8)")
    before = encoded.documents
    with pytest.raises(DBAPIError, match="does not keep its codes"):
        manage.backfill(engine, "doc")
    db.execute("CALL sqlvec.repair('doc')")
    manage.backfill(engine, "doc")
    assert encoded.documents == before
    assert scalar(db, WRONG) == 0


def test_a_column_dropped_meanwhile(db: DB, engine: Engine, encoded: Encoded) -> None:
    fill(db, 300)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")

    def drop(progress: Progress) -> None:
        if state(db) and encoded.documents >= 100:
            db.execute("CALL sqlvec.drop_derived('doc', 'tokens_fde')")

    with pytest.raises(DeclarationError, match="no derived column"):
        manage.backfill(engine, "doc", batch=50, progress=drop)
    assert encoded.documents < 200


def test_a_column_dropped_in_the_middle_of_a_batch(
    db: DB, database: str, engine: Engine, encoded: Encoded
) -> None:
    """Who drops it waits for the batch."""
    fill(db, 300)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")

    def drop() -> None:
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("CALL sqlvec.drop_derived('doc', 'tokens_fde')")

    dropping = threading.Thread(target=drop)

    def start() -> None:
        if encoded.documents == 70:
            dropping.start()
            time.sleep(0.2)

    encoded.before = start
    with pytest.raises(DeclarationError, match="no derived column"):
        manage.backfill(engine, "doc", batch=50)
    dropping.join(20)
    assert encoded.documents < 150
    assert scalar(db, "SELECT count(*) FROM sqlvec.derived_column") == 0


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_table_swapped_meanwhile(
    db: DB, database: str, engine: Engine, encoded: Encoded, isolation: str
) -> None:
    """Nothing is read from the table that takes the name over."""
    fill(db, 600)
    db.execute(f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    name = scalar(db, "SELECT quote_ident(current_database())")
    db.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    swapped, held = threading.Event(), threading.Event()

    def swap() -> None:
        with psycopg.connect(database) as other:
            other.execute("ALTER TABLE doc RENAME TO former")
            other.execute("CREATE TABLE doc AS SELECT id, tokens[1:1] AS tokens FROM former")
            held.set()
            time.sleep(0.3)  # for the next batch to come and wait

    swapping = threading.Thread(target=swap)

    def start(progress: Progress) -> None:
        if encoded.documents >= 100 and not swapped.is_set():
            swapped.set()
            swapping.start()
            assert held.wait(20)

    manage.backfill(engine, "doc", batch=50, progress=start)
    swapping.join(20)
    assert scalar(db, WAITING.replace("doc", "former")) == 0
    assert scalar(db, WRONG.replace("doc", "former", 1)) == 0
    assert encoded.documents > 500


def test_what_is_no_halfvec_is_told_by_the_server(db, engine):
    """With the names of table and column."""
    db.execute("CREATE TABLE large (id int, tokens vector(4)[])")
    db.execute("INSERT INTO large VALUES (1, '{\"[1,2,3,4]\"}'), (2, '{\"[1e6,2,3,4]\"}')")
    db.execute(f"CALL sqlvec.add_fde('large', 'tokens', {SMALL})")
    with pytest.raises(DBAPIError, match='cannot encode column "tokens" of table public.large'):
        manage.backfill(engine, "large")
