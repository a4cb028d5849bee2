"""Correction of hubs against the formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sqlvec.encoders import Hubness
from sqlvec.errors import DeclarationError, EncodingError


def bank(rows: int, d: int, seed: int = 0) -> Any:
    """Return unit vectors as the server stores them: integers, 4000 long."""
    vectors = np.random.default_rng(seed).standard_normal((rows, d))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.rint(4000 * unit).astype(np.float32)


def soft_mean(x: Any, bank: Any, beta: float) -> Any:
    """Return ln of the mean of exp(beta * cosine)."""
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    own = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.log(np.exp(beta * own @ unit.T).mean(axis=1))


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 9), st.just(5)), elements=st.floats(-9, 9, width=32)
    ),
    st.floats(0.1, 300),
    st.floats(0.1, 300),
    st.floats(0.01, 1),
)
def test_the_formula(x, beta_queries, beta_gallery, strength):
    encoder = Hubness(20, 15, beta_queries, beta_gallery, strength)
    parts = {"queries": bank(20, 5), "gallery": bank(15, 5, 1)}
    x = x[np.abs(x).max(axis=1) > 1e-3].astype(np.float64)
    codes = encoder.encode(np.asarray(x, np.float32).reshape(-1, 5), parts) if len(x) else x
    if not len(x):
        return
    np.testing.assert_allclose(
        codes[:, :5], x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-6
    )
    total = soft_mean(x, parts["queries"], beta_queries)
    total += soft_mean(x, parts["gallery"], beta_gallery)
    # The banks are rounded to 4000 steps.
    np.testing.assert_allclose(
        codes[:, 5], -strength * total / (beta_queries + beta_gallery), atol=2e-3
    )


def test_the_order_is_that_of_inverted_softmax():
    rng = np.random.default_rng(0)
    rows, query = rng.standard_normal((50, 8)), rng.standard_normal(8)
    parts = {"queries": bank(30, 8)}
    encoder = Hubness(30, beta_queries=15, strength=1)
    scores = encoder.encode(rows, parts) @ Hubness.query(query)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ (parts["queries"].T / 4000)
    inverted = np.exp(15 * unit @ (query / np.linalg.norm(query))) / np.exp(15 * cosines).sum(1)
    assert (np.argsort(scores) == np.argsort(inverted)).all()


def test_a_hub_stands_back():
    """A row near to all queries loses against one that is near to this query alone."""
    queries = np.array([[1, 0.2, 0], [1, -0.2, 0], [1, 0, 0.2], [1, 0, -0.2]])
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    parts = {"queries": np.rint(4000 * unit).astype(np.float32)}
    rows = np.array([[1, 0, 0], [1, 0.42, 0]])
    plain = [np.dot(row, queries[0]) / np.linalg.norm(row) for row in rows]
    encoder = Hubness(4, strength=1)
    corrected = encoder.encode(rows, parts) @ Hubness.query(queries[0])
    assert plain[0] > plain[1] and corrected[0] < corrected[1]


def test_a_row_of_the_gallery_bank_does_not_count_itself():
    parts = {"queries": bank(4, 6), "gallery": bank(5, 6, 1)}
    without = {"queries": parts["queries"], "gallery": np.delete(parts["gallery"], 2, axis=0)}
    own = parts["gallery"][2]
    found = Hubness(4, 5).encode(own, parts)
    assert (found == Hubness(4, 4).encode(own, without)).all()
    alone = Hubness(4, 1).encode(own, {"queries": parts["queries"], "gallery": own[None]})
    queries_only = Hubness(4).encode(own, {"queries": parts["queries"]})
    # Its own term is zero, and the betas still add up.
    assert alone[-1] == pytest.approx(queries_only[-1] / 2)


def test_zero_and_extreme_vectors():
    parts = {"queries": bank(4, 3)}
    encoder = Hubness(4)
    assert encoder.encode([0.0, 0.0, 0.0], parts).tolist() == [0, 0, 0, -2]
    huge, tiny = encoder.encode([[3e38, 3e38, 0.0], [1e-45, 1e-45, 0.0]], parts)
    np.testing.assert_allclose(huge, tiny, rtol=1e-6)
    scores = encoder.encode([[0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]], parts) @ Hubness.query(
        [1.0, 1.0, 1.0]
    )
    assert scores[0] < scores[1]


def test_queries():
    assert Hubness.query([3.0, 4.0]).tolist() == pytest.approx([0.6, 0.8, 1])
    assert Hubness.query([[3.0, 4.0], [0.0, 2.0]]).shape == (2, 3)
    with pytest.raises(EncodingError, match="no direction"):
        Hubness.query([0.0, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "'queries' is a positive integer"),
        ({"gallery": -1}, "'gallery' is a positive integer"),
        ({"beta_queries": 0}, "'beta_queries' is a number above 0 and up to 300"),
        ({"beta_gallery": 301}, "'beta_gallery' is a number above 0 and up to 300"),
        ({"beta_queries": float("nan")}, "not nan"),
        ({"strength": 1.5}, "'strength' is a number above 0 and up to 1"),
        ({"strength": True}, "not True"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(DeclarationError, match=message):
        Hubness(**{"queries": 3, **options})


def test_banks_of_another_size():
    with pytest.raises(EncodingError, match="'queries' of the encoder has shape"):
        Hubness(5).encode([1.0, 2], {"queries": bank(4, 2)})
    with pytest.raises(EncodingError, match="needs part 'gallery'"):
        Hubness(4, 1).encode([1.0, 2], {"queries": bank(4, 2)})


def test_the_type():
    assert Hubness(1).code_type(384) == "vector(385)"
