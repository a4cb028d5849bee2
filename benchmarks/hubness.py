"""Correction of hubs: skewness of N_10, nDCG@10 and R@1 with it and without.

The bank is one half of the queries of a collection, the other half is evaluated; both halves of
several random splits, means over all. Rows that are near to many queries make the distribution of
N_10, how often a row is among the first ten, skew to the right.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from scipy.stats import skew
from sqlalchemy import NullPool, create_engine

from benchmarks.data import create_table
from benchmarks.judged import Collection, judged, ranking
from benchmarks.measure import interleaved, median, ratio, seconds
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database
from sqlvec.catalog import load_encoder
from sqlvec.encoders import Hubness, Parts

K = 10
SAMPLE = 1_000
DEFAULT = "queries, beta 20, strength 0.25"
BETAS = (1, 5, 10, 20, 50, 100)
STRENGTHS = (0.1, 0.25, 0.5, 1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark has beside the common ones."""
    parser.add_argument("--splits", type=int, default=5, help="random halves of the queries")
    parser.add_argument("--timed", type=int, default=100, help="queries timed on the server")


def settings() -> dict[str, Hubness | None]:
    """Return what is compared, by label; the sizes of the banks are yet to be filled in."""
    found: dict[str, Hubness | None] = {"none": None}
    for strength in STRENGTHS:
        for beta in BETAS:
            label = f"queries, beta {beta}, strength {strength}"
            found[label] = Hubness(1, beta_queries=beta, strength=strength)
    for strength in STRENGTHS:
        label = f"both banks, beta 20, strength {strength}"
        found[label] = Hubness(1, 1, strength=strength)
    return found


def run(database: Database, options: argparse.Namespace) -> Report:
    """Compare on every collection, then search the default on the server."""
    engine = create_engine("postgresql+psycopg://", creator=database.connect, poolclass=NullPool)
    session = database.connect()
    cases, servers = [], []
    for collection in judged():
        create_table(session, "doc", collection.documents)
        create_table(session, "query", collection.queries)
        found: dict[str, list[tuple[float, float, float]]] = {label: [] for label in settings()}
        for split in range(options.splits):
            halves = np.array_split(
                np.random.default_rng(split).permutation(len(collection.queries)), 2
            )
            for bank, asked in (halves, halves[::-1]):
                _fit(session, bank, gallery=True)
                with engine.connect() as connection:
                    fitted, parts = load_encoder(connection, "hubs")
                assert isinstance(fitted, Hubness)
                for label, wanted in settings().items():
                    own = wanted and replace(
                        wanted, queries=fitted.queries, gallery=fitted.gallery * wanted.gallery
                    )
                    found[label].append(_figures(collection, asked, own, parts))
                session.execute("CALL sqlvec.drop_encoder('hubs')")
        cases += [
            {
                "collection": collection.name,
                "correction": label,
                **dict(
                    zip(("ndcg", "r1", "skewness"), map(float, np.mean(some, axis=0)), strict=True)
                ),
            }
            for label, some in found.items()
        ]
        servers.append(_search(session, collection, options.timed))
        session.execute("DROP TABLE doc, query")
    return Report(
        {"cases": cases, "server": servers}, _claims(cases, servers), _tables(cases, servers)
    )


def _fit(session: Connection, bank: NDArray[np.intp], gallery: bool) -> None:
    """Make encoder "hubs" from queries and, if wanted, a sample of rows."""
    session.execute(
        "CREATE TEMPORARY TABLE bank AS SELECT embedding FROM query WHERE id = ANY (%s)",
        (bank.tolist(),),
    )
    rows = ("doc", "embedding") if gallery else (None, None)
    session.execute(
        "CALL sqlvec.fit_hubness('hubs', 'bank', 'embedding', %s, %s, sample => %s)",
        (*rows, SAMPLE),
    )
    session.execute("DROP TABLE bank")


def _figures(
    collection: Collection, asked: NDArray[np.intp], encoder: Hubness | None, parts: Parts
) -> tuple[float, float, float]:
    """Return nDCG@10, R@1 and the skewness of N_10."""
    queries, rows = collection.queries[asked], collection.documents
    if encoder is not None:
        queries, rows = Hubness.query(queries), encoder.encode(rows, parts)
    found = ranking(queries @ rows.T, K)
    first = np.take_along_axis(collection.grades[asked], found[:, :1], axis=1) > 0
    often = np.bincount(found.ravel(), minlength=len(rows))
    return float(collection.ndcg(found, asked).mean()), float(first.mean()), float(skew(often))


