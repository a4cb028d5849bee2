"""Progress of long work on a terminal, and tables of names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

from sqlvec.manage import Progress, Report

_UNLIMITED = 10_000
"""Characters in a line, to measure with."""


def print_whole(console: Console, table: Table) -> None:
    """Print a table whose columns with ``no_wrap`` are neither cropped nor broken.

    A pipe is as wide as need be, and a terminal that is too narrow wraps by itself, so that what is
    copied from it is whole.
    """
    unlimited = console.options.update(width=_UNLIMITED)
    for column in table.columns:
        if column.no_wrap:
            cells = (column.header, *column.cells)
            column.min_width = max(console.measure(c, options=unlimited).maximum for c in cells)
    needed = console.measure(table, options=unlimited)
    console.width = max(console.width, needed.minimum if console.is_terminal else needed.maximum)
    console.print(table)


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Report]:
    """Show a bar while the block runs; yield what moves it.

    E.g.::

        with progress_bar(Console(), "backfill") as report:
            backfill(engine, "doc", progress=report)
    """
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=30),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("[dim]{task.fields[phase]}"),
    )
    with rich_progress.Progress(*columns, console=console) as shown:
        task = shown.add_task(title, total=None, phase="")

        def report(progress: Progress) -> None:
            shown.update(
                task, completed=progress.done, total=progress.total or None, phase=progress.phase
            )

        yield report
        shown.update(task, completed=1, total=1, phase="")
