"""sqlvec.bm25_search against GIN with ts_rank_cd, top 10.

Both sides ask for documents with any of the words. ts_rank_cd has a table of its own with a
generated tsvector column, as without sqlvec: the one that sqlvec keeps holds more. Beside them:
exact BM25 without pruning, which scores every document that matches, and pg_textsearch where the
server has it. Every answer of bm25_search is compared with brute force in numpy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from numpy.typing import NDArray

from benchmarks.documents import Corpus, create_table
from benchmarks.measure import Times, interleaved, median, ratio, seconds
from benchmarks.report import Claim, Report, table
from benchmarks.server import Connection, Database

K = 10
K1, B = 1.2, 0.75
TOLERANCE = 1e-4

Hits = list[tuple[int, float]]
Search = Callable[[int], Hits]

SEARCH = """
    SELECT (hit).id, score
    FROM sqlvec.bm25_search(NULL::doc, 'body', %(words)s, backend => 'sqlvec')
"""
KEYS = """
    SELECT key, score
    FROM sqlvec.bm25_search_keys(
        NULL::doc, 'body', %(words)s, key => NULL::int, backend => 'sqlvec'
    )
"""
UNPRUNED = """
    SELECT id, -(body_bm25 <#> %(weights)s) AS score
    FROM doc WHERE body_bm25_tsv @@ %(alternatives)s::tsquery
    ORDER BY body_bm25 <#> %(weights)s LIMIT 10
"""
RANK_CD = """
    SELECT id, ts_rank_cd(lexemes, %(alternatives)s::tsquery) AS score
    FROM tsvector WHERE lexemes @@ %(alternatives)s::tsquery
    ORDER BY score DESC LIMIT 10
"""
TEXTSEARCH = """
    SELECT id, -(body <@> %(words)s) AS score FROM doc ORDER BY body <@> %(words)s LIMIT 10
"""


def sizes(text: str) -> list[int]:
    """Read numbers of rows separated by commas."""
    return [int(part) for part in text.split(",")]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of the tables, the words' distribution and the number of repetitions."""
    parser.add_argument(
        "--rows", type=sizes, default=[100_000, 300_000], help="documents (100000,300000)"
    )
    parser.add_argument("--queries", type=int, default=80, help="how many (80)")
    parser.add_argument("--rounds", type=int, default=3, help="times all queries are run (3)")
    parser.add_argument(
        "--offset", type=float, default=0.0, help="of the word ranks: 0 Zipf (0), 30 as in English"
    )


def run(database: Database, options: argparse.Namespace) -> Report:
    """Measure every size in turn."""
    corpus = Corpus(offset=options.offset)
    queries = corpus.queries(options.queries)
    found = [_measure(database, corpus, rows, queries, options.rounds) for rows in options.rows]
    claims: list[Claim] = []
    for each in found:
        name = f"{each['rows']:,} documents"
        claims.append(Claim(f"{name}: share of answers that are exact", each["exact"], 1.0))
        if each["rows"] >= 300_000:
            speedups = [each[f"speedup_vs_ts_rank_cd_{part}"] for part in ("median", "p95")]
            claims.append(Claim(f"{name}: speed against ts_rank_cd, median", speedups[0], 60))
            claims.append(Claim(f"{name}: speed against ts_rank_cd, p95", speedups[1], 30))
        if each["ratio_vs_pg_textsearch"] is not None:
            for part, limit in (("median", 3.5), ("p95", 10.0)):
                value = each["ratio_vs_pg_textsearch"][part]
                text = f"{name}: time against pg_textsearch, {part}"
                claims.append(Claim(text, value, limit, at_most=True))
    figures = {
        "benchmark": "bm25",
        "k": K,
        "words": corpus.words,
        "offset": corpus.offset,
        "queries": len(queries),
        "sizes": found,
    }
    return Report(figures, claims, _tables(found))


class Truth:
    """BM25 of all documents by brute force, from tsvectors that sqlvec had no part in.

    :param queries: words of every query.
    """

    def __init__(self, connection: Connection, queries: Sequence[Sequence[str]]) -> None:
        self._queries: list[dict[str, int]] = []
        for words in queries:
            rows = connection.execute(
                "SELECT lexeme, cardinality(positions) FROM unnest(to_tsvector('english', %s))",
                [" ".join(words)],
            ).fetchall()
            self._queries.append({str(lexeme): cast(int, count) for lexeme, count in rows})
        lengths = _copy_integers(
            connection,
            "SELECT id, (SELECT coalesce(sum(cardinality(positions)), 0)::int"
            " FROM unnest(lexemes)) FROM tsvector",
        )
        size = int(lengths[:, 0].max()) + 1
        mean = lengths[:, 1].mean()
        normal = np.zeros(size)
        normal[lengths[:, 0]] = K1 * (1 - B + B * lengths[:, 1] / mean)
        terms = sorted({lexeme for query in self._queries for lexeme in query})
        literal = ", ".join(f"('{lexeme}', {number})" for number, lexeme in enumerate(terms))
        postings = _copy_integers(
            connection,
            "SELECT id, term.number, cardinality(entry.positions)"
            " FROM tsvector, unnest(lexemes) AS entry"
            f" JOIN (VALUES {literal}) AS term (lexeme, number) USING (lexeme)",
        )
        self._impacts: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for number, lexeme in enumerate(terms):
            mine = postings[postings[:, 1] == number]
            ids, counts = mine[:, 0], mine[:, 2]
            idf = np.log1p((len(lengths) - len(ids) + 0.5) / (len(ids) + 0.5))
            weights = (counts * (K1 + 1) / (counts + normal[ids])).astype(np.float32)
            self._impacts[lexeme] = ids, idf * weights
        self._size = size

    def is_exact(self, query: int, found: Hits) -> bool:
        """Tell whether ids and scores are those of the best documents; ties may fall either way."""
        scores = np.zeros(self._size)
        for lexeme, times in self._queries[query].items():
            ids, impacts = self._impacts[lexeme]
            scores[ids] += times * impacts
        best = np.sort(scores[scores > 0])[::-1][:K]
        if len(found) != len(best) or len({number for number, _ in found}) != len(best):
            return False
        given = np.array([score for _, score in found])
        own = scores[[number for number, _ in found]]
        return bool(
            np.all(abs(given - best) <= TOLERANCE) and np.all(abs(given - own) <= TOLERANCE)
        )


def _copy_integers(connection: Connection, query: str) -> NDArray[np.int64]:
    """Return the rows of a query of int columns; millions of them would take long one by one."""
    with connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT binary)") as copy:
        data = b"".join(copy)
    columns = int.from_bytes(data[19:21])
    row = np.dtype([("fields", ">i2"), ("columns", [("length", ">i4"), ("value", ">i4")], columns)])
    rows = np.frombuffer(data[19:-2], dtype=row)
    return np.asarray(rows["columns"]["value"], dtype=np.int64)


