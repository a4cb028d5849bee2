"""BM25: the words of a text as a sparse vector, so that a score is an inner product."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import md5
from math import isfinite, log1p
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqlvec.errors import DeclarationError, EncodingError

DIMENSIONS = 1_000_000_000
"""Of every BM25 vector: the most that a sparsevec can have."""

MAX_TERMS = 16_000
"""Terms of one document that are kept: the most non-zero values of a sparsevec."""

_HASH_DIGITS = 15  # of 4 bits: the most that a signed 64-bit integer holds


class SparseCode(NamedTuple):
    """The values of a sparse vector that are not zero."""

    indices: NDArray[np.int32]
    """Ascending, from 0 as in pgvector's ``SparseVector``; SQL text counts them from 1."""

    values: NDArray[np.float32]


@dataclass(frozen=True)
class BM25:
    """Saturated term weights of documents, and the term weights of queries.

    The probabilistic relevance framework of Robertson and Zaragoza (2009), with the idf of Lucene,
    which is never negative (Kamphuis, de Vries, Boytsov and Lin 2020). A document weighs ::

        w(t, d) = tf · (k1 + 1) / (tf + k1 · (1 − b + b · dl / avgdl))

    per term, a query qtf · idf(t), and the score is their inner product.

    E.g.::

        code = BM25().encode({"appl": 2, "tree": 1}, avgdl=7.5)
        SparseVector(dict(zip(*code)), DIMENSIONS)

    It is no :class:`~sqlvec.encoders.Encoder`: it takes counts of lexemes, not vectors, and its
    codes depend on statistics of the whole corpus. Lexemes come from a text search configuration,
    which only the server has.

    :param k1: how much a repeated term adds, 0 to 100; 0 counts each term once.
    :param b: how much the length of a document counts, 0 to 1.
    :raises DeclarationError: a parameter is out of its range.

    .. versionadded:: 0.1
    """

    kind: ClassVar[str] = "bm25"

    k1: float = 1.2
    b: float = 0.75

    def __post_init__(self) -> None:
        for name, value, most in (("k1", self.k1, 100), ("b", self.b, 1)):
            if not 0 <= value <= most:
                raise DeclarationError(
                    f"{name} of BM25 is a number from 0 to {most}, not {value!r}"
                )

    def options(self) -> dict[str, Any]:
        """Return the parameters as ``sqlvec.add_bm25`` takes them."""
        return asdict(self)

    def encode(self, frequencies: Mapping[str, float], avgdl: float) -> SparseCode:
        """Return the code of one document.

        :param frequencies: how often each lexeme occurs, above 0; with fields, the sum of their
            weights.
        :param avgdl: mean of the sums of frequencies over all documents, above 0.
        :raises EncodingError: a number is out of its range.
        """
        tf = _checked(frequencies)
        if not (isfinite(avgdl) and avgdl > 0):
            raise EncodingError(f"the average length of documents is above 0, not {avgdl!r}")
        length = 1 - self.b + self.b * tf.sum() / avgdl
        weights = tf * (self.k1 + 1) / (tf + self.k1 * length)
        return _merged(zip(frequencies, weights.tolist(), strict=True), most=self.k1 + 1)

    def query(
        self, frequencies: Mapping[str, float], documents: int, holding: Mapping[str, int]
    ) -> SparseCode:
        """Return the term weights of a query.

        :param frequencies: how often each lexeme stands in the query.
        :param documents: how many documents there are.
        :param holding: how many of them hold each lexeme; one that is missing is in none.
        :raises EncodingError: a number is out of its range.
        """
        _checked(frequencies)
        return _merged(
            (term, count * idf(documents, holding.get(term, 0)))
            for term, count in frequencies.items()
        )


def dimension(lexeme: str) -> int:
    """Return the dimension of a lexeme, 1 to 1,000,000,000, as SQL counts them.

    Different lexemes may share one; in a corpus of a million lexemes one in a thousand does.
    """
    digest = md5(lexeme.encode(), usedforsecurity=False).hexdigest()
    return 1 + int(digest[:_HASH_DIGITS], 16) % DIMENSIONS


def idf(documents: int, holding: int) -> float:
    """Return how much a term says: ln(1 + (N − df + 0.5) / (df + 0.5)).

    :param documents: N, how many documents there are; at least ``holding`` is assumed.
    :param holding: df, how many of them hold the term, 0 or more.
    """
    return log1p((max(documents, holding) - holding + 0.5) / (holding + 0.5))


def _checked(frequencies: Mapping[str, float]) -> NDArray[np.float64]:
    tf = np.fromiter(frequencies.values(), dtype=np.float64, count=len(frequencies))
    if not (np.isfinite(tf) & (tf > 0)).all():
        raise EncodingError("a lexeme occurs a finite number of times, above 0")
    return tf


def _merged(terms: Iterable[tuple[str, float]], most: float = np.inf) -> SparseCode:
    """Add up the terms that share a dimension, at most to the bound of one term."""
    values: dict[int, float] = {}
    lexemes: dict[int, bytes] = {}
    for lexeme, weight in terms:
        index = dimension(lexeme) - 1
        values[index] = min(values.get(index, 0.0) + weight, most)
        lexemes[index] = min(lexemes.get(index, lexeme.encode()), lexeme.encode())
    if len(values) > MAX_TERMS:  # The heaviest stay; of equal ones the first, as bytes compare.
        kept = sorted(values, key=lambda index: (-values[index], lexemes[index]))[:MAX_TERMS]
        values = {index: values[index] for index in kept}
    indices = np.array(sorted(values), dtype=np.int32)
    return SparseCode(indices, np.array([values[i] for i in indices.tolist()], dtype=np.float32))
