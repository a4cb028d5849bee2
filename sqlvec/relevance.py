"""Relevance models: scores mapped to calibrated probabilities, in numpy as on the server.

A score x of a query maps to ``sigmoid(a * sign(x) * |x| ** k + b)``, where a > 0, b and k depend on
the query alone: the *Cosine Adapter* of Rossi et al. (CIKM 2024, arXiv:2408.04887). A linear map of
what is known of the query gives them. Of a query vector that is how it lies among the rows (mean,
spread and soft maxima of its cosines to centroids of the rows) and its cosines to the directions in
which queries differ most; of a text or multi-vector query, its best possible score and its length.

:mod:`sqlvec.fit.relevance` makes models; ``sqlvec.relevance`` and its like apply them in SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sqlalchemy import Connection, text

from sqlvec.encoders.base import checked_vectors
from sqlvec.encoders.integer_parts import vector_parts
from sqlvec.errors import DeclarationError, EncodingError

Floats = NDArray[np.float64]

EXPONENTS: Final[Mapping[str, float | None]] = {
    "raw": 1.0,
    "linear": 1.0,
    "sqrt": 0.5,
    "quadratic": 2.0,
    "power": None,
}
"""Families of the map with their k. ``raw`` has one a and one b for all queries, which puts a
probability on a score and changes nothing else; ``power`` fits k, between 0.1 and 2, too."""

LEGS: Final = ("vector", "text", "tokens")
"""What a search may ask, in the order in which a fused model combines it."""

_ROW_NORM = 4000
_SATURATED = 36.0
"""Beyond it, a sigmoid in float64 is 0 or 1 for all purposes."""


def logistic(x: ArrayLike) -> Floats:
    """Return 1 / (1 + exp(-x)), of x between -36 and 36."""
    result: Floats = 1 / (1 + np.exp(-np.clip(x, -_SATURATED, _SATURATED)))
    return result


def logit(p: ArrayLike) -> Floats:
    """Return the inverse of :func:`logistic`, finite for 0 and 1 as well."""
    p = np.asarray(p, dtype=np.float64)
    result: Floats = np.log(np.maximum(p, 2.3e-16) / np.maximum(1 - p, 2.3e-16))
    return result


def softplus(x: ArrayLike) -> Floats:
    """Return ln(1 + exp(x))."""
    x = np.asarray(x, dtype=np.float64)
    result: Floats = np.maximum(x, 0) + np.log(1 + np.exp(-np.minimum(np.abs(x), _SATURATED)))
    return result


@dataclass(frozen=True, slots=True)
class Curve:
    """The maps of n queries, three numbers for each; NaN for a query without a direction."""

    slope: Floats
    intercept: Floats
    exponent: Floats

    def relevance(self, x: ArrayLike) -> Floats:
        """Return the relevance of scores.

        :param x: cosines, or shares of the best possible score: (n,), or (n, m) for m rows each.
        """
        scores = np.asarray(x, dtype=np.float64)
        a, b, k = (
            value.reshape(value.shape + (1,) * (scores.ndim - value.ndim))
            for value in (self.slope, self.intercept, self.exponent)
        )
        return logistic(a * np.sign(scores) * np.clip(np.abs(scores), 1e-100, 10) ** k + b)

    def inverse(self, min_relevance: float) -> Floats:
        """Return the score of each query at which relevance reaches a value.

        -inf where every score reaches it, inf where none does.

        :raises DeclarationError: not a probability.
        """
        if not 0 <= min_relevance <= 1:
            raise DeclarationError(f"min_relevance is from 0 to 1, not {min_relevance}")
        if min_relevance <= logistic(-_SATURATED):
            return np.full(self.slope.shape, -np.inf)
        if min_relevance > logistic(_SATURATED):
            return np.full(self.slope.shape, np.inf)
        u = np.log(min_relevance / (1 - min_relevance)) - self.intercept
        with np.errstate(divide="ignore"):
            logarithm = (np.log(np.abs(u)) - np.log(self.slope)) / self.exponent
        size = np.exp(np.clip(logarithm, -230, 230))
        size = np.where(np.abs(u) > self.slope * 10**self.exponent, np.inf, size)
        result: Floats = np.sign(u) * np.where(u == 0, 0, size)
        return result


@dataclass(frozen=True, slots=True)
class Background:
    """What the features of a query vector are measured against.

    :param centroids: of the rows (c, d): integers, each 4,000 long.
    :param centroid_scale: (c,), what makes means of unit vectors of them again.
    :param centroid_weight: (c,), the share of the rows in each; they sum to 1.
    :param directions: in which queries differ (r, d): integers, each 4,000 long.
    :param sharpness: of the soft maxima, above 0: ln(mean(exp(s x))) / s.
    """

    centroids: NDArray[np.float32]
    centroid_scale: Floats
    centroid_weight: Floats
    directions: NDArray[np.float32]
    sharpness: Floats

    @classmethod
    def of(
        cls,
        centroids: ArrayLike,
        weights: ArrayLike,
        directions: ArrayLike,
        sharpness: Iterable[float] = (10.0, 30.0),
    ) -> Self:
        """Return the background of centroids (c, d), rows in each (c,) and directions (r, d)."""
        centroids = np.asarray(centroids, dtype=np.float64)
        norms = np.linalg.norm(centroids, axis=1)
        share = np.asarray(weights, dtype=np.float64)
        return cls(
            _integers(centroids),
            norms / _ROW_NORM,
            share / share.sum(),
            _integers(np.asarray(directions, dtype=np.float64)),
            np.array(list(sharpness), dtype=np.float64),
        )

    def features(self, queries: ArrayLike) -> Floats:
        """Return what is known of queries (n, d), one row (f,) for each; NaN for a zero vector."""
        vectors = np.atleast_2d(checked_vectors(queries))
        if vectors.shape[1] != self.dimensions:
            raise EncodingError(
                f"the model takes queries of {self.dimensions} dimensions, not {vectors.shape[1]}"
            )
        high = vector_parts(vectors).high
        norm = np.sqrt((high * high).sum(axis=1, keepdims=True).astype(np.float64))
        with np.errstate(invalid="ignore"):
            directions = (high @ self.directions.T).astype(np.float64) / norm / _ROW_NORM
            cosines = (high @ self.centroids.T).astype(np.float64) / norm * self.centroid_scale
        mean = (cosines * self.centroid_weight).sum(axis=1, keepdims=True)
        spread = np.sqrt((self.centroid_weight * (cosines - mean) ** 2).sum(axis=1, keepdims=True))
        soft = [
            np.log((self.centroid_weight * np.exp(s * cosines)).sum(axis=1, keepdims=True)) / s
            for s in self.sharpness
        ]
        return np.hstack([mean, spread, *soft, directions])

    @property
    def dimensions(self) -> int:
        """Components of a query."""
        return int(self.centroids.shape[1])


@dataclass(frozen=True, slots=True)
class LegModel:
    """A map for the scores of one leg.

    E.g.::

        model = relevance.load(connection, "doc_embedding")
        model.vector_curve(queries).relevance(cosines)  # (n, d), (n, m) -> (n, m)

    :param leg: ``vector``, ``text`` or ``tokens``.
    :param family: one of :data:`EXPONENTS`.
    :param slope: a bias, then a weight for each feature (1 + f,); a is softplus of their sum.
    :param intercept: the same for b.
    :param exponent: the same for k of family ``power``, which is 0.1 + 1.9 sigmoid of the sum; for
        the others k itself (1,).
    :param background: of the features, for the vector leg unless the family is ``raw``.

    .. versionadded:: 0.1
    """

    leg: str
    family: str
    slope: Floats
    intercept: Floats
    exponent: Floats
    background: Background | None = None

    def vector_curve(self, queries: ArrayLike) -> Curve:
        """Return the curves of query vectors (n, d)."""
        vectors = np.atleast_2d(checked_vectors(queries))
        if self.background is None:
            # Of family raw, or restored without its vectors: then it says nothing.
            complete = max(map(len, (self.slope, self.intercept, self.exponent))) == 1
            known = (vectors != 0).any(axis=1) & complete
            return self.curve(np.zeros((len(vectors), 0)), np.where(known, 0.0, np.nan))
        return self.curve(self.background.features(vectors))

    def score_curve(self, maximum: ArrayLike, terms: ArrayLike = 1) -> Curve:
        """Return the curves of text or multi-vector queries, for scores divided by ``maximum``.

        :param maximum: the best score that each query can have (n,).
        :param terms: how many words each has (n,).
        """
        return self.curve(score_features(maximum, terms))

    def curve(self, features: Floats, offset: float | Floats = 0.0) -> Curve:
        """Return the curves of queries with these features (n, f)."""
        f = features.shape[1]

        def weighted(weights: Floats) -> Floats:
            # Of family raw nothing but the biases is left.
            used = min(f, len(weights) - 1)
            result: Floats = weights[0] + features[:, :used] @ weights[1 : used + 1] + offset
            return result

        power = EXPONENTS[self.family] is None
        constant = np.full(len(features), self.exponent[0])
        return Curve(
            softplus(weighted(self.slope)),
            weighted(self.intercept),
            0.1 + 1.9 * logistic(weighted(self.exponent)) if power else constant,
        )


def score_features(maximum: ArrayLike, terms: ArrayLike = 1) -> Floats:
    """Return what is known of a text or multi-vector query: (n, 2)."""
    best = np.atleast_1d(np.asarray(maximum, dtype=np.float64))
    count = np.broadcast_to(np.asarray(terms, dtype=np.float64), best.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        usable = (best > 0) & np.isfinite(best) & (count > 0)
        features = np.stack([np.log(best), np.log(count)], axis=1)
    features[~usable] = np.nan
    return features


@dataclass(frozen=True, slots=True)
class FusedModel:
    """One probability from those of the legs: a logistic regression on their logits.

    :param weights: of the vector, text and tokens leg (3,), not negative.
    :param bias: added to them.
    :param missing: what a leg adds that did not find the row (3,).
    :param models: names of the models of the legs, in the order of :data:`LEGS`; None for a leg
        that is not combined. The catalog wants two or more.

    .. versionadded:: 0.1
    """

    weights: Floats
    bias: float
    missing: Floats = field(default_factory=lambda: np.zeros(3))
    models: tuple[str | None, str | None, str | None] = (None, None, None)

    def relevance(
        self,
        vector: ArrayLike | None = None,
        text: ArrayLike | None = None,
        tokens: ArrayLike | None = None,
    ) -> Floats:
        """Return the relevance of n rows; NaN or None is a missing leg, NaN the result of none."""
        given = [
            np.asarray(np.nan if leg is None else leg, np.float64) for leg in (vector, text, tokens)
        ]
        legs = np.stack(np.broadcast_arrays(*given))
        shape = (3,) + (1,) * (legs.ndim - 1)
        parts = np.where(
            np.isnan(legs),
            self.missing.reshape(shape),
            self.weights.reshape(shape) * logit(np.nan_to_num(legs, nan=0.5)),
        )
        return np.where(np.isnan(legs).all(axis=0), np.nan, logistic(self.bias + parts.sum(axis=0)))


def autocut(scores: ArrayLike, jumps: int = 1) -> int:
    """Return how many rows of a list to keep: those before the jump number ``jumps``.

    Weaviate's algorithm: scores and ranks are both scaled to 0..1; where the curve of the scores
    lies above the diagonal by a local maximum, a jump follows.

    :param scores: scores or distances, best first.
    :param jumps: 1 or more.
    :raises DeclarationError: ``jumps`` below 1, or scores that are not finite.
    """
    y = np.asarray(scores, dtype=np.float64)
    if jumps < 1:
        raise DeclarationError(f"jumps is 1 or more, not {jumps}")
    if y.ndim != 1 or not np.isfinite(y).all():
        raise DeclarationError("scores are a list of finite numbers")
    n = len(y)
    if n < 3 or y[-1] == y[0]:
        return n
    above = (y - y[0]) / (y[-1] - y[0]) - np.arange(n) / (n - 1)
    after = np.append(above[2:], above[-3])
    tops = np.flatnonzero((above[1:] > above[:-1]) & (above[1:] > after)) + 1
    return int(tops[jumps - 1]) if len(tops) >= jumps else n


def save(
    connection: Connection,
    name: str,
    model: LegModel | FusedModel,
    *,
    table: str | None = None,
    column: str | None = None,
    thresholds: Mapping[float, float] | None = None,
    min_best: float | None = None,
    queries: int | None = None,
    examples: int | None = None,
    positives: int | None = None,
    brier: float | None = None,
) -> None:
    """Store a model with ``sqlvec.create_relevance_model``, in the transaction of the connection.

    :param table: the table it was fitted for, its name as in SQL; a fused model has none.
    :param column: likewise.
    :param thresholds: the relevance that reaches each wanted recall.
    :param min_best: what the best row has to reach, or a search with ``min_relevance`` answers
        nothing.
    :param queries: how many it was fitted on; likewise ``examples``, and ``positives`` among them.
    :param brier: mean squared error of the probability, on queries held out of the fit.
    """
    background = model.background if isinstance(model, LegModel) else None
    fused = isinstance(model, FusedModel)
    arguments: dict[str, Any] = {
        "name": name,
        "rel": None if fused else table,
        "column_name": None if fused else column,
        "recalls": list(thresholds or {}),
        "thresholds": list((thresholds or {}).values()),
        "min_best": min_best,
        "queries": queries,
        "examples": examples,
        "positives": positives,
        "brier": brier,
        "models": list(model.models) if isinstance(model, FusedModel) else None,
    }
    if isinstance(model, FusedModel):
        arguments |= {"leg": "fused", "family": "logistic", "slope": model.weights.tolist()}
        arguments |= {"intercept": [model.bias, *map(float, model.missing)], "exponent": []}
    else:
        arguments |= {"leg": model.leg, "family": model.family, "slope": model.slope.tolist()}
        arguments |= {"intercept": model.intercept.tolist(), "exponent": model.exponent.tolist()}
    for key in ("sharpness", "centroid_scale", "centroid_weight"):
        arguments[key] = [] if background is None else getattr(background, key).tolist()
    for key in ("centroids", "directions"):
        # As text: no driver needs to know the type.
        arguments[key] = [] if background is None else _texts(getattr(background, key))
    schema = connection.scalar(text("SELECT pg_catalog.quote_ident(sqlvec._vector_schema())"))
    connection.execute(text(_SAVE.format(schema=schema)), arguments)


_SAVE = """
CALL sqlvec.create_relevance_model(
    name => CAST(:name AS text), leg => CAST(:leg AS text), family => CAST(:family AS text),
    slope => CAST(:slope AS float8[]), intercept => CAST(:intercept AS float8[]),
    exponent => CAST(:exponent AS float8[]), rel => CAST(CAST(:rel AS text) AS regclass),
    column_name => CAST(:column_name AS text), sharpness => CAST(:sharpness AS float8[]),
    centroids => CAST(CAST(:centroids AS text[]) AS {schema}.vector[]),
    centroid_scale => CAST(:centroid_scale AS float8[]),
    centroid_weight => CAST(:centroid_weight AS float8[]),
    directions => CAST(CAST(:directions AS text[]) AS {schema}.vector[]),
    recalls => CAST(:recalls AS float8[]), thresholds => CAST(:thresholds AS float8[]),
    queries => CAST(:queries AS int), examples => CAST(:examples AS int),
    positives => CAST(:positives AS int), brier => CAST(:brier AS float8),
    models => CAST(:models AS text[]), min_best => CAST(:min_best AS float8))
