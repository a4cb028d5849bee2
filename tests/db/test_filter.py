"""The filter argument against the same conditions in SQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TABLE = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN score AS int CHECK (VALUE >= 0);
CREATE TABLE thing (
    id int PRIMARY KEY, n int, big bigint, price numeric, ratio float8, flag boolean, name text,
    code varchar(5), day date, at timestamptz, mood mood, tags text[], numbers int[], meta jsonb,
    uid uuid, span int4range, points score, "Odd ""Name" text, net inet, where_am_i point,
    embedding vector(2)
);
INSERT INTO thing
SELECT i, i % 7, i * 10000000000, i / 4.0, i / 3.0, i % 2 = 0, 'name ' || i % 5, 'c' || i % 3,
       date '2026-01-01' + i, timestamptz '2026-01-01 00:00+00' + i * interval '1 hour',
       (enum_range(NULL::mood))[1 + i % 3], ARRAY['t' || i % 4, 'common', 'a"b,c'], ARRAY[i, i + 1],
       jsonb_build_object('k', i % 3, 'deep', jsonb_build_object('x', i)),
       md5(i::text)::uuid, int4range(i, i + 5), i, 'odd ' || i % 2, '10.0.0.1'::inet + i,
       point(i, i), ARRAY[i, 1]::vector
FROM generate_series(1, 60) AS i;
UPDATE thing SET n = NULL, name = NULL, tags = NULL WHERE id % 10 = 0;
UPDATE thing SET tags = ARRAY['t9', NULL, 'a"b,c'], numbers = ARRAY[5, NULL] WHERE id = 60;
"""


@pytest.fixture(scope="module")
def db(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TABLE)
        yield connection


def matching(db: psycopg.Connection[Any], condition: Any) -> set[int]:
    rows = db.execute(
        "SELECT key FROM sqlvec.vector_search_keys(NULL::thing, 'embedding', '[1,1]',"
        " key => NULL::int, k => 100, filter => %s)",
        [json.dumps(condition)],
    ).fetchall()
    return {key for (key,) in rows}


def expected(db: psycopg.Connection[Any], condition: str) -> set[int]:
    return {key for (key,) in db.execute(f"SELECT id FROM thing WHERE {condition}")}


