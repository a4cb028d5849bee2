"""The graph of nearest neighbours: built by search, resumed, rebuilt, kept by keys, expanded."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    Table,
    column,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError

from sqlvec.functions import expand
from tests.db import vectors as v

Edges = dict[tuple[int, int], float]


def run(conn: Connection, statement: str, **values: Any) -> Any:
    return conn.execute(text(statement), values)


def create(conn: Connection, rows: Any, type_: str = "vector") -> None:
    run(conn, f"CREATE TABLE doc (id int PRIMARY KEY, embedding {type_}({rows.shape[1]}))")
    add(conn, rows)


def add(conn: Connection, rows: Any, first: int = 0) -> None:
    statement = "INSERT INTO doc (id, embedding) VALUES (:id, CAST(:x AS vector))"
    conn.execute(
        text(statement), [{"id": n, "x": v.text(row)} for n, row in enumerate(rows, first)]
    )


def built(conn: Connection, table: str = "doc_neighbours") -> Edges:
    rows = run(conn, f"SELECT key, neighbour, weight FROM {table}")
    return {(row.key, row.neighbour): row.weight for row in rows}


def nearest(rows: Any, k: int, metric: str = "cosine") -> set[tuple[int, int]]:
    found = set()
    for n, row in enumerate(rows):
        apart = v.distances(metric, rows, row)
        apart[n] = np.inf
        found |= {(n, int(other)) for other in np.argsort(apart, kind="stable")[:k]}
    return found


def fails(conn: Connection, statement: str, *fragments: str) -> None:
    with pytest.raises(DBAPIError) as caught:
        run(conn, statement)
    for fragment in fragments:
        assert fragment in str(caught.value.orig)


@pytest.mark.parametrize("type_", ["vector", "halfvec"])
def test_built(autocommit, type_):
    rows = v.clustered(60, 8).astype(np.float16).astype(np.float32)
    create(autocommit, rows, type_)
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 5, batch => 7)")
    found = built(autocommit)
    assert set(found) == nearest(rows, 5)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for (key, neighbour), weight in found.items():
        assert weight == pytest.approx(unit[key] @ unit[neighbour], abs=2e-3)


@pytest.mark.parametrize(
    ("metric", "opclass"), [("l2", "l2_ops"), ("inner_product", "ip_ops"), ("l1", "l1_ops")]
)
def test_the_metric_is_that_of_the_column(autocommit, metric, opclass):
    rows = v.clustered(40, 4) * np.linspace(1, 3, 40, dtype=np.float32)[:, None]
    create(autocommit, rows)
    run(autocommit, f"CREATE INDEX ON doc USING hnsw (embedding vector_{opclass})")
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 3)")
    found = built(autocommit)
    assert set(found) == nearest(rows, 3, metric)
    (key, neighbour), weight = next(iter(found.items()))
    apart = v.distances(metric, rows, rows[key])[neighbour]
    assert weight == pytest.approx(-apart if metric == "inner_product" else 1 / (1 + apart))


def test_twins_and_rows_without_a_direction(autocommit):
    rows = np.array([[1, 0]] * 6 + [[0, 0], [0, 1]], dtype=np.float32)
    create(autocommit, rows)
    run(autocommit, "INSERT INTO doc VALUES (9, NULL)")
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 3)")
    found = built(autocommit)
    assert all(key != neighbour for key, neighbour in found)
    assert {key for key, _ in found} == {0, 1, 2, 3, 4, 5, 7}
    assert len(found) == 7 * 3
    run(autocommit, "DELETE FROM doc WHERE id <> 7")
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 3)")
    assert built(autocommit) == {}


def test_a_second_call_does_what_is_missing(autocommit):
    rows = v.clustered(50, 8)
    create(autocommit, rows[:40])
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 4)")
    before = built(autocommit)
    run(autocommit, "DELETE FROM doc_neighbours WHERE key IN (3, 17)")
    add(autocommit, rows[40:], first=40)
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 4, batch => 3)")
    after = built(autocommit)
    kept = {edge: w for edge, w in before.items() if edge[0] not in (3, 17)}
    assert {edge: w for edge, w in after.items() if edge in kept} == kept
    new = {edge for edge in nearest(rows, 4) if edge[0] in (3, 17) or edge[0] >= 40}
    assert set(after) == set(kept) | new


def test_a_rebuild_does_all(autocommit):
    rows = v.clustered(40, 8)
    create(autocommit, rows)
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 4)")
    rows = v.clustered(40, 8, seed=1)
    for n, row in enumerate(rows):
        run(autocommit, "UPDATE doc SET embedding = CAST(:x AS vector) WHERE id = :n", x=v.text(row), n=n)  # fmt: skip
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 4)")
    assert set(built(autocommit)) != nearest(rows, 4)
    run(autocommit, "UPDATE doc SET embedding = NULL WHERE id = 39")
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 4, rebuild => true)")
    assert set(built(autocommit)) == nearest(rows[:39], 4)


def test_mutual_edges(autocommit):
    rows = v.clustered(60, 8)
    create(autocommit, rows)
    call = "CALL sqlvec.build_neighbours('doc', 'embedding', 5, batch => 9, mutual => true)"
    every = nearest(rows, 5)
    for _ in range(2):
        run(autocommit, call)
        assert set(built(autocommit)) == {(a, b) for a, b in every if (b, a) in every}


def test_edges_go_with_their_rows_and_follow_keys(autocommit):
    create(autocommit, v.clustered(30, 4))
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 3, 'graph of \"docs\"')")
    table = '"graph of ""docs"""'
    before = built(autocommit, table)
    run(autocommit, "DELETE FROM doc WHERE id = 5")
    run(autocommit, "UPDATE doc SET id = 100 WHERE id = 6")
    moved = {edge: w for edge, w in before.items() if 5 not in edge}
    moved = {(100 if a == 6 else a, 100 if b == 6 else b): w for (a, b), w in moved.items()}
    assert built(autocommit, table) == moved


