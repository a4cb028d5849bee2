"""Pooled multi-vectors on the server: equal to numpy, declared, kept, backfilled and composed."""

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

from sqlvec.catalog import install, load_encoder, load_fde, load_pool
from sqlvec.encoders import Pool
from sqlvec.errors import DeclarationError
from sqlvec.types.multivector import from_text, to_text
from tests.db.server import sqlalchemy_url

property_settings = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_numbers = itertools.count()


def run(conn: Connection, statement: str, **values: Any) -> Any:
    return conn.execute(text(statement), values)


def create(conn: Connection, pool: Pool, d: int) -> str:
    name = f"pool {next(_numbers)}"
    run(
        conn,
        "CALL sqlvec.create_encoder(:name, 'pool', :d, :options)",
        name=name,
        d=d,
        options=json.dumps(pool.options()),
    )
    assert load_pool(conn, name) == pool
    return name


def as_array(found: str | None) -> NDArray[np.float16] | None:
    return None if found is None else from_text(found).astype(np.float16)


def pooled(
    conn: Connection, name: str, tokens: Any, weights: Any = None
) -> NDArray[np.float16] | None:
    found = run(
        conn,
        "SELECT sqlvec.pool(:name, CAST(:tokens AS halfvec[]), CAST(:weights AS real[]))::text",
        name=name,
        tokens=tokens if tokens is None or isinstance(tokens, str) else to_text(tokens),
        weights=None if weights is None else [float(weight) for weight in weights],
    ).scalar()
    return as_array(found)


POOLS = [
    Pool(),
    Pool(factor=3, protected=0),
    Pool("kmeans"),
    Pool("kmeans", factor=4, iterations=2, protected=0),
    Pool("kmeans", clusters=5),
    Pool("sequential", factor=3, protected=2),
    Pool("rows", width=3),
    Pool("rows", width=2, height=4, max_rows=3, window=3, protected=1),
    Pool("rows", width=1, max_rows=4, window=5),
    Pool("tiles", tile=4),
    Pool("prefix", tokens=7),
]


NORMALIZED = [
    Pool(normalize=True),
    Pool("kmeans", protected=0, normalize=True),
    Pool("sequential", normalize=True),
    Pool("rows", width=3, window=3, normalize=True),
    Pool("tiles", tile=3, normalize=True),
]


def token_arrays(d: int, most: int) -> st.SearchStrategy[NDArray[np.float16]]:
    """Return tokens of three scales; some repeat, so that there are ties."""
    shape = st.tuples(st.integers(1, most), st.just(d))
    return st.one_of(
        hnp.arrays(np.float16, shape, elements=st.integers(-1, 1)),
        st.sampled_from([3, 0.001, 1000]).flatmap(
            lambda scale: hnp.arrays(
                np.float16, shape, elements=st.floats(-1, 1, width=16).map(lambda v: v * scale)
            )
        ),
    )


@property_settings
@given(st.sampled_from(POOLS), token_arrays(4, 30))
def test_sql_equals_numpy(conn, pool, tokens):
    np.testing.assert_array_equal(
        pooled(conn, create(conn, pool, 4), tokens), pool.document(tokens)
    )


@property_settings
@given(
    st.sampled_from(POOLS),
    hnp.arrays(
        np.float16,
        st.tuples(st.integers(1, 12), st.just(3)),
        elements=st.floats(width=16, allow_nan=False, allow_infinity=False),
    ),
)
def test_tokens_of_very_different_norms(conn, pool, tokens):
    np.testing.assert_array_equal(
        pooled(conn, create(conn, pool, 3), tokens), pool.document(tokens)
    )


@property_settings
@given(st.sampled_from(NORMALIZED), token_arrays(4, 20))
def test_normalized_means_equal_numpy(conn, pool, tokens):
    found, expected = pooled(conn, create(conn, pool, 4), tokens), pool.document(tokens)
    assert found is not None and found.shape == expected.shape
    np.testing.assert_array_max_ulp(found, expected, maxulp=1)