def _search(session: Connection, collection: Collection, timed: int) -> dict[str, Any]:
    """Search the plain and the corrected column through HNSW indexes."""
    halves = np.array_split(np.random.default_rng(0).permutation(len(collection.queries)), 2)
    _fit(session, halves[0], gallery=False)
    session.execute("CALL sqlvec.add_hubness('doc', 'embedding', 'hubs')")
    backfill = seconds(lambda: session.execute("CALL sqlvec.backfill('doc')"))
    session.execute("VACUUM ANALYZE doc")
    session.execute("CREATE INDEX ON doc USING hnsw (embedding vector_cosine_ops)")
    session.execute("CREATE INDEX ON doc USING hnsw (embedding_hubness vector_ip_ops)")
    queries = collection.queries[halves[1]][:timed]
    statements = {
        "none": "vector_search(NULL::doc, 'embedding', %s, mode => %s)",
        "corrected": (
            "vector_search(NULL::doc, 'embedding_hubness', sqlvec.hubness_query(%s), mode => %s)"
        ),
    }

    def ids(side: str, number: int, mode: str) -> list[int]:
        rows = session.execute(
            f"SELECT (hit).id FROM sqlvec.{statements[side]}".encode(), (queries[number], mode)
        )
        return [int(str(row[0])) for row in rows]

    indexes = {"none": "doc_embedding_idx", "corrected": "doc_embedding_hubness_idx"}
    recall = {
        side: float(
            np.mean(
                [
                    len(set(ids(side, n, index)) & set(ids(side, n, "exact"))) / K
                    for n in range(len(queries))
                ]
            )
        )
        for side, index in indexes.items()
    }
    times = interleaved(
        {side: lambda n, s=side, i=index: ids(s, n, i) for side, index in indexes.items()},  # type: ignore[misc]
        len(queries),
        rounds=3,
    )
    session.execute("CALL sqlvec.drop_derived('doc', 'embedding_hubness')")
    session.execute("CALL sqlvec.drop_encoder('hubs')")
    return {
        "collection": collection.name,
        "documents": len(collection.documents),
        "bank": len(halves[0]),
        "recall": recall,
        "ms": {side: median(some) for side, some in times.items()},
        "ratio": ratio(times["corrected"], times["none"]),
        "encode_ms": backfill / len(collection.documents) * 1e3,
    }


def _by_correction(cases: list[dict[str, Any]], figure: str) -> Mapping[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for case in cases:
        found.setdefault(case["correction"], {})[case["collection"]] = case[figure]
    return found


def _claims(cases: list[dict[str, Any]], servers: list[dict[str, Any]]) -> list[Claim]:
    claims = []
    for figure, text in (("ndcg", "nDCG@10"), ("r1", "R@1")):
        found = _by_correction(cases, figure)
        change = [found[DEFAULT][name] - found["none"][name] for name in found["none"]]
        claims.append(Claim(f"{text}: mean change by the default", float(np.mean(change)), 0.0))
    found = _by_correction(cases, "skewness")
    change = [found[DEFAULT][name] / found["none"][name] for name in found["none"]]
    claims.append(Claim("skewness: mean ratio by the default", float(np.mean(change)), 1.0, True))
    recall = min(server["recall"]["corrected"] - server["recall"]["none"] for server in servers)
    slower = max(server["ratio"] for server in servers)
    return [
        *claims,
        Claim("HNSW recall@10 against that of the plain column, worst", recall, -0.02),
        Claim("search takes longer by, worst", slower, 1.2, True),
    ]


def _tables(cases: list[dict[str, Any]], servers: list[dict[str, Any]]) -> list[Any]:
    tables = []
    for figure, text in (("ndcg", "nDCG@10"), ("r1", "R@1"), ("skewness", "Skewness of N_10")):
        found = _by_correction(cases, figure)
        rows = [(label, *own.values()) for label, own in found.items()]
        tables.append(table(text, ("correction", *found["none"]), rows))
    speed = table(
        "Through HNSW: recall@10, ms a search, ms to encode a row",
        ("collection", "documents", "bank", "recall", "corrected", "ms", "corrected", "encode"),
        [
            (
                server["collection"],
                server["documents"],
                server["bank"],
                *server["recall"].values(),
                *server["ms"].values(),
                server["encode_ms"],
            )
            for server in servers
        ],
    )
    return [*tables, speed]


def draw(report: Report, path: Path) -> None:
    """Draw the change of nDCG@10 against beta, a line per strength."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = _by_correction(report.figures["cases"], "ndcg")
    names = list(found["none"])
    figure, axes = plt.subplots(
        1, len(names), figsize=(3 * len(names), 3.5), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        for strength in STRENGTHS:
            own = [found[f"queries, beta {beta}, strength {strength}"][name] for beta in BETAS]
            axis.plot(BETAS, np.array(own) - found["none"][name], marker="o", label=str(strength))
        axis.axhline(0, color="grey", linewidth=1)
        axis.set_title(name)
        axis.set_xscale("log")
        axis.set_xlabel("beta")
    axes[0][0].set_ylabel("change of nDCG@10")
    axes[0][-1].legend(title="strength", fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
