"""Relevance models on held-out queries: what a threshold for 95 % recall removes.

Every fifth of the queries is cut by models and thresholds that come from the other four. Of each
query the top 100 of a leg are its candidates; recall is counted among them. Then its answers are
deleted from the corpus, and the same threshold should leave nothing; nor should it for queries of
the other collections.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import matplotlib
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.folders import some_folders
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database
from sqlvec.fit.background import background_labels, fit_background, unanswerable
from sqlvec.fit.relevance import Examples, Fit, fit_fused, fit_leg
from sqlvec.relevance import (
    EXPONENTS,
    LEGS,
    Background,
    FusedModel,
    LegModel,
    autocut,
    score_features,
)

TOP = 100
MOST = 10_000
"""Rows of a query that have a score: all, in these collections."""

RECALL = 0.95
RECALLS = (0.5, 0.8, 0.9, RECALL)
FOLDS = 5
TOGETHER = "together"
AUTO = "auto"
"""The family that removes most at :data:`RECALL` on the queries that are not held out."""

SAMPLE = 1000

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

    foreign: Floats
    """Queries of other collections (m, d)."""

    @classmethod
    def of(cls, name: str, relevant: NDArray[np.bool_], rows: Floats, legs: list[Leg]) -> Self:
        """Return a collection with its backgrounds."""
        asked = legs[0].known
        folds = _folds(len(asked))
        backgrounds = [fit_background(rows, asked[~fold]) for fold in folds]
        return cls(name, relevant, rows, legs, backgrounds, np.zeros((0, rows.shape[1])))


@dataclass(slots=True)
class Outcome:
    """What a cut does to held-out queries."""

    kept: list[NDArray[np.bool_]]
    relevant: list[NDArray[np.bool_]]
    empty: list[bool]
    """For each query: whether nothing is left once its answers are deleted."""

    error: list[Floats]
    foreign: list[float]
    """Shares of queries of other collections for which nothing is left."""

    best: list[tuple[float, float]]
    """For each query its largest relevance, with its answers and without."""

    def figures(self) -> dict[str, float]:
        """Return the figures of all queries together.

        ``deleted_auc`` is how well the largest relevance tells queries with answers from the same
        queries without: 0.5 is not at all.
        """
        kept, relevant = np.concatenate(self.kept), np.concatenate(self.relevant)
        return {
            "recall": float(kept[relevant].mean()),
            "removed": float(1 - kept.mean()),
            "precision_gain": float(relevant[kept].mean() / relevant.mean()),
            "empty_when_deleted": float(np.mean(self.empty)) if self.empty else float("nan"),
            "empty_when_foreign": float(np.mean(self.foreign)) if self.foreign else float("nan"),
            "deleted_auc": self._auc(),
            "brier": float(np.concatenate(self.error).mean()) if self.error else float("nan"),
        }

    def _auc(self) -> float:
        if not self.best:
            return float("nan")
        answered, deleted = np.array(self.best).T
        label = np.repeat([1, 0], len(answered))
        return float(roc_auc_score(label, np.concatenate([answered, deleted])))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark has beside the common ones."""
    parser.add_argument("--collections", nargs="*", help="names of some; default: all")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Fit and cut every leg of every collection, and all text collections in one table."""
    connection = database.connect()
    cases: list[dict[str, Any]] = []
    vectors = []
    for folder in some_folders("qrels.tsv"):
        if not (folder / "doc_emb.npy").exists():
            continue
        if options.collections and folder.name not in options.collections:
            continue
        collection = _load(connection, folder)
        vectors.append((folder.name, collection))
    for name, collection in vectors:
        # One of these holds a part of another.
        asked = [c.legs[0].known for n, c in vectors if n.split("-")[0] != name.split("-")[0]]
        if asked:
            collection = replace(collection, foreign=np.concatenate(asked))
        cases += _cases(collection)
    # The vectors of LIMIT know nothing about its queries, and scifact-mv800 is a part of scifact.
    some = [c for name, c in vectors if name not in ("limit-mv600", "scifact-mv800")]
    if len(some) > 1:
        cases += _cases(_together(some), ("vector",))
    return Report({"cases": cases}, _claims(cases), _tables(cases))


def _cases(collection: Collection, only: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    for leg in collection.legs:
        if only and leg.name not in only:
            continue
        methods: dict[str, Callable[[Collection, Leg], dict[float, Outcome]]] = {
            family: lambda c, at, family=family: _fitted(c, at, family)
            for family in ((*EXPONENTS, AUTO) if leg.name == "vector" else ("raw", "linear"))
        }
        methods["autocut"] = _autocut
        if leg.name == "vector":
            methods["background"] = _background
        for method, measure in methods.items():
            yield from _figures(collection, leg.name, method, measure(collection, leg))
    if not only and len(collection.legs) > 1:
        yield from _figures(collection, "fused", "linear", _fused(collection))


def _figures(
    collection: Collection, leg: str, method: str, outcomes: dict[float, Outcome]
) -> Iterator[dict[str, Any]]:
    for target, outcome in outcomes.items():
        yield {
            "collection": collection.name,
            "leg": leg,
            "method": method,
            "target": target,
            **outcome.figures(),
        }


def _fitted(collection: Collection, leg: Leg, family: str) -> dict[float, Outcome]:
    outcomes = {target: Outcome([], [], [], [], [], []) for target in RECALLS}
    candidates, deleted = _lists(leg.x, collection.relevant)
    for number, fold in enumerate(_folds(len(collection.relevant))):
        background = collection.backgrounds[number]
        fit = _fit(collection, leg, family, candidates, ~fold, background)
        model, thresholds = _model(fit), fit.thresholds
        if leg.name == "vector" and len(collection.foreign):
            best = (collection.foreign @ collection.rows.T).max(axis=1, keepdims=True)
            foreign = model.vector_curve(collection.foreign).relevance(best)
            for target, outcome in outcomes.items():
                outcome.foreign.append(float((foreign < thresholds[target]).mean()))
        for query in np.flatnonzero(fold):
            relevance = _relevance(model, leg, query, candidates[query])
            without = _relevance(model, leg, query, deleted[query])
            label = collection.relevant[query, candidates[query]]
            for target, outcome in outcomes.items():
                outcome.kept.append(relevance >= thresholds[target])
                outcome.relevant.append(label)
                outcome.error.append((relevance - label) ** 2)
                outcome.empty.append(not (without >= thresholds[target]).any())
                outcome.best.append((relevance.max(initial=0), without.max(initial=0)))
    return outcomes


def _fit(
    collection: Collection,
    leg: Leg,
    family: str,
    candidates: list[NDArray[np.intp]],
    chosen: NDArray[np.bool_],
    background: Background,
    others: list[NDArray[np.intp]] | None = None,
) -> Fit:
    """Fit a leg to some queries, and judge other rows of these queries too."""
    # A query without candidates has nothing to learn from.
    queries = [q for q in np.flatnonzero(chosen) if len(candidates[q])]
    known = leg.known[queries]
    if leg.name == "vector":
        known = background.features(known)
    x = [leg.x[q, candidates[q]] for q in queries]
    labels = [collection.relevant[q, candidates[q]] for q in queries]
    examples = Examples.of_lists(known, x, labels)
    options: dict[str, Any] = {"recalls": RECALLS}
    if others is not None:
        x = [leg.x[q, others[q]] for q in queries]
        options["others"] = Examples.of_lists(known, x, [np.zeros(len(part)) for part in x])
    if leg.name == "vector":
        nothing = _nothing(collection, background, len(queries))
        options |= {"background": background, "unanswerable": nothing}
    # The queries that judge the choice are held out here already.
    families = EXPONENTS if family == AUTO else (family,)
    fits = [fit_leg(leg.name, examples, family, **options) for family in families]
    return max(fits, key=lambda fit: fit.removed(RECALL))


def _model(fit: Fit) -> LegModel:
    assert isinstance(fit.model, LegModel)
    return fit.model


def _nothing(collection: Collection, background: Background, count: int) -> Examples:
    step = max(len(collection.rows) // 5000, 1)
    return unanswerable(background, collection.rows[::step], count)


def _relevance(model: LegModel, leg: Leg, query: int, rows: NDArray[np.intp]) -> Floats:
    known = leg.known[query : query + 1]
    curve = model.vector_curve(known) if leg.name == "vector" else model.curve(known)
    return curve.relevance(leg.x[query, rows][None])[0]


def _autocut(collection: Collection, leg: Leg) -> dict[float, Outcome]:
    """Cut every list at its first jump; it always keeps a row."""
    candidates, _ = _lists(leg.x, collection.relevant)
    outcome = Outcome([], [], [], [], [], [])
    for query, rows in enumerate(candidates):
        cut = autocut(leg.x[query, rows])
        outcome.kept.append(np.arange(len(rows)) < cut)
        outcome.relevant.append(collection.relevant[query, rows])
    return {float("nan"): outcome}


def _background(collection: Collection, leg: Leg) -> dict[float, Outcome]:
    """Fit without labels, and keep what is more likely about the query's matter than not."""
    random = np.random.default_rng(0)
    sample = random.choice(len(collection.rows), min(SAMPLE, len(collection.rows)), replace=False)
    candidates, deleted = _lists(leg.x, collection.relevant)
    outcome = Outcome([], [], [], [], [], [])
    for number, fold in enumerate(_folds(len(collection.relevant))):
        queries = np.flatnonzero(~fold)
        background = collection.backgrounds[number]
        x = [leg.x[q, candidates[q]] for q in queries]
        labels = background_labels(x, [leg.x[q, sample] for q in queries], len(collection.rows))
        examples = Examples.of_lists(background.features(leg.known[queries]), x, labels)
        nothing = _nothing(collection, background, len(queries))
        model = fit_leg("vector", examples, background=background, unanswerable=nothing).model
        assert isinstance(model, LegModel)
        for query in np.flatnonzero(fold):
            relevance = _relevance(model, leg, query, candidates[query])
            label = collection.relevant[query, candidates[query]]
            outcome.kept.append(relevance >= 0.5)
            outcome.relevant.append(label)
            outcome.error.append((relevance - label) ** 2)
            without = _relevance(model, leg, query, deleted[query])
            outcome.empty.append(not (without >= 0.5).any())
            outcome.best.append((relevance.max(initial=0), without.max(initial=0)))
    return {float("nan"): outcome}


