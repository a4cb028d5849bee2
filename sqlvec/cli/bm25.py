"""Commands for BM25 columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sqlvec import manage
from sqlvec.cli.database import Dsn, engine
from sqlvec.terminal import print_whole, progress_bar

app = typer.Typer(help="Keep the statistics of full-text search fresh.", no_args_is_help=True)

_TABLE_HELP = "As in SQL: doc, shop.doc, '\"Doc\"'."


@app.command()
def analyze(
    table: Annotated[str, typer.Argument(help=_TABLE_HELP)],
    *,
    dsn: Dsn,
    drift: Annotated[
        float,
        typer.Option(
            min=0,
            help="Compute weights anew when the mean length has moved by more than this fraction.",
        ),
    ] = 0.1,
) -> None:
    """Count documents, lengths and terms of every BM25 column of a table."""
    with progress_bar(Console(), "analyze") as report:
        manage.analyze_bm25(engine(dsn), table, drift=drift, progress=report)
    rows = manage.bm25_health(engine(dsn), table)
    for column, group in groupby(rows, key=lambda row: row.column):
        typer.echo(f"{column}: {_counted(list(group))}")


def _counted(rows: Sequence[manage.TextHealth]) -> str:
    documents = f"{sum(row.documents or 0 for row in rows):,} documents"
    if any(row.tenant for row in rows):
        # Tenants share words, so that theirs add up to nothing.
        return f"{documents} of {len(rows):,} tenants"
    return f"{documents}, {sum(row.terms or 0 for row in rows):,} different words"


@app.command()
def health(
    table: Annotated[
        str | None, typer.Argument(help=_TABLE_HELP, show_default="every table")
    ] = None,
    *,
    dsn: Dsn,
) -> None:
    """Show how fresh the statistics of BM25 columns are, and what to do about them."""
    rows = manage.bm25_health(engine(dsn), table)
    if not rows:
        typer.echo("no BM25 columns")
        return
    console = Console()
    shown = _table(rows, broken=console.is_terminal)
    print_whole(console, shown)
    # Tenants of a column share their advice.
    for table_name, column, advice in dict.fromkeys((r.table, r.column, r.advice) for r in rows):
        if advice is not None:
            line = f"{table_name}, column {column}: {advice}"
            console.print(line, soft_wrap=True, markup=False, highlight=False)


def _table(rows: Sequence[manage.TextHealth], *, broken: bool) -> Table:
    """Return the table of the numbers; its titles may be broken into lines."""
    tenants = any(row.tenant for row in rows)
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("table", "column", "tenant") if tenants else ("table", "column"):
        shown.add_column(title, no_wrap=True)
    for title in ("documents", "mean length", "terms", "collisions", "analyzed", "changes since"):
        shown.add_column(
            title.replace(" ", "\n") if broken else title,
            justify="right",
            no_wrap=title != "analyzed",
        )
    for row in rows:
        shown.add_row(
            escape(row.table),
            escape(row.column),
            *([escape(row.tenant or "")] if tenants else []),
            _number(row.documents),
            "" if row.avgdl is None else f"{row.avgdl:,.1f}",
            _number(row.terms),
            _number(row.collisions),
            "never" if row.analyzed_at is None else f"{row.analyzed_at:%Y-%m-%d %H:%M}",
            _number(row.changes_since),
            style="yellow" if row.stale else None,
        )
    return shown


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
