"""Searches, codes and backfill of tables with a foreign table among their partitions or children."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql

DB = psycopg.Connection[Any]

COLUMNS = "id int NOT NULL, body text, embedding vector(4), tokens halfvec(4)[]"

ROWS = """
    SELECT i, 'word' || i || ' common', ARRAY[sin(i), cos(i), sin(2 * i), 1]::vector,
           ARRAY[ARRAY[sin(i), cos(i), 0, 1]::vector::halfvec, ARRAY[1, 0, cos(i), i]::vector::halfvec]
    FROM generate_series(0, 99) AS i
"""

ENCODING = "repetitions => 3, simhash_bits => 2, projection => 2"

VECTOR = "'[0.5,0.5,0.5,1]'"
TOKENS = "ARRAY['[1,0,0,1]'::halfvec]"

VECTOR_SEARCH = (
    f"SELECT (hit).*, distance FROM sqlvec.vector_search(NULL::doc, 'embedding', {VECTOR}, k => 12)"
)
MAXSIM_SEARCH = f"SELECT (hit).*, score FROM sqlvec.maxsim_search(NULL::doc, 'tokens', {TOKENS})"
BM25_SEARCH = (
    "SELECT key, score FROM sqlvec.bm25_search_keys(NULL::doc, 'body', 'word7 word77',"
    " NULL::int, key_column => 'id')"
)
HYBRID_SEARCH = (
    "SELECT (hit).*, score FROM sqlvec.hybrid_search(NULL::doc,"
    f" query_vector => {VECTOR}, query_tokens => {TOKENS})"
)
KEYS = (
    "SELECT key, distance FROM sqlvec.vector_search_keys(NULL::doc, 'embedding', {vector},"
    " NULL::int, k => 12, key_column => 'id')",
    "SELECT key, score FROM sqlvec.maxsim_search_keys(NULL::doc, 'tokens', {tokens},"
    " NULL::int, key_column => 'id')",
    "SELECT key, score FROM sqlvec.hybrid_search_keys(NULL::doc, NULL::int,"
    " query_vector => {vector}, query_tokens => {tokens}, key_column => 'id')",
)
SEARCHES = (
    VECTOR_SEARCH,
    MAXSIM_SEARCH,
    *(statement.format(vector=VECTOR, tokens=TOKENS) for statement in KEYS),
)


def extension(db: DB, name: str) -> None:
    available = "SELECT FROM pg_available_extensions WHERE name = %s"
    if not db.execute(available, [name]).fetchall():
        pytest.skip(f"no {name} on this server")
    db.execute(f"CREATE EXTENSION {name}")


def loopback(db: DB) -> None:
    """Make the database a foreign server of itself, with the tables of schema far."""
    extension(db, "postgres_fdw")
    info = db.info
    here = sql.SQL(
        "CREATE SERVER loopback FOREIGN DATA WRAPPER postgres_fdw"
        " OPTIONS (host {}, port {}, dbname {}, extensions 'vector')"
    )
    db.execute(here.format(info.host, str(info.port), info.dbname))
    user = sql.SQL("CREATE USER MAPPING FOR PUBLIC SERVER loopback OPTIONS (user {}, password {})")
    db.execute(user.format(info.user, info.password))
    db.execute("CREATE SCHEMA far")


def partition(db: DB) -> None:
    """Make table doc of which the upper half lives in far.part."""
    db.execute(f"CREATE TABLE doc ({COLUMNS}) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE near PARTITION OF doc FOR VALUES FROM (0) TO (50)")
    db.execute(
        "CREATE FOREIGN TABLE away PARTITION OF doc FOR VALUES FROM (50) TO (100)"
        " SERVER loopback OPTIONS (schema_name 'far', table_name 'part')"
    )
    db.execute(f"INSERT INTO doc {ROWS}")


def plain(db: DB, statements: tuple[str, ...]) -> list[Any]:
    """Return what searches answer where all rows are in one ordinary table."""
    db.execute(f"CREATE TABLE plain ({COLUMNS}, PRIMARY KEY (id))")
    db.execute("INSERT INTO plain SELECT id, body, embedding, tokens FROM doc")
    return [db.execute(s.replace("NULL::doc", "NULL::plain")).fetchall() for s in statements]


@pytest.mark.parametrize("behind", ["ordinary", "partitioned"])
def test_searches(fresh: DB, behind: str) -> None:
    loopback(fresh)
    if behind == "ordinary":
        fresh.execute(f"CREATE TABLE far.part ({COLUMNS})")
    else:
        # Rows of different partitions have the same addresses.
        fresh.execute(f"CREATE TABLE far.part ({COLUMNS}) PARTITION BY LIST ((id % 2))")
        fresh.execute("CREATE TABLE far.even PARTITION OF far.part FOR VALUES IN (0)")
        fresh.execute("CREATE TABLE far.odd PARTITION OF far.part FOR VALUES IN (1)")
    partition(fresh)
    for statement, expected in zip(SEARCHES, plain(fresh, SEARCHES), strict=True):
        found = fresh.execute(statement).fetchall()
        assert {row[0] for row in expected} & set(range(50, 100))
        assert found == expected
    with pytest.raises(psycopg.errors.WrongObjectType, match="no address"):
        fresh.execute(HYBRID_SEARCH)


def test_codes(fresh: DB) -> None:
    loopback(fresh)
    fresh.execute(f"CREATE TABLE far.part ({COLUMNS})")
    partition(fresh)
    declare = (
        "CALL sqlvec.add_quantized('{}', 'embedding', 'binary', 'code')",
        f"CALL sqlvec.add_fde('{{}}', 'tokens', {ENCODING})",
        "CALL sqlvec.add_bm25('{}', 'body')",
    )
    for statement in declare:
        # Codes of rows over there are made there.
        with pytest.raises(psycopg.errors.UndefinedColumn) as caught:
            fresh.execute(statement.format("doc"))
        assert "cannot be read from foreign table public.away" in str(caught.value)
        assert "on the table behind public.away" in (caught.value.diag.message_hint or "")
        fresh.execute(statement.format("far.part"))
        fresh.execute(statement.format("doc"))
    notices: list[str | None] = []
    fresh.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    fresh.execute("CALL sqlvec.backfill('doc')")
    assert "rows of foreign table public.away get their codes where they are" in notices
    fresh.execute("CALL sqlvec.backfill('far.part')")
    fresh.execute("CALL sqlvec.analyze_bm25('doc')")
    uncoded = "SELECT count(*) FROM doc WHERE num_nulls(code, tokens_fde, body_bm25) > 0"
    assert fresh.execute(uncoded).fetchone() == (0,)
    states = "SELECT DISTINCT state, blocks_done = blocks_total FROM sqlvec.backfill_progress"
    assert fresh.execute(states).fetchall() == [("done", True)]

    fresh.execute("CREATE INDEX doc_code ON doc USING hnsw (code bit_hamming_ops)")
    by_index = VECTOR_SEARCH.replace("k => 12", "k => 12, mode => 'code', candidates => 99")
    found = fresh.execute(by_index).fetchall()
    assert [row[0] for row in found] == [row[0] for row in plain(fresh, (VECTOR_SEARCH,))[0]]
    best = [row[0] for row in fresh.execute(BM25_SEARCH).fetchall()[:2]]
    assert sorted(best) == [7, 77]
    # Rows written here get their codes as well, and go where they belong.
    fresh.execute("UPDATE doc SET embedding = '[1,2,3,4]', body = 'unheard' WHERE id IN (3, 60)")
    stale = "SELECT count(*) FROM doc WHERE code <> binary_quantize(embedding)::bit(4)"
    assert fresh.execute(stale).fetchone() == (0,)


def test_rows_without_an_address(fresh: DB) -> None:
    extension(fresh, "file_fdw")
    fresh.execute("CREATE SERVER files FOREIGN DATA WRAPPER file_fdw")
    fresh.execute(f"CREATE TABLE doc ({COLUMNS})")
    fresh.execute(f"INSERT INTO doc {ROWS}")
    fresh.execute(
        "CREATE FOREIGN TABLE file () INHERITS (doc) SERVER files OPTIONS (program"
        r" 'printf ''101\ta\t[1,1,1,2]\t{\"[9,0,0,99]\"}\n102\tb\t[1,1,1,3]\t{\"[9,0,0,98]\"}\n''')"
    )
    assert fresh.execute("SELECT count(DISTINCT ctid) FROM file").fetchone() == (1,)
    for statement, expected in zip(SEARCHES, plain(fresh, SEARCHES), strict=True):
        found = fresh.execute(statement).fetchall()
        assert {row[0] for row in expected} & {101, 102}
        assert found == expected
    candidates = f"{MAXSIM_SEARCH[:-1]}, rescore => false)"
    for statement in (HYBRID_SEARCH, candidates):
        with pytest.raises(psycopg.errors.WrongObjectType) as caught:
            fresh.execute(statement)
        assert "is foreign table public.file" in (caught.value.diag.message_detail or "")
        assert "_search_keys with a key column" in (caught.value.diag.message_hint or "")
