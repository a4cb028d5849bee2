"""Run one benchmark: ``python -m benchmarks NAME --json FILE [--dsn DSN]``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Protocol

from benchmarks import (
    backfill,
    bm25,
    bm25_rls,
    centroid,
    fde,
    fde_backfill,
    hubness,
    hybrid,
    maxsim,
    neighbours,
    overhead,
    pool,
    quantized,
    relevance,
    shaping,
)
from benchmarks.report import Report, finish
from benchmarks.server import Database, open_database


class Benchmark(Protocol):
    """What a module of this package offers."""

    __doc__: str | None

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that this benchmark has beside the common ones."""

    def run(self, database: Database, options: argparse.Namespace) -> Report:
        """Measure both sides."""

    def draw(self, report: Report, path: Path) -> None:
        """Draw the picture."""


BENCHMARKS: dict[str, Benchmark] = {
    "quantized": quantized,
    "overhead": overhead,
    "backfill": backfill,
    "bm25": bm25,
    "bm25_rls": bm25_rls,
    "fde": fde,
    "fde_backfill": fde_backfill,
    "maxsim": maxsim,
    "pool": pool,
    "centroid": centroid,
    "hubness": hubness,
    "neighbours": neighbours,
    "relevance": relevance,
    "hybrid": hybrid,
    "shaping": shaping,
}


def main() -> None:
    """Parse the command line, run the benchmark, show and write what it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, benchmark in BENCHMARKS.items():
        summary = (benchmark.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--json", type=Path, help="write the figures to this file")
        command.add_argument(
            "--dsn", help="a server to use (its databases stay as they are); default: a private one"
        )
        benchmark.add_options(command)
    options = parser.parse_args()

    benchmark = BENCHMARKS[options.name]
    with open_database(options.dsn) as database:
        report = benchmark.run(database, options)
        report.figures["environment"] = database.environment()
    picture = Path(__file__).parent / "results" / f"{options.name}.png"
    picture.parent.mkdir(exist_ok=True)
    benchmark.draw(report, picture)
    finish(report, options.json, picture)


if __name__ == "__main__":
    main()
