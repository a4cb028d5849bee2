"""Expansion along a graph of nearest neighbours: recall@100 and nDCG@10 against vector search.

Every query takes some hits of an exact vector search, expands them on the server, and keeps 100
rows: those of the best scores on the graph, or of the largest cosines among all that were reached.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from benchmarks.data import create_table
from benchmarks.judged import Collection, judged, ranking
from benchmarks.measure import interleaved, median, seconds
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database

DEPTH = 100
SEEDS = (10, 30, 100)
DEFAULT = "30 hits, 1 hop"
ARGUMENTS = {
    "1 hop": "",
    "1 hop, 10 edges": ", limit_edges => 10",
    "1 hop, 100 edges": ", limit_edges => 100",
    "1 hop, blend 0.2": ", blend => 0.2",
    "2 hops": ", hops => 2",
    "2 hops, decay 0.9": ", hops => 2, decay => 0.9",
}

Figures = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark has beside the common ones."""
    parser.add_argument("--neighbours", type=int, default=10, help="edges from each row")
    parser.add_argument("--queries", type=int, default=325, help="queries of each collection")
    parser.add_argument("--timed", type=int, default=50, help="queries timed on the server")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Build the graph of every collection and expand the hits of its queries."""
    session = database.connect()
    cases, speeds = [], []
    for collection in judged():
        asked = np.arange(min(options.queries, len(collection.queries)))
        create_table(session, "doc", collection.documents)
        session.execute("CREATE INDEX ON doc USING hnsw (embedding vector_cosine_ops)")
        build = _build(session, "doc_neighbours", options.neighbours, mutual=False)
        _build(session, "doc_mutual", options.neighbours, mutual=True)
        cosines = collection.queries[asked] @ collection.documents.T
        plain = ranking(cosines, DEPTH)
        cases.append(
            {"collection": collection.name, "way": "vector search", "hits": DEPTH, "reached": DEPTH}
            | _figures(collection, asked, plain, "graph")
            | _figures(collection, asked, plain, "rescored")
        )
        for seeds in SEEDS:
            for label, arguments in ARGUMENTS.items():
                cases.append(
                    _expanded(
                        session,
                        collection,
                        asked,
                        cosines,
                        plain[:, :seeds],
                        "doc_neighbours",
                        arguments,
                    )
                    | {"way": f"{seeds} hits, {label}", "hits": seeds}
                )
            cases.append(
                _expanded(session, collection, asked, cosines, plain[:, :seeds], "doc_mutual", "")
                | {"way": f"{seeds} hits, 1 hop, mutual", "hits": seeds}
            )
        speeds.append(
            _speed(session, collection, options.timed)
            | {"build_ms": build / len(collection.documents) * 1e3}
        )
        session.execute("DROP TABLE doc_neighbours, doc_mutual, doc")
    return Report({"cases": cases, "speed": speeds}, _claims(cases), _tables(cases, speeds))


def _build(session: Connection, name: str, neighbours: int, mutual: bool) -> float:
    call = "CALL sqlvec.build_neighbours('doc', 'embedding', %s, %s, mutual => %s)"
    taken = seconds(lambda: session.execute(call, (neighbours, name, mutual)))
    session.execute(f"VACUUM ANALYZE {name}".encode())
    return taken


def _expanded(
    session: Connection,
    collection: Collection,
    asked: NDArray[np.intp],
    cosines: NDArray[np.float32],
    seeds: NDArray[np.intp],
    graph: str,
    arguments: str,
) -> Figures:
    statement = (
        f"SELECT key, score FROM sqlvec.expand('{graph}', %s::int[], %s{arguments})".encode()
    )
    by_graph = np.full((len(asked), DEPTH), -1)
    rescored = by_graph.copy()
    reached = []
    for query, hits in enumerate(seeds):
        scores = cosines[query, hits].astype(float).tolist()
        rows = session.execute(statement, (hits.tolist(), scores)).fetchall()
        found = np.array([int(str(row[0])) for row in rows])
        reached.append(len(found))
        best = found[np.argsort(-cosines[query, found], kind="stable")][:DEPTH]
        by_graph[query, : len(found[:DEPTH])] = found[:DEPTH]
        rescored[query, : len(best)] = best
    return (
        {"collection": collection.name, "reached": float(np.mean(reached))}
        | _figures(collection, asked, by_graph, "graph")
        | _figures(collection, asked, rescored, "rescored")
    )


def _figures(
    collection: Collection, asked: NDArray[np.intp], ranked: NDArray[np.intp], prefix: str
) -> Figures:
    relevant = collection.grades[asked] > 0
    hit = np.where(ranked < 0, False, np.take_along_axis(relevant, ranked, axis=1))
    recall = (hit.sum(axis=1) / relevant.sum(axis=1)).mean()
    ndcg = collection.ndcg(ranked[:, :10], asked).mean()
    return {f"{prefix}_recall": float(recall), f"{prefix}_ndcg": float(ndcg)}


def _speed(session: Connection, collection: Collection, timed: int) -> Figures:
    queries = collection.queries[:timed]
    search = "sqlvec.vector_search(NULL::doc, 'embedding', %s, k => {})"
    plain = f"SELECT (hit).id FROM {search.format(DEPTH)}".encode()
    expanded = (
        "SELECT d.id FROM (SELECT array_agg((hit).id) AS keys, array_agg(1 - distance) AS scores"
        f" FROM {search.format(30)}) AS h, sqlvec.expand('doc_neighbours', h.keys, h.scores) AS e"
        f" JOIN doc AS d ON d.id = e.key ORDER BY d.embedding <=> %s LIMIT {DEPTH}"
    ).encode()
    times = interleaved(
        {
            "search": lambda n: session.execute(plain, (queries[n],)).fetchall(),
            "expanded": lambda n: session.execute(expanded, (queries[n], queries[n])).fetchall(),
        },
        len(queries),
        rounds=3,
    )
    return {
        "collection": collection.name,
        "documents": len(collection.documents),
        "search_ms": median(times["search"]),
        "expanded_ms": median(times["expanded"]),
    }


def _by_way(cases: list[Figures], figure: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for case in cases:
        found.setdefault(case["way"], {})[case["collection"]] = case[figure]
    return found


def _claims(cases: list[Figures]) -> list[Claim]:
    claims = []
    for figure, text in (
        ("graph_recall", "recall@100, by score on the graph"),
        ("rescored_recall", "recall@100, by cosine"),
    ):
        found = _by_way(cases, figure)
        change = [found[DEFAULT][name] - own for name, own in found["vector search"].items()]
        claims.append(Claim(f"{text}: mean change", float(np.mean(change)), 0.0))
    found = _by_way(cases, "graph_ndcg")
    blended = found["30 hits, 1 hop, blend 0.2"]
    change = [blended[name] - own for name, own in found["vector search"].items()]
    return [*claims, Claim("nDCG@10, blend 0.2: mean change", float(np.mean(change)), 0.0)]


def _tables(cases: list[Figures], speeds: list[Figures]) -> list[Any]:
    tables = []
    for figure, text in (
        ("reached", "Rows reached"),
        ("graph_recall", "Recall@100, by score on the graph"),
        ("rescored_recall", "Recall@100, by cosine"),
        ("graph_ndcg", "nDCG@10, by score on the graph"),
    ):
        found = _by_way(cases, figure)
        rows = [(way, *own.values()) for way, own in found.items()]
        tables.append(table(text, ("way", *found["vector search"]), rows))
    speed = table(
        "ms: to build the edges of a row, of 100 rows by search, by 30 hits expanded and rescored",
        ("collection", "documents", "build", "search", "expanded"),
        [
            (s["collection"], s["documents"], s["build_ms"], s["search_ms"], s["expanded_ms"])
            for s in speeds
        ],
    )
    return [*tables, speed]


def draw(report: Report, path: Path) -> None:
    """Draw the change of recall@100 by each way."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 6), sharey=True, layout="constrained")
    for axis, prefix in zip(axes, ("graph", "rescored"), strict=True):
        found = _by_way(report.figures["cases"], f"{prefix}_recall")
        base = found.pop("vector search")
        for name, own in base.items():
            change = [some[name] - own for some in found.values()]
            axis.plot(change, range(len(change)), marker="o", linestyle="", label=name)
        axis.set_yticks(range(len(found)), list(found))
        axis.axvline(0, color="grey", linewidth=1)
        axis.set_xlabel("change of recall@100")
        axis.set_title({"graph": "by score on the graph", "rescored": "by cosine"}[prefix])
    axes[1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
