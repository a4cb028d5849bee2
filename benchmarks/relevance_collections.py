"""Judged collections with the scores of every leg, for the benchmark of relevance models."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.folders import some_folders
from benchmarks.server import Connection
from sqlvec.fit.background import fit_background
from sqlvec.relevance import Background, score_features

MOST = 10_000
"""Rows of a query that have a score: all, in these collections."""

OFF_TOPIC = 100
"""Queries that each other collection asks."""

FOLDS = 5
TOGETHER = "together"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Leg:
    """Scores of one leg: of every row (q, n), NaN where it did not find the row."""

    name: str
    x: Floats
    known: Floats
    """Query vectors (q, d), or features of text and multi-vector queries (q, 2)."""


@dataclass(frozen=True, slots=True)
class Collection:
    """Judged queries with their scores."""

    name: str
    relevant: NDArray[np.bool_]
    rows: Floats
    legs: list[Leg]
    backgrounds: list[Background]
    """Of each fold, from the queries of the others."""

    off_topic: dict[str, Leg] = field(default_factory=dict)
    """Queries of other collections by leg; there are none of the multi-vector leg."""

    @classmethod
    def of(
        cls,
        name: str,
        relevant: NDArray[np.bool_],
        rows: Floats,
        legs: list[Leg],
        off_topic: Iterable[Leg] = (),
    ) -> Self:
        """Return a collection with its backgrounds."""
        asked = legs[0].known
        backgrounds = [fit_background(rows, asked[~fold]) for fold in folds(len(asked))]
        others = {leg.name: leg for leg in off_topic}
        return cls(name, relevant, rows, legs, backgrounds, others)


@dataclass(frozen=True, slots=True)
class Queries:
    """What is asked of a collection, or a sample of it."""

    texts: list[str]
    vectors: Floats

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Read all queries of a collection."""
        lines = (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
        vectors = unit(np.load(folder / "query_emb.npy"))
        return cls([json.loads(line)["text"] for line in lines], vectors)

    def sample(self) -> Self:
        """Return :data:`OFF_TOPIC` of them."""
        chosen = np.sort(np.random.default_rng(1).permutation(len(self.texts))[:OFF_TOPIC])
        return type(self)([self.texts[i] for i in chosen], self.vectors[chosen])


def load(connection: Connection, names: list[str] | None) -> list[Collection]:
    """Return the collections of sentence vectors, with the queries of all others."""
    found = [folder for folder in some_folders("qrels.tsv") if (folder / "doc_emb.npy").exists()]
    if names:
        found = [folder for folder in found if folder.name in names]
    # scifact-mv800 is a part of scifact: neither is off topic in the other, nor asked twice.
    asked = {
        folder.name: Queries.of_folder(folder).sample()
        for folder in found
        if "-mv800" not in folder.name
    }
    return [
        _load(
            connection, folder, [q for name, q in asked.items() if not folder.name.startswith(name)]
        )
        for folder in found
    ]


def folds(count: int) -> Iterator[NDArray[np.bool_]]:
    """Yield which queries are held out, fold by fold."""
    number = np.random.default_rng(0).permutation(count) % FOLDS
    for fold in range(FOLDS):
        yield number == fold


def together(collections: list[Collection], foreign: Floats) -> Collection:
    """Put everything into one table, as an application with several sources has it.

    :param foreign: vectors of queries that none of them answers.
    """
    rows = np.concatenate([collection.rows for collection in collections])
    asked = np.concatenate([collection.legs[0].known for collection in collections])
    relevant = np.zeros((len(asked), len(rows)), dtype=bool)
    query = row = 0
    for collection in collections:
        height, width = collection.relevant.shape
        relevant[query : query + height, row : row + width] = collection.relevant
        query, row = query + height, row + width
    off_topic = [Leg("vector", foreign @ rows.T, foreign)] if len(foreign) else []
    legs = [Leg("vector", asked @ rows.T, asked)]
    return Collection.of(TOGETHER, relevant, rows, legs, off_topic)


def _load(connection: Connection, folder: Path, others: list[Queries]) -> Collection:
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    query_lines = (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    queries = [json.loads(line) for line in query_lines]
    row_of = {document["_id"]: i for i, document in enumerate(documents)}
    query_of = {query["_id"]: i for i, query in enumerate(queries)}
    relevant = np.zeros((len(queries), len(documents)), dtype=bool)
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, _ = line.split("\t")
        relevant[query_of[query], row_of[document]] = True
    rows = unit(np.load(folder / "doc_emb.npy"))
    own = Queries.of_folder(folder)
    bodies = [f"{document.get('title', '')} {document['text']}".strip() for document in documents]
    _index(connection, folder.name, bodies)
    legs, off_topic = (
        [
            Leg("vector", some.vectors @ rows.T, some.vectors),
            _text_leg(connection, folder.name, len(rows), some.texts),
        ]
        for some in (own, _joined(others, rows.shape[1]))
    )
    if (folder / "doc_tokens.npy").exists():
        legs.append(_tokens_leg(folder))
    return Collection.of(folder.name, relevant, rows, legs, off_topic if others else [])


def _joined(some: list[Queries], dimensions: int) -> Queries:
    vectors = [np.zeros((0, dimensions)), *(queries.vectors for queries in some)]
    return Queries([text for queries in some for text in queries.texts], np.concatenate(vectors))


def _index(connection: Connection, name: str, bodies: list[str]) -> None:
    # Named after the collection: sqlvec takes the type of the table as an argument.
    connection.execute(f'CREATE TABLE "{name}" (id int PRIMARY KEY, body text)')
    with connection.cursor().copy(f'COPY "{name}" FROM STDIN') as copy:
        for row in enumerate(bodies):
            copy.write_row(row)
    for call in ("add_bm25(%s, 'body')", "backfill(%s)", "analyze_bm25(%s)"):
        connection.execute(f"CALL sqlvec.{call}", [f'"{name}"'])


def _text_leg(connection: Connection, name: str, rows: int, queries: list[str]) -> Leg:
    x = np.full((len(queries), rows), np.nan)
    known = np.full((len(queries), 2), np.nan)
    for number, query in enumerate(queries):
        maximum, terms = connection.execute(
            f"""SELECT sqlvec.bm25_maximum(NULL::"{name}", 'body', %(q)s),
                (numnode(sqlvec.bm25_tsquery(NULL::"{name}", 'body', %(q)s)) + 1) / 2""",
            {"q": query},
        ).fetchone() or (0, 0)
        if not maximum:
            continue
        known[number] = score_features([maximum], [terms])[0]
        found = connection.execute(
            f"""SELECT key, score FROM
                sqlvec.bm25_search_keys(NULL::"{name}", 'body', %s, key => NULL::int, k => %s)""",
            (query, MOST),
        ).fetchall()
        for row, score in found:
            x[number, row] = score / maximum
    return Leg("text", x, known)


def _tokens_leg(folder: Path) -> Leg:
    rows = np.load(folder / "doc_tokens.npy").astype(np.float32)
    starts = np.load(folder / "doc_offsets.npy")[:-1]
    asked = np.load(folder / "query_tokens.npy").astype(np.float32)
    ends = np.load(folder / "query_offsets.npy")
    x = [
        np.maximum.reduceat(rows @ asked[a:b].T, starts).mean(axis=1)
        for a, b in zip(ends, ends[1:], strict=False)
    ]
    return Leg("tokens", np.array(x, dtype=np.float64), score_features(np.diff(ends)))


def unit(vectors: NDArray[Any]) -> Floats:
    """Return vectors of length 1."""
    values = vectors.astype(np.float64)
    result: Floats = values / np.linalg.norm(values, axis=1, keepdims=True)
    return result
