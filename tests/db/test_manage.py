"""Backfill and indexes from Python: progress, interruption, leftovers, partitions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text

from sqlvec import manage
from sqlvec.errors import DeclarationError, NotInstalled
from sqlvec.manage import Progress
from tests.db.server import sqlalchemy_url


@pytest.fixture
def engine(tmp_database: Callable[..., str]) -> Engine:
    return create_engine(sqlalchemy_url(tmp_database()), poolclass=NullPool)


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def scalar(engine: Engine, statement: str) -> Any:
    with engine.connect() as connection:
        return connection.scalar(text(statement))


def fill(
    engine: Engine, rows: int, table: str = "doc", dimensions: int = 16, partitions: str = ""
) -> None:
    run(
        engine,
        f"CREATE TABLE {table} (id int, note text, embedding vector({dimensions})) {partitions}",
    )
    if partitions:
        run(
            engine,
            f"CREATE TABLE doc_low PARTITION OF {table} FOR VALUES FROM (0) TO (500)",
            f"CREATE TABLE doc_high PARTITION OF {table} FOR VALUES FROM (500) TO (10000000)"
            " PARTITION BY RANGE (id)",
            'CREATE TABLE "Doc High" PARTITION OF doc_high FOR VALUES FROM (500) TO (10000000)',
        )
    run(
        engine,
        f"INSERT INTO {table} SELECT i, repeat('x', 500),"
        f" (SELECT array_agg(sin(i * j)) FROM generate_series(1, {dimensions}) AS j)::vector"
        f" FROM generate_series(1, {rows}) AS i",
        f"CALL sqlvec.add_quantized('{table}', 'embedding', 'binary', 'code')",
    )


def missing(engine: Engine, table: str = "doc") -> int:
    found: int = scalar(engine, f"SELECT count(*) FROM {table} WHERE code IS NULL")
    return found


def indexes(engine: Engine) -> dict[str, bool]:
    """Return validity by name of the HNSW indexes that hold rows."""
    statement = text("""
        SELECT c.relname, i.indisvalid
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_am AS m ON m.oid = c.relam AND m.amname = 'hnsw'
        WHERE c.relkind = 'i'
    """)
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(statement)}


def test_backfill_reports_progress(engine: Engine) -> None:
    fill(engine, 3000)
    seen: list[Progress] = []
    manage.backfill(engine, "doc", "code", batch=100, progress=seen.append)
    assert missing(engine) == 0
    assert {progress.phase for progress in seen} == {"encoding"}
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total > 0


def test_backfill_of_every_column(engine: Engine) -> None:
    fill(engine, 100)
    run(engine, "CALL sqlvec.add_quantized('doc', 'embedding', 'halfvec')")
    manage.backfill(engine, "doc")
    assert missing(engine) == 0
    assert scalar(engine, "SELECT count(embedding_halfvec) FROM doc") == 100


class Stop(KeyboardInterrupt):
    """What Ctrl-C raises, without ending the test run."""


def test_interrupted_backfill_keeps_its_work_and_goes_on(engine: Engine) -> None:
    fill(engine, 3000)
    # A row held by somebody else makes the backfill wait at its end.
    with engine.begin() as other:
        other.exec_driver_sql("SELECT FROM doc WHERE id = 3000 FOR UPDATE")

        def stop(progress: Progress) -> None:
            if missing(engine) == 1:
                raise Stop

        with pytest.raises(Stop):
            manage.backfill(engine, "doc", "code", batch=100, progress=stop)
        assert missing(engine) == 1
        running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL sqlvec.backfill%'"
        assert scalar(engine, f"{running} AND state = 'active'") == 0
    manage.backfill(engine, "doc", "code", batch=100)
    assert missing(engine) == 0


def test_backfill_builds_the_index_of_unfinished_rows(engine: Engine) -> None:
    run(
        engine,
        # Too large for sqlvec.add_quantized to read it under its lock.
        "CREATE TABLE doc (id int, note text, embedding vector(2))",
        "ALTER TABLE doc ALTER COLUMN note SET STORAGE PLAIN",
        "INSERT INTO doc SELECT i, repeat('x', 7000), '[1,2]' FROM generate_series(1, 5000) AS i",
        "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')",
    )
    planned = "SELECT count(*) FROM sqlvec.plan_index('doc', 'embedding') WHERE name = 'unfinished'"
    assert scalar(engine, planned) == 1
    manage.backfill(engine, "doc")
    assert scalar(engine, planned) == 0


def test_index_is_built_once(engine: Engine) -> None:
    fill(engine, 2000)
    manage.backfill(engine, "doc")
    seen: list[Progress] = []
    settings: dict[str, Any] = {"m": 8, "ef_construction": 32, "maintenance_work_mem": "64MB"}
    assert manage.create_index(engine, "doc", "embedding", progress=seen.append, **settings)
    assert indexes(engine) == {"ix_doc_code_hnsw": True}
    options = "SELECT reloptions::text FROM pg_class WHERE relname = 'ix_doc_code_hnsw'"
    assert scalar(engine, options) == "{m=8,ef_construction=32}"
    assert not manage.create_index(engine, "doc", "embedding", "code")
    assert manage.create_index(engine, "doc", "embedding", "source", metric="cosine")
    assert manage.create_index(engine, "doc", "embedding", "expression:halfvec")
    assert len(indexes(engine)) == 3


def test_an_index_for_each_metric(engine: Engine) -> None:
    fill(engine, 100)
    built = [
        manage.create_index(engine, "doc", "embedding", "source", metric=metric)
        for metric in ("l2", "cosine", "l2", "cosine")
    ]
    assert built == [True, True, False, False]
    found = scalar(
        engine,
        "SELECT string_agg(o.opcname, ' ' ORDER BY o.opcname) FROM pg_index AS i"
        " JOIN pg_opclass AS o ON o.oid = i.indclass[0]"
        " WHERE i.indrelid = 'doc'::regclass AND o.opcname LIKE 'vector%'",
    )
    assert found == "vector_cosine_ops vector_l2_ops"


def test_session_settings_are_put_back(tmp_database: Callable[..., str]) -> None:
    engine = create_engine(sqlalchemy_url(tmp_database()), pool_size=1, max_overflow=1)
    fill(engine, 10)
    before = scalar(engine, "SHOW maintenance_work_mem")
    manage.create_index(engine, "doc", "embedding", maintenance_work_mem="3MB")
    assert scalar(engine, "SHOW maintenance_work_mem") == before
    engine.dispose()


def test_invalid_leftover_is_replaced(engine: Engine) -> None:
    fill(engine, 50)
    manage.create_index(engine, "doc", "embedding")
    run(
        engine,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_doc_code_hnsw'::regclass",
    )
    assert manage.create_index(engine, "doc", "embedding")
    assert indexes(engine) == {"ix_doc_code_hnsw": True}


def test_failed_build_leaves_nothing(engine: Engine) -> None:
    fill(engine, 50)
    with pytest.raises(DeclarationError, match='value 1 out of bounds for option "m"'):
        manage.create_index(engine, "doc", "embedding", m=1)
    assert indexes(engine) == {}


def test_interrupted_build_leaves_nothing(engine: Engine) -> None:
    fill(engine, 200)
    # CONCURRENTLY waits for transactions that may have written to the table.
    with engine.connect() as other:
        other.exec_driver_sql("UPDATE doc SET note = '' WHERE id = 1")
        phases: list[str] = []

        def stop(progress: Progress) -> None:
            phases.append(progress.phase)
            raise Stop

        # The leftover can only be dropped when that transaction has ended.
        ended = threading.Timer(1, other.rollback)
        ended.start()
        with pytest.raises(Stop):
            manage.create_index(engine, "doc", "embedding", progress=stop)
        ended.join()
        assert phases == ["waiting for writers before build"]
    assert indexes(engine) == {}
    assert manage.create_index(engine, "doc", "embedding")


def test_partitioned_table(engine: Engine) -> None:
    fill(engine, 1000, partitions="PARTITION BY RANGE (id)")
    manage.backfill(engine, "doc")
    assert missing(engine) == 0
    assert manage.create_index(engine, "doc", "embedding", m=8)
    assert indexes(engine) == {
        "ix_doc_code_hnsw_doc_low": True,
        "ix_doc_code_hnsw_Doc High": True,
    }
    attached = "SELECT count(*) FROM pg_partition_tree('ix_doc_code_hnsw') WHERE isleaf"
    assert scalar(engine, attached) == 2
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_doc_code_hnsw'::regclass"
    assert scalar(engine, valid) is True
    assert not manage.create_index(engine, "doc", "embedding")


def test_partitioned_build_goes_on_after_a_failure(engine: Engine) -> None:
    fill(engine, 1000, partitions="PARTITION BY RANGE (id)")
    manage.backfill(engine, "doc")
    # Stands in the way of the second partition.
    run(engine, 'CREATE VIEW "ix_doc_code_hnsw_Doc High" AS SELECT 1')
    with pytest.raises(Exception, match="already exists"):
        manage.create_index(engine, "doc", "embedding")
    assert indexes(engine) == {"ix_doc_code_hnsw_doc_low": True}
    first = scalar(engine, "SELECT 'ix_doc_code_hnsw_doc_low'::regclass::oid")
    run(engine, 'DROP VIEW "ix_doc_code_hnsw_Doc High"')
    manage.create_index(engine, "doc", "embedding")
    assert scalar(engine, "SELECT 'ix_doc_code_hnsw_doc_low'::regclass::oid") == first
    assert len(indexes(engine)) == 2


def test_odd_names(engine: Engine) -> None:
    schema, table = '"a ""b"" ON c.d"', '"Doc %s :x; ON"'
    run(
        engine,
        f"CREATE SCHEMA {schema}",
        f'CREATE TABLE {schema}.{table.replace("%", "%%")} (id int, "My Vec" vector(3))',
        f"INSERT INTO {schema}.{table.replace('%', '%%')} VALUES (1, '[1,2,3]')",
    )
    with engine.begin() as connection:
        connection.execute(
            text("CALL sqlvec.add_quantized(CAST(:table AS regclass), 'My Vec', 'binary')"),
            {"table": f"{schema}.{table}"},
        )
    manage.backfill(engine, f"{schema}.{table}")
    assert manage.create_index(engine, f"{schema}.{table}", "My Vec")
    (name,) = indexes(engine)
    assert name == "ix_Doc %s :x; ON_My Vec_binary_hnsw"


def test_refusals_name_what_is_wrong(engine: Engine) -> None:
    fill(engine, 5)
    with pytest.raises(DeclarationError, match='relation "nosuch" does not exist'):
        manage.backfill(engine, "nosuch")
    with pytest.raises(DeclarationError, match='"nosuch(.doc)?" does not exist'):
        manage.create_index(engine, "nosuch.doc", "embedding")
    with pytest.raises(DeclarationError, match='table public.doc has no derived column "nosuch"'):
        manage.backfill(engine, "doc", "nosuch")
    with pytest.raises(DeclarationError, match="batch is a number of rows"):
        manage.backfill(engine, "doc", batch=0)
    with pytest.raises(DeclarationError, match='column "nosuch" of table .* does not exist'):
        manage.create_index(engine, "doc", "nosuch")
    with pytest.raises(DeclarationError, match="the ways are: source, code, expression:binary"):
        manage.create_index(engine, "doc", "embedding", "nosuch")
    run(engine, "CALL sqlvec.add_quantized('doc', 'embedding', 'halfvec')")
    with pytest.raises(DeclarationError, match="several codes; name one of: code, embedding_half"):
        manage.create_index(engine, "doc", "embedding")
    run(engine, "CREATE TABLE loose (embedding vector)")
    with pytest.raises(DeclarationError, match="names no dimensions"):
        manage.create_index(engine, "loose", "embedding")


@pytest.mark.parametrize("column", ["id", "note"])
def test_columns_that_no_index_serves(engine: Engine, column: str) -> None:
    fill(engine, 5)
    message = (
        f'column "{column}" of table public.doc is of type (integer|text),'
        r" not vector, halfvec, sparsevec or bit\(n\)\n.* after sqlvec.add_bm25"
    )
    with pytest.raises(DeclarationError, match=message):
        manage.plan_index(engine, "doc", column)
    with pytest.raises(DeclarationError, match=message):
        manage.create_index(engine, "doc", column)


def test_index_of_a_table_in_place_of_another(engine: Engine) -> None:
    """A renamed table keeps its indexes, and the names that they have."""
    fill(engine, 5)
    manage.create_index(engine, "doc", "embedding")
    run(
        engine,
        "ALTER TABLE doc RENAME TO doc_old",
        "CREATE TABLE doc (id int, embedding vector(3))",
        "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', target => 'code')",
    )
    assert manage.create_index(engine, "doc", "embedding")
    assert indexes(engine) == {"ix_doc_code_hnsw": True, "ix_doc_code_hnsw_2": True}
    assert not manage.create_index(engine, "doc", "embedding")


def test_without_sqlvec(tmp_database: Callable[..., str]) -> None:
    engine = create_engine(sqlalchemy_url(tmp_database(None)), poolclass=NullPool)
    with pytest.raises(NotInstalled):
        manage.backfill(engine, "doc")