@property_settings
@given(
    st.floats(0.001, 1).map(lambda share: round(share, 3)),
    token_arrays(2, 20).flatmap(
        lambda tokens: st.tuples(
            st.just(tokens),
            hnp.arrays(np.float32, len(tokens), elements=st.floats(-3, 3, width=16)),
        )
    ),
)
def test_top_equals_numpy(conn, share, found):
    tokens, weights = found
    pool = Pool("top", share=share)
    name = create(conn, pool, 2)
    np.testing.assert_array_equal(
        pooled(conn, name, tokens, weights), pool.document(tokens, weights)
    )


@pytest.mark.parametrize("pool", POOLS, ids=repr)
@pytest.mark.parametrize("n", [1, 32, 300])
def test_real_sizes(conn, pool, n):
    tokens = np.random.default_rng(n).standard_normal((n, 128))
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    np.testing.assert_array_equal(
        pooled(conn, create(conn, pool, 128), tokens), pool.document(tokens)
    )


@pytest.mark.parametrize("pool", [*POOLS, Pool("top")], ids=repr)
def test_nothing(conn, pool):
    name = create(conn, pool, 2)
    assert pooled(conn, name, None) is None
    for tokens in ("{}", "{NULL}", "{NULL,NULL}"):
        found = pooled(conn, name, tokens)
        assert found is not None and len(found) == 0
    some = '{"[1,2]","[3,1]",NULL,"[2,2]","[-1,4]"}'
    expected = pooled(conn, name, some.replace("NULL,", ""))
    np.testing.assert_array_equal(pooled(conn, name, some), expected)
    # Subscripts that do not begin at 1, and an array of arrays, are lists of vectors too.
    np.testing.assert_array_equal(pooled(conn, name, "[0:4]=" + some), expected)


def test_weights_stand_beside_nulls(conn):
    name = create(conn, Pool("top", share=0.5), 1)
    found = pooled(conn, name, '{"[1]",NULL,"[2]","[3]"}', [1, 9, 3, 2])
    assert found is not None and found.ravel().tolist() == [2, 3]


def fails(conn: Connection, statement: str, *fragments: str) -> None:
    with pytest.raises(DBAPIError) as caught, conn.begin_nested():
        run(conn, statement)
    for fragment in fragments:
        assert fragment in str(caught.value.orig)


def test_errors_of_pooling(conn):
    name = create(conn, Pool("sequential"), 2)
    top = create(conn, Pool("top"), 2)
    hierarchical = create(conn, Pool(), 2)
    run(conn, "CALL sqlvec.create_encoder('plain', 'halfvec', 2)")
    fails(
        conn,
        f"""SELECT sqlvec.pool('{name}', '{{"[1,2]","[1]"}}')""",
        "takes vectors of 2 dimensions, not 1",
    )
    fails(conn, "SELECT sqlvec.pool('plain', '{}')", 'is of kind "halfvec", not "pool"')
    fails(conn, "SELECT sqlvec.pool('none', '{}')", 'encoder "none" does not exist')
    fails(
        conn,
        f"SELECT sqlvec.encode('{name}', '[1,2]', NULL::halfvec)",
        "multi-vectors",
        "Use sqlvec.pool",
    )
    fails(conn, f"SELECT sqlvec.pool('{name}', '{{}}', '{{1}}')", "takes no weights", '"top" does')
    fails(
        conn,
        f"""SELECT sqlvec.pool('{top}', '{{"[1,2]","[1,2]"}}', '{{1}}')""",
        "a multi-vector of 2 tokens has 1 weights",
    )
    for weight in ("NULL", "NaN"):
        fails(
            conn,
            f"""SELECT sqlvec.pool('{top}', '{{"[1,2]"}}', '{{{weight}}}')""",
            "not NULL or NaN",
        )
    fails(
        conn,
        f"SELECT sqlvec.pool('{hierarchical}', array_fill('[1,2]'::halfvec, ARRAY[4098]))",
        "at most 4096 tokens, not 4097",
        "kmeans, sequential",
    )
    with pytest.raises(DeclarationError, match="load_pool"):
        load_encoder(conn, name)
    with pytest.raises(DeclarationError, match="not 'fde'"):
        load_fde(conn, name)
    with pytest.raises(DeclarationError, match="not 'pool'"):
        load_pool(conn, "plain")


@pytest.fixture
def doc(conn: Connection) -> Connection:
    run(
        conn,
        "CREATE TABLE doc (id bigint PRIMARY KEY, tokens halfvec(4)[], full_tokens vector(4)[], weights real[], embedding vector(4))",
    )
    return conn


