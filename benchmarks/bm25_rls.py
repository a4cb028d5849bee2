"""sqlvec.bm25_search under a row security policy of tenants, against no policy.

A role that row security binds asks what the owner of the table asks without it. Postgres evaluates
a policy before any operator that is not leakproof, and ``@@`` is none: an index on lexemes is not
used under a policy. Measured: what then helps, by layout of the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np

from benchmarks.bm25 import TOLERANCE, Hits, build
from benchmarks.documents import Corpus, create_table
from benchmarks.measure import interleaved, median, ratio
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database

SEARCH = """
    SELECT (hit).id, score
    FROM sqlvec.bm25_search(NULL::{table}, 'body', %(words)s, k => 10, backend => 'sqlvec'{more})
"""
EXPLAIN = """
    SELECT topic, detail FROM sqlvec.explain_bm25_search(
        NULL::{table}, 'body', %(words)s, k => 10, backend => 'sqlvec'{more}
    )
"""
FILTER = ", filter => jsonb_build_object('tenant_id', %(tenant)s::int)"
TENANT = ", tenant => %(tenant)s::text"
ROLE = "sqlvec_benchmark_tenant"
POLICY = "tenant_id = current_setting('app.tenant')::int"


@dataclass(frozen=True, slots=True)
class Layout:
    """A table of all documents.

    :param index: with a btree index on tenant_id.
    :param partitions: a list partition for each tenant.
    :param statistics: of each tenant, instead of all documents together.
    """

    name: str
    tenants: int
    index: bool = False
    partitions: bool = False
    statistics: bool = False

    @property
    def table(self) -> str:
        """Name of the table."""
        parts = {"btree": self.index, "list": self.partitions, "own": self.statistics}
        return "_".join(["doc", str(self.tenants), *(part for part, has in parts.items() if has)])


LAYOUTS = (
    Layout("no index", 1),
    Layout("index", 1, index=True),
    Layout("no index", 100),
    Layout("index", 100, index=True),
    Layout("partitions", 100, partitions=True),
    Layout("index, own statistics", 100, index=True, statistics=True),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the size of the tables and the number of repetitions."""
    parser.add_argument("--rows", type=int, default=100_000, help="documents (100,000)")
    parser.add_argument("--queries", type=int, default=40, help="how many (40)")
    parser.add_argument("--rounds", type=int, default=3, help="times all queries are run (3)")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Measure every layout in turn."""
    corpus = Corpus()
    queries = [" ".join(words) for words in corpus.queries(options.queries)]
    connection = database.connect()
    create_table(connection, "base", corpus, options.rows)
    connection.execute(f"CREATE ROLE {ROLE}")
    try:
        found = [_measure(database, layout, queries, options.rounds) for layout in LAYOUTS]
    finally:
        _leakproof(connection, False)
        connection.execute(f"DROP OWNED BY {ROLE}")
        connection.execute(f"DROP ROLE {ROLE}")
    claims = [
        Claim(
            f"{each['tenants']} tenants, {each['layout']}: answers under the policy are right",
            each["right"],
            1.0,
        )
        for each in found
    ]
    figures = {
        "benchmark": "bm25_rls",
        "rows": options.rows,
        "queries": len(queries),
        "best": {str(tenants): _best(found, tenants) for tenants in (1, 100)},
        "layouts": found,
    }
    return Report(figures, claims, _tables(found))


def _measure(
    database: Database, layout: Layout, queries: Sequence[str], rounds: int
) -> dict[str, Any]:
    connection = database.connect()
    _create(connection, layout)
    name = layout.table
    own = TENANT if layout.statistics else ""
    tenants = [number % layout.tenants for number in range(len(queries))]

    def side(role: str | None, more: str, template: str = SEARCH) -> Callable[[int], list[Any]]:
        session = database.connect()
        if role is not None:
            session.execute(f"SET ROLE {role}")
        statement = template.format(table=name, more=more).encode()

        def search(query: int) -> list[Any]:
            parameters = {"words": queries[query], "tenant": str(tenants[query])}
            session.execute("SELECT set_config('app.tenant', %(tenant)s, false)", parameters)
            return session.execute(statement, parameters).fetchall()

        return search

    ways = {
        "no policy": (None, own),
        "filter": (None, FILTER + own),
        "policy": (ROLE, own),
        "policy, filter": (ROLE, FILTER + own),
    }
    sides = {each: side(*way) for each, way in ways.items()}
    explain = {each: side(*way, EXPLAIN) for each, way in ways.items()}
    right = _right(sides, len(queries))
    times = interleaved(sides, len(queries), rounds)
    longest = max(range(len(queries)), key=lambda query: len(queries[query]))
    plans = {each: plan(longest) for each, plan in explain.items()}

    # Only a superuser can promise this for an operator of Postgres, and only for all of a database.
    _leakproof(connection, True)
    promised = {f"{each}, leakproof": sides[each] for each in ("policy", "policy, filter")}
    right += _right({"filter": sides["filter"], **promised}, len(queries))
    times |= interleaved(promised, len(queries), rounds)
    plans |= {f"{each}, leakproof": explain[each](longest) for each in ("policy", "policy, filter")}
    _leakproof(connection, False)

    connection.execute(f"DROP TABLE {name}")
    return {
        "layout": layout.name,
        "tenants": layout.tenants,
        "right": float(np.mean(right)),
        "median_ms": {each: median(taken) for each, taken in times.items()},
        "p95_ms": {each: float(np.percentile(taken, 95)) for each, taken in times.items()},
        "ratio_to_no_policy": {
            each: ratio(taken, times["no policy"]) for each, taken in times.items()
        },
        "plans": {each: [list(row) for row in plan] for each, plan in plans.items()},
    }


def _create(connection: Connection, layout: Layout) -> None:
    name = layout.table
    key = "(id, tenant_id)" if layout.partitions else "(id)"
    by = " PARTITION BY LIST (tenant_id)" if layout.partitions else ""
    connection.execute(
        f"CREATE TABLE {name}"
        f" (id int, tenant_id int NOT NULL, body text, PRIMARY KEY {key}){by}".encode()
    )
    if layout.partitions:
        for tenant in range(layout.tenants):
            connection.execute(
                f"CREATE TABLE {name}_{tenant} PARTITION OF {name} FOR VALUES IN ({tenant})"
            )
    connection.execute(
        f"INSERT INTO {name} SELECT id, tenant_id %% %s, body FROM base".encode(), [layout.tenants]
    )
    build(connection, name, ", tenant => 'tenant_id'" if layout.statistics else "", drift=0.1)
    if layout.index:
        connection.execute(f"CREATE INDEX ON {name} (tenant_id)")
    connection.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
    connection.execute(f"CREATE POLICY own_rows ON {name} USING ({POLICY})")
    connection.execute(f"GRANT SELECT ON {name} TO {ROLE}")
    connection.execute(f"VACUUM ANALYZE {name}")


def _leakproof(connection: Connection, promised: bool) -> None:
    word = "LEAKPROOF" if promised else "NOT LEAKPROOF"
    connection.execute(f"ALTER FUNCTION pg_catalog.ts_match_vq(tsvector, tsquery) {word}")


def _right(sides: dict[str, Callable[[int], list[Any]]], queries: int) -> list[bool]:
    """Compare every answer under the policy with that of the filter; ties may fall either way."""

    def same(some: Hits, others: Hits) -> bool:
        first, second = (np.array([score for _, score in hits]) for hits in (some, others))
        return len(some) == len(others) and bool(np.all(abs(first - second) <= TOLERANCE))

    return [
        same(cast(Hits, search(query)), cast(Hits, sides["filter"](query)))
        for query in range(queries)
        for side, search in sides.items()
        if side.startswith("policy")
    ]


def _best(found: Sequence[dict[str, Any]], tenants: int) -> dict[str, Any]:
    """Name the fastest way to search under the policy, without and with a superuser's promise."""
    ways = [
        (taken, each["layout"], side)
        for each in found
        if each["tenants"] == tenants
        for side, taken in each["median_ms"].items()
        if side.startswith("policy")
    ]
    result = {}
    for name, promised in (("anyone", False), ("superuser", True)):
        taken, layout, side = min(way for way in ways if promised or "leakproof" not in way[2])
        result[name] = {"layout": layout, "side": side, "median_ms": taken}
    return result


