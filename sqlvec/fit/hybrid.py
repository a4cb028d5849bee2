"""Candidates of hybrid searches, and relevance models fitted to them.

In a hybrid search every candidate has the scores of all legs: what a leg has not given is computed.
A model that combines legs is therefore fitted to such candidates, not to lists with holes.

E.g.::

    columns = {"vector": "embedding", "text": "body"}
    found = collect(connection, "doc", columns, {"vector": vectors, "text": words}, key="id")
    fits = fit_hybrid(found, labels)
    fits["fused"].model, fits["vector"].model, fits["text"].model
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sqlalchemy import Connection, text

from sqlvec.fit.relevance import RECALLS, Examples, Fit, fit_fused, fit_leg
from sqlvec.relevance import Background, Floats, score_features


@dataclass(frozen=True, slots=True)
class HybridCandidates:
    """What hybrid searches found for q queries, as flat lists of m candidates."""

    query: NDArray[np.intp]
    """Number of the query of each candidate (m,), from 0."""

    rows: list[str]
    """Key of each candidate."""

    x: Mapping[str, Floats]
    """By leg, cosine or share of the best possible score (m,); NaN where it knows nothing of it."""

    features: Mapping[str, Floats]
    """What is known of each query, by leg: (q, 2) of text and tokens, of the vector leg itself."""

    def of_queries(self, chosen: NDArray[np.bool_]) -> Self:
        """Return the part of some queries, numbered anew."""
        kept = chosen[self.query]
        number = np.cumsum(chosen) - 1
        return replace(
            self,
            query=number[self.query[kept]],
            rows=[row for row, own in zip(self.rows, kept, strict=True) if own],
            x={leg: x[kept] for leg, x in self.x.items()},
            features={leg: known[chosen] for leg, known in self.features.items()},
        )


def collect(
    connection: Connection,
    table: str,
    columns: Mapping[str, str],
    queries: Mapping[str, Sequence[str]],
    *,
    key: str,
    candidates: int = 100,
) -> HybridCandidates:
    """Search every query and return the best rows of each leg with the scores of all legs.

    :param table: its name as in SQL.
    :param columns: by leg, ``vector``, ``text`` and ``tokens``, the column that is searched.
    :param queries: by leg, what each query asks of it: words, or a literal of the type.
    :param key: the column that tells rows apart.
    :param candidates: rows that each leg gives.
    """
    schema = connection.scalar(text("SELECT pg_catalog.quote_ident(sqlvec._vector_schema())"))
    search, facts = (_STATEMENTS[part].format(table=table, schema=schema) for part in (0, 1))
    values = {f"{leg}_column": columns.get(leg) for leg in ("text", "vector", "tokens")}
    values |= {"key": key, "k": str(candidates)}
    # Where one leg has nearly all the weight, its own best rows are answered. Without any weight a
    # leg would not be asked.
    weights = [json.dumps({leg: 1 if leg == best else 1e-9 for leg in columns}) for best in columns]
    lists, known = [], []
    for parts in zip(*queries.values(), strict=True):
        asked = dict.fromkeys(("text", "vector", "tokens")) | dict(zip(queries, parts, strict=True))
        found: dict[str, Any] = {}
        for own in weights:
            rows = connection.execute(text(search), values | asked | {"weights": own})
            found |= {row[0]: row for row in rows}
        lists.append(list(found.values()))
        known.append(connection.execute(text(facts), values | asked).one())
    maximum, terms, count = np.array(known, dtype=np.float64).T
    query = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists])
    flat = [row for rows in lists for row in rows]
    scores = np.array([row[1:] for row in flat], dtype=np.float64).reshape(-1, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = {
            "vector": 1 - scores[:, 0],
            # A text score of 0 says that the leg does not know the row.
            "text": np.where(scores[:, 1] > 0, scores[:, 1] / maximum[query], np.nan),
            "tokens": scores[:, 2] / count[query],
        }
    features = {"text": score_features(maximum, terms), "tokens": score_features(count)}
    if "vector" in columns:
        features["vector"] = np.array([q.strip("[]").split(",") for q in queries["vector"]], float)
    return HybridCandidates(
        query,
        [row[0] for row in flat],
        {leg: x[leg] for leg in columns},
        {leg: features[leg] for leg in columns},
    )


_STATEMENTS = (
    """
    SELECT key, vector_distance, text_score, tokens_score
    FROM sqlvec.hybrid_search_keys(NULL::{table}, NULL::text, CAST(:text AS text),
        CAST(CAST(:vector AS text) AS {schema}.vector),
        CAST(CAST(:tokens AS text) AS {schema}.halfvec[]), k => CAST(:k AS int),
        candidates => CAST(:k AS int), fusion => 'convex', weights => CAST(:weights AS jsonb),
        metric => CASE WHEN CAST(:vector_column AS text) IS NOT NULL THEN 'cosine' END,
        text_column => CAST(:text_column AS text), vector_column => CAST(:vector_column AS text),
        tokens_column => CAST(:tokens_column AS text), key_column => CAST(:key AS text))
    """,
    """
    SELECT CASE WHEN asked.words IS NOT NULL
                THEN sqlvec.bm25_maximum(NULL::{table}, asked.own, asked.words) END,
           CASE WHEN asked.words IS NOT NULL
                THEN sqlvec._words(sqlvec.bm25_tsquery(NULL::{table}, asked.own, asked.words)) END,
           cardinality(CAST(CAST(:tokens AS text) AS {schema}.halfvec[]))
    FROM (SELECT CAST(:text AS text) AS words, CAST(:text_column AS text) AS own) AS asked
    """,
)


FAMILIES = {"vector": "raw", "text": "sqrt", "tokens": "linear"}
"""Families that ranked best where legs were combined."""


def fit_hybrid(
    found: HybridCandidates,
    label: ArrayLike,
    *,
    families: Mapping[str, str] = FAMILIES,
    background: Background | None = None,
    unanswerable: Examples | None = None,
    models: Mapping[str, str] | None = None,
    recalls: Sequence[float] = RECALLS,
    answered: float | None = None,
) -> dict[str, Fit]:
    """Fit a model of every leg, and the one that combines them, under ``fused``.

    :param label: 1 for relevant, 0 for not, of each candidate (m,).
    :param families: of the legs.
    :param background: of the vector leg, unless its family is ``raw``.
    :param unanswerable: queries that the vector leg learns from as well.
    :param models: names that the legs' models will have in the catalog.
    :param answered: as of :func:`~sqlvec.fit.relevance.fit_leg`.
    :raises FittingError: as of :func:`~sqlvec.fit.relevance.fit_leg`.
    """
    labels = np.asarray(label, dtype=np.float64)
    fits: dict[str, Fit] = {}
    relevance: dict[str, Floats] = {}
    for leg, x in found.x.items():
        features = found.features[leg]
        of_vector: dict[str, Any] = {}
        if leg == "vector":
            none = np.zeros((len(features), 0))
            features = none if background is None else background.features(features)
            of_vector = {"background": background, "unanswerable": unanswerable}
        usable = np.asarray(np.isfinite(features).all(axis=1))
        known = np.isfinite(x) & usable[found.query]
        examples = Examples(features, found.query[known], x[known], labels[known])
        examples = examples.of_queries(usable)
        fits[leg] = fit_leg(
            leg, examples, families[leg], recalls=recalls, answered=answered, **of_vector
        )
        relevance[leg] = np.full(len(x), np.nan)
        relevance[leg][known] = fits[leg].relevance
    fits["fused"] = fit_fused(
        relevance, found.query, labels, models=models, recalls=recalls, answered=answered
    )
    return fits
