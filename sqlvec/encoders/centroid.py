"""Centroid: one byte per token, the number of its nearest centroid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqlvec.encoders.base import Parts, checked_vectors, part, to_halfvec
from sqlvec.encoders.grid import coarse, norms_of
from sqlvec.errors import DeclarationError, EncodingError


@dataclass(frozen=True, slots=True)
class CentroidTable:
    """A query prepared for :meth:`Centroid.maxsim`, as ``sqlvec.centroid_table`` answers it."""

    clusters: int
    """Number of centroids, K."""

    numbers: bytes
    """For every query token all K numbers by falling inner product, of equals the lowest first."""

    products: NDArray[np.float32]
    """The inner products in the same order, (query tokens * K,)."""


@dataclass(frozen=True)
class Centroid:
    """Encode every token of a multi-vector as the number of its nearest centroid.

    Nearest is by Euclidean distance, of equals the lowest number; between unit vectors that is
    the largest cosine. MaxSim against the centroids then needs no more than a table of their
    inner products with the query (product quantization with one group: Jégou, Douze and Schmid
    2011), and of a document only which codes occur in it.

    E.g.::

        centroid, parts = load_centroid(connection, name)
        codes = centroid.documents([tokens, more_tokens], parts)  # two bytes objects
        table = centroid.table(query_tokens, parts)
        scores = [centroid.maxsim(code, table) for code in codes]

    Tokens are rounded to 2^11 steps in their norm and the stored centroids are integers times a
    power of two, so that float32 adds every inner product exactly: codes and tables equal those of
    ``sqlvec.centroid_codes`` and ``sqlvec.centroid_table``.

    :param clusters: number of centroids, 2 to 256.
    :raises DeclarationError: that is out of range.

    .. seealso:: :func:`sqlvec.fit.centroid.centroids`
    .. versionadded:: 0.1
    """

    kind: ClassVar[str] = "centroid"

    clusters: int = 256

    def __post_init__(self) -> None:
        if isinstance(self.clusters, bool) or self.clusters not in range(2, 257):
            raise DeclarationError(
                f"option 'clusters' is an integer from 2 to 256, not {self.clusters!r}"
            )

    @property
    def bits(self) -> int:
        """Bits that tell the numbers apart, ceil(log2 K)."""
        return (self.clusters - 1).bit_length()

    def options(self) -> dict[str, Any]:
        """Return the options as the catalog stores them."""
        return asdict(self)

    def code_type(self) -> str:
        """Return ``bytea``."""
        return "bytea"

    def document(self, tokens: ArrayLike, parts: Parts) -> bytes:
        """Return the code of a document, one byte per token.

        :param tokens: its multi-vector, shape (n, d); without tokens the code is empty.
        :param parts: the centroids from the catalog.
        :raises EncodingError: NaN or infinity, or wrong dimensions.
        """
        return self.documents([tokens], parts)[0]

    def documents(self, batch: Iterable[ArrayLike], parts: Parts) -> list[bytes]:
        """Return the codes of many documents; otherwise as :meth:`document`."""
        centroids = self._centroids(parts)
        half = np.einsum("kd,kd->k", centroids, centroids, dtype=np.float64) / 2
        codes = []
        for tokens in batch:
            products = _rounded(tokens, centroids.shape[1]) @ centroids.T
            nearest = np.argmax(products.astype(np.float64) - half, axis=1)
            codes.append(nearest.astype(np.uint8).tobytes())
        return codes

    def table(self, query: ArrayLike, parts: Parts) -> CentroidTable:
        """Return a query prepared for :meth:`maxsim`.

        :param query: its multi-vector, shape (m, d).
        :raises EncodingError: NaN or infinity, or wrong dimensions.
        """
        centroids = self._centroids(parts)
        products = _rounded(query, centroids.shape[1]) @ centroids.T
        order = np.argsort(-products, axis=1, kind="stable")
        return CentroidTable(
            self.clusters,
            order.astype(np.uint8).tobytes(),
            np.take_along_axis(products, order, axis=1).ravel(),
        )

    def maxsim(self, codes: bytes, table: CentroidTable) -> float | None:
        """Return the MaxSim of a query against the centroids that codes stand for.

        :return: None for a document without tokens, 0 for a query without.
        """
        if not codes:
            return None
        occurs = np.zeros(256, dtype=bool)
        occurs[np.frombuffer(codes, dtype=np.uint8)] = True
        numbers = np.frombuffer(table.numbers, dtype=np.uint8).reshape(-1, table.clusters)
        first = occurs[numbers].argmax(axis=1)
        best = table.products.reshape(-1, table.clusters)[np.arange(len(numbers)), first]
        return sum(best.tolist(), 0.0)

    def decode(self, codes: bytes, parts: Parts) -> NDArray[np.float32]:
        """Return the centroids that codes stand for, (n, d).

        :raises EncodingError: a number that the encoder does not have.
        """
        numbers = np.frombuffer(codes, dtype=np.uint8)
        if numbers.size and numbers.max() >= self.clusters:
            raise EncodingError(f"code {numbers.max()} of an encoder with {self.clusters}")
        decoded: NDArray[np.float32] = self._centroids(parts)[numbers]
        return decoded

    def _centroids(self, parts: Parts) -> NDArray[np.float32]:
        return part(parts, "centroid", (self.clusters, None))


def _rounded(tokens: ArrayLike, d: int) -> NDArray[np.float32]:
    """Return tokens as a halfvec column holds them, rounded to integers times a power of two."""
    # Lists may be ragged, which is for checked_vectors to say.
    array = tokens if isinstance(tokens, np.ndarray) else np.asarray(tokens, dtype=object)
    if array.size == 0:
        return np.zeros((0, d), dtype=np.float32)
    vectors = checked_vectors(tokens)
    if vectors.ndim != 2:
        raise EncodingError("a multi-vector has 2 dimensions (n, d), found 1")
    if vectors.shape[1] != d:
        raise EncodingError(f"the encoder takes vectors of {d} dimensions, not {vectors.shape[1]}")
    stored = to_halfvec(vectors).astype(np.float32)
    return coarse(stored, norms_of(stored))
