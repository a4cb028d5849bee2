"""MaxSim search against exhaustive MaxSim: quality on real collections, time at 20,000 documents.

Also MaxSim itself, per pair of tokens and against the grouping form that pgvector-python's examples
publish, the time of an encoding in SQL and in numpy, and the bytes that each form of a document
takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from sqlalchemy import Engine, NullPool, create_engine

from benchmarks import tokens as collections
from benchmarks.measure import interleaved, median, ratio, seconds
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database
from benchmarks.tokens import Tokens
from sqlvec import catalog, manage
from sqlvec.types.multivector import to_text
from sqlvec.types.psycopg import register_multivectors

K = 10
DIMENSIONS = 128
LARGE = "cranfield"


@dataclass(frozen=True)
class Layout:
    """What stands beside the tokens of a table."""

    fde: str = ""
    """More arguments of add_fde."""

    index: str | None = None
    """Operator class and settings of an HNSW index; None reads the codes."""

    pooled: bool = False


_GRAPH = "WITH (m = 32, ef_construction = 200)"
LAYOUTS = {
    "default, HNSW": Layout(index=f"halfvec_ip_ops) {_GRAPH}"),
    "40 repetitions, signs": Layout(", repetitions => 40, bits => true"),
    "40 repetitions, signs, HNSW": Layout(
        ", repetitions => 40, bits => true", index=f"bit_hamming_ops) {_GRAPH}"
    ),
    "40 repetitions, signs, pooled": Layout(", repetitions => 40, bits => true", pooled=True),
}
BEST = "40 repetitions, signs, pooled"

# Exhaustive MaxSim as it is written by hand, with the function that stands for it.
BY_HAND = """
    SELECT id FROM {table}
    ORDER BY sqlvec.maxsim(tokens, %s::halfvec[]) DESC NULLS LAST, id LIMIT {k}
