"""The tour of token vectors: load, backfill, index, ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlvec import manage
from sqlvec.demo.corpus import Entry
from sqlvec.demo.models import TokenModel
from sqlvec.demo.tables import SCHEMA, TokenTables
from sqlvec.demo.tour import HITS, REPEATS, Tour, median_milliseconds
from sqlvec.search import maxsim_search
from sqlvec.types.multivector import MultiVector
from sqlvec.types.psycopg import register_multivectors

_TABLE = f"{SCHEMA}.token_entry"
_CODE = "tokens_fde"
_COPY = (
    f"COPY {_TABLE} (id, name, kind, signature, body, tokens) FROM STDIN (FORMAT binary)",
    ["int4", "text", "text", "text", "text", "halfvec[]"],
)
_WAYS = {"encoding, rescored": "auto", "every row": "exact"}
"""Ways to answer, with the ``mode`` of ``maxsim_search`` that takes each."""

_SHORTEST_SUMMARY = 20


class MultiVectorDemo(Tour):
    """A database with the corpus in it, and answers by the vectors of single words.

    :param engine: the database, through psycopg; tables ``token_entry`` and ``token_question`` of
        schema ``sqlvec_demo`` are made anew.
    :param model: turns text into token vectors.
    :param console: where everything is shown.
    """

    def __init__(self, engine: Engine, model: TokenModel, console: Console) -> None:
        super().__init__(engine, console)
        self._model = model
        self._tables = TokenTables(model.token_dimensions)

    def prepare(self, corpus: Sequence[Entry]) -> None:
        """Load the corpus, fill the encoding, build its index."""
        if not self._model.fast:
            # Modules with their classes and functions, without methods.
            corpus = [entry for entry in corpus if entry.name.count(".") <= 1]
        self._create_tables(self._tables.metadata)
        with self._step("embed and load") as report:
            self._load(corpus, report)
        with self._step("backfill") as report:
            manage.backfill(self._engine, _TABLE, _CODE, progress=report)
        with self._step("index") as report:
            manage.create_index(self._engine, _TABLE, "tokens", _CODE, progress=report)
        self._analyze(_TABLE)
        self._show_sizes()

    def answer(self, question: str) -> None:
        """Search for a question; show the hits, the time each way takes, and the SQL."""
        with Session(self._engine) as session:
            tokens = self._model.encode_query(question)
            saved = self._tables.question(text=question, tokens=tokens)
            session.add(saved)
            session.commit()
            hits = self._search(session, saved.tokens, "auto")
            self._console.print(f"\n[bold]{escape(question)}[/bold]")
            self._show_hits(hits)
            self._show_timings(session, saved.tokens, {entry.id for entry, _ in hits})
            self._show_sql(_sql(saved.id))

    def _load(self, corpus: Sequence[Entry], report: manage.Report) -> None:
        with self._engine.begin() as connection:
            # Rows loaded in bulk get their codes from the backfill.
            connection.execute(text("SET LOCAL sqlvec.maintain = off"))
            driver: Any = connection.connection.driver_connection
            register_multivectors(driver)
            statement, types = _COPY
            with driver.cursor().copy(statement) as copy:
                copy.set_types(types)
                for number, (entry, tokens) in enumerate(self._embedded(corpus), 1):
                    copy.write_row(
                        (number, entry.name, entry.kind, entry.signature, entry.body, tokens)
                    )
                    report(manage.Progress("embedding", number, len(corpus)))

    def _embedded(self, corpus: Sequence[Entry]) -> Iterator[tuple[Entry, MultiVector]]:
        size = self._model.batch
        # Texts of like length together: models pad a batch to its longest.
        corpus = sorted(corpus, key=lambda entry: len(entry.body))
        for start in range(0, len(corpus), size):
            batch = corpus[start : start + size]
            vectors = self._model.encode_tokens([f"{entry.name}: {entry.body}" for entry in batch])
            yield from zip(batch, vectors, strict=True)

    def _search(
        self, session: Session, query: MultiVector, mode: str
    ) -> Sequence[tuple[Any, float]]:
        statement = maxsim_search(self._tables.entry, query, k=HITS, mode=mode)
        return [(entry, score) for entry, score in session.execute(statement)]

    def _show_hits(self, hits: Sequence[tuple[Any, float]]) -> None:
        shown = Table(box=None, pad_edge=False, header_style="dim")
        shown.add_column("score", justify="right", no_wrap=True)
        shown.add_column("entry", no_wrap=True)
        shown.add_column("documentation", no_wrap=True)
        longest = max((len(entry.name) for entry, _ in hits), default=0)
        width = max(_SHORTEST_SUMMARY, self._console.width - longest - 12)
        for entry, score in hits:
            summary = shorten(entry.body.split("\n\n")[0], width, placeholder="…")
            shown.add_row(f"{score:.2f}", escape(entry.name), escape(summary))
        self._console.print(shown)

    def _show_timings(self, session: Session, query: MultiVector, best: set[int]) -> None:
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

    def _show_sizes(self) -> None:
        statement = text(f"""
            SELECT count(*), sum(cardinality(tokens)),
                   (SELECT pg_catalog.pg_relation_size(i.indexrelid)
                    FROM pg_catalog.pg_index AS i
                    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
                    JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'hnsw'
                    WHERE i.indrelid = CAST(:table AS regclass))
            FROM {_TABLE}
        """)
        with self._engine.connect() as connection:
            entries, tokens, size = connection.execute(statement, {"table": _TABLE}).one()
        dimensions = self._model.token_dimensions
        self._console.print(
            f"{entries:,} entries of {tokens / entries:.1f} tokens × {dimensions} dimensions"
            f" ({tokens * dimensions * 2 / 1e6:.1f} MB), index {size / 1e6:.1f} MB"
        )


def _sql(question: int) -> str:
    return (
        "SELECT round(score::numeric, 2) AS score, (hit).name\n"
        f"FROM sqlvec.maxsim_search(NULL::{_TABLE}, 'tokens',\n"
        f"    (SELECT tokens FROM {SCHEMA}.token_question WHERE id = {question}), k => {HITS});"
    )
