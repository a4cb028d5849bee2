"""Codes of nearest centroids against a slow reference and MaxSim of what they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sqlvec.encoders import Centroid, CentroidTable
from sqlvec.errors import DeclarationError, EncodingError

numbers = st.floats(-100, 100, width=16)


def made(clusters: int, d: int, seed: int = 0) -> tuple[Centroid, dict[str, Any]]:
    """Return an encoder and centroids as the server stores them: integers times a power of two."""
    rows = np.random.default_rng(seed).standard_normal((clusters, d))
    rows = np.rint(1000 * rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return Centroid(clusters), {"centroid": (rows / 1024).astype(np.float32)}


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(5)), elements=numbers),
    st.integers(0, 3),
)
def test_the_nearest(x, seed):
    encoder, parts = made(7, 5, seed)
    codes = encoder.document(x, parts)
    assert len(codes) == len(x)
    squares = ((x[:, None, :] - parts["centroid"][None].astype(float)) ** 2).sum(axis=2)
    found = squares[np.arange(len(x)), list(codes)]
    # Up to what rounding a token to 2^11 steps in its norm moves it.
    norms = np.linalg.norm(x, axis=1)
    assert (found <= squares.min(axis=1) + 4e-3 * norms + 1e-9).all()


def test_of_equals_the_lowest():
    encoder = Centroid(3)
    parts = {"centroid": np.array([[0, 1], [1, 0], [1, 0]], dtype=np.float32)}
    assert encoder.document([[1, 1], [1, 0], [0, 0], [0, 5]], parts) == bytes([0, 1, 0, 0])


def test_distance_counts_not_the_angle():
    encoder = Centroid(2)
    parts = {"centroid": np.array([[1, 0], [10, 0]], dtype=np.float32)}
    assert encoder.document([[5, 0], [6, 0]], parts) == bytes([0, 1])


@pytest.mark.parametrize("clusters", [2, 100, 256])
def test_maxsim_is_that_of_the_centroids(clusters):
    encoder, parts = made(clusters, 16)
    rng = np.random.default_rng(1)
    tokens, query = rng.standard_normal((40, 16)), rng.standard_normal((7, 16))
    codes = encoder.document(tokens, parts)
    table = encoder.table(query, parts)
    assert len(table.numbers) == len(table.products) == 7 * clusters
    score = encoder.maxsim(codes, table)
    decoded = encoder.decode(codes, parts)
    assert decoded.shape == (40, 16)
    exact = (query @ decoded.astype(float).T).max(axis=1).sum()
    assert score == pytest.approx(exact, abs=7 * 4e-3)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(4)), elements=numbers))
def test_the_table_falls(query):
    encoder, parts = made(9, 4)
    table = encoder.table(query, parts)
    products = table.products.reshape(-1, 9)
    assert (np.diff(products, axis=1) <= 0).all()
    for row in np.frombuffer(table.numbers, dtype=np.uint8).reshape(-1, 9):
        assert sorted(row) == list(range(9))
    for row, values in zip(
        np.frombuffer(table.numbers, dtype=np.uint8).reshape(-1, 9), products, strict=True
    ):
        ties = np.diff(values) == 0
        assert (np.diff(row.astype(int))[ties] > 0).all()


def test_only_which_codes_occur_matters():
    encoder, parts = made(8, 4)
    table = encoder.table(np.random.default_rng(0).standard_normal((5, 4)), parts)
    assert encoder.maxsim(bytes([3, 1, 1, 3, 5]), table) == encoder.maxsim(bytes([1, 3, 5]), table)


def test_nothing():
    encoder, parts = made(3, 2)
    table = encoder.table([[1, 2]], parts)
    assert encoder.documents([[], np.zeros((0, 2)), [[1.0, 2.0]]], parts)[:2] == [b"", b""]
    assert encoder.maxsim(b"", table) is None
    empty = encoder.table([], parts)
    assert isinstance(empty, CentroidTable) and empty.numbers == b""
    assert encoder.maxsim(b"\x01", empty) == 0
    assert encoder.decode(b"", parts).shape == (0, 2)


def test_bits():
    assert [Centroid(k).bits for k in (2, 3, 4, 5, 128, 129, 256)] == [1, 2, 2, 3, 7, 8, 8]
    assert Centroid(7).code_type() == "bytea"
    assert Centroid(7).options() == {"clusters": 7}


@pytest.mark.parametrize("clusters", [1, 0, 257, True, 2.5])
def test_clusters_out_of_range(clusters):
    with pytest.raises(DeclarationError, match="from 2 to 256"):
        Centroid(clusters)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1.0, 2.0], "2 dimensions"),
        ([[1.0, 2.0], [1.0]], "equally long|inhomogeneous"),
        ([[float("nan")] * 6], "NaN"),
        ([[70000.0] * 6], "out of range for type halfvec"),
        ([[1.0] * 5], "takes vectors of 6 dimensions, not 5"),
    ],
)
def test_what_has_no_code(tokens, message):
    encoder, parts = made(4, 6)
    with pytest.raises(EncodingError, match=message):
        encoder.document(tokens, parts)
    with pytest.raises(EncodingError, match=message):
        encoder.table(tokens, parts)


def test_without_centroids():
    with pytest.raises(EncodingError, match="needs part 'centroid'"):
        Centroid(3).document([[1.0]], {})
    with pytest.raises(EncodingError, match="shape"):
        Centroid(3).document([[1.0]], {"centroid": np.zeros((2, 1), np.float32)})
    with pytest.raises(EncodingError, match="code 3 of an encoder with 3"):
        Centroid(3).decode(b"\x03", {"centroid": np.zeros((3, 1), np.float32)})
