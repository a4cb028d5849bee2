"""Boolean search against brute force in numpy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from psycopg.types.json import Jsonb
from sqlalchemy import Column, Connection, Integer, MetaData, Table, select, text

from sqlvec import functions
from sqlvec.types import VECTOR
from tests.db.vectors import clustered, distances, texts

property_settings = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
D, ROWS = 16, 2000
DOCUMENTS = clustered(ROWS, D)
QUERIES = clustered(4, D, seed=3)
Expression = dict[str, Any] | int
Floats = NDArray[np.float64]


def expressions(queries: int) -> st.SearchStrategy[Expression]:
    def operators(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(parts, min_size=1, max_size=3)
        return st.one_of(
            several.map(lambda p: {"and": p}),
            several.map(lambda p: {"or": p}),
            parts.map(lambda p: {"not": p}),
        )

    return st.recursive(st.integers(1, queries), operators, max_leaves=6)


def evaluate(expression: Expression, relevance: Floats, combine: str) -> Floats:
    """Return the relevance of an expression; the last axis of ``relevance`` is that of queries."""
    if isinstance(expression, int):
        return np.asarray(relevance[..., expression - 1])
    (operator, parts), *_ = expression.items()
    if operator == "not":
        return 1 - evaluate(parts, relevance, combine)
    each = np.stack([evaluate(part, relevance, combine) for part in parts])
    if combine == "minimum":
        return np.asarray(each.min(axis=0) if operator == "and" else each.max(axis=0))
    return np.asarray(each.prod(axis=0) if operator == "and" else 1 - (1 - each).prod(axis=0))


def finds(expression: Expression, negated: bool = False) -> bool:
    """Tell whether a query is under an even number of NOTs."""
    if isinstance(expression, int):
        return not negated
    (operator, parts), *_ = expression.items()
    if operator == "not":
        return finds(parts, not negated)
    return any(finds(part, negated) for part in parts)


@property_settings
@given(
    expressions(4),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.sampled_from(["product", "minimum"]),
)
def test_relevance_equals_numpy(db, expression, relevance, combine):
    (found,) = db.execute(
        "SELECT sqlvec.boolean_relevance(%s, %s::float8[], %s)",
        (Jsonb(expression), relevance, combine),
    ).fetchone()
    assert found == pytest.approx(
        float(evaluate(expression, np.array(relevance), combine)), abs=1e-12
    )


@pytest.mark.parametrize(
    ("expression", "relevance", "expected"),
    [
        ("1", "{0.3}", 0.3),
        ('{"and": [1, {"not": 2}]}', "{0.5,0.2}", 0.4),
        ('{"or": [1, 2]}', "{0.5,0.2}", 0.6),
        ('{"or": [1, 2]}', "[0:1]={0.5,0.2}", 0.6),
        ('{"or": [1, 2]}', "{0.5,NULL}", None),
        ('{"or": [1, 1]}', "{0.5,NULL}", 0.75),
        ('{"not": {"not": 1.0}}', "{0.3}", 0.3),
        ('{"and": [1, 1]}', "{1e-300}", 0),
    ],
)
def test_relevance(
    db: psycopg.Connection[Any], expression: str, relevance: str, expected: float | None
) -> None:
    row = db.execute(
        "SELECT sqlvec.boolean_relevance(%s::jsonb, %s::float8[])", (expression, relevance)
    ).fetchone()
    assert row == (None if expected is None else pytest.approx(expected),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("NULL, '{1}'", "the expression is NULL"),
        ("'2', '{1}'", "names query 2, there are 1"),
        ("'0', '{1}'", "names query 0, there are 1"),
        ("'1.5', '{1,1}'", "names query 1.5, there are 2"),
        ("'1e400', '{1,1}'", "there are 2"),
        ("'1', NULL", "names query 1, there are 0"),
        ("""'"1"', '{1}'""", "this is no expression: .1."),
        ("'[1]', '{1}'", r"this is no expression: \[1\]"),
        ("'{}', '{1}'", "this is no expression: {}"),
        ("""'{"and": [1], "or": [1]}', '{1}'""", "this is no expression"),
        ("""'{"xor": [1]}', '{1}'""", 'unknown operator "xor"'),
        ("""'{"and": []}', '{1}'""", r'operator "and" takes a list that is not empty, not \[\]'),
        ("""'{"or": 1}', '{1}'""", 'operator "or" takes a list that is not empty, not 1'),
        ("""'{"not": [1]}', '{1}'""", "this is no expression"),
        ("""'{"and": [null]}', '{1}'""", "this is no expression: null"),
        ("'1', '{1}', 'sum'", 'combine is product or minimum, not "sum"'),
        ("'1', '{1}', NULL", "combine is product or minimum"),
        ("'1', '{1.5}'", "no probability from 0 to 1"),
        ("'1', '{NaN}'", "no probability from 0 to 1"),
        ("'1', '{{1}}'", "relevance is a list, not an array of 2 dimensions"),
    ],
)
def test_relevance_errors(db: psycopg.Connection[Any], arguments: str, message: str) -> None:
    with pytest.raises(psycopg.DataError, match=message):
        db.execute(f"SELECT sqlvec.boolean_relevance({arguments})")


def test_an_expression_has_an_end(db: psycopg.Connection[Any]) -> None:
    expression = '{"not": ' * 101 + "1" + "}" * 101
    with pytest.raises(psycopg.OperationalError, match="deeper than 100 operators"):
        db.execute("SELECT sqlvec.boolean_relevance(%s::jsonb, '{1}')", (expression,))


@pytest.fixture(scope="module", autouse=True)
def documents(dsn: str) -> Iterator[None]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"""
            CREATE TABLE doc (id int PRIMARY KEY, tenant int NOT NULL, embedding vector({D}));
            CREATE TABLE half (id int PRIMARY KEY, embedding halfvec({D}));
            CREATE TABLE part (id int PRIMARY KEY, embedding vector({D})) PARTITION BY HASH (id);
            CREATE TABLE part_0 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 0);
            CREATE TABLE part_1 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        """)
        rows = connection.cursor()
        rows.executemany(
            "INSERT INTO doc VALUES (%s, %s, %s)",
            [(n, n % 10, embedding) for n, embedding in enumerate(texts(list(DOCUMENTS)))],
        )
        connection.execute("""
            INSERT INTO half SELECT id, embedding FROM doc;
            INSERT INTO part SELECT id, embedding FROM doc;
            INSERT INTO doc SELECT 10000 + i, 1, CASE WHEN i > 2 THEN embedding - embedding END FROM doc, generate_series(1, 4) AS i WHERE id = 1;
            CREATE INDEX by_cosine ON doc USING hnsw (embedding vector_cosine_ops);
            ANALYZE;
        """)  # fmt: skip
        for table in ("doc", "half", "part"):
            connection.execute(
                "CALL sqlvec.create_relevance_model(%s, 'vector', 'raw', slope => '{12}',"
                " intercept => '{-6}', exponent => '{1}', rel => %s::regclass,"
                " column_name => 'embedding')",
                (f"m_{table}", table),
            )
    yield


def relevance(queries: NDArray[np.float32] = QUERIES) -> Floats:
    cosines = np.stack([1 - distances("cosine", DOCUMENTS, query) for query in queries], axis=1)
    return np.asarray(1 / (1 + np.exp(-(12 * cosines - 6))))


def search(
    db: psycopg.Connection[Any],
    expression: Expression,
    more: str = "",
    queries: NDArray[np.float32] = QUERIES,
    table: str = "doc",
) -> list[tuple[int, float, bool]]:
    return db.execute(
        f"SELECT (hit).id, relevance, complete FROM sqlvec.boolean_search(NULL::{table}, 'embedding',"
        f" %s::text[]::vector[], %s, relevance => 'm_{table}' {more})",
        (texts(list(queries)), Jsonb(expression)),
    ).fetchall()


def check(
    found: list[tuple[int, float, bool]], scores: Floats, k: int = 10, abs: float = 1e-5
) -> None:
    """See that rows come in order with their relevance, and that no better one is missing."""
    ids = [row[0] for row in found]
    assert len(set(ids)) == len(ids)
    np.testing.assert_allclose([row[1] for row in found], scores[ids], atol=abs)
    assert [row[1] for row in found] == sorted((row[1] for row in found), reverse=True)
    if all(row[2] for row in found):
        np.testing.assert_allclose(scores[ids], np.sort(scores)[::-1][:k], atol=2 * abs)


@property_settings
@given(expressions(4).filter(finds), st.sampled_from(["product", "minimum"]))
def test_complete_answers_are_the_best_rows(db, expression, combine):
    found = search(db, expression, f", mode => 'exact', combine => '{combine}'")
    assert len(found) == 10
    check(found, evaluate(expression, relevance(), combine))


@property_settings
@given(expressions(4).filter(finds), st.integers(10, 300))
def test_with_few_candidates_the_answer_says_what_it_is(db, expression, candidates):
    found = search(db, expression, f", mode => 'exact', candidates => {candidates}")
    check(found, evaluate(expression, relevance(), "product"))


@pytest.mark.parametrize("mode", ["auto", "exact", "by_cosine"])
@pytest.mark.parametrize(
    "expression", [1, {"and": [1, {"not": 2}]}, {"or": [1, 2, 3]}, {"and": [1, {"or": [2, 3]}]}]
)
def test_through_an_index(db: psycopg.Connection[Any], expression: Expression, mode: str) -> None:
    db.execute("SET LOCAL enable_seqscan = off")
    found = search(db, expression, f", mode => '{mode}'")
    wanted = np.argsort(-evaluate(expression, relevance(), "product"))[:10]
    assert len({row[0] for row in found} & set(wanted.tolist())) >= 9


def test_more_candidates_where_others_could_be_as_relevant(db: psycopg.Connection[Any]) -> None:
    # Near the middle of two distant queries, at the top of neither list.
    queries = np.eye(D, dtype=np.float32)[:2]
    scores = evaluate({"and": [1, 2]}, relevance(queries), "product")
    few = search(db, {"and": [1, 2]}, ", mode => 'exact', candidates => 10", queries)
    assert not few or not few[0][2]
    enough = search(db, {"and": [1, 2]}, ", mode => 'exact'", queries)
    assert enough[0][2]
    check(enough, scores)


@pytest.mark.parametrize("table", ["half", "part"])
def test_other_tables(db: psycopg.Connection[Any], table: str) -> None:
    expression: Expression = {"and": [1, {"not": {"or": [2, 3]}}]}
    found = search(db, expression, table=table)
    check(
        found, evaluate(expression, relevance(), "product"), abs=1e-2 if table == "half" else 1e-5
    )


def test_filters(db: psycopg.Connection[Any]) -> None:
    expression: Expression = {"or": [1, {"and": [2, {"not": 3}]}]}
    scores = evaluate(expression, relevance(), "product")
    mine = np.where(np.arange(ROWS) % 10 == 3, scores, 0)
    check(search(db, expression, """, filter => '{"tenant": 3}'"""), mine)
    check(
        search(db, expression, ", where_sql => 'doc.tenant = ($1)[1]::int', params => '{3}'"), mine
    )
    assert search(db, expression, """, filter => '{"tenant": -1}'""") == []


def test_min_relevance(db: psycopg.Connection[Any]) -> None:
    expression: Expression = {"and": [1, {"not": 2}]}
    scores = evaluate(expression, relevance(), "product")
    cut = float(np.sort(scores)[-6] + np.sort(scores)[-5]) / 2
    found = search(db, expression, f", min_relevance => {cut}")
    assert [row[0] for row in found] == np.argsort(-scores)[:5].tolist()
    assert all(row[2] for row in found)
    assert search(db, expression, ", min_relevance => 1") == []


def test_fewer_rows_than_asked_for_are_all_that_match(db: psycopg.Connection[Any]) -> None:
    found = search(db, {"and": [1, {"not": 2}]}, """, k => 10, filter => '{"id": {"$lt": 4}}'""")
    assert sorted(row[0] for row in found) == [0, 1, 2, 3]
    assert all(row[2] for row in found)


def test_keys(db: psycopg.Connection[Any]) -> None:
    expression: Expression = {"and": [1, {"not": 2}]}
    rows = search(db, expression)
    keys = db.execute(
        "SELECT key, relevance, complete FROM sqlvec.boolean_search_keys(NULL::doc, 'embedding',"
        " %s::text[]::vector[], %s, key => NULL::bigint, relevance => 'm_doc')",
        (texts(list(QUERIES)), Jsonb(expression)),
    ).fetchall()
    assert keys == rows


def test_keys_need_no_more_than_two_columns(db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE ROLE narrow")
    db.execute("GRANT SELECT (id, embedding) ON doc TO narrow")
    db.execute("SET LOCAL ROLE narrow")
    call = (
        "SELECT key FROM sqlvec.boolean_search_keys(NULL::doc, 'embedding', %s::text[]::vector[],"
        " '1', key => NULL::int, relevance => 'm_doc')"
    )
    assert len(db.execute(call, (texts(list(QUERIES)),)).fetchall()) == 10


def test_row_security(db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE ROLE reader")
    db.execute("GRANT SELECT ON doc TO reader")
    db.execute("ALTER TABLE doc ENABLE ROW LEVEL SECURITY")
    db.execute("CREATE POLICY three ON doc USING (tenant = 3)")
    db.execute("SET LOCAL ROLE reader")
    expression: Expression = {"and": [1, {"not": 2}]}
    scores = evaluate(expression, relevance(), "product")
    check(search(db, expression), np.where(np.arange(ROWS) % 10 == 3, scores, 0))


def test_nothing_planted_on_the_search_path_is_run(db: psycopg.Connection[Any]) -> None:
    db.execute("""
        CREATE SCHEMA planted;
        CREATE FUNCTION planted.wrong(float8, float8) RETURNS float8 LANGUAGE sql AS 'SELECT 1 / 0::float8';
        CREATE OPERATOR planted.- (LEFTARG = float8, RIGHTARG = float8, FUNCTION = planted.wrong);
        CREATE OPERATOR planted.* (LEFTARG = float8, RIGHTARG = float8, FUNCTION = planted.wrong);
        CREATE FUNCTION planted.wrong(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT 1 / 0 = 1';
        CREATE OPERATOR planted.>= (LEFTARG = int, RIGHTARG = int, FUNCTION = planted.wrong);
        CREATE FUNCTION planted.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS 'SELECT 1 / 0 || ''''';
    """)  # fmt: skip
    wanted = search(db, {"and": [1, 2]})
    db.execute("SET LOCAL search_path = planted, public, pg_catalog")
    assert search(db, {"and": [1, 2]}) == wanted


ONE = f"ARRAY[array_fill(1, '{{{D}}}')::vector]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (f"{ONE}, '1'", "a boolean search needs a relevance model of the column"),
        (f"{ONE}, '1', relevance => 'nothing'", 'relevance model "nothing" does not exist'),
        (f"{ONE}, '1', relevance => 'm_half'", 'fitted for column "embedding" of table public.half'),
        (f"{ONE}, '2', relevance => 'm_doc'", "names query 2, there are 1"),
        (f"{ONE}, NULL, relevance => 'm_doc'", "the expression is NULL"),
        ("NULL, '1', relevance => 'm_doc'", "names query 1, there are 0"),
        (f"""{ONE}, '{{"not": 1}}', relevance => 'm_doc'""", "every query of the expression is negated"),
        (f"""{ONE}, '{{"not": {{"and": [1, 1]}}}}', relevance => 'm_doc'""", "every query of the expression is negated"),
        ("'{\"[1,2]\"}', '1', relevance => 'm_doc'", "has 16 dimensions, the query has 2"),
        (f"{ONE} || NULL::vector, '1', relevance => 'm_doc'", "query 2 is NULL"),
        (f"ARRAY[{ONE}], '1', relevance => 'm_doc'", "queries is a list, not an array of 2 dimensions"),
        (f"ARRAY[({ONE})[1] - ({ONE})[1]], '1', relevance => 'm_doc'", "zero vector is undefined"),
        (f"{ONE}, '1', relevance => 'm_doc', k => 0", "k is a number from 1 to 10000"),
        (f"{ONE}, '1', relevance => 'm_doc', min_relevance => 2", "min_relevance is a probability"),
        (f"{ONE}, '1', relevance => 'm_doc', combine => 'sum'", "combine is product or minimum"),
        (f"{ONE}, '1', relevance => 'm_doc', candidates => 20000", "gives 10000 candidates at most, not 20000"),
        (f"{ONE}, '1', relevance => 'm_doc', mode => 'nothing'", 'mode "nothing" is neither auto'),
        (f"{ONE}, '1', relevance => 'm_doc', filter => '{{\"nothing\": 1}}'", "nothing"),
    ],
)  # fmt: skip
def test_errors(db: psycopg.Connection[Any], arguments: str, message: str) -> None:
    with pytest.raises(psycopg.Error, match=message):
        db.execute(f"SELECT * FROM sqlvec.boolean_search(NULL::doc, 'embedding', {arguments})")


def test_views_are_searched_by_key(db: psycopg.Connection[Any]) -> None:
    db.execute("CREATE VIEW seen AS SELECT * FROM doc")
    with pytest.raises(psycopg.errors.WrongObjectType, match="have no address"):
        search(db, 1, table="seen")


def test_from_sqlalchemy(conn: Connection) -> None:
    doc = Table("doc", MetaData(), Column("id", Integer), Column("embedding", VECTOR(D)))
    expression = {"and": [1, {"not": 2}]}
    hits = functions.boolean_search(
        doc, "embedding", QUERIES, expression, relevance="m_doc", k=3
    ).table_valued("hit", "relevance", "complete")
    keys = functions.boolean_search_keys(
        doc, "embedding", QUERIES, expression, Integer(), relevance="m_doc", k=3
    ).table_valued("key", "relevance", "complete")
    found = conn.execute(select(keys)).all()
    assert len(found) == 3
    assert [tuple(row) for row in conn.execute(select(hits.c.relevance, hits.c.complete))] == [
        tuple(row)[1:] for row in found
    ]
    probability = functions.boolean_relevance(json.loads('{"or": [1, 2]}'), [0.5, 0.2])
    assert conn.scalar(select(probability)) == pytest.approx(0.6)
    assert conn.scalar(text("SELECT count(*) FROM doc")) == ROWS + 4