CASES: list[tuple[Any, str]] = [
    ({}, "true"),
    ({"n": 3}, "n = 3"),
    ({"n": None}, "n IS NULL"),
    ({"n": {"$ne": None}}, "n IS NOT NULL"),
    ({"n": {"$ne": 3}}, "n <> 3"),
    ({"n": {"$gt": 2, "$lte": 5}}, "n > 2 AND n <= 5"),
    ({"n": {"$gte": 2, "$lt": 5}}, "n >= 2 AND n < 5"),
    ({"n": {"$in": [1, 2, None]}}, "n IN (1, 2)"),
    ({"$not": {"n": {"$in": [1, 2, None]}}}, "n NOT IN (1, 2)"),
    ({"n": {"$in": [None]}}, "false"),
    ({"n": {"$in": []}}, "false"),
    ({"name": {"$in": ["NULL", None]}}, "false"),
    ({"meta": {"$in": [None, {"k": 1, "deep": {"x": 4}}]}}, "id = 4"),
    ({"n": {"$between": [2, 4]}}, "n BETWEEN 2 AND 4"),
    ({"n": {"$is_null": True}}, "n IS NULL"),
    ({"n": {"$is_null": False}, "flag": True}, "n IS NOT NULL AND flag"),
    ({"flag": {"$ne": True}}, "NOT flag"),
    ({"big": 150000000000}, "id = 15"),
    ({"price": {"$lt": 2.5}}, "price < 2.5"),
    ({"ratio": {"$gte": 1e1}}, "ratio >= 10"),
    ({"name": "name 3"}, "name = 'name 3'"),
    ({"name": {"$in": ["name 1", "it's \"odd\", {really}\\"]}}, "name = 'name 1'"),
    ({"code": "c1"}, "code = 'c1'"),
    ({"day": {"$between": ["2026-01-05", "2026-01-09"]}}, "day BETWEEN '2026-01-05' AND '2026-01-09'"),
    ({"at": {"$lt": "2026-01-01T05:00:00Z"}}, "id < 5"),
    ({"mood": "happy"}, "mood = 'happy'"),
    ({"mood": {"$gt": "sad"}}, "mood > 'sad'"),
    ({"tags": {"$contains": "t1"}}, "'t1' = ANY (tags)"),
    ({"tags": {"$contains": ["t1", 'a"b,c']}}, "'t1' = ANY (tags)"),
    ({"tags": ["t1", "common", 'a"b,c']}, "'t1' = ANY (tags)"),
    ({"tags": {"$contains": ["NULL"]}}, "false"),
    ({"tags": {"$contains": ["t9", None]}}, "false"),
    ({"tags": {"$contains": None}}, "false"),
    ({"tags": ["t9", None, 'a"b,c']}, "id = 60"),
    ({"tags": {"$ne": ["t9", None]}}, "tags IS NOT NULL"),
    ({"numbers": [5, None]}, "id = 60"),
    ({"numbers": {"$gt": [58, None]}}, "id = 59"),
    ({"numbers": {"$contains": 7}}, "7 = ANY (numbers)"),
    ({"meta": {"$contains": {"k": 1}}}, "meta @> '{\"k\": 1}'"),
    ({"meta": {"k": 1, "deep": {"x": 4}}}, "id = 4"),
    ({"uid": "c4ca4238a0b923820dcc509a6f75849b"}, "id = 1"),
    ({"span": "[3,8)"}, "id = 3"),
    ({"points": {"$lte": 4}}, "id <= 4"),
    ({'Odd "Name': "odd 1"}, "id % 2 = 1"),
    ({"net": "10.0.0.9"}, "id = 8"),
    ({"$or": [{"n": 1}, {"flag": True, "id": {"$lt": 9}}]}, "n = 1 OR (flag AND id < 9)"),
    ({"$and": [{"n": {"$gt": 1}}, {"n": {"$lt": 4}}]}, "n > 1 AND n < 4"),
    ({"$not": {"n": 3}}, "NOT (n = 3)"),
    ({"$not": {"$or": [{"n": 3}, {"n": None}]}}, "n IS DISTINCT FROM 3 AND n IS NOT NULL"),
    ({"$or": [{}, {"n": 1}]}, "true"),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "same"), CASES)
def test_operators(db: Any, condition: Any, same: str) -> None:
    assert matching(db, condition) == expected(db, same)


@pytest.mark.parametrize(("condition", "same"), CASES)
def test_operators_without_nulls_in_the_text_of_arrays(db: Any, condition: Any, same: str) -> None:
    with db.transaction(force_rollback=True):
        wanted = expected(db, same)
        db.execute("SET LOCAL array_nulls = off")
        assert matching(db, condition) == wanted


def test_types_without_comparison(db: Any) -> None:
    with pytest.raises(psycopg.errors.DatatypeMismatch, match='"where_am_i".*type point'):
        matching(db, {"where_am_i": "(1,1)"})
    assert matching(db, {"where_am_i": {"$is_null": False}}) == expected(db, "true")


@pytest.mark.parametrize(
    ("condition", "column"),
    [
        ({"n": 1.5}, "n"),
        ({"n": 3000000000}, "n"),
        ({"day": "tomorrow or so"}, "day"),
        ({"mood": {"$in": ["happy", "angry"]}}, "mood"),
        ({"uid": 7}, "uid"),
        ({"flag": "maybe"}, "flag"),
        ({"numbers": {"$contains": ["x"]}}, "numbers"),
        ({"points": {"$between": [1, True]}}, "points"),
    ],
)
def test_values_of_another_type(db: Any, condition: Any, column: str) -> None:
    with pytest.raises(
        psycopg.errors.InvalidParameterValue, match=f'not a value of column "{column}"'
    ):
        matching(db, condition)


