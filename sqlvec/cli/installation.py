"""Commands that install, upgrade, check and remove schema ``sqlvec``."""

from __future__ import annotations

from typing import Annotated

import typer

from sqlvec import catalog
from sqlvec.cli.database import Dsn, OptionalDsn, engine


def install(
    dsn: Dsn,
    create_extension: Annotated[
        bool, typer.Option("--create-extension", help="Run CREATE EXTENSION vector where missing.")
    ] = False,
) -> None:
    """Create schema sqlvec, in one transaction. Running it again is harmless."""
    with engine(dsn).connect() as connection:
        catalog.install(connection, create_extension=create_extension)
    typer.echo(f"sqlvec {catalog.VERSION} is installed")


def upgrade(dsn: Dsn) -> None:
    """Bring schema sqlvec to the release of this package, in one transaction."""
    with engine(dsn).connect() as connection:
        catalog.upgrade(connection)
    typer.echo(f"sqlvec {catalog.VERSION} is installed")


def uninstall(
    dsn: Dsn,
    force: Annotated[
        bool, typer.Option("--force", help="Drop derived columns and other dependents too.")
    ] = False,
) -> None:
    """Drop schema sqlvec. Refuses while derived columns or other objects depend on it."""
    with engine(dsn).connect() as connection:
        catalog.uninstall(connection, drop_derived=force)
    typer.echo("sqlvec is removed")


def check(dsn: Dsn) -> None:
    """Test the installation and every derived column; say how to mend each problem."""
    with engine(dsn).connect() as connection:
        findings = catalog.check(connection)
    for finding in findings:
        typer.echo(f"{finding.severity}: {finding.problem}")
        if finding.remedy:
            typer.echo(f"    {finding.remedy}")
    if any(finding.severity != "note" for finding in findings):
        raise typer.Exit(1)
    typer.echo(f"sqlvec {catalog.VERSION} is in order")


def version(dsn: OptionalDsn = None) -> None:
    """Print the release of this package, and of the database where one is named."""
    typer.echo(f"package: {catalog.VERSION}")
    if dsn is not None:
        with engine(dsn).connect() as connection:
            typer.echo(f"database: {catalog.installed_version(connection) or 'not installed'}")
