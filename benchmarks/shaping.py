"""Shaping of hits: what mmr, compress, refine and average do to the first ten, and their cost.

The 100 nearest documents of each query are shaped on the server. Judgements look at one document
at a time, so that nDCG can only fall where documents are made to differ. The other figures say what
is got for it: the mean cosine between the ten, and how well the words of the relevant documents are
covered, the mean over these of the tf-idf cosine to the nearest of the ten.

AND, OR and NOT are measured on pairs of queries with judgements in common: relevant is what the
judgements combined say. The relevance model is fitted to the queries that are in no pair.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from psycopg.types.json import Jsonb
from sklearn.feature_extraction.text import TfidfVectorizer
from sqlalchemy import NullPool, create_engine

from benchmarks.data import create_table
from benchmarks.folders import folders
from benchmarks.judged import Collection, judged, ranking
from benchmarks.measure import interleaved, median
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database
from sqlvec import relevance
from sqlvec.fit.relevance import Examples, fit_leg

K = 10
TOP = 100
PLAIN = "nearest"
CALLS = {
    **{
        f"mmr, diversity {diversity}": f"sqlvec.mmr(vectors, cosines, {K}, {diversity})"
        for diversity in (0.1, 0.2, 0.3, 0.5)
    },
    **{
        f"compress, coverage {coverage}": f"sqlvec.compress(vectors, {K}, cosines, {coverage})"
        for coverage in (0.1, 0.2, 0.3, 0.5, 1)
    },
    "compress, coverage 0.3, diversity 0.1": f"sqlvec.compress(vectors, {K}, cosines, 0.3, 0.1)",
    **{
        f"refine, {neighbours} neighbours": f"sqlvec.refine(query, vectors, {neighbours})"
        for neighbours in (3, 9, 20)
    },
    "refine, 9 neighbours, expand": "sqlvec.refine(query, vectors, expand => true)",
}
TIMED = {
    "mmr": "sqlvec.mmr(vectors, cosines)",
    "compress": "sqlvec.compress(vectors, 10, cosines)",
    "refine": "sqlvec.refine(query, vectors)",
    "refine, expand": "sqlvec.refine(query, vectors, expand => true)",
    "average": "sqlvec.average(vectors[:9])",
    "best_per_group": "sqlvec.best_per_group(groups, cosines)",
}
QUESTIONS: dict[str, Any] = {
    "a AND b": {"and": [1, 2]},
    "a OR b": {"or": [1, 2]},
    "a AND NOT b": {"and": [1, {"not": 2}]},
}
Ranked = NDArray[np.intp]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark has beside the common ones."""
    parser.add_argument("--queries", type=int, default=100, help="queries of each collection")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of queries of each question")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of timing")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Shape the hits of every collection, combine queries, and time each function."""
    session = database.connect()
    cases, questions = [], []
    speeds: list[dict[str, Any]] = []
    for collection in judged():
        create_table(session, "doc", collection.documents)
        # The vectors of LIMIT know nothing about its queries.
        if collection.name != "limit-mv600":
            cases += _shaped(session, collection, options.queries)
        questions += _questions(database, session, collection, options.pairs)
        if not speeds:
            speeds = [_speed(session, collection, hits, options.rounds) for hits in (TOP, 1000)]
        session.execute("DROP TABLE doc")
    figures = {"cases": cases, "questions": questions, "speeds": speeds}
    return Report(figures, _claims(cases, questions, speeds), _tables(cases, questions, speeds))


def _shaped(session: Connection, collection: Collection, count: int) -> list[dict[str, Any]]:
    """Rank the hits of every query in every way."""
    judged_rows = np.flatnonzero(collection.grades.any(axis=1))
    asked = np.random.default_rng(0).permutation(judged_rows)[:count]
    nearest = ranking(collection.queries[asked] @ collection.documents.T, TOP)
    words = _words(collection)
    ranked: dict[str, Ranked] = {PLAIN: nearest[:, :K]}
    for label, call in CALLS.items():
        ranked[label] = np.array(
            [
                row[_positions(session, call, collection.queries[query], row)]
                for query, row in zip(asked, nearest, strict=True)
            ]
        )
    for hits in (3, 5):
        ranked[f"search again by average with {hits} hits"] = np.array(
            [
                _again(session, collection.queries[query], row[:hits])
                for query, row in zip(asked, nearest, strict=True)
            ]
        )
    return [
        {
            "collection": collection.name,
            "way": label,
            "ndcg": float(collection.ndcg(rows, asked).mean()),
            "cosine": float(np.mean([_mean_cosine(collection.documents[row]) for row in rows])),
            "covered": float(
                np.mean(
                    [
                        (words[collection.grades[query] > 0] @ words[row].T).max(axis=1).mean()
                        for query, row in zip(asked, rows, strict=True)
                    ]
                )
            ),
        }
        for label, rows in ranked.items()
    ]


def _words(collection: Collection) -> NDArray[np.float32]:
    folder = next(f for f in folders("corpus.jsonl.gz") if f.name == collection.name)
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [f"{(own := json.loads(line))['title']} {own['text']}" for line in lines]
    vectorizer = TfidfVectorizer(stop_words="english", sublinear_tf=True, dtype=np.float32)
    return np.asarray(vectorizer.fit_transform(texts).toarray())


def _mean_cosine(rows: NDArray[np.float32]) -> float:
    n = len(rows)
    return float(((rows @ rows.T).sum() - n) / (n * (n - 1)))


_LIST = """
    SELECT %(query)s::vector AS query, array_agg(d.embedding ORDER BY t.n) AS vectors,
           array_agg(1 - (d.embedding <=> %(query)s::vector) ORDER BY t.n) AS cosines,
           array_agg((t.n / 3)::text ORDER BY t.n) AS groups
    FROM unnest(%(ids)s::int[]) WITH ORDINALITY AS t (id, n) JOIN doc AS d USING (id)