"""


def load(connection: Connection, name: str) -> LegModel | FusedModel:
    """Return a model of the catalog.

    :raises DeclarationError: the catalog has no model of that name.
    """
    statement = "SELECT * FROM sqlvec.relevance_model WHERE name = :name"
    row = connection.execute(text(statement), {"name": name}).one_or_none()
    if row is None:
        raise DeclarationError(f"there is no relevance model {name!r} in the catalog")
    slope, intercept, exponent = (
        np.array(row._mapping[key], dtype=np.float64) for key in ("slope", "intercept", "exponent")
    )
    if row.leg == "fused":
        return FusedModel(slope, float(intercept[0]), intercept[1:], tuple(row.models))
    statement = """
        SELECT part, value::real[] AS value FROM sqlvec.relevance_vector
        WHERE model = :name ORDER BY part, position
    """
    parts: dict[str, list[list[float]]] = {"centroid": [], "direction": []}
    for part, value in connection.execute(text(statement), {"name": name}):
        parts[part].append(value)
    background = None
    if parts["centroid"]:
        d = len(parts["centroid"][0])
        background = Background(
            np.array(parts["centroid"], dtype=np.float32),
            np.array(row.centroid_scale, dtype=np.float64),
            np.array(row.centroid_weight, dtype=np.float64),
            np.array(parts["direction"], dtype=np.float32).reshape(-1, d),
            np.array(row.sharpness, dtype=np.float64),
        )
    return LegModel(row.leg, row.family, slope, intercept, exponent, background)


def _integers(rows: Floats) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise EncodingError("a centroid or a direction is zero or not finite")
    result: NDArray[np.float32] = np.rint(_ROW_NORM * rows / norms).astype(np.float32)
    return result


def _texts(rows: NDArray[np.float32]) -> list[str]:
    return ["[" + ",".join(f"{value:g}" for value in row) + "]" for row in rows]