def insert(conn: Connection, row: int, tokens: Any) -> None:
    statement = "INSERT INTO doc (id, tokens) VALUES (:id, CAST(:tokens AS halfvec[]))"
    run(conn, statement, id=row, tokens=to_text(tokens))


def column(conn: Connection) -> dict[int, Any]:
    statement = "SELECT id, tokens_pool::text AS code FROM doc ORDER BY id"
    return {row.id: as_array(row.code) for row in run(conn, statement)}


def test_declared(doc):
    run(doc, "INSERT INTO doc VALUES (0, '{\"[1,2,3,4]\"}')")
    run(doc, "CALL sqlvec.add_pooled('doc', 'tokens', options => '{\"factor\": 3}')")
    row = run(
        doc,
        "SELECT source_column, target_column, kind, metric, code_type, maintained, problem FROM sqlvec.derived_column",
    ).one()
    assert row == ("tokens", "tokens_pool", "pool", "inner_product", "halfvec(4)[]", True, None)
    storage = "SELECT attname, attstorage, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'doc'::regclass AND attname LIKE 'tokens%' ORDER BY 1"
    assert run(doc, storage).all() == [
        ("tokens", "e", "halfvec(4)[]"),
        ("tokens_pool", "e", "halfvec(4)[]"),
    ]
    pool = load_pool(doc, run(doc, "SELECT encoder FROM sqlvec.derived_column").scalar())
    assert pool == Pool(factor=3)

    tokens = np.random.default_rng(0).standard_normal((3, 7, 4))
    for n, some in enumerate(tokens, 1):
        insert(doc, n, some)
    run(doc, "INSERT INTO doc VALUES (4, '{}'), (5, NULL), (6, '{NULL}')")
    found = column(doc)
    assert found[0] is None and found[5] is None and len(found[4]) == len(found[6]) == 0
    for n, expected in enumerate(pool.documents(tokens), 1):
        assert len(expected) == 3
        np.testing.assert_array_equal(found[n], expected)
    run(doc, "UPDATE doc SET tokens = (SELECT d.tokens FROM doc AS d WHERE d.id = 2) WHERE id = 1")
    np.testing.assert_array_equal(column(doc)[1], found[2])
    run(doc, "UPDATE doc SET tokens_pool = NULL WHERE id = 2")
    np.testing.assert_array_equal(column(doc)[2], found[2])
    run(doc, "UPDATE doc SET tokens_pool = '{}' WHERE id = 2")
    np.testing.assert_array_equal(column(doc)[2], found[2])
    run(doc, "UPDATE doc SET tokens = NULL WHERE id = 1")
    assert column(doc)[1] is None
    run(doc, "SET LOCAL sqlvec.maintain = off")
    run(doc, "UPDATE doc SET tokens = '{\"[1,0,0,0]\"}' WHERE id = 2")
    assert column(doc)[2] is None
    run(doc, "CALL sqlvec.drop_derived('doc', 'tokens_pool')")
    assert run(doc, "SELECT count(*) FROM sqlvec.encoder").scalar() == 0


@pytest.mark.parametrize("pool", POOLS, ids=repr)
def test_every_method_is_kept(doc, pool):
    options = pool.options()
    method = options.pop("method")
    run(
        doc,
        "CALL sqlvec.add_pooled('doc', 'tokens', :method, options => :options)",
        method=method,
        options=json.dumps({k: v for k, v in options.items() if v is not None}),
    )
    tokens = np.random.default_rng(1).standard_normal((9, 4))
    insert(doc, 1, tokens)
    np.testing.assert_array_equal(column(doc)[1], pool.document(tokens))


def test_an_index_is_not_for_pooled_tokens(doc):
    run(doc, "CALL sqlvec.add_pooled('doc', 'tokens')")
    for name in ("tokens", "tokens_pool"):
        assert run(doc, f"SELECT name FROM sqlvec.plan_index('doc', '{name}')").all() == []
    run(doc, "CALL sqlvec.add_fde('doc', 'tokens', projection => 4)")
    assert run(doc, "SELECT name FROM sqlvec.plan_index('doc', 'tokens')").all() == [
        ("tokens_fde",)
    ]


