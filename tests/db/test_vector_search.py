"""sqlvec.vector_search and its twins against brute force in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg.rows import dict_row

from tests.db import vectors

ROWS, DIMENSIONS = 3000, 32
METRICS = ["l2", "inner_product", "cosine", "l1"]


@pytest.fixture(scope="module")
def data() -> NDArray[np.float32]:
    return vectors.clustered(ROWS, DIMENSIONS) * np.float32(2.5)


@pytest.fixture(scope="module")
def db(dsn: str, data: NDArray[np.float32]) -> Iterator[psycopg.Connection[Any]]:
    """Table doc: every tenth row without a vector, tenants of very different size."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE doc (id int PRIMARY KEY, tenant int, tag text, embedding vector(32))"
        )
        with connection.cursor().copy("COPY doc FROM STDIN") as copy:
            for i, row in enumerate(data):
                copy.write_row(
                    (i, tenant(i), f"t{i % 7}", vectors.text(row) if has_vector(i) else None)
                )
        connection.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
        connection.execute("CALL sqlvec.backfill('doc')")
        connection.execute("CREATE INDEX doc_code ON doc USING hnsw (code bit_hamming_ops)")
        connection.execute("ANALYZE doc")
        # Small as it is, the table would be read as a whole: make that dear.
        connection.execute("SET random_page_cost = 0.01")
        yield connection


def tenant(i: int) -> int:
    """Tenant 0 has half of the rows, 1 a quarter, and so on."""
    return ((i * 2654435761) % 2**32 | 2**31).__format__("032b")[::-1].index("1")


def has_vector(i: int) -> bool:
    return i % 10 != 3


def nearest(
    data: NDArray[np.float32],
    query: NDArray[np.float32],
    k: int,
    metric: str,
    keep: Callable[[int], bool] = lambda i: True,
) -> list[int]:
    distance = vectors.distances(metric, data, query)
    ids = [i for i in np.argsort(distance, kind="stable") if has_vector(int(i)) and keep(int(i))]
    return [int(i) for i in ids[:k]]


def search(
    db: psycopg.Connection[Any], query: Any, key: str | None = "int", **arguments: Any
) -> list[Any]:
    """Call the function with named arguments; answer its rows."""
    values = {"q": query if isinstance(query, str) else vectors.text(query), **arguments}
    named = "".join(f", {name} => %({name})s" for name in arguments)
    if key:
        call = f"key, distance, complete FROM sqlvec.vector_search_keys(NULL::doc, 'embedding', %(q)s::vector, key => NULL::{key}{named})"
    else:
        call = f"(hit).*, distance, complete FROM sqlvec.vector_search(NULL::doc, 'embedding', %(q)s::vector{named})"
    return db.execute("SELECT " + call, values).fetchall()


@pytest.mark.parametrize("metric", METRICS)
def test_exact_search_is_exact(db: Any, data: Any, metric: str) -> None:
    for query in data[[3, 700]] + np.float32(0.01):
        found = search(db, query, k=20, metric=metric, mode="exact")
        assert [row[0] for row in found] == nearest(data, query, 20, metric)
        expected = np.sort(vectors.distances(metric, data, query)[[row[0] for row in found]])
        assert np.allclose([row[1] for row in found], expected, rtol=1e-5, atol=1e-5)
        assert all(row[2] for row in found)


def test_two_stages_find_the_exact_order(db: Any, data: Any) -> None:
    """With every row a candidate, codes cannot change the answer."""
    query = data[17] + np.float32(0.02)
    found = search(db, query, mode="code", candidates=ROWS)
    assert [row[0] for row in found] == nearest(data, query, 10, "cosine")


def test_recall_of_two_stages(db: Any, data: Any) -> None:
    queries = vectors.clustered(ROWS, DIMENSIONS)[:50] + np.float32(0.03)
    recall = np.mean(
        [
            len(
                {row[0] for row in search(db, q, mode="code")} & set(nearest(data, q, 10, "cosine"))
            )
            / 10
            for q in queries
        ]
    )
    # 32 bits are a coarse code: even forty candidates per result miss some.
    assert recall > 0.5
    better = np.mean(
        [
            len(
                {row[0] for row in search(db, q, mode="code", oversample=60)}
                & set(nearest(data, q, 10, "cosine"))
            )
            / 10
            for q in queries
        ]
    )
    assert better > 0.9
    assert better > recall


def test_rows_and_keys_agree(db: Any, data: Any) -> None:
    rows = search(db, data[5], key=None, k=7)
    keys = search(db, data[5], k=7)
    assert [(row[0], row[-2], row[-1]) for row in rows] == keys
    assert [row[1] for row in rows] == [tenant(row[0]) for row in rows]


def test_keys_in_another_type(db: Any, data: Any) -> None:
    assert [row[0] for row in search(db, data[5], key="text", k=3, key_column="tag")] == [
        f"t{i % 7}" for i in nearest(data, data[5], 3, "cosine")
    ]


