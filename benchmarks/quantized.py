"""Binary two-stage search against HNSW on float32, at equal recall.

Both sides search one table by cosine for the 10 nearest. The code side finds candidates by Hamming
distance on ``bit`` codes that ``sqlvec.add_quantized`` keeps, and orders them by exact distance.
Codes of one and of several levels are measured in turn, each beside float32 in a table of its own.
Each side uses the smallest ``ef_search`` (code side: number of candidates) of one grid that reaches
the wanted recall.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from pgvector import Bit, Vector

from benchmarks.data import VectorSet, clustered, create_table, real
from benchmarks.measure import interleaved, median, ratio, seconds
from benchmarks.recall import Truth
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database
from sqlvec.encoders import Binary

K = 10
# Fine enough that neither side runs with much more than it needs.
GRID = (
    *(10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 100),
    *(110, 120, 130, 140, 150, 175, 200, 250, 300, 350, 400, 500, 600, 700, 800, 900, 1000),
)
MOST = 1000
"""Largest ``hnsw.ef_search`` that pgvector takes."""

Ids = list[int]
Search = Callable[[int], Ids]

FLOAT_SQL = "SELECT id FROM doc ORDER BY embedding <=> %s LIMIT 10"
CODE_SQL = """
    SELECT id FROM (
        SELECT id, embedding <=> %(query)s AS distance FROM doc
        ORDER BY embedding_binary <~> {code}::bit({bits})
        LIMIT {candidates}
    ) AS candidate
    ORDER BY distance LIMIT 10
"""
FUNCTION_SQL = """
    SELECT (hit).id
    FROM sqlvec.vector_search(NULL::doc, 'embedding', %(query)s, candidates => {candidates})
