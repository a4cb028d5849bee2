"""The tour of hybrid search: load, backfill, index, count, fit the relevance, ask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from sqlvec import manage, relevance
from sqlvec.demo.corpus import Entry
from sqlvec.demo.models import TextModel
from sqlvec.demo.tables import SCHEMA, HybridTables
from sqlvec.demo.tour import HITS, QUESTIONS, REPEATS, Tour, embedded, median_milliseconds
from sqlvec.fit.judgements import Source, collect
from sqlvec.fit.relevance import fit_leg
from sqlvec.search import (
    HybridSearchOptions,
    bm25_search,
    explain_hybrid_search,
    hits,
    hybrid_search,
    vector_search,
)

MODEL = f"{SCHEMA}.hybrid_entry"
"""Name of the relevance model in the catalog: that of its table, so that it is nobody else's."""

MIN_RELEVANCE = 0.5
"""Below it nothing is shown. A model without judgements has no threshold of its own."""

_TABLE = MODEL
_CODE = "embedding_binary"
_WORDS = "words"
_TITLES = 200
"""Entries, about, whose names are asked for the fit."""

_FAMILY = "power"
"""Of the curve: of all it tells questions that the library answers best from others."""

_MEASURES = ("score", "relevance", "words", "vector")
"""Shown of a hit; the last two are its ranks by words alone and by the vector alone."""

_SHORTEST_SUMMARY = 20


