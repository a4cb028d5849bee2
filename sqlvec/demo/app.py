"""The tour of vectors: load, backfill, index, ask."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlvec import manage
from sqlvec.demo.corpus import Entry
from sqlvec.demo.models import TextModel
from sqlvec.demo.tables import SCHEMA, Tables
from sqlvec.demo.tour import HITS, REPEATS, Tour, embedded, median_milliseconds
from sqlvec.search import vector_search

_TABLE = f"{SCHEMA}.entry"
_CODE = "embedding_binary"
_WAYS = {"code, rescored": _CODE, "float32 index": "source", "every row": "exact"}
"""Ways to answer, with the ``mode`` of ``vector_search`` that takes each."""

_SHORTEST_SUMMARY = 20


class Demo(Tour):
    """A database with the corpus in it, and answers from it.

    :param engine: the database; the tables of schema ``sqlvec_demo`` in it are made anew.
    :param model: turns text into vectors.
    :param console: where everything is shown.
    """

    def __init__(self, engine: Engine, model: TextModel, console: Console) -> None:
        super().__init__(engine, console)
        self._model = model
        self._tables = Tables(model.dimensions)

    def prepare(self, corpus: Sequence[Entry]) -> None:
        """Load the corpus, fill the quantized column, build both indexes."""
        self._create_tables(self._tables.metadata)
        with self._step("embed and load") as report:
            self._load_embedded(self._tables.entry, self._model, corpus, report)
        with self._step("backfill") as report:
            manage.backfill(self._engine, _TABLE, _CODE, progress=report)
        for title, way in (("index the code", _CODE), ("index float32", "source")):
            with self._step(title) as report:
                manage.create_index(self._engine, _TABLE, "embedding", way, progress=report)
        self._analyze(_TABLE)
        self._show_sizes(len(corpus))

    def answer(self, question: str) -> None:
        """Search for a question; show the hits, the time each way takes, and the SQL."""
        with Session(self._engine) as session:
            saved = self._tables.question(
                text=question, embedding=embedded(self._model, [question])[0]
            )
            session.add(saved)
            session.commit()
            hits = self._search(session, saved.embedding, "auto")
            self._console.print(f"\n[bold]{escape(question)}[/bold]")
            self._show_hits(hits)
            self._show_timings(session, saved.embedding, {entry.id for entry, _ in hits})
            self._show_sql(_sql(saved.id))

    def _search(
        self, session: Session, query: Sequence[float], mode: str
    ) -> Sequence[tuple[Any, float]]:
        statement = vector_search(self._tables.entry, query, k=HITS, mode=mode)
        return [(entry, distance) for entry, distance in session.execute(statement)]

    def _show_hits(self, hits: Sequence[tuple[Any, float]]) -> None:
        shown = Table(box=None, pad_edge=False, header_style="dim")
        shown.add_column("score", justify="right", no_wrap=True)
        shown.add_column("entry", no_wrap=True)
        shown.add_column("documentation", no_wrap=True)
        longest = max((len(entry.name) for entry, _ in hits), default=0)
        width = max(_SHORTEST_SUMMARY, self._console.width - longest - 12)
        for entry, distance in hits:
            summary = shorten(entry.body.split("\n\n")[0], width, placeholder="…")
            shown.add_row(f"{1 - distance:.3f}", escape(entry.name), escape(summary))
        self._console.print(shown)

    def _show_timings(self, session: Session, query: Sequence[float], best: set[int]) -> None:
        parts = []
        for title, mode in _WAYS.items():
            found: set[int] = set()

            def search(mode: str = mode, found: set[int] = found) -> None:
                found |= {entry.id for entry, _ in self._search(session, query, mode)}

            parts.append(
                f"{title} {median_milliseconds(search):.1f} ms"
                + ("" if found == best else f" ({len(found & best)} of {len(best)} the same)")
            )
        self._console.print(f"[dim]median of {REPEATS}: {' · '.join(parts)}[/dim]")

    def _show_sizes(self, entries: int) -> None:
        statement = text("""
            SELECT a.attname, pg_catalog.pg_relation_size(i.indexrelid)
            FROM pg_catalog.pg_index AS i
            JOIN pg_catalog.pg_attribute AS a
              ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND NOT i.indisprimary
            WHERE i.indrelid = CAST(:table AS regclass)
        """)
        with self._engine.connect() as connection:
            rows = connection.execute(statement, {"table": _TABLE})
            sizes: dict[str, int] = {column: size for column, size in rows}
        code, source = sizes[_CODE], sizes["embedding"]
        self._console.print(
            f"{entries:,} entries × {self._model.dimensions} dimensions:"
            f" index of the code {code / 1e6:.1f} MB, of float32 {source / 1e6:.1f} MB"
            f" ([bold]{source / code:.1f} ×[/bold])\n"
            "[dim]At this size every way to search is fast;"
            " python -m benchmarks quantized compares them on 100,000 rows.[/dim]"
        )


def _sql(question: int) -> str:
    return (
        "SELECT round((1 - distance)::numeric, 3) AS similarity, (hit).name\n"
        f"FROM sqlvec.vector_search(NULL::{_TABLE}, 'embedding',\n"
        f"    (SELECT embedding FROM {SCHEMA}.question WHERE id = {question}), k => {HITS});"
    )
