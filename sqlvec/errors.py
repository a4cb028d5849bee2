"""Every exception that sqlvec raises on purpose."""

from __future__ import annotations


class SqlvecError(Exception):
    """Root of the exceptions of this package."""


class NotInstalled(SqlvecError):
    """The database has no schema ``sqlvec``."""


class VersionMismatch(SqlvecError):
    """The database holds another release of sqlvec than this package can work with."""


class InstalledAsExtension(SqlvecError):
    """Schema ``sqlvec`` belongs to ``CREATE EXTENSION sqlvec``, which manages it."""


class MissingRequirement(SqlvecError):
    """The server lacks something that sqlvec stands on: pgvector, its version, or a right."""


class InUse(SqlvecError):
    """Something outside schema ``sqlvec`` still depends on what was to be removed."""


class EncodingError(SqlvecError, ValueError):
    """A vector cannot be encoded: wrong dimensions, NaN, infinity, or out of the code's range."""


class DeclarationError(SqlvecError, ValueError):
    """A declaration on a table or model contradicts the table, or another declaration."""


class ServerUnavailable(SqlvecError):
    """A local PostgreSQL server cannot be found, started or reached."""


class FittingError(SqlvecError, ValueError):
    """There is too little to fit a model to, or nothing that it could tell apart."""
