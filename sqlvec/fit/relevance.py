"""Fitting of relevance models to candidates with labels.

E.g.::

    background = fit_background(rows, queries)
    examples = Examples.of_lists(background.features(queries), cosines, relevant)
    nothing = unanswerable(background, rows, len(queries))
    fit = fit_leg("vector", examples, "linear", background=background, unanswerable=nothing)
    fit.thresholds[0.95], fit.brier

:mod:`sqlvec.relevance` says what a model is, :mod:`sqlvec.fit.background` makes labels where there
are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit
from threadpoolctl import threadpool_limits

from sqlvec.errors import FittingError
from sqlvec.relevance import (
    EXPONENTS,
    LEGS,
    Background,
    Curve,
    Floats,
    FusedModel,
    LegModel,
    logit,
)

MIN_QUERIES = 20
"""Queries with at least one relevant candidate that a fit needs."""

MIN_POSITIVES = 20
"""Relevant candidates that a fit needs, and as many others."""

RECALLS = (0.8, 0.9, 0.95, 0.99)
"""Recalls that thresholds are chosen for, unless others are asked for."""

_FOLDS = 5
_PATIENCE = 20
"""Steps without a better loss on held-out queries before a fit stops."""

_MAX_STEPS = 300


@dataclass(frozen=True, slots=True)
class Examples:
    """Candidates of queries with their labels, as flat lists.

    :param features: what is known of each query (n, f).
    :param query: of each candidate (m,), a row of ``features``.
    :param x: score of each candidate (m,): cosine, or share of the query's maximum.
    :param label: 1 for relevant, 0 for not, or a probability (m,).
    """

    features: Floats
    query: NDArray[np.intp]
    x: Floats
    label: Floats

    @classmethod
    def of_lists(
        cls, features: ArrayLike, x: Sequence[ArrayLike], labels: Sequence[ArrayLike]
    ) -> Self:
        """Return the examples of one ranked list for each query; lists may differ in length."""
        scores = [np.asarray(row, dtype=np.float64) for row in x]
        return cls(
            np.asarray(features, dtype=np.float64),
            np.repeat(np.arange(len(scores)), [len(row) for row in scores]),
            np.concatenate(scores) if scores else np.zeros(0),
            np.concatenate([np.asarray(row, dtype=np.float64) for row in labels])
            if scores
            else np.zeros(0),
        )

    def joined_with(self, other: Self | None) -> Self:
        """Return these examples and others."""
        if other is None:
            return self
        return replace(
            self,
            features=np.concatenate([self.features, other.features]),
            query=np.concatenate([self.query, other.query + len(self.features)]),
            x=np.concatenate([self.x, other.x]),
            label=np.concatenate([self.label, other.label]),
        )

    def of_queries(self, chosen: NDArray[np.bool_]) -> Self:
        """Return the part of some queries."""
        kept = chosen[self.query]
        number = np.cumsum(chosen) - 1
        return replace(
            self,
            features=self.features[chosen],
            query=number[self.query[kept]],
            x=self.x[kept],
            label=self.label[kept],
        )


@dataclass(frozen=True, slots=True)
class Bin:
    """Candidates of about one predicted relevance."""

    predicted: float
    """Their mean."""

    observed: float
    """Share of relevant ones among them."""

    count: int


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where candidates are cut: each by its own relevance, and a query by that of its best one.

    A question without an answer still finds rows that have something in common with it. Some pass
    any threshold that keeps most relevant rows, because many relevant rows look no better. The
    best row of a question with an answer does.
    """

    thresholds: Mapping[float, float]
    """For each wanted recall; those are left out that ``min_best`` does not let reach."""

    min_best: float | None = None
    """What the best candidate of a query has to reach, or the query is left with nothing."""

    @classmethod
    def chosen(
        cls,
        relevance: Floats,
        label: Floats,
        query: NDArray[np.intp],
        recalls: Sequence[float],
        answered: float | None = None,
    ) -> Self:
        """Return the largest cuts that keep enough.

        :param relevance: of each candidate (m,), held out of the fit.
        :param label: 1 for relevant, 0 for not (m,).
        :param query: number of the query of each candidate (m,), counted from 0.
        :param recalls: wanted shares of the relevant candidates, each with a threshold.
        :param answered: share of the queries with a relevant candidate that are not left with
            nothing for their best one; None leaves ``min_best`` out.
        """
        if answered is None:
            return cls({recall: threshold(relevance, label, recall) for recall in recalls})
        positive = label >= 0.5
        best = best_of_queries(relevance, query)
        of_answered = best[np.unique(query[positive])]
        least = threshold(of_answered, np.ones(len(of_answered)), answered)
        left = best[query] >= least
        share = float(left[positive].mean())
        thresholds = {
            recall: threshold(relevance[left], label[left], recall / share)
            for recall in recalls
            if recall <= share
        }
        return cls(thresholds, least)

    def keep(self, relevance: Floats, query: NDArray[np.intp], recall: float) -> NDArray[np.bool_]:
        """Return which candidates pass (m,); at a recall out of reach, all of queries that do."""
        kept: NDArray[np.bool_] = relevance >= self.thresholds.get(recall, 0)
        if self.min_best is not None:
            kept &= best_of_queries(relevance, query)[query] >= self.min_best
        return kept