@pytest.mark.parametrize("wanted", [0, 1, 3, 6, 9])
def test_filters_never_lose_rows(db: Any, data: Any, wanted: int) -> None:
    """From half of the table to a handful of rows: fewer than k come back only if fewer match."""
    for i in (11, 222):
        found = search(db, data[i], k=25, filter=f'{{"tenant": {wanted}}}')
        expected = nearest(data, data[i], 25, "cosine", lambda row: tenant(row) == wanted)
        assert len(found) == len(expected)
        assert all(tenant(row[0]) == wanted for row in found)
        assert all(row[2] for row in found)
        by_sql = search(
            db, data[i], k=25, where_sql="doc.tenant = ($1)[1]::int", params=[str(wanted)]
        )
        assert by_sql == found


def test_an_index_named_by_mode_tells_when_it_ended_early(db: Any, data: Any) -> None:
    with db.transaction():
        # The rare tenant is far away from this query: the scan gives up before it meets ten rows.
        db.execute("SET LOCAL hnsw.max_scan_tuples = 100")
        db.execute("SET LOCAL enable_seqscan = off")
        found = search(db, data[2], mode="doc_code", filter='{"tenant": 7}', candidates=10)
        assert len(found) < 10
        assert not any(row[2] for row in found)
        # The automatic plan makes up for it.
        whole = search(db, data[2], filter='{"tenant": 7}', candidates=10)
    expected = nearest(data, data[2], 10, "cosine", lambda row: tenant(row) == 7)
    assert [row[0] for row in whole] == expected


def test_scan_that_ends_early_is_completed(db: Any, data: Any) -> None:
    """The estimate says that many rows match, the truth is few: the answer is whole all the same."""
    with db.transaction():
        db.execute("SET LOCAL hnsw.max_scan_tuples = 1")
        db.execute("CREATE TEMPORARY TABLE few AS SELECT id FROM doc WHERE id % 300 = 1")
        found = search(
            db, data[2], where_sql="(SELECT count(*) FROM few WHERE few.id = doc.id) > 0"
        )
        plan = dict(
            db.execute(
                "SELECT topic, detail FROM sqlvec.explain_search(NULL::doc, 'embedding', %s::vector, where_sql =>"
                " '(SELECT count(*) FROM few WHERE few.id = doc.id) > 0', candidates => 20)",
                [vectors.text(data[2])],
            ).fetchall()
        )
    assert plan["plan"].startswith("two stages")
    assert [row[0] for row in found] == nearest(data, data[2], 10, "cosine", lambda i: i % 300 == 1)
    assert len(found) == 10


def test_scan_that_finds_k_rows_but_not_the_candidates(dsn: str, data: Any) -> None:
    """Enough rows for an answer are no answer while nearer ones were never looked at."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE lists (id int PRIMARY KEY, embedding vector(32))")
        with connection.cursor().copy("COPY lists FROM STDIN") as copy:
            for i, row in enumerate(data):
                copy.write_row((i, vectors.text(row)))
        connection.execute(
            "CREATE INDEX one_list ON lists USING ivfflat (embedding vector_cosine_ops) WITH (lists = 30)"
        )
        connection.execute("ANALYZE lists")
        connection.execute("SET random_page_cost = 0.01")
        connection.execute("SET ivfflat.probes = 1")
        connection.execute("SET ivfflat.max_probes = 1")

        def search(query: Any, mode: str) -> list[Any]:
            return connection.execute(
                "SELECT key, complete FROM sqlvec.vector_search_keys(NULL::lists, 'embedding', %s::vector,"
                " key => NULL::int, k => 40, candidates => 2000, mode => %s)",
                [vectors.text(query), mode],
            ).fetchall()

        differs = 0
        for query in data[:20] + np.float32(0.03):
            whole = search(query, "exact")
            assert search(query, "auto") == whole
            differs += search(query, "one_list") != whole
        assert differs
        plan: dict[str, str] = dict(
            connection.execute(
                "SELECT topic, detail FROM sqlvec.explain_search(NULL::lists, 'embedding', %s::vector,"
                " candidates => 2000)",
                [vectors.text(data[0])],
            ).fetchall()
        )
        assert plan["plan"].startswith("one stage")
        assert "run when the statement answers nothing" in plan["fallback"]
        connection.execute("DROP TABLE lists")


def test_settings_are_put_back(db: Any, data: Any) -> None:
    names = (
        "hnsw.ef_search",
        "hnsw.iterative_scan",
        "ivfflat.iterative_scan",
        "jit",
        "hnsw.max_scan_tuples",
        "hnsw.scan_mem_multiplier",
    )
    read = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    db.execute("SET hnsw.ef_search = 77")
    before = db.execute(read).fetchone()
    search(db, data[0])
    assert db.execute(read).fetchone() == before
    with db.transaction():
        db.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        inside = db.execute(read).fetchone()
        search(db, data[0])
        assert db.execute(read).fetchone() == inside
        # More candidates than there are rows: the statement for the rare case runs as well.
        assert len(search(db, data[0], candidates=2 * ROWS)) == 10
        assert db.execute(read).fetchone() == inside
        with pytest.raises(psycopg.errors.DivisionByZero), db.transaction():
            search(db, data[0], where_sql="1 / (doc.id - doc.id) = 1")
        assert db.execute(read).fetchone() == inside
    assert db.execute(read).fetchone() == before
    db.execute("RESET hnsw.ef_search")


def test_settings_of_a_new_session_are_put_back(dsn: str, db: Any, data: Any) -> None:
    """Before pgvector's library is loaded, its settings read as nothing."""
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "SELECT key FROM sqlvec.vector_search_keys(NULL::doc, 'embedding',"
            " (SELECT embedding FROM doc WHERE id = 0), key => NULL::int)"
        )
        found = connection.execute(
            "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')"
        ).fetchone()
        assert found == ("40", "off")


