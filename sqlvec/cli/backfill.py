"""The command ``sqlvec backfill``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from sqlvec import manage
from sqlvec.cli.database import Dsn, engine
from sqlvec.cli.interruption import resumable
from sqlvec.terminal import progress_bar


def backfill(
    table: Annotated[str, typer.Argument(help="As in SQL: doc, shop.doc, '\"Doc\"'.")],
    target: Annotated[
        str | None, typer.Argument(help="Derived column.", show_default="all of the table")
    ] = None,
    *,
    dsn: Dsn,
    batch: Annotated[int, typer.Option(min=1, help="Rows per transaction.")] = 1000,
) -> None:
    """Fill derived columns of rows that have none. Interrupted, it goes on when run again."""
    with resumable(), progress_bar(Console(), "backfill") as report:
        manage.backfill(engine(dsn), table, target, batch=batch, progress=report)