def _measure(
    database: Database, corpus: Corpus, rows: int, queries: Sequence[Sequence[str]], rounds: int
) -> dict[str, Any]:
    connection = database.connect()
    create_table(connection, "doc", corpus, rows)
    _create_others(connection)
    found: dict[str, Any] = {"rows": rows, "seconds": build(connection, "doc")}
    truth = Truth(connection, queries)
    sides = _sides(database, connection, queries)
    answers = [sides["bm25"](query) for query in range(len(queries))]
    exact = [truth.is_exact(query, answer) for query, answer in enumerate(answers)]
    exact += [truth.is_exact(query, sides["keys"](query)) for query in range(len(queries))]
    found["exact"] = float(np.mean(exact))
    times = interleaved(sides, len(queries), rounds)
    ours = times["bm25"]
    found["median_ms"] = median(ours)
    found["p95_ms"] = _p95(ours)
    found["speedup_vs_ts_rank_cd_median"] = ratio(times["ts_rank_cd"], ours)
    found["speedup_vs_ts_rank_cd_p95"] = _p95_ratio(times["ts_rank_cd"], ours)
    found["ratio_vs_pg_textsearch"] = (
        {
            "median": ratio(ours, times["pg_textsearch"]),
            "p95": _p95_ratio(ours, times["pg_textsearch"]),
        }
        if "pg_textsearch" in times
        else None
    )
    found["sides"] = {
        name: {
            "median_ms": median(each),
            "mean_ms": float(each.mean()),
            "p95_ms": _p95(each),
            "per_query_ms": np.median(each, axis=0).round(3).tolist(),
        }
        for name, each in times.items()
    }
    found["query_words"] = [len(words) for words in queries]
    found["bytes_per_doc"] = _bytes(connection, rows)
    found["index_bytes_per_doc"] = sum(found["bytes_per_doc"].values())
    found["insert_us_per_doc"] = _insert(connection, corpus, rows)
    database.close()
    database.connect().execute("DROP TABLE doc, plain, tsvector")
    return found


