"""Commands that write the SQL out, for servers that are installed by other means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqlvec import catalog


def script(
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="VERSION", help="Upgrade this release instead."),
    ] = None,
) -> None:
    """Print a script that installs schema sqlvec, for psql or a provider's SQL editor."""
    typer.echo(catalog.script(from_), nl=False)


def extension_files(
    dest: Annotated[
        Path | None,
        typer.Option(help="Folder to write to, such as $(pg_config --sharedir)/extension."),
    ] = None,
    pg_tle: Annotated[
        bool, typer.Option("--pg-tle", help="Print a script that registers it with pg_tle.")
    ] = False,
) -> None:
    """Write the files for CREATE EXTENSION sqlvec."""
    if (dest is None) is not pg_tle:
        raise typer.BadParameter("give either --dest or --pg-tle")
    if dest is None:
        typer.echo(catalog.pg_tle_script(), nl=False)
        return
    dest.mkdir(parents=True, exist_ok=True)
    for name, content in catalog.extension_files().items():
        (dest / name).write_text(content, encoding="utf-8")
        typer.echo(dest / name)
