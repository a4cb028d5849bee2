"""The best hits of each group against plain Python."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from sqlvec import functions

property_settings = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def best_per_group(
    groups: list[str | None], scores: list[float], k: int, per_group: int
) -> list[tuple[int, float]]:
    """Walk down the ranking and take what its group still has room for."""
    taken: Counter[str] = Counter()
    found = []
    for position in sorted(range(len(scores)), key=lambda p: (-scores[p], p)):
        name = groups[position]
        if name is not None:
            taken[name] += 1
            if taken[name] > per_group:
                continue
        found.append((position + 1, scores[position]))
    return found[:k]


@property_settings
@given(
    st.lists(st.tuples(st.sampled_from(["a", "A", "b", "", None]), st.integers(-3, 3))),
    st.integers(1, 8),
    st.integers(1, 3),
)
def test_equals_python(db, hits, k, per_group):
    groups, scores = [g for g, _ in hits], [s / 2 for _, s in hits]
    found = db.execute(
        "SELECT * FROM sqlvec.best_per_group(%s::text[], %s::float8[], %s, %s)",
        (groups, scores, k, per_group),
    ).fetchall()
    assert found == best_per_group(groups, scores, k, per_group)


@pytest.mark.parametrize("arguments", ["NULL, NULL", "'{}', '{}'", "NULL, '{}'"])
def test_no_hits(db: psycopg.Connection[Any], arguments: str) -> None:
    assert db.execute(f"SELECT * FROM sqlvec.best_per_group({arguments})").fetchall() == []


def test_lists_of_any_lower_bound(db: psycopg.Connection[Any]) -> None:
    found = db.execute("SELECT * FROM sqlvec.best_per_group('[5:7]={a,b,a}', '[0:2]={1,2,3}')")
    assert found.fetchall() == [(3, 3), (2, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'{a}', '{1}', 0", "k is a number from 1 to 10000, not 0"),
        ("'{a}', '{1}', 1, 0", "per_group is 1 or more, not 0"),
        ("'{a}', '{1}', 1, NULL", "per_group is 1 or more, not <NULL>"),
        ("'{a,b}', '{1}'", "scores has length 1, the list of hits 2"),
        ("'{a,b}', '{1,NaN}'", "scores holds NULL, NaN or infinity"),
        ("'{{a,b}}', '{1,2}'", "groups is a list, not an array of 2 dimensions"),
    ],
)
def test_errors(db: psycopg.Connection[Any], arguments: str, message: str) -> None:
    with pytest.raises(psycopg.DataError, match=message):
        db.execute(f"SELECT * FROM sqlvec.best_per_group({arguments})")


def test_from_sqlalchemy(conn: Connection) -> None:
    best = functions.best_per_group(["a", "a", None, None], [1, 2, 3, 4], k=3, per_group=1)
    rows = best.table_valued("position", "score")
    assert conn.scalars(select(rows.c.position)).all() == [4, 3, 2]