def test_the_index_is_used(db: Any, data: Any) -> None:
    plan = db.execute(
        "SELECT detail FROM sqlvec.explain_search(NULL::doc, 'embedding', %s::vector, candidates => 20)"
        " WHERE topic = 'explain'",
        [vectors.text(data[0])],
    ).fetchall()
    assert any("Index Scan using doc_code" in line for (line,) in plan)


class TestUnfinished:
    """While codes are missing the answer is right all the same."""

    @pytest.fixture
    def half(self, db: Any) -> Iterator[Any]:
        with db.transaction(force_rollback=True):
            db.execute("SET LOCAL sqlvec.maintain = off")
            db.execute("UPDATE doc SET code = NULL WHERE id % 2 = 0")
            db.execute("SET LOCAL sqlvec.maintain = on")
            yield db

    def test_rows_without_a_code_are_found(self, half: Any, data: Any) -> None:
        for i in (0, 1, 500, 501):
            found = [row[0] for row in search(half, data[i], candidates=ROWS)]
            assert found == nearest(data, data[i], 10, "cosine")
            assert len(set(found)) == 10

    def test_an_index_named_by_mode_finds_them_too(self, half: Any, data: Any) -> None:
        for mode in ("code", "doc_code"):
            found = search(half, data[500], candidates=ROWS, mode=mode)
            assert [row[0] for row in found] == nearest(data, data[500], 10, "cosine")
            assert all(row[2] for row in found)
            nothing = search(half, data[500], mode=mode, filter='{"tenant": 99}')
            assert nothing == []

    def test_explain_search_says_so(self, half: Any, data: Any) -> None:
        rows = half.execute(
            "SELECT topic, detail FROM sqlvec.explain_search(NULL::doc, 'embedding', %s::vector)",
            [vectors.text(data[0])],
        ).fetchall()
        detail = dict(rows)["column code"]
        assert "1500 rows wait" in detail or "1350 rows wait" in detail
        assert "CALL sqlvec.backfill('doc', 'code');" in detail


def test_codes_emptied_after_the_backfill(db: Any, data: Any) -> None:
    """The index over unfinished rows was empty and is not any more; nor will it ever be so small."""
    explain = (
        "SELECT detail FROM sqlvec.explain_search(NULL::doc, 'embedding', %s::vector)"
        " WHERE topic = 'statement'"
    )
    query = vectors.text(data[40])
    index = "SELECT sqlvec._unfinished_index_sql('doc'::regclass, 'code', false)"
    with db.transaction(force_rollback=True):
        for (name,) in db.execute(
            "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'doc'::regclass"
            " AND indpred IS NOT NULL"
        ).fetchall():
            db.execute(f"DROP INDEX {name}")
        assert "NOT EXISTS" in db.execute(explain, [query]).fetchone()[0]
        db.execute(db.execute(index).fetchone()[0])
        assert "pg_relation_size" in db.execute(explain, [query]).fetchone()[0]
        expected = nearest(data, data[40], 10, "cosine")
        assert [row[0] for row in search(db, data[40], candidates=ROWS)] == expected
        db.execute("SET LOCAL sqlvec.maintain = off")
        db.execute("UPDATE doc SET code = NULL WHERE id = 40")
        assert [row[0] for row in search(db, data[40], candidates=ROWS)] == expected
        db.execute("SET LOCAL sqlvec.maintain = on")
        db.execute("UPDATE doc SET tag = tag WHERE id = 40")
        assert "NOT EXISTS" in db.execute(explain, [query]).fetchone()[0]
        assert [row[0] for row in search(db, data[40], candidates=ROWS)] == expected


def test_a_code_emptied_while_the_search_was_planned(db: Any, data: Any) -> None:
    """The statement itself looks at the size of the index, after it has taken its snapshot."""
    with db.transaction(force_rollback=True):
        db.execute("DROP INDEX ix_doc_code_unfinished")
        db.execute(
            db.execute(
                "SELECT sqlvec._unfinished_index_sql('doc'::regclass, 'code', false)"
            ).fetchone()[0]
        )
        detail = dict(
            db.execute(
                "SELECT topic, detail FROM sqlvec.explain_search(NULL::doc, 'embedding', %s::vector)",
                [vectors.text(data[40])],
            ).fetchall()
        )
        for topic in ("statement", "fallback"):
            text = detail[topic].split("\n-- ")[0]
            db.execute(f"PREPARE {topic} (text[], vector, text[]) AS {text}".encode())
        db.execute("SET LOCAL hnsw.ef_search = 400")
        run = f"(NULL, '{vectors.text(data[40])}', NULL)"
        before = db.execute(f"EXECUTE statement {run}").fetchall()
        assert len(before) == 10
        db.execute("SET LOCAL sqlvec.maintain = off")
        db.execute("UPDATE doc SET code = NULL WHERE id = 40")
        assert db.execute(f"EXECUTE statement {run}").fetchall() == []
        assert db.execute(f"EXECUTE fallback {run}").fetchall()[0][0].startswith("(40,")
        db.execute("DEALLOCATE statement")
        db.execute("DEALLOCATE fallback")