@dataclass(frozen=True, slots=True)
class Fit:
    """A model and how well it does on queries that it was not fitted on.

    Each fifth of the queries was judged by a model of the other four; the model itself is fitted
    on all of them.
    """

    model: LegModel | FusedModel
    relevance: Floats
    """Held-out relevance of each candidate (m,)."""

    label: Floats
    thresholds: Mapping[float, float]
    """For each wanted recall the largest relevance that keeps it, over all candidates pooled.

    Those are left out that ``min_best`` does not let reach.
    """

    kept: Mapping[float, NDArray[np.bool_]]
    """Which candidates pass (m,) when their fifth is cut at a threshold chosen on the others."""

    brier: float
    """Mean squared error of ``relevance``."""

    queries: int

    min_best: float | None = None
    """What the best candidate of a query has to reach, or the query is left with nothing."""

    others: Floats | None = None
    """Held-out relevance of the other candidates that were given, if any."""

    @property
    def examples(self) -> int:
        """Candidates that it was fitted on."""
        return len(self.label)

    @property
    def positives(self) -> int:
        """Relevant ones among them."""
        return int((self.label >= 0.5).sum())

    def removed(self, recall: float) -> float:
        """Return the share of the candidates that the cut for a recall removes."""
        return float(1 - self.kept[recall].mean())

    def recall(self, recall: float) -> float:
        """Return the share of the relevant candidates that the cut for a recall keeps."""
        return float(self.kept[recall][self.label >= 0.5].mean())


def fit_leg(
    leg: str,
    examples: Examples,
    family: str = "linear",
    *,
    background: Background | None = None,
    unanswerable: Examples | None = None,
    others: Examples | None = None,
    recalls: Sequence[float] = RECALLS,
    answered: float | None = None,
    l2: float = 5.0,
    seed: int = 0,
) -> Fit:
    """Fit the map of one leg by binary cross-entropy, and choose thresholds.

    Candidates count as they come: weighting the classes would spoil the probabilities. Which
    negatives there are is therefore the caller's to choose; the candidates of a search are right
    where the model will judge candidates of a search.

    :param leg: ``vector``, ``text`` or ``tokens``.
    :param family: ``raw``, ``linear``, ``sqrt``, ``quadratic`` or ``power``.
    :param background: what the features came from; the vector leg needs it.
    :param unanswerable: queries to learn from as well, by which nothing is judged.
    :param others: candidates of the same queries that are judged as well, but not learnt from:
        those of other legs, for :func:`fit_fused`.
    :param recalls: wanted shares of the relevant candidates, each with a threshold.
    :param answered: share of the queries with a relevant candidate that are to be answered; those
        whose best candidate looks worse than that of so many are left with nothing, and
        thresholds are chosen among the rest. None answers all.
    :param l2: penalty on squared weights of standardised features, in units of cross-entropy.
    :param seed: of the folds.
    :raises FittingError: too few labels, or of one class only.
    """
    _check(examples, answered)
    options = _Options(leg, background, unanswerable, tuple(recalls), answered, l2, seed)
    return _fit_family(examples, family, options, others)


