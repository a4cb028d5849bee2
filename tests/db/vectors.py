"""Vectors for tests: made from a seed, searched by brute force."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