def _tables(found: Sequence[dict[str, Any]]) -> list[Any]:
    sides = list(found[0]["median_ms"])
    columns = ("tenants, layout", *sides, "right")
    shown = [
        table(
            f"Top 10: {title} in ms",
            columns,
            [
                (
                    f"{each['tenants']}, {each['layout']}",
                    *(each[figure][side] for side in sides),
                    each["right"],
                )
                for each in found
            ],
        )
        for title, figure in (("median", "median_ms"), ("p95", "p95_ms"))
    ]
    best = [
        (f"{tenants}, {who}", way["layout"], way["side"], way["median_ms"])
        for tenants in (1, 100)
        for who, way in _best(found, tenants).items()
    ]
    shown.append(
        table("Fastest under the policy", ("tenants, who", "layout", "search", "ms"), best)
    )
    for each in found:
        # The JSON file has them whole.
        rows = [
            (side, detail[:85])
            for side, plan in each["plans"].items()
            for topic, detail in plan
            if topic in ("plan", "explain") and "Cond: (body_bm25_tsv" not in detail
        ]
        title = f"Plans of one search: {each['tenants']} tenants, {each['layout']}"
        plans = table(title, ("search", "plan"), rows)
        plans.columns[1].justify = "left"
        shown.append(plans)
    return shown


def draw(report: Report, path: Path) -> None:
    """Draw the medians of all layouts as bars."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = report.figures["layouts"]
    sides = list(found[0]["median_ms"])
    figure, axis = plt.subplots(figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(sides)
    for number, side in enumerate(sides):
        places = [place + width * (number - (len(sides) - 1) / 2) for place in range(len(found))]
        axis.bar(places, [each["median_ms"][side] for each in found], width, label=side)
    labels = [f"{each['tenants']} tenants\n{each['layout']}" for each in found]
    axis.set_xticks(range(len(found)), labels, fontsize=8)
    axis.set(yscale="log", ylabel="median, ms")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
