"""Candidates by fixed dimensional encodings: share of the exact MaxSim top 10 among them.

Real token vectors, encoded in numpy with the matrices of the server and compared by a full scan:
what is lost here no index brings back.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from sqlalchemy import NullPool, create_engine

from benchmarks.report import Report, table
from benchmarks.server import Database
from benchmarks.tokens import best, collections, maxsim, tokens
from sqlvec import catalog

K = 10
CANDIDATES = (50, 100, 200, 500)
DIMENSIONS = 128
ENCODERS = {
    "default": "{}",
    "31 repetitions": '{"repetitions": 31}',
    "3 hyperplanes": '{"simhash_bits": 3}',
    "80 repetitions, sketched": '{"repetitions": 80, "final_dimensions": 4000}',
    "signs": '{"bits": true}',
    "40 repetitions, signs": '{"repetitions": 40, "bits": true}',
    "40 repetitions, 5 hyperplanes, signs": '{"repetitions": 40, "simhash_bits": 5, "bits": true}',
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark has beside the common ones."""
    parser.add_argument("--queries", type=int, default=150, help="queries of each collection")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Encode every collection with every encoder, and look where the exact answers stand."""
    engine = create_engine("postgresql+psycopg://", creator=database.connect, poolclass=NullPool)
    loaded = {}
    with engine.connect() as connection:
        for name, settings in ENCODERS.items():
            connection.exec_driver_sql(
                "CALL sqlvec.create_encoder(%s, 'fde', %s, %s)", (name, DIMENSIONS, settings)
            )
            loaded[name] = catalog.load_fde(connection, name)
    cases = []
    for folder in collections():
        documents, queries = tokens(folder, "doc"), tokens(folder, "query")[: options.queries]
        exact = [best(row, K) for row in maxsim(documents, queries)]
        for name, (fde, parts) in loaded.items():
            codes = fde.documents(documents, parts).astype(np.float32)
            asked = fde.queries(queries, parts).astype(np.float32)
            scores = asked @ codes.T
            if fde.bits:  # the nearest by Hamming distance
                scores = 2 * scores - codes.sum(axis=1)
            cases.append(
                {
                    "collection": folder.name,
                    "documents": len(documents),
                    "encoder": name,
                    "dimensions": fde.dimensions // 2 if fde.bits else fde.dimensions,
                    "bytes": fde.dimensions // 8 if fde.bits else 2 * fde.dimensions,
                    "recall": {
                        str(count): float(
                            np.mean(
                                [
                                    len(np.intersect1d(wanted, best(row, count))) / K
                                    for wanted, row in zip(exact, scores, strict=True)
                                ]
                            )
                        )
                        for count in CANDIDATES
                    },
                }
            )
    rows = [
        (
            f"{case['collection']}, {case['documents']:,}",
            case["encoder"],
            case["dimensions"],
            case["bytes"],
            *case["recall"].values(),
        )
        for case in cases
    ]
    columns = ("collection, documents", "encoder", "dimensions", "bytes", *map(str, CANDIDATES))
    return Report({"cases": cases}, [], [table("Exact top 10 among the candidates", columns, rows)])


def draw(report: Report, path: Path) -> None:
    """Draw the recall of each encoder against candidates, and of 100 candidates against size."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases: list[dict[str, Any]] = report.figures["cases"]
    names = list(dict.fromkeys(case["collection"] for case in cases))
    figure, axes = plt.subplots(
        3,
        len(names),
        figsize=(4 * len(names), 9),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for (top, middle, bottom), name in zip(axes.T, names, strict=True):
        for case in cases:
            if case["collection"] == name:
                label = f"{case['encoder']}, {case['dimensions']:,}"
                top.plot(CANDIDATES, list(case["recall"].values()), marker="o", label=label)
                middle.scatter(case["dimensions"], case["recall"]["100"])
                bottom.scatter(case["bytes"], case["recall"]["100"])
        top.set(title=name, xlabel="candidates")
        middle.set(xlabel="dimensions, 100 candidates", xscale="log")
        bottom.set(xlabel="bytes of a code, 100 candidates", xscale="log")
    for row in axes:
        row[0].set_ylabel("recall of the exact top 10")
    axes[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
