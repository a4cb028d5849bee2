"""Searches as ordinary ``Select`` statements over models and tables."""

from __future__ import annotations

from sqlvec.search.queries import bit_search, explain_search, sparse_search, vector_search

__all__ = ["bit_search", "explain_search", "sparse_search", "vector_search"]
