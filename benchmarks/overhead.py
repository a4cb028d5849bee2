"""sqlvec.vector_search against the same SQL written by hand.

By hand means: the statement that ``sqlvec.explain_search`` chooses, without its safety nets (rows
that wait for their code, an index scan that ends early), with the settings made once per session.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib
from pgvector import Vector

from benchmarks.data import clustered, create_table
from benchmarks.measure import interleaved, median, ratio
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database

DIMENSIONS = 384

TWO_STAGE = """
    SELECT id, distance FROM (
        SELECT id, embedding <=> %(query)s AS distance FROM doc
        WHERE {condition}
        ORDER BY embedding_binary <~> binary_quantize(%(query)s)::bit(384)
        LIMIT {candidates}
    ) AS candidate
    ORDER BY distance LIMIT 10
"""
EXACT = """
    SELECT id, (embedding <=> %(query)s) + 0 AS distance FROM doc
    WHERE {condition}
    ORDER BY distance LIMIT 10
"""
ROWS = """
    SELECT (hit).id, distance
    FROM sqlvec.vector_search(NULL::doc, 'embedding', %(query)s{arguments})
"""
KEYS = """
    SELECT key, distance
    FROM sqlvec.vector_search_keys(NULL::doc, 'embedding', %(query)s, key => NULL::int{arguments})
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One search, as the function takes it and as it is written by hand.

    :param statement: what the function is expected to run, TWO_STAGE or EXACT.
    :param candidates: rows to rescore on both sides.
    :param queries: how many of the queries are asked.
    """

    name: str
    statement: str
    condition: str = "true"
    arguments: str = ""
    queries: int = 200
    candidates: int = 400


CASES = (
    Case("no filter, 400 candidates", TWO_STAGE, arguments=", candidates => 400"),
    Case("no filter, 100 candidates", TWO_STAGE, arguments=", candidates => 100", candidates=100),
    Case(
        "half of the rows",
        TWO_STAGE,
        "year >= 2000",
        """, candidates => 400, filter => '{"year": {"$gte": 2000}}'""",
    ),
    Case("tenant_id = 7 of 100", EXACT, "tenant_id = 7", """, filter => '{"tenant_id": 7}'"""),
    Case("mode exact, no filter", EXACT, arguments=", mode => 'exact'", queries=20),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of the table and the number of repetitions."""
    parser.add_argument("--rows", type=int, default=100_000, help="vectors (100,000)")
    parser.add_argument("--rounds", type=int, default=5, help="times all queries are run (5)")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Measure every case, prepared by the driver and not."""
    vectors = clustered(options.rows, DIMENSIONS)
    connection = database.connect()
    create_table(connection, "doc", vectors.documents)
    connection.execute("CREATE INDEX doc_tenant ON doc (tenant_id)")
    connection.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary')")
    connection.execute("CALL sqlvec.backfill('doc')")
    for (statement,) in connection.execute(
        "SELECT statement FROM sqlvec.plan_index('doc', 'embedding') WHERE name = 'unfinished'"
    ).fetchall():
        connection.execute(cast(str, statement).encode())
    connection.execute("CREATE INDEX doc_code ON doc USING hnsw (embedding_binary bit_hamming_ops)")
    connection.execute("VACUUM ANALYZE doc")

    queries = [Vector(query) for query in vectors.queries]
    cases = []
    for case in CASES:
        for prepared in (True, False):
            sides = {
                "hand": _side(
                    database,
                    case.statement.format(condition=case.condition, candidates=case.candidates),
                    queries,
                    prepared,
                    hnsw__ef_search=case.candidates,
                    hnsw__iterative_scan="relaxed_order",
                    jit="off",
                ),
                "rows": _side(database, ROWS.format(arguments=case.arguments), queries, prepared),
                "keys": _side(database, KEYS.format(arguments=case.arguments), queries, prepared),
            }
            cases.append(_measure(case.name, prepared, sides, case.queries, options.rounds))
    first = cases[0]
    figures = {
        "benchmark": "overhead",
        "rows": options.rows,
        "dimensions": DIMENSIONS,
        "latency_ratio": first["latency_ratio"]["rows"],
        "overhead_ms": first["overhead_ms"]["rows"],
        "cases": cases,
    }
    return Report(figures, _claims(cases), [_table(cases)])


def _side(
    database: Database, statement: str, queries: list[Vector], prepared: bool, **settings: str | int
) -> Callable[[int], list[tuple[object, ...]]]:
    session: Connection = database.connect(**settings)
    text = statement.encode()

    def search(query: int) -> list[tuple[object, ...]]:
        parameters = {"query": queries[query]}
        return session.execute(text, parameters, prepare=prepared, binary=True).fetchall()

    return search


def _measure(
    name: str,
    prepared: bool,
    sides: dict[str, Callable[[int], list[tuple[object, ...]]]],
    queries: int,
    rounds: int,
) -> dict[str, Any]:
    same = sum(
        {row[0] for row in sides["hand"](query)} == {row[0] for row in sides["rows"](query)}
        for query in range(queries)
    )
    times = interleaved(sides, queries, rounds)
    hand = times["hand"]
    return {
        "case": name,
        "prepared": prepared,
        "same_answers": same / queries,
        "median_ms": {side: median(each) for side, each in times.items()},
        "latency_ratio": {side: ratio(times[side], hand) for side in ("rows", "keys")},
        "overhead_ms": {side: median(times[side]) - median(hand) for side in ("rows", "keys")},
    }


def _claims(cases: list[dict[str, Any]]) -> list[Claim]:
    return [
        Claim(
            f"{case['case']}, {'prepared' if case['prepared'] else 'unprepared'}:"
            f" vector_search{'' if side == 'rows' else '_keys'} in ms, 1.10 × by hand + 0.5",
            case["median_ms"][side],
            1.10 * case["median_ms"]["hand"] + 0.5,
            at_most=True,
        )
        for case in cases
        for side in ("rows", "keys")
    ]


def _table(cases: list[dict[str, Any]]) -> Any:
    rows = [
        (
            case["case"],
            "yes" if case["prepared"] else "no",
            case["same_answers"],
            *(case["median_ms"][side] for side in ("hand", "rows", "keys")),
            *(case["latency_ratio"][side] for side in ("rows", "keys")),
            *(case["overhead_ms"][side] for side in ("rows", "keys")),
        )
        for case in cases
    ]
    columns = (
        "search",
        "prepared",
        "same rows",
        "hand ms",
        "function ms",
        "keys ms",
        "ratio",
        "keys ratio",
        "more ms",
        "keys more ms",
    )
    return table("sqlvec.vector_search against the same SQL by hand", columns, rows)


def draw(report: Report, path: Path) -> None:
    """Draw the medians of all cases as bars."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = report.figures["cases"]
    labels = [
        f"{case['case']}\n{'prepared' if case['prepared'] else 'unprepared'}" for case in cases
    ]
    figure, axis = plt.subplots(figsize=(10, 4), layout="constrained")
    sides = {"hand": "by hand", "rows": "vector_search", "keys": "vector_search_keys"}
    for number, (side, label) in enumerate(sides.items()):
        positions = [place + 0.27 * (number - 1) for place in range(len(cases))]
        axis.bar(positions, [case["median_ms"][side] for case in cases], 0.25, label=label)
    axis.set_xticks(range(len(cases)), labels, fontsize=7)
    axis.set_ylabel("median, ms")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
