"""Commands that plan and build indexes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from sqlvec import manage
from sqlvec.cli.database import Dsn, engine
from sqlvec.cli.interruption import resumable
from sqlvec.terminal import progress_bar

app = typer.Typer(
    help="Plan and build indexes on vectors and on the words of texts.", no_args_is_help=True
)

Table = Annotated[str, typer.Argument(help="As in SQL: doc, shop.doc, '\"Doc\"'.")]
Column = Annotated[str, typer.Argument(help="The vector column, or the BM25 column.")]
Metric = Annotated[
    str | None,
    typer.Option(help="l2, inner_product, cosine or l1.", show_default="that of the codes"),
]


@app.command()
def plan(table: Table, column: Column, *, dsn: Dsn, metric: Metric = None) -> None:
    """Print the indexes that would serve searches on a column, as SQL."""
    for way in manage.plan_index(engine(dsn), table, column, metric=metric):
        typer.echo(f"-- {way.name}" + (f": {way.note}" if way.note else ""))
        if way.statement is not None:
            typer.echo(f"{way.statement};")


@app.command()
def build(
    table: Table,
    column: Column,
    *,
    dsn: Dsn,
    on: Annotated[
        str | None,
        typer.Option(
            help="A derived column, 'source', or an expression, as 'index plan' names them.",
            show_default="the only derived column",
        ),
    ] = None,
    metric: Metric = None,
    m: Annotated[int | None, typer.Option("--m", help="HNSW: connections per node.")] = None,
    ef_construction: Annotated[
        int | None, typer.Option(help="HNSW: candidates while building.")
    ] = None,
    maintenance_work_mem: Annotated[
        str | None, typer.Option(help="Memory for the build, such as 1GB.")
    ] = None,
) -> None:
    """Build an index CONCURRENTLY: HNSW, or GIN for BM25.

    A failed or interrupted build leaves nothing behind.
    """
    with resumable(), progress_bar(Console(), "index") as report:
        built = manage.create_index(
            engine(dsn),
            table,
            column,
            on,
            metric=metric,
            m=m,
            ef_construction=ef_construction,
            maintenance_work_mem=maintenance_work_mem,
            progress=report,
        )
    typer.echo("the index is built" if built else "there is such an index already")