def test_weights(doc):
    run(
        doc,
        "CALL sqlvec.add_pooled('doc', 'tokens', 'top', options => '{\"share\": 0.5}', weights_column => 'weights')",
    )
    tokens = '{"[1,0,0,0]","[2,0,0,0]","[3,0,0,0]"}'

    def kept() -> dict[int, list[float] | None]:
        return {n: None if x is None else x[:, 0].tolist() for n, x in column(doc).items()}

    for n, weights in enumerate(("{1,3,2}", None)):
        run(
            doc,
            "INSERT INTO doc (id, tokens, weights) VALUES (:id, CAST(:tokens AS halfvec[]), CAST(:weights AS real[]))",
            id=n,
            tokens=tokens,
            weights=weights,
        )
    # Weights without tokens are nothing to encode, and no reason for a warning.
    run(doc, "INSERT INTO doc (id, weights) VALUES (2, '{1,2}')")
    assert kept() == {0: [2, 3], 1: [1, 2, 3], 2: None}
    run(doc, "UPDATE doc SET weights = '{5,4,3}'")
    assert kept() == {0: [1, 2], 1: [1, 2], 2: None}
    fails(doc, "UPDATE doc SET weights = '{1}' WHERE id = 0", "3 tokens has 1 weights")


def test_weights_after_a_rename(doc):
    run(doc, "CALL sqlvec.add_pooled('doc', 'tokens', 'top', weights_column => 'weights')")
    run(doc, "ALTER TABLE doc RENAME COLUMN weights TO attention")
    row = "'{\"[1,0,0,0]\",\"[2,0,0,0]\"}', '{1,2}')"
    run(doc, f"INSERT INTO doc (id, tokens, attention) VALUES (1, {row}")
    run(doc, "CALL sqlvec.repair('doc')")
    run(doc, f"INSERT INTO doc (id, tokens, attention) VALUES (2, {row}")
    assert len(column(doc)[1]) == 2
    np.testing.assert_array_equal(column(doc)[1], column(doc)[2])


def test_columns_of_vector(doc):
    run(doc, "CALL sqlvec.add_pooled('doc', 'full_tokens', 'sequential', 'code')")
    run(doc, "CALL sqlvec.add_pooled('doc', 'tokens', 'sequential')")
    row = '\'{"[1,2,3,4]","[2,0,0,0]","[3,5,0,0]"}\''
    run(doc, f"INSERT INTO doc VALUES (1, {row}, {row})")
    assert run(doc, "SELECT code = tokens_pool AND cardinality(code) = 2 FROM doc").scalar()


SMALL = "repetitions => 3, simhash_bits => 2, projection => 2"


def test_a_pooled_column_is_a_source(doc):
    """The encoding of pooled tokens follows the tokens, in one trigger."""
    run(doc, "CALL sqlvec.add_pooled('doc', 'tokens', 'sequential')")
    run(doc, f"CALL sqlvec.add_fde('doc', 'tokens_pool', {SMALL})")
    run(doc, "CALL sqlvec.add_pooled('doc', 'tokens_pool', 'prefix', options => '{\"tokens\": 2}')")
    encoder = run(doc, "SELECT encoder FROM sqlvec.derived_column WHERE kind = 'fde'").scalar()
    agree = f"""
        SELECT bool_and(tokens_pool_fde = sqlvec.fde_document('{encoder}', tokens_pool)
                        AND tokens_pool_pool = tokens_pool[\\:2]) FROM doc"""
    rng = np.random.default_rng(0)
    for n in range(3):
        insert(doc, n, rng.standard_normal((9, 4)))
    assert run(doc, agree).scalar()
    run(doc, "UPDATE doc SET tokens = tokens[3\\:] WHERE id = 1")
    assert run(doc, agree).scalar()
    assert [len(x) for x in column(doc).values()] == [5, 4, 5]
    run(doc, "SET LOCAL sqlvec.maintain = off")
    run(doc, "UPDATE doc SET tokens = tokens[3\\:] WHERE id = 1")
    statement = "SELECT tokens_pool IS NULL AND tokens_pool_fde IS NULL FROM doc WHERE id = 1"
    assert run(doc, statement).scalar()
    run(doc, "SET LOCAL sqlvec.maintain = on")
    run(doc, "CALL sqlvec.drop_derived('doc', 'tokens_pool')")
    problems = "SELECT problem FROM sqlvec.derived_column ORDER BY target_column"
    assert all("is gone" in problem for problem in run(doc, problems).scalars())
    insert(doc, 7, rng.standard_normal((9, 4)))
    run(doc, "CALL sqlvec.drop_derived('doc', 'tokens_pool_fde')")
    run(doc, "CALL sqlvec.drop_derived('doc', 'tokens_pool_pool')")
    assert run(doc, "SELECT count(*) FROM sqlvec.encoder").scalar() == 0


