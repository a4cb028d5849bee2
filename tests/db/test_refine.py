"""SuperGlobal against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from sqlvec import functions
from tests.db.vectors import clustered, text, texts, unit_rows

property_settings = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Hits = list[NDArray[np.float32] | None]
Query = NDArray[np.float32]


def refine(
    db: psycopg.Connection[Any],
    query: Query,
    vectors: Hits,
    neighbours: int = 9,
    beta: float = 0.15,
    expand: bool = False,
) -> list[tuple[int, float]]:
    return db.execute(
        "SELECT * FROM sqlvec.refine(%s::vector, %s::text[]::vector[], %s, %s, %s)",
        (text(query), texts(vectors), neighbours, float(beta), expand),
    ).fetchall()


def expected_scores(
    query: Query, vectors: Hits, neighbours: int = 9, beta: float = 0.15, expand: bool = False
) -> NDArray[np.float64]:
    """Return the score of every hit, from means that are written out."""
    rows, unit = unit_rows(vectors), unit_rows([query])[0]
    cosines = rows @ rows.T
    means = []
    for hit, row in enumerate(rows):
        near = [other for other in np.argsort(-cosines[hit], kind="stable") if other != hit]
        weights = [beta * max(cosines[hit, other], 0) for other in near[:neighbours]]
        total = row + sum(
            (w * rows[other] for w, other in zip(weights, near[:neighbours], strict=True)),
            np.zeros_like(row),
        )
        means.append(total / (1 + sum(weights)))
    refined = np.array(means)
    scores = refined @ unit
    if expand:
        best = np.argsort(-scores, kind="stable")[: neighbours + 1]
        scores = (scores + refined @ refined[best].max(axis=0)) / 2
    return np.asarray(scores)


def check(found: list[tuple[int, float]], scores: NDArray[np.float64]) -> None:
    positions = [position - 1 for position, _ in found]
    assert sorted(positions) == list(range(len(scores)))
    assert [score for _, score in found] == pytest.approx(scores[positions], abs=1e-5)
    assert [score for _, score in found] == sorted((s for _, s in found), reverse=True)


@property_settings
@given(
    st.integers(0, 10_000),
    st.integers(1, 25),
    st.integers(2, 6),
    st.integers(0, 30),
    st.floats(0, 1),
    st.booleans(),
    st.sets(st.integers(0, 24)),
)
def test_equals_numpy(db, seed, count, dimensions, neighbours, beta, expand, missing):
    random = np.random.default_rng(seed)
    query = random.normal(size=dimensions).astype(np.float32)
    vectors = list(random.normal(size=(count, dimensions)).astype(np.float32) * 1e3)
    # Of those without a direction it does not matter which is nearer; neighbours are then others.
    lost = sorted(missing & set(range(count)))[: max(count - neighbours - 1, 0)][:1]
    for hit in lost:
        vectors[hit] = None if seed % 2 else np.zeros_like(query)
    arguments = (query, vectors, neighbours, beta, expand)
    check(refine(db, *arguments), expected_scores(*arguments))


@pytest.mark.parametrize("expand", [False, True])
def test_real_size(db: psycopg.Connection[Any], expand: bool) -> None:
    rows = clustered(101, 64)
    query, vectors = rows[0], list(rows[1:])
    check(refine(db, query, vectors, expand=expand), expected_scores(query, vectors, expand=expand))


def test_without_neighbours_it_is_the_order_by_cosine(db: psycopg.Connection[Any]) -> None:
    rows = clustered(30, 8)
    found = refine(db, rows[0], list(rows[1:]), neighbours=0)
    cosines = unit_rows(list(rows[1:])) @ unit_rows([rows[0]])[0]
    assert [p - 1 for p, _ in found] == np.argsort(-cosines).tolist()


def test_good_company_helps(db: psycopg.Connection[Any]) -> None:
    query = np.array([1, 0, 0], dtype=np.float32)
    # The first two are as near to the query; one of them has a neighbour that is nearer yet.
    vectors = list(np.array([[3, -4, 0], [3, 4, 0], [9, 5, 0]], dtype=np.float32))
    assert [p for p, _ in refine(db, query, vectors, neighbours=1)] == [3, 2, 1]


def test_of_equal_scores_the_earlier_position(db: psycopg.Connection[Any]) -> None:
    same = np.array([0.3, 0.7, 0.2], dtype=np.float32)
    assert [p for p, _ in refine(db, same, [same] * 5, expand=True)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("values", [1e-30, 1e30, 1e-44])
def test_vectors_of_any_length(db: psycopg.Connection[Any], values: float) -> None:
    rows = (np.array([[1, 2], [2, 1], [1, 1e-9]]) * values).astype(np.float32)
    found = refine(db, rows[0], list(rows), beta=1e-300, expand=True)
    assert [p for p, _ in found] == [1, 2, 3]


@pytest.mark.parametrize("arguments", ["NULL", "'{}'"])
def test_no_hits(db: psycopg.Connection[Any], arguments: str) -> None:
    assert db.execute(f"SELECT * FROM sqlvec.refine('[1]', {arguments})").fetchall() == []


def test_only_hits_without_direction(db: psycopg.Connection[Any]) -> None:
    found = db.execute("SELECT * FROM sqlvec.refine('[1]', '{NULL,[0]}', expand => true)")
    assert found.fetchall() == [(1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("NULL, '{[1]}'", "the query is NULL"),
        ("'[0]', '{[1]}'", "the cosine distance to a zero vector is undefined"),
        ("'[1]', '{[1]}', -1", "neighbours is a number from 0 to 1000, not -1"),
        ("'[1]', '{[1]}', 1, 1.5", "beta is a number from 0 to 1, not 1.5"),
        ("'[1]', '{{[1],[2]}}'", "vectors is a list, not an array of 2 dimensions"),
        ("'[1]', '{\"[1,2]\",NULL}'", "vectors of 1 and of 2 dimensions cannot be compared"),
    ],
)
def test_errors(db: psycopg.Connection[Any], arguments: str, message: str) -> None:
    with pytest.raises(psycopg.DataError, match=message):
        db.execute(f"SELECT * FROM sqlvec.refine({arguments})")


def test_too_many_hits(db: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.OperationalError, match="at most 1000 hits"):
        db.execute("SELECT * FROM sqlvec.refine('[1]', array_fill('[1]'::vector, '{1001}'))")


def test_from_sqlalchemy(conn: Connection) -> None:
    order = functions.refine([1, 0], [[0, 1], [1, 0]], neighbours=1, beta=0.5, expand=True)
    rows = order.table_valued("position", "score")
    assert conn.scalars(select(rows.c.position)).all() == [2, 1]
