"""Maximal marginal relevance against numpy."""

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
from tests.db.vectors import clustered, hits, texts, unit_rows

property_settings = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Hits = list[NDArray[np.float32] | None]


def mmr(
    db: psycopg.Connection[Any], vectors: Hits, relevance: list[float], k: int, diversity: float
) -> list[tuple[int, float]]:
    return db.execute(
        "SELECT * FROM sqlvec.mmr(%s::text[]::vector[], %s, %s, %s)",
        (texts(vectors), [float(r) for r in relevance], k, diversity),
    ).fetchall()


def expected_scores(
    vectors: Hits, relevance: list[float], chosen: list[int], diversity: float
) -> NDArray[np.float64]:
    """Return the score of every hit that is left after some were chosen."""
    rows = unit_rows(vectors)
    cosines = rows @ rows[chosen].T
    nearest = cosines.max(axis=1) if chosen else np.zeros(len(rows))
    scores = (1 - diversity) * np.array(relevance) - diversity * nearest
    scores[chosen] = -np.inf
    return np.asarray(scores)


def check(
    found: list[tuple[int, float]],
    vectors: Hits,
    relevance: list[float],
    k: int,
    diversity: float,
) -> None:
    assert len(found) == min(k, len(vectors))
    chosen: list[int] = []
    for position, score in found:
        scores = expected_scores(vectors, relevance, chosen, diversity)
        # Rounding may decide between equally good ones.
        assert scores[position - 1] == pytest.approx(scores.max(), abs=1e-5)
        assert score == pytest.approx(scores[position - 1], abs=1e-5)
        chosen.append(position - 1)


@property_settings
@given(vectors=hits(), k=st.integers(1, 15), diversity=st.floats(0, 1), data=st.data())
def test_every_choice_is_the_best(db, vectors, k, diversity, data):
    relevance = data.draw(
        st.lists(st.floats(-1, 1), min_size=len(vectors), max_size=len(vectors)), "relevance"
    )
    check(mmr(db, vectors, relevance, k, diversity), vectors, relevance, k, diversity)


@pytest.mark.parametrize("diversity", [0, 0.3, 1])
def test_real_size(db: psycopg.Connection[Any], diversity: float) -> None:
    vectors = list(clustered(100, 64))
    relevance = np.random.default_rng(1).uniform(0, 1, 100).tolist()
    found = mmr(db, vectors, relevance, 20, diversity)
    check(found, vectors, relevance, 20, diversity)
    if diversity == 0:
        assert [p - 1 for p, _ in found] == np.argsort(relevance)[::-1][:20].tolist()


def test_of_equal_scores_the_earlier_position(db: psycopg.Connection[Any]) -> None:
    same = np.array([0.3, 0.7, 0.2], dtype=np.float32)
    assert [p for p, _ in mmr(db, [same] * 5, [0.5] * 5, 10, 0.3)] == [1, 2, 3, 4, 5]


def test_missing_and_zero_vectors_resemble_nothing(db: psycopg.Connection[Any]) -> None:
    one, other, zero = np.array([[1, 0], [1, 1], [0, 0]], dtype=np.float32)
    found = mmr(db, [one, other, None, zero], [1, 0.9, 0.5, 0.5], 4, 0.5)
    assert found == [
        (1, 0.5),
        (3, 0.25),
        (4, 0.25),
        (2, pytest.approx(0.45 - 0.5 * 0.5**0.5)),
    ]


def test_vectors_of_any_length_and_lists_of_any_lower_bound(db: psycopg.Connection[Any]) -> None:
    assert db.execute(
        'SELECT position FROM sqlvec.mmr(\'[5:7]={"[1e30,0]","[2e-30,0]","[0,3e20]"}\', \'[-1:1]={3,2.9,2.8}\')'
    ).fetchall() == [(1,), (3,), (2,)]


@pytest.mark.parametrize("arguments", ["NULL, NULL", "'{}', '{}'", "'{}', NULL"])
def test_no_hits(db: psycopg.Connection[Any], arguments: str) -> None:
    assert db.execute(f"SELECT * FROM sqlvec.mmr({arguments})").fetchall() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'{[1]}', '{1}', 0", "k is a number from 1 to 10000, not 0"),
        ("'{[1]}', '{1}', NULL", "k is a number from 1 to 10000, not <NULL>"),
        ("'{[1]}', '{1}', 1, 1.5", "diversity is a number from 0 to 1, not 1.5"),
        ("'{[1]}', '{1}', 1, 'NaN'", "diversity is a number from 0 to 1, not NaN"),
        ("'{[1],[2]}', '{1}'", "relevance has length 1, the list of hits 2"),
        ("'{[1]}', NULL", "relevance has length 0, the list of hits 1"),
        ("'{[1],[2]}', '{1,NaN}'", "relevance holds NULL, NaN or infinity"),
        ("'{[1],[2]}', '{1,NULL}'", "relevance holds NULL, NaN or infinity"),
        ("'{[1],[2]}', '{{1,2}}'", "relevance is a list, not an array of 2 dimensions"),
        ("'{{[1],[2]}}', '{1,2}'", "vectors is a list, not an array of 2 dimensions"),
        ("""'{"[1,2]",NULL,"[1,2,3]"}', '{1,2,3}'""", "vectors of 2 and of 3 dimensions"),
    ],
)
def test_errors(db: psycopg.Connection[Any], arguments: str, message: str) -> None:
    with pytest.raises(psycopg.DataError, match=message):
        db.execute(f"SELECT * FROM sqlvec.mmr({arguments})")


def test_from_sqlalchemy(conn: Connection) -> None:
    chosen = functions.mmr([[1, 0], [1, 0.1], [0, 1]], [0.9, 0.8, 0.5], k=2, diversity=0.5)
    rows = chosen.table_valued("position", "score")
    assert conn.scalars(select(rows.c.position)).all() == [1, 3]
