"""Upgrading an older release gives the same schema as installing the newest one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, NullPool, create_engine

from sqlvec import catalog
from sqlvec.errors import NotInstalled, VersionMismatch
from tests.db.server import sqlalchemy_url
from tests.db.snapshot import differences, snapshot

SQL = Path(__file__).parents[2] / "sql"
FROZEN = sorted(path.stem.removeprefix("sqlvec--") for path in SQL.glob("releases/sqlvec--*.sql"))


@pytest.fixture
def connect(tmp_database: Callable[..., str], bare_template: str) -> Callable[[], Connection]:
    """Return a function that connects to a new database with pgvector and without sqlvec."""

    def connect() -> Connection:
        url = sqlalchemy_url(tmp_database(bare_template))
        return create_engine(url, poolclass=NullPool).connect()

    return connect


@pytest.mark.parametrize("release", FROZEN)
def test_every_release_upgrades_to_this_one(
    connect: Callable[[], Connection], release: str
) -> None:
    with connect() as upgraded, connect() as installed:
        # The frozen text itself, also where the source still has the same version.
        catalog._run(upgraded, (SQL / "releases" / f"sqlvec--{release}.sql").read_text())
        upgraded.commit()
        catalog.upgrade(upgraded)
        catalog.install(installed)
        assert differences(snapshot(upgraded), snapshot(installed)) == []


@pytest.mark.parametrize(
    ("change", "objects"),
    [
        (
            "CREATE OR REPLACE FUNCTION sqlvec.version() RETURNS text LANGUAGE sql IMMUTABLE"
            " PARALLEL SAFE RETURN '0.0.0'",
            ["routine sqlvec.version()"],
        ),
        ("ALTER FUNCTION sqlvec.version() STABLE", ["routine sqlvec.version()"]),
        ("ALTER FUNCTION sqlvec.version() PARALLEL UNSAFE", ["routine sqlvec.version()"]),
        ("ALTER FUNCTION sqlvec.version() SET work_mem = '1MB'", ["routine sqlvec.version()"]),
        ("REVOKE EXECUTE ON FUNCTION sqlvec.version() FROM PUBLIC", ["routine sqlvec.version()"]),
        ("COMMENT ON FUNCTION sqlvec.version() IS NULL", ["routine sqlvec.version()"]),
        ("REVOKE SELECT ON sqlvec.encoder FROM PUBLIC", ["relation sqlvec.encoder"]),
        ("ALTER TABLE sqlvec.encoder ADD note text", ["column sqlvec.encoder.note"]),
        (
            "ALTER TABLE sqlvec.encoder ALTER kind DROP NOT NULL",
            ["column sqlvec.encoder.kind"],
        ),
        ("DROP TRIGGER guard ON sqlvec.encoder", ["trigger sqlvec.encoder.guard"]),
        ("REVOKE USAGE ON SCHEMA sqlvec FROM PUBLIC", ["schema sqlvec"]),
    ],
)
def test_the_comparison_sees(conn: Connection, change: str, objects: list[str]) -> None:
    before = snapshot(conn)
    conn.exec_driver_sql(change)
    found = differences(before, snapshot(conn))
    # From PostgreSQL 18 on, NOT NULL is a constraint with a name as well.
    assert [name for name in found if not name.startswith("constraint ")] == objects


def test_upgrade_runs_the_steps_and_the_bundle(
    connect: Callable[[], Connection], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = shutil.copytree(SQL, tmp_path / "sql")
    older = catalog.bundle().replace(catalog.VERSION, "0.0.9")
    (source / "releases").mkdir(exist_ok=True)
    (source / "releases" / "sqlvec--0.0.9.sql").write_text(
        older
        + "CREATE OR REPLACE FUNCTION sqlvec.retired() RETURNS int LANGUAGE sql RETURN 1;\n"
        + "DROP PROCEDURE sqlvec.check();\n"
    )
    (source / "upgrades").mkdir(exist_ok=True)
    (source / "upgrades" / f"0.0.9--{catalog.VERSION}.sql").write_text(
        "DROP FUNCTION sqlvec.retired();\n"
    )
    monkeypatch.setattr(catalog, "_source", lambda: source)

    with connect() as upgraded, connect() as installed:
        catalog.install(installed)
        catalog.install(upgraded, version="0.0.9")
        assert catalog.installed_version(upgraded) == "0.0.9"
        assert differences(snapshot(upgraded), snapshot(installed)) == [
            'routine sqlvec."check"()',
            "routine sqlvec.retired()",
            "routine sqlvec.version()",
        ]
        catalog.upgrade(upgraded)
        assert differences(snapshot(upgraded), snapshot(installed)) == []
        catalog.upgrade(upgraded)  # Nothing left to do.


def test_upgrade_refuses(connect: Callable[[], Connection]) -> None:
    with connect() as connection:
        with pytest.raises(NotInstalled, match="run sqlvec install"):
            catalog.upgrade(connection)
        catalog.install(connection)
        version = "CREATE OR REPLACE FUNCTION sqlvec.version() RETURNS text IMMUTABLE RETURN '{}'"
        connection.exec_driver_sql(version.format("99.0.0"))
        with pytest.raises(VersionMismatch, match=r"99\.0\.0 is installed, which is newer than"):
            catalog.upgrade(connection)
        connection.exec_driver_sql(version.format("0.0.1"))
        with pytest.raises(VersionMismatch, match=r"no upgrade leads from sqlvec 0\.0\.1 to"):
            catalog.upgrade(connection)