def fit_best(
    leg: str,
    examples: Examples,
    families: Sequence[str] = tuple(EXPONENTS),
    *,
    recall: float = 0.95,
    background: Background | None = None,
    unanswerable: Examples | None = None,
    recalls: Sequence[float] = RECALLS,
    answered: float | None = None,
    l2: float = 5.0,
    seed: int = 0,
) -> Fit:
    """Fit several families, and take the one that removes most candidates at a recall.

    The choice looks at labels as a fit does. What is reported of held-out queries is therefore
    nested: for each fifth of the queries, the other four choose the family, fit it and choose the
    threshold, each by a cross-validation of their own. The fifths may choose different families;
    the model and its thresholds are of the one that all queries choose together.

    :param families: the first of those that remove equally much is taken.
    :param recall: by which they are compared, one of ``recalls``.
    :raises FittingError: as of :func:`fit_leg`, which explains the other parameters.
    """
    if recall not in recalls:
        raise FittingError(f"families are compared at a recall that is asked for, not {recall}")
    _check(examples, answered)
    options = _Options(leg, background, unanswerable, tuple(recalls), answered, l2, seed)

    def best(some: Examples) -> Fit:
        fits = [_fit_family(some, family, options) for family in families]
        # A family that does not reach the recall removes much by leaving queries with nothing.
        return max(fits, key=lambda fit: (recall in fit.thresholds, fit.removed(recall)))

    relevance = np.zeros(len(examples.x))
    kept = {wanted: np.zeros(len(examples.x), dtype=bool) for wanted in recalls}
    for fold in _folds(len(examples.features), seed):
        chosen = best(examples.of_queries(~fold))
        assert isinstance(chosen.model, LegModel)
        own = fold[examples.query]
        part = examples.of_queries(fold)
        relevance[own] = apply(chosen.model, part)
        cuts = Cuts(chosen.thresholds, chosen.min_best)
        for wanted in recalls:
            kept[wanted][own] = cuts.keep(relevance[own], part.query, wanted)
    brier = float(np.mean((relevance - examples.label) ** 2))
    return replace(best(examples), relevance=relevance, kept=kept, brier=brier)


def fit_fused(
    legs: Mapping[str, ArrayLike],
    query: ArrayLike,
    label: ArrayLike,
    *,
    models: Mapping[str, str] | None = None,
    recalls: Sequence[float] = RECALLS,
    answered: float | None = None,
    l2: float = 1.0,
    seed: int = 0,
) -> Fit:
    """Fit the combination of calibrated legs.

    :param legs: of ``vector``, ``text`` and ``tokens`` those there are: relevance of each
        candidate (m,), NaN where the leg did not find it. Take those that were held out of the
        fits of the legs (:attr:`Fit.relevance`), or they will be trusted too much.
    :param query: number of the query of each candidate (m,), counted from 0.
    :param label: 1 for relevant, 0 for not (m,).
    :param models: names of the legs' models in the catalog, which stores no fused one without.
    :param answered: as of :func:`fit_leg`.
    :raises FittingError: as of :func:`fit_leg`, or no leg.
    """
    unknown = set(legs) - set(LEGS)
    if unknown or not legs:
        raise FittingError(f"legs are vector, text and tokens, not {', '.join(unknown) or 'none'}")
    number = np.asarray(query, dtype=np.intp)
    values = np.full((len(number), 3), np.nan)
    for position, leg in enumerate(LEGS):
        if leg in legs:
            values[:, position] = legs[leg]
    labels = np.asarray(label, dtype=np.float64)
    count = int(number.max(initial=-1)) + 1
    _check(Examples(np.zeros((count, 0)), number, np.zeros(len(number)), labels), answered)
    held_out = np.zeros(len(number))
    folds = list(_folds(count, seed))
    for fold in folds:
        chosen = fold[number]
        model = _fit_fused(values[~chosen], labels[~chosen], l2)
        held_out[chosen] = model.relevance(*values[chosen].T)
    vector, text, tokens = ((models or {}).get(leg) for leg in LEGS)
    model = replace(_fit_fused(values, labels, l2), models=(vector, text, tokens))
    judged = _HeldOut(held_out, labels, number, tuple(recalls), answered)
    return judged.fit(model, [fold[number] for fold in folds], count)