def test_an_interrupted_build_goes_on(autocommit):
    rows = v.clustered(30, 4)
    create(autocommit, rows)
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 3)")
    run(autocommit, "TRUNCATE doc_neighbours")
    run(
        autocommit,
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF NEW.key = 17 THEN RAISE ''stopped''; END IF; RETURN NEW; END'",
    )
    run(autocommit, "CREATE TRIGGER stop BEFORE INSERT ON doc_neighbours FOR EACH ROW EXECUTE FUNCTION stop()")  # fmt: skip
    call = "CALL sqlvec.build_neighbours('doc', 'embedding', 3, batch => 5)"
    fails(autocommit, call, "stopped")
    assert {key for key, _ in built(autocommit)} == set(range(15))
    run(autocommit, "DROP TRIGGER stop ON doc_neighbours")
    run(autocommit, call)
    assert set(built(autocommit)) == nearest(rows, 3)


@pytest.mark.parametrize("key", ["uuid", "citext", "text", "bigint"])
def test_keys_of_any_type(fresh, key):
    if key == "citext":
        known = "SELECT FROM pg_available_extensions WHERE name = 'citext'"
        if not fresh.execute(known).fetchall():
            pytest.skip("no citext on this server")
        fresh.execute("CREATE EXTENSION citext SCHEMA public")
    fresh.execute("CREATE SCHEMA other")
    fresh.execute(f'CREATE TABLE other."Doc" ("the id" {key} PRIMARY KEY, embedding vector(2))')
    make = "md5(n::text)::uuid" if key == "uuid" else f"(9 - n)::{key}"
    fresh.execute(
        f'INSERT INTO other."Doc" SELECT {make}, ARRAY[1, n]::vector FROM generate_series(1, 9) AS n'
    )
    fresh.execute("SET search_path = pg_catalog")
    fresh.execute("""CALL sqlvec.build_neighbours('other."Doc"', 'embedding', 2, batch => 2)""")
    found = fresh.execute(
        """SELECT count(*), count(DISTINCT key) FROM other."Doc_neighbours" """
    ).fetchone()
    assert found == (18, 9)
    statement = """
        SELECT count(*) FROM sqlvec.expand('other."Doc_neighbours"',
            ARRAY(SELECT "the id" FROM other."Doc" LIMIT 1), '{1}', hops => 2)
    """
    row = fresh.execute(statement).fetchone()
    assert row is not None and row[0] > 2