def _fused(collection: Collection) -> dict[float, Outcome]:
    """Combine the legs over the union of their candidates, scored by every leg."""
    outcomes = {target: Outcome([], [], [], [], [], []) for target in RECALLS}
    lists = {leg.name: _lists(leg.x, collection.relevant) for leg in collection.legs}
    found, deleted = (
        [
            np.unique(np.concatenate(rows))
            for rows in zip(*(both[part] for both in lists.values()), strict=True)
        ]
        for part in (0, 1)
    )
    for number, fold in enumerate(_folds(len(collection.relevant))):
        background = collection.backgrounds[number]
        held_out = {leg.name: np.full(collection.relevant.shape, np.nan) for leg in collection.legs}
        models = {}
        for leg in collection.legs:
            own = lists[leg.name][0]
            others = [
                rows[~np.isin(rows, own[q]) & ~np.isnan(leg.x[q, rows])] if len(own[q]) else own[q]
                for q, rows in enumerate(found)
            ]
            fit = _fit(collection, leg, "linear", own, ~fold, background, others)
            models[leg.name] = _model(fit)
            for rows, relevance in ((own, fit.relevance), (others, fit.others)):
                places = [(q, row) for q in np.flatnonzero(~fold) for row in rows[q]]
                held_out[leg.name][tuple(np.array(places).T)] = relevance
        pairs = [(q, row) for q in np.flatnonzero(~fold) for row in found[q]]
        query, row = np.array(pairs).T
        values = {name: part[query, row] for name, part in held_out.items()}
        numbered = np.unique(query, return_inverse=True)[1]
        fit = fit_fused(values, numbered, collection.relevant[query, row], recalls=RECALLS)
        assert isinstance(fit.model, FusedModel)
        for q in np.flatnonzero(fold):
            best = []
            for rows in (found[q], deleted[q]):
                scores = np.full((3, len(rows)), np.nan)
                for leg in collection.legs:
                    known = ~np.isnan(leg.x[q, rows])
                    place = LEGS.index(leg.name)
                    scores[place, known] = _relevance(models[leg.name], leg, q, rows[known])
                relevance = fit.model.relevance(*scores)
                best.append(relevance.max(initial=0))
                for target, outcome in outcomes.items():
                    kept = relevance >= fit.thresholds[target]
                    if len(best) == 1:
                        label = collection.relevant[q, rows]
                        outcome.kept.append(kept)
                        outcome.relevant.append(label)
                        outcome.error.append((relevance - label) ** 2)
                    else:
                        outcome.empty.append(not kept.any())
                        outcome.best.append((best[0], best[1]))
    return outcomes