@pytest.mark.parametrize("maintain", ["on", "off"])
def test_a_pooled_column_is_a_source_on_the_slow_path(doc, maintain):
    run(doc, "CALL sqlvec.add_pooled('doc', 'tokens', 'sequential')")
    run(doc, f"CALL sqlvec.add_fde('doc', 'tokens_pool', {SMALL})")
    rng = np.random.default_rng(0)
    for n in range(2):
        insert(doc, n, rng.standard_normal((9, 4)))
    run(doc, "ALTER TABLE doc RENAME COLUMN tokens TO words")
    run(doc, f"SET LOCAL sqlvec.maintain = {maintain}")
    run(doc, "UPDATE doc SET words = words[3\\:] WHERE id = 1")
    run(doc, "INSERT INTO doc (id, words) SELECT 2, words FROM doc WHERE id = 1")
    statement = """
        SELECT d.id, tokens_pool IS NULL AND tokens_pool_fde IS NULL,
               tokens_pool_fde = sqlvec.fde_document(c.encoder, tokens_pool)
        FROM doc AS d, sqlvec.derived_column AS c WHERE c.kind = 'fde' ORDER BY 1"""
    changed = (False, True) if maintain == "on" else (True, None)
    assert run(doc, statement).all() == [(0, False, True), (1, *changed), (2, *changed)]


def test_a_source_does_not_become_a_target(doc):
    """Codes are made in the order of their declarations: the encoding would come too early."""
    run(doc, "ALTER TABLE doc ADD COLUMN few halfvec(4)[]")
    run(doc, f"CALL sqlvec.add_fde('doc', 'few', {SMALL})")
    fails(
        doc,
        "CALL sqlvec.add_pooled('doc', 'tokens', target => 'few')",
        'column "few" of table public.doc cannot hold codes: "few_fde" is derived from it already',
        "CALL sqlvec.drop_derived('public.doc', 'few_fde') first",
    )


def test_backfill(autocommit):
    conn = autocommit
    run(conn, "CREATE TABLE doc (id int PRIMARY KEY, tokens halfvec(4)[], weights real[])")
    rng = np.random.default_rng(5)
    for n in range(25):
        insert(conn, n, rng.standard_normal((n % 4 + 2, 4)))
    run(conn, "UPDATE doc SET weights = ARRAY(SELECT random()::real FROM unnest(tokens))")
    run(conn, "INSERT INTO doc VALUES (100, NULL, '{1}'), (101, '{}', NULL)")
    run(conn, "CALL sqlvec.add_pooled('doc', 'tokens')")
    run(conn, f"CALL sqlvec.add_fde('doc', 'tokens_pool', {SMALL})")
    run(conn, "CALL sqlvec.add_pooled('doc', 'tokens', 'top', 'best', weights_column => 'weights')")
    counts = "SELECT count(tokens_pool), count(tokens_pool_fde), count(best) FROM doc"
    assert run(conn, counts).one() == (0, 0, 0)
    run(conn, "CALL sqlvec.backfill('doc', batch => 10)")
    assert run(conn, counts).one() == (26, 26, 26)
    names = dict(run(conn, "SELECT target_column, encoder FROM sqlvec.derived_column").all())
    statement = """
        SELECT count(*) FROM doc
        WHERE tokens_pool = sqlvec.pool(:pool, tokens) AND best = sqlvec.pool(:best, tokens, weights)
          AND tokens_pool_fde = coalesce(sqlvec.fde_document(:fde, tokens_pool), array_fill(0, ARRAY[24])::halfvec)"""
    values = {"pool": names["tokens_pool"], "best": names["best"], "fde": names["tokens_pool_fde"]}
    assert run(conn, statement, **values).scalar() == 26
    run(conn, "CALL sqlvec.backfill('doc', verify => true)")
    run(conn, "CALL sqlvec.check()")