def test_partitioned_tables(autocommit):
    run(
        autocommit,
        "CREATE TABLE doc (id int PRIMARY KEY, embedding vector(4)) PARTITION BY HASH (id)",
    )
    for n in range(2):
        run(autocommit, f"CREATE TABLE doc_{n} PARTITION OF doc FOR VALUES WITH (MODULUS 2, REMAINDER {n})")  # fmt: skip
    rows = v.clustered(30, 4)
    add(autocommit, rows)
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 3)")
    assert set(built(autocommit)) == nearest(rows, 3)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ("NULL, 'embedding'", ["needs a table and a column"]),
        ("'doc', 'none'", ['column "none" of table public.doc does not exist']),
        ("'doc', 'id'", ["integer, not vector or halfvec"]),
        ("'doc', 'embedding', 0", ["from 1 to 1000, not 0"]),
        ("'doc', 'embedding', batch => 0", ["1 or more, not 0"]),
        ("'doc', 'embedding', into_table => ''", ["not a table name"]),
        ("'doc', 'embedding', into_table => 'doc'", ["public.doc is no table of edges"]),
        (
            "'doc', 'embedding', into_table => 'big'",
            ["keys of type bigint, table public.doc of type integer"],
        ),
        ("'pair', 'embedding'", ["table public.pair has no primary key of one column"]),
        ("'seen', 'embedding'", ["public.seen is not a table"]),
        (
            "'listed', 'embedding'",
            ['primary key "id" of table public.listed is of type integer[]: edges do not refer'],
        ),
    ],
)
def test_what_cannot_be_built(autocommit, arguments, fragments):
    create(autocommit, v.clustered(3, 4))
    run(autocommit, "CREATE TABLE pair (a int, b int, embedding vector(4), PRIMARY KEY (a, b))")
    run(autocommit, "CREATE VIEW seen AS SELECT * FROM doc")
    run(autocommit, "CREATE TABLE listed (id int[] PRIMARY KEY, embedding vector(4))")
    run(autocommit, "CREATE TABLE big (key bigint, neighbour bigint, weight real)")
    fails(autocommit, f"CALL sqlvec.build_neighbours({arguments})", *fragments)


def test_not_inside_a_transaction(conn):
    create(conn, v.clustered(3, 4))
    fails(
        conn, "CALL sqlvec.build_neighbours('doc', 'embedding')", "invalid transaction termination"
    )


def test_row_security(fresh):
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, embedding vector(2))")
    fresh.execute("INSERT INTO doc VALUES (1, '[1,2]'), (2, '[2,1]')")
    fresh.execute("CREATE ROLE clerk_of_graphs")
    try:
        fresh.execute("GRANT SELECT, REFERENCES ON doc TO clerk_of_graphs")
        fresh.execute("GRANT CREATE ON SCHEMA public TO clerk_of_graphs")
        fresh.execute("ALTER TABLE doc ENABLE ROW LEVEL SECURITY")
        fresh.execute("SET ROLE clerk_of_graphs")
        with pytest.raises(psycopg.Error, match="row security hides rows of table public.doc"):
            fresh.execute("CALL sqlvec.build_neighbours('doc', 'embedding')")
        fresh.execute("RESET ROLE")
        fresh.execute("ALTER TABLE doc DISABLE ROW LEVEL SECURITY")
        fresh.execute("SET ROLE clerk_of_graphs")
        fresh.execute("CALL sqlvec.build_neighbours('doc', 'embedding')")
        fresh.execute("RESET ROLE")
        owner = "SELECT tableowner, (SELECT count(*) FROM doc_neighbours) FROM pg_tables WHERE tablename = 'doc_neighbours'"
        assert fresh.execute(owner).fetchall() == [("clerk_of_graphs", 2)]
    finally:
        fresh.execute("RESET ROLE")
        fresh.execute("DROP OWNED BY clerk_of_graphs")
        fresh.execute("DROP ROLE clerk_of_graphs")


