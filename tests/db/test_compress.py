"""Semantic compression against numpy."""

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
Found = list[tuple[int, float]]


def compress(
    db: psycopg.Connection[Any],
    vectors: Hits,
    k: int,
    relevance: list[float] | None = None,
    coverage: float = 0.3,
    diversity: float = 0.0,
) -> Found:
    return db.execute(
        "SELECT * FROM sqlvec.compress(%s::text[]::vector[], %s, %s, %s, %s)",
        (texts(vectors), k, relevance, coverage, diversity),
    ).fetchall()


def objective(
    cosines: NDArray[np.float64],
    relevance: list[float] | None,
    chosen: list[int],
    k: int,
    coverage: float,
    diversity: float,
) -> float:
    """Return the value of a choice, as the definition says it."""
    weights = np.maximum(np.zeros(len(cosines)) if relevance is None else relevance, 0)
    if weights.max(initial=0) <= 1e-150:  # counts as 0, because its square would
        weights = np.ones(len(cosines))
    covered = (weights * cosines[chosen].max(axis=0, initial=0)).sum() / weights.sum()
    pairs = [1 - cosines[a, b] for n, a in enumerate(chosen) for b in chosen[:n]]
    value = coverage * covered + diversity * sum(pairs) / max(k * (k - 1) / 2, 1)
    if relevance is not None:
        value += (1 - coverage - diversity) * sum(relevance[c] for c in chosen) / k
    return float(value)


def check(
    found: Found,
    vectors: Hits,
    k: int,
    relevance: list[float] | None = None,
    coverage: float = 0.3,
    diversity: float = 0.0,
) -> None:
    k = min(k, len(vectors))
    assert len(found) == k
    rows = unit_rows(vectors)
    cosines = np.clip(rows @ rows.T, 0, None)
    chosen: list[int] = []
    for position, score in found:
        before = objective(cosines, relevance, chosen, k, coverage, diversity)
        gains = {
            hit: objective(cosines, relevance, [*chosen, hit], k, coverage, diversity) - before
            for hit in range(len(vectors))
            if hit not in chosen
        }
        # Cosines are rounded to 2^-14, and so is what equally good ones differ by.
        assert gains[position - 1] == pytest.approx(max(gains.values()), abs=2e-4)
        assert score == pytest.approx(gains[position - 1], abs=2e-4)
        chosen.append(position - 1)


@property_settings
@given(
    vectors=hits(),
    k=st.integers(1, 15),
    coverage=st.floats(0, 1),
    share=st.floats(0, 1),
    data=st.data(),
)
def test_every_choice_is_the_best(db, vectors, k, coverage, share, data):
    numbers = st.lists(st.floats(-1, 1), min_size=len(vectors), max_size=len(vectors))
    relevance = data.draw(st.none() | numbers, "relevance")
    arguments = (vectors, k, relevance, coverage, share * (1 - coverage))
    check(compress(db, *arguments), *arguments)


@pytest.mark.parametrize(("coverage", "diversity"), [(0.3, 0), (1, 0), (0.4, 0.2), (0, 0)])
def test_real_size(db: psycopg.Connection[Any], coverage: float, diversity: float) -> None:
    vectors = list(clustered(120, 64))
    relevance = np.random.default_rng(1).uniform(0, 1, 120).tolist()
    check(compress(db, vectors, 12, relevance, coverage, diversity), vectors, 12, relevance, coverage, diversity)  # fmt: skip
    if coverage == 0:
        found = compress(db, vectors, 12, relevance, 0, 0)
        assert [p - 1 for p, _ in found] == np.argsort(relevance)[::-1][:12].tolist()


def test_sums_over_as_many_hits_as_there_may_be(db: psycopg.Connection[Any]) -> None:
    vectors = list(np.tile(clustered(250, 32), (4, 1)))
    found = compress(db, vectors, 3)
    check(found, vectors, 3)
    assert all(position <= 250 for position, _ in found)


def test_one_of_each_kind(db: psycopg.Connection[Any]) -> None:
    kinds = np.eye(4, dtype=np.float32)
    vectors = [kinds[kind] for kind in (0, 0, 0, 1, 1, 2, 3, 3, 3, 3)]
    assert compress(db, vectors, 4, coverage=1) == [(7, 0.4), (1, 0.3), (4, 0.2), (6, 0.1)]


def test_the_weights_mean_the_same_for_any_number_of_hits(db: psycopg.Connection[Any]) -> None:
    vectors, relevance = list(clustered(20, 16)), np.linspace(1, 0.1, 20).tolist()
    once = compress(db, vectors, 6, relevance, 0.4, 0.2)
    often = compress(
        db, [v for v in vectors for _ in range(10)], 6, [r for r in relevance for _ in range(10)], 0.4, 0.2
    )  # fmt: skip
    assert [(p - 1) // 10 + 1 for p, _ in often] == [p for p, _ in once]
    assert [s for _, s in often] == pytest.approx([s for _, s in once], abs=1e-6)


def test_of_equal_scores_the_earlier_position(db: psycopg.Connection[Any]) -> None:
    same = np.array([0.3, 0.7, 0.2], dtype=np.float32)
    assert [p for p, _ in compress(db, [same] * 5, 10)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("arguments", ["NULL", "'{}'", "'{}', 3, '{}'", "NULL, 3, NULL"])
def test_no_hits(db: psycopg.Connection[Any], arguments: str) -> None:
    assert db.execute(f"SELECT * FROM sqlvec.compress({arguments})").fetchall() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'{[1]}', 0", "k is a number from 1 to 10000, not 0"),
        ("'{[1]}', 1, NULL, 1.5", "coverage is a number from 0 to 1, not 1.5"),
        ("'{[1]}', 1, NULL, 0.5, 'NaN'", "diversity is a number from 0 to 1, not NaN"),
        ("'{[1]}', 1, NULL, 0.6, 0.5", "coverage and diversity are at most 1 together, not 0.6 and 0.5"),
        ("'{[1],[2]}', 1, '{1}'", "relevance has length 1, the list of hits 2"),
        ("'{[1],[2]}', 1, '{1,Infinity}'", "relevance holds NULL, NaN or infinity"),
        ("""'{"[1,2]",NULL,"[1,2,3]"}'""", "vectors of 2 and of 3 dimensions"),
    ],
)  # fmt: skip
def test_errors(db: psycopg.Connection[Any], arguments: str, message: str) -> None:
    with pytest.raises(psycopg.DataError, match=message):
        db.execute(f"SELECT * FROM sqlvec.compress({arguments})")


def test_too_many_hits(db: psycopg.Connection[Any]) -> None:
    with pytest.raises(
        psycopg.OperationalError, match="at most 1000 hits with each other, not 1001"
    ):
        db.execute("SELECT * FROM sqlvec.compress(array_fill('[1]'::vector, '{1001}'))")


def test_from_sqlalchemy(conn: Connection) -> None:
    chosen = functions.compress([[1, 0], [1, 0], [0, 1]], k=2, coverage=1)
    rows = chosen.table_valued("position", "score")
    assert conn.scalars(select(rows.c.position)).all() == [1, 3]
