"""Searches answer the same whatever a session has set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

Db = psycopg.Connection[Any]

VECTOR, TOKENS = "'[1,2,3,4]'", """'{"[1,1,0,0]","[0,1,0,0]"}'"""
FILTER = """filter => '{"id": {"$lt": 250}, "note": {"$in": ["a", "b"]}}'"""
SEARCHES = [
    f"vector_search_keys(NULL::public.doc, 'embedding', {VECTOR}, NULL::int)",
    f"vector_search_keys(NULL::public.doc, 'embedding', {VECTOR}, NULL::int, {FILTER})",
    f"vector_search_keys(NULL::public.doc, 'embedding', {VECTOR}, NULL::int, mode => 'code')",
    f"vector_search_keys(NULL::public.doc, 'embedding', {VECTOR}, NULL::int, mode => 'exact')",
    f"maxsim_search_keys(NULL::public.doc, 'tokens', {TOKENS}, NULL::int, {FILTER})",
    f"maxsim_search_keys(NULL::public.doc, 'tokens', {TOKENS}, NULL::int, mode => 'tokens_fde')",
    f"bm25_search_keys(NULL::public.doc, 'body', 'apple w3', NULL::int, {FILTER})",
    f"""hybrid_search_keys(NULL::public.doc, NULL::int, 'apple w3', {VECTOR}, {TOKENS}, {FILTER}, fusion => 'convex')""",
]

SETTINGS = [
    "standard_conforming_strings = off",
    "quote_all_identifiers = on",
    "array_nulls = off",
    "transform_null_equals = on",
    "plan_cache_mode = force_generic_plan",
    "row_security = off",
    "search_path = ''",
    "search_path = sqlvec, public",
    "extra_float_digits = -15",
    "bytea_output = escape",
    "client_encoding = latin1",
    "intervalstyle = sql_standard",
    "datestyle = 'German'",
    "enable_bitmapscan = off",
    "enable_indexscan = off",
    "enable_seqscan = off",
    "work_mem = '64kB'",
    "jit_above_cost = 0",
    "default_transaction_isolation = 'repeatable read'",
    "hnsw.iterative_scan = strict_order",
]


@pytest.fixture(scope="module", autouse=True)
def documents(dsn: str) -> Iterator[None]:
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(
            "CREATE TABLE doc (id int PRIMARY KEY, body text, note text, embedding vector(4), tokens halfvec(4)[])"
        )
        db.execute("CALL sqlvec.add_bm25('doc', 'body')")
        db.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'halfvec', 'code')")
        db.execute("CALL sqlvec.add_fde('doc', 'tokens', repetitions => 4, projection => 4)")
        db.execute("""
            INSERT INTO doc
            SELECT i, 'apple w' || i % 9 || ' x' || i % 31, chr(97 + i % 3), format('[%s,%s,%s,1]', sin(i), cos(i), sin(i * i))::vector,
                   ARRAY[format('[1,%s,0,0]', i % 9), format('[0,1,%s,0]', i % 7)]::halfvec[]
            FROM generate_series(1, 300) AS i
        """)
        db.execute("CREATE INDEX doc_code ON doc USING hnsw (code halfvec_cosine_ops)")
        db.execute("CALL sqlvec.analyze_bm25('doc')")
        db.execute("ANALYZE doc")
    yield


def answers(db: Db) -> list[Any]:
    return [
        db.execute(f"SELECT key FROM sqlvec.{search}", prepare=False).fetchall()
        for search in SEARCHES
    ]


@pytest.fixture(scope="module")
def expected(dsn: str, documents: None) -> list[Any]:
    with psycopg.connect(dsn) as db:
        found = answers(db)
    assert all(len(rows) == 10 for rows in found)
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_the_session(dsn: str, expected: list[Any], setting: str) -> None:
    """Functions compile under the settings of their first call: each in a session of its own."""
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("SELECT '[1]'::public.vector")  # its library knows its settings
        db.execute(f"SET {setting}")
        for _ in range(2):
            assert answers(db) == expected
