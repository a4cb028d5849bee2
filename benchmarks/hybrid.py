"""sqlvec.hybrid_search: nDCG@10 of every leg and fusion, and time against its legs.

Relevance models are fitted to four fifths of the queries and asked about the others, five times.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, NullPool, create_engine

from benchmarks import data, documents
from benchmarks import tokens as tokens_of
from benchmarks.folders import some_folders
from benchmarks.measure import interleaved, median, ratio
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database
from sqlvec import relevance
from sqlvec.fit.hybrid import collect, fit_hybrid
from sqlvec.types.multivector import to_text

K = 10
CANDIDATES = 100
FOLDS = 5
COLUMNS = {"text": "body", "vector": "embedding", "tokens": "tokens"}
FUSIONS = ("rrf", "dbsf", "convex", "relevance")
LIMIT = "limit-mv600"
"""A collection whose vectors know nothing about its queries."""


@dataclass(frozen=True, slots=True)
class Collection:
    """Queries by leg, as SQL literals, with the grades of rows."""

    name: str
    queries: Mapping[str, list[str]]
    grades: list[dict[int, int]]

    def some(self, legs: Sequence[str], count: int) -> Collection:
        """Return at most so many queries, spread evenly, with some legs."""
        chosen = np.linspace(0, len(self.grades) - 1, min(count, len(self.grades))).astype(int)
        queries = {leg: [self.queries[leg][n] for n in chosen] for leg in legs}
        return Collection(self.name, queries, [self.grades[n] for n in chosen])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark has beside the common ones."""
    parser.add_argument("--collections", nargs="*", help="names of some; default: all")
    parser.add_argument("--queries", type=int, default=1000, help="of a collection, at most (1000)")
    parser.add_argument(
        "--token-queries", type=int, default=200, help="the same for three legs (200)"
    )
    parser.add_argument("--rows", type=int, default=100_000, help="of the table timed (100000)")
    parser.add_argument("--timed", type=int, default=40, help="queries timed (40)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is run (5)")
    parser.add_argument("--part", choices=["quality", "latency"], help="default: both")


def run(database: Database, options: argparse.Namespace) -> Report:
    """Search every collection in every way, then time a large table."""
    figures: dict[str, Any] = {}
    claims: list[Claim] = []
    tables = []
    if options.part != "latency":
        cases = list(_quality(database, options))
        figures["ndcg"] = cases
        claims += _quality_claims(cases)
        tables += _quality_tables(cases)
    if options.part != "quality":
        found = _latency(database, options)
        figures |= found
        claims.append(
            Claim(
                "time against the sum of its legs",
                found["latency_ratio_vs_sum_of_legs"],
                1.2,
                at_most=True,
            )
        )
        tables.append(
            table(
                f"{options.rows:,} rows",
                ("side", "median ms"),
                list(found["median_ms"].items()),
            )
        )
        tables.append(
            table(
                "Time of hybrid_search as a multiple",
                ("of", "ratio"),
                [(name, value) for name, value in found.items() if name.startswith("latency")],
            )
        )
    return Report(figures, claims, tables)


