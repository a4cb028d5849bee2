"""Bits of every dimension, compared by Hamming distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sqlvec.encoders.base import Encoder, Parts, Vectors, centred, part
from sqlvec.encoders.integer_parts import vector_parts
from sqlvec.errors import DeclarationError

LEVELS: Mapping[int, tuple[float, ...]] = MappingProxyType(
    {
        1: (0.0,),
        2: (-0.45, 0.45),
        3: (-0.75, 0.0, 0.75),
        4: (-0.95, -0.3, 0.3, 0.95),
        5: (-1.15, -0.55, 0.0, 0.55, 1.15),
        6: (-1.3, -0.75, -0.25, 0.25, 0.75, 1.3),
        7: (-1.45, -0.9, -0.45, 0.0, 0.45, 0.9, 1.45),
        8: (-1.55, -1.05, -0.6, -0.2, 0.2, 0.6, 1.05, 1.55),
    }
)
"""Thresholds by number of levels, in units of the root mean square of the components.

They make the expected distance of two codes tell most about the angle, for normal components and
cosines of 0.6 to 0.8.
"""


@dataclass(frozen=True)
class Binary(Encoder):
    """Keep the sign of every dimension, or its level, after optional centring and rotation.

    The Hamming distance of sign bits behind a random rotation estimates the angle between two
    vectors (Charikar 2002, *Similarity estimation techniques from rounding algorithms*; for an
    orthogonal rotation Gao and Long 2024, *RaBitQ*). Without a rotation the same holds in
    practice for embeddings whose dimensions carry about the same weight, which most have.

    Several levels are a thermometer code: a bit for each threshold that a component is above, all
    bits of one threshold after those of the one before. The Hamming distance of two codes is the
    sum over the dimensions of the levels between them. The thresholds are multiples of the root
    mean square of the components, so that the code depends on the direction alone, as signs do.

    The rotated bits are signs of exact integer sums, see :mod:`sqlvec.encoders.integer_parts`: no
    rounding can put a bit on one side here and on the other on the server.

    E.g.::

        Binary().encode([0.5, -1.0, 0.0])  # array([True, False, False])
        Binary(levels=2).encode([0.5, -1.0, 0.0])
        # array([True, False, True,  True, False, False])

    :param rotate: multiply by a random orthogonal matrix first. Worth its time where a few
        dimensions dominate, or dimensions are correlated.
    :param seed: of the matrix, which the server makes and stores.
    :param center: subtract the mean of the data first. Worth it where vectors crowd in a cone.
    :param levels: bits per dimension, 1 to 8. More order candidates better, so that a search needs
        fewer, and make the index larger.
    :raises DeclarationError: ``levels`` is not an integer from 1 to 8.

    .. versionadded:: 0.1
    """

    kind: ClassVar[str] = "binary"

    rotate: bool = False
    seed: int = 0
    center: bool = False
    levels: int = 1

    def __post_init__(self) -> None:
        # bool is an int, and 2.0 a key that equals 2.
        if type(self.levels) is not int or self.levels not in LEVELS:
            raise DeclarationError(
                f"option 'levels' is an integer from 1 to {max(LEVELS)}, not {self.levels!r}"
            )

    def code_type(self, source_dimensions: int) -> str:
        """Return ``bit(levels · d)``."""
        return f"bit({self.levels * source_dimensions})"

    def _encode(self, vectors: Vectors, parts: Parts) -> NDArray[Any]:
        if self.center:
            vectors = centred(vectors, parts)
        if self.rotate:
            matrix = part(parts, "high", (vectors.shape[1], vectors.shape[1]))
            return self._rotated(vector_parts(vectors).high @ matrix.T)
        if self.levels == 1:
            return vectors > 0
        return self._above(vectors)

    def _rotated(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Compare products, which are integers whose squares have an exact sum."""
        return values > 0 if self.levels == 1 else self._above(values)

    def _above(self, vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which values (n, d) are above each of L thresholds, level by level (n, L · d)."""
        values = vectors.astype(np.float64)
        # Added in the order of the components, as the server does it where a bit depends on that;
        # numpy's sum has another one.
        squares = np.add.accumulate(values * values, axis=1)[:, -1:]
        rms = np.sqrt(squares / values.shape[1])
        thresholds = np.array(LEVELS[self.levels])[:, None, None]
        return np.concatenate(values > thresholds * np.where(rms > 0, rms, 1), axis=1)