def test_a_disabled_trigger_takes_the_codes_out_of_the_search(db: Any, data: Any) -> None:
    with db.transaction(force_rollback=True):
        db.execute("ALTER TABLE doc DISABLE TRIGGER ALL")
        db.execute("UPDATE doc SET embedding = %s WHERE id = 40", [vectors.text(-data[9])])
        found = search(db, -data[9])
        assert found[0][0] == 40
        rows = db.execute(
            "SELECT topic, detail FROM sqlvec.explain_search(NULL::doc, 'embedding', %s::vector)",
            [vectors.text(data[0])],
        ).fetchall()
    assert dict(rows)["plan"].startswith("exact")
    assert "CALL sqlvec.repair('doc');" in dict(rows)["column code"]


def test_zero_vectors_come_neither_first_nor_at_all(db: Any, data: Any) -> None:
    with db.transaction(force_rollback=True):
        zero = vectors.text(np.zeros(DIMENSIONS, np.float32))
        db.execute("UPDATE doc SET embedding = %s WHERE id < 200", [zero])
        for mode in ("exact", "auto", "code"):
            found = search(db, data[1000], k=20, mode=mode)
            assert len(found) == 20
            assert all(row[0] >= 200 and row[1] == row[1] for row in found)
        assert len(search(db, data[1000], k=100, where_sql="doc.id BETWEEN 150 AND 250")) == 46
        by_l2 = search(db, zero, k=5, metric="l2")
        assert all(row[0] < 200 for row in by_l2)


def test_empty_table(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE nothing (id uuid PRIMARY KEY, embedding vector(3))")
        connection.execute("CALL sqlvec.add_quantized('nothing', 'embedding', 'binary')")
        connection.execute("CREATE INDEX ON nothing USING hnsw (embedding_binary bit_hamming_ops)")
        found = connection.execute(
            "SELECT * FROM sqlvec.vector_search(NULL::nothing, 'embedding', '[1,2,3]')"
        ).fetchall()
        assert found == []
        connection.execute(
            "INSERT INTO nothing SELECT gen_random_uuid(), NULL FROM generate_series(1, 50)"
        )
        assert connection.execute(
            "SELECT count(*) FROM sqlvec.vector_search(NULL::nothing, 'embedding', '[1,2,3]')"
        ).fetchone() == (0,)
        connection.execute("DROP TABLE nothing")


ENCODERS = [
    ("halfvec", {}, 0.95),
    ("binary", {"rotate": True}, 0.5),
    ("binary", {"rotate": True, "center": True}, 0.5),
    ("truncate", {"dimensions": 24}, 0.8),
    ("linear", {"dimensions": 24}, 0.8),
]


@pytest.mark.parametrize(("kind", "options", "least"), ENCODERS)
@pytest.mark.parametrize("source", ["vector", "halfvec"])
def test_every_encoder_serves_a_search(
    dsn: str, data: Any, kind: str, options: dict[str, Any], least: float, source: str
) -> None:
    from psycopg.types.json import Jsonb

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS small")
        connection.execute(f"CREATE TABLE small (id int PRIMARY KEY, embedding {source}(32))")
        with connection.cursor().copy("COPY small FROM STDIN") as copy:
            for i, row in enumerate(data[:1500]):
                copy.write_row((i, vectors.text(row)))
        connection.execute(
            "CALL sqlvec.add_quantized('small', 'embedding', %s, 'code', options => %s)",
            [kind, Jsonb(options)],
        )
        connection.execute("CALL sqlvec.backfill('small')")
        row = connection.execute(
            "SELECT statement FROM sqlvec.plan_index('small', 'embedding') WHERE name = 'code'"
        ).fetchone()
        assert row is not None
        connection.execute(row[0])
        connection.execute("ANALYZE small")
        recall = []
        for query in data[:30]:
            found = connection.execute(
                "SELECT key FROM sqlvec.vector_search_keys(NULL::small, 'embedding', %s::vector,"
                " key => NULL::int, mode => 'code')",
                [vectors.text(query)],
            ).fetchall()
            order = np.argsort(vectors.distances("cosine", data[:1500], query), kind="stable")[:10]
            recall.append(len({key for (key,) in found} & {int(i) for i in order}) / 10)
        assert np.mean(recall) >= least
        connection.execute("DROP TABLE small")


def test_expression_indexes_need_no_column(dsn: str, data: Any) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute('CREATE TABLE "Odd Name" (id int PRIMARY KEY, "Em bed" vector(32))')
        with connection.cursor().copy('COPY "Odd Name" FROM STDIN') as copy:
            for i, row in enumerate(data[:1500]):
                copy.write_row((i, vectors.text(row)))
        statements: dict[str, str] = dict(
            connection.execute(
                """SELECT name, statement FROM sqlvec.plan_index('"Odd Name"', 'Em bed')"""
            ).fetchall()
        )
        assert set(statements) == {"source", "expression:binary", "expression:halfvec"}
        statements["prefix"] = (
            'CREATE INDEX ON "Odd Name" USING hnsw'
            ' ((l2_normalize(subvector("Em bed", 1, 16))::halfvec(16)) halfvec_cosine_ops)'
        )
        connection.execute("SET enable_seqscan = off")
        for name, way in {
            "expression:binary": "expression:binary",
            "expression:halfvec": "expression:halfvec",
            "prefix": "expression:truncate(16)",
        }.items():
            connection.execute(statements[name])
            connection.execute("ANALYZE")
            explain = """SELECT detail FROM sqlvec.explain_search(NULL::"Odd Name", 'Em bed', %s::vector, mode => %s)"""
            lines = [line for (line,) in connection.execute(explain, [vectors.text(data[0]), way])]
            assert lines[0].startswith("two stages")
            assert any("Index Scan using" in line for line in lines)
            found = connection.execute(
                """SELECT key FROM sqlvec.vector_search_keys(NULL::"Odd Name", 'Em bed', %s::vector,"""
                " key => NULL::int, k => 1, mode => %s, candidates => 200)",
                [vectors.text(data[0]), way],
            ).fetchall()
            assert found == [(0,)]
        connection.execute('DROP TABLE "Odd Name"')


def test_bit_search(dsn: str) -> None:
    generator = np.random.default_rng(1)
    bits = generator.random((400, 64)) < 0.4
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE prints (id int PRIMARY KEY, code bit(64))")
        with connection.cursor().copy("COPY prints FROM STDIN") as copy:
            for i, row in enumerate(bits):
                copy.write_row((i, "".join("01"[int(bit)] for bit in row)))
        query = bits[7] ^ (generator.random(64) < 0.05)
        code = "".join("01"[int(bit)] for bit in query)
        hamming = (bits ^ query).sum(axis=1)
        jaccard = 1 - (bits & query).sum(axis=1) / (bits | query).sum(axis=1)
        for metric, expected in (("hamming", hamming), ("jaccard", jaccard)):
            for index in (False, True):
                if index:
                    connection.execute(f"CREATE INDEX ON prints USING hnsw (code bit_{metric}_ops)")
                found = connection.execute(
                    "SELECT key, distance FROM sqlvec.bit_search_keys(NULL::prints, 'code',"
                    " %s::text::bit varying, key => NULL::int, metric => %s)",
                    [code, metric],
                ).fetchall()
                assert np.allclose([d for _, d in found], np.sort(expected)[:10])
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="hamming, jaccard"):
            connection.execute(
                "SELECT sqlvec.bit_search(NULL::prints, 'code', %s::text::bit varying, metric => 'l2')",
                [code],
            )
        with pytest.raises(
            psycopg.errors.DataException, match="has 64 dimensions, the query has 3"
        ):
            connection.execute("SELECT sqlvec.bit_search(NULL::prints, 'code', B'101')")
        connection.execute("DROP TABLE prints")