class HybridDemo(Tour):
    """A database with the corpus in it, and answers by words and by vectors, or none.

    :param engine: the database; tables ``hybrid_entry``, ``hybrid_title`` and ``hybrid_question``
        of schema ``sqlvec_demo`` and relevance model :data:`MODEL` are made anew.
    :param model: turns text into vectors.
    :param console: where everything is shown.
    """

    questions = (*QUESTIONS, "how long to roast a chicken")

    def __init__(self, engine: Engine, model: TextModel, console: Console) -> None:
        super().__init__(engine, console)
        self._model = model
        self._tables = HybridTables(model.dimensions)

    def prepare(self, corpus: Sequence[Entry]) -> None:
        """Load the corpus, fill its codes and words, index both, fit the relevance."""
        self._create_tables(self._tables.metadata)
        with self._step("embed and load") as report:
            self._load_embedded(self._tables.entry, self._model, corpus, report)
        with self._step("backfill") as report:
            manage.backfill(self._engine, _TABLE, progress=report)
        with self._step("index the code") as report:
            manage.create_index(self._engine, _TABLE, "embedding", _CODE, progress=report)
        with self._step("index the words") as report:
            manage.create_index(self._engine, _TABLE, _WORDS, progress=report)
        with self._step("count the words") as report:
            manage.analyze_bm25(self._engine, _TABLE, progress=report)
        self._analyze(_TABLE)
        with self._step("fit relevance") as report:
            self._fit(corpus[:: max(1, len(corpus) // _TITLES)], report)
        self._console.print(
            f"{len(corpus):,} entries; those with a relevance below {MIN_RELEVANCE} are not shown\n"
            "[dim]Relevance is fitted to names of entries, asked as questions, without"
            " judgements.[/dim]"
        )

    def answer(self, question: str) -> None:
        """Search for a question; show the hits or why there are none, the times, and the SQL."""
        with Session(self._engine) as session:
            vector = embedded(self._model, [question])[0]
            saved = self._tables.question(text=question, embedding=vector)
            session.add(saved)
            session.commit()
            self._console.print(f"\n[bold]{escape(question)}[/bold]")
            asked = _asked(question, saved.embedding)
            if found := self._search(session, asked):
                self._show_hits(found)
            else:
                self._show_nothing(session, asked)
            self._show_timings(session, asked, question, saved.embedding)
            self._show_sql(_sql(question, saved.id))

    def _fit(self, asked: Sequence[Entry], report: manage.Report) -> None:
        """Fit the relevance of vectors to names of entries, as if somebody had asked for them.

        Nobody judges what they find: candidates are compared with random rows instead.
        """
        titles = [" ".join(re.findall(r"[^\W_]+", entry.name)) for entry in asked]
        rows = [
            {"text": title, "embedding": vector}
            for title, vector in zip(titles, embedded(self._model, titles), strict=True)
        ]
        source = Source(
            leg="vector",
            table=_TABLE,
            column="embedding",
            key="id",
            queries=f"{SCHEMA}.hybrid_title",
            query_key="id",
            query_column="embedding",
        )
        with self._engine.begin() as connection:
            connection.execute(insert(self._tables.title), rows)
            statement = "SELECT EXISTS (SELECT FROM sqlvec.relevance_model WHERE name = :name)"
            if connection.scalar(text(statement), {"name": MODEL}):
                connection.execute(text("CALL sqlvec.drop_relevance_model(:name)"), {"name": MODEL})
            found = collect(connection, source, None)
            report(manage.Progress("fitting", 1, 2))
            fitted = fit_leg(
                source.leg,
                found.examples,
                _FAMILY,
                background=found.background,
                unanswerable=found.unanswerable,
            )
            relevance.save(
                connection,
                MODEL,
                fitted.model,
                table=_TABLE,
                column=source.column,
                queries=fitted.queries,
                examples=fitted.examples,
            )
            report(manage.Progress("fitting", 2, 2))

    def _search(self, session: Session, asked: HybridSearchOptions) -> Sequence[Any]:
        statement = hybrid_search(self._tables.entry, **asked)
        of = hits(statement).c
        return session.execute(
            statement.add_columns(of.relevance, of.text_rank, of.vector_rank)
        ).all()

    def _show_hits(self, found: Sequence[Any]) -> None:
        shown = Table(box=None, pad_edge=False, header_style="dim")
        for title in _MEASURES:
            shown.add_column(title, justify="right", min_width=len(title))
        shown.add_column("entry", overflow="fold")
        longest = max(len(row[0].name) for row in found)
        width = self._console.width - longest - len("  ".join(_MEASURES)) - 4
        summaries = width >= _SHORTEST_SUMMARY
        if summaries:
            shown.add_column("documentation", no_wrap=True)
        for entry, score, relevant, *ranks in found:
            cells = [f"{score:.3f}", f"{relevant:.2f}"]
            cells += ["–" if rank is None else str(rank) for rank in ranks]
            cells.append(escape(entry.name))
            if summaries:
                summary = shorten(entry.body.split("\n\n")[0], width, placeholder="…")
                cells.append(escape(summary))
            shown.add_row(*cells)
        self._console.print(shown)

    def _show_nothing(self, session: Session, asked: HybridSearchOptions) -> None:
        steps = session.execute(explain_hybrid_search(self._tables.entry, **asked))
        cut = {topic: detail for topic, detail in steps}["cut"]
        self._console.print(f"nothing relevant: {escape(cut)}")
        anyway: HybridSearchOptions = {**asked, "min_relevance": None, "k": 1}
        for entry, _, relevant, *_ in self._search(session, anyway):
            self._console.print(
                f"[dim]without the cut {escape(entry.name)} would come first,"
                f" of relevance {relevant:.2f}[/dim]"
            )

    def _show_timings(
        self, session: Session, asked: HybridSearchOptions, question: str, vector: Sequence[float]
    ) -> None:
        entry = self._tables.entry
        ways = {
            "hybrid": lambda: session.execute(hybrid_search(entry, **asked)).all(),
            "words": lambda: session.execute(bm25_search(entry, question, k=HITS)).all(),
            "vector": lambda: session.execute(vector_search(entry, vector, k=HITS)).all(),
        }
        parts = [f"{title} {median_milliseconds(way):.1f} ms" for title, way in ways.items()]
        self._console.print(f"[dim]median of {REPEATS}: {' · '.join(parts)}[/dim]")


def _asked(question: str, vector: Sequence[float]) -> HybridSearchOptions:
    return {
        "text": question,
        "vector": vector,
        "k": HITS,
        "fusion": "convex",
        "relevance": MODEL,
        "min_relevance": MIN_RELEVANCE,
    }


def _sql(question: str, number: int) -> str:
    quoted = "'" + question.replace("'", "''") + "'"
    return (
        "SELECT round(score::numeric, 3) AS score, round(relevance::numeric, 2) AS relevance,\n"
        "       text_rank, vector_rank, (hit).name\n"
        f"FROM sqlvec.hybrid_search(NULL::{_TABLE}, {quoted},\n"
        f"    (SELECT embedding FROM {SCHEMA}.hybrid_question WHERE id = {number}), k => {HITS},\n"
        f"    fusion => 'convex', relevance => '{MODEL}', min_relevance => {MIN_RELEVANCE});"
    )
