"""Pooled multi-vectors: quality of MaxSim on them, their size, and the time that pooling takes.

Real token vectors, pooled in numpy, which gives the vectors of the server, and ranked by a full
scan. The time is that of ``sqlvec.pool`` on the server.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Report, table
from benchmarks.server import Database
from benchmarks.tokens import Tokens, best, collections, judgements, maxsim, ndcg, tokens
from sqlvec.encoders import Pool
from sqlvec.types.multivector import to_text

K = 10
CANDIDATES = 50
SIZES = (32, 128, 512, 1024)
DIMENSIONS = 128
POOLS = (
    Pool("hierarchical", factor=2),
    Pool("hierarchical", factor=3),
    Pool("hierarchical", factor=4),
    Pool("hierarchical", factor=2, normalize=True),
    Pool("hierarchical", factor=4, normalize=True),
    Pool("kmeans", factor=2),
    Pool("kmeans", factor=4),
    Pool("kmeans", clusters=32),
    Pool("sequential", factor=2),
    Pool("sequential", factor=4),
    Pool("top", share=0.5),
    Pool("prefix", tokens=64),
)
TIMED = (Pool("hierarchical"), Pool("kmeans"), Pool("sequential"), Pool("rows"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark has beside the common ones."""
    parser.add_argument("--queries", type=int, default=300, help="queries of each collection")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Pool every collection in every way, rank it, and time the server."""
    per_vector, header = _stored_size(database)
    cases: list[dict[str, Any]] = []
    for folder in collections():
        documents, queries = tokens(folder, "doc"), tokens(folder, "query")[: options.queries]
        grades = judgements(folder)
        exact = [best(row, CANDIDATES) for row in maxsim(documents, queries)]
        weights = _rarity(folder)
        for pool in (None, *POOLS):
            pooled = documents
            if pool is not None:
                own = weights if pool.method == "top" else None
                pooled = [x.astype(np.float32) for x in pool.documents(documents, own)]
            found = [best(row, CANDIDATES) for row in maxsim(pooled, queries)]
            vectors = float(np.mean([len(x) for x in pooled]))
            cases.append(
                {
                    "collection": folder.name,
                    "documents": len(documents),
                    "pool": _label(pool),
                    "vectors": vectors,
                    "bytes": header + per_vector * vectors,
                    "ndcg": float(
                        np.mean([ndcg(f[:K], g) for f, g in zip(found, grades, strict=False)])
                    ),
                    "recall": float(
                        np.mean(
                            [
                                len(np.intersect1d(e[:K], f)) / K
                                for e, f in zip(exact, found, strict=True)
                            ]
                        )
                    ),
                }
            )
    times = _times(database)
    columns = (
        "collection, documents",
        "pooled",
        "vectors",
        "bytes",
        f"nDCG@{K}",
        f"top {K} in {CANDIDATES}",
    )
    rows = [
        (
            f"{case['collection']}, {case['documents']:,}",
            case["pool"],
            case["vectors"],
            round(case["bytes"]),
            case["ndcg"],
            case["recall"],
        )
        for case in cases
    ]
    return Report(
        {"cases": cases, "milliseconds": times},
        [],
        [
            table("MaxSim on pooled documents", columns, rows),
            table(
                f"Milliseconds for tokens of {DIMENSIONS} dimensions",
                ("method", *map(str, SIZES)),
                [(method, *found.values()) for method, found in times.items()],
            ),
        ],
    )


def _label(pool: Pool | None) -> str:
    if pool is None:
        return "all tokens"
    shown = {"factor", "clusters", "share", "tokens"}
    given = (f"{k} {v}" for k, v in pool.options().items() if k in shown and v is not None)
    return f"{pool.method}, {', '.join(given)}{', normalized' if pool.normalize else ''}"


def _rarity(folder: Path) -> list[NDArray[np.float64]]:
    """Return weights of tokens: the fewer documents have a word piece, the more it weighs."""
    pieces = np.load(folder / "doc_token_ids.npy")
    offsets = np.load(folder / "doc_offsets.npy")
    own = [pieces[start:end] for start, end in zip(offsets, offsets[1:], strict=False)]
    counts = np.bincount(np.concatenate([np.unique(piece) for piece in own]), minlength=65536)
    rarity = np.log(len(own) / np.maximum(counts, 1))
    return [rarity[piece] for piece in own]


def _stored_size(database: Database) -> tuple[int, int]:
    """Return the bytes of one vector in a multi-vector, and those that come once."""
    connection = database.connect()
    sizes = [_stored(connection, count) for count in (1, 2)]
    return sizes[1] - sizes[0], 2 * sizes[0] - sizes[1]


def _stored(connection: Any, count: int) -> int:
    tokens = to_text(np.ones((count, DIMENSIONS)))
    row = connection.execute("SELECT pg_column_size(%s::halfvec[])", (tokens,)).fetchone()
    size: int = row[0]
    return size


def _times(database: Database) -> dict[str, dict[str, float]]:
    """Return the median time of pooling one document on the server, by method and size."""
    connection: Any = database.connect()
    documents = np.concatenate([x for folder in collections() for x in _some(folder)])
    times: dict[str, dict[str, float]] = {}
    for pool in TIMED:
        connection.execute(
            "CALL sqlvec.create_encoder(%s, 'pool', %s, %s)",
            (pool.method, DIMENSIONS, json.dumps(pool.options())),
        )
        times[pool.method] = {}
        for size in SIZES:
            value = to_text(documents[:size])
            connection.execute(
                "CREATE TEMPORARY TABLE timed AS SELECT %s::halfvec[] AS t", (value,)
            )
            taken = []
            for _ in range(6):
                start = time.perf_counter()
                connection.execute("SELECT sqlvec.pool(%s, t) IS NULL FROM timed", (pool.method,))
                taken.append((time.perf_counter() - start) * 1000)
            times[pool.method][str(size)] = float(np.median(taken[1:]))
            connection.execute("DROP TABLE timed")
    return times


def _some(folder: Path) -> Tokens:
    return tokens(folder, "doc")[:4]


def draw(report: Report, path: Path) -> None:
    """Draw nDCG against the vectors that are left."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases: list[dict[str, Any]] = report.figures["cases"]
    names = list(dict.fromkeys(case["collection"] for case in cases))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4 * len(names), 4), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        own = [case for case in cases if case["collection"] == name]
        for method in dict.fromkeys(case["pool"].partition(",")[0] for case in own):
            some = [case for case in own if case["pool"].partition(",")[0] == method]
            axis.plot(
                [case["vectors"] for case in some],
                [case["ndcg"] for case in some],
                marker="o",
                label=method,
            )
        axis.set_title(name)
        axis.set_xlabel("vectors per document")
    axes[0][0].set_ylabel(f"nDCG@{K}")
    axes[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
