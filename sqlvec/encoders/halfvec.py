"""Half precision: the same vector in two bytes a dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from sqlvec.encoders.base import Encoder, Parts, Vectors, to_halfvec


@dataclass(frozen=True)
class Halfvec(Encoder):
    """Round every dimension to float16.

    Half the size of the column and its index; of eleven significant bits, embeddings need fewer.

    E.g.::

        Halfvec().encode([0.1, 70.0])  # array([0.1, 70.], dtype=float16)

    .. versionadded:: 0.1
    """

    kind: ClassVar[str] = "halfvec"

    def code_type(self, source_dimensions: int) -> str:
        """Return ``halfvec(d)``."""
        return f"halfvec({source_dimensions})"

    def _encode(self, vectors: Vectors, parts: Parts) -> NDArray[Any]:
        return to_halfvec(vectors)
