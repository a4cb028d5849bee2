"""sqlvec.backfill against a plain UPDATE, and what the trigger costs an INSERT.

Each round works on fresh copies of one table, without indexes beside the primary key. The plain
side is ``UPDATE … SET code = binary_quantize(embedding)`` in one transaction, on a table without a
trigger.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.data import clustered, create_table
from benchmarks.measure import seconds
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database

TARGET = 0.80


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of the tables and the number of repetitions."""
    parser.add_argument("--rows", type=int, help="rows per table (default: 50,000 and 20,000)")
    parser.add_argument("--rounds", type=int, default=5, help="fresh tables per side (5)")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Measure vectors that stand in the row (384) and vectors that are TOASTed (1,536)."""
    cases = [
        _measure(database, dimensions, options.rows or rows, options.rounds)
        for dimensions, rows in ((384, 50_000), (1536, 20_000))
    ]
    figures = {
        "benchmark": "backfill",
        "throughput_ratio": min(case["throughput_ratio"] for case in cases),
        "cases": cases,
    }
    claims = [
        Claim(f"{case['dimensions']:,} dimensions: throughput", case["throughput_ratio"], TARGET)
        for case in cases
    ]
    rows = [
        (
            f"{case['rows']:,} × {case['dimensions']:,}",
            *(float(np.median(case["seconds"][side])) for side in ("update", "backfill")),
            case["throughput_ratio"],
            f"{min(case['ratios']):.2f} to {max(case['ratios']):.2f}",
            *(case["insert_us"][side] for side in ("plain", "trigger")),
        )
        for case in cases
    ]
    columns = (
        "table",
        "UPDATE s",
        "backfill s",
        "throughput",
        "rounds",
        "INSERT µs/row",
        "with trigger",
    )
    shown = table("backfill against UPDATE … SET code = expression", columns, rows)
    return Report(figures, claims, [shown])


def _measure(database: Database, dimensions: int, rows: int, rounds: int) -> dict[str, Any]:
    connection = database.connect()
    create_table(connection, "base", clustered(rows, dimensions, queries=1).documents)
    taken: dict[str, list[float]] = {"update": [], "backfill": []}
    inserted: dict[str, list[float]] = {"plain": [], "trigger": []}
    for number in range(rounds):
        # The first one of a round meets other caches than the second: they take turns.
        order = list(taken) if number % 2 == 0 else list(reversed(taken))
        for side in order:
            table_name = f"{side}_{number}"
            action = _prepare(connection, table_name, side, dimensions)
            connection.execute("CHECKPOINT")
            taken[side].append(seconds(action))
            _require_codes(connection, table_name, rows)
            connection.execute(f"DROP TABLE {table_name}")
        for kind in list(inserted) if number % 2 == 0 else list(reversed(inserted)):
            table_name = f"{kind}_{number}"
            _copy_of_base(connection, table_name, filled=False)
            _declare(connection, table_name, trigger=kind == "trigger", dimensions=dimensions)
            connection.execute("CHECKPOINT")
            insert = f"INSERT INTO {table_name} SELECT * FROM base"
            inserted[kind].append(seconds(partial(connection.execute, insert)) / rows * 1e6)
            connection.execute(f"DROP TABLE {table_name}")
    connection.execute("DROP TABLE base")
    ratios = [plain / ours for plain, ours in zip(taken["update"], taken["backfill"], strict=True)]
    return {
        "rows": rows,
        "dimensions": dimensions,
        "seconds": taken,
        "ratios": ratios,
        "throughput_ratio": float(np.median(ratios)),
        "insert_us": {kind: float(np.median(values)) for kind, values in inserted.items()},
    }


def _prepare(connection: Connection, name: str, side: str, dimensions: int) -> partial[object]:
    """Make a fresh table and return what is to be timed on it."""
    _copy_of_base(connection, name, filled=True)
    _declare(connection, name, trigger=side == "backfill", dimensions=dimensions)
    connection.execute(f"VACUUM ANALYZE {name}")
    statement = {
        "backfill": f"CALL sqlvec.backfill('{name}')",
        "update": f"UPDATE {name} SET embedding_binary"
        f" = binary_quantize(embedding)::bit({dimensions})",
    }[side]
    return partial(connection.execute, statement)


def _copy_of_base(connection: Connection, name: str, filled: bool) -> None:
    connection.execute(f"CREATE TABLE {name} (LIKE base INCLUDING ALL)")
    if filled:
        connection.execute(f"INSERT INTO {name} SELECT * FROM base")


def _declare(connection: Connection, name: str, trigger: bool, dimensions: int) -> None:
    if trigger:
        connection.execute(f"CALL sqlvec.add_quantized('{name}', 'embedding', 'binary')")
    else:
        connection.execute(f"ALTER TABLE {name} ADD COLUMN embedding_binary bit({dimensions})")


def _require_codes(connection: Connection, name: str, rows: int) -> None:
    right = "count(*) FILTER (WHERE embedding_binary = binary_quantize(embedding))"
    row = connection.execute(f"SELECT {right} FROM {name}").fetchone()
    if row != (rows,):
        raise AssertionError(f"{name}: {row} of {rows} rows have the right code")


def draw(report: Report, path: Path) -> None:
    """Draw the throughput of every round."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = report.figures["cases"]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.boxplot(
        [case["ratios"] for case in cases],
        tick_labels=[f"{case['rows']:,} × {case['dimensions']:,}" for case in cases],
    )
    axis.axhline(TARGET, linestyle=":", color="grey", label="target")
    axis.set_ylabel("throughput, backfill ÷ UPDATE")
    axis.set_ylim(bottom=0)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