def test_sparse_search(dsn: str) -> None:
    generator = np.random.default_rng(2)
    dense = np.where(generator.random((300, 50)) < 0.2, generator.random((300, 50)), 0).astype(
        np.float32
    )

    def sparse(row: NDArray[np.float32]) -> str:
        entries = ",".join(f"{i + 1}:{float(v)!r}" for i, v in enumerate(row) if v)
        return f"{{{entries}}}/50"

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE words (id int PRIMARY KEY, terms sparsevec(50))")
        with connection.cursor().copy("COPY words FROM STDIN") as copy:
            for i, row in enumerate(dense):
                copy.write_row((i, sparse(row)))
        for metric in METRICS:
            found = connection.execute(
                "SELECT key, distance FROM sqlvec.sparse_search_keys(NULL::words, 'terms',"
                " %s::sparsevec, key => NULL::int, metric => %s)",
                [sparse(dense[4]), metric],
            ).fetchall()
            expected = np.sort(vectors.distances(metric, dense, dense[4]))[:10]
            assert np.allclose([d for _, d in found], expected, atol=1e-6)
        connection.execute("DROP TABLE words")


def test_views_and_keyless_tables(db: Any, data: Any) -> None:
    with db.transaction(force_rollback=True):
        db.execute(
            "CREATE VIEW public_doc AS SELECT id, upper(tag) AS tag, embedding FROM doc WHERE tenant = 1"
        )
        expected = nearest(data, data[8], 10, "cosine", lambda i: tenant(i) == 1)
        rows = db.execute(
            "SELECT (hit).id, (hit).tag FROM sqlvec.vector_search(NULL::public_doc, 'embedding', %s::vector)",
            [vectors.text(data[8])],
        ).fetchall()
        assert rows == [(i, f"T{i % 7}") for i in expected]
        rows = db.execute(
            "SELECT key FROM sqlvec.vector_search_keys(NULL::public_doc, 'embedding', %s::vector,"
            " key => NULL::int, key_column => 'id')",
            [vectors.text(data[8])],
        ).fetchall()
        assert [key for (key,) in rows] == expected
        db.execute("CREATE MATERIALIZED VIEW stored AS SELECT * FROM doc WHERE tenant = 1")
        rows = db.execute(
            "SELECT (hit).id FROM sqlvec.vector_search(NULL::stored, 'embedding', %s::vector)",
            [vectors.text(data[8])],
        ).fetchall()
        assert [key for (key,) in rows] == expected
        with (
            pytest.raises(psycopg.errors.InvalidParameterValue, match="has no primary key"),
            db.transaction(),
        ):
            db.execute(
                "SELECT sqlvec.vector_search_keys(NULL::stored, 'embedding', %s::vector, key => NULL::int)",
                [vectors.text(data[8])],
            )


