"""What a command says when it is interrupted by Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def resumable() -> Iterator[None]:
    """Say of an interrupted command that it can be run again; typer exits with 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; run it again to go on", err=True)
        raise
