"""Names of derived columns and indexes, cut to what PostgreSQL keeps of an identifier.

The twin of ``sqlvec._name`` in ``sql/identifiers.sql``: a model and the server must arrive at the
same name for a column that neither was told.
"""

from __future__ import annotations

from hashlib import md5

_MAX_BYTES = 63  # NAMEDATALEN - 1
_HASH_DIGITS = 8


def fit(name: str) -> str:
    """Return a name of at most 63 bytes.

    A longer one is cut at a character boundary and ends in eight digits of its hash, so that two
    long names stay two names.
    """
    encoded = name.encode()
    if len(encoded) <= _MAX_BYTES:
        return name
    digest = md5(encoded, usedforsecurity=False).hexdigest()[:_HASH_DIGITS]
    head = encoded[: _MAX_BYTES - 1 - _HASH_DIGITS].decode(errors="ignore")
    return f"{head}_{digest}"


def target_column(source: str, kind: str) -> str:
    """Return the default name of a derived column, ``<source>_<kind>``."""
    return fit(f"{source}_{kind}")


def index_name(table: str, column: str, method: str) -> str:
    """Return the default name of an index, ``ix_<table>_<column>_<method>``."""
    return fit(f"ix_{table}_{column}_{method}")
