"""Fixed dimensional encodings on the server: equal to numpy, declared, kept and backfilled."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlvec.catalog import install, load_encoder, load_fde
from sqlvec.encoders import FDE
from sqlvec.errors import DeclarationError
from sqlvec.types.multivector import to_text
from tests.db.server import sqlalchemy_url

property_settings = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_numbers = itertools.count()


def run(conn: Connection, statement: str, **values: Any) -> Any:
    return conn.execute(text(statement), values)


def create(conn: Connection, fde: FDE, d: int) -> tuple[str, Any]:
    name = f"fde {next(_numbers)}"
    run(
        conn,
        "CALL sqlvec.create_encoder(:name, 'fde', :d, :options)",
        name=name,
        d=d,
        options=json.dumps(fde.options()),
    )
    loaded, parts = load_fde(conn, name)
    assert loaded == fde
    return name, parts


def code(conn: Connection, side: str, name: str, tokens: Any) -> NDArray[np.float16] | None:
    found = run(
        conn,
        f"SELECT sqlvec.fde_{side}(:name, CAST(:tokens AS halfvec[]))::vector::real[]",
        name=name,
        tokens=tokens if tokens is None or isinstance(tokens, str) else to_text(tokens),
    ).scalar()
    return None if found is None else np.array(found, dtype=np.float16)


def assert_equal_codes(conn: Connection, name: str, fde: FDE, parts: Any, tokens: Any) -> None:
    for side, expected in (
        ("document", fde.document(tokens, parts)),
        ("query", fde.query(tokens, parts)),
    ):
        found = code(conn, side, name, tokens)
        assert found is not None and found.shape == expected.shape
        np.testing.assert_array_max_ulp(found, expected, maxulp=1)


SETTINGS = [FDE(4, 3, 2), FDE(2, 0, 3), FDE(3, 2, 5), FDE(5, 4, 3, 37, 11), FDE(1, 1, 1)]
SIGNS = [FDE(**each.options() | {"bits": True}) for each in SETTINGS]


def signs(conn: Connection, side: str, name: str, tokens: Any) -> NDArray[np.bool_]:
    found = run(
        conn,
        f"SELECT CAST(sqlvec.fde_{side}_bits(:name, CAST(:tokens AS halfvec[])) AS text)",
        name=name,
        tokens=to_text(tokens),
    ).scalar()
    bits: NDArray[np.bool_] = np.array(list(found)) == "1"
    return bits


@property_settings
@given(
    st.sampled_from([*SIGNS, FDE(550, 2, 14, bits=True)]),
    hnp.arrays(
        np.float16, st.tuples(st.integers(1, 12), st.just(14)), elements=st.floats(-1, 1, width=16)
    ),
)
def test_signs_equal_numpy(conn, fde, tokens):
    # The last of the settings has more values than a vector can hold.
    name, parts = create(conn, fde, 14)
    for side, expected in (
        ("document", fde.document(tokens, parts)),
        ("query", fde.query(tokens, parts)),
    ):
        np.testing.assert_array_equal(signs(conn, side, name, tokens), expected)


def test_signs_are_those_of_the_values(conn):
    tokens = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float16)
    _, parts = create(conn, FDE(6, 3, 4), 8)
    values = FDE(6, 3, 4).query(tokens[:3], parts)
    assert (values == 0).any()
    query = FDE(6, 3, 4, bits=True).query(tokens[:3], parts)
    np.testing.assert_array_equal(query, np.concatenate([values > 0, values < 0]))
    # Hamming distance counts disagreements of the query's signs twice and its zeros once.
    document = FDE(6, 3, 4, bits=True).document(tokens, parts)
    asked = np.sign(values)
    stored = np.sign(FDE(6, 3, 4).document(tokens, parts))
    disagree = (asked * stored < 0).sum()
    assert (query != document).sum() == 2 * disagree + (asked == 0).sum()


def test_the_type_of_the_codes_is_told_apart(conn):
    name, _ = create(conn, FDE(4, 3, 2, bits=True), 5)
    tokens = np.ones((1, 5))
    with pytest.raises(DBAPIError, match="fde_document_bits"), conn.begin_nested():
        code(conn, "document", name, tokens)
    plain, _ = create(conn, FDE(4, 3, 2), 5)
    with pytest.raises(DBAPIError, match="Use sqlvec.fde_document or"), conn.begin_nested():
        signs(conn, "query", plain, tokens)


def test_signs_too_many_for_an_index_are_refused(conn):
    options = {"repetitions": 40, "simhash_bits": 6, "projection": 16, "bits": True}
    with pytest.raises(DBAPIError, match="an index on its signs takes 32000") as refused:
        run(
            conn,
            "CALL sqlvec.create_encoder('x', 'fde', 64, :options)",
            options=json.dumps(options),
        )
    assert "repetitions => 31" in str(refused.value)


@property_settings
@given(
    st.sampled_from(SETTINGS),
    st.integers(-(10**17), 10**17),
    st.sampled_from([3, 0.001, 1000]).flatmap(
        lambda most: hnp.arrays(
            np.float16,
            st.tuples(st.integers(1, 30), st.just(5)),
            elements=st.floats(-1, 1, width=16).map(lambda v: v * most),
        )
    ),
)
def test_sql_equals_numpy(conn, fde, seed, tokens):
    fde = FDE(**fde.options() | {"seed": seed})
    name, parts = create(conn, fde, 5)
    assert_equal_codes(conn, name, fde, parts, tokens)


@property_settings
@given(
    hnp.arrays(
        np.float16,
        st.tuples(st.integers(1, 8), st.just(4)),
        elements=st.floats(width=16, allow_nan=False, allow_infinity=False).map(lambda v: v / 16),
    )
)
def test_tokens_of_very_different_norms(conn, tokens):
    fde = FDE(2, 3, 2)
    name, parts = create(conn, fde, 4)
    assert_equal_codes(conn, name, fde, parts, tokens)


@pytest.mark.parametrize("n", [1, 32, 3000])
def test_real_sizes(conn, n):
    name, parts = create(conn, FDE(), 128)
    tokens = np.random.default_rng(n).standard_normal((n, 128))
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    assert_equal_codes(conn, name, FDE(), parts, tokens)


def test_no_row_waits_for_a_compiler(conn):
    """The server of this run may have no JIT, which this query would ask for at every call."""
    settings = "SELECT proconfig FROM pg_proc WHERE proname = '_fde_values'"
    assert "jit=off" in conn.exec_driver_sql(settings).scalar_one()


def test_the_matrices(conn):
    _, parts = create(conn, FDE(20, 4, 8, 1000), 64)
    planes = parts["hyperplane"]
    assert planes.shape == (80, 64)
    np.testing.assert_allclose(np.linalg.norm(planes, axis=1), 4000, rtol=0.01)
    cosines = (planes @ planes.T)[np.triu_indices(80, 1)] / 4000**2
    assert abs(cosines.mean()) < 0.02 and cosines.std() == pytest.approx(64**-0.5, rel=0.1)
    assert parts["sign"].shape == (160, 64) and set(parts["sign"].ravel()) == {-1, 1}
    assert abs(parts["sign"].mean()) < 0.05
    slots = np.abs(parts["slot"])
    assert slots.shape == (20, 128) and slots.min() >= 1 and slots.max() <= 1000
    assert len(np.unique(slots)) > 850
    _, others = create(conn, FDE(20, 4, 8, 1000, seed=1), 64)
    assert (others["sign"] == parts["sign"]).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("side", ["document", "query"])
def test_nothing(conn, side):
    name, _ = create(conn, FDE(2, 2, 2), 2)
    for tokens in (None, "{}", "{NULL}"):
        assert code(conn, side, name, tokens) is None
    some = code(conn, side, name, '{"[1,2]",NULL}')
    assert some is not None and (some == code(conn, side, name, '{"[1,2]"}')).all()
    run(conn, "DELETE FROM sqlvec.encoder_vector WHERE encoder = :name", name=name)
    assert code(conn, side, name, '{"[1,2]"}') is None


def fails(conn: Connection, statement: str, *fragments: str) -> None:
    with pytest.raises(DBAPIError) as caught, conn.begin_nested():
        run(conn, statement)
    for fragment in fragments:
        assert fragment in str(caught.value.orig)


def test_errors_of_encoding(conn):
    name, _ = create(conn, FDE(2, 2, 2), 2)
    run(conn, "CALL sqlvec.create_encoder('plain', 'halfvec', 2)")
    fails(
        conn,
        f"""SELECT sqlvec.fde_query('{name}', '{{"[1,2]","[1]"}}')""",
        "takes vectors of 2 dimensions, not 1",
    )
    fails(
        conn,
        f"""SELECT sqlvec.fde_query('{name}', '{{"[60000,60000]","[60000,60000]"}}')""",
        "out of range",
    )
    fails(
        conn, "SELECT sqlvec.fde_query('plain', '{\"[1,2]\"}')", 'is of kind "halfvec", not "fde"'
    )
    fails(conn, "SELECT sqlvec.fde_query('none', '{\"[1,2]\"}')", 'encoder "none" does not exist')
    fails(
        conn,
        f"SELECT sqlvec.encode('{name}', '[1,2]', NULL::halfvec)",
        "multi-vectors",
        "fde_document",
    )
    with pytest.raises(DeclarationError, match="load_fde"):
        load_encoder(conn, name)
    with pytest.raises(DeclarationError, match="not 'fde'"):
        load_fde(conn, "plain")


@pytest.fixture
def doc(conn: Connection) -> Connection:
    run(
        conn,
        "CREATE TABLE doc (id bigint PRIMARY KEY, tokens halfvec(4)[], full_tokens vector(4)[], embedding vector(4))",
    )
    return conn


SMALL = "repetitions => 3, simhash_bits => 2, projection => 2"


def test_declared(doc):
    run(doc, "INSERT INTO doc VALUES (0, '{\"[1,2,3,4]\"}')")
    run(doc, f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL}, seed => 7)")
    row = run(
        doc,
        "SELECT source_column, target_column, kind, metric, code_type, maintained, problem FROM sqlvec.derived_column",
    ).one()
    assert row == ("tokens", "tokens_fde", "fde", "inner_product", "halfvec(24)", True, None)
    storage = "SELECT attstorage FROM pg_attribute WHERE attrelid = 'doc'::regclass AND attname = 'tokens'"
    assert run(doc, storage).scalar() == "e"
    encoder = run(doc, "SELECT encoder FROM sqlvec.derived_column").scalar()
    fde, parts = load_fde(doc, encoder)
    assert fde == FDE(3, 2, 2, None, 7)

    tokens = np.random.default_rng(0).standard_normal((3, 6, 4))
    for n, some in enumerate(tokens, 1):
        run(
            doc,
            "INSERT INTO doc (id, tokens) VALUES (:id, CAST(:tokens AS halfvec[]))",
            id=n,
            tokens=to_text(some),
        )
    run(doc, "INSERT INTO doc VALUES (4, '{}'), (5, NULL)")

    def codes() -> dict[int, Any]:
        return {
            row.id: row.code
            for row in run(doc, "SELECT id, tokens_fde::vector::real[] AS code FROM doc")
        }

    found = codes()
    assert [found[0], found[4], found[5]] == [None, [0] * 24, None]
    made = np.array([found[n] for n in (1, 2, 3)], dtype=np.float16)
    np.testing.assert_array_max_ulp(made, fde.documents(tokens, parts), maxulp=1)
    run(doc, "UPDATE doc SET tokens = (SELECT d.tokens FROM doc AS d WHERE d.id = 2) WHERE id = 1")
    assert codes()[1] == found[2]
    run(doc, "UPDATE doc SET tokens = NULL WHERE id = 1")
    assert codes()[1] is None
    run(doc, "SET LOCAL sqlvec.maintain = off")
    run(doc, "UPDATE doc SET tokens = '{\"[1,0,0,0]\"}' WHERE id = 2")
    assert codes()[2] is None


def test_an_index_finds_what_maxsim_finds(doc):
    run(doc, "CALL sqlvec.add_fde('doc', 'tokens', projection => 4)")
    rng = np.random.default_rng(3)
    tokens = rng.standard_normal((40, 5, 4))
    tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    for n, some in enumerate(tokens):
        run(
            doc,
            "INSERT INTO doc (id, tokens) VALUES (:id, CAST(:tokens AS halfvec[]))",
            id=n,
            tokens=to_text(some),
        )
    run(doc, "CREATE INDEX ON doc USING hnsw (tokens_fde halfvec_ip_ops)")
    statement = """
        SELECT (array_agg(id ORDER BY tokens_fde <#> sqlvec.fde_query((SELECT encoder FROM sqlvec.derived_column), q)))[1\\:8]
            @> (array_agg(id ORDER BY sqlvec.maxsim(tokens, q) DESC))[1\\:1]
        FROM doc, CAST(:query AS halfvec[]) AS q
    """
    assert all(run(doc, statement, query=to_text(some[:3])).scalar() for some in tokens[:10])


def test_the_plan_is_an_index_by_inner_product(doc):
    run(doc, f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    for column in ("tokens", "tokens_fde"):
        plans = run(
            doc, f"SELECT opclass, statement FROM sqlvec.plan_index('doc', '{column}')"
        ).all()
        assert plans[0][0] == "halfvec_ip_ops"
        assert not [plan for plan in plans if plan[0].startswith("_")]
        run(doc, plans[0][1].replace(" CONCURRENTLY", "").replace("INDEX ix", f"INDEX {column}_ix"))
    assert len(run(doc, "SELECT FROM sqlvec.plan_index('doc', 'full_tokens')").all()) == 0


def test_the_slow_path_after_a_rename(doc):
    run(doc, f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    run(doc, 'INSERT INTO doc VALUES (1, \'{"[1,2,3,4]","[4,3,2,1]"}\')')
    run(doc, "ALTER TABLE doc RENAME COLUMN tokens TO words")
    run(doc, 'INSERT INTO doc VALUES (2, \'{"[1,2,3,4]","[4,3,2,1]"}\')')
    assert run(doc, "SELECT count(DISTINCT tokens_fde), count(tokens_fde) FROM doc").one() == (1, 2)
    run(doc, "CALL sqlvec.repair('doc')")
    run(doc, 'INSERT INTO doc VALUES (3, \'{"[1,2,3,4]","[4,3,2,1]"}\')')
    assert run(doc, "SELECT count(DISTINCT tokens_fde), count(tokens_fde) FROM doc").one() == (1, 3)


def test_columns_of_vector(doc):
    run(doc, f"CALL sqlvec.add_fde('doc', 'full_tokens', target => 'code', {SMALL})")
    run(doc, f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    run(doc, "INSERT INTO doc VALUES (1, '{\"[1,2,3,4]\"}', '{\"[1,2,3,4]\"}')")
    assert run(doc, "SELECT code = tokens_fde FROM doc").scalar()
    run(doc, "CALL sqlvec.drop_derived('doc', 'code')")
    assert run(doc, "SELECT count(*) FROM sqlvec.encoder").scalar() == 1


def test_a_column_without_dimensions(conn):
    run(conn, "CREATE TABLE doc (tokens halfvec[])")
    fails(
        conn, "CALL sqlvec.add_fde('doc', 'tokens')", "names no dimensions", "TYPE halfvec(...)[];"
    )
    run(conn, "INSERT INTO doc VALUES ('{\"[1,2,3,4]\"}')")
    run(conn, f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    fails(
        conn,
        "INSERT INTO doc VALUES ('{\"[1,2,3]\"}')",
        'column "tokens" of table public.doc takes vectors of 4 dimensions for its derived column "tokens_fde", not 3',
    )


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (
            "'tokens', simhash_bits => 5, projection => 4, repetitions => 40",
            [
                "has 5120 dimensions",
                "takes 4000",
                "repetitions => 31, simhash_bits => 4, projection => 3, final_dimensions => 4000",
            ],
        ),
        (
            "'tokens', projection => 4, repetitions => 4000",
            ["has 256000 dimensions", "repetitions => 62, final_dimensions => 4000"],
        ),
        ("'tokens', projection => 8", ["at most the dimensions of the vectors, 4, not 8"]),
        ("'tokens', simhash_bits => 13, projection => 4", ["from 0 to 12, not 13"]),
        (
            "'tokens', repetitions => 0, projection => 4",
            ['"repetitions" is an integer from 1 to 4000, not 0'],
        ),
        ("'tokens', projection => NULL", ['"projection" is an integer from 1 to 4000, not null']),
        (
            "'tokens', final_dimensions => 4001, projection => 4",
            ['"final_dimensions" is an integer from 1 to 4000'],
        ),
        ("'tokens', final_dimensions => 1280, projection => 4", ["less than the 1280 dimensions"]),
        (
            "'tokens', simhash_bits => 12, projection => 4",
            ["at most 16000 dimensions per repetition"],
        ),
        ("'embedding', projection => 4", ["vector, not halfvec[] or vector[]"]),
        ("'none', projection => 4", ['column "none" of table public.doc does not exist']),
        ("NULL", ["needs a table and a column"]),
        ("'tokens', target => 'tokens', projection => 4", ["cannot hold its own code"]),
        ("'tokens', target => 'embedding', projection => 4", ["vector(4), encoder"]),
    ],
)
def test_declarations_that_do_not_fit(doc, arguments, fragments):
    fails(doc, f"CALL sqlvec.add_fde('doc', {arguments})", *fragments)


def test_kinds_do_not_mix(doc):
    fails(
        doc,
        "CALL sqlvec.add_quantized('doc', 'embedding', 'fde')",
        "encodes multi-vectors",
        "add_fde",
    )
    fails(
        doc,
        "CALL sqlvec.add_quantized('doc', 'tokens', 'binary')",
        "halfvec[], not vector or halfvec",
    )


def test_backfill(autocommit):
    run(autocommit, "CREATE TABLE doc (id int PRIMARY KEY, tokens halfvec(4)[])")
    rng = np.random.default_rng(5)
    for n in range(25):
        tokens = rng.standard_normal((n % 4 + 1, 4))
        run(
            autocommit,
            "INSERT INTO doc VALUES (:id, CAST(:tokens AS halfvec[]))",
            id=n,
            tokens=to_text(tokens),
        )
    run(autocommit, "INSERT INTO doc VALUES (100, NULL)")
    run(autocommit, f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    assert run(autocommit, "SELECT count(tokens_fde) FROM doc").scalar() == 0
    run(autocommit, "CALL sqlvec.backfill('doc', batch => 10)")
    encoder = run(autocommit, "SELECT encoder FROM sqlvec.derived_column").scalar()
    statement = "SELECT count(*) FROM doc WHERE tokens_fde = sqlvec.fde_document(:encoder, tokens)"
    assert run(autocommit, statement, encoder=encoder).scalar() == 25
    run(autocommit, "CALL sqlvec.backfill('doc', verify => true)")
    run(autocommit, "CALL sqlvec.check()")


def test_backfill_of_empty_multivectors(autocommit):
    run(autocommit, "CREATE TABLE doc (id int PRIMARY KEY, tokens halfvec(4)[])")
    run(autocommit, "INSERT INTO doc VALUES (1, '{}'), (2, '{\"[1,2,3,4]\"}')")
    run(autocommit, f"CALL sqlvec.add_fde('doc', 'tokens', {SMALL})")
    run(autocommit, "CALL sqlvec.backfill('doc')")
    run(autocommit, "INSERT INTO doc VALUES (3, '{NULL}')")
    zeros = "SELECT id FROM doc WHERE tokens_fde = array_fill(0, ARRAY[24])::halfvec ORDER BY id"
    assert run(autocommit, zeros).scalars().all() == [1, 3]


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
        run(connection, f"CALL sqlvec.add_fde('public.doc', 'tokens', {SMALL})")
        run(connection, "INSERT INTO public.doc VALUES ('{\"[1,2,3,4]\"}')")
        run(connection, "UPDATE public.doc SET tokens = '{\"[1,2,3,5]\"}'")
        name = run(connection, "SELECT encoder FROM sqlvec.derived_column").scalar()
        statement = (
            "SELECT tokens_fde::text = sqlvec.fde_document(:name, tokens)::text FROM public.doc"
        )
        assert run(connection, statement, name=name).scalar()