def test_composite_keys(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        connection.execute(
            "CREATE TABLE part (a int, b text, embedding vector(2), PRIMARY KEY (a, b))"
        )
        connection.execute("INSERT INTO part VALUES (1, 'x', '[1,0]'), (1, 'y', '[0,1]')")
        found = connection.execute(
            "SELECT (hit).a, (hit).b FROM sqlvec.vector_search(NULL::part, 'embedding', '[1,0.1]')"
        ).fetchall()
        assert found == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}]
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="a composite primary key"):
            connection.execute(
                "SELECT sqlvec.vector_search_keys(NULL::part, 'embedding', '[1,0]', key => NULL::int)"
            )
        connection.execute("DROP TABLE part")


def test_partitioned_table(dsn: str, data: Any) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE parts (id int PRIMARY KEY, embedding vector(32)) PARTITION BY HASH (id)"
        )
        for i in range(3):
            connection.execute(
                f"CREATE TABLE parts_{i} PARTITION OF parts FOR VALUES WITH (MODULUS 3, REMAINDER {i})"
            )
        with connection.cursor().copy("COPY parts FROM STDIN") as copy:
            for i, row in enumerate(data):
                copy.write_row((i, vectors.text(row)))
        connection.execute("CALL sqlvec.add_quantized('parts', 'embedding', 'binary', 'code')")
        connection.execute("CALL sqlvec.backfill('parts')")
        connection.execute("CREATE INDEX ON parts USING hnsw (code bit_hamming_ops)")
        connection.execute("ANALYZE parts")
        assert connection.execute("SELECT count(*) FROM parts WHERE code IS NULL").fetchone() == (
            0,
        )
        order = [
            int(i)
            for i in np.argsort(vectors.distances("cosine", data, data[3]), kind="stable")[:10]
        ]
        for mode in ("auto", "exact", "code"):
            found = connection.execute(
                "SELECT (hit).id FROM sqlvec.vector_search(NULL::parts, 'embedding', %s::vector, mode => %s, candidates => %s)",
                [vectors.text(data[3]), mode, None if mode == "exact" else ROWS],
            ).fetchall()
            assert [key for (key,) in found] == order
        one = connection.execute(
            "SELECT (hit).id FROM sqlvec.vector_search(NULL::parts_1, 'embedding', %s::vector, k => 3)",
            [vectors.text(data[3])],
        ).fetchall()
        assert len(one) == 3
        connection.execute("DROP TABLE parts")


