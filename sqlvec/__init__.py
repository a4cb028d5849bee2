"""Quantized, multi-vector and hybrid search in plain Postgres with pgvector."""

from importlib.metadata import version as _version

__version__ = _version("sqlvec")
