"""What a benchmark found, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure with its target.

    :param at_most: the target is an upper limit; otherwise a lower one.
    """

    text: str
    value: float
    target: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure reaches its target."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(slots=True)
class Report:
    """Figures as they go into the JSON file, tables as they go to the screen."""

    figures: dict[str, Any]
    claims: list[Claim]
    tables: list[Table] = field(default_factory=list)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Lay out a table; numbers stand right, the first column left."""
    result = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        result.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        result.add_row(*(_cell(value) for value in row))
    return result


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def finish(report: Report, json_path: Path | None, picture: Path) -> None:
    """Print the report and write its figures."""
    claims = [
        (claim.text, claim.value, f"{'≤' if claim.at_most else '≥'} {claim.target:.3f}", claim.met)
        for claim in report.claims
    ]
    rows = [(text, value, target, "yes" if met else "NO") for text, value, target, met in claims]
    console = Console(width=120)
    for each in [*report.tables, table("Targets", ("claim", "figure", "target", "met"), rows)]:
        console.print(each)
    report.figures["targets"] = [
        {"claim": text, "value": value, "target": target, "met": met}
        for text, value, target, met in claims
    ]
    if json_path is not None:
        json_path.write_text(json.dumps(report.figures, indent=2) + "\n", encoding="utf-8")
    console.print(f"picture: {picture}")
