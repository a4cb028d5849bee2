"""Codes of nearest centroids on the server: equal to numpy, declared, kept, backfilled, fitted."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlvec import manage
from sqlvec.catalog import install, load_centroid, load_encoder, load_fde
from sqlvec.encoders import Centroid, CentroidTable
from sqlvec.errors import DeclarationError
from sqlvec.types.multivector import from_text, to_text
from tests.db.server import sqlalchemy_url

property_settings = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_numbers = itertools.count()


def run(conn: Connection, statement: str, **values: Any) -> Any:
    return conn.execute(text(statement), values)


def create(conn: Connection, centroids: Any) -> tuple[str, Centroid, Any]:
    name = f"centroids {next(_numbers)}"
    run(
        conn,
        "CALL sqlvec.create_centroid_encoder(:name, CAST(:centroids AS vector[]))",
        name=name,
        centroids=to_text(np.asarray(centroids, np.float32), element="vector"),
    )
    encoder, parts = load_centroid(conn, name)
    assert encoder == Centroid(len(centroids))
    return name, encoder, parts


def written(tokens: Any) -> Any:
    return tokens if tokens is None or isinstance(tokens, str) else to_text(tokens)


def codes(conn: Connection, name: str, tokens: Any) -> bytes | None:
    statement = "SELECT sqlvec.centroid_codes(:name, CAST(:tokens AS halfvec[]))"
    found = run(conn, statement, name=name, tokens=written(tokens)).scalar()
    return None if found is None else bytes(found)


def table(conn: Connection, name: str, query: Any) -> CentroidTable:
    statement = "SELECT (t).* FROM sqlvec.centroid_table(:name, CAST(:query AS halfvec[])) AS t"
    clusters, numbers, products = run(conn, statement, name=name, query=written(query)).one()
    return CentroidTable(clusters, bytes(numbers), np.array(products, dtype=np.float32))


def maxsim(conn: Connection, name: str, code: bytes, query: Any) -> float | None:
    statement = "SELECT sqlvec.maxsim_centroid(:code, sqlvec.centroid_table(:name, CAST(:query AS halfvec[])))"
    found: float | None = run(conn, statement, name=name, code=code, query=written(query)).scalar()
    return found


def assert_equal(conn: Connection, centroids: Any, tokens: Any, query: Any) -> None:
    name, encoder, parts = create(conn, centroids)
    code = encoder.document(tokens, parts)
    assert codes(conn, name, tokens) == code
    expected, found = encoder.table(query, parts), table(conn, name, query)
    assert found.clusters == expected.clusters and found.numbers == expected.numbers
    assert (found.products == expected.products).all()
    assert maxsim(conn, name, code, query) == encoder.maxsim(code, expected)


def vectors(d: int, most: int, rows: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    return hnp.arrays(
        np.float16,
        st.tuples(rows, st.just(d)),
        elements=st.floats(-1, 1, width=16).map(lambda v: v * most),
    )


@property_settings
@given(
    vectors(4, 1, st.integers(1, 20)),
    vectors(4, 3, st.integers(1, 20)),
    vectors(4, 1, st.integers(1, 5)),
)
def test_sql_equals_numpy(conn, centroids, tokens, query):
    assert_equal(conn, [*centroids, [0, 0, 1e-6, 0]], tokens, query)


@property_settings
@given(
    hnp.arrays(
        np.float16,
        st.tuples(st.integers(2, 8), st.just(3)),
        elements=st.floats(-65504, 65504, width=16),
    )
)
def test_tokens_of_very_different_norms(conn, tokens):
    assert_equal(conn, [*tokens, [0, 1e-6, 0]], tokens, tokens[:2])
    assert_equal(conn, [[1, 0, 0], [0, 1e-3, 0], [1e-6, 0, 0]], tokens, tokens[:2])


@pytest.mark.parametrize(("clusters", "n"), [(256, 1), (256, 500), (100, 40)])
def test_real_sizes(conn, clusters, n):
    rng = np.random.default_rng(n)
    centroids, tokens, query = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (rng.standard_normal((rows, 128)) for rows in (clusters, n, 32))
    )
    assert_equal(conn, centroids, tokens, query)


@property_settings
@given(vectors(4, 1, st.integers(1, 12)), vectors(4, 1, st.integers(1, 6)))
def test_maxsim_is_that_of_the_decoded_tokens(conn, tokens, query):
    name, encoder, parts = create(conn, np.random.default_rng(0).standard_normal((9, 4)))
    code = codes(conn, name, tokens)
    assert code is not None
    found = maxsim(conn, name, code, query)
    statement = "SELECT sqlvec.centroid_decode(:name, :code)::text, sqlvec.maxsim_vector(sqlvec.centroid_decode(:name, :code), CAST(:query AS vector[]))"
    decoded, exact = run(conn, statement, name=name, code=code, query=to_text(query)).one()
    assert (from_text(decoded) == encoder.decode(code, parts)).all()
    # Up to what rounding a query token to 2^11 steps in its norm changes.
    assert found == pytest.approx(exact, abs=6 * 4e-3)


def test_centroids_are_stored_on_a_grid(conn):
    values = np.random.default_rng(0).standard_normal((5, 3))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    _, _, parts = create(conn, values)
    np.testing.assert_allclose(parts["centroid"], values, atol=1 / 2000)
    assert (parts["centroid"] * 4096 % 1 == 0).all()


def test_nothing(conn):
    name, _, _ = create(conn, [[1, 0], [0, 1]])
    assert codes(conn, name, None) is None
    assert codes(conn, name, "{}") == codes(conn, name, "{NULL}") == b""
    assert codes(conn, name, '{NULL,"[0,2]",NULL}') == b"\x01"
    assert maxsim(conn, name, b"", [[1, 2]]) is None
    assert maxsim(conn, name, b"\x00", "{}") == 0
    assert maxsim(conn, name, b"\x00\x01", '{"[1,2]",NULL}') == 2
    assert (
        run(conn, "SELECT sqlvec.maxsim_centroid('\\x00', NULL::sqlvec.centroid_table)").scalar()
        is None
    )
    decoded = run(conn, "SELECT sqlvec.centroid_decode(:name, '\\x0100')::text", name=name)
    assert decoded.scalar() == '{"[0,1]","[1,0]"}'
    decoded = run(conn, "SELECT sqlvec.centroid_decode(:name, '\\x07')::text", name=name)
    assert decoded.scalar() == "{NULL}"
    run(conn, "DELETE FROM sqlvec.encoder_vector WHERE encoder = :name AND position = 2", name=name)
    assert codes(conn, name, '{"[1,2]"}') is None
    assert maxsim(conn, name, b"\x00", [[1, 2]]) is None


def test_bits(conn):
    statement = "SELECT sqlvec.centroid_bits('\\x0007ff'{})::text"
    assert run(conn, statement.format("")).scalar() == "{00000000,00000111,11111111}"
    assert run(conn, statement.format(", 3")).scalar() == "{000,111,111}"
    similarity = "SELECT sqlvec.maxsim_bit(sqlvec.centroid_bits('\\x0007', 3), sqlvec.centroid_bits('\\x05', bits => 3))"
    assert run(conn, similarity).scalar() == pytest.approx(2 / 3)
    assert run(conn, "SELECT sqlvec.centroid_bits('')::text").scalar() == "{}"
    for bits in (0, 9):
        fails(conn, f"SELECT sqlvec.centroid_bits('\\x00', {bits})", "has 1 to 8 bits")


def fails(conn: Connection, statement: str, *fragments: str) -> None:
    with pytest.raises(DBAPIError) as caught, conn.begin_nested():
        run(conn, statement)
    for fragment in fragments:
        assert fragment in str(caught.value.orig)


@pytest.mark.parametrize(
    ("name", "centroids", "fragment"),
    [
        ("x", "ARRAY['[1]']", "takes 2 to 256 centroids and no NULL among them, not 1"),
        ("x", "ARRAY['[1]', NULL, '[2]']", "no NULL among them, not 2"),
        ("x", "NULL", "not 0"),
        ("x", "array_fill('[1]'::vector, ARRAY[257])", "not 257"),
        ("x", "ARRAY['[1,2]', '[1]']", "has 2 dimensions, another 1"),
        ("x", "ARRAY['[0]', '[0]']", "has norm 0"),
        ("x", "ARRAY['[1]', '[1e9]']", "has norm 1000000000"),
        ("", "ARRAY['[1]', '[2]']", "needs a name"),
        ("centroid", "ARRAY['[1]', '[2]']", "is a kind of encoder"),
        ("taken", "ARRAY['[1]', '[2]']", "already exists"),
    ],
)
def test_encoders_that_cannot_be(conn, name, centroids, fragment):
    run(conn, "CALL sqlvec.create_encoder('taken', 'halfvec', 2)")
    fails(conn, f"CALL sqlvec.create_centroid_encoder('{name}', {centroids}::vector[])", fragment)


def test_errors_of_encoding(conn):
    name, _, _ = create(conn, [[1, 0], [0, 1]])
    run(conn, "CALL sqlvec.create_encoder('plain', 'halfvec', 2)")
    for function in ("centroid_codes", "centroid_table"):
        fails(
            conn,
            f"""SELECT sqlvec.{function}('{name}', '{{"[1,2]","[1]"}}')""",
            "takes vectors of 2 dimensions, not 1",
        )
        fails(
            conn,
            f"SELECT sqlvec.{function}('plain', '{{\"[1,2]\"}}')",
            'is of kind "halfvec", not "centroid"',
        )
        fails(conn, f"SELECT sqlvec.{function}('none', '{{\"[1,2]\"}}')", "does not exist")
    fails(conn, f"SELECT sqlvec.encode('{name}', '[1,2]', NULL::halfvec)", "centroid_codes")
    fails(
        conn,
        "CALL sqlvec.create_encoder('new', 'centroid', 2, '{\"clusters\"\\: 2}')",
        "made from its centroids",
        "create_centroid_encoder",
    )
    for load, message in ((load_encoder, "load_centroid"), (load_fde, "not 'fde'")):
        with pytest.raises(DeclarationError, match=message):
            load(conn, name)
    with pytest.raises(DeclarationError, match="not 'centroid'"):
        load_centroid(conn, "plain")


@pytest.fixture
def doc(conn: Connection) -> Connection:
    run(
        conn,
        "CREATE TABLE doc (id bigint PRIMARY KEY, tokens halfvec(4)[], full_tokens vector(4)[], embedding vector(4))",
    )
    rows = np.random.default_rng(7).standard_normal((6, 4))
    run(
        conn,
        "CALL sqlvec.create_centroid_encoder('nearest', CAST(:rows AS vector[]))",
        rows=to_text(rows, element="vector"),
    )
    return conn


def test_declared(doc):
    run(doc, "INSERT INTO doc VALUES (0, '{\"[1,2,3,4]\"}')")
    run(doc, "CALL sqlvec.add_centroid('doc', 'tokens', 'nearest')")
    row = run(
        doc,
        "SELECT source_column, target_column, kind, metric, code_type, maintained, problem FROM sqlvec.derived_column",
    ).one()
    assert row == ("tokens", "tokens_centroid", "centroid", "inner_product", "bytea", True, None)
    encoder, parts = load_centroid(doc, "nearest")
    tokens = np.random.default_rng(0).standard_normal((3, 6, 4))
    for n, some in enumerate(tokens, 1):
        run(
            doc,
            "INSERT INTO doc (id, tokens) VALUES (:id, CAST(:tokens AS halfvec[]))",
            id=n,
            tokens=to_text(some),
        )
    run(doc, "INSERT INTO doc VALUES (4, '{}'), (5, NULL)")

    def found() -> dict[int, bytes | None]:
        rows = run(doc, "SELECT id, tokens_centroid AS code FROM doc")
        return {row.id: None if row.code is None else bytes(row.code) for row in rows}

    stored = found()
    assert [stored[0], stored[4], stored[5]] == [None, b"", None]
    assert [stored[n] for n in (1, 2, 3)] == encoder.documents(tokens, parts)
    run(doc, "UPDATE doc SET tokens = (SELECT d.tokens FROM doc AS d WHERE d.id = 2) WHERE id = 1")
    assert found()[1] == stored[2]
    run(doc, "UPDATE doc SET tokens_centroid = '\\x00' WHERE id = 3")
    assert found()[3] == stored[3]
    run(doc, "UPDATE doc SET tokens = NULL WHERE id = 1")
    assert found()[1] is None
    run(doc, "SET LOCAL sqlvec.maintain = off")
    run(doc, "UPDATE doc SET tokens = '{\"[1,0,0,0]\"}' WHERE id = 2")
    assert found()[2] is None


def test_a_search_by_codes(doc):
    run(doc, "CALL sqlvec.add_centroid('doc', 'tokens', 'nearest', target => 'code')")
    rng = np.random.default_rng(3)
    for n in range(20):
        some = to_text(rng.standard_normal((5, 4)))
        statement = "INSERT INTO doc (id, tokens) VALUES (:id, CAST(:tokens AS halfvec[]))"
        run(doc, statement, id=n, tokens=some)
    statement = """
        WITH query AS (SELECT tokens FROM doc WHERE id = 7)
        SELECT id FROM doc
        ORDER BY sqlvec.maxsim_centroid(code, (SELECT sqlvec.centroid_table('nearest', q.tokens) FROM query AS q)) DESC
        LIMIT 20
    """
    ranked = run(doc, statement).scalars().all()
    encoder, parts = load_centroid(doc, "nearest")
    tokens = {row.id: from_text(row.tokens) for row in run(doc, "SELECT id, tokens::text FROM doc")}
    table = encoder.table(tokens[7], parts)
    scores: Any = {n: encoder.maxsim(encoder.document(t, parts), table) for n, t in tokens.items()}
    assert [scores[n] for n in ranked] == sorted(scores.values(), reverse=True)


def test_no_index_is_planned(doc):
    run(doc, "CALL sqlvec.add_centroid('doc', 'tokens', 'nearest')")
    assert run(doc, "SELECT name FROM sqlvec.plan_index('doc', 'tokens')").all() == []
    run(doc, "CALL sqlvec.add_fde('doc', 'tokens', projection => 2)")
    found = run(doc, "SELECT name FROM sqlvec.plan_index('doc', 'tokens')").scalars().all()
    assert found == ["tokens_fde"]


def test_the_slow_path_after_a_rename(doc):
    run(doc, "CALL sqlvec.add_centroid('doc', 'tokens', 'nearest')")
    run(doc, 'INSERT INTO doc VALUES (1, \'{"[1,2,3,4]","[4,3,-2,1]"}\')')
    run(doc, "ALTER TABLE doc RENAME COLUMN tokens TO words")
    run(doc, 'INSERT INTO doc VALUES (2, \'{"[1,2,3,4]","[4,3,-2,1]"}\')')
    run(doc, "CALL sqlvec.repair('doc')")
    run(doc, 'INSERT INTO doc VALUES (3, \'{"[1,2,3,4]","[4,3,-2,1]"}\')')
    counts = "SELECT count(DISTINCT tokens_centroid), count(tokens_centroid) FROM doc"
    assert run(doc, counts).one() == (1, 3)


def test_columns_of_vector_share_the_encoder(doc):
    run(doc, "CALL sqlvec.add_centroid('doc', 'full_tokens', 'nearest', target => 'code')")
    run(doc, "CALL sqlvec.add_centroid('doc', 'tokens', 'nearest')")
    run(doc, "INSERT INTO doc VALUES (1, '{\"[1,2,3,4]\"}', '{\"[1,2,3,4]\"}')")
    assert run(doc, "SELECT code = tokens_centroid FROM doc").scalar()
    fails(doc, "CALL sqlvec.drop_encoder('nearest')", "is in use by column")
    run(doc, "CALL sqlvec.drop_derived('doc', 'code')")
    run(doc, "CALL sqlvec.drop_derived('doc', 'tokens_centroid')")
    run(doc, "CALL sqlvec.drop_encoder('nearest')")
    assert run(doc, "SELECT count(*) FROM sqlvec.encoder_vector").scalar() == 0


def test_a_column_without_dimensions(doc):
    run(doc, "CREATE TABLE other (tokens halfvec[])")
    run(doc, "CALL sqlvec.add_centroid('other', 'tokens', 'nearest')")
    fails(
        doc,
        "INSERT INTO other VALUES ('{\"[1,2,3]\"}')",
        'takes vectors of 4 dimensions for its derived column "tokens_centroid", not 3',
    )


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ("'tokens', 'none'", ['encoder "none" does not exist', "create_centroid_encoder"]),
        ("'tokens', 'plain'", ['is of kind "halfvec", not "centroid"']),
        ("'tokens', 'narrow'", ["has 4 dimensions", '"narrow" takes 2']),
        ("'embedding', 'nearest'", ["vector, not halfvec[] or vector[]"]),
        ("'none', 'nearest'", ['column "none" of table public.doc does not exist']),
        ("'tokens', NULL", ["needs a table, a column and an encoder"]),
        ("'tokens', 'nearest', target => 'tokens'", ["cannot hold its own code"]),
        ("'tokens', 'nearest', target => 'embedding'", ["vector(4), encoder", "makes bytea"]),
    ],
)
def test_declarations_that_do_not_fit(doc, arguments, fragments):
    run(doc, "CALL sqlvec.create_encoder('plain', 'halfvec', 4)")
    run(doc, "CALL sqlvec.create_centroid_encoder('narrow', '{\"[1,2]\",\"[2,1]\"}')")
    fails(doc, f"CALL sqlvec.add_centroid('doc', {arguments})", *fragments)


def test_kinds_do_not_mix(doc):
    for encoder in ("centroid", "nearest"):
        fails(
            doc,
            f"CALL sqlvec.add_quantized('doc', 'embedding', '{encoder}')",
            "encodes multi-vectors",
            "add_centroid",
        )


def test_names_that_look_like_sql(doc):
    name = 'it\'s "quoted"; DROP TABLE doc; %s --'
    run(
        doc,
        'CALL sqlvec.create_centroid_encoder(:name, CAST(\'{"[1,0,0,0]","[0,1,0,0]"}\' AS vector[]))',
        name=name,
    )
    run(doc, "CALL sqlvec.add_centroid('doc', 'tokens', :name, target => :name)", name=name)
    run(doc, "INSERT INTO doc VALUES (1, '{\"[1,2,3,4]\"}')")
    column = '"' + name.replace('"', '""') + '"'
    assert run(doc, f"SELECT {column.replace(':', chr(92) + ':')} FROM doc").scalar() == b"\x01"


def test_options_of_the_catalog_are_numbers(doc):
    run(doc, "CALL sqlvec.add_centroid('doc', 'tokens', 'nearest')")
    run(
        doc, "UPDATE sqlvec.encoder SET options = CAST(:o AS jsonb)", o='{"clusters": "6); DROP--"}'
    )
    fails(doc, "CALL sqlvec.repair('doc')", "invalid input syntax for type integer")


def test_a_missing_encoder_leaves_null_and_warns(fresh):
    fresh.execute("CREATE TABLE doc (tokens halfvec(2)[])")
    fresh.execute("CALL sqlvec.create_centroid_encoder('nearest', '{\"[1,0]\",\"[0,1]\"}')")
    fresh.execute("CALL sqlvec.add_centroid('doc', 'tokens', 'nearest')")
    fresh.execute("CREATE TABLE kept AS SELECT * FROM sqlvec.encoder_vector")
    fresh.execute("DELETE FROM sqlvec.encoder_vector")
    warnings: list[str] = []
    fresh.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    fresh.execute("INSERT INTO doc VALUES ('{\"[1,2]\"}')")
    assert fresh.execute("SELECT tokens_centroid FROM doc").fetchall() == [(None,)]
    assert warnings == [
        "encoder nearest is not in the catalog: column tokens_centroid of doc is left NULL"
    ]
    with pytest.raises(psycopg.Error, match="gives no code for rows"):
        fresh.execute("CALL sqlvec.backfill('doc')")
    fresh.execute("INSERT INTO sqlvec.encoder_vector SELECT * FROM kept")
    fresh.execute("CALL sqlvec.backfill('doc')")
    assert fresh.execute("SELECT tokens_centroid FROM doc").fetchall() == [(b"\x01",)]


def test_backfill(autocommit):
    run(autocommit, "CREATE TABLE doc (id int PRIMARY KEY, tokens halfvec(4)[])")
    rng = np.random.default_rng(5)
    for n in range(25):
        run(
            autocommit,
            "INSERT INTO doc VALUES (:id, CAST(:tokens AS halfvec[]))",
            id=n,
            tokens=to_text(rng.standard_normal((n % 4 + 1, 4))),
        )
    run(autocommit, "INSERT INTO doc VALUES (100, NULL), (101, '{}')")
    run(autocommit, "CALL sqlvec.fit_centroids('fitted', 'doc', 'tokens', clusters => 8)")
    run(autocommit, "CALL sqlvec.add_centroid('doc', 'tokens', 'fitted')")
    assert run(autocommit, "SELECT count(tokens_centroid) FROM doc").scalar() == 0
    run(autocommit, "CALL sqlvec.backfill('doc', batch => 10)")
    statement = (
        "SELECT count(*) FROM doc WHERE tokens_centroid = sqlvec.centroid_codes('fitted', tokens)"
    )
    assert run(autocommit, statement).scalar() == 26
    run(autocommit, "CALL sqlvec.backfill('doc', verify => true)")
    run(autocommit, "CALL sqlvec.check()")


def test_backfill_in_numpy(tmp_database, monkeypatch):
    engine = create_engine(sqlalchemy_url(tmp_database()), poolclass=NullPool)
    rng = np.random.default_rng(5)
    with engine.begin() as connection:
        run(connection, "CREATE TABLE doc (id int PRIMARY KEY, tokens halfvec(4)[])")
        for n in range(12):
            statement = "INSERT INTO doc VALUES (:id, CAST(:tokens AS halfvec[]))"
            run(connection, statement, id=n, tokens=to_text(rng.standard_normal((n % 4 + 1, 4))))
        run(connection, "INSERT INTO doc VALUES (100, NULL), (101, '{}'), (102, '{NULL}')")
        run(connection, "CALL sqlvec.fit_centroids('fitted', 'doc', 'tokens', clusters => 8)")
        run(connection, "CALL sqlvec.add_centroid('doc', 'tokens', 'fitted')")
    encoded = 0
    document = Centroid.document

    def counted(self: Centroid, tokens: Any, parts: Any) -> bytes:
        nonlocal encoded
        encoded += 1
        return document(self, tokens, parts)

    monkeypatch.setattr(Centroid, "document", counted)
    manage.backfill(engine, "doc")
    assert encoded == 13  # The one with a NULL element is left to the server.
    with engine.connect() as connection:
        same = "SELECT count(*) FROM doc WHERE tokens_centroid = sqlvec.centroid_codes('fitted', tokens)"
        assert run(connection, same).scalar() == 14


def fill(conn: Connection, places: Any, each: int, noise: float) -> Any:
    rng = np.random.default_rng(0)
    rows = np.repeat(places, each, axis=0) + noise * rng.standard_normal((len(places) * each, 4))
    rng.shuffle(rows)
    for n, some in enumerate(rows.reshape(-1, 5, 4)):
        statement = "INSERT INTO doc (id, tokens) VALUES (:id, CAST(:tokens AS halfvec[]))"
        run(conn, statement, id=n, tokens=to_text(some))
    return rows


@pytest.mark.parametrize("length", [1, 3])
def test_fitted_on_the_server(doc, length):
    places = length * np.vstack([np.eye(4), -np.eye(4)])
    if length == 1:
        fill(doc, places, 25, 0)
    else:
        fill(doc, places, 25, 0.1)
    run(doc, "CALL sqlvec.fit_centroids('fitted', 'doc', 'tokens', 8, 200, seed => 2)")
    encoder, parts = load_centroid(doc, "fitted")
    assert encoder == Centroid(8)
    found = parts["centroid"]
    # One that began between others may stay there: k-means finds a local optimum.
    nearest = np.linalg.norm(found[:, None] - places[None], axis=2).min(axis=1)
    assert (nearest < 0.25 * length).sum() >= 7
    if length == 1:
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)


def test_a_seed_is_a_fit(doc):
    fill(doc, np.random.default_rng(1).standard_normal((20, 4)), 10, 0.3)

    def fitted(name: str, seed: int) -> Any:
        run(
            doc,
            "CALL sqlvec.fit_centroids(:name, 'doc', 'tokens', 5, 100, :seed)",
            name=name,
            seed=seed,
        )
        return load_centroid(doc, name)[1]["centroid"]

    first = fitted("a", 1)
    assert (first == fitted("b", 1)).all()
    assert not (first == fitted("c", 2)).all()
    distinct = "SELECT count(DISTINCT value) FROM sqlvec.encoder_vector WHERE encoder = 'a'"
    assert run(doc, distinct).scalar() == 5


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ("'doc', 'tokens', 20", "has 10 different tokens in the sample, 20 clusters need as many"),
        ("'doc', 'full_tokens', 2", "has 0 different tokens"),
        ("'doc', 'tokens', 257", "2 to 256 clusters"),
        ("'doc', 'tokens', 8, 7", "not 8 in 7"),
        ("'doc', 'embedding'", "vector, not halfvec[] or vector[]"),
        ("'doc', 'none'", 'column "none" of table public.doc does not exist'),
        ("NULL, 'tokens'", "needs a table"),
    ],
)
def test_fits_that_cannot_be(doc, arguments, fragment):
    fill(doc, np.random.default_rng(1).standard_normal((10, 4)), 1, 0)
    fails(doc, f"CALL sqlvec.fit_centroids('x', {arguments})", fragment)


def test_pgvector_in_any_schema(tmp_database):
    dsn = tmp_database(None)
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE SCHEMA extensions")
        connection.execute("CREATE EXTENSION vector SCHEMA extensions")
    engine = create_engine(sqlalchemy_url(dsn), poolclass=NullPool)
    with engine.connect() as connection:
        install(connection)
    with engine.begin() as connection:
        run(connection, "CREATE TABLE public.doc (tokens extensions.halfvec(4)[])")
        run(connection, "SET search_path = pg_temp")
        run(
            connection,
            'INSERT INTO public.doc VALUES (\'{"[1,2,3,4]","[4,3,2,1]","[4,3,-2,1]"}\')',
        )
        run(connection, "CALL sqlvec.fit_centroids('fitted', 'public.doc', 'tokens', 2, 3)")
        run(connection, "CALL sqlvec.add_centroid('public.doc', 'tokens', 'fitted')")
        run(connection, "UPDATE public.doc SET tokens = '{\"[1,2,3,5]\"}'")
        statement = """
            SELECT tokens_centroid = sqlvec.centroid_codes('fitted', tokens),
                sqlvec.maxsim_centroid(tokens_centroid, sqlvec.centroid_table('fitted', tokens)) > 0,
                sqlvec.centroid_decode('fitted', tokens_centroid) IS NOT NULL
            FROM public.doc
        """
        assert run(connection, statement).one() == (True, True, True)
