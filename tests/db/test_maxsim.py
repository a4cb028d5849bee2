"""MaxSim against brute force in numpy, and what it says of nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlvec import catalog
from tests.db import vectors
from tests.db.server import sqlalchemy_url

property_settings = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
Tokens = NDArray[np.float32]


def literal(tokens: Any) -> str:
    """Return the input text of an array of vectors."""
    return "{" + ",".join(f'"{vectors.text(row)}"' for row in tokens) + "}"


def score(conn: Connection, name: str, tokens: Any, query: Any, *more: Any) -> float | None:
    element = "vector" if name == "maxsim_vector" else "halfvec"
    arguments = "".join(f", :more{n}" for n in range(len(more)))
    found: float | None = conn.scalar(
        text(
            f"SELECT sqlvec.{name}(CAST(:tokens AS {element}[]), CAST(:query AS {element}[]){arguments})"
        ),
        {"tokens": tokens, "query": query} | {f"more{n}": value for n, value in enumerate(more)},
    )
    return found


def brute(tokens: Tokens, query: Tokens) -> float:
    products = query.astype(np.float64) @ tokens.astype(np.float64).T
    return float(products.max(axis=1).sum())


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tokens, Tokens]:
    d = draw(st.integers(1, 9))
    numbers = st.floats(-4, 4, width=16)
    return (
        draw(hnp.arrays(np.float32, (draw(st.integers(1, 12)), d), elements=numbers)),
        draw(hnp.arrays(np.float32, (draw(st.integers(1, 6)), d), elements=numbers)),
    )


@property_settings
@given(pairs())
@pytest.mark.parametrize("name", ["maxsim", "maxsim_vector"])
def test_brute_force(conn, name, pair):
    tokens, query = pair
    found = score(conn, name, literal(tokens), literal(query))
    assert found == pytest.approx(brute(tokens, query), rel=1e-5, abs=1e-4)


@property_settings
@given(pairs())
def test_mean(conn, pair):
    tokens, query = pair
    found = score(conn, "maxsim_mean", literal(tokens), literal(query))
    assert found == pytest.approx(brute(tokens, query) / len(query), rel=1e-5, abs=1e-4)


@property_settings
@given(pairs(), st.none() | st.integers(1, 14), st.none() | st.integers(1, 14))
def test_nested(conn, pair, query_tokens, document_tokens):
    tokens, query = pair
    found = score(
        conn, "maxsim_nested", literal(tokens), literal(query), query_tokens, document_tokens
    )
    expected = brute(tokens[:document_tokens], query[:query_tokens])
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)


@property_settings
@given(
    st.integers(1, 70).flatmap(
        lambda d: st.tuples(
            hnp.arrays(np.bool_, st.tuples(st.integers(1, 8), st.just(d))),
            hnp.arrays(np.bool_, st.tuples(st.integers(1, 5), st.just(d))),
        )
    )
)
def test_bits(conn, pair):
    tokens, query = pair
    rows = [
        "{" + ",".join("".join("01"[int(bit)] for bit in row) for row in side) + "}"
        for side in pair
    ]
    equal = (query[:, None, :] == tokens[None, :, :]).mean(axis=2)
    found = conn.scalar(
        text(
            f"SELECT sqlvec.maxsim_bit(CAST(:tokens AS bit({tokens.shape[1]})[]), CAST(:query AS bit({tokens.shape[1]})[]))"
        ),
        {"tokens": rows[0], "query": rows[1]},
    )
    assert found == pytest.approx(equal.max(axis=1).sum())


NOTHING: list[tuple[str | None, str | None, float | None]] = [
    (None, '{"[1,0]"}', None),
    ('{"[1,0]"}', None, None),
    (None, None, None),
    (None, "{}", None),
    ("{}", None, None),
    ("{}", '{"[1,0]"}', None),
    ("{}", "{}", None),
    ('{"[1,0]"}', "{}", 0),
    ('{NULL,"[1,0]"}', '{"[2,0]",NULL}', 2),
    ("{NULL}", '{"[2,0]"}', None),
    ('{"[1,0]"}', '{"[0,1]"}', 0),
]


@pytest.mark.parametrize(("tokens", "query", "expected"), NOTHING)
@pytest.mark.parametrize("name", ["maxsim", "maxsim_vector", "maxsim_mean", "maxsim_nested"])
def test_nothing(conn, name, tokens, query, expected):
    found = score(conn, name, tokens, query)
    assert found == expected
    assert str(found) != "-0.0"


@pytest.mark.parametrize(
    ("tokens", "query", "expected"),
    [
        (None, "{101}", None),
        ("{}", "{101}", None),
        ("{101}", "{}", 0),
        ("{101,000}", "{111,010}", 2 / 3 + 2 / 3),
    ],
)
def test_bits_of_nothing(conn, tokens, query, expected):
    statement = "SELECT sqlvec.maxsim_bit(CAST(:tokens AS bit(3)[]), CAST(:query AS bit(3)[]))"
    assert conn.scalar(text(statement), {"tokens": tokens, "query": query}) == (
        expected if expected is None else pytest.approx(expected)
    )


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_nothing_is_an_empty_side(conn, budget):
    assert score(conn, "maxsim_nested", '{"[1]"}', '{"[1]"}', budget, None) == 0
    assert score(conn, "maxsim_nested", '{"[1]"}', '{"[1]"}', None, budget) is None


def test_dimensions_must_agree(conn):
    with pytest.raises(DBAPIError, match="different halfvec dimensions 1 and 2"):
        score(conn, "maxsim", '{"[1]"}', '{"[1,2]"}')


def test_arrays_of_any_bounds(conn):
    statement = """SELECT sqlvec.maxsim('[5:6]={"[1,0]","[0,1]"}'::halfvec[], '[0:0]={"[3,4]"}'::halfvec[])"""
    assert conn.scalar(text(statement)) == 4


def test_long_documents_and_queries(conn):
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((3000, 8)).astype(np.float16).astype(np.float32)
    query = rng.standard_normal((128, 8)).astype(np.float16).astype(np.float32)
    for some, few in ((tokens, query), (tokens[:1], query), (tokens, query[:1])):
        found = score(conn, "maxsim", literal(some), literal(few))
        assert found == pytest.approx(brute(some, few), rel=1e-5)


def test_pgvector_in_any_schema(tmp_database: Callable[..., str]) -> None:
    dsn = tmp_database(None)
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE SCHEMA extensions")
        connection.execute("CREATE EXTENSION vector SCHEMA extensions")
    engine = create_engine(sqlalchemy_url(dsn))
    with engine.connect() as connection:
        catalog.install(connection)
    with engine.connect() as connection:
        connection.execute(text("SET search_path = pg_temp"))
        statement = """SELECT sqlvec.maxsim('{"[1,2]"}'::extensions.halfvec[], '{"[3,4]"}'::extensions.halfvec[])"""
        assert connection.scalar(text(statement)) == 11
    engine.dispose()


def test_parallel_workers_score_many_candidates(conn):
    conn.execute(
        text(
            "CREATE TABLE doc AS SELECT n AS id, ARRAY['[1,2]'::halfvec] AS tokens FROM generate_series(1, 2000) AS n"
        )
    )
    conn.execute(text("ANALYZE doc"))
    for name in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
        conn.execute(text(f"SET LOCAL {name} = 0"))
    statement = (
        """EXPLAIN SELECT id FROM doc ORDER BY sqlvec.maxsim(tokens, '{"[1,2]"}') DESC LIMIT 10"""
    )
    plan = "\n".join(conn.scalars(text(statement)))
    assert "Gather Merge" in plan


@property_settings
@given(pairs(), st.floats(0.25, 8), st.sampled_from([1, 1.5, 2]))
def test_radius_equals_brute_force(conn, pair, radius, power):
    tokens, query = (each.astype(np.float64) for each in pair)
    nearest = np.linalg.norm(query[:, None] - tokens[None], axis=2).min(axis=1)
    within = nearest < radius * (1 - 1e-6)
    at_the_edge = np.abs(nearest - radius) <= radius * 1e-5
    expected = float(((1 - (nearest[within] / radius) ** power) ** (1 / power)).sum())
    found = score(conn, "maxsim_radius", literal(pair[0]), literal(pair[1]), radius, power)
    # Close to the edge the power is steep: there rounding may count for something.
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3 + 0.02 * at_the_edge.sum())


def test_radius_of_nothing(conn):
    assert score(conn, "maxsim_radius", None, '{"[1]"}', 1) is None
    assert score(conn, "maxsim_radius", "{}", '{"[1]"}', 1) is None
    assert score(conn, "maxsim_radius", '{"[1]"}', "{}", 1) == 0
    assert score(conn, "maxsim_radius", '{"[1]"}', '{"[1]","[5]"}', 1) == 1
    assert score(conn, "maxsim_radius", '{"[1]"}', '{"[2]"}', 1) == 0


def carved(query: Tokens, threshold: float) -> list[Tokens]:
    """Return the balls of a query as they are written in the paper."""
    left, balls = list(query.astype(np.float64)), []
    while left:
        lengths = np.array([np.linalg.norm(token) for token in left])
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = np.array(left) @ left[0] / (lengths * lengths[0])
        cosines[0] = 1
        balls.append(sum(token for token, c in zip(left, cosines, strict=True) if c >= threshold))
        left = [token for token, c in zip(left, cosines, strict=True) if not c >= threshold]
    return balls


@property_settings
@given(
    hnp.arrays(np.float32, (7, 3), elements=st.integers(-8, 8).map(float)),
    st.sampled_from([0.0, 0.31, 0.7, 0.95]),
)
def test_carving_equals_numpy(conn, query, threshold):
    found = conn.scalar(
        text("SELECT CAST(sqlvec.carve(CAST(:query AS halfvec[]), :threshold) AS text)"),
        {"query": literal(query), "threshold": threshold},
    )
    wanted = carved(query, threshold)
    assert found == literal(np.array(wanted, dtype=np.float32)).replace(".0", "")


def test_what_cannot_be_carved(conn):
    assert conn.scalar(text("SELECT sqlvec.carve(NULL, 0.7)")) is None
    assert conn.scalar(text("SELECT sqlvec.carve('{}', 0.7)")) == "{}"
    for threshold in ("NULL", "-0.1", "1.1", "'NaN'"):
        with pytest.raises(DBAPIError, match="a cosine from 0 to 1"), conn.begin_nested():
            conn.execute(text(f"SELECT sqlvec.carve('{{}}', {threshold})"))


def test_sums_that_halfvec_cannot_hold_are_not_carved(conn):
    found = conn.scalar(
        text("""SELECT CAST(sqlvec.carve('{"[60000,1]","[60000,2]","[3,0]"}', 0.5) AS text)""")
    )
    # The third is taken along by the first, and lost in its rounding.
    assert found == '{"[60000,1]","[60000,2]"}'


def test_products_out_of_range_have_no_score(conn):
    wild = '{"[3e38,3e38]"}'
    assert score(conn, "maxsim_vector", wild, '{"[3,-3]"}') is None
    assert score(conn, "maxsim_vector", '{"[1,1]"}', '{"[3,-2]"}') == 1
