"""One byte per token: quality and speed of MaxSim on codes against MaxSim on the tokens.

Real token vectors. Quality is computed in numpy over all documents, with the centroids of the
server; the speed is that of one SQL statement that scores every document.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sqlalchemy import NullPool, create_engine

from benchmarks.measure import interleaved, median, ratio, seconds
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database
from benchmarks.tokens import Tokens, best, collections, judgements, ndcg, tokens
from sqlvec.catalog import load_centroid
from sqlvec.encoders import Centroid, Parts
from sqlvec.fit.centroid import centroids, create
from sqlvec.types.multivector import to_text
from sqlvec.types.psycopg import register_multivectors

K = 10
CANDIDATES = (10, 20, 50, 100)
SAMPLE = 10_000
DIMENSIONS = 128


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark has beside the common ones."""
    parser.add_argument("--queries", type=int, default=150, help="queries of each collection")
    parser.add_argument("--timed", type=int, default=4, help="of them timed on the server")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Fit on every collection, encode it, and look where the exact answers stand."""
    engine = create_engine("postgresql+psycopg://", creator=database.connect, poolclass=NullPool)
    session = database.connect()
    register_multivectors(session)
    cases, speeds = [], []
    for folder in collections():
        documents, queries = tokens(folder, "doc"), tokens(folder, "query")[: options.queries]
        grades = judgements(folder)[: options.queries]
        _fill(session, documents)
        rows = np.concatenate(documents)
        starts = np.cumsum([0, *(len(document) for document in documents[:-1])])
        exact = [_scores(rows @ query.T, starts) for query in queries]
        with engine.begin() as connection:
            sample = np.random.default_rng(0).permutation(rows)[:SAMPLE]
            for clusters in (128, 256):
                create(connection, f"{folder.name}, {clusters}", centroids(sample, clusters))
            shuffled = np.random.default_rng(0).permutation(centroids(sample, 256))
            create(connection, f"{folder.name}, shuffled", shuffled)
        fit_seconds = _fit(session, f"{folder.name}, fit_centroids")
        with engine.connect() as connection:
            by_name = {
                name: load_centroid(connection, f"{folder.name}, {name}")
                for name in ("128", "256", "fit_centroids", "shuffled")
            }
        found = {"exact": exact}
        for label, name, as_bits in (
            ("256 centroids", "256", False),
            ("256, by fit_centroids", "fit_centroids", False),
            ("128 centroids", "128", False),
            ("256, 8 bits, numbered", "256", True),
            ("256, 8 bits, any order", "shuffled", True),
        ):
            encoder, parts = by_name[name]
            codes = _numbers(encoder, parts, documents)
            found[label] = [
                _scores(_similarity(encoder, parts, query, as_bits)[codes], starts)
                for query in queries
            ]
        cases += [
            {
                "collection": folder.name,
                "documents": len(documents),
                "scores": label,
                "ndcg": float(
                    np.mean([ndcg(best(s, K), g) for s, g in zip(scores, grades, strict=True)])
                ),
                "recall": {
                    str(count): float(
                        np.mean(
                            [
                                len(np.intersect1d(best(e, K), best(s, count))) / K
                                for e, s in zip(exact, scores, strict=True)
                            ]
                        )
                    )
                    for count in CANDIDATES
                },
            }
            for label, scores in found.items()
        ]
        speeds.append(
            _speed(session, folder.name, documents, queries[: options.timed])
            | {"fit_seconds": fit_seconds}
            | {
                "spearman_numbered": _spearman(by_name["256"][1]["centroid"]),
                "spearman_any_order": _spearman(by_name["shuffled"][1]["centroid"]),
            }
        )
    claims = [Claim(f"{s['collection']}: maxsim takes longer by", s["ratio"], 5.0) for s in speeds]
    return Report({"cases": cases, "speed": speeds}, claims, _tables(cases, speeds))


def _fill(session: Connection, documents: Tokens) -> None:
    session.execute("DROP TABLE IF EXISTS doc")
    session.execute(f"CREATE TABLE doc (id int PRIMARY KEY, tokens halfvec({DIMENSIONS})[])")
    session.execute("ALTER TABLE doc ALTER tokens SET STORAGE EXTERNAL")
    with session.cursor().copy("COPY doc FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "halfvec[]"])
        for number, document in enumerate(documents):
            copy.write_row((number, document))


def _fit(session: Connection, name: str) -> float:
    call = "CALL sqlvec.fit_centroids(%s, 'doc', 'tokens')"
    return seconds(lambda: session.execute(call, (name,)))


def _spearman(values: NDArray[np.float32]) -> float:
    """Return how the Hamming distance of numbers follows the cosine distance of centroids."""
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    first, second = np.triu_indices(len(values), 1)
    apart = (first ^ second).astype(np.uint8)
    hamming = np.unpackbits(apart[:, None], axis=1).sum(axis=1)
    return float(spearmanr(hamming, 1 - (unit @ unit.T)[first, second])[0])


def _numbers(encoder: Centroid, parts: Parts, batch: Tokens) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(encoder.documents(batch, parts)), np.uint8)


def _similarity(
    encoder: Centroid, parts: Parts, query: NDArray[np.float32], as_bits: bool
) -> NDArray[np.float32]:
    """Return what every centroid (K) scores with every query token (m)."""
    if not as_bits:
        similarity: NDArray[np.float32] = parts["centroid"] @ query.T
        return similarity
    own = np.arange(encoder.clusters, dtype=np.uint8)
    apart = own[:, None] ^ _numbers(encoder, parts, [query])
    return np.unpackbits(apart[:, :, None], axis=2).sum(axis=2) / np.float32(-8)


def _scores(similarity: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = np.maximum.reduceat(similarity, starts).sum(axis=1)
    return scores


def _speed(session: Connection, name: str, documents: Tokens, queries: Tokens) -> dict[str, Any]:
    encoder = f"{name}, 256"
    session.execute("CALL sqlvec.add_centroid('doc', 'tokens', %s)", (encoder,))
    backfill = seconds(lambda: session.execute("CALL sqlvec.backfill('doc')"))
    session.execute("VACUUM ANALYZE doc")
    texts = [to_text(query) for query in queries]
    times = interleaved(
        {
            "maxsim": lambda i: session.execute(
                "SELECT sum(sqlvec.maxsim(tokens, %s::halfvec[])) FROM doc", (texts[i],)
            ).fetchone(),
            "maxsim_centroid": lambda i: session.execute(
                "SELECT sum(sqlvec.maxsim_centroid(tokens_centroid,"
                " (SELECT sqlvec.centroid_table(%s, %s::halfvec[])))) FROM doc",
                (encoder, texts[i]),
            ).fetchone(),
        },
        len(texts),
        rounds=2,
    )
    sizes = session.execute(
        "SELECT avg(pg_column_size(tokens))::float8, avg(pg_column_size(tokens_centroid))::float8"
        " FROM doc"
    ).fetchone()
    assert sizes is not None
    count = len(documents)
    return {
        "collection": name,
        "documents": count,
        "query_tokens": float(np.mean([len(query) for query in queries])),
        "bytes_tokens": sizes[0],
        "bytes_codes": sizes[1],
        "maxsim_us": median(times["maxsim"]) / count * 1e3,
        "maxsim_centroid_us": median(times["maxsim_centroid"]) / count * 1e3,
        "ratio": ratio(times["maxsim"], times["maxsim_centroid"]),
        "encode_ms": backfill / count * 1e3,
    }


def _tables(cases: list[dict[str, Any]], speeds: list[dict[str, Any]]) -> list[Any]:
    quality = table(
        "nDCG@10, and the exact top 10 among the first",
        ("collection, documents", "scores", "nDCG@10", *map(str, CANDIDATES)),
        [
            (
                f"{case['collection']}, {case['documents']:,}",
                case["scores"],
                case["ndcg"],
                *case["recall"].values(),
            )
            for case in cases
        ],
    )
    speed = table(
        "A document: bytes, µs of each function, ms to encode; s to fit; order of the numbers",
        (
            "collection",
            "query tokens",
            "bytes of tokens",
            "of codes",
            "maxsim",
            "maxsim_centroid",
            "times",
            "encode",
            "fit",
            "Spearman",
            "any order",
        ),
        [
            (
                speed["collection"],
                speed["query_tokens"],
                speed["bytes_tokens"],
                speed["bytes_codes"],
                speed["maxsim_us"],
                speed["maxsim_centroid_us"],
                speed["ratio"],
                speed["encode_ms"],
                speed["fit_seconds"],
                speed["spearman_numbered"],
                speed["spearman_any_order"],
            )
            for speed in speeds
        ],
    )
    return [quality, speed]


def draw(report: Report, path: Path) -> None:
    """Draw the recall of each kind of scores against the number of candidates."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases: list[dict[str, Any]] = report.figures["cases"]
    names = list(dict.fromkeys(case["collection"] for case in cases))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4 * len(names), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        for case in cases:
            if case["collection"] == name and case["scores"] != "exact":
                recall = list(case["recall"].values())
                axis.plot(CANDIDATES, recall, marker="o", label=case["scores"])
        axis.set_title(name)
        axis.set_xlabel("candidates")
    axes[0][0].set_ylabel("recall of the exact top 10")
    axes[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
