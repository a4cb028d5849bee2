"""Matryoshka prefixes: the first dimensions, made a unit vector again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sqlvec.encoders.base import (
    Encoder,
    Parts,
    Vectors,
    checked_code_dimensions,
    checked_positive,
    to_halfvec,
)
from sqlvec.errors import DeclarationError, EncodingError

CodeType = Literal["halfvec", "vector"]


@dataclass(frozen=True)
class Truncate(Encoder):
    """Keep the first ``dimensions`` and divide them by their norm.

    For models trained so that a prefix is an embedding of its own (Kusupati et al. 2022,
    *Matryoshka representation learning*). The norm of a prefix differs from row to row and says
    nothing, so it is taken out: otherwise it would weigh in l2 and inner product. Zero stays zero.

    E.g.::

        Truncate(2).encode([3.0, 4.0, 12.0])  # array([0.6, 0.8], dtype=float16)

    :param dimensions: length of the code.
    :param type: ``halfvec``, or ``vector`` where float16 is too coarse.

    .. versionadded:: 0.1
    """

    kind: ClassVar[str] = "truncate"

    dimensions: int
    type: CodeType = "halfvec"

    def __post_init__(self) -> None:
        checked_positive("dimensions", self.dimensions)
        if self.type not in get_args(CodeType):
            raise DeclarationError(f"option 'type' is halfvec or vector, not {self.type!r}")

    def code_type(self, source_dimensions: int) -> str:
        """Return ``halfvec(d')`` or ``vector(d')``."""
        return f"{self.type}({checked_code_dimensions(self.dimensions, source_dimensions)})"

    def _encode(self, vectors: Vectors, parts: Parts) -> NDArray[Any]:
        if self.dimensions > vectors.shape[1]:
            raise EncodingError(
                f"the first {self.dimensions} dimensions of a vector that has {vectors.shape[1]}"
            )
        prefix = vectors[:, : self.dimensions].astype(np.float64)
        norm = np.sqrt((prefix * prefix).sum(axis=1, keepdims=True))
        unit = (prefix / np.where(norm > 0, norm, 1)).astype(np.float32)
        return to_halfvec(unit) if self.type == "halfvec" else unit
