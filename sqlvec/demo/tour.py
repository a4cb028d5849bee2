"""What the tours share: tables made anew and loaded, steps with progress, questions, timings."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from statistics import median
from typing import Any, ClassVar

from rich.console import Console
from rich.syntax import Syntax
from sqlalchemy import Engine, MetaData, insert, text
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema

from sqlvec import manage
from sqlvec.demo.corpus import Entry
from sqlvec.demo.models import TextModel
from sqlvec.demo.tables import SCHEMA
from sqlvec.terminal import progress_bar

QUESTIONS = (
    "how to wrap long lines of text",
    "remove a directory tree",
    "find the differences between two sequences",
)
"""What the library answers."""

HITS = 5
"""Shown per question."""

REPEATS = 15
"""Runs that a timing is the median of."""


class Tour(ABC):
    """A database with the corpus in it, and answers from it.

    :param engine: the database; the tables of schema ``sqlvec_demo`` in it are made anew.
    :param console: where everything is shown.
    """

    questions: ClassVar[Sequence[str]] = QUESTIONS
    """Asked when nobody is there to ask."""

    def __init__(self, engine: Engine, console: Console) -> None:
        self._engine = engine
        self._console = console

    @abstractmethod
    def prepare(self, corpus: Sequence[Entry]) -> None:
        """Load the corpus, fill what is derived from it, build the indexes."""

    @abstractmethod
    def answer(self, question: str) -> None:
        """Search for a question; show the hits, the time each way takes, and the SQL."""

    def _create_tables(self, metadata: MetaData) -> None:
        with self._engine.begin() as connection:
            metadata.drop_all(connection)
            connection.execute(CreateSchema(SCHEMA, if_not_exists=True))
            metadata.create_all(connection)

    def _load_embedded(
        self, entity: type[Any], model: TextModel, corpus: Sequence[Entry], report: manage.Report
    ) -> None:
        """Load the corpus with a vector for each entry."""
        with Session(self._engine) as session:
            # Rows loaded in bulk get their codes from the backfill.
            session.execute(text("SET LOCAL sqlvec.maintain = off"))
            size = model.batch
            # Texts of like length together: models pad a batch to its longest.
            corpus = sorted(corpus, key=lambda entry: len(entry.body))
            for start in range(0, len(corpus), size):
                batch = corpus[start : start + size]
                vectors = embedded(model, [f"{entry.name}: {entry.body}" for entry in batch])
                rows = [
                    asdict(entry) | {"embedding": vector}
                    for entry, vector in zip(batch, vectors, strict=True)
                ]
                session.execute(insert(entity), rows)
                report(manage.Progress("embedding", start + len(batch), len(corpus)))
            session.commit()

    def _analyze(self, table: str) -> None:
        """Let the planner know the table at once."""
        with self._engine.begin() as connection:
            connection.execute(text(f"ANALYZE {table}"))

    @contextmanager
    def _step(self, title: str) -> Iterator[manage.Report]:
        with progress_bar(self._console, f"{title:<16}") as report:
            yield report

    def _show_sql(self, statement: str) -> None:
        syntax = Syntax("", "postgresql", theme="ansi_dark", background_color="default")
        shown = syntax.highlight(statement)
        shown.rstrip()
        # As text, since a Syntax is cropped at the width, and this is to be copied.
        self._console.print(shown, soft_wrap=True)


def embedded(model: TextModel, texts: Sequence[str]) -> list[list[float]]:
    """Return one vector per text, as a column takes it."""
    vectors: list[list[float]] = model.encode(texts).tolist()
    return vectors


def median_milliseconds(search: Callable[[], object]) -> float:
    """Return the median time that a search takes."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        search()
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)
