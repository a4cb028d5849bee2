"""The command for the graph of nearest neighbours, and manage.build_neighbours under it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine
from typer.testing import CliRunner

from sqlvec import manage
from sqlvec.cli.app import app
from sqlvec.errors import DeclarationError, NotInstalled
from sqlvec.manage import Progress
from tests.db import vectors as v
from tests.db.server import sqlalchemy_url

TABLE = '"my %shop"."Doc :1"'
ROWS = v.clustered(60, 8)


@pytest.fixture
def database(tmp_database: Callable[..., str]) -> str:
    dsn = tmp_database()
    with psycopg.connect(dsn) as connection:
        connection.execute('CREATE SCHEMA "my %shop"')
        connection.execute(f'CREATE TABLE {TABLE} (id int PRIMARY KEY, "em bedding" vector(8))')
        connection.cursor().executemany(
            'INSERT INTO "my %%shop"."Doc :1" VALUES (%s, %s)',
            [(n, v.text(row)) for n, row in enumerate(ROWS)],
        )
    return dsn


def sqlvec(dsn: str, *arguments: str) -> str:
    environment = {"SQLVEC_DSN": dsn, "COLUMNS": "200"}
    result = CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def edges(dsn: str, table: str = "Doc :1_neighbours") -> set[tuple[int, int]]:
    with psycopg.connect(dsn) as connection:
        found = connection.execute(f'SELECT key, neighbour FROM "my %shop"."{table}"')
        return set(found.fetchall())


def slow_down(connection: psycopg.Connection[Any]) -> None:
    """Let every batch take a while."""
    connection.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END $$"
    )
    connection.execute(
        'CREATE TRIGGER slow AFTER INSERT ON "my %shop"."Doc :1_neighbours" EXECUTE FUNCTION slow()'
    )


def test_build(database: str) -> None:
    build = ("neighbours", "build", TABLE, "em bedding")
    assert "100%" in sqlvec(database, *build)
    assert len(edges(database)) == 60 * 10
    sqlvec(database, *build, "3", "--into-table", "graph", "--batch", "7")
    every = edges(database, "graph")
    assert len(every) == 60 * 3
    sqlvec(database, *build, "3", "--into-table", "graph", "--mutual")
    assert edges(database, "graph") == {(a, b) for a, b in every if (b, a) in every}
    sqlvec(database, *build, "3", "--into-table", "graph", "--rebuild")
    assert edges(database, "graph") == every


def test_progress(database: str) -> None:
    engine = create_engine(sqlalchemy_url(database))
    manage.build_neighbours(engine, TABLE, "em bedding", 2)
    with psycopg.connect(database) as connection:
        slow_down(connection)
        connection.execute('DELETE FROM "my %shop"."Doc :1_neighbours" WHERE key >= 20')
    seen: list[Progress] = []
    manage.build_neighbours(engine, TABLE, "em bedding", 2, batch=4, progress=seen.append)
    assert {(progress.phase, progress.total) for progress in seen} == {("neighbours", 40)}
    assert all(before.done <= after.done for before, after in pairwise(seen))
    assert 0 < seen[-1].done < 40
    seen.clear()
    manage.build_neighbours(
        engine, TABLE, "em bedding", 2, batch=4, mutual=True, progress=seen.append
    )
    assert {progress.total for progress in seen} == {60}
    with engine.connect() as connection:
        name = connection.exec_driver_sql("SHOW application_name").scalar()
        assert name is not None and "sqlvec:" not in name
    engine.dispose()


def test_interrupted_it_goes_on(database: str) -> None:
    engine = create_engine(sqlalchemy_url(database), poolclass=NullPool)
    manage.build_neighbours(engine, TABLE, "em bedding", 2)
    every = edges(database)
    with psycopg.connect(database) as connection:
        connection.execute('TRUNCATE "my %shop"."Doc :1_neighbours"')
        slow_down(connection)

    def stop(progress: Progress) -> None:
        if progress.done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manage.build_neighbours(engine, TABLE, "em bedding", 2, batch=4, progress=stop)
    kept = edges(database)
    assert 16 <= len(kept) < 120
    assert kept < every
    manage.build_neighbours(engine, TABLE, "em bedding", 2)
    assert edges(database) == every


def test_refusals(database: str, tmp_database: Callable[..., str], bare_template: str) -> None:
    with pytest.raises(DeclarationError, match="nosuch"):
        sqlvec(database, "neighbours", "build", "nosuch", "em bedding")
    with pytest.raises(DeclarationError, match='column "nosuch" of table .* does not exist'):
        sqlvec(database, "neighbours", "build", TABLE, "nosuch")
    engine = create_engine(sqlalchemy_url(database), poolclass=NullPool)
    with pytest.raises(DeclarationError, match="from 1 to 1000, not 0"):
        manage.build_neighbours(engine, TABLE, "em bedding", 0)
    with pytest.raises(NotInstalled, match="sqlvec install"):
        sqlvec(tmp_database(bare_template), "neighbours", "build", TABLE, "em bedding")