def test_names_that_the_statement_uses_itself(dsn: str) -> None:
    """Tables and columns of the application may bear any name."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE d (id int PRIMARY KEY, d int, h int, distance int, key int, row_id int, embedding vector(2))"
        )
        connection.execute(
            "INSERT INTO d SELECT i, i, i, i, i, i, ARRAY[cos(i), sin(i)]::vector FROM generate_series(1, 500) AS i"
        )
        connection.execute("CALL sqlvec.add_quantized('d', 'embedding', 'halfvec', 's')")
        connection.execute("CALL sqlvec.backfill('d')")
        connection.execute("CREATE INDEX ON d USING hnsw (s halfvec_cosine_ops)")
        for name in ("found", "counted", "exact", "n"):
            connection.execute(f"CREATE TABLE {name} (n int)")
            connection.execute(f"INSERT INTO {name} VALUES (490)")
        for mode in ("auto", "exact", "s"):
            for name in ("found", "counted", "exact", "n"):
                found = connection.execute(
                    "SELECT (hit).id, (hit).d FROM sqlvec.vector_search(NULL::d, 'embedding', '[1,0]', mode => %s,"
                    " candidates => %s, where_sql => %s)",
                    [mode, None if mode == "exact" else 500, f"d.id > (SELECT n FROM {name})"],
                ).fetchall()
                assert sorted(found) == [(i, i) for i in range(491, 501)]
        connection.execute("CREATE VIEW v AS SELECT id, d AS v, embedding FROM d")
        assert connection.execute(
            "SELECT (hit).id, (hit).v FROM sqlvec.vector_search(NULL::v, 'embedding', '[1,0]', k => 1)"
        ).fetchall() == [(333, 333)]
        connection.execute("DROP TABLE d, found, counted, exact, n CASCADE")


def test_an_index_that_is_gone_for_others(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as setup, psycopg.connect(dsn) as db:
        create_prose(setup, "gone")
        db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        db.execute("SELECT 1 FROM pg_class LIMIT 1")
        setup.execute("DROP INDEX gone_embedding_idx")
        rows = db.execute(
            "SELECT (hit).id FROM sqlvec.vector_search(NULL::gone, 'embedding', '[1,0,0]')"
        ).fetchall()
        assert len(rows) == 10


def test_a_name_of_two_lines(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as db:
        create_prose(db, '"two\nlines"')
        rows = db.execute(
            """SELECT (hit).cat FROM sqlvec.vector_search(NULL::"two\nlines", 'embedding', '[1,0,0]', filter => '{"cat": {"$gte": 3}}')"""
        ).fetchall()
    assert len(rows) == 10 and all(cat >= 3 for (cat,) in rows)


def test_indexes_whose_functions_are_found_by_search_path(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as db:
        create_prose(db, "prose")
        db.execute("CREATE SCHEMA folding")
        db.execute(
            "CREATE FUNCTION folding.lowered(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN lower($1); END'"
        )
        db.execute("SET search_path = public, folding")
        db.execute(
            "CREATE FUNCTION folded(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lowered($1)'"
        )
        if db.info.server_version < 170000:  # which calls it under a search_path of its own
            db.execute("CREATE INDEX ON prose (folded(title))")
    # A session of its own, which has planned nothing of the table yet.
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("SET search_path = public, folding")
        rows = db.execute(
            """SELECT (hit).cat FROM sqlvec.vector_search(NULL::prose, 'embedding', '[1,0,0]', filter => '{"cat": {"$gte": 3}}')"""
        ).fetchall()
    assert len(rows) == 10


def create_prose(db: Any, table: str) -> None:
    db.execute(
        f"CREATE TABLE {table} (id int PRIMARY KEY, cat int, title text, embedding vector(3))"
    )
    db.execute(
        f"INSERT INTO {table} SELECT i, i % 7, 'T' || i, ARRAY[sin(i), cos(i), sin(i * i)]::vector"
        " FROM generate_series(1, 500) AS i"
    )
    db.execute(f"CREATE INDEX ON {table} USING hnsw (embedding vector_cosine_ops)")
    db.execute(f"ANALYZE {table}")


def test_types_with_a_length(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE t (id char(3), c char(3), v varchar(3), b bit(4), embedding vector(1), PRIMARY KEY (id) INCLUDE (c))"
        )
        connection.execute("INSERT INTO t VALUES ('ABC', 'XYZ', 'uvw', B'1010', '[1]')")
        for condition in (
            {"c": "XYZ"},
            {"c": {"$in": ["XYZ"]}},
            {"v": "uvw"},
            {"b": "1010"},
            {"id": "ABC"},
        ):
            from psycopg.types.json import Jsonb

            found = connection.execute(
                "SELECT key FROM sqlvec.vector_search_keys(NULL::t, 'embedding', '[1]', key => NULL::char(3),"
                " filter => %s)",
                [Jsonb(condition)],
            ).fetchall()
            assert found == [("ABC",)]
        connection.execute("DROP TABLE t")


def test_column_of_several_dimensions(dsn: str) -> None:
    """A query finds the vectors that it can be compared with."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, embedding vector)")
        connection.execute(
            "INSERT INTO t VALUES (1, '[1,0]'), (2, '[1,0,0]'), (3, '[0,1]'), (4, NULL)"
        )
        for query, expected in (("[1,0.1]", [(1,), (3,)]), ("[1,1,1]", [(2,)]), ("[1]", [])):
            found = connection.execute(
                "SELECT key FROM sqlvec.vector_search_keys(NULL::t, 'embedding', %s::vector, key => NULL::int)",
                [query],
            ).fetchall()
            assert found == expected
        connection.execute("DROP TABLE t")


def test_dimensions_of_the_source_changed(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, embedding vector(3))")
        connection.execute(
            "INSERT INTO t SELECT i, ARRAY[cos(i), sin(i), 1]::vector FROM generate_series(1, 900) AS i"
        )
        connection.execute("CALL sqlvec.add_quantized('t', 'embedding', 'binary', 'code')")
        connection.execute("CALL sqlvec.backfill('t')")
        connection.execute("CREATE INDEX ON t USING hnsw (code bit_hamming_ops)")
        connection.execute(
            "ALTER TABLE t ALTER embedding TYPE vector(2) USING subvector(embedding, 1, 2)"
        )
        found = connection.execute(
            "SELECT key FROM sqlvec.vector_search_keys(NULL::t, 'embedding', '[1,0]', key => NULL::int, k => 1)"
        ).fetchall()
        assert found == [(710,)]
        (problem,) = connection.execute(
            "SELECT problem FROM sqlvec.derived_column WHERE relation = 't'::regclass"
        ).fetchone() or ("",)
        assert "the source now has 2 dimensions, the code was made for 3" in problem
        connection.execute(problem.split("; ", 1)[1])
        connection.execute("DROP TABLE t")