def apply(model: LegModel, examples: Examples) -> Floats:
    """Return the relevance of candidates under a model (m,)."""
    curve = model.curve(examples.features)
    own = Curve(*(part[examples.query] for part in (curve.slope, curve.intercept, curve.exponent)))
    return own.relevance(examples.x)


def reliability(relevance: ArrayLike, label: ArrayLike, bins: int = 10) -> list[Bin]:
    """Return predicted against observed relevance, in bins that expect equally many relevant ones.

    Bins of equally many candidates would nearly all lie close to 0, where most candidates are.
    """
    predicted, observed = np.asarray(relevance), np.asarray(label)
    order = np.argsort(predicted, kind="stable")
    expected = np.cumsum(predicted[order])
    ends = np.searchsorted(expected, predicted.sum() * np.arange(1, bins) / bins) + 1
    return [
        Bin(float(predicted[part].mean()), float(observed[part].mean()), len(part))
        for part in np.split(order, ends)
        if len(part)
    ]


def threshold(relevance: ArrayLike, label: ArrayLike, recall: float) -> float:
    """Return the largest relevance that keeps a share of the relevant candidates, pooled."""
    scores = np.sort(np.asarray(relevance)[np.asarray(label) >= 0.5])[::-1]
    if not len(scores):
        raise FittingError("no relevant candidate to choose a threshold by")
    return float(scores[max(int(np.ceil(recall * len(scores) - 1e-9)), 1) - 1])


def best_of_queries(relevance: ArrayLike, query: ArrayLike) -> Floats:
    """Return the largest relevance of each query (q,), 0 for one without candidates.

    :param query: number of the query of each candidate (m,), counted from 0.
    """
    number = np.asarray(query, dtype=np.intp)
    best = np.zeros(int(number.max(initial=-1)) + 1)
    np.maximum.at(best, number, relevance)
    return best


def _check(examples: Examples, answered: float | None) -> None:
    if answered is not None and not 0 < answered <= 1:
        raise FittingError(f"answered is a share above 0, at most 1, not {answered}")
    if not np.isfinite(examples.x).all() or not np.isfinite(examples.features).all():
        raise FittingError("scores or features that are not finite; leave such queries out")
    positive = examples.label >= 0.5
    positives, negatives = int(positive.sum()), int((~positive).sum())
    with_answer = len(np.unique(examples.query[positive]))
    if min(positives, negatives) < MIN_POSITIVES or with_answer < MIN_QUERIES:
        raise FittingError(
            f"a relevance model needs {MIN_QUERIES} queries with a relevant candidate,"
            f" {MIN_POSITIVES} relevant candidates and as many others; found {with_answer} queries,"
            f" {positives} relevant and {negatives} other candidates"
        )


