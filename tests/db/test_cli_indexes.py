"""The commands ``sqlvec backfill`` and ``sqlvec index``."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from typer.testing import CliRunner

from sqlvec.cli.app import app
from sqlvec.errors import DeclarationError


@pytest.fixture
def database(tmp_database: Callable[..., str]) -> str:
    dsn = tmp_database()
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE doc (id int, embedding vector(3))")
        connection.execute("INSERT INTO doc SELECT i, '[1,2,3]' FROM generate_series(1, 50) AS i")
        connection.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary')")
    return dsn


def sqlvec(dsn: str, *arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"SQLVEC_DSN": dsn}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_backfill(database: str) -> None:
    assert "100%" in sqlvec(database, "backfill", "doc", "--batch", "7")
    with psycopg.connect(database) as connection:
        missing = "SELECT count(*) FROM doc WHERE embedding_binary IS NULL"
        assert connection.execute(missing).fetchone() == (0,)
    sqlvec(database, "backfill", "public.doc", "embedding_binary")


def test_index(database: str) -> None:
    planned = sqlvec(database, "index", "plan", "doc", "embedding", "--metric", "l2")
    assert "-- source\nCREATE INDEX CONCURRENTLY ix_doc_embedding_hnsw ON" in planned
    built = sqlvec(database, "index", "build", "doc", "embedding", "--m", "8")
    assert "the index is built" in built
    again = sqlvec(database, "index", "build", "doc", "embedding", "--on", "embedding_binary")
    assert "there is such an index already" in again
    assert "-- embedding_binary: is there already" in sqlvec(
        database, "index", "plan", "doc", "embedding"
    )


def test_refusal(database: str) -> None:
    with pytest.raises(DeclarationError, match="the ways are"):
        sqlvec(database, "index", "build", "doc", "embedding", "--on", "nosuch")