def test_operators_of_the_type_itself(dsn: str) -> None:
    """Comparison follows the type's own operator class, wherever it lives."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        available = connection.execute(
            "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'"
        ).fetchone()
        if available == (0,):
            # The same with a type made here: text that compares without regard to case.
            connection.execute("CREATE SCHEMA odd")
            connection.execute("SET search_path = odd, public")
            connection.execute("CREATE TYPE word AS (w text)")
            connection.execute(
                "CREATE TABLE odd.entry (id int PRIMARY KEY, w word, embedding vector(1))"
            )
            connection.execute("INSERT INTO odd.entry VALUES (1, '(a)', '[1]'), (2, '(b)', '[1]')")
            value, table = "(a)", "odd.entry"
        else:
            connection.execute("CREATE SCHEMA odd")
            connection.execute("CREATE EXTENSION citext SCHEMA odd")
            connection.execute(
                "CREATE TABLE odd.entry (id int PRIMARY KEY, w odd.citext, embedding vector(1))"
            )
            connection.execute(
                "INSERT INTO odd.entry VALUES (1, 'Word', '[1]'), (2, 'other', '[1]')"
            )
            value, table = "wORD", "odd.entry"
        connection.execute("SET search_path = public")
        found = connection.execute(
            f"SELECT key FROM sqlvec.vector_search_keys(NULL::{table}, 'embedding', '[1]',"
            " key => NULL::int, filter => %s)",
            [json.dumps({"w": value})],
        ).fetchall()
        assert found == [(1,)]


def test_operators_that_are_known_without_a_look(db: Any) -> None:
    wrong = db.execute("""
        SELECT t.oid::regtype, s.strategy, sqlvec._btree_operator(t.oid, s.strategy), e.expected
        FROM pg_type AS t CROSS JOIN generate_series(1, 5) AS s (strategy) CROSS JOIN LATERAL (
            SELECT (SELECT format('OPERATOR(%I.%s)', o.oprnamespace::regnamespace::name, o.oprname)
                    FROM pg_opclass AS c
                    JOIN pg_am AS m ON m.oid = c.opcmethod AND m.amname = 'btree'
                    JOIN pg_amop AS a ON a.amopfamily = c.opcfamily AND a.amopstrategy = s.strategy
                         AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype
                    JOIN pg_operator AS o ON o.oid = a.amopopr
                    WHERE c.opcdefault
                      AND c.opcintype = CASE t.typname WHEN 'varchar' THEN 'text'::regtype ELSE t.oid END)
        ) AS e (expected)
        WHERE t.oid < 10000 AND t.typtype = 'b' AND t.typcategory <> 'A'
          AND sqlvec._btree_operator(t.oid, s.strategy) IS DISTINCT FROM e.expected
    """).fetchall()
    assert wrong == []


def test_an_index_on_the_filter_column_is_used(db: Any) -> None:
    with db.transaction(force_rollback=True):
        db.execute("CREATE INDEX thing_n ON thing (n)")
        db.execute("SET LOCAL enable_seqscan = off")
        lines = db.execute(
            "SELECT detail FROM sqlvec.explain_search(NULL::thing, 'embedding', '[1,1]',"
            """ filter => '{"n": 3}') WHERE topic = 'explain'"""
        ).fetchall()
    assert any("thing_n" in line for (line,) in lines)


values = st.one_of(st.none(), st.integers(0, 8))
comparisons = st.one_of(
    values.map(lambda v: ({"n": v}, "n IS NULL" if v is None else f"n = {v}")),
    st.integers(0, 8).map(lambda v: ({"n": {"$gt": v}}, f"n > {v}")),
    st.lists(st.integers(0, 8), max_size=3).map(
        lambda v: ({"n": {"$in": v}}, f"n = ANY ('{{{','.join(map(str, v))}}}')")
    ),
    st.booleans().map(lambda v: ({"flag": v}, f"flag = {v}")),
    st.sampled_from(["t0", "t3"]).map(
        lambda v: ({"tags": {"$contains": v}}, f"tags @> ARRAY['{v}']")
    ),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        inner.map(lambda c: ({"$not": c[0]}, f"NOT ({c[1]})")),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda cs: ({"$and": [c[0] for c in cs]}, " AND ".join(f"({c[1]})" for c in cs))
        ),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda cs: ({"$or": [c[0] for c in cs]}, " OR ".join(f"({c[1]})" for c in cs))
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(condition=conditions)
def test_any_combination(db: Any, condition: tuple[Any, str]) -> None:
    assert matching(db, condition[0]) == expected(db, condition[1])