"""
DEFAULT_SQL = "SELECT (hit).id FROM sqlvec.vector_search(NULL::doc, 'embedding', %(query)s)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the sets, the codes and the number of repetitions."""
    parser.add_argument(
        "--rows", type=int, help="vectors per clustered set (default: 100,000 and 50,000)"
    )
    parser.add_argument("--real", action="store_true", help="the real vectors alone")
    parser.add_argument(
        "--levels",
        type=int,
        nargs="+",
        default=[1, 4],
        choices=range(1, 9),
        help="levels of the codes (1 4)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="times all queries are run (5)")
    parser.add_argument("--builds", type=int, default=2, help="times each index is built (2)")
    parser.add_argument(
        "--ef-construction", type=int, default=64, help="candidates while building (64)"
    )
    parser.add_argument("--recall", type=float, default=0.99, help="recall@10 of both sides (0.99)")
    parser.add_argument(
        "--inline", action="store_true", help="keep vectors in their rows (STORAGE PLAIN)"
    )


def run(database: Database, options: argparse.Namespace) -> Report:
    """Measure every set in turn."""
    makers: list[tuple[Callable[[], VectorSet | None], tuple[float, float, float] | None]] = [
        (lambda: clustered(options.rows or 100_000, 384), (1 / 5.5, 1.5, 1.0)),
        (lambda: clustered(options.rows or 50_000, 1536), (1 / 16, 3.0, 1.5)),
        (real, None),
    ]
    sets: list[dict[str, Any]] = []
    claims: list[Claim] = []
    for make, targets in makers[-1:] if options.real else makers:
        vectors = make()
        if vectors is None:
            continue
        truth = Truth(vectors, K)
        for levels in options.levels:
            found = _measure(database, vectors, truth, levels, options)
            sets.append(found)
            # The targets were set for signs.
            if targets is not None and levels == 1:
                claims += _claims(found, *targets)
    return Report({"benchmark": "quantized", "k": K, "sets": sets}, claims, _tables(sets))


def _claims(found: dict[str, Any], size: float, build: float, qps: float) -> list[Claim]:
    name = found["set"]
    return [
        Claim(f"{name}: recall@10 of the code", found["recall_at_10"]["code"], 0.99),
        Claim(f"{name}: index size, code ÷ float32", found["index_size_ratio"], size, at_most=True),
        Claim(f"{name}: build time, float32 ÷ code", found["build_time_ratio"], build),
        Claim(f"{name}: QPS by hand, code ÷ float32", found["qps_ratio"], qps),
        Claim(f"{name}: QPS of vector_search ÷ float32", found["qps_ratio_function"], qps),
    ]


def _measure(
    database: Database, vectors: VectorSet, truth: Truth, levels: int, options: argparse.Namespace
) -> dict[str, Any]:
    connection = database.connect()
    create_table(connection, "doc", vectors.documents, options.inline)
    found: dict[str, Any] = {
        "set": vectors.name,
        "levels": levels,
        "rows": len(vectors.documents),
        "dimensions": vectors.dimensions,
        "queries": len(vectors.queries),
        "inline": options.inline,
        "ef_construction": options.ef_construction,
    }
    connection.execute(
        "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', options => %s)",
        [json.dumps({"levels": levels})],
    )
    found["backfill_seconds"] = seconds(lambda: connection.execute("CALL sqlvec.backfill('doc')"))
    for (statement,) in connection.execute(
        "SELECT statement FROM sqlvec.plan_index('doc', 'embedding') WHERE name = 'unfinished'"
    ).fetchall():
        connection.execute(cast(str, statement).encode())
    found |= _build(connection, options.builds, options.ef_construction)
    connection.execute("VACUUM ANALYZE doc")

    sides = _Sides(database, vectors, levels)
    curves = {
        "float32": _curve(sides.float32, vectors, truth, options.recall),
        "code": _curve(sides.code, vectors, truth, options.recall),
    }
    chosen = {name: _cheapest(curve, options.recall) for name, curve in curves.items()}
    searches = {
        "float32": sides.float32(chosen["float32"]),
        "code": sides.code(chosen["code"]),
        "function": sides.function(chosen["code"]),
        "default": sides.default(),
    }
    queries = range(len(vectors.queries))
    found["setting"] = chosen
    found["recall_at_10"] = {
        name: truth.recall([search(query) for query in queries])
        for name, search in searches.items()
    }
    times = interleaved(searches, len(queries), options.rounds)
    found["median_ms"] = {name: median(each) for name, each in times.items()}
    found["qps_ratio"] = 1 / ratio(times["code"], times["float32"])
    found["qps_ratio_function"] = 1 / ratio(times["function"], times["float32"])
    found["curves"] = curves
    row = connection.execute(
        "SELECT sqlvec._default_candidates('binary', %s, %s)", (levels, K)
    ).fetchone()
    assert row is not None
    found["default_candidates"] = row[0]
    found["recall_of_candidates"] = truth.of_candidates(GRID, levels)
    database.close()
    database.connect().execute("DROP TABLE doc")
    return found


def _build(connection: Connection, times: int, ef_construction: int) -> dict[str, Any]:
    """Build both indexes in turn and say how long it took and how large they are."""
    definitions = {
        "float32": "embedding vector_cosine_ops",
        "code": "embedding_binary bit_hamming_ops",
    }
    taken: dict[str, list[float]] = {name: [] for name in definitions}
    for number in range(times):
        for name, columns in definitions.items():
            if number:
                connection.execute(f"DROP INDEX doc_{name}")
            create = (
                f"CREATE INDEX doc_{name} ON doc USING hnsw ({columns})"
                f" WITH (ef_construction = {ef_construction})"
            )
            taken[name].append(seconds(partial(connection.execute, create)))
    sizes = {}
    for name in definitions:
        row = connection.execute("SELECT pg_relation_size(%s::regclass)", (f"doc_{name}",))
        sizes[name] = cast(tuple[int], row.fetchone())[0]
    build = {name: float(np.median(values)) for name, values in taken.items()}
    return {
        "index_bytes": sizes,
        "index_size_ratio": sizes["code"] / sizes["float32"],
        "build_seconds": taken,
        "build_time_ratio": build["float32"] / build["code"],
    }


class _Sides:
    """The ways to search, each in a session of its own with its settings made once."""

    def __init__(self, database: Database, vectors: VectorSet, levels: int) -> None:
        self._database = database
        self._bits = levels * vectors.dimensions
        # By hand, pgvector takes the signs of a query, and the client its levels.
        self._code = "binary_quantize(%(query)s)" if levels == 1 else "%(code)s"
        self._queries = [Vector(query) for query in vectors.queries]
        self._codes = [Bit(code) for code in Binary(levels=levels).encode(vectors.queries)]

    def float32(self, ef_search: int) -> Search:
        session = self._database.connect(hnsw__ef_search=ef_search)
        return lambda query: _ids(session, FLOAT_SQL, (self._queries[query],))

    def code(self, candidates: int) -> Search:
        session = self._database.connect(hnsw__ef_search=candidates)
        statement = CODE_SQL.format(code=self._code, bits=self._bits, candidates=candidates)
        return lambda query: _ids(
            session, statement, {"query": self._queries[query], "code": self._codes[query]}
        )

    def function(self, candidates: int) -> Search:
        session = self._database.connect()
        statement = FUNCTION_SQL.format(candidates=candidates)
        return lambda query: _ids(session, statement, {"query": self._queries[query]})

    def default(self) -> Search:
        session = self._database.connect()
        return lambda query: _ids(session, DEFAULT_SQL, {"query": self._queries[query]})


def _ids(session: Connection, statement: str, parameters: Any) -> Ids:
    rows = session.execute(statement.encode(), parameters, prepare=True, binary=True).fetchall()
    return [cast(int, row[0]) for row in rows]


def _curve(
    side: Callable[[int], Search], vectors: VectorSet, truth: Truth, wanted: float
) -> list[dict[str, float]]:
    """Recall and latency along the grid, up to two points past the wanted recall."""
    points: list[dict[str, float]] = []
    for setting in GRID:
        search = side(setting)
        found: list[Ids] = []
        times = interleaved(
            {"one": lambda query: found.append(search(query))},  # noqa: B023 - used at once
            len(vectors.queries),
            1,
        )
        recall = truth.recall(found[-len(vectors.queries) :])
        points.append({"setting": setting, "recall": recall, "median_ms": median(times["one"])})
        if sum(point["recall"] >= wanted for point in points) > 2:
            break
    return points


def _cheapest(curve: Sequence[dict[str, float]], wanted: float) -> int:
    reaching = [point["setting"] for point in curve if point["recall"] >= wanted]
    return int(min(reaching, default=MOST))


def _tables(sets: Sequence[dict[str, Any]]) -> list[Any]:
    ratios = [
        (
            each["set"],
            each["levels"],
            each["index_bytes"]["code"] / 2**20,
            each["index_size_ratio"],
            each["build_time_ratio"],
            each["setting"]["float32"],
            each["recall_at_10"]["float32"],
            each["median_ms"]["float32"],
            each["setting"]["code"],
            each["recall_at_10"]["code"],
            each["median_ms"]["code"],
            each["qps_ratio"],
            each["qps_ratio_function"],
        )
        for each in sets
    ]
    columns = (
        "set",
        "levels",
        "MB",
        "size",
        "build",
        "ef_search",
        "recall",
        "ms",
        "candidates",
        "recall",
        "ms",
        "QPS",
        "QPS function",
    )
    counts = [20, 40, 60, 80, 100, 150, 200, 300, 400]
    rescored = [
        (
            each["set"],
            each["levels"],
            *(each["recall_of_candidates"][count] for count in counts),
            f"{each['recall_at_10']['default']:.3f} at {each['default_candidates']}",
        )
        for each in sets
    ]
    return [
        table("Two-stage on codes against float32 HNSW, at equal recall@10", columns, ratios),
        table(
            "Recall@10 after rescoring so many candidates, found exactly; last: default search",
            ("set", "levels", *(str(count) for count in counts), "vector_search"),
            rescored,
        ),
    ]


def draw(report: Report, path: Path) -> None:
    """Draw recall against latency, and recall against the number of candidates."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sets = report.figures["sets"]
    figure, axes = plt.subplots(
        len(sets), 2, figsize=(10, 3.2 * len(sets)), squeeze=False, layout="constrained"
    )
    for each, (left, right) in zip(sets, axes, strict=True):
        title = f"{each['set']}, levels: {each['levels']}"
        for name, label in (("float32", "float32 HNSW"), ("code", "binary two-stage")):
            curve = each["curves"][name]
            left.plot(
                [point["recall"] for point in curve],
                [1e3 / point["median_ms"] for point in curve],
                marker="o",
                label=label,
            )
        left.set(xlabel="recall@10", ylabel="queries per second", title=title)
        left.legend()
        counts = list(each["recall_of_candidates"])
        right.plot(counts, list(each["recall_of_candidates"].values()), marker="o")
        right.axvline(each["default_candidates"], linestyle=":", color="grey", label="default")
        right.set(xlabel="candidates rescored", ylabel="recall@10", xscale="log")
        right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
