"""What queries are measured against, and what can be learnt from it without judgements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm
from sklearn.cluster import MiniBatchKMeans

from sqlvec.errors import FittingError
from sqlvec.fit.relevance import Examples, one_thread
from sqlvec.relevance import Background, Floats

_SMALLEST_CLUSTER = 5
"""Rows in a centroid: of fewer it would show too much, and say too little."""


def fit_background(
    rows: ArrayLike,
    queries: ArrayLike,
    *,
    centroids: int = 128,
    directions: int = 32,
    seed: int = 0,
) -> Background:
    """Return what query vectors are to be measured against.

    :param rows: vectors of a sample of the table (n, d); a few thousand are plenty.
    :param queries: vectors of the queries that the model will be fitted on (m, d).
    :param centroids: at most so many, and one for twenty rows; those of fewer than five rows are
        left out.
    :param directions: principal components of the queries, at most one for four of them.
    :raises FittingError: too few rows or queries.
    """
    sample = _unit(rows)
    asked = _unit(queries)
    if len(sample) < 20 or len(asked) < 4:
        raise FittingError(
            "a model of the vector leg needs 20 rows and 4 queries that are not the zero vector;"
            f" found {len(sample)} rows and {len(asked)} queries"
        )
    count = max(1, min(centroids, len(sample) // 20))
    with one_thread():
        means = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=2048).fit(sample)
    sizes = np.bincount(means.labels_, minlength=count)
    kept = sizes >= _SMALLEST_CLUSTER
    spread = asked - asked.mean(axis=0)
    components = np.linalg.svd(spread, full_matrices=False)[2]
    count = max(1, min(directions, len(asked) // 4, asked.shape[1]))
    return Background.of(means.cluster_centers_[kept], sizes[kept], components[:count])


def unanswerable(
    background: Background, rows: ArrayLike, count: int, *, candidates: int = 100, seed: int = 0
) -> Examples:
    """Return queries that ask for nothing: random directions, none of whose candidates is relevant.

    All judged queries have an answer. A model that has seen no others learns that the best row of
    a query is relevant however far away it is, and so answers questions about quite other matters.

    :param rows: vectors of a sample of the table (n, d).
    :param count: as many as there are judged queries do.
    :param candidates: best rows of the sample to take for each.
    """
    sample = _unit(rows)
    queries = _unit(np.random.default_rng(seed).normal(size=(count, sample.shape[1])))
    best = -np.sort(-(queries @ sample.T), axis=1)[:, :candidates]
    none = np.zeros_like(best)
    return Examples.of_lists(background.features(queries), list(best), list(none))


def background_labels(
    candidates: Sequence[ArrayLike], random_rows: Sequence[ArrayLike], rows: int
) -> list[Floats]:
    """Return how probably each candidate is more than chance, from scores alone.

    The scores of random rows of the table are the background of a query. Of n rows, about
    n * P(background > x) reach a score x by chance; where r candidates do, the share of chance
    among them is the ratio of the two (tail-area false discovery rate: Benjamini and Hochberg
    1995; Efron 2010), and the rest is the label. The background is taken as normal. Labels can go
    into :func:`~sqlvec.fit.relevance.fit_leg`; they say that a row is about the query's matter,
    not that it answers it.

    :param candidates: scores of the best rows of each query, best first.
    :param random_rows: scores of random rows for each query, some hundreds.
    :param rows: of the table.
    """
    labels = []
    for best, chance in zip(candidates, random_rows, strict=True):
        scores = np.asarray(best, dtype=np.float64)
        sample = np.asarray(chance, dtype=np.float64)
        spread = sample.std()
        if spread == 0:
            raise FittingError("the scores of random rows are all the same")
        by_chance = rows * norm.sf((scores - sample.mean()) / spread)
        share = np.minimum(by_chance / np.arange(1, len(scores) + 1), 1)
        # No worse score may look less like chance than a better one.
        labels.append(1 - np.maximum.accumulate(share))
    return labels


def _unit(vectors: ArrayLike) -> Floats:
    values = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    kept = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    result: Floats = values[kept] / norms[kept]
    return result
