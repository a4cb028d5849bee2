"""Centroids for encoders of kind ``centroid``, numbered so that Hamming says something."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sqlalchemy import Connection, bindparam, text

from sqlvec.encoders.base import checked_vectors
from sqlvec.errors import DeclarationError, EncodingError
from sqlvec.types import MULTIVECTOR

_UNIT = 1e-2
"""How far the norm of a unit vector in half precision may be from 1."""


def centroids(tokens: ArrayLike, clusters: int = 256, seed: int = 0) -> NDArray[np.float32]:
    """Return the centroids of a sample of token vectors, (K, d), ordered by :func:`renumbered`.

    k-means; of unit vectors with centroids of unit length, which rank better under MaxSim than
    their means. Some 100 tokens per centroid are enough, taken from many documents.

    E.g.::

        fitted = centroids(np.concatenate(multivectors))
        create(connection, "nearest", fitted)

    :param tokens: shape (n, d).
    :param clusters: K, 2 to 256.
    :param seed: of the first centroids; the same seed gives the same result on one machine.
    :raises DeclarationError: ``clusters`` is out of range.
    :raises EncodingError: NaN or infinity, or fewer different tokens than clusters.

    .. versionadded:: 0.1
    """
    if clusters not in range(2, 257):
        raise DeclarationError(f"clusters are 2 to 256, not {clusters!r}")
    vectors = checked_vectors(tokens)
    if vectors.ndim != 2:
        raise EncodingError("tokens have 2 dimensions (n, d), found 1")
    different = len(np.unique(vectors, axis=0))
    if different < clusters:
        raise EncodingError(f"{different} different tokens cannot make {clusters} clusters")
    fitted = KMeans(clusters, n_init=1, random_state=seed).fit(vectors)
    found = np.asarray(fitted.cluster_centers_, dtype=np.float64)
    if (np.abs(np.linalg.norm(vectors, axis=1) - 1) < _UNIT).all():
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        found = np.where(norms > 0, found / np.where(norms > 0, norms, 1), found)
    return renumbered(found)


def renumbered(centroids: ArrayLike) -> NDArray[np.float32]:
    """Return centroids (K, d) in an order in which close ones differ in few bits of their number.

    The b = ceil(log2 K) bits begin as the signs of the first b principal components, matched to the
    numbers by a linear assignment; then the pair whose exchange raises the correlation of
    Hamming distance and cosine distance most is exchanged, until none does.

    .. versionadded:: 0.1
    """
    values = checked_vectors(centroids)
    count = len(values)
    bits = (count - 1).bit_length()
    wide = values.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(norms > 0, norms, 1)
    similarity = unit @ unit.T
    corners = 1.0 - 2 * ((np.arange(count)[:, None] >> np.arange(bits)) & 1)
    eigenvalues, eigenvectors = np.linalg.eigh(_centred(similarity))
    kept = slice(-min(bits, count), None)
    components = np.zeros((count, bits))
    components[:, kept] = eigenvectors[:, kept] * np.sqrt(np.maximum(eigenvalues[kept], 0))
    _, number = linear_sum_assignment(-(components @ corners.T))
    return values[np.argsort(_exchanged(similarity, corners, number))]


def _centred(similarity: NDArray[Any]) -> NDArray[np.float64]:
    rows = similarity.mean(axis=0)
    centred: NDArray[np.float64] = similarity - rows - rows[:, None] + rows.mean()
    return centred


def _exchanged(
    similarity: NDArray[Any], corners: NDArray[Any], number: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Exchange numbers as long as sum(similarity * agreement of bits) grows."""
    bits = corners.shape[1]
    own = np.diag(similarity)
    apart = own[:, None] + own - 2 * similarity
    number = number.copy()
    for _ in range(len(number) ** 2):
        signs = corners[number]
        pull = similarity @ signs @ signs.T
        kept = np.diag(pull)
        hamming = (bits - signs @ signs.T) / 2
        gain = 2 * (pull + pull.T - kept - kept[:, None]) + 4 * hamming * apart
        first, second = np.unravel_index(gain.argmax(), gain.shape)
        if gain[first, second] <= 1e-9:
            break
        number[[first, second]] = number[[second, first]]
    return number


def create(connection: Connection, name: str, centroids: ArrayLike) -> None:
    """Make an encoder of kind ``centroid`` in the catalog, in the connection's transaction.

    :param centroids: shape (K, d); their order gives the numbers.
    :raises sqlalchemy.exc.DBAPIError: the server refuses the name or the centroids.

    .. versionadded:: 0.1
    """
    statement = text("CALL sqlvec.create_centroid_encoder(:name, :centroids)").bindparams(
        bindparam("centroids", type_=MULTIVECTOR(None, "vector"))
    )
    connection.execute(statement, {"name": name, "centroids": checked_vectors(centroids)})
