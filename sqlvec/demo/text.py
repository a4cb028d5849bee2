"""The tour of words: load, backfill, index, count, ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.orm import Session

from sqlvec import functions, manage
from sqlvec.demo.corpus import Entry
from sqlvec.demo.tables import SCHEMA, TextTables
from sqlvec.demo.tour import HITS, REPEATS, Tour, median_milliseconds
from sqlvec.search import bm25_search

_TABLE = f"{SCHEMA}.text_entry"
_CODE = "words"
_BATCH = 500

_MARKS = ("\ue000", "\ue001")
"""Around the words of the question: from the private use area, so that no text holds them."""

_HEADLINE = f"StartSel={_MARKS[0]}, StopSel={_MARKS[1]}, MinWords=8, MaxWords=16"

_TS_RANK = text(f"""
    SELECT e.id FROM {_TABLE} AS e, sqlvec.bm25_tsquery(NULL::{_TABLE}, '{_CODE}', :question) AS q
    WHERE e.words_tsv @@ q
    ORDER BY ts_rank_cd(e.words_tsv, q) DESC LIMIT {HITS}
""")


class TextDemo(Tour):
    """A database with the corpus in it, and answers by words.

    :param engine: the database; table ``text_entry`` of schema ``sqlvec_demo`` is made anew.
    :param console: where everything is shown.
    """

    def __init__(self, engine: Engine, console: Console) -> None:
        super().__init__(engine, console)
        self._tables = TextTables()

    def prepare(self, corpus: Sequence[Entry]) -> None:
        """Load the corpus, weigh its words, index them, count them."""
        self._create_tables(self._tables.metadata)
        with self._step("load") as report:
            self._load(corpus, report)
        with self._step("backfill") as report:
            manage.backfill(self._engine, _TABLE, _CODE, progress=report)
        with self._step("index the words") as report:
            manage.create_index(self._engine, _TABLE, _CODE, progress=report)
        with self._step("count the words") as report:
            manage.analyze_bm25(self._engine, _TABLE, progress=report)
        self._analyze(_TABLE)
        self._show_statistics()

    def answer(self, question: str) -> None:
        """Search for a question; show the hits, the time each way takes, and the SQL."""
        with Session(self._engine) as session:
            self._console.print(f"\n[bold]{escape(question)}[/bold]")
            if hits := self._search(session, question):
                self._show_hits(hits)
            else:
                self._show_nothing(session, question)
            self._show_timings(session, question)
            self._show_sql(_sql(question))

    def _load(self, corpus: Sequence[Entry], report: manage.Report) -> None:
        with Session(self._engine) as session:
            # Rows loaded in bulk get their words from the backfill.
            session.execute(text("SET LOCAL sqlvec.maintain = off"))
            for start in range(0, len(corpus), _BATCH):
                batch = corpus[start : start + _BATCH]
                session.execute(insert(self._tables.entry), [asdict(entry) for entry in batch])
                report(manage.Progress("loading", start + len(batch), len(corpus)))
            session.commit()

    def _search(self, session: Session, question: str) -> list[tuple[Any, float, str]]:
        entry = self._tables.entry
        passage = functions.bm25_headline(entry, "body", question, _HEADLINE)
        found = session.execute(bm25_search(entry, question, k=HITS).add_columns(passage))
        return [(row[0], row[1], row[2]) for row in found]

    def _show_hits(self, hits: Sequence[tuple[Any, float, str]]) -> None:
        shown = Table(box=None, pad_edge=False, header_style="dim")
        shown.add_column("score", justify="right", no_wrap=True)
        shown.add_column("entry", no_wrap=True)
        shown.add_column("documentation")
        for entry, score, passage in hits:
            shown.add_row(f"{score:.2f}", escape(entry.name), _marked(passage))
        self._console.print(shown)

    def _show_nothing(self, session: Session, question: str) -> None:
        # Stop words and exclusions alone are no condition.
        condition = functions.bm25_tsquery(self._tables.entry.__table__, _CODE, question)
        if session.scalar(select(condition)) is None:
            self._console.print("[dim]nothing matches: the query asks for nothing[/dim]")
        else:
            self._console.print("[dim]nothing matches[/dim]")

    def _show_timings(self, session: Session, question: str) -> None:
        ways = {
            "BM25": lambda: session.execute(
                bm25_search(self._tables.entry, question, k=HITS)
            ).all(),
            "ts_rank_cd": lambda: session.execute(_TS_RANK, {"question": question}).all(),
        }
        parts = [f"{title} {median_milliseconds(way):.1f} ms" for title, way in ways.items()]
        self._console.print(f"[dim]median of {REPEATS}: {' · '.join(parts)}[/dim]")

    def _show_statistics(self) -> None:
        (health,) = manage.bm25_health(self._engine, _TABLE)
        self._console.print(
            f"{health.documents or 0:,} entries of {health.avgdl or 0:.1f} words,"
            f" {health.terms or 0:,} different ones\n"
            "[dim]At this size every way to search is fast;"
            " python -m benchmarks bm25 compares them on 100,000 rows and more.[/dim]\n"
            'In a query, "phrases", +required, -excluded and prefix* work.'
        )


def _marked(passage: str) -> Text:
    """Return a passage on one line, its marks turned into bold type."""
    start, stop = _MARKS
    shown = Text()
    for number, part in enumerate(" ".join(passage.split()).split(start)):
        word, _, rest = part.partition(stop) if number else ("", "", part)
        shown.append(word, style="bold yellow").append(rest)
    return shown


def _sql(question: str) -> str:
    quoted = "'" + question.replace("'", "''") + "'"
    return (
        "SELECT round(score::numeric, 2) AS score, (hit).name,\n"
        f"       sqlvec.bm25_headline(hit, 'body', {quoted})\n"
        f"FROM sqlvec.bm25_search(NULL::{_TABLE}, '{_CODE}', {quoted}, k => {HITS});"
    )
