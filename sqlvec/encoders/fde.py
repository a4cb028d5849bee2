"""Fixed dimensional encodings: a multi-vector as one vector, so that an index can find it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import sqrt
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqlvec.encoders.base import Parts, checked_positive, checked_vectors, part, to_halfvec
from sqlvec.encoders.grid import MARGIN, coarse, exponents, norms_of, rounded
from sqlvec.errors import DeclarationError, EncodingError

MAX_DIMENSIONS = 4_000
"""The most dimensions that pgvector indexes in halfvec."""

MAX_SIGNS = 32_000
"""The most dimensions whose signs, two bits each, it indexes."""

Code: TypeAlias = NDArray[np.float16] | NDArray[np.bool_]
"""Codes of one or many multi-vectors, (D,) or (m, D)."""

_ONE_THREAD = 1 << 18
"""Multiplications that OpenBLAS does not share among threads. Sharing gains little with matrices as
small as these, and loses very much when the processors have other work, such as the server's."""


@dataclass(frozen=True)
class FDE:
    """Encode multi-vectors so that an inner product estimates MaxSim.

    MUVERA (Dhulipala et al. 2024, arXiv:2405.19504). Every repetition cuts space into
    2^simhash_bits buckets by random hyperplanes. A query adds up its tokens in each bucket; a
    document takes their mean, or for an empty bucket its token whose bits differ least. Each sum
    is projected with random signs, and the blocks stand one after the other. The inner product of
    a query and a document is about ``repetitions`` times their MaxSim: never normalise a code.

    With ``bits`` a code is the signs of those values: one bit for each that is positive, then one
    for each that is negative. A zero, as in the empty buckets of a query, then differs in one bit
    from whatever stands opposite, so that Hamming distance ranks by the signs of the query's
    tokens alone.

    E.g.::

        fde, parts = load_fde(connection, name)
        codes = fde.documents([tokens, more_tokens], parts)  # (2, 2560) float16
        scores = codes.astype(float) @ fde.query(query_tokens, parts).astype(float)

    The rounded tokens are integers times a power of two whose sums float32 holds exactly, so that
    the codes equal those of ``sqlvec.fde_document`` and ``sqlvec.fde_query``.

    :param repetitions: independent ones; what raises the quality most.
    :param simhash_bits: hyperplanes of each, 0 to 12.
    :param projection: dimensions that a bucket is projected to; those of the tokens keep it whole.
    :param final_dimensions: of a count sketch at the end; None is without one.
    :param seed: of the matrices, which the server makes and stores.
    :param bits: keep signs instead of values.
    :raises DeclarationError: an option is out of its range.

    .. versionadded:: 0.1
    """

    kind: ClassVar[str] = "fde"

    repetitions: int = 20
    simhash_bits: int = 4
    projection: int = 8
    final_dimensions: int | None = None
    seed: int = 0
    bits: bool = False

    def __post_init__(self) -> None:
        checked_positive("repetitions", self.repetitions)
        checked_positive("projection", self.projection)
        if self.final_dimensions is not None:
            checked_positive("final_dimensions", self.final_dimensions)
        if isinstance(self.simhash_bits, bool) or self.simhash_bits not in range(13):
            raise DeclarationError(
                f"option 'simhash_bits' is an integer from 0 to 12, not {self.simhash_bits!r}"
            )
        if not isinstance(self.bits, bool):
            raise DeclarationError(f"option 'bits' is True or False, not {self.bits!r}")
        kept, most = ("its signs", MAX_SIGNS) if self.bits else ("halfvec", MAX_DIMENSIONS)
        if self._values > most:
            raise DeclarationError(
                f"{self!r} makes codes of {self._values} dimensions; an index on {kept} takes "
                f"{most}: take fewer repetitions, or final_dimensions={MAX_DIMENSIONS}"
            )

    def options(self) -> dict[str, Any]:
        """Return the options as ``sqlvec.add_fde`` and ``create_encoder`` take them."""
        return asdict(self)

    @property
    def dimensions(self) -> int:
        """Dimensions of the codes; of signs, how many bits."""
        return 2 * self._values if self.bits else self._values

    @property
    def _values(self) -> int:
        return self.final_dimensions or self.repetitions * self._buckets * self.projection

    @property
    def _buckets(self) -> int:
        return 1 << self.simhash_bits

    def code_type(self) -> str:
        """Return ``halfvec(D)``, of signs ``bit(D)``."""
        return f"{'bit' if self.bits else 'halfvec'}({self.dimensions})"

    def document(self, tokens: ArrayLike, parts: Parts) -> Code:
        """Return the code of a document, shape (D,): float16, of signs bool.

        :param tokens: its multi-vector, shape (n, d).
        :param parts: the matrices from the catalog.
        :raises EncodingError: no tokens, NaN or infinity, or wrong dimensions.
        """
        code: Code = self.documents([tokens], parts)[0]
        return code

    def query(self, tokens: ArrayLike, parts: Parts) -> Code:
        """Return the code of a query, shape (D,); otherwise as :meth:`document`."""
        code: Code = self.queries([tokens], parts)[0]
        return code

    def documents(self, batch: Iterable[ArrayLike], parts: Parts) -> Code:
        """Return the codes of many documents, shape (m, D); otherwise as :meth:`document`."""
        return self._encode([_checked(tokens) for tokens in batch], parts, as_query=False)

    def queries(self, batch: Iterable[ArrayLike], parts: Parts) -> Code:
        """Return the codes of many queries, shape (m, D); otherwise as :meth:`document`."""
        return self._encode([_checked(tokens) for tokens in batch], parts, as_query=True)

    def _encode(
        self, batch: Sequence[NDArray[np.float32]], parts: Parts, *, as_query: bool
    ) -> Code:
        codes = np.zeros((len(batch), self.dimensions), dtype=bool if self.bits else np.float16)
        if not batch:
            return codes
        d = batch[0].shape[1]
        signs = part(parts, "sign", (self.repetitions * self.projection, d))
        signs = signs.reshape(self.repetitions, self.projection, d).transpose(0, 2, 1)
        scale = 1.0 if self.projection == d else 1 / sqrt(self.projection)
        for row, tokens in enumerate(batch):
            if tokens.shape[1] != d:
                raise EncodingError(f"expected vectors of {d} dimensions, found {tokens.shape[1]}")
            norms = norms_of(tokens)
            sums, counts = self._blocks(tokens, norms, parts, as_query=as_query)
            values = np.matmul(sums, signs).astype(np.float64) / counts[:, :, None] * scale
            code = self._sketched(values.ravel(), parts).astype(np.float32)
            codes[row] = np.concatenate([code > 0, code < 0]) if self.bits else to_halfvec(code)
        return codes

    def _blocks(
        self,
        tokens: NDArray[np.float32],
        norms: NDArray[np.float64],
        parts: Parts,
        *,
        as_query: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return sums (repetitions, buckets, d), and by how many tokens to divide them."""
        n, d = tokens.shape
        r, b = self.repetitions, self._buckets
        found = self._bucket_of(tokens, norms, parts)
        constant = 1.5 * 2.0 ** (1 + exponents(MARGIN * norms.sum() * sqrt(d)))
        fine = rounded(tokens, np.float32(constant))
        member = np.zeros((r, b, n), dtype=np.float32)
        member[np.arange(r)[:, None], found, np.arange(n)] = 1
        sums = np.zeros((r, b, d), dtype=np.float32)
        for some in _slices(n, b * d):
            sums += member[:, :, some] @ fine[some]
        if as_query:
            return sums, np.ones((r, b))
        counts = member.sum(axis=2).astype(np.float64)
        repetition, bucket = np.nonzero(counts == 0)
        distance = _set_bits(self.simhash_bits)[found[repetition] ^ bucket[:, None]]
        sums[repetition, bucket] = fine[distance.argmin(axis=1)]  # of equal ones the first token
        counts[repetition, bucket] = 1
        return sums, counts

    def _bucket_of(
        self, tokens: NDArray[np.float32], norms: NDArray[np.float64], parts: Parts
    ) -> NDArray[np.int64]:
        """Return the bucket of every token in every repetition, (repetitions, n)."""
        n, d = tokens.shape
        r, bits = self.repetitions, self.simhash_bits
        if bits == 0:
            return np.zeros((r, n), dtype=np.int64)
        planes = part(parts, "hyperplane", (r * bits, d)).reshape(r, bits, d).transpose(0, 2, 1)
        grid = coarse(tokens, norms)
        above = np.concatenate([grid[some] @ planes > 0 for some in _slices(n, bits * d)], axis=1)
        buckets: NDArray[np.int64] = above @ (1 << np.arange(bits)[::-1])
        return buckets

    def _sketched(self, values: NDArray[np.float64], parts: Parts) -> NDArray[np.float64]:
        if self.final_dimensions is None:
            return values
        slots = part(parts, "slot", (self.repetitions, self._buckets * self.projection)).ravel()
        final = np.zeros(self.final_dimensions)
        np.add.at(final, np.abs(slots).astype(np.int64) - 1, np.sign(slots) * values)
        return final


def _checked(tokens: ArrayLike) -> NDArray[np.float32]:
    """Return tokens as a halfvec column holds them, in float32."""
    # Lists may be ragged, which is for checked_vectors to say.
    array = tokens if isinstance(tokens, np.ndarray) else np.asarray(tokens, dtype=object)
    if array.size == 0:
        raise EncodingError("a multi-vector without tokens has no code; the server answers NULL")
    vectors = checked_vectors(tokens)
    if vectors.ndim != 2:
        raise EncodingError("a multi-vector has 2 dimensions (n, d), found 1")
    return to_halfvec(vectors).astype(np.float32)


def _slices(n: int, width: int) -> list[slice]:
    """Cut n tokens so that the product with so many numbers each stays below _ONE_THREAD."""
    step = max(1, _ONE_THREAD // width)
    return [slice(start, start + step) for start in range(0, n, step)]


@cache
def _set_bits(bits: int) -> NDArray[np.uint8]:
    """Return how many bits are set in each number that has so many."""
    return np.array([number.bit_count() for number in range(1 << bits)], dtype=np.uint8)