def _folds(count: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    number = np.random.default_rng(seed).permutation(count) % _FOLDS
    for fold in range(_FOLDS):
        yield number == fold


@dataclass(frozen=True, slots=True)
class _Options:
    leg: str
    background: Background | None
    unanswerable: Examples | None
    recalls: tuple[float, ...]
    answered: float | None
    l2: float
    seed: int


def _fit_family(
    examples: Examples, family: str, options: _Options, others: Examples | None = None
) -> Fit:
    background, nothing = options.background, options.unanswerable
    if family not in EXPONENTS:
        raise FittingError(f"no family {family!r}; there are {', '.join(EXPONENTS)}")
    if family == "raw":
        examples = replace(examples, features=np.zeros((len(examples.features), 0)))
        # Its one curve would only be spoilt by them.
        background = nothing = None
    elif (options.leg == "vector") == (background is None):
        raise FittingError("the vector leg, and no other, takes a background")

    def fitted(some: Examples, held_out: Examples | None, steps: int) -> tuple[LegModel, int]:
        given = some.joined_with(nothing)
        weights, taken = _fit_weights(given, held_out, family, options.l2, steps)
        return LegModel(options.leg, family, *weights, background), taken

    held_out = np.zeros(len(examples.x))
    of_others = None if others is None else np.zeros(len(others.x))
    taken = []
    folds = list(_folds(len(examples.features), options.seed))
    for fold in folds:
        rest = examples.of_queries(~fold)
        stop = next(_folds(len(rest.features), options.seed + 1))
        _, steps = fitted(rest.of_queries(~stop), rest.of_queries(stop), _MAX_STEPS)
        model, _ = fitted(rest, None, steps)
        part = examples.of_queries(fold)
        held_out[fold[examples.query]] = apply(model, part)
        if others is not None and of_others is not None:
            of_others[fold[others.query]] = apply(model, others.of_queries(fold))
        taken.append(steps)
    model, _ = fitted(examples, None, int(np.median(taken)))
    own = [fold[examples.query] for fold in folds]
    judged = _HeldOut(held_out, examples.label, examples.query, options.recalls, options.answered)
    return replace(judged.fit(model, own, len(examples.features)), others=of_others)


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """Candidates with their held-out relevance, and what they are to be cut for."""

    relevance: Floats
    label: Floats
    query: NDArray[np.intp]
    recalls: tuple[float, ...]
    answered: float | None

    def fit(
        self, model: LegModel | FusedModel, folds: Sequence[NDArray[np.bool_]], queries: int
    ) -> Fit:
        """Return the fit of a model; each fold of candidates is cut by what the others choose."""
        kept = {recall: np.zeros(len(self.label), dtype=bool) for recall in self.recalls}
        for own in folds:
            cuts = self._cuts(~own)
            for recall in self.recalls:
                kept[recall][own] = cuts.keep(self.relevance[own], self.query[own], recall)
        cuts = self._cuts(np.ones(len(self.label), dtype=bool))
        brier = float(np.mean((self.relevance - self.label) ** 2))
        thresholds, best = cuts.thresholds, cuts.min_best
        return Fit(model, self.relevance, self.label, thresholds, kept, brier, queries, best)

    def _cuts(self, chosen: NDArray[np.bool_]) -> Cuts:
        return Cuts.chosen(
            self.relevance[chosen],
            self.label[chosen],
            self.query[chosen],
            self.recalls,
            self.answered,
        )


class _Loss:
    """Penalised cross-entropy and its gradient, per query, in weights of standardised features.

    The weights are three rows (slope, intercept, exponent) of a bias and one per feature.
    """

    def __init__(self, examples: Examples, family: str, l2: float) -> None:
        self.rows = np.hstack([np.ones((len(examples.features), 1)), examples.features])
        self.query = examples.query
        self.label = examples.label
        self.sign = np.sign(examples.x)
        self.size = np.abs(examples.x)
        self.log = np.log(np.maximum(self.size, 1e-12))
        self.exponent = EXPONENTS[family]
        self.fixed = None if self.exponent is None else self.sign * self.size**self.exponent
        self.penalty = np.full((3, self.rows.shape[1]), l2 / len(self.rows))
        self.penalty[:, 0] = 0
        # Keeps k from running away where scores hardly tell.
        self.penalty[2, 0] = l2 / len(self.rows)

    def __call__(self, flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(3, -1)
        raw = self.rows @ weights.T
        slope, intercept = np.logaddexp(0, raw[:, 0]), raw[:, 1]
        half = expit(raw[:, 2])
        if self.fixed is None:
            x = self.sign * np.exp((0.1 + 1.9 * half)[self.query] * self.log)
        else:
            x = self.fixed
        logits = slope[self.query] * x + intercept[self.query]
        n = len(self.rows)
        loss = float((np.logaddexp(0, logits) - self.label * logits).sum() / n)
        error = (expit(logits) - self.label) / n
        by_query = np.zeros((n, 3))
        by_query[:, 0] = self._sum(error * x) * expit(raw[:, 0])
        by_query[:, 1] = self._sum(error)
        if self.fixed is None:
            by_query[:, 2] = self._sum(error * x * self.log) * slope * 1.9 * half * (1 - half)
        gradient = by_query.T @ self.rows + 2 * self.penalty * weights
        return loss + float((self.penalty * weights**2).sum()), gradient.ravel()

    def _sum(self, values: Floats) -> Floats:
        total: Floats = np.bincount(self.query, values, minlength=len(self.rows))  # type: ignore[assignment]
        return total


def _fit_weights(
    examples: Examples, held_out: Examples | None, family: str, l2: float, steps: int
) -> tuple[tuple[Floats, Floats, Floats], int]:
    """Return the weights of raw features, and after how many steps they were found.

    Where other queries are held out, those weights are kept that do best on them.
    """
    mean = examples.features.mean(axis=0)
    spread = examples.features.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1)

    def standardised(some: Examples) -> Examples:
        return replace(some, features=(some.features - mean) / spread)

    loss = _Loss(standardised(examples), family, l2)
    start = np.zeros((3, examples.features.shape[1] + 1))
    start[:2, 0] = 10, -6
    start[2, 0] = np.log(0.9)  # k = 1
    best, best_loss, best_step, step = start.ravel(), np.inf, 1, 0
    options = {"maxiter": max(steps, 1)}
    minimise = partial(minimize, loss, best, jac=True, method="L-BFGS-B", options=options)
    with one_thread():
        if held_out is None:
            best = minimise().x
        else:
            judge = _Loss(standardised(held_out), family, 0)

            def watch(weights: Floats) -> None:
                nonlocal best, best_loss, best_step, step
                step += 1
                now = judge(weights)[0]
                if now < best_loss:
                    best, best_loss, best_step = weights.copy(), now, step
                elif step - best_step >= _PATIENCE:
                    raise StopIteration

            minimise(callback=watch)
    weights = best.reshape(3, -1)
    weights = np.hstack([weights[:, :1], weights[:, 1:] / spread])
    weights[:, 0] -= weights[:, 1:] @ mean
    constant = EXPONENTS[family]
    exponent = weights[2] if constant is None else np.array([constant])
    return (weights[0], weights[1], exponent), best_step


def _fit_fused(values: Floats, label: Floats, l2: float) -> FusedModel:
    """Return a logistic regression with weights that are not negative.

    What a missing leg counts for starts from its mean, which says nothing, and moves as far as the
    examples with that leg missing ask for it.
    """
    missing: NDArray[np.bool_] = np.isnan(values)
    present = np.asarray(~missing.all(axis=0))
    logits = logit(np.where(missing, 0.5, values))
    mean = np.array(
        [logits[~missing[:, leg], leg].mean() if present[leg] else 0.0 for leg in range(3)]
    )
    rows = np.hstack([np.where(missing, mean, logits), missing & present])

    def loss(weights: Floats) -> tuple[float, Floats]:
        total = weights[0] + rows @ weights[1:]
        error = expit(total) - label
        value = (np.logaddexp(0, total) - label * total).sum() + l2 * (weights[1:] ** 2).sum()
        gradient = np.concatenate([[error.sum()], rows.T @ error + 2 * l2 * weights[1:]])
        return float(value), gradient

    limits: list[Any] = [(None, None)] + [(0, None)] * 3 + [(None, None)] * 3
    start = np.concatenate([[0.0], present / max(present.sum(), 1), np.zeros(3)])
    with one_thread():
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=limits).x
    return FusedModel(found[1:4], float(found[0]), found[1:4] * mean + found[4:])


def one_thread() -> threadpool_limits:
    """Add up in one order, for equal results; for matrices this small it is also faster."""
    return threadpool_limits(limits=1)