def test_backfill_of_a_source_leaves_no_stale_encoding(autocommit):
    conn = autocommit
    run(conn, "CREATE TABLE doc (id int PRIMARY KEY, tokens halfvec(4)[], few halfvec(4)[])")
    row = '\'{"[1,2,3,4]","[2,0,0,0]","[3,5,0,0]"}\''
    run(conn, f"INSERT INTO doc VALUES (1, {row}, '{{}}')")
    run(conn, "CALL sqlvec.add_pooled('doc', 'tokens', target => 'few')")
    run(conn, f"CALL sqlvec.add_fde('doc', 'few', {SMALL})")
    run(conn, "CALL sqlvec.backfill('doc', 'few_fde')")
    zeros = "SELECT few_fde = array_fill(0, ARRAY[24])::halfvec FROM doc"
    assert run(conn, zeros).scalar() is True
    # It had values of unknown origin, which are compared now.
    run(conn, "CALL sqlvec.backfill('doc', 'few')")
    assert run(conn, "SELECT cardinality(few) FROM doc").scalar() == 2
    assert run(conn, "SELECT few_fde IS NULL FROM doc").scalar()
    run(conn, "CALL sqlvec.backfill('doc')")
    assert run(conn, zeros).scalar() is False


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ("NULL", ["needs a table, a column and a method"]),
        ("'none'", ['column "none" of table public.doc does not exist']),
        ("'embedding'", ["vector, not halfvec[] or vector[]"]),
        ("'tokens', 'average'", ['unknown method of pooling "average"', "hierarchical, kmeans"]),
        (
            "'tokens', 'x''); DROP TABLE doc; --'",
            ['unknown method of pooling "x\'); DROP TABLE doc; --"'],
        ),
        ("'tokens', target => 'tokens'", ["cannot hold its own code"]),
        ("'tokens', target => 'embedding'", ["vector(4), encoder", "makes halfvec(4)[]"]),
        ("'tokens', target => 'full_tokens'", ["vector(4)[], encoder", "makes halfvec(4)[]"]),
        ("'tokens', 'top'", ['method "top" needs a column of weights', "weights_column =>"]),
        ("'tokens', 'top', weights_column => 'none'", ['column "none" of table public.doc']),
        ("'tokens', 'top', weights_column => 'id'", ["of type bigint, not real[]"]),
        ("'tokens', weights_column => 'weights'", ['"hierarchical" takes no weights']),
        ("'tokens', options => '[1]'", ["a JSON object, not array"]),
        ("'tokens', options => '{\"method\": \"prefix\"}'", ["an argument of add_pooled"]),
        ("'tokens', options => '{\"width\": 3}'", ['no option "width"', "options are: factor, "]),
        (
            "'tokens', options => '{\"factor\": 1}'",
            ['"factor" is an integer from 2 to 1000, not 1'],
        ),
        ("'tokens', options => '{\"factor\": 2.5}'", ['"factor" is an integer from 2 to 1000']),
        ("'tokens', options => '{\"factor\": null}'", ['"factor" is an integer from 2 to 1000']),
        ("'tokens', options => '{\"factor\": \"2; DROP TABLE doc\"}'", ['"factor" is an integer']),
        ("'tokens', options => '{\"normalize\": 1}'", ['"normalize" is true or false, not 1']),
        ("'tokens', options => '{\"protected\": -1}'", ["from 0 to 1000, not -1"]),
        ("'tokens', 'kmeans', options => '{\"iterations\": 101}'", ["from 1 to 100, not 101"]),
        ("'tokens', 'kmeans', options => '{\"clusters\": 4, \"factor\": 2}'", ["not both"]),
        ("'tokens', 'kmeans', options => '{\"clusters\": 1}'", ["it is more than 1, not 1"]),
        ("'tokens', 'rows', options => '{\"window\": 2}'", ["an odd number of rows, not 2"]),
        ("'tokens', 'rows', options => '{\"width\": 0}'", ["from 1 to 1000, not 0"]),
        ("'tokens', 'tiles', options => '{\"tile\": 1}'", ["from 2 to 1000, not 1"]),
        ("'tokens', 'prefix', options => '{\"tokens\": 10001}'", ["from 1 to 10000"]),
        ("'tokens', 'top', options => '{\"share\": 1.5}'", ["from 0.001 to 1, not 1.5"]),
        ("'tokens', 'top', options => '{\"share\": \"1\"}'", ["from 0.001 to 1"]),
    ],
)
def test_declarations_that_do_not_fit(doc, arguments, fragments):
    fails(doc, f"CALL sqlvec.add_pooled('doc', {arguments})", *fragments)