BAD = [
    ({"k": 0}, "k is a number from 1 to 10000, not 0"),
    ({"k": -1}, "not -1"),
    ({"k": 10001}, "not 10001"),
    ({"k": None}, "k is a number"),
    ({"metric": "hamming"}, 'metric "hamming" is not one that type vector has'),
    ({"mode": "nope"}, 'mode "nope" is neither auto, exact'),
    ({"mode": None}, "mode cannot be NULL"),
    ({"candidates": 5}, "from k \\(10\\)"),
    ({"candidates": 50, "oversample": 2.0}, "give one"),
    ({"oversample": 0.5}, "from 1 to 1000"),
    ({"oversample": float("nan")}, "from 1 to 1000"),
    ({"filter": "[]"}, "a JSON object is needed, not array"),
    ({"filter": '{"nowhere": 1}'}, 'column "nowhere" of table public.doc does not exist'),
    ({"filter": '{"tenant": {"$regex": "x"}}'}, 'unknown operator "\\$regex"'),
    ({"filter": '{"$nor": []}'}, 'unknown operator "\\$nor"'),
    ({"filter": '{"$or": []}'}, "needs a JSON array of conditions"),
    ({"filter": '{"tenant": {"$in": 3}}'}, "needs a JSON array"),
    ({"filter": '{"tenant": {"$between": [1]}}'}, "two values"),
    ({"filter": '{"tenant": {"$is_null": 1}}'}, "true or false"),
    ({"filter": '{"tenant": {"a": 1}}'}, "cannot be compared with a JSON object"),
    ({"filter": '{"tenant": {"$contains": 1}}'}, "needs an array or jsonb column"),
    ({"filter": '{"tenant": "seven"}'}, 'filter: "seven" is not a value of column "tenant"'),
    ({"key_column": "nowhere"}, 'column "nowhere"'),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(db: Any, data: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(psycopg.Error, match=message):
        search(db, data[0], **arguments)


def test_bad_queries(db: Any, data: Any) -> None:
    with pytest.raises(
        psycopg.errors.DataException,
        match='column "embedding" of table public.doc has 32 dimensions, the query has 2',
    ):
        search(db, "[1,2]")
    with pytest.raises(
        psycopg.errors.InvalidParameterValue, match="cosine distance to a zero vector"
    ):
        search(db, np.zeros(DIMENSIONS))
    with pytest.raises(psycopg.errors.NullValueNotAllowed, match="the query is NULL"):
        db.execute("SELECT sqlvec.vector_search(NULL::doc, 'embedding', NULL)")
    with pytest.raises(
        psycopg.errors.DatatypeMismatch, match='column "tag" of table public.doc is of type text'
    ):
        db.execute("SELECT sqlvec.vector_search(NULL::doc, 'tag', '[1]')")
    with pytest.raises(psycopg.errors.DatatypeMismatch, match="Use sqlvec.bit_search"):
        db.execute("SELECT sqlvec.vector_search(NULL::doc, 'code', '[1]')")
    with pytest.raises(
        psycopg.errors.DatatypeMismatch, match="typed NULL row, not a value of type integer"
    ):
        db.execute("SELECT sqlvec.vector_search(NULL::int, 'embedding', '[1]')")
    with pytest.raises(psycopg.errors.UndefinedColumn, match='"nowhere"'):
        db.execute("SELECT sqlvec.vector_search(NULL::doc, 'nowhere', '[1]')")


HOSTILE = [
    "'; DROP TABLE doc; --",
    '"; DROP TABLE doc; --',
    "$1); DROP TABLE doc; --",
    "embedding) FROM doc; DROP TABLE doc; --",
    "\\'; DROP TABLE doc; --",
    "x' OR true --",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_injection(db: Any, data: Any, hostile: str) -> None:
    """No argument but where_sql is ever read as SQL."""
    import json

    for arguments in (
        {"metric": hostile},
        {"mode": hostile},
        {"key_column": hostile},
        {"filter": json.dumps({hostile: 1})},
        {"filter": json.dumps({"tenant": {f"${hostile}": 1}})},
        {"filter": json.dumps({"tenant": hostile})},
        {"filter": json.dumps({"tenant": {"$in": [hostile]}})},
        {"filter": json.dumps({"tenant": {"$between": [1, hostile]}})},
    ):
        with pytest.raises(psycopg.Error):
            search(db, data[0], **arguments)
    assert search(db, data[0], filter=json.dumps({"tag": hostile})) == []
    assert search(db, data[0], filter=json.dumps({"tag": {"$in": [hostile, "t1'"]}})) == []
    for call in (
        "CALL sqlvec.add_quantized('doc', %s, 'binary')",
        "CALL sqlvec.add_quantized('doc', 'embedding', %s)",
        "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'c', metric => %s)",
        "CALL sqlvec.drop_derived('doc', %s)",
        "CALL sqlvec.backfill('doc', %s)",
        "CALL sqlvec.drop_encoder(%s)",
        "SELECT sqlvec.encode(%s, '[1]', NULL::halfvec)",
        "SELECT * FROM sqlvec.plan_index('doc', %s)",
        "SELECT sqlvec.vector_search(NULL::doc, %s, '[1]')",
    ):
        with pytest.raises(psycopg.Error):
            db.execute(call, [hostile])
    with db.transaction(force_rollback=True):
        db.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', %s)", [hostile])
        db.execute("UPDATE doc SET tag = tag WHERE id = 1")
        db.execute("CALL sqlvec.create_encoder(%s, 'linear', 32, '{\"dimensions\": 2}')", [hostile])
        db.execute("CALL sqlvec.add_quantized('doc', 'embedding', %s, 'other')", [hostile])
        db.execute("UPDATE doc SET tag = tag WHERE id = 1")
        row = db.execute("SELECT other IS NOT NULL FROM doc WHERE id = 1").fetchone()
        assert row == (True,)
        db.execute("CALL sqlvec.drop_derived('doc', %s)", [hostile])
    assert db.execute("SELECT count(*) FROM doc").fetchone() == (ROWS,)
