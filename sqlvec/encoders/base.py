"""What every encoder is, and the checks they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqlvec.errors import DeclarationError, EncodingError

Parts: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Parameters of one encoder from ``sqlvec.encoder_vector``: ``mean`` (d,), ``high`` and ``low``
(d', d), ``scale`` (d'). What an encoder does not use is not there."""

Vectors: TypeAlias = NDArray[np.float32]

MAX_DIMENSIONS = 16_000
"""The most dimensions that pgvector stores."""


@dataclass(frozen=True)
class Encoder(ABC):
    """A function from vectors of d dimensions to codes.

    The fields of a subclass are the options of its kind.
    """

    kind: ClassVar[str]
    """Name of the kind in the catalog."""

    def options(self) -> dict[str, Any]:
        """Return the options as ``sqlvec.add_quantized`` and ``create_encoder`` take them."""
        return asdict(self)

    @abstractmethod
    def code_type(self, source_dimensions: int) -> str:
        """Return the SQL type of the codes, e.g. ``bit(384)``.

        :raises DeclarationError: vectors of that many dimensions have no such code.
        """

    def encode(self, x: ArrayLike, parts: Parts | None = None) -> NDArray[Any]:
        """Return the codes of one vector (d,) or of a batch (n, d).

        :param parts: parameters from the catalog, for encoders that have some.
        :return: bool for bit codes, float16 for halfvec codes, float32 for vector codes; (d',) or
            (n, d') as ``x`` was.
        :raises EncodingError: NaN or infinity, wrong dimensions, or a code out of range.
        """
        vectors = checked_vectors(x)
        codes = self._encode(np.atleast_2d(vectors), parts or {})
        return codes if vectors.ndim == 2 else codes[0]

    @abstractmethod
    def _encode(self, vectors: Vectors, parts: Parts) -> NDArray[Any]:
        """Encode a checked batch (n, d)."""


def checked_vectors(x: ArrayLike) -> Vectors:
    """Return ``x`` in float32, refusing what pgvector would refuse."""
    try:
        with np.errstate(over="ignore"):
            vectors = np.asarray(x, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise EncodingError(f"not a vector, nor a batch of equally long ones: {error}") from None
    if vectors.ndim not in (1, 2):
        raise EncodingError(f"expected an array of 1 or 2 dimensions, found {vectors.ndim}")
    if not 1 <= vectors.shape[-1] <= MAX_DIMENSIONS:
        raise EncodingError(
            f"a vector has 1 to {MAX_DIMENSIONS} dimensions, found {vectors.shape[-1]}"
        )
    return checked_finite(vectors)


def checked_finite(vectors: Vectors) -> Vectors:
    """Return the vectors, refusing NaN and infinity."""
    if not np.isfinite(vectors).all():
        raise EncodingError("NaN, infinity or a value out of the range of float32 in a vector")
    return vectors


def centred(vectors: Vectors, parts: Parts) -> Vectors:
    """Return the vectors less the encoder's mean, in float32 as pgvector subtracts."""
    with np.errstate(over="ignore"):
        return checked_finite(vectors - part(parts, "mean", (vectors.shape[1],)))


def part(parts: Parts, name: str, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    """Return a parameter of the encoder after checking its shape; None stands for any length."""
    if name not in parts:
        raise EncodingError(
            f"the encoder needs part {name!r}; sqlvec.catalog.load_encoder reads it from the server"
        )
    value = np.asarray(parts[name], dtype=np.float32)
    if value.ndim != len(shape) or any(
        expected not in (None, found) for expected, found in zip(shape, value.shape, strict=True)
    ):
        raise EncodingError(f"part {name!r} of the encoder has shape {value.shape}, not {shape}")
    return value


def to_halfvec(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to nearest even, refusing what float16 cannot hold, as pgvector's cast does."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        worst = values.flat[np.abs(values).argmax()]
        raise EncodingError(f"{worst} is out of range for type halfvec, which ends at 65504")
    return halves


def checked_code_dimensions(dimensions: int, source_dimensions: int) -> int:
    """Return the dimensions of a code, refusing more than its source has."""
    if dimensions > source_dimensions:
        raise DeclarationError(
            f"a code of {dimensions} dimensions cannot come from {source_dimensions} dimensions"
        )
    return dimensions


def checked_positive(name: str, value: int) -> None:
    """Refuse an option that is not a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DeclarationError(f"option {name!r} is a positive integer, not {value!r}")
