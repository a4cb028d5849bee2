"""Relevance models on held-out queries: what a threshold for 95 % recall removes.

Every fifth of the queries is cut by models and thresholds that come from the other four. Of each
query the top 100 of a leg are its candidates; recall is counted among them. Then its answers are
deleted from the corpus, and the same threshold should leave nothing; nor should it for queries of
the other collections. Once more with a cut by the best candidate, which leaves some queries with
nothing altogether.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.relevance_collections import (
    Collection,
    Floats,
    Leg,
    folds,
    load,
    together,
)
from benchmarks.report import Claim, Report, table
from benchmarks.server import Database
from sqlvec.fit.background import background_labels, unanswerable
from sqlvec.fit.relevance import Cuts, Examples, Fit, fit_fused, fit_leg
from sqlvec.relevance import EXPONENTS, LEGS, FusedModel, LegModel, autocut

TOP = 100

RECALL = 0.95
RECALLS = (0.5, 0.8, 0.9, RECALL)
ANSWERED = (1.0, 0.98, 0.95)
"""Shares of the queries with answers that are answered; 1 is without a cut by the best row."""

AUTO = "auto"
"""The family that removes most at :data:`RECALL` on the queries that are not held out."""

SAMPLE = 1000


@dataclass(slots=True)
class Outcome:
    """What a cut does to held-out queries."""

    target: float
    kept: list[NDArray[np.bool_]] = field(default_factory=list)
    relevant: list[NDArray[np.bool_]] = field(default_factory=list)
    error: list[Floats] = field(default_factory=list)
    empty: list[bool] = field(default_factory=list)
    """For each query: whether nothing is left once its answers are deleted."""

    clean: list[bool] = field(default_factory=list)
    """For each query: whether nothing but answers is left while they are there."""

    lost: list[int] = field(default_factory=list)
    """For each query: answers that are no better than the best of the other rows."""

    off_topic: list[NDArray[np.bool_]] = field(default_factory=list)
    """Whether nothing is left for queries of other collections."""

    best: list[tuple[float, float]] = field(default_factory=list)
    """For each query its largest relevance, with its answers and without."""

    def add(self, relevance: Floats, label: NDArray[np.bool_], without: Floats, cuts: Cuts) -> None:
        """Cut the candidates of a query, and those that it has without its answers."""
        kept = _keep(cuts, relevance, self.target)
        self.kept.append(kept)
        self.relevant.append(label)
        self.error.append((relevance - label) ** 2)
        self.empty.append(not _keep(cuts, without, self.target).any())
        self.clean.append(not kept[~label].any())
        self.lost.append(int((relevance[label] <= relevance[~label].max(initial=0)).sum()))
        self.best.append((relevance.max(initial=0), without.max(initial=0)))

    def figures(self) -> dict[str, float]:
        """Return the figures of all queries together.

        ``removed_at_most`` is the share of candidates that are not relevant. ``empty_at_most`` is
        the share of queries that a cut of rows by one threshold each could leave with nothing once
        their answers are deleted, if it knew where to cut and lost no more answers than allowed.
        ``deleted_auc`` is how well the largest relevance tells queries with answers from the same
        queries without: 0.5 is not at all.
        """
        kept, relevant = np.concatenate(self.kept), np.concatenate(self.relevant)
        answered = [part.any() for part in self.relevant]
        silent = [not part.any() for part in self.kept]
        return {
            "recall": float(kept[relevant].mean()),
            "removed": float(1 - kept.mean()),
            "removed_at_most": float(1 - relevant.mean()),
            "precision_gain": float(relevant[kept].mean() / relevant.mean()),
            "empty_when_deleted": _mean(self.empty),
            "clean_when_answered": _mean(self.clean),
            "empty_at_most": self._at_most(int(relevant.sum())),
            "empty_when_off_topic": _mean(self.off_topic and np.concatenate(self.off_topic)),
            "empty_when_answered": float(np.mean(np.array(silent)[answered])),
            "deleted_auc": self._auc(),
            "brier": _mean(self.error and np.concatenate(self.error)),
        }

    def _at_most(self, answers: int) -> float:
        if not self.lost:
            return float("nan")
        lost = np.cumsum(np.sort(self.lost))
        return float((lost <= (1 - self.target) * answers + 1e-9).mean())

    def _auc(self) -> float:
        if not self.best:
            return float("nan")
        answered, deleted = np.array(self.best).T
        label = np.repeat([1, 0], len(answered))
        return float(roc_auc_score(label, np.concatenate([answered, deleted])))


Outcomes = dict[tuple[float, float], Outcome]
"""By share of the queries that are to be answered and wanted recall."""


class Fits:
    """The fits of a collection. Each is made once, however many methods look at it."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.lists = {leg.name: _lists(leg.x, collection.relevant) for leg in collection.legs}
        self.found = self.union([leg.name for leg in collection.legs], 0)
        self._fits: dict[tuple[str, str, int], Fit] = {}

    def union(self, legs: Sequence[str], part: int) -> list[NDArray[np.intp]]:
        """Return the candidates of several legs: part 0 with the answers, part 1 without."""
        some = [self.lists[leg][part] for leg in legs]
        return [np.unique(np.concatenate(rows)) for rows in zip(*some, strict=True)]

    def others(self, leg: Leg) -> list[NDArray[np.intp]]:
        """Return the candidates of the other legs that this one has a score for."""
        own = self.lists[leg.name][0]
        return [
            rows[~np.isin(rows, own[q]) & ~np.isnan(leg.x[q, rows])] if len(own[q]) else own[q]
            for q, rows in enumerate(self.found)
        ]

    def leg(self, leg: Leg, family: str, number: int) -> Fit:
        """Return the fit to the queries that fold ``number`` leaves."""
        if family == AUTO:
            # The queries that judge the choice are held out here already.
            fits = [self.leg(leg, one, number) for one in EXPONENTS]
            return max(fits, key=lambda fit: fit.removed(RECALL))
        key = (leg.name, family, number)
        if key not in self._fits:
            self._fits[key] = self._fit(leg, family, number)
        return self._fits[key]

    def asked(self, leg: Leg, number: int) -> list[int]:
        """Return the queries of a fit: one without candidates has nothing to learn from."""
        fold = list(folds(len(leg.x)))[number]
        return [q for q in np.flatnonzero(~fold) if len(self.lists[leg.name][0][q])]

    def examples(self, leg: Leg, number: int, rows: list[NDArray[np.intp]]) -> Examples:
        """Return some rows of the queries of a fit."""
        queries = self.asked(leg, number)
        known = leg.known[queries]
        if leg.name == "vector":
            known = self.collection.backgrounds[number].features(known)
        return Examples.of_lists(
            known,
            [leg.x[q, rows[q]] for q in queries],
            [self.collection.relevant[q, rows[q]] for q in queries],
        )

    def of_vector(self, leg: Leg, number: int) -> dict[str, Any]:
        """Return what the vector leg is fitted with besides."""
        if leg.name != "vector":
            return {}
        background = self.collection.backgrounds[number]
        rows = self.collection.rows[:: max(len(self.collection.rows) // 5000, 1)]
        nothing = unanswerable(background, rows, len(self.asked(leg, number)))
        return {"background": background, "unanswerable": nothing}

    def _fit(self, leg: Leg, family: str, number: int) -> Fit:
        options = self.of_vector(leg, number)
        if family == "linear" and len(self.collection.legs) > 1:
            # These are combined.
            options["others"] = self.examples(leg, number, self.others(leg))
        examples = self.examples(leg, number, self.lists[leg.name][0])
        return fit_leg(leg.name, examples, family, recalls=RECALLS, **options)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark has beside the common ones."""
    parser.add_argument("--collections", nargs="*", help="names of some; default: all")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Fit and cut every leg of every collection, and all text collections in one table."""
    collections = load(database.connect(), options.collections)
    cases = [case for collection in collections for case in _cases(collection)]
    # The vectors of LIMIT know nothing about its queries, and scifact-mv800 is a part of scifact.
    some = [c for c in collections if "-mv" not in c.name]
    if len(some) > 1:
        limit = [c.legs[0].known for c in collections if c.name == "limit-mv600"]
        foreign = limit[0] if limit else np.zeros((0, some[0].rows.shape[1]))
        cases += _cases(together(some, foreign))
    return Report({"cases": cases}, _claims(cases), _tables(cases))


def _cases(collection: Collection) -> Iterator[dict[str, Any]]:
    fits = Fits(collection)
    for leg in collection.legs:
        for family in (*EXPONENTS, AUTO) if leg.name == "vector" else ("raw", "linear"):
            yield from _figures(collection, leg.name, family, _fitted(fits, leg, family))
        yield from _figures(collection, leg.name, "autocut", _autocut(fits, leg))
        if leg.name == "vector":
            yield from _figures(collection, leg.name, "background", _background(fits, leg))
    if len(collection.legs) > 1:
        yield from _figures(collection, "fused", "linear", _fused(fits, collection.legs))
    if len(collection.legs) > 2:
        two = collection.legs[:2]
        yield from _figures(collection, "vector and text", "linear", _fused(fits, two))


def _figures(
    collection: Collection, leg: str, method: str, outcomes: Outcomes
) -> Iterator[dict[str, Any]]:
    for (answered, target), outcome in outcomes.items():
        yield {
            "collection": collection.name,
            "leg": leg,
            "method": method,
            "answered": answered,
            "target": target,
            **outcome.figures(),
        }


def _outcomes() -> Outcomes:
    targets = {share: RECALLS if share == 1 else (RECALL,) for share in ANSWERED}
    return {(share, target): Outcome(target) for share, some in targets.items() for target in some}


def _cuts(relevance: Floats, label: Floats, query: NDArray[np.intp]) -> dict[float, Cuts]:
    """Return the cuts that candidates choose, by share of the queries to be answered."""
    return {
        share: Cuts.chosen(relevance, label, query, RECALLS, None if share == 1 else share)
        for share in ANSWERED
    }


def _keep(cuts: Cuts, relevance: Floats, target: float) -> NDArray[np.bool_]:
    return cuts.keep(relevance, np.zeros(len(relevance), dtype=np.intp), target)


def _fitted(fits: Fits, leg: Leg, family: str) -> Outcomes:
    collection, outcomes = fits.collection, _outcomes()
    candidates, deleted = fits.lists[leg.name]
    off_topic = collection.off_topic.get(leg.name)
    for number, fold in enumerate(folds(len(collection.relevant))):
        fit = fits.leg(leg, family, number)
        model = _model(fit)
        examples = fits.examples(leg, number, candidates)
        cuts = _cuts(fit.relevance, fit.label, examples.query)
        if off_topic is not None:
            scores = np.nan_to_num(off_topic.x, nan=-np.inf).max(axis=1)
            best = np.where(np.isfinite(scores), _relevance(model, off_topic, scores), 0)
            for (share, target), outcome in outcomes.items():
                left = [_keep(cuts[share], one[None], target).any() for one in best]
                outcome.off_topic.append(~np.array(left))
        for query in np.flatnonzero(fold):
            rows = candidates[query]
            relevance = _of_rows(model, leg, query, rows)
            without = _of_rows(model, leg, query, deleted[query])
            for (share, _), outcome in outcomes.items():
                outcome.add(relevance, collection.relevant[query, rows], without, cuts[share])
    return outcomes


def _model(fit: Fit) -> LegModel:
    assert isinstance(fit.model, LegModel)
    return fit.model


def _relevance(model: LegModel, leg: Leg, x: Floats) -> Floats:
    """Return the relevance of one row, or several, for each query of a leg."""
    curve = model.vector_curve(leg.known) if leg.name == "vector" else model.curve(leg.known)
    return curve.relevance(x)


def _of_rows(model: LegModel, leg: Leg, query: int, rows: NDArray[np.intp]) -> Floats:
    part = slice(query, query + 1)
    own = Leg(leg.name, leg.x[part, rows], leg.known[part])
    return _relevance(model, own, own.x)[0]


def _autocut(fits: Fits, leg: Leg) -> Outcomes:
    """Cut every list at its first jump; it always keeps a row."""
    outcome = Outcome(float("nan"))
    for query, rows in enumerate(fits.lists[leg.name][0]):
        cut = autocut(leg.x[query, rows])
        outcome.kept.append(np.arange(len(rows)) < cut)
        outcome.relevant.append(fits.collection.relevant[query, rows])
    return {(1.0, outcome.target): outcome}


def _background(fits: Fits, leg: Leg) -> Outcomes:
    """Fit without labels, and keep what is more likely about the query's matter than not."""
    collection = fits.collection
    count = len(collection.rows)
    sample = np.random.default_rng(0).choice(count, min(SAMPLE, count), replace=False)
    candidates, deleted = fits.lists[leg.name]
    outcome = Outcome(float("nan"))
    cuts = Cuts({outcome.target: 0.5})
    for number, fold in enumerate(folds(len(collection.relevant))):
        queries = fits.asked(leg, number)
        x = [leg.x[q, candidates[q]] for q in queries]
        labels = background_labels(x, [leg.x[q, sample] for q in queries], count)
        known = collection.backgrounds[number].features(leg.known[queries])
        examples = Examples.of_lists(known, x, labels)
        model = _model(fit_leg("vector", examples, **fits.of_vector(leg, number)))
        for query in np.flatnonzero(fold):
            rows = candidates[query]
            relevance = _of_rows(model, leg, query, rows)
            without = _of_rows(model, leg, query, deleted[query])
            outcome.add(relevance, collection.relevant[query, rows], without, cuts)
    return {(1.0, outcome.target): outcome}


def _fused(fits: Fits, legs: list[Leg]) -> Outcomes:
    """Combine legs over the union of their candidates, scored by every leg."""
    collection, outcomes = fits.collection, _outcomes()
    names = [leg.name for leg in legs]
    found, deleted = (fits.union(names, part) for part in (0, 1))
    off_topic = [collection.off_topic[name] for name in names if name in collection.off_topic]
    for number, fold in enumerate(folds(len(collection.relevant))):
        held_out = {}
        models = {}
        for leg in legs:
            fit = fits.leg(leg, "linear", number)
            assert fit.others is not None
            models[leg.name] = _model(fit)
            held_out[leg.name] = np.full(collection.relevant.shape, np.nan)
            own = (fits.lists[leg.name][0], fit.relevance), (fits.others(leg), fit.others)
            for rows, relevance in own:
                pairs = [(q, row) for q in fits.asked(leg, number) for row in rows[q]]
                held_out[leg.name][tuple(np.array(pairs).T)] = relevance
        pairs = [(q, row) for q in np.flatnonzero(~fold) for row in found[q]]
        query, row = np.array(pairs).T
        values = {name: part[query, row] for name, part in held_out.items()}
        numbered = np.unique(query, return_inverse=True)[1]
        fit = fit_fused(values, numbered, collection.relevant[query, row], recalls=RECALLS)
        cuts = _cuts(fit.relevance, fit.label, numbered)
        if len(off_topic) == len(legs):
            best = _best_off_topic(off_topic, models, fit)
            for (share, target), outcome in outcomes.items():
                left = [_keep(cuts[share], one[None], target).any() for one in best]
                outcome.off_topic.append(~np.array(left))
        for q in np.flatnonzero(fold):
            relevance, without = (
                _combined(legs, models, fit, q, rows[q]) for rows in (found, deleted)
            )
            for (share, _), outcome in outcomes.items():
                outcome.add(relevance, collection.relevant[q, found[q]], without, cuts[share])
    return outcomes


def _combined(
    legs: list[Leg], models: dict[str, LegModel], fit: Fit, query: int, rows: NDArray[np.intp]
) -> Floats:
    assert isinstance(fit.model, FusedModel)
    scores = np.full((3, len(rows)), np.nan)
    for leg in legs:
        known = ~np.isnan(leg.x[query, rows])
        place = LEGS.index(leg.name)
        scores[place, known] = _of_rows(models[leg.name], leg, query, rows[known])
    return fit.model.relevance(*scores)


def _best_off_topic(legs: list[Leg], models: dict[str, LegModel], fit: Fit) -> Floats:
    """Return the largest combined relevance of each query of another collection."""
    found = [_best(leg.x) for leg in legs]
    union = [np.unique(np.concatenate(rows)) for rows in zip(*found, strict=True)]
    return np.array(
        [_combined(legs, models, fit, q, rows).max(initial=0) for q, rows in enumerate(union)]
    )


def _best(x: Floats) -> list[NDArray[np.intp]]:
    """Return the best rows of every query, best first."""
    order = np.argsort(-np.nan_to_num(x, nan=-np.inf), axis=1, kind="stable")[:, :TOP]
    return [rows[~np.isnan(row[rows])] for row, rows in zip(x, order, strict=True)]


def _lists(
    x: Floats, relevant: NDArray[np.bool_]
) -> tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]]:
    """Return the best rows of every query, as they are and without those that are relevant."""
    return _best(x), _best(np.where(relevant, np.nan, x))


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _at_target(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [case for case in cases if case["target"] == RECALL or np.isnan(case["target"])]


def _ratios(cases: list[dict[str, Any]]) -> dict[str, float]:
    """Return what the best family removes as a multiple of raw cosine, by collection."""
    removed: dict[str, dict[str, float]] = {}
    for case in cases:
        if case["leg"] == "vector" and case["target"] == RECALL and case["answered"] == 1:
            removed.setdefault(case["collection"], {})[case["method"]] = case["removed"]
    return {
        name: max(share for method, share in by.items() if method != "raw") / by["raw"]
        for name, by in removed.items()
    }


def _claims(cases: list[dict[str, Any]]) -> list[Claim]:
    claims = [
        Claim(f"{name}: best family removes, as a multiple of raw cosine", ratio, 2)
        for name, ratio in _ratios(cases).items()
    ]
    for case in cases:
        if case["leg"] == "fused" and case["target"] == RECALL:
            which = f"fused, {case['answered']:.0%} of the queries answered"
            title = f"{case['collection']}: {which}: returns nothing when answers are deleted"
            claims.append(Claim(title, case["empty_when_deleted"], 0.8))
    return claims


def _tables(cases: list[dict[str, Any]]) -> list[Any]:
    keys = ("collection", "leg", "method")
    cut = ("recall", "removed", "removed_at_most", "precision_gain", "deleted_auc", "brier")
    empty = (
        "recall",
        "removed",
        "empty_when_deleted",
        "clean_when_answered",
        "empty_at_most",
        "empty_when_off_topic",
        "empty_when_answered",
    )
    at_target = _at_target(cases)
    all_answered = [case for case in at_target if case["answered"] == 1]
    by_recall = [
        case
        for case in cases
        if case["method"] == "linear" and case["answered"] == 1 and not np.isnan(case["target"])
    ]

    def shown(title: str, columns: tuple[str, ...], some: list[dict[str, Any]]) -> Any:
        rows = [tuple(case[column] for column in columns) for case in some]
        return table(title, [column.replace("_", " ") for column in columns], rows)

    return [
        shown("Cut at the threshold for 95 % recall, held-out queries", keys + cut, all_answered),
        shown("Queries left with nothing", (*keys, "answered", *empty), at_target),
        shown("Family linear by wanted recall", ("collection", "leg", "target", *empty), by_recall),
    ]


def draw(report: Report, path: Path) -> None:
    """Draw what each method removes from the candidates of the vector leg."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = [
        case
        for case in _at_target(report.figures["cases"])
        if case["leg"] == "vector" and case["answered"] == 1
    ]
    names = list(dict.fromkeys(case["collection"] for case in cases))
    methods = list(dict.fromkeys(case["method"] for case in cases))
    figure, axis = plt.subplots(figsize=(10, 4), layout="constrained")
    for number, method in enumerate(methods):
        removed = [case["removed"] for case in cases if case["method"] == method]
        at = np.arange(len(names)) + (number - len(methods) / 2) * 0.8 / len(methods)
        axis.bar(at, removed, width=0.8 / len(methods), label=method)
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("share of the top 100 removed")
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
