"""Encoders: functions from a vector to a narrower code, as the server computes them.

Every class is the numpy twin of one kind in ``sql/encode.sql``. Codes that leave numpy equal those
that leave the server: bits to the last one, floats to one unit in the last place of their type.
That lets a bulk load encode on the client and COPY the codes. :class:`BM25` is the twin for text:
it takes counts of lexemes and statistics of the corpus, so it stands beside the vector encoders, as
do :class:`FDE`, :class:`Pool` and :class:`Centroid`, which take multi-vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlvec.encoders.base import Encoder, Parts
from sqlvec.encoders.binary import Binary
from sqlvec.encoders.bm25 import BM25
from sqlvec.encoders.centroid import Centroid, CentroidTable
from sqlvec.encoders.fde import FDE
from sqlvec.encoders.halfvec import Halfvec
from sqlvec.encoders.hubness import Hubness
from sqlvec.encoders.integer_parts import matrix_parts
from sqlvec.encoders.linear import Linear
from sqlvec.encoders.maxsim import maxsim
from sqlvec.encoders.pool import Pool
from sqlvec.encoders.truncate import Truncate
from sqlvec.errors import DeclarationError

__all__ = [
    "BM25",
    "FDE",
    "KINDS",
    "Binary",
    "Centroid",
    "CentroidTable",
    "Encoder",
    "Halfvec",
    "Hubness",
    "Linear",
    "Parts",
    "Pool",
    "Truncate",
    "from_options",
    "matrix_parts",
    "maxsim",
]

KINDS: Mapping[str, type[Encoder]] = {
    encoder.kind: encoder for encoder in (Halfvec, Binary, Truncate, Linear, Hubness)
}
"""Every encoder of vectors by the kind that the catalog stores."""


def from_options(kind: str, options: Mapping[str, Any]) -> Encoder:
    """Return the encoder that a row of ``sqlvec.encoder`` describes.

    :raises DeclarationError: there is no such kind, or it has no such option.
    """
    if kind not in KINDS:
        raise DeclarationError(f"unknown encoder kind {kind!r}; the kinds are: {', '.join(KINDS)}")
    try:
        return KINDS[kind](**options)
    except TypeError as error:
        raise DeclarationError(f"encoder kind {kind!r}: {error}") from error
