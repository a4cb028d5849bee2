"""The option ``--dsn`` and the engine it leads to."""

from __future__ import annotations

import re
from typing import Annotated

import psycopg
import typer
from sqlalchemy import Engine, NullPool, create_engine

_option = typer.Option(
    "--dsn",
    envvar="SQLVEC_DSN",
    help="Database: postgresql://user@host/name, or any libpq connection string.",
    show_default=False,
)

Dsn = Annotated[str, _option]
"""The database that a command works on."""

OptionalDsn = Annotated[str | None, _option]
"""The same for a command that also works without one."""


def engine(dsn: str) -> Engine:
    """Return an engine on a database.

    :param dsn: a libpq connection string, or a SQLAlchemy URL for PostgreSQL.
    """
    conninfo = re.sub(r"^postgresql\+\w+://", "postgresql://", dsn)
    return create_engine(
        "postgresql+psycopg://",
        # libpq knows service files, password files and the PG* variables; a URL does not.
        creator=lambda: psycopg.connect(conninfo),
        poolclass=NullPool,
    )
