"""Vectors rounded to a grid on which float32 sums are exact: the twin of ``sql/fde_encode.sql``.

Adding a large constant and taking it off again rounds to integers times a power of two, and the
sum of such numbers is the same in every order as long as it stays below 2^24 steps.
"""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARGIN = 1.37
"""Keeps everyday norms away from powers of two, where logarithms of two libraries may disagree."""


def norms_of(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the norms of a batch (n, d)."""
    wide = vectors.astype(np.float64)
    norms: NDArray[np.float64] = np.sqrt((wide * wide).sum(axis=1))
    return norms


def exponents(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the least whole n with x <= 2^n, nearly; 0 for 0."""
    found: NDArray[np.float64] = np.ceil(np.log(np.where(x > 0, x, 1)) / log(2))
    return found


def rounded(vectors: NDArray[np.float32], constant: Any) -> NDArray[np.float32]:
    """Round to the last place of a constant that is much larger."""
    result: NDArray[np.float32] = vectors + constant - constant
    return result


def coarse(vectors: NDArray[np.float32], norms: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round to 2^11 steps in the norm of each vector: inner products of two of these are exact."""
    constants = (1.5 * 2.0 ** (12 + exponents(norms / MARGIN))).astype(np.float32)
    return rounded(vectors, constants[:, None])
