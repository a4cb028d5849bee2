"""MaxSim search against brute force in numpy."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql
from psycopg.errors import (
    DataException,
    DatatypeMismatch,
    InsufficientPrivilege,
    InvalidParameterValue,
    NullValueNotAllowed,
    UndefinedColumn,
    WrongObjectType,
)

from sqlvec.encoders import maxsim
from sqlvec.types.multivector import to_text

D = 16
ROWS = 1500

Tokens = NDArray[np.float32]


def clustered(random: np.random.Generator, count: int, at_most: int) -> list[Tokens]:
    """Multi-vectors whose tokens are words of a small vocabulary, each with some noise."""
    words = np.random.default_rng(1).standard_normal((60, D))
    documents = []
    for _ in range(count):
        tokens = words[random.integers(0, len(words), random.integers(1, at_most + 1))]
        tokens = tokens + 0.3 * random.standard_normal(tokens.shape)
        tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
        documents.append(tokens.astype(np.float16).astype(np.float32))
    return documents


DOCUMENTS = clustered(np.random.default_rng(2), ROWS, 20)
QUERIES = clustered(np.random.default_rng(3), 25, 8)


def expected(query: Tokens, k: int = 10, allowed: Any = lambda n: True) -> list[tuple[int, float]]:
    scores = [(n, maxsim(tokens, query)) for n, tokens in enumerate(DOCUMENTS) if allowed(n)]
    return sorted(scores, key=lambda row: (-row[1], row[0]))[:k]


def assert_same(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> None:
    assert [row[0] for row in found] == [row[0] for row in wanted]
    np.testing.assert_allclose([row[1] for row in found], [row[1] for row in wanted], rtol=1e-5)


def recall(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> float:
    return len({row[0] for row in found} & {row[0] for row in wanted}) / len(wanted)


def search(
    db: psycopg.Connection[Any],
    query: Any,
    table: str = "page",
    columns: str = "(hit).id, score",
    **options: Any,
) -> list[Any]:
    """Call ``sqlvec.maxsim_search`` on column tokens."""
    arguments = {
        name: sql.SQL("{} => {}").format(sql.SQL(name), value) for name, value in options.items()
    }
    call = sql.SQL(
        "SELECT {} FROM sqlvec.maxsim_search(NULL::{}, 'tokens', {}::halfvec[]{})"
    ).format(
        sql.SQL(columns),
        sql.SQL(table),
        query if query is None or isinstance(query, str) else to_text(query),
        sql.SQL("").join(sql.SQL(", ") + argument for argument in arguments.values()),
    )
    return db.execute(call).fetchall()


def load(db: psycopg.Connection[Any], table: str, documents: list[Tokens]) -> None:
    with db.cursor().copy(f"COPY {table} (id, tenant, tokens) FROM STDIN") as copy:
        for n, tokens in enumerate(documents):
            copy.write_row((n, n % 30, to_text(tokens)))


@pytest.fixture(scope="module")
def _encoded(dsn: str) -> None:
    """Make table encoded: the documents and their codes, for tables with the same encoder."""
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(f"CREATE TABLE encoded (id int, tenant int, tokens halfvec({D})[])")
        db.execute("CALL sqlvec.add_fde('encoded', 'tokens', projection => 4)")
        load(db, "encoded", DOCUMENTS)


def load_encoded(db: psycopg.Connection[Any], table: str, rows: int) -> None:
    with db.transaction():
        db.execute("SET LOCAL sqlvec.maintain = off")
        db.execute(
            f"INSERT INTO {table} (id, tenant, tokens, tokens_fde)"
            f" SELECT id, tenant, tokens, tokens_fde FROM encoded WHERE id < {rows}"
        )
        db.execute("SET LOCAL sqlvec.maintain = on")


@pytest.fixture(scope="module", params=["halfvec", "bit"])
def _pages(request: pytest.FixtureRequest, dsn: str, _encoded: None) -> None:
    """Make table page, with codes of either type."""
    bits = request.param == "bit"
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("DROP TABLE IF EXISTS page")
        db.execute(f"CREATE TABLE page (id int PRIMARY KEY, tenant int, tokens halfvec({D})[])")
        db.execute("CALL sqlvec.add_fde('page', 'tokens', projection => 4, bits => %s)", (bits,))
        if bits:
            load(db, "page", DOCUMENTS)
        else:
            load_encoded(db, "page", ROWS)
        opclass = "bit_hamming_ops" if bits else "halfvec_ip_ops"
        db.execute(f"CREATE INDEX page_codes ON page USING hnsw (tokens_fde {opclass})")
        db.execute("ANALYZE page")


@pytest.fixture
def pages(_pages: None, db: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    return db


@pytest.mark.parametrize("workers", [0, 2])
def test_exact_is_brute_force(pages, workers):
    pages.execute(f"SET LOCAL max_parallel_workers_per_gather = {workers}")
    for query in QUERIES:
        assert_same(search(pages, query, mode="exact"), expected(query))
        assert_same(search(pages, query, recall=1.0, k=3), expected(query, 3))


def test_candidates_of_an_index_rescored(pages):
    for query in QUERIES[:5]:
        assert_same(search(pages, query, mode="tokens_fde", candidates=ROWS), expected(query))


@pytest.mark.parametrize("wanted", [0.8, 0.95])
def test_the_number_of_candidates_grows_until_the_recall_is_expected(pages, wanted):
    found = [search(pages, query, mode="tokens_fde", recall=wanted) for query in QUERIES]
    few = [search(pages, query, mode="tokens_fde", candidates=50) for query in QUERIES]
    truth = [expected(query) for query in QUERIES]
    assert np.mean([recall(*each) for each in zip(found, truth, strict=True)]) >= wanted
    assert np.mean([recall(*each) for each in zip(few, truth, strict=True)]) < 0.8
    for rows, right in zip(found, truth, strict=True):
        scores = dict(expected(QUERIES[truth.index(right)], ROWS))
        np.testing.assert_allclose(
            [row[1] for row in rows], [scores[row[0]] for row in rows], rtol=1e-5
        )


def test_an_encoding_serves_without_an_index(pages):
    before = [search(pages, query) for query in QUERIES[:10]]
    pages.execute("DROP INDEX page_codes")
    assert [search(pages, query) for query in QUERIES[:10]] == before
    truth = [expected(query) for query in QUERIES[:10]]
    assert np.mean([recall(*each) for each in zip(before, truth, strict=True)]) >= 0.9
    with pytest.raises(InvalidParameterValue, match="neither auto"):
        search(pages, QUERIES[0], mode="page_codes")


def test_filters_apply_inside(pages):
    for query in QUERIES[:8]:
        wanted = expected(query, 10, lambda n: n % 30 in (3, 4))
        inside = {"filter": json.dumps({"tenant": {"$in": [3, 4]}})}
        assert_same(search(pages, query, **inside), wanted)
        assert_same(search(pages, query, where_sql="page.tenant IN (3, 4)"), wanted)
        bound: dict[str, Any] = {"where_sql": "tenant = ANY (($1)[1]::int[])", "params": ["{3,4}"]}
        assert_same(search(pages, query, **bound), wanted)
        few = expected(query, 10, lambda n: n in (7, 8))
        assert_same(search(pages, query, where_sql="id IN (7, 8)"), few)
        assert search(pages, query, where_sql="false") == []
    half = search(pages, QUERIES[0], columns="complete", where_sql="tenant < 15", mode="tokens_fde")
    assert len(half) == 10


def test_keys_are_those_of_the_rows(pages):
    for query in QUERIES[:5]:
        rows = search(pages, query, candidates=300, columns="(hit).id, score, complete")
        keys = pages.execute(
            "SELECT key, score, complete FROM sqlvec.maxsim_search_keys("
            "NULL::page, 'tokens', %s::halfvec[], key => NULL::bigint, candidates => 300)",
            (to_text(query),),
        ).fetchall()
        assert keys == rows


def test_equal_scores_by_key(db):
    db.execute("CREATE TABLE same (id int PRIMARY KEY, tenant int, tokens halfvec(2)[])")
    db.execute("INSERT INTO same SELECT n, 0, '{\"[1,0]\"}' FROM generate_series(20, 1, -1) AS n")
    assert [row[0] for row in search(db, [[1, 0]], "same", k=5)] == [1, 2, 3, 4, 5]


def test_carved_queries_answer_exact_scores(pages):
    for query in QUERIES[:8]:
        doubled = np.concatenate([query, query])
        found = search(pages, doubled, candidates=ROWS, mode="tokens_fde", carve=0.999)
        assert_same(found, expected(doubled))
        rows = search(pages, query, candidates=400, mode="tokens_fde", carve=0.7)
        scores = dict(expected(query, ROWS))
        np.testing.assert_allclose(
            [row[1] for row in rows], [scores[row[0]] for row in rows], rtol=1e-5
        )


def test_candidates_without_scores(pages):
    rows = search(pages, QUERIES[0], rescore=False, candidates=250)
    assert len(rows) == 250
    assert recall(rows, expected(QUERIES[0])) >= 0.6
    estimates = [row[1] for row in rows]
    assert estimates == sorted(estimates, reverse=True)
    assert len(search(pages, QUERIES[0], rescore=False, mode="exact")) == ROWS


def test_rows_that_wait_for_their_code_are_found(pages):
    pages.execute("SET LOCAL sqlvec.maintain = off")
    best = expected(QUERIES[1], 3)
    pages.execute("UPDATE page SET tokens = NULL WHERE id = %s", (best[0][0],))
    pages.execute("INSERT INTO page VALUES (9001, 1, %s)", (to_text(QUERIES[1]),))
    assert pages.execute("SELECT tokens_fde IS NULL FROM page WHERE id = 9001").fetchone() == (
        True,
    )
    found = search(pages, QUERIES[1], k=3)
    assert [row[0] for row in found] == [9001, best[1][0], best[2][0]]
    listed = search(pages, QUERIES[1], rescore=False, candidates=200)
    assert (9001, None) in listed
    explained = dict(
        pages.execute(
            "SELECT * FROM sqlvec.explain_maxsim_search(NULL::page, 'tokens', %s::halfvec[])",
            (to_text(QUERIES[1]),),
        ).fetchall()
    )
    assert "sqlvec.backfill" in explained["unfinished"]


def test_a_named_index_that_ends_early_says_so(pages):
    pages.execute("SET LOCAL hnsw.max_scan_tuples = 100")
    pages.execute("SET LOCAL hnsw.iterative_scan = strict_order")
    rows = search(
        pages, QUERIES[0], columns="complete", mode="page_codes", where_sql="id % 149 = 7"
    )
    wanted = [n for n in range(ROWS) if n % 149 == 7]
    assert len(wanted) > 10
    assert len(rows) == 10 or {row[0] for row in rows} <= {False}
    whole = search(pages, QUERIES[0], columns="complete", where_sql="id % 149 = 7")
    assert whole == [(True,)] * 10


def test_the_budget_says_so(db):
    db.execute("CREATE TABLE noise (id int PRIMARY KEY, tenant int, tokens halfvec(2)[])")
    db.execute(
        "CALL sqlvec.add_fde('noise', 'tokens', projection => 1, simhash_bits => 0, repetitions => 1)"
    )
    # One sign for all: the encoding says next to nothing.
    db.execute(
        "INSERT INTO noise SELECT n, 0, ARRAY[ARRAY[sin(n), cos(n)]::halfvec] FROM generate_series(1, 6000) AS n"
    )
    db.execute("CREATE INDEX ON noise USING hnsw (tokens_fde halfvec_ip_ops)")
    db.execute("ANALYZE noise")
    rows = search(db, [[1, 1], [-1, 0.5]], "noise", columns="complete")
    assert rows == [(False,)] * 10


def test_settings_are_put_back(pages):
    names = ("hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples", "jit")
    pages.execute("SELECT '[1]'::vector")  # loads pgvector and its settings
    pages.execute("SET LOCAL hnsw.ef_search = 77")
    before = [pages.execute(f"SHOW {name}").fetchone() for name in names]
    search(pages, QUERIES[0])
    search(pages, QUERIES[0], rescore=False)
    assert [pages.execute(f"SHOW {name}").fetchone() for name in names] == before


def test_explains_what_it_does(pages):
    pages.execute("SET LOCAL enable_seqscan = off")
    topics = pages.execute(
        "SELECT * FROM sqlvec.explain_maxsim_search(NULL::page, 'tokens', %s::halfvec[], carve => 0.9, mode => 'page_codes')",
        (to_text(QUERIES[0]),),
    ).fetchall()
    assert {"plan", "why", "statement", "explain", "query", "step 1"} <= {row[0] for row in topics}
    assert "page_codes" in topics[0][1]
    assert any("Index Scan using page_codes" in row[1] for row in topics)
    assert max(len(row[1]) for row in topics) < 2000
    read = pages.execute(
        "SELECT * FROM sqlvec.explain_maxsim_search(NULL::page, 'tokens', %s::halfvec[])",
        (to_text(QUERIES[0]),),
    ).fetchall()
    assert "all codes in tokens_fde" in dict(read)["plan"]
    listed = pages.execute(
        "SELECT * FROM sqlvec.explain_maxsim_search(NULL::page, 'tokens', %s::halfvec[], rescore => false)",
        (to_text(QUERIES[0]),),
    ).fetchall()
    assert "400 candidates from all codes in tokens_fde" in dict(listed)["plan"]
    assert "maxsim" not in dict(listed)["statement"]
    exact = pages.execute(
        "SELECT * FROM sqlvec.explain_maxsim_search(NULL::page, 'tokens', %s::halfvec[], filter => '{\"tenant\": 1}')",
        (to_text(QUERIES[0]),),
    ).fetchall()
    assert "cheaper to read" in dict(exact)["why"]


@pytest.mark.parametrize("count", [1, 128, 129])
def test_queries_of_one_and_of_many_tokens(pages, count):
    query = clustered(np.random.default_rng(4), 1, 1)[0].repeat(count, axis=0)
    query = (query + 0.1 * np.random.default_rng(5).standard_normal(query.shape)).astype(np.float16)
    query = query.astype(np.float32)
    assert_same(search(pages, query, candidates=ROWS, mode="tokens_fde"), expected(query))


def test_documents_of_one_and_of_3000_tokens_and_of_none(db):
    db.execute(f"CREATE TABLE odd (id int PRIMARY KEY, tenant int, tokens halfvec({D})[])")
    db.execute("CALL sqlvec.add_fde('odd', 'tokens', projection => 4)")
    db.execute("CREATE INDEX ON odd USING hnsw (tokens_fde halfvec_ip_ops)")
    query = QUERIES[0]
    assert search(db, query, "odd") == []
    assert search(db, query, "odd", mode="tokens_fde") == []
    random = np.random.default_rng(6)
    long = random.standard_normal((3000, D)).astype(np.float16).astype(np.float32)
    for number, tokens in enumerate([DOCUMENTS[0][:1], long]):
        db.execute("INSERT INTO odd VALUES (%s, 0, %s)", (number, to_text(tokens)))
    db.execute("INSERT INTO odd VALUES (2, 0, NULL), (3, 0, '{}')")
    wanted = [(1, maxsim(long, query)), (0, maxsim(DOCUMENTS[0][:1], query))]
    for mode in ("exact", "auto", "tokens_fde"):
        assert_same(search(db, query, "odd", mode=mode), wanted)


@pytest.mark.parametrize("workers", [0, 2])
def test_vector_columns(db, workers):
    db.execute(f"SET LOCAL max_parallel_workers_per_gather = {workers}")
    db.execute(f"CREATE TABLE wide (id int PRIMARY KEY, tenant int, tokens vector({D})[])")
    db.execute("CALL sqlvec.add_fde('wide', 'tokens', projection => 4)")
    load(db, "wide", DOCUMENTS[:150])
    db.execute("CREATE INDEX ON wide USING hnsw (tokens_fde halfvec_ip_ops)")
    for query in QUERIES[:3]:
        wanted = expected(query, 10, lambda n: n < 150)
        assert_same(search(db, query, "wide", candidates=150, mode="tokens_fde"), wanted)
        assert_same(search(db, query, "wide", mode="exact"), wanted)


def test_partitions_views_and_odd_names(encoded):
    encoded.execute('CREATE SCHEMA "Odd ""schema"')
    table = '"Odd ""schema"."a table; drop"'
    encoded.execute(
        f"CREATE TABLE {table} (id int, tenant int, tokens halfvec({D})[], PRIMARY KEY (id, tenant)) "
        "PARTITION BY LIST (tenant)"
    )
    for tenant in range(30):
        encoded.execute(f'CREATE TABLE "p {tenant}" PARTITION OF {table} FOR VALUES IN ({tenant})')
    encoded.execute("CALL sqlvec.add_fde(%s, 'tokens', projection => 4)", (table,))
    load_encoded(encoded, table, 600)
    encoded.execute(f"CREATE INDEX ON {table} USING hnsw (tokens_fde halfvec_ip_ops)")
    encoded.execute(f"ANALYZE {table}")
    encoded.execute(f"CREATE VIEW pages_view AS SELECT * FROM {table}")
    for query in QUERIES[:3]:
        wanted = expected(query, 10, lambda n: n < 600)
        assert_same(search(encoded, query, table, mode="tokens_fde", candidates=600), wanted)
        assert_same(search(encoded, query, table, mode="exact"), wanted)
        assert_same(search(encoded, query, "pages_view"), wanted)
        one = expected(query, 5, lambda n: n < 600 and n % 30 == 4)
        assert_same(search(encoded, query, '"p 4"', k=5), one)
        keys = encoded.execute(
            "SELECT key, score FROM sqlvec.maxsim_search_keys(NULL::pages_view, 'tokens', "
            "%s::halfvec[], key => NULL::int, key_column => 'id')",
            (to_text(query),),
        ).fetchall()
        assert_same(keys, wanted)
    with pytest.raises(WrongObjectType, match="have no address"):
        search(encoded, QUERIES[0], "pages_view", rescore=False)


def test_row_security_applies_inside(pages):
    pages.execute("CREATE ROLE reader")
    pages.execute("GRANT SELECT ON page TO reader")
    pages.execute("ALTER TABLE page ENABLE ROW LEVEL SECURITY")
    pages.execute("CREATE POLICY twenty ON page USING (tenant < 20)")
    pages.execute("SET LOCAL ROLE reader")
    for query in QUERIES[:3]:
        wanted = expected(query, 10, lambda n: n % 30 < 20)
        assert_same(search(pages, query, candidates=1400, mode="tokens_fde"), wanted)
        assert_same(search(pages, query, mode="exact"), wanted)


def test_keys_need_the_searched_columns_only(pages):
    pages.execute("CREATE ROLE narrow")
    pages.execute("GRANT SELECT (id, tokens) ON page TO narrow")
    pages.execute("SET LOCAL ROLE narrow")
    call = (
        "SELECT key, score FROM sqlvec.maxsim_search_keys("
        "NULL::page, 'tokens', %s::halfvec[], key => NULL::int)"
    )
    # Without the codes all rows are compared.
    assert_same(pages.execute(call, (to_text(QUERIES[0]),)).fetchall(), expected(QUERIES[0]))
    pages.execute("RESET ROLE")
    pages.execute("GRANT SELECT (tokens_fde) ON page TO narrow")
    pages.execute("SET LOCAL ROLE narrow")
    found = pages.execute(
        call.replace("=> NULL::int", "=> NULL::int, candidates => 1500"), (to_text(QUERIES[0]),)
    )
    assert_same(found.fetchall(), expected(QUERIES[0]))
    with pytest.raises(InsufficientPrivilege), pages.transaction():
        search(pages, QUERIES[0])


@pytest.mark.parametrize(
    ("query", "options", "error", "message"),
    [
        (None, {}, NullValueNotAllowed, "the query is NULL"),
        ("{}", {}, InvalidParameterValue, "no vectors"),
        ('{"[1,2]",NULL}', {}, InvalidParameterValue, "NULL among"),
        ('{"[1,2]","[1]"}', {}, DataException, "of 1 and of 2 dimensions"),
        ('{"[1,2]"}', {}, DataException, f'column "tokens" .* of {D} dimensions, the query of 2'),
        (QUERIES[0], {"k": 0}, InvalidParameterValue, "k is a number"),
        (QUERIES[0], {"candidates": 5}, InvalidParameterValue, "candidates is a number"),
        (QUERIES[0], {"recall": 0.0}, InvalidParameterValue, "recall is a number"),
        (QUERIES[0], {"recall": None}, InvalidParameterValue, "recall is a number"),
        (QUERIES[0], {"carve": 1.5}, InvalidParameterValue, "carve is a cosine"),
        (QUERIES[0], {"mode": "no such"}, InvalidParameterValue, "neither auto, exact"),
        (QUERIES[0], {"mode": "x'; DROP TABLE page; --"}, InvalidParameterValue, "neither auto"),
        (QUERIES[0], {"pooled": "tenant"}, InvalidParameterValue, "not a column of pooled tokens"),
        (QUERIES[0], {"pooled": None}, NullValueNotAllowed, "pooled and rescore"),
        (QUERIES[0], {"filter": '{"nope": 1}'}, UndefinedColumn, "nope"),
    ],
)
def test_bad_arguments_are_refused(pages, query, options, error, message):
    with pytest.raises(error, match=message), pages.transaction():
        search(pages, query, **options)


@pytest.mark.parametrize("column", ["tenant", "no such", "tokens_fde"])
def test_columns_that_are_no_multivectors_are_refused(pages, column):
    with pytest.raises((DatatypeMismatch, UndefinedColumn), match=column):
        pages.execute(
            "SELECT * FROM sqlvec.maxsim_search(NULL::page, %s, %s::halfvec[])",
            (column, to_text(QUERIES[0])),
        )


POOLED = 500


def is_pooled(n: int) -> bool:
    return n < POOLED


@pytest.fixture(scope="module")
def _pool(dsn: str) -> None:
    """Make a table with pooled tokens, and an encoding of the tokens."""
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(f"CREATE TABLE pool (id int PRIMARY KEY, tenant int, tokens halfvec({D})[])")
        db.execute("CALL sqlvec.add_pooled('pool', 'tokens', 'sequential')")
        db.execute("CALL sqlvec.add_fde('pool', 'tokens', projection => 4)")
        load(db, "pool", DOCUMENTS[:POOLED])
        db.execute("CREATE INDEX by_tokens ON pool USING hnsw (tokens_fde halfvec_ip_ops)")
        db.execute("ANALYZE pool")


@pytest.fixture
def pooled(_pool: None, db: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    return db


def scored(db: psycopg.Connection[Any], query: Tokens, **options: Any) -> tuple[int, int]:
    """Return how many candidates the last step took, and how many were scored exactly."""
    arguments = "".join(f", {name} => %({name})s" for name in options)
    topics = db.execute(
        "SELECT topic, detail FROM sqlvec.explain_maxsim_search("
        f"NULL::pool, 'tokens', %(query)s::halfvec[]{arguments})",
        {"query": to_text(query)} | options,
    ).fetchall()
    last = [detail for topic, detail in topics if topic.startswith("step")][-1]
    words = last.split()
    return int(words[0]), int(words[2])


def test_pooled_tokens_spare_exact_scores(pooled):
    found, truth, exact, candidates = [], [], 0, 0
    for query in QUERIES:
        found.append(search(pooled, query, "pool", mode="tokens_fde"))
        truth.append(expected(query, 10, is_pooled))
        scores = dict(expected(query, ROWS, is_pooled))
        np.testing.assert_allclose(
            [row[1] for row in found[-1]], [scores[row[0]] for row in found[-1]], rtol=1e-5
        )
        took, compared = scored(pooled, query, mode="tokens_fde")
        candidates, exact = candidates + took, exact + compared
        without = scored(pooled, query, mode="tokens_fde", pooled="none")
        assert without[0] == without[1]
    assert np.mean([recall(*each) for each in zip(found, truth, strict=True)]) >= 0.9
    assert exact < 0.95 * candidates


def test_all_candidates_by_pooled_tokens(pooled):
    for query in QUERIES[:5]:
        options: dict[str, Any] = {
            "mode": "tokens_fde",
            "candidates": POOLED,
            "pooled": "tokens_pool",
        }
        found = search(pooled, query, "pool", **options)
        assert recall(found, expected(query, 10, is_pooled)) >= 0.9
        assert scored(pooled, query, **options)[0] == POOLED


def test_an_encoding_of_pooled_tokens(pooled):
    pooled.execute("DROP INDEX by_tokens")
    pooled.execute("CALL sqlvec.add_fde('pool', 'tokens_pool', projection => 4)")
    pooled.execute("UPDATE pool SET tokens = tokens")
    pooled.execute("SET LOCAL sqlvec.maintain = off")
    pooled.execute("INSERT INTO pool VALUES (9001, 1, %s)", (to_text(QUERIES[2]),))
    pooled.execute("RESET sqlvec.maintain")
    pooled.execute("CREATE INDEX by_pool ON pool USING hnsw (tokens_pool_fde halfvec_ip_ops)")
    for query in QUERIES[2:5]:
        found = search(pooled, query, "pool", mode="by_pool", candidates=POOLED)
        wanted = expected(query, 9, is_pooled)
        waiting = [(9001, maxsim(QUERIES[2], query))]
        merged = sorted(wanted + waiting, key=lambda row: -row[1])[:9]
        assert recall(found, merged) >= 0.9
        assert (9001 in [row[0] for row in found]) == (waiting[0][1] > wanted[-1][1])


@pytest.fixture
def encoded(_encoded: None, db: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    return db


def declared(db: psycopg.Connection[Any], table: str, tokens: str = f"halfvec({D})[]") -> None:
    db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, tenant int, tokens {tokens})")
    load(db, table, DOCUMENTS[:1])
    db.execute(f"CALL sqlvec.add_fde('{table}', 'tokens', projection => 4)")
    db.execute(f"DELETE FROM {table}")
    load_encoded(db, table, 400)
    db.execute(f"ANALYZE {table}")


def best(db: psycopg.Connection[Any], table: str, query: Tokens, k: int = 10) -> list[Any]:
    return db.execute(
        f"SELECT id, sqlvec.maxsim(tokens, %s::halfvec[]) AS score FROM {table}"
        f" ORDER BY score DESC NULLS LAST, id LIMIT {k}",
        (to_text(query),),
    ).fetchall()


def test_empty_arrays_do_not_stand_for_answers(encoded):
    """The zeros of their codes may be the best estimates there are."""
    declared(encoded, "sparse")
    encoded.execute("UPDATE sparse SET tokens = '{}' WHERE id % 2 = 0")
    query = -np.abs(QUERIES[0])
    encoded.execute(
        "UPDATE sparse SET tokens = ARRAY[%s]::halfvec[] WHERE id %% 2 = 1",
        ("[" + ",".join(["0.25"] * D) + "]",),
    )
    encoded.execute("ANALYZE sparse")
    assert search(encoded, query, "sparse") == best(encoded, "sparse", query)


def test_an_encoder_without_its_matrices_is_not_used(encoded):
    """A data-only restore may lack them."""
    declared(encoded, "restored")
    encoded.execute("SET LOCAL session_replication_role = replica")
    encoded.execute("DELETE FROM sqlvec.encoder_vector WHERE encoder LIKE '%restored%'")
    encoded.execute("SET LOCAL session_replication_role = origin")
    assert search(encoded, QUERIES[0], "restored") == best(encoded, "restored", QUERIES[0])
    with pytest.raises(InvalidParameterValue, match="neither auto"):
        search(encoded, QUERIES[0], "restored", mode="tokens_fde")


def test_policies_run_with_the_search_path_of_the_caller(encoded):
    declared(encoded, "guarded")
    encoded.execute("SET LOCAL sqlvec.maintain = off")
    encoded.execute("UPDATE guarded SET tokens = tokens || tokens WHERE id = 7")
    encoded.execute("CREATE TABLE tenants AS SELECT 3 AS tenant")
    encoded.execute(
        "CREATE FUNCTION visible(int) RETURNS boolean LANGUAGE plpgsql STABLE AS "
        "'BEGIN RETURN EXISTS (SELECT FROM tenants AS t WHERE t.tenant = $1); END'"
    )
    encoded.execute("ALTER TABLE guarded ENABLE ROW LEVEL SECURITY")
    encoded.execute("CREATE POLICY p ON guarded USING (visible(tenant))")
    encoded.execute("CREATE ROLE reader_of_guarded")
    encoded.execute("GRANT SELECT ON guarded, tenants TO reader_of_guarded")
    encoded.execute("SET LOCAL ROLE reader_of_guarded")
    found = search(encoded, QUERIES[0], "guarded", mode="tokens_fde")
    assert {row[0] % 30 for row in found} == {3}
    assert found == best(encoded, "guarded", QUERIES[0])


def test_rows_of_a_child_table_are_found(encoded):
    declared(encoded, "parent")
    encoded.execute("CREATE TABLE child () INHERITS (parent)")
    load_one = "INSERT INTO child (id, tokens) VALUES (1000, %s)"
    encoded.execute(load_one, (to_text(QUERIES[0]),))
    assert search(encoded, QUERIES[0], "parent")[0][0] == 1000
    # Where they share keys, candidates cannot be told apart by them.
    encoded.execute("UPDATE child SET id = 5, tokens = (SELECT tokens FROM parent WHERE id = 5)")
    keys = encoded.execute(
        "SELECT key FROM sqlvec.maxsim_search_keys(NULL::parent, 'tokens', %s::halfvec[], "
        "key => NULL::int)",
        (to_text(DOCUMENTS[5]),),
    ).fetchall()
    assert len(keys) == 10
    assert keys.count((5,)) == 2


def test_a_column_without_dimensions_is_searched_by_its_codes(encoded):
    declared(encoded, "loose", "halfvec[]")
    plan = dict(
        encoded.execute(
            "SELECT topic, detail FROM sqlvec.explain_maxsim_search(NULL::loose, 'tokens', "
            "%s::halfvec[])",
            (to_text(QUERIES[0]),),
        ).fetchall()
    )
    assert "400 of 400 rows match" in plan["why"]
    assert recall(search(encoded, QUERIES[0], "loose"), best(encoded, "loose", QUERIES[0])) >= 0.9


def test_a_table_of_any_name(encoded):
    for name in ("h", "f", "c", "s"):
        declared(encoded, name)
        found = search(encoded, QUERIES[0], name, carve=0.9, candidates=400)
        assert_same(found, best(encoded, name, QUERIES[0]))


def test_explain_calls_nothing_of_the_search_path(encoded):
    declared(encoded, "looked_at")
    encoded.execute(
        "CREATE FUNCTION unnest(float8[]) RETURNS SETOF float8 LANGUAGE plpgsql AS "
        "'BEGIN RAISE EXCEPTION ''planted''; END'"
    )
    encoded.execute(
        "SELECT sqlvec.explain_maxsim_search(NULL::looked_at, 'tokens', %s::halfvec[])",
        (to_text(QUERIES[0]),),
    )


def test_candidates_without_estimates_come_last(encoded):
    declared(encoded, "waiting")
    encoded.execute("SET LOCAL sqlvec.maintain = off")
    encoded.execute("UPDATE waiting SET tokens = tokens || tokens WHERE id = 7")
    assert search(encoded, QUERIES[0], "waiting", rescore=False, mode="tokens_fde")[-1] == (7, None)


def test_strong_signs_are_of_values_above_the_mean(db):
    strong = db.execute("SELECT sqlvec._strong_signs('{1, -3, 0, 0.5}')::text").fetchone()
    assert strong == ("0000" + "0100",)
    assert db.execute("SELECT sqlvec._strong_signs('{0, 0}')::text").fetchone() == ("0000",)


def test_share_of_the_normal_distribution(db):
    shares = db.execute(
        "SELECT x / 4.0::float8, sqlvec._normal_tail(x / 4.0::float8) "
        "FROM generate_series(-24, 24) AS x"
    ).fetchall()
    for x, share in shares:
        assert share == pytest.approx(math.erfc(x / math.sqrt(2)) / 2, abs=1e-7)
    assert db.execute("SELECT sqlvec._normal_tail(NULL)").fetchone() == (None,)


@pytest.mark.parametrize("key", ["id % 3", "nullif(id % 2, 0) * id"])
def test_rows_that_share_a_key_are_all_found_once(encoded, key):
    declared(encoded, "shared")
    encoded.execute(f"ALTER TABLE shared ADD code int; UPDATE shared SET code = {key}")
    search_keys = (
        "SELECT key, score FROM sqlvec.maxsim_search_keys(NULL::shared, 'tokens', %s::halfvec[], "
        "key => NULL::int, key_column => 'code'{})"
    )
    query = to_text(QUERIES[0])
    wanted = [
        encoded.execute("SELECT code FROM shared WHERE id = %s", row[:1]).fetchone() + row[1:]
        for row in best(encoded, "shared", QUERIES[0])
    ]
    assert encoded.execute(search_keys.format(""), (query,)).fetchall() == wanted
    with pytest.raises(InvalidParameterValue, match="does not identify its rows"):
        encoded.execute(search_keys.format(", mode => 'tokens_fde'"), (query,))


def test_one_session_searches_codes_of_either_type(encoded):
    for table, bits in (("values_kept", False), ("signs_kept", True), ("values_too", False)):
        encoded.execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY, tenant int, tokens halfvec({D})[])"
        )
        encoded.execute(
            "CALL sqlvec.add_fde(%s, 'tokens', projection => 4, bits => %s)", (table, bits)
        )
        if bits:
            load(encoded, table, DOCUMENTS[:200])
        else:
            load_encoded(encoded, table, 200)
        wanted = expected(QUERIES[0], 10, lambda n: n < 200)
        for options in ({}, {"mode": "tokens_fde", "candidates": 200}, {"mode": "exact"}):
            assert_same(search(encoded, QUERIES[0], table, **options), wanted)
        assert len(search(encoded, QUERIES[0], table, rescore=False, candidates=50)) == 50
        call = (
            f"SELECT * FROM sqlvec.explain_maxsim_search(NULL::{table}, 'tokens', "
            "%s::halfvec[], rescore => %s, mode => %s)"
        )
        for rescore in (True, False):
            for mode in ("auto", "exact", "tokens_fde"):
                assert encoded.execute(call, (to_text(QUERIES[0]), rescore, mode)).fetchall()
