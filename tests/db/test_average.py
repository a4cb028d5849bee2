"""Means of vectors: the numbers of numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from sqlvec import functions
from sqlvec.types.multivector import from_text
from tests.db.vectors import texts

property_settings = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Floats = NDArray[np.float32]


def average(db: psycopg.Connection[Any], vectors: Floats, unit: bool) -> Floats:
    row = db.execute(
        "SELECT ARRAY[sqlvec.average(%s::text[]::vector[], unit => %s)]::text",
        (texts(list(vectors)), unit),
    ).fetchone()
    assert row is not None
    result: Floats = from_text(row[0])[0]
    return result


def unit_rows(vectors: Floats) -> Floats:
    """Return the vectors at length 1, rounded to float32."""
    rows = vectors.astype(np.float64)
    return np.asarray(rows / np.sqrt((rows * rows).sum(axis=1, keepdims=True)), dtype=np.float32)


def mean(vectors: Floats) -> Floats:
    return np.asarray(vectors.astype(np.float64).mean(axis=0), dtype=np.float32)


def lists(element: st.SearchStrategy[float]) -> st.SearchStrategy[Floats]:
    shape = st.tuples(st.integers(1, 9), st.integers(1, 6))
    return hnp.arrays(np.float32, shape, elements=element)


@property_settings
@given(lists(st.floats(-(2.0**100), 2.0**100, width=32)))
def test_means_equal_numpy(db, vectors):
    np.testing.assert_array_max_ulp(average(db, vectors, unit=False), mean(vectors), 1)


@property_settings
@given(lists(st.floats(-1000, 1000, width=32)))
def test_means_of_directions_equal_numpy(db, vectors):
    assume((np.linalg.norm(vectors.astype(np.float64), axis=1) > 1e-20).all())
    centre = mean(unit_rows(vectors))
    assume(np.linalg.norm(centre) > 1e-5)
    expected = unit_rows(centre[np.newaxis])[0]
    np.testing.assert_array_max_ulp(average(db, vectors, unit=True), expected, 1)


def test_real_size(db: psycopg.Connection[Any]) -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 384)).astype(np.float32)
    np.testing.assert_array_max_ulp(average(db, vectors, unit=False), mean(vectors), 1)
    expected = unit_rows(mean(unit_rows(vectors))[np.newaxis])[0]
    np.testing.assert_array_max_ulp(average(db, vectors, unit=True), expected, 1)


def test_the_length_of_a_vector_counts_only_without_unit(db: psycopg.Connection[Any]) -> None:
    vectors = np.array([[6, 0], [0, 2]], dtype=np.float32)
    assert average(db, vectors, unit=False).tolist() == [3, 1]
    assert average(db, vectors, unit=True) == pytest.approx([0.5**0.5] * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("NULL", "there are no vectors to average"),
        ("'{}'", "there are no vectors to average"),
        ("'{[1]}', NULL", "unit cannot be NULL"),
        ("'{[1],NULL}', false", "vector 2 is NULL"),
        ("'[7:8]={[1],NULL}'", "vector 2 is NULL"),
        ("'{[1],[0]}'", "vector 2 is zero and has no direction"),
        ("'{[1],[-3]}'", "the directions of the vectors cancel out"),
        ("'{\"[1,2]\",[3]}'", "vectors of 1 and of 2 dimensions cannot be compared"),
        ("'{{[1],[2]}}'", "vectors is a list, not an array of 2 dimensions"),
    ],
)
def test_errors(db: psycopg.Connection[Any], arguments: str, message: str) -> None:
    with pytest.raises(psycopg.DataError, match=message):
        db.execute(f"SELECT sqlvec.average({arguments})")


def test_from_sqlalchemy(conn: Connection) -> None:
    assert conn.scalar(select(functions.average([[2, 0], [4, 2]], unit=False))) == [3, 1]
