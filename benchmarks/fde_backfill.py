"""Backfill of fixed dimensional encodings: numpy, as `sqlvec backfill` does it, against the server.

Generated documents, each side on a table of its own. The bulk side is ``manage.backfill``, the
other one ``CALL sqlvec.backfill``; both end with every row encoded and checked.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psycopg
from sqlalchemy import NullPool, create_engine

from benchmarks.measure import seconds
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database
from sqlvec import manage
from sqlvec.types.psycopg import register_multivectors

TARGET = 4.0
DIMENSIONS = 128


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the number and the length of the documents, and the number of repetitions."""
    parser.add_argument("--rows", type=int, default=3000, help="documents (3,000)")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of each (100)")
    parser.add_argument("--rounds", type=int, default=3, help="fresh tables per side (3)")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Fill a column of 2,560 dimensions in both ways, taking turns."""
    rows, tokens, rounds = options.rows, options.tokens, options.rounds
    connection = database.connect()
    _create_base(connection, rows, tokens)
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(database.dsn), poolclass=NullPool
    )
    taken: dict[str, list[float]] = {"server": [], "bulk": []}
    for number in range(rounds):
        for side in list(taken) if number % 2 == 0 else list(reversed(taken)):
            name = f"{side}_{number}"
            _declare_copy(connection, name)
            actions = {
                "server": partial(connection.execute, f"CALL sqlvec.backfill('{name}')"),
                "bulk": partial(manage.backfill, engine, name),
            }
            taken[side].append(seconds(actions[side]))
        _require_equal(connection, f"server_{number}", f"bulk_{number}", rows)
        connection.execute(f"DROP TABLE server_{number}, bulk_{number}")
    speed = {side: rows / float(np.median(values)) for side, values in taken.items()}
    ratio = float(np.median([a / b for a, b in zip(*taken.values(), strict=True)]))
    figures: dict[str, Any] = {
        "benchmark": "fde_backfill",
        "rows": rows,
        "tokens": tokens,
        "dimensions": DIMENSIONS,
        "seconds": taken,
        "rows_per_second": speed,
        "ratio": ratio,
    }
    columns = ("documents", "server rows/s", "bulk rows/s", "ratio")
    shown = table(
        "backfill of FDEs",
        columns,
        [(f"{rows:,} × {tokens} × {DIMENSIONS}", speed["server"], speed["bulk"], ratio)],
    )
    return Report(figures, [Claim("bulk against server", ratio, TARGET)], [shown])


def _create_base(connection: Connection, rows: int, tokens: int) -> None:
    random = np.random.default_rng(0)
    register_multivectors(connection)
    connection.execute(
        f"CREATE TABLE base (id int PRIMARY KEY, tokens halfvec({DIMENSIONS})[]);"
        " ALTER TABLE base ALTER COLUMN tokens SET STORAGE EXTERNAL"
    )
    with connection.cursor().copy("COPY base FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "halfvec[]"])
        for number in range(rows):
            vectors = random.standard_normal((tokens, DIMENSIONS))
            copy.write_row((number, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))


def _declare_copy(connection: Connection, name: str) -> None:
    connection.execute(f"CREATE TABLE {name} (LIKE base INCLUDING ALL)")
    connection.execute(f"INSERT INTO {name} SELECT * FROM base")
    connection.execute(f"CALL sqlvec.add_fde('{name}', 'tokens')")
    connection.execute(f"VACUUM ANALYZE {name}")
    connection.execute("CHECKPOINT")


def _require_equal(connection: Connection, one: str, other: str, rows: int) -> None:
    equal = f"SELECT count(*) FROM {one} AS a JOIN {other} AS b USING (id, tokens_fde)"
    row = connection.execute(equal).fetchone()
    if row != (rows,):
        raise AssertionError(f"{row} of {rows} codes are equal")


def draw(report: Report, path: Path) -> None:
    """Draw the rows per second of both sides."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    speed = report.figures["rows_per_second"]
    figure, axis = plt.subplots(figsize=(4, 3), layout="constrained")
    axis.bar(list(speed), list(speed.values()))
    axis.set_ylabel("documents per second")
    figure.savefig(path, dpi=120)
    plt.close(figure)