"""


def _positions(
    session: Connection, call: str, query: NDArray[np.float32], rows: Ranked
) -> list[int]:
    statement = f"""
        WITH list AS ({_LIST})
        SELECT array_agg(s.position - 1 ORDER BY s.turn)
        FROM list, LATERAL {call} WITH ORDINALITY AS s (position, score, turn) WHERE s.turn <= {K}
    """
    row = session.execute(statement.encode(), {"query": query, "ids": rows.tolist()}).fetchone()
    assert row is not None and isinstance(row[0], list)
    return row[0]


def _again(session: Connection, query: NDArray[np.float32], rows: Ranked) -> list[int]:
    statement = f"""
        WITH list AS ({_LIST})
        SELECT array_agg((s.hit).id ORDER BY s.distance)
        FROM list, LATERAL sqlvec.vector_search(
            NULL::doc, 'embedding', sqlvec.average(query || vectors), k => {K},
            metric => 'cosine', mode => 'exact') AS s
    """
    row = session.execute(statement.encode(), {"query": query, "ids": rows.tolist()}).fetchone()
    assert row is not None and isinstance(row[0], list)
    return row[0]


def _questions(
    database: Database, session: Connection, collection: Collection, count: int
) -> list[dict[str, Any]]:
    """Ask pairs of queries that share some of their judgements and do not share others."""
    relevant = collection.grades > 0
    common = relevant.astype(np.float32) @ relevant.T.astype(np.float32)
    own = relevant.sum(axis=1)
    pairs = [
        (a, b)
        for a, b in itertools.permutations(range(len(relevant)), 2)
        if common[a, b] >= 3 and own[a] - common[a, b] >= 3 and own[b] - common[a, b] >= 3
    ]
    pairs = [pairs[p] for p in np.random.default_rng(0).permutation(len(pairs))[:count]]
    others = np.setdiff1d(np.arange(len(relevant)), np.array(pairs).ravel())
    if len(pairs) < count or len(others) < 50:
        return []
    _fit(database, collection, others)
    a, b = (collection.queries[np.array(side)] for side in zip(*pairs, strict=True))
    one, other = (relevant[np.array(side)] for side in zip(*pairs, strict=True))
    truths = {"a AND b": one & other, "a OR b": one | other, "a AND NOT b": one & ~other}
    vectors = {"a + b": a + b, "a - b": a - b, "a alone": a}
    found = []
    for question, truth in truths.items():
        asked = Collection(question, collection.documents, a, truth.astype(np.float32))
        every = np.arange(len(a))
        ways = {name: ranking(query @ collection.documents.T, K) for name, query in vectors.items()}
        took: dict[str, list[float]] = {}
        for combine in ("product", "minimum"):
            way = f"boolean_search, {combine}"
            took[way] = []
            rows = []
            for x, y in zip(a, b, strict=True):
                started = perf_counter()
                rows.append(_boolean(session, x, y, QUESTIONS[question], combine))
                took[way].append((perf_counter() - started) * 1e3)
            ways[way] = np.array(rows)
        found += [
            {
                "collection": collection.name,
                "question": question,
                "way": way,
                "pairs": len(a),
                "ndcg": float(asked.ndcg(ranked, every).mean()),
                "ms": float(np.median(took[way])) if way in took else None,
                "least_ms": min(took[way]) if way in took else None,
            }
            for way, ranked in ways.items()
        ]
    session.execute("CALL sqlvec.drop_relevance_model('model')")
    return found


def _fit(database: Database, collection: Collection, queries: NDArray[np.intp]) -> None:
    cosines = collection.queries[queries] @ collection.documents.T
    nearest = ranking(cosines, TOP)
    fit = fit_leg(
        "vector",
        Examples.of_lists(
            np.zeros((len(queries), 0)),
            list(np.take_along_axis(cosines, nearest, axis=1)),
            list(np.take_along_axis(collection.grades[queries] > 0, nearest, axis=1)),
        ),
        "raw",
    )
    engine = create_engine("postgresql+psycopg://", creator=database.connect, poolclass=NullPool)
    with engine.connect() as connection:
        relevance.save(connection, "model", fit.model, table="doc", column="embedding")


def _boolean(
    session: Connection,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    expression: Any,
    combine: str,
) -> list[int]:
    rows = session.execute(
        "SELECT (hit).id FROM sqlvec.boolean_search(NULL::doc, 'embedding', ARRAY[%s::vector, %s],"
        " %s, relevance => 'model', combine => %s)",
        (a, b, Jsonb(expression), combine),
    ).fetchall()
    return [int(str(row[0])) for row in rows]


def _speed(session: Connection, collection: Collection, hits: int, rounds: int) -> dict[str, Any]:
    """Time every function on lists of so many hits."""
    queries = collection.queries[:10]
    nearest = ranking(queries @ collection.documents.T, hits)
    session.execute(
        f"CREATE TEMP TABLE list AS SELECT 0 AS number, * FROM ({_LIST}) AS l LIMIT 0",
        {"query": queries[0], "ids": []},
    )
    for number, (query, rows) in enumerate(zip(queries, nearest, strict=True)):
        session.execute(
            f"INSERT INTO list SELECT {number}, * FROM ({_LIST}) AS l",
            {"query": query, "ids": rows.tolist()},
        )
    sides: dict[str, Callable[[int], object]] = {
        label: (
            lambda number, call=call: session.execute(
                f"SELECT count(*) FROM list, LATERAL {call} AS s WHERE number = %s".encode(),
                (number,),
            ).fetchone()
        )
        for label, call in TIMED.items()
    }
    times = interleaved(sides, len(queries), rounds)
    session.execute("DROP TABLE list")
    return {
        "hits": hits,
        "dimensions": collection.documents.shape[1],
        "ms": {label: median(some) for label, some in times.items()},
        # Of all rounds of a query the one that other work disturbed least.
        "least_ms": {label: float(some.min(axis=0).mean()) for label, some in times.items()},
    }


def _by_way(cases: list[dict[str, Any]], figure: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for case in cases:
        found.setdefault(case["way"], {})[case["collection"]] = case[figure]
    return found


def _mean_change(cases: list[dict[str, Any]], way: str) -> float:
    found = _by_way(cases, "ndcg")
    return float(np.mean([found[way][name] - found[PLAIN][name] for name in found[PLAIN]]))


def _claims(
    cases: list[dict[str, Any]], questions: list[dict[str, Any]], speeds: list[dict[str, Any]]
) -> list[Claim]:
    claims = [
        Claim(f"{way}: mean change of nDCG@10", _mean_change(cases, way), target)
        for way, target in (("refine, 9 neighbours", 0.0), ("mmr, diversity 0.1", -0.02))
    ]
    claims += [
        Claim(f"{label}: ms for {TOP} hits", speeds[0]["least_ms"][label], target, True)
        for label, target in (("mmr", 5.0), ("compress", 10.0), ("refine", 10.0))
    ]
    for question in dict.fromkeys(case["question"] for case in questions):
        own = [case for case in questions if case["question"] == question]
        by_way: dict[str, list[float]] = {}
        for case in own:
            by_way.setdefault(case["way"], []).append(case["ndcg"])
        means = {way: float(np.mean(values)) for way, values in by_way.items()}
        best = max(value for way, value in means.items() if not way.startswith("boolean"))
        claims.append(
            Claim(
                f"{question}: nDCG@10 against the best single vector",
                means["boolean_search, product"] - best,
                0.0,
            )
        )
    return claims


def _tables(
    cases: list[dict[str, Any]], questions: list[dict[str, Any]], speeds: list[dict[str, Any]]
) -> list[Any]:
    tables = []
    for figure, text in (
        ("ndcg", "nDCG@10"),
        ("cosine", "Mean cosine between the ten"),
        ("covered", "Words of the relevant documents covered"),
    ):
        found = _by_way(cases, figure)
        tables.append(
            table(
                text, ("way", *found[PLAIN]), [(way, *own.values()) for way, own in found.items()]
            )
        )
    tables.append(
        table(
            "Pairs of queries: nDCG@10",
            ("question", "collection", "way", "pairs", "nDCG@10"),
            [(c["question"], c["collection"], c["way"], c["pairs"], c["ndcg"]) for c in questions],
        )
    )
    tables.append(
        table(
            "Milliseconds",
            ("hits", *TIMED),
            [
                (f"{speed['hits']:,}, {name}", *speed[figure].values())
                for speed in speeds
                for name, figure in (("median", "ms"), ("least", "least_ms"))
            ],
        )
    )
    return tables


def draw(report: Report, path: Path) -> None:
    """Draw nDCG against how alike the ten are."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases: list[dict[str, Any]] = report.figures["cases"]
    names = list(dict.fromkeys(case["collection"] for case in cases))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4 * len(names), 4), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        own = [case for case in cases if case["collection"] == name]
        for method in ("mmr", "compress", "refine", PLAIN):
            some = [case for case in own if case["way"].startswith(method)]
            axis.plot(
                [case["cosine"] for case in some],
                [case["ndcg"] for case in some],
                marker="o",
                linestyle="",
                label=method,
            )
        axis.set_title(name)
        axis.set_xlabel("mean cosine between the ten")
    axes[0][0].set_ylabel("nDCG@10")
    axes[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