def _create_others(connection: Connection) -> None:
    """Copy doc into table plain, without any index on words, and table tsvector, with GIN."""
    connection.execute("CREATE TABLE plain AS SELECT id, tenant_id, body FROM doc")
    connection.execute("CREATE TABLE tsvector (LIKE plain)")
    connection.execute(
        "ALTER TABLE tsvector"
        " ADD lexemes tsvector GENERATED ALWAYS AS (to_tsvector('english', body)) STORED"
    )
    connection.execute("INSERT INTO tsvector SELECT * FROM plain")
    connection.execute("CREATE INDEX ON tsvector USING gin (lexemes)")
    for name in ("plain", "tsvector"):
        connection.execute(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
        connection.execute(f"VACUUM ANALYZE {name}")


def build(
    connection: Connection, name: str, options: str = "", drift: float = 0.0
) -> dict[str, float]:
    """Declare BM25 of ``body``, fill, count and index it; return how many seconds each step took.

    :param options: further arguments of sqlvec.add_bm25.
    :param drift: weights are first made for the mean length of a sample; 0 makes them again for the
        true one, more leaves them within that fraction.
    """
    taken = {}
    for step, statement in (
        ("add", f"CALL sqlvec.add_bm25('{name}', 'body'{options})"),
        ("backfill", f"CALL sqlvec.backfill('{name}')"),
        ("analyze", f"CALL sqlvec.analyze_bm25('{name}', drift => {drift})"),
    ):
        taken[step] = seconds(partial(connection.execute, statement.encode()))
    rows = connection.execute(
        "SELECT replace(statement, 'CONCURRENTLY ', '')"
        f" FROM sqlvec.plan_index('{name}', 'body_bm25')"
        " WHERE note IS DISTINCT FROM 'is there already'".encode()
    ).fetchall()
    statements = [cast(str, row[0]).encode() for row in rows]

    def index() -> None:
        for statement in statements:
            connection.execute(statement)

    taken["index"] = seconds(index)
    connection.execute(f"VACUUM ANALYZE {name}")
    return taken


def _sides(
    database: Database, connection: Connection, queries: Sequence[Sequence[str]]
) -> dict[str, Search]:
    parameters = []
    for words in queries:
        text = " ".join(words)
        row = connection.execute(
            "SELECT replace(plainto_tsquery('english', %(text)s)::text, '&', '|'),"
            " sqlvec.bm25_query(NULL::doc, 'body', %(text)s)",
            {"text": text},
        ).fetchone()
        assert row is not None
        parameters.append({"words": text, "alternatives": row[0], "weights": row[1]})

    statements = {"bm25": SEARCH, "keys": KEYS, "unpruned": UNPRUNED, "ts_rank_cd": RANK_CD}
    available = connection.execute(
        "SELECT FROM pg_available_extensions WHERE name = 'pg_textsearch'"
    ).fetchone()
    if available is not None:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_textsearch")
        connection.execute("CREATE INDEX ON doc USING bm25 (body) WITH (text_config = 'english')")
        statements["pg_textsearch"] = TEXTSEARCH

    def side(statement: str) -> Search:
        session = database.connect()
        text = statement.encode()

        def search(query: int) -> Hits:
            rows = session.execute(text, parameters[query], binary=True).fetchall()
            return cast(Hits, rows)

        return search

    return {name: side(statement) for name, statement in statements.items()}


def _p95(times: Times) -> float:
    return float(np.percentile(times, 95))


def _p95_ratio(times: Times, base: Times) -> float:
    """Return how many times longer one side's p95 is: per round, then the median of rounds."""
    over, under = (np.percentile(each, 95, axis=1) for each in (times, base))
    return float(np.median(over / under))


def _bytes(connection: Connection, rows: int) -> dict[str, float]:
    row = connection.execute("""
        SELECT (SELECT sum(pg_relation_size(i.indexrelid)) FROM pg_index AS i
                JOIN pg_class AS c ON c.oid = i.indexrelid
                JOIN pg_am AS a ON a.oid = c.relam AND a.amname = 'gin'
                WHERE i.indrelid = 'doc'::regclass)::bigint,
               sum(pg_column_size(body_bm25)), sum(pg_column_size(body_bm25_tsv)) FROM doc
    """).fetchone()
    assert row is not None
    names = ("gin", "sparsevec", "tsvector")
    return {name: cast(int, size) / rows for name, size in zip(names, row, strict=True)}


def _insert(connection: Connection, corpus: Corpus, rows: int) -> dict[str, float]:
    """Insert a hundred rows at a time into tables of this size, indexed in three ways."""
    batches, batch = 50, 100
    connection.execute("CHECKPOINT")
    # Texts of their own, with the frequencies of the others.
    texts = [text for _, text in corpus.documents(batches * batch)]
    np.random.default_rng(0).shuffle(texts)
    tables = {"plain": "plain", "tsvector": "tsvector", "bm25": "doc"}
    taken: dict[str, list[float]] = {side: [] for side in tables}
    for number in range(batches):
        ids = [rows + 1 + number * batch + i for i in range(batch)]
        some = texts[number * batch : (number + 1) * batch]
        for side in list(tables) if number % 2 == 0 else list(reversed(tables)):
            statement = (
                f"INSERT INTO {tables[side]} (id, tenant_id, body)"
                " SELECT id, id %% 100, body FROM unnest(%s::int[], %s::text[]) AS t (id, body)"
            )
            insert = partial(connection.execute, statement.encode(), (ids, some))
            taken[side].append(seconds(insert))
    # Sums, not medians: now and then an insert pays for the entries that GIN had put off.
    return {side: sum(each) / (batches * batch) * 1e6 for side, each in taken.items()}


def _tables(found: Sequence[dict[str, Any]]) -> list[Any]:
    labels = {
        "bm25": "bm25_search",
        "keys": "bm25_search_keys",
        "unpruned": "every match scored",
        "ts_rank_cd": "ts_rank_cd",
        "pg_textsearch": "pg_textsearch",
    }
    latencies = [
        (
            f"{each['rows']:,}, {labels[name]}",
            *(side[figure] for figure in ("median_ms", "mean_ms", "p95_ms")),
            side["median_ms"] / each["median_ms"],
            side["p95_ms"] / each["p95_ms"],
        )
        for each in found
        for name, side in each["sides"].items()
    ]
    costs = [
        (
            f"{each['rows']:,}",
            each["index_bytes_per_doc"],
            *(each["bytes_per_doc"][part] for part in ("gin", "sparsevec", "tsvector")),
            *(each["insert_us_per_doc"][part] for part in ("plain", "tsvector", "bm25")),
            *(each["seconds"][step] for step in ("backfill", "analyze", "index")),
        )
        for each in found
    ]
    return [
        table(
            "Top 10, 1 to 8 words",
            ("documents, side", "median ms", "mean ms", "p95 ms", "÷ bm25 median", "÷ bm25 p95"),
            latencies,
        ),
        table(
            "Costs: bytes per document; INSERT in µs per document; seconds to build",
            (
                "documents",
                "bytes",
                "GIN",
                "sparsevec",
                "tsvector",
                "INSERT plain",
                "tsvector + GIN",
                "BM25",
                "backfill s",
                "analyze s",
                "index s",
            ),
            costs,
        ),
    ]


def draw(report: Report, path: Path) -> None:
    """Draw for every side which share of the queries is answered in which time."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = report.figures["sizes"]
    figure, axes = plt.subplots(
        1, len(found), figsize=(5 * len(found), 4), squeeze=False, layout="constrained"
    )
    for each, axis in zip(found, axes[0], strict=True):
        for name, side in each["sides"].items():
            if name != "keys":
                taken = np.sort(side["per_query_ms"])
                axis.step(taken, np.arange(1, len(taken) + 1) / len(taken), label=name)
        axis.set(
            xscale="log",
            xlabel="ms",
            ylabel="share of the queries",
            title=f"{each['rows']:,} documents",
        )
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
