"""The command ``sqlvec demo``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from sqlalchemy import Engine

from sqlvec.cli.database import OptionalDsn, engine
from sqlvec.demo.app import Demo
from sqlvec.demo.corpus import read_library
from sqlvec.demo.models import MODELS
from sqlvec.demo.multivector import MultiVectorDemo
from sqlvec.demo.tables import SCHEMA
from sqlvec.demo.text import TextDemo
from sqlvec.demo.tour import QUESTIONS, Tour
from sqlvec.embedded import Server

_MODES = ("vector", "text", "multivector", "hybrid")


def demo(
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="[QUESTION]...", show_default=False)
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="|".join(_MODES),
            help="Search by meaning, by words, by the meaning of each word, or by meaning and"
            " words, and leave out what is not relevant.",
        ),
    ] = "vector",
    model: Annotated[
        str, typer.Option(metavar="|".join(MODELS), help="Text embedding model; not for mode text.")
    ] = "wordllama",
    dsn: OptionalDsn = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the server's data in this folder.")
    ] = None,
) -> None:
    """Search the documentation of Python's standard library, on a private server.

    Without questions it asks for them. With --dsn it works in schema sqlvec_demo of that database.
    """
    if mode not in _MODES:
        raise typer.BadParameter(f"{mode!r} is none of {', '.join(_MODES)}", param_hint="--mode")
    if model not in MODELS:
        raise typer.BadParameter(f"{model!r} is none of {', '.join(MODELS)}", param_hint="--model")
    if dsn and keep:
        raise typer.BadParameter("--keep goes with the private server, not with --dsn")
    console = Console()
    make = _maker(mode, model)
    waits = not questions and sys.stdin.isatty()
    with _database(dsn, keep, console, waits=waits) as address:
        tour = make(engine(address), console)
        tour.prepare(read_library())
        for question in _typed_in(console) if waits else questions or tour.questions:
            tour.answer(question)


def _maker(mode: str, model: str) -> Callable[[Engine, Console], Tour]:
    """Return what makes a tour: a package that it lacks is missed before a server is started."""
    if mode == "text":
        return TextDemo
    text_model = MODELS[model]()
    if mode == "vector":
        return lambda engine, console: Demo(engine, text_model, console)
    if mode == "multivector":
        return lambda engine, console: MultiVectorDemo(engine, text_model, console)
    # It imports scipy and scikit-learn, which the other modes need not wait for.
    from sqlvec.demo.hybrid import HybridDemo

    return lambda engine, console: HybridDemo(engine, text_model, console)


@contextmanager
def _database(
    dsn: str | None, keep: Path | None, console: Console, *, waits: bool
) -> Iterator[str]:
    """Yield the address of a database; say how to look into it while the demo waits for input."""
    if dsn:
        console.print(f"[dim]everything is made in schema {SCHEMA}[/dim]")
        yield dsn
        return
    with Server(keep) as server:
        if waits:
            psql = shlex.join([str(server.bin / "psql"), server.dsn()])
            # One line, however long, so that it can be copied.
            console.print(f"[dim]while this runs:[/dim] {psql}", soft_wrap=True, highlight=False)
        yield server.dsn()


def _typed_in(console: Console) -> Iterator[str]:
    console.print(f"\nAsk in plain words, for example: {QUESTIONS[0]}. An empty line ends.")
    while True:
        try:
            question = console.input("\n[bold]?[/bold] ").strip()
        except EOFError:
            return
        if not question:
            return
        yield question
