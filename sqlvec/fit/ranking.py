"""How well candidates are ranked, by graded judgements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

TOP = 10


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over queries; one for which nothing was found counts as 0."""

    ndcg: float
    """nDCG@10 with the grade as gain."""

    average_precision: float
    """Mean average precision over the candidates."""

    found: float
    """Share of the relevant rows of each query that are among its candidates."""

    @classmethod
    def of_candidates(
        cls,
        relevance: ArrayLike,
        queries: Sequence[str],
        rows: Sequence[str],
        judgements: Mapping[str, Mapping[str, float]],
        asked: Iterable[str],
    ) -> Self:
        """Return the quality of candidates in the order of their relevance, as they come on a tie.

        :param relevance: of each candidate (m,).
        :param queries: key of the query of each candidate.
        :param rows: key of each candidate.
        :param judgements: grades, above 0 for relevant.
        :param asked: keys of all queries that were searched; those without a relevant row are
            left out.
        """
        grades: dict[str, list[float]] = {}
        scores = np.asarray(relevance, dtype=np.float64)
        for number in np.argsort(-scores, kind="stable"):
            query = queries[number]
            grades.setdefault(query, []).append(judgements[query].get(rows[number], 0))
        figures = []
        for query in dict.fromkeys(asked):
            ideal = np.sort([grade for grade in judgements[query].values() if grade > 0])[::-1]
            if len(ideal):
                figures.append(_figures(np.array(grades.get(query, []), dtype=np.float64), ideal))
        means = np.mean(figures, axis=0) if figures else np.full(3, np.nan)
        return cls(*map(float, means))


def _figures(gains: np.ndarray, ideal: np.ndarray) -> tuple[float, float, float]:
    discount = 1 / np.log2(np.arange(TOP) + 2)
    top, best = np.maximum(gains[:TOP], 0), ideal[:TOP]
    ndcg = (top * discount[: len(top)]).sum() / (best * discount[: len(best)]).sum()
    hits = np.flatnonzero(gains > 0)
    precision = (np.arange(len(hits)) + 1) / (hits + 1)
    return float(ndcg), float(precision.sum() / len(ideal)), len(hits) / len(ideal)
