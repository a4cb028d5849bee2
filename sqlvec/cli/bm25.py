"""Commands for BM25 columns."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sqlvec import manage
from sqlvec.cli.database import Dsn, engine
from sqlvec.terminal import progress_bar

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
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("table", "column", "tenant"):
        shown.add_column(title)
    for title in ("documents", "mean length", "terms", "collisions", "analyzed", "changes since"):
        shown.add_column(title, justify="right")
    shown.add_column("advice")
    for row in rows:
        shown.add_row(
            escape(row.table),
            escape(row.column),
            escape(row.tenant or ""),
            _number(row.documents),
            "" if row.avgdl is None else f"{row.avgdl:,.1f}",
            _number(row.terms),
            _number(row.collisions),
            "never" if row.analyzed_at is None else f"{row.analyzed_at:%Y-%m-%d %H:%M}",
            _number(row.changes_since),
            escape(row.advice or ""),
            style="yellow" if row.stale else None,
        )
    Console().print(shown)


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
