"""Quantized, multi-vector and hybrid search in plain Postgres with pgvector."""

from importlib.metadata import version as _version

from sqlvec.encoders import Binary, Halfvec, Linear, Truncate
from sqlvec.schema import BM25, FDE, Centroid, Hubness, Pooled, Quantized, attach
from sqlvec.search import (
    bit_search,
    bm25_search,
    explain_bm25_search,
    explain_hybrid_search,
    explain_maxsim_search,
    explain_search,
    hybrid_search,
    maxsim_search,
    sparse_search,
    vector_search,
)
from sqlvec.types import MULTIVECTOR, MultiVector

__all__ = [
    "BM25",
    "FDE",
    "Binary",
    "Centroid",
    "Halfvec",
    "Hubness",
    "Linear",
    "MULTIVECTOR",
    "MultiVector",
    "Pooled",
    "Quantized",
    "Truncate",
    "attach",
    "bit_search",
    "bm25_search",
    "explain_bm25_search",
    "explain_hybrid_search",
    "explain_maxsim_search",
    "explain_search",
    "hybrid_search",
    "maxsim_search",
    "sparse_search",
    "vector_search",
]

__version__ = _version("sqlvec")
