"""Hubness: unit vectors, and what rows that are near to every query lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqlvec.encoders.base import Encoder, Parts, Vectors, checked_positive, checked_vectors, part
from sqlvec.encoders.grid import norms_of
from sqlvec.encoders.integer_parts import vector_parts, vector_step
from sqlvec.errors import DeclarationError, EncodingError

_BANK_NORM = 4000
"""Length of the integer vectors of a bank."""

_ITSELF = 0.999
"""A vector of the gallery bank with at least that cosine to a row is the row."""

_LAST = -2.0
"""Of the zero vector, which has no cosine: below every sum of a cosine and a correction."""


@dataclass(frozen=True)
class Hubness(Encoder):
    """Take off a row's soft mean cosine to a bank of queries, as one more dimension.

    The code of x is ``[x / |x|, -correction]``, and :meth:`query` makes ``[q / |q|, 1]`` of q:
    their inner product is the cosine less the correction ::

        strength * (ln Z_queries + ln Z_gallery) / (beta_queries + beta_gallery)
        Z = mean of exp(beta * cosine) over a bank

    which orders as dual bank normalisation does (Wang et al. 2023, *Balance act: mitigating hubness
    in cross-modal retrieval with query and gallery banks*) where ``strength`` is 1, and without a
    gallery as QB-Norm (Bogolin et al. 2022) that is applied to every query.

    E.g.::

        encoder, parts = load_encoder(connection, "hubs")
        codes = encoder.encode(vectors, parts)  # (n, d + 1) float32
        scores = codes @ Hubness.query(query)

    Cosines are products of integers, so codes equal those of the server to one unit in the last
    place of float32; a correction next to zero, which is a difference, to 1e-12.

    :param queries: how many vectors there are in the bank of queries.
    :param gallery: how many in the bank of rows; 0 leaves its term out.
    :param beta_queries: above 0 and up to 300; the larger, the more the nearest queries count.
    :param beta_gallery: the same for rows.
    :param strength: share of the correction that is applied, above 0 and up to 1.
    :raises DeclarationError: an option is out of range.

    .. versionadded:: 0.1
    """

    kind: ClassVar[str] = "hubness"

    queries: int
    gallery: int = 0
    beta_queries: float = 20
    beta_gallery: float = 20
    strength: float = 0.25

    def __post_init__(self) -> None:
        checked_positive("queries", self.queries)
        if self.gallery != 0:
            checked_positive("gallery", self.gallery)
        for name, most in (("beta_queries", 300), ("beta_gallery", 300), ("strength", 1)):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value <= most
            ):
                raise DeclarationError(
                    f"option {name!r} is a number above 0 and up to {most}, not {value!r}"
                )

    def code_type(self, source_dimensions: int) -> str:
        """Return ``vector(d + 1)``."""
        return f"vector({source_dimensions + 1})"

    @staticmethod
    def query(x: ArrayLike) -> Vectors:
        """Return what searches the codes, as ``sqlvec.hubness_query`` makes it.

        :param x: one query (d,) or a batch (n, d).
        :return: (d + 1,) or (n, d + 1).
        :raises EncodingError: NaN or infinity, or a zero vector.
        """
        vectors = checked_vectors(x)
        batch = np.atleast_2d(vectors)
        norms = norms_of(batch)
        if not norms.all():
            raise EncodingError("a zero vector has no direction to search in")
        made = _unit_and(batch, norms, np.ones(len(batch)))
        return made if vectors.ndim == 2 else made[0]

    def _encode(self, vectors: Vectors, parts: Parts) -> NDArray[Any]:
        norms = norms_of(vectors)
        d = vectors.shape[1]
        x = vector_parts(vectors)
        scale = x.unit / np.where(norms > 0, _BANK_NORM * norms, 1)[:, None]

        def cosines(bank: Vectors) -> NDArray[np.float64]:
            high = (x.high @ bank.T).astype(np.float64)
            low = (x.low @ bank.T).astype(np.float64)
            product: NDArray[np.float64] = (high + low / (2 * vector_step(d))) * scale
            return product

        queries = cosines(part(parts, "queries", (self.queries, d)))
        correction = np.log(np.exp(self.beta_queries * queries).sum(axis=1) / self.queries)
        beta = self.beta_queries
        if self.gallery:
            gallery = cosines(part(parts, "gallery", (self.gallery, d)))
            others = gallery < _ITSELF
            count = others.sum(axis=1)
            total = np.where(others, np.exp(self.beta_gallery * gallery), 0).sum(axis=1)
            correction += np.log(np.where(count > 0, total, 1) / np.maximum(count, 1))
            beta += self.beta_gallery
        last = np.where(norms > 0, -self.strength * correction / beta, _LAST)
        return _unit_and(vectors, norms, last)


def _unit_and(
    vectors: Vectors, norms: NDArray[np.float64], last: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return vectors at unit length, with one value more each."""
    unit = vectors.astype(np.float64) / np.where(norms > 0, norms, 1)[:, None]
    return np.concatenate([unit, last[:, None]], axis=1).astype(np.float32)