def test_planted_operators_are_not_used(fresh):
    """Those of text serve varchar, so that operators on varchar itself would be preferred."""
    fresh.execute("CREATE TABLE doc (id varchar(9) PRIMARY KEY, embedding vector(2))")
    fresh.execute("INSERT INTO doc SELECT n, ARRAY[1, n]::vector FROM generate_series(1, 9) AS n")
    fresh.execute(
        "CREATE FUNCTION planted(varchar, varchar) RETURNS boolean LANGUAGE plpgsql AS "
        "'BEGIN RAISE ''planted''; END'"
    )
    for operator in ("=", "<>", ">", "<"):
        fresh.execute(
            f"CREATE OPERATOR {operator} (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = planted)"
        )
    with pytest.raises(psycopg.Error, match="planted"):
        fresh.execute("SELECT FROM doc WHERE id = '1'::varchar")
    fresh.execute("CALL sqlvec.build_neighbours('doc', 'embedding', 2, batch => 2, mutual => true)")
    found = fresh.execute(
        "SELECT count(*) > 1 FROM sqlvec.expand('doc_neighbours', '{8}'::varchar[], '{1}')"
    )
    assert found.fetchall() == [(True,)]


def shares(least: int) -> st.SearchStrategy[float]:
    """Make numbers up to 1 whose products do not underflow."""
    return st.integers(1000 * least, 1000).map(lambda n: n / 1000)


def steps(edges: Edges, origin: dict[int, float], limit: int) -> dict[int, float]:
    """Return what one edge leads to, with the largest score times weight."""
    reached: dict[int, float] = {}
    for key, score in origin.items():
        around: dict[int, float] = {}
        for direction in (0, 1):
            own = [(e[1 - direction], w) for e, w in edges.items() if e[direction] == key and w > 0]
            for n, w in sorted(own, key=lambda pair: -pair[1])[:limit]:
                around[n] = max(around.get(n, 0), w)
        around.pop(key, None)
        for n, w in sorted(around.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]:
            if score > 0:
                reached[n] = max(reached.get(n, 0), score * min(w, 1))
    return reached


def slow(
    edges: Edges, seeds: dict[int, float], hops: int, decay: float, limit: int, blend: float
) -> Any:
    """Return score and hop of every row that is reached, edge by edge."""
    found = {key: (score, 0) for key, score in seeds.items()}
    for hop in range(1, hops + 1):
        origin = {key: score for key, (score, at) in found.items() if at == hop - 1}
        for n, score in steps(edges, origin, limit).items():
            found.setdefault(n, (score * decay, hop))
    around = steps(edges, seeds, limit)
    for key, score in seeds.items():
        found[key] = ((1 - blend) * score + blend * around.get(key, 0), 0)
    return found


@pytest.fixture(scope="module")
def graph(engine) -> Edges:
    """Make a table of edges with different weights, some of them out of range."""
    rng = np.random.default_rng(0)
    with engine.begin() as conn:
        run(conn, "CREATE TABLE edge (key int, neighbour int, weight float8)")
        weights = rng.permutation(200) / 100 - 0.3
        pairs = rng.permutation(30 * 30)[:200]
        edges = {(int(p) // 30, int(p) % 30): float(w) for p, w in zip(pairs, weights, strict=True)}
        conn.execute(
            text("INSERT INTO edge VALUES (:a, :b, :w)"),
            [{"a": a, "b": b, "w": w} for (a, b), w in edges.items()],
        )
    return edges


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(st.integers(0, 35), shares(-1), max_size=6),
    st.integers(0, 2),
    st.floats(0.1, 1),
    st.integers(1, 40),
    st.just(0) | shares(0),
)
def test_expanded(conn, graph, seeds, hops, decay, limit, blend):
    statement = """
        SELECT * FROM sqlvec.expand('edge', CAST(:keys AS int[]), CAST(:scores AS float8[]), :hops, :decay, :limit, :blend)
    """
    rows = run(
        conn,
        statement,
        keys=list(seeds),
        scores=list(seeds.values()),
        hops=hops,
        decay=decay,
        limit=limit,
        blend=blend,
    ).all()
    expected = slow(graph, seeds, hops, decay, limit, blend)
    assert {row.key: row.hop for row in rows} == {key: hop for key, (_, hop) in expected.items()}
    for row in rows:
        assert row.score == pytest.approx(expected[row.key][0], rel=1e-9, abs=1e-300)
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)


