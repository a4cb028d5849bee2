"""Documents for tests: as the server stored their lexemes, ranked by brute force."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg

K1, B = 1.2, 0.75
TOLERANCE = 1e-4

Phrase = tuple[tuple[int, str], ...]
"""Lexemes with their distance to the first one."""


@dataclass(frozen=True, slots=True)
class Document:
    """One tsvector: weighted number and positions of every lexeme."""

    counts: Mapping[str, float]
    positions: Mapping[str, frozenset[int]]

    def holds(self, phrase: Phrase) -> bool:
        """Tell whether the lexemes of a phrase stand at their distances."""
        (_, first), *rest = phrase
        return any(
            all(start + distance in self.positions.get(lexeme, ()) for distance, lexeme in rest)
            for start in self.positions.get(first, ())
        )


def read(
    connection: psycopg.Connection[Any],
    table: str,
    terms: str = "body_bm25_tsv",
    labels: Mapping[str, float] | None = None,
) -> dict[int, Document]:
    """Return the documents of a table by id, without those whose tsvector is NULL.

    :param terms: a column or expression, which may hold the marks of sqlvec beside the lexemes.
    :param labels: weights of the labels A to D; 1 for those not given.
    """
    weight = dict.fromkeys("ABCD", 1.0) | dict(labels or {})
    counts: dict[int, dict[str, float]] = {}
    positions: dict[int, dict[str, frozenset[int]]] = {}
    statement = (
        f"SELECT t.id, e.lexeme, e.positions, e.weights FROM {table} AS t"
        f" LEFT JOIN unnest({terms}) AS e ON e.lexeme >= ' ' WHERE {terms} IS NOT NULL"
    )
    for key, lexeme, places, marks in connection.execute(statement):
        mine, mine_at = counts.setdefault(key, {}), positions.setdefault(key, {})
        if lexeme is not None:
            mine[lexeme] = sum(weight[mark] for mark in marks) if places else weight["D"]
            mine_at[lexeme] = frozenset(places or ())
    return {key: Document(counts[key], positions[key]) for key in counts}


@dataclass(frozen=True)
class Statistics:
    """What analyze_bm25 finds in documents."""

    documents: int
    avgdl: float
    frequencies: Mapping[str, int]

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Statistics:
        """Count all documents."""
        counted = list(documents)
        lengths = [sum(document.counts.values()) for document in counted]
        frequencies = Counter(lexeme for document in counted for lexeme in document.counts)
        return cls(len(counted), sum(lengths) / len(lengths) if lengths else 0.0, frequencies)

    def weights(self, query: Query, index: Index) -> dict[str, float]:
        """Return idf times occurrences of every word; what was not there is counted now."""
        weights = {}
        for lexeme, times in query.scored.items():
            df = self.frequencies.get(lexeme) or len(index.postings.get(lexeme, ()))
            # A word does not stand in more documents than there are, however old the count.
            n = max(self.documents or len(index.documents), df)
            weights[lexeme] = times * math.log(1 + (n - df + 0.5) / (df + 0.5))
        return weights


class Index:
    """The weights that documents should have in the database.

    :param avgdl: the mean length that the weights are made for.
    """

    def __init__(
        self, documents: Mapping[int, Document], avgdl: float, k1: float = K1, b: float = B
    ) -> None:
        self.documents = documents
        self.postings: dict[str, dict[int, float]] = {}
        for key, document in documents.items():
            length = sum(document.counts.values())
            normal = k1 * (1 - b + b * length / avgdl) if length else 0.0
            for lexeme, tf in document.counts.items():
                weight = float(np.float32(tf * (k1 + 1) / (tf + normal)))
                self.postings.setdefault(lexeme, {})[key] = weight

    def scores(
        self,
        query: Query,
        statistics: Statistics,
        keep: Callable[[int], bool] = lambda key: True,
    ) -> dict[int, float]:
        """Return the scores of the documents that match and are kept, best first, then by id."""
        scores: dict[int, float] = {}
        for lexeme, factor in statistics.weights(query, self).items():
            for key, weight in self.postings.get(lexeme, {}).items():
                scores[key] = scores.get(key, 0.0) + factor * weight
        found = [
            (score, key)
            for key, score in scores.items()
            if keep(key) and query.matches(self.documents[key])
        ]
        return {key: score for score, key in sorted(found, key=lambda each: (-each[0], each[1]))}


@dataclass(frozen=True)
class Query:
    """A text to search for and what it asks.

    :param scored: lexemes with the number of times they stand in the query.
    :param optional: lexemes of which a document needs one, unless something is required.
    """

    text: str
    scored: Mapping[str, int]
    optional: frozenset[str] = frozenset()
    required: tuple[Phrase, ...] = ()
    excluded: tuple[Phrase, ...] = ()

    def matches(self, document: Document) -> bool:
        """Tell whether a document may be found at all."""
        return (
            all(map(document.holds, self.required))
            and not any(map(document.holds, self.excluded))
            and (bool(self.required) or not self.optional.isdisjoint(document.counts))
        )


@dataclass
class Analyzer:
    """A text search configuration of the server.

    :param config: its name.
    """

    connection: psycopg.Connection[Any]
    config: str
    _known: dict[str, Phrase] = field(default_factory=dict, repr=False)

    def phrase(self, text: str) -> Phrase:
        """Return the lexemes of a text with their distances."""
        if text not in self._known:
            rows = self.connection.execute(
                "SELECT p, lexeme FROM unnest(to_tsvector(%s::regconfig, %s)), unnest(positions) AS p"
                " ORDER BY p, lexeme",
                [self.config, text],
            ).fetchall()
            self._known[text] = tuple((place - rows[0][0], lexeme) for place, lexeme in rows)
        return self._known[text]

    def words(self, text: str) -> Query:
        """Return the query of a text that holds words only."""
        scored = Counter(lexeme for _, lexeme in self.phrase(text))
        return Query(text, scored, frozenset(scored))

    def query(self, parts: Sequence[tuple[str, Sequence[str]]]) -> Query:
        """Return the query that signs (``+``, ``-`` or nothing) and words make up.

        Several words are a phrase.
        """
        texts: list[str] = []
        scored: Counter[str] = Counter()
        optional: set[str] = set()
        required: list[Phrase] = []
        excluded: list[Phrase] = []
        for sign, words in parts:
            text = " ".join(words)
            texts.append(f'{sign}"{text}"' if len(words) > 1 else f"{sign}{text}")
            phrase = self.phrase(text)
            if not phrase:
                continue
            if sign == "-":
                excluded.append(phrase)
                continue
            scored.update(lexeme for _, lexeme in phrase)
            if sign == "+" or len(words) > 1:
                required.append(phrase)
            else:
                optional.update(lexeme for _, lexeme in phrase)
        return Query(" ".join(texts), scored, frozenset(optional), tuple(required), tuple(excluded))


def check(found: Sequence[tuple[int, float]], scores: Mapping[int, float], k: int) -> None:
    """Require the k best of all scores, in order; equal scores may stand in any order.

    :param scores: of all documents that match, best first.
    """
    best = list(scores.values())[:k]
    keys = [key for key, _ in found]
    assert len(found) == len(best), (found, list(scores.items())[: k + 1])
    assert len(set(keys)) == len(keys)
    assert set(keys) <= set(scores)
    given = np.array([score for _, score in found])
    assert np.all(abs(given - np.array(best)) <= TOLERANCE), (found, list(scores.items())[:k])
    assert np.all(abs(given - np.array([scores[key] for key in keys])) <= TOLERANCE)
