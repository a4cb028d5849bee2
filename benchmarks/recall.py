"""Recall against the exact answer, computed with numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import Floats, VectorSet
from sqlvec.encoders import Binary

# Distances in the database are sums of other roundings than these: ids as near as the k-th count.
_TIE = 1e-6
# Encoded at a time: one bit takes a byte before it is packed.
_ROWS = 5_000


class Truth:
    """The k nearest documents of every query by cosine.

    :param vectors: unit vectors.
    """

    def __init__(self, vectors: VectorSet, k: int = 10) -> None:
        self._k = k
        self._similarity = vectors.queries @ vectors.documents.T
        self._threshold = np.partition(self._similarity, -k, axis=1)[:, -k] - _TIE
        self._vectors = vectors

    def recall(self, found: Sequence[Sequence[int]]) -> float:
        """Return recall@k of the ids found for each query in turn."""
        hits = [
            int(np.count_nonzero(self._similarity[query, list(ids)] >= self._threshold[query]))
            for query, ids in enumerate(found)
        ]
        return float(np.mean([min(hit, self._k) / self._k for hit in hits]))

    def of_candidates(self, counts: Sequence[int], levels: int = 1) -> dict[int, float]:
        """Return recall@k when that many codes nearest by Hamming distance are rescored.

        Codes have ``levels`` bits per dimension.

        An index can only lose more. Documents are taken in the order of their ids on ties, as a
        scan of the table would.
        """
        documents = _packed(self._vectors.documents, levels)
        queries = _packed(self._vectors.queries, levels)
        hits: dict[int, list[float]] = {count: [] for count in counts}
        for query, code in enumerate(queries):
            distance = np.bitwise_count(documents ^ code).sum(axis=1, dtype=np.int32)
            order = np.argsort(distance, kind="stable")
            near = self._similarity[query] >= self._threshold[query]
            for count in counts:
                found = int(np.count_nonzero(near[order[:count]]))
                hits[count].append(min(found, self._k) / self._k)
        return {count: float(np.mean(values)) for count, values in hits.items()}


def _packed(vectors: Floats, levels: int) -> NDArray[np.uint64]:
    encoder = Binary(levels=levels)
    padded = np.zeros((len(vectors), -(-levels * vectors.shape[1] // 64) * 8), dtype=np.uint8)
    for start in range(0, len(vectors), _ROWS):
        bits = np.packbits(encoder.encode(vectors[start : start + _ROWS]), axis=1)
        padded[start : start + len(bits), : bits.shape[1]] = bits
    return padded.view(np.uint64)
