"""The command ``sqlvec``: one module per group of commands, without logic of their own."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exit with 0, 1 after a failure, or 2 after a wrong call."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        sys.exit(f"sqlvec: the command line needs {error.name}: pip install 'sqlvec[cli]'")
    try:
        import psycopg
    except ImportError as error:  # psycopg without libpq says at length what it tried.
        sys.exit(f"sqlvec: {error}\nOne way to get it: pip install 'psycopg[binary]'")
    from sqlalchemy.exc import DBAPIError

    from sqlvec.cli.app import app
    from sqlvec.errors import SqlvecError

    try:
        app()
    except DBAPIError as error:
        sys.exit(f"sqlvec: {str(error.orig).strip()}")
    except (SqlvecError, psycopg.Error, OSError) as error:
        sys.exit(f"sqlvec: {error}")