"""

# What pgvector-python's ColBERT example does: number the query tokens, pair them with all document
# tokens, and group.
GROUPING = """
    CREATE FUNCTION grouping_maxsim(document vector[], query vector[]) RETURNS float8
    LANGUAGE sql AS $$
        WITH asked AS (SELECT row_number() OVER () AS n, token FROM unnest(query) AS token),
             kept AS (SELECT token FROM unnest(document) AS token),
             pairs AS (SELECT a.n, 1 - (k.token <=> a.token) AS similarity
                       FROM asked AS a CROSS JOIN kept AS k),
             best AS (SELECT max(similarity) AS similarity FROM pairs GROUP BY n)
        SELECT sum(similarity) FROM best
    $$
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark has beside the common ones."""
    parser.add_argument("--rows", type=int, default=20_000, help="documents of the large table")
    parser.add_argument("--queries", type=int, default=20, help="queries timed on it")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is run")
    parser.add_argument(
        "--chunk",
        type=int,
        default=8,
        help="consecutive tokens that a made-up document takes from one real document",
    )


def run(database: Database, options: argparse.Namespace) -> Report:
    """Search every collection and the large table, exhaustively and not."""
    engine = create_engine("postgresql+psycopg://", creator=database.connect, poolclass=NullPool)
    connection = database.connect()
    register_multivectors(connection)
    quality = [_quality(connection, engine, folder) for folder in collections.collections()]
    large = _large(connection, engine, options)
    pairs = _pairs(connection)
    encoding = _encoding(connection, engine)
    size = _bytes(connection)
    figures: dict[str, Any] = {
        "ndcg_ratio": {case["collection"]: case["ndcg_ratio"] for case in quality},
        "speedup_vs_exhaustive": large["cases"][BEST]["speedup"],
        "speedup_vs_mode_exact": large["cases"][BEST]["speedup_vs_mode_exact"],
        "quality": quality,
        "large": large,
        "bytes_per_document": size,
        **pairs,
        **encoding,
    }
    claims = [
        Claim(f"nDCG@10 of exhaustive MaxSim, {case['collection']}", case["ndcg_ratio"], 0.99)
        for case in quality
    ]
    claims += [
        Claim(f"speed-up at {options.rows:,} documents", figures["speedup_vs_exhaustive"], 10),
        Claim("its recall@10", large["cases"][BEST]["recall"], 0.95),
        Claim("MaxSim, times faster than the grouping form", pairs["ratio_vs_pgvector_example"], 2),
    ]
    return Report(figures, claims, _tables(figures))


def _quality(connection: Connection, engine: Engine, folder: Path) -> dict[str, Any]:
    """Compare nDCG@10 of a search with that of an exhaustive one, both on the server."""
    documents, queries = collections.tokens(folder, "doc"), collections.tokens(folder, "query")
    name = folder.name.replace("-", "_")
    _load(connection, engine, name, documents, Layout())
    grades = collections.judgements(folder)
    judged = [n for n, grade in enumerate(grades) if grade]
    sides = {"exhaustive": "mode => 'exact'", "search": "mode => 'tokens_fde'"}
    found = {
        side: {n: _search(connection, name, queries[n], how) for n in judged}
        for side, how in sides.items()
    }
    ndcg = {
        side: float(
            np.mean([collections.ndcg(np.array(ids), grades[n]) for n, ids in each.items()])
        )
        for side, each in found.items()
    }
    recall = _recall(list(found["search"].values()), list(found["exhaustive"].values()))
    return {
        "collection": folder.name,
        "documents": len(documents),
        "queries": len(judged),
        "ndcg_exhaustive": ndcg["exhaustive"],
        "ndcg": ndcg["search"],
        "ndcg_ratio": ndcg["search"] / ndcg["exhaustive"],
        "recall": recall,
    }


def _large(connection: Connection, engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """Time searches of a table that real documents and made-up ones fill."""
    folder = next(path for path in collections.collections() if path.name == LARGE)
    real, queries = collections.tokens(folder, "doc"), collections.tokens(folder, "query")
    queries = queries[:: max(1, len(queries) // options.queries)][: options.queries]
    documents = real + _made_up(real, options.rows - len(real), options.chunk)
    cases = {}
    for name, layout in LAYOUTS.items():
        build = _load(connection, engine, "large", documents, layout)
        asked = "mode => 'large_fde'" if layout.index else "mode => 'tokens_fde'"
        sides = {
            "exhaustive": lambda n: _by_hand(connection, "large", queries[n]),
            "exact": lambda n: _search(connection, "large", queries[n], "mode => 'exact'"),
            "search": lambda n, asked=asked: _search(connection, "large", queries[n], asked),
        }
        exact = [sides["exact"](n) for n in range(len(queries))]
        found = [sides["search"](n) for n in range(len(queries))]
        times = interleaved(sides, len(queries), options.rounds)
        cases[name] = {
            **build,
            "recall": _recall(found, exact),
            "search_ms": median(times["search"]),
            "exhaustive_ms": median(times["exhaustive"]),
            "exact_ms": median(times["exact"]),
            "speedup": 1 / ratio(times["search"], times["exhaustive"]),
            "speedup_vs_mode_exact": 1 / ratio(times["search"], times["exact"]),
        }
    return {"documents": len(documents), "made_up": len(documents) - len(real), "cases": cases}


def _made_up(real: Tokens, count: int, chunk: int) -> Tokens:
    """Splice documents of such lengths together from runs of `chunk` tokens of real ones."""
    random = np.random.default_rng(0)
    lengths = np.array([len(document) for document in real])
    documents = []
    for length in random.choice(lengths, count):
        parts = []
        for start in range(0, int(length), chunk):
            source = real[random.integers(len(real))]
            size = min(len(source), chunk, int(length) - start)
            first = random.integers(0, len(source) - size + 1)
            parts.append(source[first : first + size])
        documents.append(np.concatenate(parts))
    return documents


def _load(
    connection: Connection, engine: Engine, name: str, documents: Tokens, layout: Layout
) -> dict[str, float]:
    """Fill a table, encode it and build the index; return the seconds and the size of the index."""
    connection.execute(f"DROP TABLE IF EXISTS {name}")
    connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, tokens halfvec({DIMENSIONS})[])")
    connection.execute(f"CALL sqlvec.add_fde('{name}', 'tokens'{layout.fde})")
    if layout.pooled:
        connection.execute(
            f"CALL sqlvec.add_pooled('{name}', 'tokens', 'sequential', "
            "options => '{\"factor\": 4}')"
        )
    connection.execute("SET sqlvec.maintain = off")
    with connection.cursor().copy(f"COPY {name} (id, tokens) FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "halfvec[]"])
        for number, document in enumerate(documents):
            copy.write_row((number, document))
    connection.execute("RESET sqlvec.maintain")
    encoded = seconds(lambda: manage.backfill(engine, name))
    built, size = 0.0, 0
    if layout.index:
        create = f"CREATE INDEX {name}_fde ON {name} USING hnsw (tokens_fde {layout.index}"
        built = seconds(lambda: connection.execute(create))
        size = _number(connection, f"SELECT pg_relation_size('{name}_fde')")
    connection.execute(f"VACUUM ANALYZE {name}")
    return {"encode_s": encoded, "index_s": built, "index_bytes": size}


def _number(connection: Connection, statement: str) -> int:
    ((number,),) = connection.execute(statement).fetchall()
    return int(str(number))


def _search(connection: Connection, name: str, query: Any, how: str) -> list[int]:
    rows = connection.execute(
        f"SELECT key FROM sqlvec.maxsim_search_keys("
        f"NULL::{name}, 'tokens', %s::halfvec[], key => NULL::int, {how})",
        (to_text(query),),
        prepare=True,
    )
    return [int(str(key)) for (key,) in rows]


def _by_hand(connection: Connection, name: str, query: Any) -> list[int]:
    statement = BY_HAND.format(table=name, k=K)
    rows = connection.execute(statement, (to_text(query),), prepare=True)
    return [int(str(key)) for (key,) in rows]


def _recall(found: Sequence[Sequence[int]], exact: Sequence[Sequence[int]]) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)])
    )


def _pairs(connection: Connection) -> dict[str, float]:
    """Time MaxSim over documents in memory, per pair of tokens, and the grouping form."""
    random = np.random.default_rng(0)
    documents, document_tokens, query_tokens = 200, 128, 32
    connection.execute(
        f"CREATE TABLE pair (id int, half halfvec({DIMENSIONS})[], whole vector({DIMENSIONS})[])"
    )
    with connection.cursor().copy("COPY pair FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "halfvec[]", "vector[]"])
        for number in range(documents):
            made = _unit(random.standard_normal((document_tokens, DIMENSIONS)))
            copy.write_row((number, made, made))
    connection.execute("VACUUM ANALYZE pair")
    connection.execute(GROUPING)
    query = to_text(_unit(random.standard_normal((query_tokens, DIMENSIONS))))
    calls = {
        "half": "sqlvec.maxsim(half, %s::halfvec[])",
        "whole": "sqlvec.maxsim_vector(whole, %s::vector[])",
        "grouping": "grouping_maxsim(whole, %s::vector[])",
    }
    sides = {
        name: lambda _, call=call: connection.execute(
            f"SELECT sum({call}) FROM pair", (query,)
        ).fetchall()
        for name, call in calls.items()
    }
    times = interleaved(sides, 1, 7)
    return {
        "maxsim_us_per_pair": median(times["half"])
        * 1e3
        / (documents * document_tokens * query_tokens),
        "ratio_vs_pgvector_example": ratio(times["grouping"], times["whole"]),
    }


def _encoding(connection: Connection, engine: Engine) -> dict[str, float]:
    """Time the default encoding of a document of 100 tokens in SQL and in numpy."""
    random = np.random.default_rng(0)
    documents = [_unit(random.standard_normal((100, DIMENSIONS))) for _ in range(50)]
    connection.execute("CALL sqlvec.create_encoder('timed', 'fde', %s)", (DIMENSIONS,))
    with engine.connect() as reader:
        fde, parts = catalog.load_fde(reader, "timed")
    texts = [to_text(document) for document in documents]

    def in_sql(_: int) -> None:
        for text in texts:
            connection.execute(
                "SELECT vector_dims(sqlvec.fde_document('timed', %s::halfvec[]))", (text,)
            )

    times = interleaved({"sql": in_sql, "numpy": lambda _: fde.documents(documents, parts)}, 1, 3)
    return {
        "fde_sql_ms": median(times["sql"]) / len(documents),
        "fde_numpy_ms": median(times["numpy"]) / len(documents),
    }


def _bytes(connection: Connection) -> dict[str, float]:
    """Measure what a document of the large table takes in each form."""
    connection.execute("CALL sqlvec.fit_centroids('sized', 'large', 'tokens', 64, 2000)")
    rows = connection.execute("""
        SELECT avg(pg_column_size(tokens)), avg(pg_column_size(tokens_pool)),
               avg(pg_column_size(sqlvec.centroid_codes('sized', tokens))),
               avg(pg_column_size(sqlvec.fde_document('timed', tokens))),
               avg(pg_column_size(tokens_fde))
        FROM (SELECT * FROM large LIMIT 200) AS d
    """).fetchall()
    names = ("full", "pooled", "centroid", "fde", "fde_signs")
    return {name: float(str(size)) for name, size in zip(names, rows[0], strict=True)}


def _unit(tokens: Any) -> Any:
    return (tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).astype(np.float32)


def _tables(figures: dict[str, Any]) -> list[Any]:
    quality = [
        (
            f"{case['collection']}, {case['documents']:,}",
            case["queries"],
            case["ndcg_exhaustive"],
            case["ndcg"],
            case["ndcg_ratio"],
            case["recall"],
        )
        for case in figures["quality"]
    ]
    large = [
        (
            name,
            *(
                case[key]
                for key in (
                    "recall",
                    "search_ms",
                    "exhaustive_ms",
                    "exact_ms",
                    "speedup",
                    "speedup_vs_mode_exact",
                    "index_bytes",
                    "encode_s",
                    "index_s",
                )
            ),
        )
        for name, case in figures["large"]["cases"].items()
    ]
    return [
        table(
            "Real collections",
            (
                "collection, documents",
                "queries",
                "nDCG@10 exhaustive",
                "nDCG@10",
                "ratio",
                "recall@10",
            ),
            quality,
        ),
        table(
            f"{figures['large']['documents']:,} documents",
            (
                "encoding",
                "recall@10",
                "ms",
                "exhaustive ms",
                "mode exact ms",
                "speed-up",
                "on mode exact",
                "index bytes",
                "encode s",
                "index s",
            ),
            large,
        ),
        table(
            "Bytes per document",
            tuple(figures["bytes_per_document"]),
            [tuple(figures["bytes_per_document"].values())],
        ),
        table(
            "MaxSim and its encoding",
            ("us per pair", "grouping form / maxsim", "fde in SQL, ms", "fde in numpy, ms"),
            [
                tuple(
                    figures[key]
                    for key in (
                        "maxsim_us_per_pair",
                        "ratio_vs_pgvector_example",
                        "fde_sql_ms",
                        "fde_numpy_ms",
                    )
                )
            ],
        ),
    ]


def draw(report: Report, path: Path) -> None:
    """Draw time against recall on the large table, and the quality of each collection."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figures = report.figures
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for name, case in figures["large"]["cases"].items():
        left.scatter(case["recall"], case["search_ms"], label=name)
    left.axhline(case["exhaustive_ms"], linestyle=":", label="exhaustive")
    left.set(
        xlabel="recall@10",
        ylabel="ms",
        yscale="log",
        title=f"{figures['large']['documents']:,} documents",
    )
    left.legend()
    names = [case["collection"] for case in figures["quality"]]
    for offset, key in ((-0.2, "ndcg_exhaustive"), (0.2, "ndcg")):
        right.bar(
            np.arange(len(names)) + offset,
            [case[key] for case in figures["quality"]],
            0.4,
            label=key,
        )
    right.set_xticks(range(len(names)), names)
    right.set_title("nDCG@10")
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