def _lists(
    x: Floats, relevant: NDArray[np.bool_]
) -> tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]]:
    """Return the best rows of every query, as they are and without those that are relevant."""

    def best(scores: Floats) -> list[NDArray[np.intp]]:
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable")[:, :TOP]
        return [rows[~np.isnan(row[rows])] for row, rows in zip(scores, order, strict=True)]

    return best(x), best(np.where(relevant, np.nan, x))


def _folds(count: int) -> Iterator[NDArray[np.bool_]]:
    number = np.random.default_rng(0).permutation(count) % FOLDS
    for fold in range(FOLDS):
        yield number == fold


def _load(connection: Connection, folder: Path) -> Collection:
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    row_of = {document["_id"]: i for i, document in enumerate(documents)}
    query_of = {query["_id"]: i for i, query in enumerate(queries)}
    relevant = np.zeros((len(queries), len(documents)), dtype=bool)
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, _ = line.split("\t")
        relevant[query_of[query], row_of[document]] = True
    rows, asked = (_unit(np.load(folder / f"{side}_emb.npy")) for side in ("doc", "query"))
    legs = [Leg("vector", asked @ rows.T, asked)]
    bodies = [f"{document.get('title', '')} {document['text']}".strip() for document in documents]
    legs.append(_text_leg(connection, folder.name, bodies, [query["text"] for query in queries]))
    if (folder / "doc_tokens.npy").exists():
        legs.append(_tokens_leg(folder))
    return Collection.of(folder.name, relevant, rows, legs)