def _quality(database: Database, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    connection = database.connect()
    engine = create_engine("postgresql+psycopg://", creator=database.connect, poolclass=NullPool)
    for folder in some_folders("doc_emb.npy"):
        if options.collections and folder.name not in options.collections:
            continue
        whole = _load(connection, folder)
        sets: list[tuple[tuple[str, ...], int]] = [(("text", "vector"), options.queries)]
        if "tokens" in whole.queries:
            sets.append((("text", "vector", "tokens"), options.token_queries))
        for legs, count in sets:
            collection = whole.some(legs, count)
            ndcg: dict[str, list[float]] = {
                leg: _search(connection, collection, "rrf", legs=(leg,)) for leg in legs
            }
            for fusion in FUSIONS[:3]:
                ndcg[fusion] = _search(connection, collection, fusion)
            ndcg["relevance"] = _fitted(connection, engine, collection)
            gain = np.array(ndcg["relevance"]) - np.array(ndcg["convex"])
            yield {
                "collection": folder.name,
                "legs": legs,
                "queries": len(collection.grades),
                "ndcg": {name: float(np.mean(values)) for name, values in ndcg.items()},
                "relevance_against_convex": float(gain.mean()),
                "standard_error": float(gain.std() / np.sqrt(len(gain))),
            }


def _fitted(connection: Connection, engine: Engine, collection: Collection) -> list[float]:
    """Fit models to the queries of the other folds, and search with them."""
    legs = list(collection.queries)
    name = f'"{collection.name}"'
    with engine.connect() as reader:
        found = collect(
            reader, name, {leg: COLUMNS[leg] for leg in legs}, collection.queries, key="id"
        )
    label = np.array(
        [
            row.isdigit() and int(row) in collection.grades[query]
            for query, row in zip(found.query, found.rows, strict=True)
        ],
        dtype=np.float64,
    )
    ndcg = np.zeros(len(collection.grades))
    number = np.random.default_rng(0).permutation(len(collection.grades)) % FOLDS
    for fold in range(FOLDS):
        part = found.of_queries(number != fold)
        names = {leg: f"{collection.name} {len(legs)} {fold} {leg}" for leg in legs}
        fits = fit_hybrid(
            part,
            label[(number != fold)[found.query]],
            models=names,
        )
        with engine.begin() as writer:
            for leg in legs:
                relevance.save(writer, names[leg], fits[leg].model, table=name, column=COLUMNS[leg])
            fused = f"{collection.name} {len(legs)} {fold}"
            relevance.save(writer, fused, fits["fused"].model)
        chosen = np.flatnonzero(number == fold)
        ndcg[chosen] = _search(connection, collection, "relevance", model=fused, chosen=chosen)
    return ndcg.tolist()


def _search(
    connection: Connection,
    collection: Collection,
    fusion: str,
    *,
    legs: Sequence[str] | None = None,
    model: str | None = None,
    chosen: Sequence[int] | NDArray[np.intp] | None = None,
) -> list[float]:
    """Return nDCG@10 of queries."""
    asked = list(legs or collection.queries)
    kinds = {"text": "text", "vector": "vector", "tokens": "halfvec[]"}
    arguments = ", ".join(f"query_{leg} => %({leg})s::{kinds[leg]}" for leg in asked)
    statement = f"""
        SELECT key FROM sqlvec.hybrid_search_keys(NULL::"{collection.name}", NULL::int, {arguments},
            k => {K}, candidates => {CANDIDATES}, fusion => %(fusion)s, metric => %(metric)s,
            relevance => %(model)s)
    """
    result = []
    for number in range(len(collection.grades)) if chosen is None else chosen:
        values: dict[str, str | None] = {leg: collection.queries[leg][number] for leg in asked}
        values |= {"fusion": fusion, "model": model}
        values["metric"] = "cosine" if "vector" in asked else None
        found = connection.execute(statement.encode(), values).fetchall()
        keys = [cast(int, row[0]) for row in found]
        # A list that ends early has nothing at its last places.
        keys += [-1] * (K - len(keys))
        result.append(tokens_of.ndcg(np.array(keys), collection.grades[number]))
    return result


def _load(connection: Connection, folder: Path) -> Collection:
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    words = [json.loads(line)["text"] for line in (folder / "queries.jsonl").open()]
    vectors, asked = (
        np.load(folder / f"{side}_emb.npy").astype(np.float32) for side in ("doc", "query")
    )
    queries = {"text": words, "vector": [_vector(each) for each in asked]}
    fields: list[Sequence[object]] = [
        (n, f"{row.get('title', '')} {row['text']}".strip(), _vector(vector))
        for n, (row, vector) in enumerate(zip(rows, vectors, strict=True))
    ]
    name = f'"{folder.name}"'
    connection.execute(
        f"CREATE TABLE {name} (id int PRIMARY KEY, body text,"
        f" embedding vector({vectors.shape[1]}), tokens halfvec(128)[])".encode()
    )
    columns = "id, body, embedding"
    if (folder / "doc_tokens.npy").exists():
        columns += ", tokens"
        own = tokens_of.tokens(folder, "doc")
        fields = [(*row, to_text(each)) for row, each in zip(fields, own, strict=True)]
        queries["tokens"] = [to_text(each) for each in tokens_of.tokens(folder, "query")]
    with connection.cursor().copy(f"COPY {name} ({columns}) FROM STDIN".encode()) as copy:
        for row in fields:
            copy.write_row(row)
    for call in ("add_bm25(%s, 'body')", "backfill(%s)", "analyze_bm25(%s)"):
        connection.execute(f"CALL sqlvec.{call}".encode(), [name])
    connection.execute(f"VACUUM ANALYZE {name}".encode())
    return Collection(folder.name, queries, tokens_of.judgements(folder))


def _vector(values: NDArray[Any]) -> str:
    return "[" + ",".join(f"{value:.8g}" for value in values.astype(np.float32)) + "]"


COMPARED = 400
"""Vectors that the leg of a search for 10 rows compares: the default of signs."""

LEGS = {
    "text, k = 100": "bm25_search(NULL::doc, 'body', %(text)s, k => 100)",
    "text, k = 10": "bm25_search(NULL::doc, 'body', %(text)s)",
    "vector, k = 100": "vector_search(NULL::doc, 'embedding', %(vector)s::vector, k => 100,"
    f" candidates => {COMPARED})",
    "vector, k = 10": "vector_search(NULL::doc, 'embedding', %(vector)s::vector)",
    "vector, k = 100, 4,000 compared": "vector_search(NULL::doc, 'embedding', %(vector)s::vector,"
    " k => 100)",
}
KEYS = {
    "text": """
        SELECT key FROM sqlvec.bm25_search_keys(NULL::doc, 'body', %(text)s, NULL::int, k => 100)
    """,
    "vector": f"""
        SELECT key FROM sqlvec.vector_search_keys(
            NULL::doc, 'embedding', %(vector)s::vector, NULL::int, k => 100,
            candidates => {COMPARED})
    """,
}
HYBRID = """
    SELECT (hit).id, (hit).body FROM sqlvec.hybrid_search(
        NULL::doc, %(text)s, %(vector)s::vector, candidates => 100, fusion => '{fusion}')
"""


def _latency(database: Database, options: argparse.Namespace) -> dict[str, Any]:
    connection = database.connect()
    corpus = documents.Corpus()
    vectors = data.clustered(options.rows, 384, options.timed)
    _create(connection, corpus, vectors, options.rows)
    parameters = [
        {"text": " ".join(words), "vector": _vector(vector)}
        for words, vector in zip(corpus.queries(options.timed), vectors.queries, strict=True)
    ]

    def side(statement: str) -> Callable[[int], list[Any]]:
        session = database.connect()

        def search(query: int) -> list[Any]:
            return session.execute(statement.encode(), parameters[query], binary=True).fetchall()

        return search

    sides: dict[str, Callable[[int], object]] = {
        fusion: side(HYBRID.format(fusion=fusion)) for fusion in ("rrf", "convex")
    }
    for name, call in LEGS.items():
        sides[name] = side(f"SELECT (hit).id FROM sqlvec.{call}")
    lists = {leg: side(statement) for leg, statement in KEYS.items()}
    session = database.connect()

    def in_python(query: int) -> list[Any]:
        """Fuse two lists by reciprocal ranks and fetch the rows."""
        scores: dict[int, float] = {}
        for search in lists.values():
            for rank, (key,) in enumerate(search(query), 1):
                scores[key] = scores.get(key, 0.0) + 1 / (60 + rank)
        best = sorted(scores, key=lambda key: (-scores[key], key))[:K]
        rows = session.execute("SELECT id, body FROM doc WHERE id = ANY (%s)", (best,)).fetchall()
        return sorted(rows, key=lambda row: best.index(cast(int, row[0])))

    sides["two queries fused in Python"] = in_python
    same = [
        [row[0] for row in cast("list[Any]", sides["rrf"](query))]
        == [row[0] for row in in_python(query)]
        for query in range(options.timed)
    ]
    times = interleaved(sides, options.timed, options.rounds)
    legs = {k: times[f"text, k = {k}"] + times[f"vector, k = {k}"] for k in (CANDIDATES, K)}
    default = times["text, k = 100"] + times["vector, k = 100, 4,000 compared"]
    python = times["two queries fused in Python"]
    return {
        "rows": options.rows,
        "latency_ratio_vs_sum_of_legs": ratio(times["rrf"], legs[CANDIDATES]),
        "latency_ratio_vs_sum_of_legs_k10": ratio(times["rrf"], legs[K]),
        "latency_ratio_vs_sum_of_legs_default": ratio(times["rrf"], default),
        "latency_ratio_vs_two_queries_fused_in_python": ratio(times["rrf"], python),
        "latency_ratio_convex_vs_sum_of_legs": ratio(times["convex"], legs[CANDIDATES]),
        "same_lists_as_in_python": float(np.mean(same)),
        "median_ms": {name: median(each) for name, each in times.items()},
    }


def _create(
    connection: Connection, corpus: documents.Corpus, vectors: data.VectorSet, rows: int
) -> None:
    """Create a table with texts and vectors, a GIN index and HNSW on signs."""
    documents.create_table(connection, "worded", corpus, rows)
    data.create_table(connection, "embedded", vectors.documents)
    connection.execute(
        "CREATE TABLE doc AS SELECT w.id, w.tenant_id, w.body, e.embedding"
        " FROM worded AS w JOIN embedded AS e ON e.id = w.id - 1 ORDER BY w.id"
    )
    for statement in (
        "DROP TABLE worded, embedded",
        "ALTER TABLE doc ADD PRIMARY KEY (id)",
        "CALL sqlvec.add_bm25('doc', 'body')",
        "CALL sqlvec.add_quantized('doc', 'embedding', 'binary')",
        "CALL sqlvec.backfill('doc')",
        "CALL sqlvec.analyze_bm25('doc', drift => 0.05)",
        "CREATE INDEX ON doc USING gin (body_bm25_tsv)",
        "CREATE INDEX ON doc USING hnsw (embedding_binary bit_hamming_ops)",
        "VACUUM ANALYZE doc",
    ):
        connection.execute(statement.encode())
    for column in ("body_bm25", "embedding"):
        planned = connection.execute(
            "SELECT statement FROM sqlvec.plan_index('doc', %s) WHERE name = 'unfinished'",
            (column,),
        ).fetchall()
        for row in planned:
            if row[0] is not None:
                connection.execute(str(row[0]).replace("CONCURRENTLY ", "").encode())


def _means(cases: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        name: float(np.mean([case["ndcg"][name] for case in cases])) for name in cases[0]["ndcg"]
    }


def _gain(cases: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return what relevance gains against convex, the mean of all queries, and its error."""
    if not cases:
        return float("nan"), float("nan")
    counts, gains, errors = np.array(
        [(c["queries"], c["relevance_against_convex"], c["standard_error"]) for c in cases]
    ).T
    total = counts.sum()
    return float(counts @ gains / total), float(np.sqrt(((counts * errors) ** 2).sum()) / total)


def _by_legs(cases: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for case in cases:
        found.setdefault(case["legs"], []).append(case)
    return found


def _quality_claims(cases: Sequence[dict[str, Any]]) -> list[Claim]:
    claims = []
    for legs, own in _by_legs(cases).items():
        mean = _means(own)
        name = ", ".join(legs)
        best = max(mean[leg] for leg in legs)
        claims.append(Claim(f"{name}: convex against the best leg", mean["convex"] / best, 1))
        for case in own:
            if case["collection"] == LIMIT:
                claims.append(Claim(f"{name}: relevance on LIMIT", case["ndcg"]["relevance"], 0.9))
        others = [case for case in own if case["collection"] != LIMIT]
        if others:
            mean = _means(others)
            claims.append(
                Claim(
                    f"{name}: relevance against convex, others",
                    mean["relevance"] / mean["convex"],
                    1,
                )
            )
    return claims


def _quality_tables(cases: Sequence[dict[str, Any]]) -> list[Any]:
    tables = []
    for legs, own in _by_legs(cases).items():
        names = [*legs, *FUSIONS]
        rows = [
            (
                f"{case['collection']}, {case['queries']}",
                *(case["ndcg"][name] for name in names),
                f"{case['relevance_against_convex']:+.3f} ± {case['standard_error']:.3f}",
            )
            for case in own
        ]
        mean = _means(own)
        gain, error = _gain([case for case in own if case["collection"] != LIMIT])
        rows.append(
            (
                "mean; queries but those of LIMIT",
                *(mean[name] for name in names),
                f"{gain:+.3f} ± {error:.3f}",
            )
        )
        title = "nDCG@10 of " + ", ".join(legs)
        columns = ("collection, queries", *names, "relevance − convex")
        tables.append(table(title, columns, rows))
    return tables


def draw(report: Report, path: Path) -> None:
    """Draw nDCG@10 of every leg and fusion by collection."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    grouped = _by_legs(report.figures.get("ndcg", []))
    figure, axes = plt.subplots(
        max(len(grouped), 1), squeeze=False, figsize=(10, 4 * len(grouped) or 4)
    )
    for axis, (legs, cases) in zip(axes[:, 0], grouped.items(), strict=False):
        names = [*legs, *FUSIONS]
        for number, name in enumerate(names):
            at = np.arange(len(cases)) + (number - len(names) / 2) * 0.8 / len(names)
            axis.bar(at, [c["ndcg"][name] for c in cases], width=0.8 / len(names), label=name)
        axis.set_xticks(range(len(cases)), [case["collection"] for case in cases])
        axis.set_ylabel("nDCG@10")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
