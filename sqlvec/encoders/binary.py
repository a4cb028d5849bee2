"""Sign bits: one bit a dimension, compared by Hamming distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from sqlvec.encoders.base import Encoder, Parts, Vectors, centred, part
from sqlvec.encoders.integer_parts import vector_parts


@dataclass(frozen=True)
class Binary(Encoder):
    """Keep the sign of every dimension, after optional centring and rotation.

    The Hamming distance of sign bits behind a random rotation estimates the angle between two
    vectors (Charikar 2002, *Similarity estimation techniques from rounding algorithms*; for an
    orthogonal rotation Gao and Long 2024, *RaBitQ*). Without a rotation the same holds in
    practice for embeddings whose dimensions carry about the same weight, which most have.

    The rotated bits are signs of exact integer sums, see :mod:`sqlvec.encoders.integer_parts`: no
    rounding can put a bit on one side here and on the other on the server.

    E.g.::

        Binary().encode([0.5, -1.0, 0.0])  # array([True, False, False])

    :param rotate: multiply by a random orthogonal matrix first. Worth its time where a few
        dimensions dominate, or dimensions are correlated.
    :param seed: of the matrix, which the server makes and stores.
    :param center: subtract the mean of the data first. Worth it where vectors crowd in a cone.

    .. versionadded:: 0.1
    """

    kind: ClassVar[str] = "binary"

    rotate: bool = False
    seed: int = 0
    center: bool = False

    def code_type(self, source_dimensions: int) -> str:
        """Return ``bit(d)``."""
        return f"bit({source_dimensions})"

    def _encode(self, vectors: Vectors, parts: Parts) -> NDArray[Any]:
        if self.center:
            vectors = centred(vectors, parts)
        if not self.rotate:
            return vectors > 0
        matrix = part(parts, "high", (vectors.shape[1], vectors.shape[1]))
        return vector_parts(vectors).high @ matrix.T > 0
