"""What happens to a database in production: dumps, replication, row security."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine

from sqlvec import catalog
from sqlvec.embedded import Server
from tests.db import vectors
from tests.db.server import sqlalchemy_url

ROWS = 2000


def install(dsn: str) -> None:
    with create_engine(sqlalchemy_url(dsn), poolclass=NullPool).connect() as connection:
        catalog.install(connection, create_extension=True)


def fill(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE TABLE doc (id int PRIMARY KEY, tenant int, embedding vector(32))")
    with connection.cursor().copy("COPY doc FROM STDIN") as copy:
        for i, row in enumerate(vectors.clustered(ROWS, 32)):
            copy.write_row((i, i % 4, vectors.text(row)))
    connection.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
    connection.execute(
        "CALL sqlvec.add_quantized('doc', 'embedding', 'linear', 'lin',"
        """ options => '{"dimensions": 16}')"""
    )
    connection.execute("CALL sqlvec.backfill('doc')")
    connection.execute("CREATE INDEX doc_code ON doc USING hnsw (code bit_hamming_ops)")
    connection.execute("ANALYZE doc")


def answers(
    connection: psycopg.Connection[Any], table: str = "doc", column: str = "embedding"
) -> Any:
    """Search for a few rows, through the codes."""
    connection.execute("ANALYZE")
    return [
        connection.execute(
            f"SELECT array_agg(key ORDER BY distance, key) FROM sqlvec.vector_search_keys(NULL::{table}, %s, %s::vector,"
            " key => NULL::int, mode => 'code', candidates => 1500)",
            [column, vectors.text(row)],
        ).fetchone()
        for row in vectors.clustered(20, 32, seed=5)
    ]


def trigger_works(
    connection: psycopg.Connection[Any], table: str = "doc", column: str = "embedding"
) -> None:
    connection.execute(
        f"INSERT INTO {table} (id, {column}) SELECT 100000, {column} FROM {table} WHERE id = 7"
    )
    row = connection.execute(
        f"SELECT a.code = b.code, a.lin = b.lin FROM {table} AS a, {table} AS b WHERE a.id = 7 AND b.id = 100000"
    ).fetchone()
    assert row == (True, True)


def tool(server: Server, program: str, *arguments: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    result = subprocess.run(
        [server.bin / program, *arguments], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def first(start_server: Callable[..., Server]) -> Server:
    return start_server()


class TestDumpAndRestore:
    @pytest.mark.parametrize("renamed", [False, True])
    def test_into_a_new_server(
        self, first: Server, second_server: Server, tmp_path: Path, renamed: bool
    ) -> None:
        name = f"dumped_{renamed}".lower()
        dsn, table, column = first.create_database(name), "doc", "embedding"
        install(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            # Column numbers of the restored table are new.
            connection.execute("CREATE TABLE filler (id int)")
            fill(connection)
            if renamed:
                table, column = "article", "vec"
                connection.execute("ALTER TABLE doc DROP COLUMN tenant")
                connection.execute("ALTER TABLE doc RENAME TO article")
                connection.execute("ALTER TABLE article RENAME embedding TO vec")
                connection.execute("CALL sqlvec.repair('article')")
            before = answers(connection, table, column)
        file = str(tmp_path / "dump")
        tool(first, "pg_dump", "-Fc", "-f", file, dsn)
        target = second_server.create_database(name)
        tool(second_server, "pg_restore", "--exit-on-error", "-d", target, file)
        with psycopg.connect(target, autocommit=True) as connection:
            assert answers(connection, table, column) == before
            trigger_works(connection, table, column)
            assert connection.execute("SELECT problem FROM sqlvec.derived_column").fetchall() == [
                (None,),
                (None,),
            ]
            connection.execute(f"CALL sqlvec.repair('{table}')")
            connection.execute(f"CALL sqlvec.backfill('{table}')")
            connection.execute(f"CALL sqlvec.drop_derived('{table}', 'lin')")
            connection.execute("CALL sqlvec.check()")

    def test_renamed_and_dumped_without_repair(
        self, first: Server, second_server: Server, tmp_path: Path
    ) -> None:
        """The catalog in the dump knows old names only: writes go on, and say what to do."""
        dsn = first.create_database("unrepaired")
        install(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            fill(connection)
            connection.execute("ALTER TABLE doc RENAME embedding TO vec")
        file = str(tmp_path / "dump")
        tool(first, "pg_dump", "-Fc", "-f", file, dsn)
        target = second_server.create_database("unrepaired")
        tool(second_server, "pg_restore", "--exit-on-error", "-d", target, file)
        with psycopg.connect(target, autocommit=True) as connection:
            said: list[str] = []
            connection.add_notice_handler(
                lambda d: said.append(f"{d.message_primary} {d.message_hint}")
            )
            connection.execute("INSERT INTO doc (id, vec) SELECT 100000, vec FROM doc WHERE id = 7")
            assert connection.execute("SELECT code, lin FROM doc WHERE id = 100000").fetchone() == (
                None,
                None,
            )
            assert any('"embedding"' in line and "sqlvec.drop_derived" in line for line in said)
            problems = connection.execute("SELECT problem FROM sqlvec.derived_column").fetchall()
            for (problem,) in problems:
                connection.execute(problem.split("; ", 1)[1])
            connection.execute("CALL sqlvec.add_quantized('doc', 'vec', 'binary', 'code')")
            connection.execute("CALL sqlvec.backfill('doc')")
            assert connection.execute("SELECT count(*) FROM doc WHERE code IS NULL").fetchone() == (
                0,
            )

    def test_data_alone_into_an_installed_database(
        self, first: Server, second_server: Server, tmp_path: Path
    ) -> None:
        """The application's schema comes from its migrations, only rows come from the dump."""
        dsn = first.create_database("data_only")
        install(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            fill(connection)
            before = answers(connection)
        file = str(tmp_path / "rows.sql")
        tool(first, "pg_dump", "--data-only", "-t", "public.doc", "-f", file, dsn)
        target = second_server.create_database("data_only")
        install(target)
        with psycopg.connect(target, autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE doc (id int PRIMARY KEY, tenant int, embedding vector(32))"
            )
            connection.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
            connection.execute(
                "CALL sqlvec.add_quantized('doc', 'embedding', 'linear', 'lin',"
                """ options => '{"dimensions": 16}')"""
            )
            connection.execute("CREATE INDEX doc_code ON doc USING hnsw (code bit_hamming_ops)")
        tool(second_server, "psql", "-v", "ON_ERROR_STOP=1", "-q", "-d", target, "-f", file)
        with psycopg.connect(target, autocommit=True) as connection:
            assert answers(connection) == before
            trigger_works(connection)


def test_pg_upgrade(start_server: Callable[..., Server]) -> None:
    """It makes functions before the operator classes that a bound body of theirs could need."""
    with tempfile.TemporaryDirectory(prefix="sqlvec-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # The servers may run under another account.
        old, new = (start_server(data_directory=folder / each) for each in ("old", "new"))
        dsn = old.create_database("upgraded")
        install(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            fill(connection)
            before = answers(connection)
        old.stop()
        new.stop()
        owner = old.data_directory.stat()
        work = folder / "work"
        work.mkdir()
        shutil.chown(work, owner.st_uid, owner.st_gid)
        switch: dict[str, Any] = {}
        if os.geteuid() == 0:
            switch = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        result = subprocess.run(
            [
                *(old.bin / "pg_upgrade", "--username", "postgres", "--socketdir", work),
                *("--old-bindir", old.bin, "--old-datadir", old.data_directory),
                *("--new-bindir", new.bin, "--new-datadir", new.data_directory),
            ],
            cwd=work,
            env={key: value for key, value in os.environ.items() if not key.startswith("PG")},
            capture_output=True,
            text=True,
            **switch,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        new.start()
        with psycopg.connect(new.dsn("upgraded"), autocommit=True) as connection:
            assert answers(connection) == before
            trigger_works(connection)
            connection.execute("CALL sqlvec.check()")
        new.close()


def test_logical_replication(first: Server, second_server: Server) -> None:
    """Codes travel as data: the subscriber searches with them, also without the catalog's help."""
    source, target = first.create_database("published"), second_server.create_database("subscribed")
    install(source)
    install(target)
    with (
        psycopg.connect(source, autocommit=True) as publisher,
        psycopg.connect(target, autocommit=True) as subscriber,
    ):
        fill(publisher)
        publisher.execute("CREATE PUBLICATION docs FOR TABLE doc")
        subscriber.execute(
            "CREATE TABLE doc (id int PRIMARY KEY, tenant int, embedding vector(32), code bit(32), lin halfvec(16))"
        )
        subscriber.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
        subscriber.execute("CREATE INDEX doc_code ON doc USING hnsw (code bit_hamming_ops)")
        subscriber.execute(
            psycopg.sql.SQL("CREATE SUBSCRIPTION docs CONNECTION {} PUBLICATION docs").format(
                source
            )
        )
        try:
            publisher.execute(
                "UPDATE doc SET embedding = (SELECT embedding FROM doc WHERE id = 9) WHERE id = 8"
            )
            publisher.execute("DELETE FROM doc WHERE id = 5")
            publisher.execute(
                "INSERT INTO doc (id, embedding) SELECT 5000, embedding FROM doc WHERE id = 6"
            )
            everything = "SELECT array_agg(d ORDER BY id) FROM (SELECT id, code::text, lin::text FROM doc) AS d"
            wanted = publisher.execute(everything).fetchone()
            deadline = time.monotonic() + 60
            while subscriber.execute(everything).fetchone() != wanted:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert answers(subscriber) == answers(publisher)
        finally:
            subscriber.execute("DROP SUBSCRIPTION docs")


class TestRowSecurity:
    @pytest.fixture
    def db(self, tmp_database: Callable[..., str]) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(tmp_database(), autocommit=True) as connection:
            fill(connection)
            connection.execute("DROP ROLE IF EXISTS sqlvec_tenant")
            connection.execute("CREATE ROLE sqlvec_tenant")
            connection.execute("GRANT SELECT, INSERT ON doc TO sqlvec_tenant")
            connection.execute("ALTER TABLE doc ENABLE ROW LEVEL SECURITY")
            connection.execute(
                "CREATE POLICY own ON doc USING (tenant = current_setting('app.tenant')::int)"
            )
            connection.execute("SET ROLE sqlvec_tenant")
            connection.execute("SET app.tenant = 2")
            yield connection
            connection.execute("RESET ROLE")
            connection.execute("DROP OWNED BY sqlvec_tenant")
            connection.execute("DROP ROLE sqlvec_tenant")

    @pytest.mark.parametrize("mode", ["auto", "exact", "code"])
    def test_a_role_sees_its_own_rows(self, db: psycopg.Connection[Any], mode: str) -> None:
        data = vectors.clustered(ROWS, 32)
        for query in data[:8]:
            found = db.execute(
                "SELECT (hit).id, complete FROM sqlvec.vector_search(NULL::doc, 'embedding', %s::vector,"
                " k => 20, mode => %s)",
                [vectors.text(query), mode],
            ).fetchall()
            assert all(key % 4 == 2 for key, _ in found)
            assert len(found) == 20
            if mode == "exact":
                distance = vectors.distances("cosine", data, query)
                own = sorted(range(2, ROWS, 4), key=lambda i: distance[i])[:20]
                assert [key for key, _ in found] == own

    def test_fewer_rows_only_when_fewer_are_visible(self, db: psycopg.Connection[Any]) -> None:
        query = vectors.text(vectors.clustered(ROWS, 32)[0])
        found = db.execute(
            "SELECT key FROM sqlvec.vector_search_keys(NULL::doc, 'embedding', %s::vector,"
            " key => NULL::int, k => 1000)",
            [query],
        ).fetchall()
        assert len(found) == 500

    def test_writes_under_a_policy(self, db: psycopg.Connection[Any]) -> None:
        db.execute(
            "INSERT INTO doc (id, tenant, embedding) SELECT 9000, 2, embedding FROM doc WHERE id = 2"
        )
        assert db.execute(
            "SELECT a.code = b.code FROM doc AS a, doc AS b WHERE a.id = 2 AND b.id = 9000"
        ).fetchone() == (True,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute(
                "INSERT INTO doc (id, tenant, embedding) SELECT 9001, 3, embedding FROM doc WHERE id = 2"
            )

    def test_explain_search_names_the_policies(self, db: psycopg.Connection[Any]) -> None:
        query = vectors.text(vectors.clustered(ROWS, 32)[0])
        rows = db.execute(
            "SELECT topic, detail FROM sqlvec.explain_search(NULL::doc, 'embedding', %s::vector)",
            [query],
        ).fetchall()
        assert "sqlvec_tenant" in dict(rows)["row security"]


def test_a_pooled_session_keeps_nothing(tmp_database: Callable[..., str]) -> None:
    """A transaction pooler hands one session to many clients: settings and statements must not stay."""
    with psycopg.connect(tmp_database(), autocommit=True) as connection:
        fill(connection)
        state = (
            "SELECT (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE '\\_pg3%%'),"
            " (SELECT count(*) FROM pg_class WHERE relpersistence = 't'),"
            " (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'),"
            " (SELECT array_agg(name || setting ORDER BY name) FROM pg_settings WHERE source = 'session')"
        )
        before = connection.execute(state).fetchone()
        answers(connection)
        connection.execute("CALL sqlvec.backfill('doc')")
        connection.execute("UPDATE doc SET embedding = NULL WHERE id = 3")
        assert connection.execute(state).fetchone() == before