def test_the_method_has_a_default(conn):
    for options in ("{}", '{"method": null}', '{"factor": 2}'):
        name = f"pool {next(_numbers)}"
        run(
            conn,
            "CALL sqlvec.create_encoder(:name, 'pool', 4, :options)",
            name=name,
            options=options,
        )
        assert load_pool(conn, name) == Pool()


def test_kinds_do_not_mix(doc):
    fails(
        doc,
        "CALL sqlvec.add_quantized('doc', 'embedding', 'pool')",
        "encodes multi-vectors",
        "add_pooled",
    )


def test_whatever_the_catalog_says_is_a_number(conn, doc):
    run(doc, "CALL sqlvec.add_pooled('doc', 'tokens')")
    for options in (
        '{"method": "sequential", "factor": "2); DROP TABLE doc; --", "protected": 0}',
        '{"method": "top", "share": "1); DROP TABLE doc; --"}',
    ):
        with pytest.raises(DBAPIError, match="invalid input syntax"), conn.begin_nested():
            run(doc, "UPDATE sqlvec.encoder SET options = :options", options=options)
            run(doc, "CALL sqlvec.repair('doc')")
    with pytest.raises(DBAPIError, match="case not found"), conn.begin_nested():
        run(doc, 'UPDATE sqlvec.encoder SET options = \'{"method": "x); --"}\'')
        run(doc, "CALL sqlvec.repair('doc')")


def test_a_column_without_dimensions(conn):
    run(conn, "CREATE TABLE doc (tokens halfvec[])")
    fails(conn, "CALL sqlvec.add_pooled('doc', 'tokens')", "names no dimensions")
    run(conn, "INSERT INTO doc VALUES ('{\"[1,2,3,4]\"}')")
    run(conn, "CALL sqlvec.add_pooled('doc', 'tokens', 'prefix')")
    fails(
        conn,
        "INSERT INTO doc VALUES ('{\"[1,2,3]\"}')",
        'takes vectors of 4 dimensions for its derived column "tokens_pool", not 3',
    )
    fails(conn, 'INSERT INTO doc VALUES (\'{"[1,2,3,4]","[1,2,3]"}\')', "expected 4 dimensions")


def test_pgvector_in_any_schema(tmp_database):
    dsn = tmp_database(None)
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE SCHEMA extensions")
        connection.execute("CREATE EXTENSION vector SCHEMA extensions")
    engine = create_engine(sqlalchemy_url(dsn), poolclass=NullPool)
    with engine.connect() as connection:
        install(connection)
    with engine.begin() as connection:
        run(connection, "CREATE TABLE public.doc (tokens extensions.halfvec(2)[], weights real[])")
        run(connection, "SET search_path = pg_temp")
        for n, pool in enumerate([*POOLS, Pool("top")]):
            options = pool.options()
            run(
                connection,
                "CALL sqlvec.add_pooled('public.doc', 'tokens', :method, :target, :options, :weights)",
                method=options.pop("method"),
                target=f"code {n}",
                options=json.dumps(
                    {key: value for key, value in options.items() if value is not None}
                ),
                weights="weights" if pool.method == "top" else None,
            )
        run(connection, 'INSERT INTO public.doc VALUES (\'{"[1,2]","[2,1]"}\', NULL)')
        tokens = '{"[1,2]","[2,1]","[3,4]","[1,0]"}'
        run(connection, f"UPDATE public.doc SET tokens = '{tokens}', weights = '{{1,2,3,4}}'")
        for n, pool in enumerate([*POOLS, Pool("top")]):
            found = run(connection, f'SELECT "code {n}"::text FROM public.doc').scalar()
            weights = [1, 2, 3, 4] if pool.method == "top" else None
            np.testing.assert_array_equal(
                as_array(found), pool.document(from_text(tokens), weights)
            )
