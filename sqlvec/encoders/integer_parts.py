"""Vectors and matrices as small integers, so that their products are exact everywhere.

A matrix encoder needs inner products. In float32 those depend on the order in which the terms are
added, which differs between processors, compilers and BLAS: two machines could disagree about a
bit. Sums of integers below 2^24 are exact in float32 in any order, so both sides are rounded to
integers with so small norms that, by Cauchy-Schwarz, no partial sum reaches 2^24:

==========  =============================================  ===========
side        integers                                       norm
==========  =============================================  ===========
vector x    ``high = rint(x c / m)``, m = max abs x_i      4,096
            ``low = rint((x c / m - high) 2c)``            4,096
matrix row  ``high = rint(4000 w / norm(w))``              4,000 + √d/2
            ``low = rint((4000 w / norm(w) - high) b)``    4,096
==========  =============================================  ===========

where c = floor(4096 / √d) and b = floor(8192 / √d). One ``high`` by one ``high`` decides signs; the
two ``low`` terms give the digits that values need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqlvec.encoders.base import Vectors
from sqlvec.errors import EncodingError

_ROW_NORM = 4000


def vector_step(dimensions: int) -> float:
    """Return c: the largest integer in ``high`` of a vector. ``low`` counts in 1 / 2c of a unit."""
    return float(np.floor(4096 / np.sqrt(dimensions)))


def matrix_step(dimensions: int) -> float:
    """Return b: ``low`` of a matrix row counts in 1 / b of a unit."""
    return float(np.floor(8192 / np.sqrt(dimensions)))


@dataclass(frozen=True, slots=True)
class VectorParts:
    """A batch of vectors as ``unit * (high + low / 2c)``."""

    unit: NDArray[np.float64]
    """m / c of each vector (n, 1); zero for the zero vector."""

    high: NDArray[np.float32]
    low: NDArray[np.float32]


def vector_parts(vectors: Vectors) -> VectorParts:
    """Split a batch of vectors (n, d)."""
    c = vector_step(vectors.shape[1])
    largest = np.abs(vectors).max(axis=1, keepdims=True).astype(np.float64)
    # The factor is rounded once and then multiplied, as the server does it.
    scaled = vectors * np.divide(c, largest, out=np.zeros_like(largest), where=largest > 0)
    high = np.rint(scaled)
    low = np.rint((scaled - high) * (2 * c))
    return VectorParts(largest / c, high.astype(np.float32), low.astype(np.float32))


def matrix_parts(matrix: ArrayLike) -> dict[str, NDArray[np.float32]]:
    """Split a matrix (d', d) into the parts that the catalog stores.

    Matrices of fitted encoders are stored this way. Random ones are made by the server.

    :return: ``high`` and ``low`` (d', d) of integer values, ``scale`` (d') that undoes the
        normalisation of the rows. A row of zeros stays zero.
    :raises EncodingError: not a matrix, NaN or infinity in it, or a row longer than float32 holds.
    """
    rows = np.asarray(matrix, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise EncodingError(f"expected a matrix, found an array of shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise EncodingError("NaN or infinity in a matrix")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if norms.max() / _ROW_NORM > np.finfo(np.float32).max:
        raise EncodingError("a row of the matrix is out of the range of float32")
    scaled = _ROW_NORM * rows / np.where(norms > 0, norms, 1)
    high = np.rint(scaled)
    low = np.rint((scaled - high) * matrix_step(rows.shape[1]))
    return {
        "high": high.astype(np.float32),
        "low": low.astype(np.float32),
        "scale": (norms[:, 0] / _ROW_NORM).astype(np.float32),
    }
