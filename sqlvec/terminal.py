"""Progress of long work on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console

from sqlvec.manage import Progress, Report


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
