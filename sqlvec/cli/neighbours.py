"""Commands for the graph of nearest neighbours."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from sqlvec import manage
from sqlvec.cli.database import Dsn, engine
from sqlvec.terminal import progress_bar

app = typer.Typer(help="Keep a graph of nearest neighbours beside a table.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep the name of the only command."""


@app.command()
def build(
    table: Annotated[str, typer.Argument(help="As in SQL: doc, shop.doc, '\"Doc\"'.")],
    column: Annotated[str, typer.Argument(help="Its vector column.")],
    neighbours: Annotated[int, typer.Argument(min=1, max=1000, help="Edges per row.")] = 10,
    *,
    dsn: Dsn,
    into_table: Annotated[
        str | None,
        typer.Option(help="Table of edges, in the same schema.", show_default="TABLE_neighbours"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows per transaction.")] = 100,
    mutual: Annotated[
        bool, typer.Option("--mutual", help="Keep edges only where both rows name each other.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Do rows anew that have edges.")
    ] = False,
) -> None:
    """Write the nearest rows of every row. Interrupted, it goes on when run again."""
    with progress_bar(Console(), "neighbours") as report:
        manage.build_neighbours(
            engine(dsn),
            table,
            column,
            neighbours,
            into_table=into_table,
            batch=batch,
            mutual=mutual,
            rebuild=rebuild,
            progress=report,
        )
