"""Searches as ordinary ``Select`` statements over models and tables."""

from __future__ import annotations

from sqlvec.search.bm25 import TextSearchOptions, bm25_search, explain_bm25_search
from sqlvec.search.hits import complete, hits
from sqlvec.search.hybrid import HybridSearchOptions, explain_hybrid_search, hybrid_search
from sqlvec.search.maxsim import (
    ClientRescore,
    TokenSearchOptions,
    explain_maxsim_search,
    maxsim_search,
)
from sqlvec.search.nearest import (
    SearchOptions,
    bit_search,
    explain_search,
    sparse_search,
    vector_search,
)

__all__ = [
    "ClientRescore",
    "HybridSearchOptions",
    "SearchOptions",
    "TextSearchOptions",
    "TokenSearchOptions",
    "bit_search",
    "bm25_search",
    "complete",
    "explain_bm25_search",
    "explain_hybrid_search",
    "explain_maxsim_search",
    "explain_search",
    "hits",
    "hybrid_search",
    "maxsim_search",
    "sparse_search",
    "vector_search",
]
