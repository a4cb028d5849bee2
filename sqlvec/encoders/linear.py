"""Linear maps to fewer dimensions: random projection now, fitted matrices in the same parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sqlvec.encoders.base import (
    Encoder,
    Parts,
    Vectors,
    centred,
    checked_code_dimensions,
    checked_finite,
    checked_positive,
    part,
    to_halfvec,
)
from sqlvec.encoders.integer_parts import matrix_step, vector_parts, vector_step


@dataclass(frozen=True)
class Linear(Encoder):
    """Multiply by a matrix W of ``dimensions`` rows, after optional centring.

    The matrix made from a seed is a subsampled randomised trigonometric transform: random signs,
    then a random choice of rows of the cosine transform, which keeps inner products on average
    and their spread as small as independent Gaussian entries would (Woolfe, Liberty, Rokhlin and
    Tygert 2008, *A fast randomized algorithm for the approximation of matrices*).

    Of each factor two integer parts are multiplied, see :mod:`sqlvec.encoders.integer_parts`, and
    three of the four products kept. Beside the precision of float32, the result differs from W x
    by at most ``5e-8 * d**1.5 * max(abs(x)) * norm(w)`` in each row w before it is rounded to
    float16: in practice less than that rounding.

    E.g.::

        encoder, parts = load_encoder(connection, "projection")
        encoder.encode(vectors, parts)  # (n, 64) float16

    :param dimensions: length of the code.
    :param seed: of the matrix, which the server makes and stores.
    :param center: subtract the mean of the data first.

    .. versionadded:: 0.1
    """

    kind: ClassVar[str] = "linear"

    dimensions: int
    seed: int = 0
    center: bool = False

    def __post_init__(self) -> None:
        checked_positive("dimensions", self.dimensions)

    def code_type(self, source_dimensions: int) -> str:
        """Return ``halfvec(d')``."""
        return f"halfvec({checked_code_dimensions(self.dimensions, source_dimensions)})"

    def _encode(self, vectors: Vectors, parts: Parts) -> NDArray[Any]:
        if self.center:
            vectors = centred(vectors, parts)
        d = vectors.shape[1]
        high = part(parts, "high", (self.dimensions, d))
        low = part(parts, "low", (self.dimensions, d))
        scale = part(parts, "scale", (self.dimensions,)).astype(np.float64)
        x = vector_parts(vectors)
        # Each product is exact in float32; their sum is float64, term by term as on the server.
        products = (
            (x.high @ high.T).astype(np.float64)
            + (x.low @ high.T).astype(np.float64) / (2 * vector_step(d))
            + (x.high @ low.T).astype(np.float64) / matrix_step(d)
        )
        with np.errstate(over="ignore"):
            values = (products * x.unit * scale).astype(np.float32)
        return to_halfvec(checked_finite(values))
