"""The commands ``sqlvec bm25``, and what the others do with a BM25 column."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateSchema
from typer.testing import CliRunner

from sqlvec import manage
from sqlvec.cli.app import app
from sqlvec.errors import DeclarationError, NotInstalled
from tests.db.server import sqlalchemy_url


@pytest.fixture
def database(tmp_database: Callable[..., str]) -> str:
    dsn = tmp_database()
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE doc (id int PRIMARY KEY, body text)")
        connection.execute(
            "INSERT INTO doc SELECT i, 'word' || i || ' tree' FROM generate_series(1, 50) AS i"
        )
        connection.execute("CALL sqlvec.add_bm25('doc', 'body')")
    return dsn


def sqlvec(dsn: str, *arguments: str, **variables: str) -> str:
    environment = {"SQLVEC_DSN": dsn, "COLUMNS": "200", **variables}
    result = CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def found(dsn: str, query: str) -> list[int]:
    statement = "SELECT (hit).id FROM sqlvec.bm25_search(NULL::doc, 'body', %s)"
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute(statement, [query])]


def test_from_backfill_to_health(database: str) -> None:
    sqlvec(database, "backfill", "doc", "--batch", "7")
    assert "never" in sqlvec(database, "bm25", "health")
    assert "CALL sqlvec.analyze_bm25" in sqlvec(database, "bm25", "health", "doc")
    analyzed = sqlvec(database, "bm25", "analyze", "doc", "--drift", "0")
    assert "100%" in analyzed
    assert analyzed.splitlines()[-1] == "body_bm25: 50 documents, 51 different words"
    health = sqlvec(database, "bm25", "health", "public.doc")
    row = health.splitlines()[1].split()
    assert row[:4] == ["doc", "body_bm25", "50", "2.0"]
    assert "CALL" not in health
    assert found(database, "word7") == [7]


def test_health_is_whole_at_any_width(database: str) -> None:
    health = sqlvec(database, "bm25", "health", COLUMNS="80")
    title, row, advice = health.splitlines()
    assert title.split() == [
        *("table", "column", "documents", "mean", "length"),
        *("terms", "collisions", "analyzed", "changes", "since"),
    ]
    assert row.split()[:3] == ["doc", "body_bm25", "never"]
    assert advice == "doc, column body_bm25: never counted; CALL sqlvec.analyze_bm25('doc');"


def test_health_of_tenants(tmp_database: Callable[..., str]) -> None:
    dsn = tmp_database()
    name = "a_table_with_a_rather_long_name"
    with psycopg.connect(dsn) as connection:
        connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, shop text, body text)")
        connection.execute(f"CALL sqlvec.add_bm25('{name}', 'body', tenant => 'shop')")
        connection.execute(
            f"INSERT INTO {name} SELECT i, 'shop' || i % 2, 'tree' FROM generate_series(1, 9) AS i"
        )
    analyzed = sqlvec(dsn, "bm25", "analyze", name)
    assert analyzed.splitlines()[-1] == "body_bm25: 9 documents of 2 tenants"
    with psycopg.connect(dsn) as connection:
        connection.execute(f"INSERT INTO {name} SELECT i, 'x', 'y' FROM generate_series(10, 99) i")
        connection.execute("SELECT pg_stat_force_next_flush()")
    health = sqlvec(dsn, "bm25", "health", COLUMNS="40")
    assert [line.split()[:4] for line in health.splitlines()[1:3]] == [
        [name, "body_bm25", "shop0", "4"],
        [name, "body_bm25", "shop1", "5"],
    ]
    assert health.count("CALL sqlvec.analyze_bm25") == 1


def test_health_without_bm25_columns(tmp_database: Callable[..., str]) -> None:
    assert sqlvec(tmp_database(), "bm25", "health") == "no BM25 columns\n"


def test_health_without_sqlvec(tmp_database: Callable[..., str], bare_template: str) -> None:
    with pytest.raises(NotInstalled, match="sqlvec install"):
        sqlvec(tmp_database(bare_template), "bm25", "health")


def test_the_index_is_built_apart_from_the_declaration(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("DROP INDEX ix_doc_body_bm25_tsv")
    planned = sqlvec(database, "index", "plan", "doc", "body_bm25")
    assert "CREATE INDEX CONCURRENTLY ix_doc_body_bm25_tsv ON public.doc USING gin" in planned
    assert "the index is built" in sqlvec(database, "index", "build", "doc", "body_bm25")
    assert "there is such an index" in sqlvec(database, "index", "build", "doc", "body_bm25")
    with pytest.raises(DeclarationError, match="settings of hnsw, not gin"):
        sqlvec(database, "index", "build", "doc", "body_bm25", "--m", "8")


def test_manage_takes_a_model_or_a_table(tmp_database: Callable[..., str]) -> None:
    engine = create_engine(sqlalchemy_url(tmp_database()), poolclass=NullPool)

    class Base(DeclarativeBase):
        pass

    class Odd(Base):
        __tablename__ = 'Odd "%s'
        __table_args__ = {"schema": "My Shop"}
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]

    with engine.begin() as connection:
        connection.execute(CreateSchema("My Shop"))
        Base.metadata.create_all(connection)
        call = "CALL sqlvec.add_bm25(CAST(:name AS regclass), 'body')"
        connection.execute(text(call), {"name": '"My Shop"."Odd ""%s"'})
        connection.execute(insert(Odd), [{"body": "tree"}, {"body": "apple tree"}])
    manage.analyze_bm25(engine, Odd)
    table = Base.metadata.tables['My Shop.Odd "%s']
    assert [row.documents for row in manage.bm25_health(engine, table)] == [2]
    elsewhere = engine.execution_options(schema_translate_map={"My Shop": "nosuch"})
    with pytest.raises(DeclarationError, match="nosuch"):
        manage.bm25_health(elsewhere, Odd)
    with pytest.raises(DeclarationError, match="neither a mapped class nor a Table nor a name"):
        manage.analyze_bm25(engine, int)


def test_refusals(database: str) -> None:
    with pytest.raises(DeclarationError, match="nosuch"):
        sqlvec(database, "bm25", "analyze", "nosuch")
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE other (id int)")
    with pytest.raises(DeclarationError, match="no BM25 column"):
        sqlvec(database, "bm25", "analyze", "other")


def test_partitions_are_indexed_one_by_one(tmp_database: Callable[..., str]) -> None:
    dsn = tmp_database()
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "CREATE TABLE doc (id int, body text, PRIMARY KEY (id)) PARTITION BY RANGE (id)"
        )
        connection.execute("CREATE TABLE low PARTITION OF doc FOR VALUES FROM (0) TO (10)")
        connection.execute("CREATE TABLE high PARTITION OF doc FOR VALUES FROM (10) TO (100)")
        connection.execute("CALL sqlvec.add_bm25('doc', 'body')")
        connection.execute("DROP INDEX ix_doc_body_bm25_tsv")
        connection.execute(
            "INSERT INTO doc SELECT i, 'tree ' || i FROM generate_series(1, 20) AS i"
        )
    assert "the index is built" in sqlvec(dsn, "index", "build", "doc", "body")
    sqlvec(dsn, "bm25", "analyze", "doc")
    assert "-- body_bm25_tsv: is there already" in sqlvec(dsn, "index", "plan", "doc", "body")
    assert found(dsn, "17") == [17]
    assert found(dsn, "tree")[:3] == [1, 2, 3]
