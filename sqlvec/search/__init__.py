"""Searches as ordinary ``Select`` statements over models and tables."""

from __future__ import annotations

from sqlvec.search.hits import complete
from sqlvec.search.nearest import (
    SearchOptions,
    bit_search,
    explain_search,
    sparse_search,
    vector_search,
)

__all__ = [
    "SearchOptions",
    "bit_search",
    "complete",
    "explain_search",
    "sparse_search",
    "vector_search",
]