def _text_leg(connection: Connection, name: str, bodies: list[str], queries: list[str]) -> Leg:
    # Named after the collection: sqlvec takes the type of the table as an argument.
    connection.execute(f'CREATE TABLE "{name}" (id int PRIMARY KEY, body text)')
    with connection.cursor().copy(f'COPY "{name}" FROM STDIN') as copy:
        for row in enumerate(bodies):
            copy.write_row(row)
    for call in ("add_bm25(%s, 'body')", "backfill(%s)", "analyze_bm25(%s)"):
        connection.execute(f"CALL sqlvec.{call}", [f'"{name}"'])
    x = np.full((len(queries), len(bodies)), np.nan)
    known = []
    for number, query in enumerate(queries):
        maximum, terms = connection.execute(
            f"""SELECT sqlvec.bm25_maximum(NULL::"{name}", 'body', %(q)s),
                (numnode(sqlvec.bm25_tsquery(NULL::"{name}", 'body', %(q)s)) + 1) / 2""",
            {"q": query},
        ).fetchone() or (0, 0)
        known.append(score_features([maximum], [terms])[0])
        found = connection.execute(
            f"""SELECT key, score FROM
                sqlvec.bm25_search_keys(NULL::"{name}", 'body', %s, key => NULL::int, k => %s)""",
            (query, MOST),
        ).fetchall()
        for row, score in found:
            x[number, row] = score / maximum
    return Leg("text", x, np.array(known))


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


def _together(collections: list[Collection]) -> Collection:
    """Put everything into one table, as an application with several sources has it."""
    rows = np.concatenate([collection.rows for collection in collections])
    asked = np.concatenate([collection.legs[0].known for collection in collections])
    relevant = np.zeros((len(asked), len(rows)), dtype=bool)
    query = row = 0
    for collection in collections:
        height, width = collection.relevant.shape
        relevant[query : query + height, row : row + width] = collection.relevant
        query, row = query + height, row + width
    return Collection.of(TOGETHER, relevant, rows, [Leg("vector", asked @ rows.T, asked)])


def _unit(vectors: NDArray[Any]) -> Floats:
    values = vectors.astype(np.float64)
    result: Floats = values / np.linalg.norm(values, axis=1, keepdims=True)
    return result


def _at_target(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [case for case in cases if case["target"] == RECALL or np.isnan(case["target"])]


def _ratios(cases: list[dict[str, Any]]) -> dict[str, float]:
    """Return what the best family removes as a multiple of raw cosine, by collection."""
    removed: dict[str, dict[str, float]] = {}
    for case in cases:
        if case["leg"] == "vector" and case["target"] == RECALL:
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
            title = f"{case['collection']}: fused returns nothing when answers are deleted"
            claims.append(Claim(title, case["empty_when_deleted"], 0.8))
    return claims


def _tables(cases: list[dict[str, Any]]) -> list[Any]:
    measures = (
        "recall",
        "removed",
        "precision_gain",
        "empty_when_deleted",
        "empty_when_foreign",
        "deleted_auc",
        "brier",
    )
    columns = ("collection", "leg", "method", *(name.replace("_", " ") for name in measures))
    rows = [
        (case["collection"], case["leg"], case["method"], *(case[name] for name in measures))
        for case in _at_target(cases)
    ]
    by_recall = [
        (case["collection"], case["leg"], *(case[name] for name in ("target", *measures[:4])))
        for case in cases
        if case["method"] == "linear" and not np.isnan(case["target"])
    ]
    columns_by_recall = ("collection", "leg", "target", *columns[3:7])
    return [
        table("Cut at the threshold for 95 % recall, held-out queries", columns, rows),
        table("Family linear by wanted recall", columns_by_recall, by_recall),
    ]


def draw(report: Report, path: Path) -> None:
    """Draw what each method removes from the candidates of the vector leg."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = [case for case in _at_target(report.figures["cases"]) if case["leg"] == "vector"]
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