def test_the_best_of_equal_seeds(conn, graph):
    statement = "SELECT * FROM sqlvec.expand('edge', '{1,1}'::bigint[], '{0.2,0.7}', hops => 0)"
    (row,) = run(conn, statement).all()
    assert tuple(row) == (1, 0.7, 0)
    types = "SELECT pg_typeof(key)::text FROM sqlvec.expand('edge', '{1}'::bigint[], '{1}')"
    assert set(run(conn, types).scalars()) == {"bigint"}


def test_a_search_that_found_nothing_expands_to_nothing(conn, graph):
    statement = "SELECT * FROM sqlvec.expand('edge', NULL::bigint[], NULL)"
    assert run(conn, statement).all() == []


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ("'edge', '{1}'::int[], '{}'", ["as many keys as scores, not 1 and 0"]),
        ("'edge', '{NULL}'::int[], '{1}'", ["is NULL"]),
        ("'edge', '{1}'::int[], '{NULL}'", ["is NULL"]),
        ("'edge', '{1}'::int[], '{NaN}'", ["NaN"]),
        ("'edge', '{1}'::int[], '{1}', 3", ["from 0 to 2, not 3"]),
        (
            "'edge', '{1}'::int[], '{1}', decay => 0",
            ["up to 1, blend one from 0 to 1, not 0 and 0"],
        ),
        ("'edge', '{1}'::int[], '{1}', blend => 1.5", ["not 0.7 and 1.5"]),
        ("'edge', '{1}'::int[], '{1}', limit_edges => 0", ["to 10000, not 0"]),
        ("'edge', '{x}'::text[], '{1}'", ["invalid input syntax for type integer"]),
        ("'pg_class', '{1}'::int[], '{1}'", ["pg_catalog.pg_class is no table of edges"]),
        ("'wrong', '{1}'::int[], '{1}'", ["no table of edges", '"neighbour" of one type']),
        ("NULL, '{1}'::int[], '{1}'", ["NULL is no table of edges"]),
    ],
)
def test_what_cannot_be_expanded(conn, graph, arguments, fragments):
    run(conn, "CREATE TABLE wrong (key int, neighbour bigint, weight real)")
    with conn.begin_nested() as transaction:
        fails(conn, f"SELECT * FROM sqlvec.expand({arguments})", *fragments)
        transaction.rollback()


def test_a_view_of_edges(conn, graph):
    run(
        conn,
        'CREATE VIEW "both\'s" AS SELECT key::text, neighbour::text, weight FROM edge WHERE weight > 0.5',
    )
    statement = """SELECT count(*) FROM sqlvec.expand('"both''s"', '{1,2}'::text[], '{1,1}')"""
    assert run(conn, statement).scalar() > 2


def test_search_expand_rescore(autocommit):
    """What the page of the manual does, with SQLAlchemy."""
    rows = v.clustered(200, 8)
    create(autocommit, rows)
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 8)")
    metadata = MetaData()
    edges = Table("doc_neighbours", metadata, autoload_with=autocommit)
    doc = Table("doc", MetaData(), Column("id", Integer, primary_key=True))
    query = v.clustered(210, 8, 3)[-1]
    similar = 1 - v.distances("cosine", rows, query)
    seeds = np.argsort(-similar)[:5]
    found = expand(edges, seeds.tolist(), similar[seeds].tolist(), hops=2).table_valued(
        "key", "score", "hop"
    )
    statement = select(doc.c.id, found.c.hop).join(found, found.c.key == doc.c.id)
    hops = {row.id: row.hop for row in autocommit.execute(statement)}
    assert {key for key, hop in hops.items() if hop == 0} == set(seeds.tolist())
    assert 1 in hops.values() and 2 in hops.values()
    # Keys and scores may come from a query.
    own = select(func.array_agg(doc.c.id, type_=ARRAY(Integer))).where(doc.c.id < 3)
    one = literal([1.0, 1.0, 1.0], ARRAY(Double))
    again = expand(edges, own.scalar_subquery(), one, limit_edges=1, decay=0.5)
    counted = select(func.count()).select_from(again.table_valued(column("key")))
    assert autocommit.scalar(counted) > 3


