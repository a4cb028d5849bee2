"""Correction of hubs on the server: equal to numpy, declared, kept, indexed, searched."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sqlvec import bulk_backfill, manage
from sqlvec.catalog import load_encoder
from sqlvec.encoders import Hubness
from tests.db import vectors as v

property_settings = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_numbers = itertools.count()

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def run(conn: Connection, statement: str, **values: Any) -> Any:
    return conn.execute(text(statement), values)


def create(
    conn: Connection, queries: Any, gallery: Any = (), **options: float
) -> tuple[str, Any, Any]:
    name = f"hubs {next(_numbers)}"
    more = "".join(f", {key} => {value!r}" for key, value in options.items())
    run(
        conn,
        "CALL sqlvec.create_hubness_encoder(:name, CAST(CAST(:queries AS text[]) AS vector[]),"
        f" CAST(CAST(:gallery AS text[]) AS vector[]){more})",
        name=name,
        queries=[v.text(query) for query in queries],
        gallery=[v.text(row) for row in gallery],
    )
    encoder, parts = load_encoder(conn, name)
    assert encoder == Hubness(len(queries), len(gallery), **options)
    return name, encoder, parts


def encoded(conn: Connection, name: str, x: Any) -> Any:
    statement = "SELECT sqlvec.encode(:name, CAST(:x AS vector), NULL::vector)::real[]"
    return run(conn, statement, name=name, x=v.text(x)).scalar()


def assert_equal(found: Any, expected: Any) -> None:
    """One unit in the last place of float32; a correction next to zero is a difference."""
    found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    apart = np.abs(found.astype(np.float64) - expected)
    limit = np.spacing(np.maximum(np.abs(found), np.abs(expected))).astype(np.float64)
    assert (apart[..., :-1] <= limit[..., :-1]).all()
    assert (apart[..., -1] <= limit[..., -1] + 1e-12).all()


@property_settings
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(6)), elements=floats),
    st.floats(0.01, 300),
    st.floats(0.01, 300),
    st.floats(0.01, 1),
)
def test_sql_equals_numpy(conn, x, beta_queries, beta_gallery, strength):
    banks = [v.clustered(rows, 6, seed) for seed, rows in enumerate((9, 7))]
    name, encoder, parts = create(
        conn, *banks, beta_queries=beta_queries, beta_gallery=beta_gallery, strength=strength
    )
    for row in x:
        assert_equal(encoded(conn, name, row), encoder.encode(row, parts))


@pytest.mark.parametrize(("d", "gallery"), [(384, 0), (384, 100), (1, 3), (2500, 5)])
def test_real_sizes(conn, d, gallery):
    rows = v.clustered(20, d)
    name, encoder, parts = create(conn, v.clustered(150, d, 1), v.clustered(150, d, 2)[:gallery])
    assert parts["queries"].shape == (150, d)
    np.testing.assert_allclose(np.linalg.norm(parts["queries"], axis=1), 4000, rtol=1e-2)
    for row in rows:
        assert_equal(encoded(conn, name, row), encoder.encode(row, parts))


def test_a_row_of_the_gallery_bank_does_not_count_itself(conn):
    rows = v.clustered(12, 8)
    name, encoder, parts = create(conn, v.clustered(9, 8, 1), rows, strength=1)
    others, _, _ = create(conn, v.clustered(9, 8, 1), np.delete(rows, 3, axis=0), strength=1)
    assert_equal(encoded(conn, name, rows[3]), encoder.encode(rows[3], parts))
    assert_equal(encoded(conn, name, rows[3]), encoded(conn, others, rows[3]))


def test_zero_vectors(conn):
    name, _, _ = create(conn, v.clustered(9, 3))
    assert encoded(conn, name, [0, 0, 0]) == [0, 0, 0, -2]
    assert run(conn, "SELECT sqlvec.hubness_query('[0,0]')").scalar() is None
    assert run(conn, "SELECT sqlvec.hubness_query('[3,4]')::text").scalar() == "[0.6,0.8,1]"
    assert run(conn, "SELECT sqlvec.encode(:n, NULL, NULL::vector)", n=name).scalar() is None


def fails(conn: Connection, statement: str, *fragments: str) -> None:
    with pytest.raises(DBAPIError) as caught, conn.begin_nested():
        run(conn, statement)
    for fragment in fragments:
        assert fragment in str(caught.value.orig)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ("'x', '{}'", "take 1 to 100000 queries and up to 100000 rows, not 0 and 0"),
        ("'x', NULL", "not 0 and 0"),
        ("'x', ARRAY[NULL]::vector[]", "vector 1 of a bank"),
        ("'x', ARRAY['[1,2]', '[0,0]']::vector[]", "vector 2 of a bank"),
        ("'x', ARRAY['[1,2]']::vector[], ARRAY['[1]']::vector[]", "of 1 dimensions instead of 2"),
        ("'x', ARRAY['[1]']::vector[], beta_queries => 0", "above 0 and up to 300, not 0 and 20"),
        ("'x', ARRAY['[1]']::vector[], beta_gallery => 'NaN'", "not 20 and NaN"),
        ("'x', ARRAY['[1]']::vector[], beta_gallery => NULL", "up to 300, not 20 and <NULL>"),
        ("'x', ARRAY['[1]']::vector[], strength => 1.1", "above 0 and up to 1, not 1.1"),
        ("'hubness', ARRAY['[1]']::vector[]", "is a kind of encoder"),
        ("'', ARRAY['[1]']::vector[]", "needs a name"),
        ("'x', array_fill('[1]'::vector, ARRAY[100001])", "not 100001 and 0"),
    ],
)
def test_encoders_that_cannot_be(conn, arguments, fragment):
    fails(conn, f"CALL sqlvec.create_hubness_encoder({arguments})", fragment)


def test_fitted(doc):
    rows = np.concatenate([v.clustered(20, 8), np.zeros((5, 8), np.float32)])
    fill(doc, rows)
    run(doc, "INSERT INTO doc (id, half) SELECT id + 100, embedding FROM doc WHERE id < 7")
    fit = "CALL sqlvec.fit_hubness('{}', 'doc', 'embedding'{})"
    run(doc, fit.format("all", ", strength => 0.5"))
    encoder, parts = load_encoder(doc, "all")
    assert encoder == Hubness(20, strength=0.5)
    unit = parts["queries"] / 4000
    assert np.abs(unit @ rows[:20].T).max(axis=0).min() > 0.999
    run(doc, fit.format("few", ", gallery => 'doc', gallery_column => 'half', sample => 9"))
    again, few = load_encoder(doc, "few")
    assert again == Hubness(9, 7)
    assert (few["queries"] == parts["queries"][:9]).all()
    run(doc, fit.format("others", ", sample => 9, seed => 1"))
    assert (load_encoder(doc, "others")[1]["queries"] != few["queries"]).any()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ("'x', NULL, 'embedding'", "needs the table and the column of queries"),
        ("'x', 'doc', 'embedding', gallery => 'doc'", "needs the table and the column"),
        ("'x', 'doc', 'embedding', sample => 0", "from 1 to 100000, not 0"),
        ("'x', 'doc', 'id'", "bigint, not vector or halfvec"),
        ("'x', 'doc', 'none'", 'column "none" of table public.doc does not exist'),
        ("'x', 'doc', 'embedding'", "holds no vector with a direction"),
    ],
)
def test_what_cannot_be_fitted(doc, arguments, fragment):
    run(doc, "INSERT INTO doc VALUES (1, '[0,0,0,0,0,0,0,0]')")
    fails(doc, f"CALL sqlvec.fit_hubness({arguments})", fragment)


def test_other_ways_to_make_one(conn):
    fails(
        conn,
        "CALL sqlvec.create_encoder('x', 'hubness', 2)",
        "made from a bank of queries",
        "create_hubness_encoder",
    )


@pytest.fixture
def doc(conn: Connection) -> Connection:
    run(conn, "CREATE TABLE doc (id bigint PRIMARY KEY, embedding vector(8), half halfvec(8))")
    run(
        conn,
        "CALL sqlvec.create_hubness_encoder('hubs', CAST(CAST(:bank AS text[]) AS vector[]), strength => 1)",
        bank=[v.text(query) for query in v.clustered(30, 8, 1)],
    )
    return conn


def fill(conn: Connection, rows: Any) -> None:
    statement = "INSERT INTO doc (id, embedding) VALUES (:id, CAST(:x AS vector))"
    conn.execute(text(statement), [{"id": n, "x": v.text(row)} for n, row in enumerate(rows)])


def test_declared(doc):
    run(doc, "INSERT INTO doc VALUES (1000, '[1,2,3,4,5,6,7,8]')")
    run(doc, "CALL sqlvec.add_hubness('doc', 'embedding', 'hubs')")
    row = run(
        doc,
        "SELECT source_column, target_column, kind, metric, code_type, maintained, problem FROM sqlvec.derived_column",
    ).one()
    assert row == (
        "embedding",
        "embedding_hubness",
        "hubness",
        "inner_product",
        "vector(9)",
        True,
        None,
    )
    rows = v.clustered(10, 8)
    fill(doc, rows)
    run(doc, "INSERT INTO doc VALUES (10, NULL), (11, '[0,0,0,0,0,0,0,0]')")
    encoder, parts = load_encoder(doc, "hubs")

    def found() -> dict[int, Any]:
        rows = run(doc, "SELECT id, embedding_hubness::real[] AS code FROM doc")
        return {row.id: row.code for row in rows}

    stored = found()
    assert stored[1000] is None and stored[10] is None
    assert stored[11] == [0] * 8 + [-2]
    assert_equal([stored[n] for n in range(10)], encoder.encode(rows, parts))
    run(doc, "UPDATE doc SET embedding = (SELECT d.embedding FROM doc AS d WHERE d.id = 2)")
    assert found()[1] == stored[2] and found()[1000] == stored[2]
    run(doc, "UPDATE doc SET embedding_hubness = NULL WHERE id = 3")
    assert found()[3] == stored[2]
    fails(doc, "CALL sqlvec.drop_encoder('hubs')", "is in use by column")
    run(doc, "CALL sqlvec.drop_derived('doc', 'embedding_hubness')")
    run(doc, "CALL sqlvec.drop_encoder('hubs')")
    assert run(doc, "SELECT count(*) FROM sqlvec.encoder_vector").scalar() == 0


@pytest.mark.parametrize("indexed", [False, True])
def test_the_search_is_by_corrected_cosine(doc, indexed):
    run(doc, "CALL sqlvec.add_hubness('doc', 'embedding', 'hubs')")
    rows = v.clustered(300, 8)
    fill(doc, rows)
    if indexed:
        plan = "SELECT name, opclass, statement FROM sqlvec.plan_index('doc', 'embedding_hubness') WHERE method = 'hnsw'"
        plans = {row.name: row for row in run(doc, plan)}
        assert plans["source"].opclass == "vector_ip_ops"
        run(doc, plans["source"].statement.replace(" CONCURRENTLY", ""))
    encoder, parts = load_encoder(doc, "hubs")
    query = v.clustered(310, 8, 5)[-1]
    scores = encoder.encode(rows, parts).astype(np.float64) @ Hubness.query(query)
    statement = """
        SELECT (hit).id, distance FROM sqlvec.vector_search(
            NULL::doc, 'embedding_hubness', sqlvec.hubness_query(CAST(:q AS vector)), k => 10)
    """
    hits = run(doc, statement, q=v.text(query)).all()
    assert [hit.id for hit in hits] == list(np.argsort(-scores)[:10])
    np.testing.assert_allclose([-hit.distance for hit in hits], np.sort(-scores)[:10] * -1, 1e-5)
    plan = "SELECT detail FROM sqlvec.explain_search(NULL::doc, 'embedding_hubness', sqlvec.hubness_query(CAST(:q AS vector)), mode => :mode)"
    if indexed:
        details = run(doc, plan, q=v.text(query), mode="source").scalars().all()
        assert any("ix_doc_embedding_hubness_hnsw" in detail for detail in details)


def test_searches_of_the_source_stay_as_they_are(doc):
    run(doc, "CALL sqlvec.add_hubness('doc', 'embedding', 'hubs')")
    fill(doc, v.clustered(60, 8))
    run(doc, "CREATE INDEX ON doc USING hnsw (embedding_hubness vector_ip_ops)")
    search = (
        "SELECT (hit).id FROM sqlvec.vector_search(NULL::doc, 'embedding', '[1,0,0,0,0,0,0,0]')"
    )
    exact = "SELECT id FROM doc ORDER BY embedding <=> '[1,0,0,0,0,0,0,0]' LIMIT 10"
    assert run(doc, search).all() == run(doc, exact).all()
    names = run(doc, "SELECT name FROM sqlvec.plan_index('doc', 'embedding', 'inner_product')")
    assert "embedding_hubness" not in names.scalars().all()


def test_a_code_of_the_code(doc):
    """Where the index on vector ends, a halfvec takes its place."""
    run(doc, "CALL sqlvec.add_hubness('doc', 'embedding', 'hubs')")
    run(
        doc,
        "CALL sqlvec.add_quantized('doc', 'embedding_hubness', 'halfvec', metric => 'inner_product')",
    )
    fill(doc, v.clustered(200, 8))
    run(doc, "CREATE INDEX ON doc USING hnsw (embedding_hubness_halfvec halfvec_ip_ops)")
    search = "SELECT (hit).id FROM sqlvec.vector_search(NULL::doc, 'embedding_hubness', sqlvec.hubness_query('[1,2,0,0,0,0,0,0]'), mode => :mode)"
    found = run(doc, search, mode="embedding_hubness_halfvec").scalars().all()
    assert found == run(doc, search, mode="exact").scalars().all()


def test_halfvec_columns_share_the_encoder(doc):
    run(doc, "CALL sqlvec.add_hubness('doc', 'embedding', 'hubs')")
    run(doc, "CALL sqlvec.add_hubness('doc', 'half', 'hubs', target => 'half hubs')")
    run(doc, "INSERT INTO doc VALUES (1, '[1,2,3,4,5,6,7,8]', '[1,2,3,4,5,6,7,8]')")
    assert run(doc, 'SELECT embedding_hubness = "half hubs" FROM doc').scalar()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ("'embedding', 'none'", ['encoder "none" does not exist', "create_hubness_encoder"]),
        ("'embedding', 'plain'", ['is of kind "halfvec", not "hubness"']),
        ("'embedding', 'narrow'", ["has 8 dimensions", '"narrow" takes 2']),
        ("'id', 'hubs'", ["bigint, not vector or halfvec"]),
        ("'none', 'hubs'", ['column "none" of table public.doc does not exist']),
        ("'embedding', NULL", ["needs a table, a column and an encoder"]),
        ("'embedding', 'hubs', target => 'embedding'", ["cannot hold its own code"]),
        ("'embedding', 'hubs', target => 'half'", ["halfvec(8), encoder", "makes vector(9)"]),
    ],
)
def test_declarations_that_do_not_fit(doc, arguments, fragments):
    run(doc, "CALL sqlvec.create_encoder('plain', 'halfvec', 8)")
    run(doc, "CALL sqlvec.create_hubness_encoder('narrow', '{\"[1,2]\",\"[2,1]\"}')")
    fails(doc, f"CALL sqlvec.add_hubness('doc', {arguments})", *fragments)


def test_kinds_do_not_mix(doc):
    for encoder in ("hubness", "hubs"):
        fails(
            doc, f"CALL sqlvec.add_quantized('doc', 'embedding', '{encoder}')", "sqlvec.add_hubness"
        )
    fails(doc, "CALL sqlvec.add_quantized('doc', 'embedding', 'none')", "fde, pool.")


def test_many_dimensions(fresh):
    hints: list[str] = []
    fresh.add_notice_handler(lambda notice: hints.append(notice.message_hint or ""))
    fresh.execute("CREATE TABLE doc (wide vector(2000), wider vector(4000))")
    for column, d in (("wide", 2000), ("wider", 4000)):
        bank = f"ARRAY[array_fill(1, ARRAY[{d}])::vector]"
        fresh.execute(f"CALL sqlvec.create_hubness_encoder('{column}', {bank})")
        fresh.execute(f"CALL sqlvec.add_hubness('doc', '{column}', '{column}')")
    assert len(hints) == 2
    assert (
        "add_quantized('public.doc', 'wide_hubness', 'halfvec', metric => 'inner_product')"
        in hints[0]
    )
    assert "truncate" in hints[1]
    bank = "ARRAY[array_fill(1, ARRAY[4097])::vector]"
    with pytest.raises(psycopg.Error, match="4096 is the limit"):
        fresh.execute(f"CALL sqlvec.create_hubness_encoder('x', {bank})")


def test_names_that_look_like_sql(doc):
    name = 'it\'s "quoted"; DROP TABLE doc; %s --'
    bank = "CAST('{\"[1,0,0,0,0,0,0,0]\"}' AS vector[])"
    run(doc, f"CALL sqlvec.create_hubness_encoder(:name, {bank}, strength => 1)", name=name)
    run(doc, "CALL sqlvec.add_hubness('doc', 'embedding', :name, target => :name)", name=name)
    run(doc, "INSERT INTO doc VALUES (1, '[1,0,0,0,0,0,0,0]')")
    column = '"' + name.replace('"', '""') + '"'
    found = run(doc, f"SELECT {column.replace(':', chr(92) + ':')}::real[] FROM doc").scalar()
    assert found == pytest.approx([1, 0, 0, 0, 0, 0, 0, 0, -1])


def test_options_of_the_catalog_are_numbers(doc):
    run(doc, "CALL sqlvec.add_hubness('doc', 'embedding', 'hubs')")
    for key in ("queries", "gallery", "beta_queries", "beta_gallery", "strength"):
        with doc.begin_nested() as transaction:
            statement = "UPDATE sqlvec.encoder SET options = options || CAST(:o AS jsonb)"
            run(doc, statement, o=f'{{"{key}": "6); DROP--"}}')
            fails(doc, "CALL sqlvec.repair('doc')", "invalid input syntax for type")
            transaction.rollback()


def test_a_missing_bank_leaves_null_and_warns(fresh):
    fresh.execute("CREATE TABLE doc (embedding vector(2))")
    fresh.execute("CALL sqlvec.create_hubness_encoder('hubs', '{\"[1,0]\",\"[0,1]\"}')")
    fresh.execute("CALL sqlvec.add_hubness('doc', 'embedding', 'hubs')")
    fresh.execute("CREATE TABLE kept AS SELECT * FROM sqlvec.encoder_vector")
    fresh.execute("DELETE FROM sqlvec.encoder_vector WHERE position = 2")
    warnings: list[str] = []
    fresh.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    fresh.execute("INSERT INTO doc VALUES ('[1,2]')")
    assert fresh.execute("SELECT embedding_hubness FROM doc").fetchall() == [(None,)]
    assert warnings == [
        "encoder hubs is not in the catalog: column embedding_hubness of doc is left NULL"
    ]
    with pytest.raises(psycopg.Error, match="gives no code for rows"):
        fresh.execute("CALL sqlvec.backfill('doc')")
    fresh.execute("DELETE FROM sqlvec.encoder_vector")
    fresh.execute("INSERT INTO sqlvec.encoder_vector SELECT * FROM kept")
    fresh.execute("CALL sqlvec.backfill('doc')")
    unfinished = "SELECT count(*) FROM doc WHERE embedding_hubness IS NULL"
    assert fresh.execute(unfinished).fetchall() == [(0,)]


@pytest.mark.parametrize("type_", ["vector", "halfvec"])
def test_backfill_in_numpy(autocommit, monkeypatch, type_):
    run(autocommit, f"CREATE TABLE doc (id int PRIMARY KEY, embedding {type_}(8))")
    fill(autocommit, v.clustered(40, 8))
    run(autocommit, "INSERT INTO doc VALUES (40, '[0,0,0,0,0,0,0,0]'), (41, NULL)")
    run(autocommit, "CALL sqlvec.fit_hubness('hubs', 'doc', 'embedding', sample => 25)")
    run(autocommit, "CALL sqlvec.add_hubness('doc', 'embedding', 'hubs')")
    found: list[int] = []
    load = bulk_backfill._load_hubness

    def counted(connection: Connection, encoder: str) -> Any:
        encode = load(connection, encoder)
        return lambda vector: found.append(len(vector)) or encode(vector)  # type: ignore[func-returns-value]

    monkeypatch.setattr(bulk_backfill, "_LOADERS", {"hubness": counted})
    manage.backfill(autocommit.engine, "doc", batch=7)
    assert found == [1] * 41
    rows = run(autocommit, "SELECT embedding::vector::real[], embedding_hubness::real[] FROM doc")
    encoder, parts = load_encoder(autocommit, "hubs")
    for source, code in rows:
        assert (source is None) == (code is None)
        if source is not None:
            assert_equal(code, encoder.encode(source, parts))
    run(autocommit, "CALL sqlvec.backfill('doc', verify => true)")


def test_backfill(autocommit):
    run(autocommit, "CREATE TABLE doc (id int PRIMARY KEY, embedding vector(8))")
    rows = v.clustered(40, 8)
    fill(autocommit, rows)
    run(
        autocommit,
        "CALL sqlvec.fit_hubness('hubs', 'doc', 'embedding', gallery => 'doc', gallery_column => 'embedding', sample => 25)",
    )
    run(autocommit, "CALL sqlvec.add_hubness('doc', 'embedding', 'hubs')")
    run(autocommit, "CALL sqlvec.backfill('doc', batch => 7)")
    encoder, parts = load_encoder(autocommit, "hubs")
    assert encoder == Hubness(25, 25)
    found = run(autocommit, "SELECT embedding_hubness::real[] FROM doc ORDER BY id").scalars().all()
    assert_equal(found, encoder.encode(rows, parts))
    run(autocommit, "CALL sqlvec.backfill('doc', verify => true)")
