"""Vectors for tests: made from a seed, searched by brute force."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray


def clustered(rows: int, dimensions: int, seed: int = 0) -> NDArray[np.float32]:
    """Return unit vectors around a few centres, shape (rows, dimensions)."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(4, rows // 50), dimensions))
    points = centres[generator.integers(0, len(centres), rows)]
    points = points + 0.7 * generator.standard_normal((rows, dimensions))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(unit, dtype=np.float32)


def text(vector: Sequence[float] | NDArray[np.float32]) -> str:
    """Return the input text of a vector."""
    return "[" + ",".join(repr(float(value)) for value in vector) + "]"


def distances(
    metric: str, rows: NDArray[np.float32], query: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the distance of every row to the query, as pgvector defines it."""
    x, q = rows.astype(np.float64), query.astype(np.float64)
    match metric:
        case "l2":
            return np.asarray(np.linalg.norm(x - q, axis=1))
        case "inner_product":
            return np.asarray(-(x @ q))
        case "cosine":
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(q)
            with np.errstate(invalid="ignore"):
                return np.asarray(1 - (x @ q) / norms)
        case "l1":
            return np.asarray(np.abs(x - q).sum(axis=1))
    raise ValueError(metric)


def texts(vectors: Sequence[NDArray[np.float32] | None]) -> list[str | None]:
    """Return the input texts of the vectors of a list, some of which may be missing."""
    return [None if vector is None else text(vector) for vector in vectors]


def unit_rows(vectors: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float64]:
    """Return the vectors of a list at length 1; zeros stand for a zero or missing one."""
    dimensions = next((len(vector) for vector in vectors if vector is not None), 1)
    rows = np.array([np.zeros(dimensions) if v is None else v for v in vectors], dtype=np.float64)
    rows = rows.reshape(len(vectors), dimensions)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    rows = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, lengths, out=rows, where=lengths > 0))


@st.composite
def hits(draw: st.DrawFn, most: int = 12) -> list[NDArray[np.float32] | None]:
    """Draw the vectors of a list of hits: zeros, repetitions and missing ones among them."""
    dimensions = draw(st.integers(1, 5))
    element = st.floats(-100, 100, width=32)
    vector = st.lists(element, min_size=dimensions, max_size=dimensions)
    pool = draw(st.lists(vector, min_size=1, max_size=most))
    chosen = draw(st.lists(st.sampled_from([*pool, None]), max_size=most))
    return [None if values is None else np.array(values, dtype=np.float32) for values in chosen]
