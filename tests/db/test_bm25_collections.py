"""sqlvec.bm25_search on real collections with judgements, where they are at hand."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import psycopg
import pytest

from tests.db import documents
from tests.db.documents import Analyzer, Index, Statistics

DATA = Path(os.environ.get("SQLVEC_DATA") or Path(__file__).parents[3] / "shared" / "data")
COLLECTIONS = sorted(path.parent.name for path in DATA.glob("*/corpus.jsonl.gz"))


@dataclass
class Collection:
    """Documents numbered from 1, queries, and the grades of documents by query."""

    name: str
    texts: list[str]
    queries: list[str]
    grades: list[dict[int, int]]

    @property
    def table(self) -> str:
        """Name of a table for it."""
        return self.name.replace("-", "_")

    @classmethod
    def load(cls, name: str) -> Collection:
        with gzip.open(DATA / name / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
            corpus = [json.loads(line) for line in lines]
        with open(DATA / name / "queries.jsonl", encoding="utf-8") as lines:
            asked = [json.loads(line) for line in lines]
        numbers = {each["_id"]: number for number, each in enumerate(corpus, 1)}
        grades: dict[str, dict[int, int]] = {}
        with open(DATA / name / "qrels.tsv", encoding="utf-8") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                mine = grades.setdefault(row["query-id"], {})
                mine[numbers[row["corpus-id"]]] = int(row["score"])
        return cls(
            name,
            [f"{each.get('title') or ''} {each['text']}".strip() for each in corpus],
            # What would be an operator is read as a space: this is about ranking.
            [re.sub(r'["*]|(?<!\S)[+-]+', " ", each["text"]) for each in asked],
            [grades[each["_id"]] for each in asked],
        )

    def ndcg(self, rankings: Sequence[Sequence[int]]) -> float:
        """Return the mean nDCG@10 with linear gain, as trec_eval computes it."""
        values = []
        for grades, ranking in zip(self.grades, rankings, strict=True):
            ideal = sorted(grades.values(), reverse=True)
            found = [grades.get(key, 0) for key in ranking]
            values.append(_gain(found) / _gain(ideal))
        return float(np.mean(values))


def _gain(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(rank + 2) for rank, grade in enumerate(grades[:10]))


@pytest.fixture(scope="module", params=COLLECTIONS or [""])
def collection(request: pytest.FixtureRequest, db: psycopg.Connection[Any]) -> Collection:
    """Load a collection into a table with BM25."""
    if not request.param:
        pytest.skip(f"no collections in {DATA}")
    collection = Collection.load(request.param)
    table = collection.table
    db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text)")
    with db.cursor().copy(f"COPY {table} (id, body) FROM STDIN") as copy:
        for row in enumerate(collection.texts, 1):
            copy.write_row(row)
    db.execute(f"CALL sqlvec.add_bm25('{table}', 'body')")
    db.execute(f"CALL sqlvec.backfill('{table}')")
    db.execute(f"CALL sqlvec.analyze_bm25('{table}', drift => 0)")
    db.execute(f"VACUUM ANALYZE {table}")
    return collection


@pytest.fixture(scope="module")
def db(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def rankings(collection: Collection, db: psycopg.Connection[Any]) -> list[list[tuple[int, float]]]:
    return [
        db.execute(
            f"SELECT (hit).id, score FROM sqlvec.bm25_search(NULL::{collection.table}, 'body', %s)",
            [query],
        ).fetchall()
        for query in collection.queries
    ]


def test_equal_to_brute_force(
    collection: Collection,
    db: psycopg.Connection[Any],
    rankings: list[list[tuple[int, float]]],
) -> None:
    stored = documents.read(db, collection.table)
    statistics = Statistics.of(stored.values())
    index = Index(stored, statistics.avgdl)
    analyzer = Analyzer(db, "english")
    for query, found in zip(collection.queries, rankings, strict=True):
        documents.check(found, index.scores(analyzer.words(query), statistics), k=10)


def test_as_good_as_bm25s(
    collection: Collection,
    db: psycopg.Connection[Any],
    rankings: list[list[tuple[int, float]]],
) -> None:
    """The same lexemes, ranked by another implementation."""
    stored = documents.read(db, collection.table)
    keys = list(stored)
    reference = bm25s.BM25(method="lucene", k1=documents.K1, b=documents.B)
    reference.index([_tokens(stored[key].counts) for key in keys], show_progress=False)
    analyzer = Analyzer(db, "english")
    expected = []
    for query in collection.queries:
        scores = reference.get_scores([lexeme for _, lexeme in analyzer.phrase(query)])
        order = np.lexsort((keys, -scores))[:10]
        expected.append([keys[place] for place in order if scores[place] > 0])
    mine = collection.ndcg([[key for key, _ in found] for found in rankings])
    theirs = collection.ndcg(expected)
    print(f"{collection.name}: nDCG@10 {mine:.4f}, bm25s {theirs:.4f}")
    assert abs(mine - theirs) <= 0.002


def _tokens(counts: Mapping[str, float]) -> list[str]:
    return [lexeme for lexeme, count in counts.items() for _ in range(int(count))]