def test_a_neighbour_that_is_deleted_meanwhile(autocommit):
    """The search of its batch is run again."""
    rows = v.clustered(20, 4)
    create(autocommit, rows)
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 3)")
    run(autocommit, "TRUNCATE doc_neighbours")
    run(autocommit, "CREATE SEQUENCE attempt")
    run(
        autocommit,
        "CREATE FUNCTION vanish() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN "
        "IF nextval(''attempt'') <= 2 THEN DELETE FROM doc WHERE id = NEW.neighbour; END IF; "
        "RETURN NEW; END'",
    )
    run(autocommit, "CREATE TRIGGER vanish BEFORE INSERT ON doc_neighbours FOR EACH ROW EXECUTE FUNCTION vanish()")  # fmt: skip
    run(autocommit, "CALL sqlvec.build_neighbours('doc', 'embedding', 3)")
    assert set(built(autocommit)) == nearest(rows, 3)
    assert run(autocommit, "SELECT last_value FROM attempt").scalar() > 60


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE doc RENAME TO former; CREATE TABLE doc (LIKE former);"
        " INSERT INTO doc SELECT id + 1000, embedding FROM former",
        "ALTER TABLE doc RENAME TO former; ALTER TABLE former RENAME embedding TO meaning;"
        " ALTER TABLE former RENAME id TO number",
        "ALTER TABLE doc_neighbours RENAME TO graph; CREATE TABLE doc_neighbours (LIKE graph)",
    ],
    ids=["swapped", "renamed", "edges swapped"],
)
@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_renamed_meanwhile(fresh, change, isolation):
    rows = v.clustered(60, 8)
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, embedding vector(8))")
    fresh.cursor().executemany(
        "INSERT INTO doc VALUES (%s, %s)", [(n, v.text(row)) for n, row in enumerate(rows)]
    )
    fresh.execute("CALL sqlvec.build_neighbours('doc', 'embedding', 3)")
    fresh.execute("TRUNCATE doc_neighbours")
    fresh.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.03); RETURN NULL; END $$"
    )
    fresh.execute("CREATE TRIGGER slow AFTER INSERT ON doc_neighbours EXECUTE FUNCTION slow()")

    def build():
        with psycopg.connect(fresh.info.dsn, autocommit=True) as other:
            other.execute(f"SET default_transaction_isolation = '{isolation}'")
            other.execute("CALL sqlvec.build_neighbours('doc', 'embedding', 3, batch => 2)")

    building = threading.Thread(target=build)
    building.start()
    deadline = time.monotonic() + 20
    while fresh.execute("SELECT count(*) FROM doc_neighbours").fetchone()[0] < 12:
        assert time.monotonic() < deadline
    with fresh.transaction():
        fresh.execute(change)
        time.sleep(0.1)  # for the next batch to come and wait
    building.join(20)
    assert not building.is_alive()
    edges = "graph" if "graph" in change else "doc_neighbours"
    found = fresh.execute(f"SELECT key, neighbour FROM {edges}").fetchall()
    assert set(found) == nearest(rows, 3)


def test_searches_of_a_deleted_neighbour(fresh):
    """Edges never name a row that is gone."""
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, embedding vector(2))")
    fresh.execute("INSERT INTO doc SELECT n, ARRAY[1, n]::vector FROM generate_series(1, 30) AS n")
    fresh.execute("CALL sqlvec.build_neighbours('doc', 'embedding', 3)")
    fresh.execute("DELETE FROM doc WHERE id % 2 = 0")
    even = "SELECT count(*) FROM doc_neighbours WHERE key % 2 = 0 OR neighbour % 2 = 0"
    assert fresh.execute(even).fetchall() == [(0,)]
