"""Relevance models on the server: the numbers of numpy, the catalog, and what it refuses."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pgvector import Vector
from sqlalchemy import Connection, NullPool, create_engine, select, text
from sqlalchemy.exc import DBAPIError

from sqlvec import catalog, functions, relevance
from sqlvec.embedded import Server
from sqlvec.errors import DeclarationError, InUse
from sqlvec.relevance import EXPONENTS, Background, Curve, FusedModel, LegModel
from tests.db.server import sqlalchemy_url

everyday = st.floats(-100, 100, width=32)
weight = st.floats(-50, 50)
property_settings = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_numbers = itertools.count()
RAW = LegModel("vector", "raw", np.array([3.0]), np.array([-1.0]), np.array([1.0]))


@pytest.fixture
def doc(conn: Connection) -> Connection:
    conn.exec_driver_sql(
        "CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector(3), tokens halfvec(3)[], other vector(3))"
    )
    return conn


def some_model(family: str, dimensions: int, seed: int = 0, size: float = 1) -> LegModel:
    """Return a model of the vector leg with random numbers."""
    random = np.random.default_rng(seed)
    background = Background.of(
        random.normal(size=(7, dimensions)),
        random.integers(5, 50, 7),
        random.normal(size=(3, dimensions)),
    )
    count = 1 + 2 + 2 + 3
    constant = EXPONENTS[family]
    if family == "raw":
        count, background = 1, None  # type: ignore[assignment]
    slope, intercept, exponent = random.normal(0, size, (3, count))
    return LegModel(
        "vector",
        family,
        slope,
        intercept,
        exponent if constant is None else np.array([constant]),
        background,
    )


def stored(
    conn: Connection,
    model: LegModel | FusedModel,
    table: str = "doc",
    column: str = "embedding",
    **more: Any,
) -> str:
    name = f"model {next(_numbers)}"
    relevance.save(conn, name, model, table=table, column=column, **more)
    return name


MODELS = ("leg 1", 'leg "2"', "leg, {3}")


def make_legs(conn: Connection) -> None:
    """Store a model for each leg of table ``doc``, once."""
    conn.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS doc (id int PRIMARY KEY, body text, embedding vector(3), tokens halfvec(3)[])"
    )
    for name, leg, column in zip(
        MODELS, relevance.LEGS, ("embedding", "body", "tokens"), strict=True
    ):
        if not conn.scalar(
            text("SELECT count(*) FROM sqlvec.relevance_model WHERE name = :n"), {"n": name}
        ):
            model = LegModel(leg, "raw", np.ones(1), np.zeros(1), np.ones(1))
            relevance.save(conn, name, model, table="doc", column=column)


@property_settings
@given(
    st.data(),
    st.sampled_from(sorted(EXPONENTS)),
    st.integers(1, 40),
    st.integers(0, 1000),
    st.sampled_from([0.1, 1, 20]),
)
def test_vector_leg_equals_numpy(conn, data, family, dimensions, seed, size):
    with conn.begin_nested():
        name = f"doc_{next(_numbers)}"
        conn.exec_driver_sql(f"CREATE TABLE {name} (embedding vector({dimensions}))")
        model = some_model(family, dimensions, seed, size)
        stored_name = stored(conn, model, name)
        queries = data.draw(hnp.arrays(np.float32, (4, dimensions), elements=everyday))
        cosines = data.draw(hnp.arrays(np.float64, 4, elements=st.floats(-1.01, 1.01)))
        wanted = data.draw(st.floats(0, 1))
        curve = model.vector_curve(queries)
        expected = np.stack(
            [
                curve.slope,
                curve.intercept,
                curve.exponent,
                curve.relevance(cosines),
                1 - curve.inverse(wanted),
            ],
            axis=1,
        )
        rows = conn.execute(
            text("""
                SELECT p.slope, p.intercept, p.exponent, sqlvec.relevance(:m, t.q, t.x), sqlvec.relevance_bound(:m, t.q, :wanted)
                FROM unnest(CAST(:q AS vector[]), CAST(:x AS float8[])) WITH ORDINALITY AS t (q, x, i),
                     sqlvec.relevance_parameters(:m, t.q) AS p ORDER BY t.i
            """),
            {
                "m": stored_name,
                "q": [Vector(q).to_text() for q in queries],
                "x": cosines.tolist(),
                "wanted": wanted,
            },
        )
        found = np.array(
            [[np.nan if value is None else value for value in row] for row in rows],
            dtype=np.float64,
        )
        zero = ~(queries != 0).any(axis=1)
        assert np.isnan(found[zero]).all()
        np.testing.assert_allclose(found[~zero], expected[~zero], rtol=1e-9, atol=1e-9)


@property_settings
@given(
    st.sampled_from(sorted(EXPONENTS)),
    hnp.arrays(np.float64, (3, 3), elements=weight),
    st.floats(1e-6, 1e6),
    st.floats(0, 1.5),
    st.integers(1, 1000),
    st.floats(0, 1),
)
def test_scores_equal_numpy(doc, family, weights, maximum, share, terms, wanted):
    if family == "raw":
        weights = weights[:, :1]
    constant = EXPONENTS[family]
    model = LegModel(
        "text",
        family,
        weights[0],
        weights[1],
        weights[2] if constant is None else np.array([constant]),
    )
    name = stored(doc, model, column="body")
    curve = model.score_curve([maximum], [terms])
    score = share * maximum
    found = doc.execute(
        select(
            functions.relevance_score(name, score, maximum, terms),
            functions.relevance_score_bound(name, maximum, wanted, terms),
        )
    ).one()
    np.testing.assert_allclose(
        found,
        [curve.relevance([score / maximum])[0], maximum * curve.inverse(wanted)[0]],
        rtol=1e-9,
        atol=1e-12,
    )


@property_settings
@example(np.array([0, 5e-324, 0]), 0.0, np.zeros(3), [None, 0.4375, None])
@given(
    hnp.arrays(np.float64, 3, elements=st.floats(0, 10)),
    st.floats(-10, 10),
    hnp.arrays(np.float64, 3, elements=st.floats(-10, 10)),
    st.lists(st.none() | st.floats(0, 1), min_size=3, max_size=3),
)
def test_fused_equals_numpy(conn, weights, bias, missing, legs):
    model = FusedModel(weights, bias, missing, MODELS)
    with conn.begin_nested():
        make_legs(conn)
        name = stored(conn, model)
        found = conn.scalar(select(functions.relevance_fused(name, *legs)))
    expected = float(model.relevance(*[np.nan if leg is None else leg for leg in legs]))
    assert (found is None) == np.isnan(expected)
    if found is not None:
        assert found == pytest.approx(expected, abs=1e-12)


@property_settings
@given(st.lists(st.floats(-1e6, 1e6), max_size=30), st.integers(1, 3), st.booleans())
def test_autocut_equals_numpy(conn, scores, jumps, descending):
    scores.sort(reverse=descending)
    assert conn.scalar(select(functions.autocut(scores, jumps))) == relevance.autocut(scores, jumps)


@pytest.mark.parametrize(
    ("scores", "jumps", "kept"),
    [
        ([], 1, 0),
        ([0.5], 1, 1),
        ([0.1, 0.9], 1, 2),
        ([0.3, 0.3, 0.3], 1, 3),
        ([0.1, 0.11, 0.12, 0.5, 0.51, 0.52], 1, 3),
        ([0.9, 0.89, 0.88, 0.5, 0.49, 0.2, 0.19], 1, 3),
        ([0.9, 0.89, 0.88, 0.5, 0.49, 0.2, 0.19], 2, 5),
        ([0.1, 0.11, 0.12, 0.13, 0.9], 1, 4),
    ],
)  # fmt: skip
def test_autocut(conn: Connection, scores: list[float], jumps: int, kept: int) -> None:
    assert conn.scalar(select(functions.autocut(scores, jumps))) == kept
    assert relevance.autocut(scores, jumps) == kept


def test_autocut_of_nothing_and_of_any_lower_bound(conn: Connection) -> None:
    assert conn.scalar(text("SELECT sqlvec.autocut(NULL)")) is None
    assert conn.scalar(text("SELECT sqlvec.autocut('[5:10]={1,1,1,5,5,5}'::float8[])")) == 3


def test_the_bound_cuts_where_relevance_does(doc: Connection) -> None:
    doc.exec_driver_sql("""
        INSERT INTO doc (id, embedding)
        SELECT i, ARRAY[sin(i), cos(i * 0.7), sin(i * 0.3)]::vector FROM generate_series(1, 500) AS i
    """)
    statement = text("""
        SELECT count(*) FILTER (WHERE relevance >= :w), count(*) FILTER (WHERE distance <= bound), bool_and((relevance >= :w) = (distance <= bound))
        FROM (SELECT d.distance, sqlvec.relevance_at(p.slope, p.intercept, p.exponent, 1 - d.distance) AS relevance
              FROM (SELECT embedding <=> '[1,2,3]' AS distance FROM doc) AS d, sqlvec.relevance_parameters(:m, '[1,2,3]') AS p) AS r,
             sqlvec.relevance_bound(:m, '[1,2,3]', :w) AS bound
    """)
    found = set()
    for seed in range(4):
        name = stored(doc, some_model("power", 3, seed))
        for wanted in (0.1, 0.3, 0.5, 0.9):
            by_relevance, by_distance, agree = doc.execute(
                statement, {"m": name, "w": wanted}
            ).one()
            assert agree and by_relevance == by_distance
            found.add(by_relevance)
    assert len(found - {0, 500}) > 2


@pytest.mark.parametrize(("wanted", "bound"), [(0.0, np.inf), (1.0, -np.inf), (None, None)])
def test_bounds_at_the_ends(doc: Connection, wanted: float | None, bound: float | None) -> None:
    name = stored(doc, RAW)
    bounds = "SELECT sqlvec.relevance_bound(:m, '[1,0,0]', CAST(:w AS float8))"
    assert doc.scalar(text(bounds), {"m": name, "w": wanted}) == bound


def test_nothing_and_everything(doc: Connection) -> None:
    name = stored(doc, RAW)
    ask = text("SELECT sqlvec.relevance(:m, CAST(:q AS vector), CAST(:x AS float8))")
    assert doc.scalar(ask, {"m": name, "q": "[1,0,0]", "x": "NaN"}) is None
    assert doc.scalar(ask, {"m": name, "q": "[0,0,0]", "x": 0.5}) is None
    assert doc.scalar(ask, {"m": name, "q": None, "x": 0.5}) is None
    assert doc.scalar(ask, {"m": name, "q": "[1,0,0]", "x": None}) is None
    assert doc.scalar(ask, {"m": name, "q": "[1,0,0]", "x": 0}) == pytest.approx(1 / (1 + np.e))
    texts = stored(
        doc, LegModel("text", "linear", np.ones(3), np.ones(3), np.ones(1)), column="body"
    )
    for maximum in (0, -1, None, float("inf"), float("nan")):
        assert (
            doc.scalar(
                text("SELECT sqlvec.relevance_score(:m, 1, CAST(:x AS float8))"),
                {"m": texts, "x": maximum},
            )
            is None
        )


def test_a_relevance_far_off_is_no_error(doc: Connection) -> None:
    steep = LegModel(
        "vector",
        "linear",
        np.array([1e6] + [0.0] * 7),
        np.array([-1e5] + [0.0] * 7),
        np.ones(1),
        some_model("linear", 3).background,
    )
    name = stored(doc, steep)
    assert doc.scalar(
        text("SELECT sqlvec.relevance(:m, '[1,0,0]', 1)"), {"m": name}
    ) == pytest.approx(1)
    assert doc.scalar(
        text("SELECT sqlvec.relevance(:m, '[1,0,0]', -1)"), {"m": name}
    ) == pytest.approx(0)


def test_maximum_of_a_query(doc: Connection) -> None:
    doc.exec_driver_sql("CALL sqlvec.add_bm25('doc', 'body', 'simple')")
    doc.exec_driver_sql(
        "INSERT INTO doc (id, body) SELECT i, CASE WHEN mod(i, 2) = 0 THEN 'apple' ELSE 'pear fig' END FROM generate_series(1, 10) AS i"
    )
    doc.exec_driver_sql("CALL sqlvec.analyze_bm25('doc', 10)")
    maximum = doc.scalar(text("SELECT sqlvec.bm25_maximum(NULL::doc, 'body', 'apple quince')"))
    assert maximum == pytest.approx(
        2.2 * (np.log(1 + 5.5 / 5.5) + np.log(1 + 10.5 / 0.5)), rel=1e-6
    )
    best = doc.scalar(
        text("SELECT max(score) FROM sqlvec.bm25_search(NULL::doc, 'body', 'apple quince')")
    )
    assert 0 < best < maximum
    assert doc.scalar(text("SELECT sqlvec.bm25_maximum(NULL::doc, 'body', '')")) == 0


def test_loaded_as_saved(doc: Connection) -> None:
    model = some_model("power", 3)
    name = stored(
        doc,
        model,
        thresholds={0.9: 0.4, 0.95: 0.25},
        queries=50,
        examples=5000,
        positives=70,
        brier=0.03,
    )
    loaded = relevance.load(doc, name)
    assert (
        isinstance(loaded, LegModel)
        and loaded.background is not None
        and model.background is not None
    )
    for part in ("slope", "intercept", "exponent"):
        np.testing.assert_array_equal(getattr(loaded, part), getattr(model, part))
    for part in Background.__dataclass_fields__:
        np.testing.assert_array_equal(
            getattr(loaded.background, part), getattr(model.background, part)
        )
    row = doc.execute(
        text("SELECT * FROM sqlvec.relevance_model WHERE name = :m"), {"m": name}
    ).one()
    assert (row.leg, row.table_name, row.column_name, row.dimensions, row.positives) == (
        "vector",
        "doc",
        "embedding",
        3,
        70,
    )
    assert doc.scalar(select(functions.relevance_threshold(name))) == 0.25
    assert doc.scalar(select(functions.relevance_threshold(name, 0.9))) == 0.4
    with pytest.raises(
        DBAPIError, match=r"no threshold for a recall of 0.5(.|\n)*It has those for: 0.9, 0.95"
    ):
        doc.scalar(select(functions.relevance_threshold(name, 0.5)))


def test_fused_is_loaded_as_saved(conn: Connection) -> None:
    make_legs(conn)
    models = (MODELS[0], MODELS[1], None)
    model = FusedModel(np.array([0.5, 1, 0]), -0.5, np.array([0.0, -1, 0]), models)
    loaded = relevance.load(conn, stored(conn, model))
    assert isinstance(loaded, FusedModel) and loaded.bias == -0.5
    assert loaded.models == models
    np.testing.assert_array_equal(loaded.weights, model.weights)
    np.testing.assert_array_equal(loaded.missing, model.missing)
    with pytest.raises(DeclarationError, match="there is no relevance model 'nothing'"):
        relevance.load(conn, "nothing")


def test_functions_as_expressions(doc: Connection) -> None:
    name = stored(doc, RAW)
    curve = functions.relevance_parameters(name, [1, 0, 0]).table_valued(
        "slope", "intercept", "exponent"
    )
    at = functions.relevance_at(curve.c.slope, curve.c.intercept, curve.c.exponent, 0.5)
    expected = doc.scalar(select(functions.relevance(name, [1, 0, 0], 0.5)))
    assert doc.scalar(select(at)) == expected
    assert doc.scalar(
        select(functions.relevance_bound(name, [1, 0, 0], expected))
    ) == pytest.approx(0.5)
    texts = stored(
        doc, LegModel("text", "linear", np.ones(3), np.ones(3), np.ones(1)), column="body"
    )
    score_curve = functions.relevance_score_parameters(texts, 8, 2).table_valued(
        "slope", "intercept", "exponent"
    )
    scored = functions.relevance_at(
        score_curve.c.slope, score_curve.c.intercept, score_curve.c.exponent, 0.25
    )
    assert doc.scalar(select(scored)) == doc.scalar(
        select(functions.relevance_score(texts, 2, 8, 2))
    )


CALL = "CALL sqlvec.create_relevance_model('m', {})"
GOOD = {
    "leg": "'vector'",
    "family": "'raw'",
    "slope": "'{1}'",
    "intercept": "'{1}'",
    "exponent": "'{1}'",
    "rel": "'doc'",
    "column_name": "'embedding'",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leg": "'audio'"}, 'serves leg "vector", "text", "tokens" or "fused", not "audio"'),
        ({"family": "'cubic'"}, 'leg "vector" has no family "cubic"'),
        ({"slope": "'{1,2}'"}, "have 1, 1 and 1 numbers, not 2, 1 and 1"),
        ({"intercept": "'{NaN}'"}, "intercept of a relevance model is a list of numbers from -1e12 to 1e12, not {NaN}"),
        ({"slope": "'{NULL}'"}, "slope of a relevance model is a list"),
        ({"slope": "'{1e308}'"}, "slope of a relevance model is a list"),
        ({"slope": "'{{1}}'"}, "slope of a relevance model is a list"),
        ({"slope": "NULL"}, "have 1, 1 and 1 numbers, not 0, 1 and 1"),
        ({"recalls": "'{Infinity}'"}, "recalls of a relevance model is a list"),
        ({"column_name": "'large'"}, "has 5000 dimensions; a relevance model takes at most 4096"),
        ({"exponent": "'{3}'"}, "from 0.1 to 2, not 3"),
        ({"rel": "NULL"}, "names the table and the column"),
        ({"leg": "'fused'"}, "combines others and names no column"),
        ({"column_name": "'nothing'"}, 'column "nothing" of table public.doc does not exist'),
        ({"column_name": "'body'"}, "is of type text, which leg \"vector\" does not search"),
        ({"recalls": "'{0.9}'"}, "has its threshold"),
        ({"recalls": "'{0.9}'", "thresholds": "'{2}'"}, "has its threshold"),
        ({"min_best": "1.5"}, "min_best is a probability from 0 to 1, not 1.5"),
        ({"min_best": "'NaN'"}, "min_best is a probability from 0 to 1, not NaN"),
        ({"centroids": "ARRAY['[1,2]']::vector[]"}, "has 3 dimensions, the vectors of the model have 2"),
        ({"centroids": "ARRAY['[1,2,3]']::vector[]"}, "every centroid has a scale and a weight"),
        ({"directions": "ARRAY['[1,2]', '[1,2,3]']::vector[]"}, "the vectors of the model have 2, 3"),
        ({"directions": "ARRAY['[1,2,3]']::vector[]"}, "are vectors of integers, 4000 long"),
        ({"directions": "ARRAY['[3e38,3e38,3e38]']::vector[]"}, "are vectors of integers, 4000 long"),
        ({"directions": "ARRAY[NULL]::vector[]"}, "are vectors of integers, 4000 long"),
        (
            {"centroids": "ARRAY['[4000,0,0]']::vector[]", "centroid_scale": "'{1}'", "centroid_weight": "'{1}'", "sharpness": "'{1}'"},
            "times the length of a centroid is above 500",
        ),
    ],
)  # fmt: skip
def test_bad_models(doc: Connection, changes: dict[str, str], message: str) -> None:
    doc.exec_driver_sql("ALTER TABLE doc ADD large vector(5000)")
    arguments = ", ".join(f"{key} => {value}" for key, value in (GOOD | changes).items())
    with pytest.raises(DBAPIError, match=message):
        doc.execute(text(CALL.format(arguments)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("relevance('nothing', '[1,2,3]', 0.5)", 'relevance model "nothing" does not exist'),
        ("relevance('m', '[1,2]', 0.5)", "takes query vectors of 3 dimensions, not 2"),
        ("relevance_score('m', 1, 2)", 'maps scores of leg "vector", not of "text" or "tokens"'),
        ("relevance_fused('m', 0.5)", 'not of "fused"'),
        ("relevance_bound('m', '[1,2,3]', 1.5)", "min_relevance is a probability from 0 to 1, not 1.5"),
        ("relevance_bound('m', '[1,2,3]', 'NaN')", "not NaN"),
        ("relevance_fused('fused', 2)", "relevance is a probability from 0 to 1, not 2"),
        ("relevance_threshold('m')", "fitted without judgements"),
        ("relevance_parameters('x''; DROP TABLE doc; --', '[1]')", "does not exist"),
        ("autocut('{1,NULL}')", "hold NULL, NaN or infinity"),
        ("autocut('{1,2,3}', 0)", "jumps is 1 or more, not 0"),
        ("autocut('{{1,2},{3,4}}')", "not an array of 2 dimensions"),
        ("_check_relevance('m', 'vector', 'doc'::regclass, 'other')", 'fitted for column "embedding" of table public.doc, not for column "other"'),
        ("_check_relevance('m', 'text', 'doc'::regclass, 'body')", 'of leg "vector", not of "text"'),
    ],
)  # fmt: skip
def test_bad_calls(doc: Connection, call: str, message: str) -> None:
    some = some_model("linear", 3)
    relevance.save(doc, "m", some, table="doc", column="embedding")
    make_legs(doc)
    relevance.save(doc, "fused", FusedModel(np.ones(3), 0.0, models=MODELS))
    with pytest.raises(DBAPIError, match=message):
        doc.execute(text(f"SELECT sqlvec.{call.replace(':', chr(92) + ':')}"))


def test_a_model_follows_its_column(doc: Connection) -> None:
    name = stored(doc, some_model("linear", 3))

    def check(table: str, column: str) -> None:
        doc.execute(
            text(
                "SELECT sqlvec._check_relevance(:m, 'vector', CAST(CAST(:t AS text) AS regclass), :c)"
            ),
            {"m": name, "t": table, "c": column},
        )

    check("doc", "embedding")
    doc.exec_driver_sql("ALTER TABLE doc RENAME TO renamed")
    doc.exec_driver_sql("ALTER TABLE renamed RENAME embedding TO moved")
    check("renamed", "moved")
    doc.exec_driver_sql("CREATE TABLE doc (n int, embedding vector(3))")
    check("doc", "embedding")  # as after a restore, names are believed
    today = text(
        "SELECT sqlvec._qualified(c.relation), c.column_name FROM sqlvec.relevance_model AS m, sqlvec._relevance_column(m) AS c WHERE m.name = :m"
    )
    assert doc.execute(today, {"m": name}).one() == ("public.doc", "embedding")
    doc.exec_driver_sql("DROP TABLE doc")
    assert doc.execute(today, {"m": name}).one() == ("public.renamed", "moved")
    assert not [f for f in catalog.check(doc) if f'"{name}"' in f.problem]
    doc.exec_driver_sql("ALTER TABLE renamed ALTER moved TYPE vector(4)")
    with pytest.raises(
        DBAPIError, match='fitted for 3 dimensions; column "moved" of table public.renamed has 4'
    ):
        check("renamed", "moved")


@pytest.mark.parametrize("name", ["", None, "x" * 256, "ä" * 128])
def test_bad_names(doc: Connection, name: str | None) -> None:
    call = "CALL sqlvec.create_relevance_model(:n, 'vector', 'raw', '{1}', '{1}', '{1}', 'doc', 'embedding')"
    with pytest.raises(DBAPIError, match="a relevance model has 1 to 255 bytes, not"):
        doc.execute(text(call), {"n": name})


def test_lists_are_counted_from_one(doc: Connection) -> None:
    call = "CALL sqlvec.create_relevance_model('m', 'vector', 'raw', '[0:0]={3}', '[5:5]={-1}', '[-1:-1]={1}', 'doc', 'embedding', recalls => '[0:0]={0.9}', thresholds => '[7:7]={0.4}', directions => NULL, centroids => NULL)"
    doc.exec_driver_sql(call)
    assert doc.scalar(select(functions.relevance_threshold("m", 0.9))) == 0.4
    found = doc.scalar(select(functions.relevance("m", [1, 0, 0], 0.5)))
    assert found == pytest.approx(RAW.vector_curve([1, 0, 0]).relevance([0.5])[0])


@pytest.mark.parametrize("size", [1e12, -1e12, 5e-324])
@pytest.mark.parametrize("family", ["sqrt", "power"])
def test_extreme_numbers_are_no_error(doc: Connection, family: str, size: float) -> None:
    """Neither overflow nor underflow, which Postgres reports as errors."""
    weights = np.full(3, size)
    exponent = weights if family == "power" else np.array([0.5])
    for sign in (1, -1):
        model = LegModel("text", family, weights, sign * weights, exponent)
        name = stored(doc, model, column="body")
        for maximum, terms in ((1e-200, 1), (1, 2**31 - 1), (1e200, 1)):
            curve = model.score_curve([maximum], [terms])
            for share, wanted in itertools.product((0, 1e-60, 1, 1e9), (1e-16, 0.5, 1 - 1e-16)):
                found = doc.execute(
                    select(
                        functions.relevance_score(name, share * maximum, maximum, terms),
                        functions.relevance_score_bound(name, maximum, wanted, terms),
                    )
                ).one()
                expected = [curve.relevance([share])[0], maximum * curve.inverse(wanted)[0]]
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_without_its_vectors_a_model_says_nothing(doc: Connection) -> None:
    """As after a restore of parts."""
    name = stored(doc, some_model("linear", 3))
    for part in ("direction", "centroid"):
        doc.execute(
            text("DELETE FROM sqlvec.relevance_vector WHERE model = :m AND part = :p"),
            {"m": name, "p": part},
        )
        assert doc.scalar(select(functions.relevance(name, [1, 0, 0], 0.5))) is None
    model = relevance.load(doc, name)
    assert isinstance(model, LegModel)
    assert np.isnan(model.vector_curve([1, 0, 0]).relevance([0.5])).all()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (None, "combines two models or three, not none"),
        (["leg 1", None, None], "combines two models or three"),
        (["leg 1", 'leg "2"'], "combines two models or three"),
        (["leg 1", 'leg "2"', None, None], "combines two models or three"),
        (["leg 1", "nothing", None], 'relevance model "nothing" does not exist'),
        (['leg "2"', None, "leg, {3}"], 'maps scores of leg "text", not of "vector"'),
        ([["leg 1", 'leg "2"', "leg, {3}"]], "combines two models or three"),
    ],
)  # fmt: skip
def test_fused_knows_its_legs(doc: Connection, models: Any, message: str) -> None:
    make_legs(doc)
    call = "CALL sqlvec.create_relevance_model('f', 'fused', 'logistic', '{1,1,1}', '{0,0,0,0}', '{}', models => CAST(:m AS text[]))"
    with pytest.raises(DBAPIError, match=message):
        doc.execute(text(call), {"m": models})


def test_one_leg_combines_no_others(doc: Connection) -> None:
    make_legs(doc)
    with pytest.raises(DBAPIError, match='leg "vector" combines no others'):
        doc.execute(
            text(CALL.format(", ".join(f"{k} => {v}" for k, v in GOOD.items()) + ", models => :m")),
            {"m": list(MODELS)},
        )


def test_a_leg_in_use_stays(doc: Connection) -> None:
    make_legs(doc)
    for name in ("f 1", "f 2"):
        relevance.save(doc, name, FusedModel(np.ones(3), 0.0, models=(*MODELS[:2], None)))
    drop = text("CALL sqlvec.drop_relevance_model(:m)")
    with (
        pytest.raises(
            DBAPIError,
            match='relevance model "leg 1" is in use by fused model "f 1", "f 2"(.|\n)*Drop the fused',
        ),
        doc.begin_nested(),
    ):
        doc.execute(drop, {"m": MODELS[0]})
    doc.execute(drop, {"m": MODELS[2]})
    # Its owner may still delete rows; sqlvec.check() says so.
    doc.execute(text("DELETE FROM sqlvec.relevance_model WHERE name = :m"), {"m": MODELS[1]})
    [found] = [f for f in catalog.check(doc) if '"f 1" needs' in f.problem]
    assert found.problem.endswith('needs model "leg "2"" of leg "text", which is gone')
    for name in ("f 1", "f 2", MODELS[0]):
        doc.execute(drop, {"m": name})


def test_a_model_of_a_partition_is_that_of_its_table(conn: Connection) -> None:
    conn.exec_driver_sql("CREATE TABLE whole (n int, embedding vector(3)) PARTITION BY LIST (n)")
    # The column has another number in the partition.
    conn.exec_driver_sql("CREATE TABLE part (gone int, n int, embedding vector(3))")
    conn.exec_driver_sql("ALTER TABLE part DROP gone")
    conn.exec_driver_sql("ALTER TABLE whole ATTACH PARTITION part DEFAULT")
    name = stored(conn, RAW, "part")
    check = text(
        "SELECT sqlvec._check_relevance(:m, 'vector', CAST(CAST(:t AS text) AS regclass), 'embedding')"
    )
    for table in ("part", "whole"):
        conn.execute(check, {"m": name, "t": table})
    conn.exec_driver_sql("ALTER TABLE whole DETACH PARTITION part")
    with pytest.raises(
        DBAPIError,
        match='fitted for column "embedding" of table public.whole, not for .* of table public.part',
    ):
        conn.execute(check, {"m": name, "t": "part"})


def test_a_model_of_no_column_is_none(doc: Connection) -> None:
    """Rows can be written without the procedure."""
    with pytest.raises(DBAPIError, match="fitted_for_a_column"):
        doc.exec_driver_sql(
            "INSERT INTO sqlvec.relevance_model (name, leg, family, slope, intercept, exponent) VALUES ('m', 'vector', 'raw', '{1}', '{1}', '{1}')"
        )


def test_names_are_values(doc: Connection) -> None:
    name = 'it\'s a "model"; DROP TABLE doc; --'
    relevance.save(doc, name, RAW, table="doc", column="embedding")
    assert doc.scalar(select(functions.relevance(name, [1, 0, 0], 0.5))) is not None
    doc.execute(text("CALL sqlvec.drop_relevance_model(:m)"), {"m": name})
    with pytest.raises(DBAPIError, match="does not exist"):
        doc.execute(text("CALL sqlvec.drop_relevance_model(:m)"), {"m": name})


def test_a_name_is_taken_once(doc: Connection) -> None:
    name = stored(doc, RAW)
    with pytest.raises(DBAPIError, match="already exists"):
        relevance.save(doc, name, RAW, table="doc", column="embedding")


def test_models_belong_to_roles(doc: Connection) -> None:
    name = stored(doc, some_model("linear", 3))
    make_legs(doc)
    doc.exec_driver_sql("CREATE ROLE fitter")
    doc.exec_driver_sql("SET LOCAL ROLE fitter")
    # Everyone may apply a model, its owner alone may take it away.
    assert doc.scalar(select(functions.relevance(name, [1, 0, 0], 0.5))) is not None
    for statement in (
        "CALL sqlvec.drop_relevance_model(:m)",
        "DELETE FROM sqlvec.relevance_vector WHERE model = :m",
    ):
        with (
            pytest.raises(DBAPIError, match='role "fitter" may not write this row'),
            doc.begin_nested(),
        ):
            doc.execute(text(statement), {"m": name})
    with pytest.raises(DBAPIError, match="permission denied"), doc.begin_nested():
        doc.execute(
            text("UPDATE sqlvec.relevance_model SET slope = '{1}' WHERE name = :m"), {"m": name}
        )
    with pytest.raises(DBAPIError, match="may not write this row"), doc.begin_nested():
        doc.execute(
            text("INSERT INTO sqlvec.relevance_vector VALUES (:m, 'centroid', 99, '[1,2,3]')"),
            {"m": name},
        )
    relevance.save(doc, "own", FusedModel(np.ones(3), 0.0, models=MODELS))
    doc.execute(text("CALL sqlvec.drop_relevance_model('own')"))


def test_fused_models_of_others_do_not_keep_a_leg(doc: Connection) -> None:
    make_legs(doc)
    doc.exec_driver_sql("CALL sqlvec.add_bm25('doc', 'body')")
    doc.exec_driver_sql("CREATE ROLE fitter; CREATE ROLE fuser")
    doc.exec_driver_sql("UPDATE sqlvec.relevance_model SET owner = 'fitter'")
    doc.exec_driver_sql("SET LOCAL ROLE fuser")
    relevance.save(doc, "theirs", FusedModel(np.ones(3), 0.0, models=(*MODELS[:2], None)))
    doc.exec_driver_sql("SET LOCAL ROLE fitter")
    doc.execute(text("CALL sqlvec.drop_relevance_model(:m)"), {"m": MODELS[0]})
    doc.exec_driver_sql("RESET ROLE")
    with pytest.raises(DBAPIError, match=f'relevance model "{MODELS[0]}" does not exist'):
        doc.execute(
            text(
                "SELECT * FROM sqlvec.hybrid_search(NULL::doc, 'apple', '[1,0,0]', fusion => 'relevance',"
                " vector_column => 'embedding', relevance => 'theirs')"
            )
        )


def test_sessions_wait_for_each_other(dsn: str) -> None:
    call = "CALL sqlvec.create_relevance_model(%s, 'text', 'raw', '{1}', '{1}', '{1}', 'waiting', 'body')"
    fused = "CALL sqlvec.create_relevance_model('both', 'fused', 'logistic', '{1,1,1}', '{0,0,0,0}', '{}', models => ARRAY[NULL, 'b', 'c'])"
    with psycopg.connect(dsn) as one, psycopg.connect(dsn, autocommit=True) as two:
        one.execute("CREATE TABLE waiting (body text, tokens halfvec(3)[])")
        one.commit()
        two.execute(call, ["b"])
        two.execute(
            "CALL sqlvec.create_relevance_model('c', 'tokens', 'raw', '{1}', '{1}', '{1}', 'waiting', 'tokens')"
        )

        def meanwhile(statement: str, *values: str) -> Future[Any]:
            waiting = pool.submit(two.execute, statement, values)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            one.commit()
            return waiting

        with ThreadPoolExecutor(1) as pool:
            one.execute(call, ["a"])
            with pytest.raises(psycopg.errors.DuplicateObject, match="already exists"):
                meanwhile(call, "a").result(timeout=10)
            one.execute(fused)
            with pytest.raises(psycopg.Error, match='"b" is in use by fused model "both"'):
                meanwhile("CALL sqlvec.drop_relevance_model('b')").result(timeout=10)
            one.execute("CALL sqlvec.drop_relevance_model('both')")
            meanwhile("CALL sqlvec.drop_relevance_model('b')").result(timeout=10)


def test_pgvector_elsewhere_and_a_hostile_search_path(tmp_database: Callable[..., str]) -> None:
    engine = create_engine(sqlalchemy_url(tmp_database(None)), poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA extensions")
        connection.exec_driver_sql("CREATE EXTENSION vector SCHEMA extensions")
    with engine.connect() as connection:
        catalog.install(connection)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE doc (embedding extensions.vector(3))")
        model = some_model("power", 3)
        relevance.save(connection, "m", model, table="doc", column="embedding")
        connection.exec_driver_sql("CREATE SCHEMA hostile")
        connection.exec_driver_sql(
            "CREATE FUNCTION hostile.exp(float8) RETURNS float8 LANGUAGE sql AS 'SELECT 0.0::float8'"
        )
        connection.exec_driver_sql("SET LOCAL search_path = hostile, pg_catalog")
        statement = "SELECT sqlvec.relevance('m', '[1,2,3]'::extensions.vector, 0.5), sqlvec.relevance_bound('m', '[1,2,3]'::extensions.vector, 0.5)"
        found = connection.exec_driver_sql(statement).one()
    curve: Curve = model.vector_curve([1, 2, 3])
    assert found == pytest.approx((curve.relevance([0.5])[0], 1 - curve.inverse(0.5)[0]))


def test_a_model_that_lost_its_column_is_found(doc: Connection) -> None:
    name = stored(doc, RAW)
    problem = f'relevance model "{name}" was fitted for column "embedding" of table public.doc, which is gone'
    assert problem not in [finding.problem for finding in catalog.check(doc)]
    doc.exec_driver_sql("ALTER TABLE doc DROP COLUMN embedding")
    [found] = [finding for finding in catalog.check(doc) if finding.problem == problem]
    assert found.remedy == f"CALL sqlvec.drop_relevance_model('{name}');"
    doc.exec_driver_sql(found.remedy)


def test_uninstalling_would_lose_models(doc: Connection) -> None:
    name = stored(doc, RAW)
    with pytest.raises(InUse, match=f"relevance model {name}"):
        catalog.uninstall(doc)


def test_dump_and_restore(second_server: Server) -> None:
    source, target = (second_server.create_database(name) for name in ("fitted", "restored"))
    engine = create_engine(sqlalchemy_url(source), poolclass=NullPool)
    with engine.connect() as connection:
        catalog.install(connection, create_extension=True)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE doc (embedding vector(3), body text, tokens halfvec(3)[])"
        )
        relevance.save(connection, "m", some_model("power", 3), table="doc", column="embedding")
        make_legs(connection)
        relevance.save(connection, "a fused one", FusedModel(np.ones(3), 0.0, models=MODELS))
        before = connection.scalar(select(functions.relevance("m", [1, 2, 3], 0.5)))
    dump = subprocess.check_output([second_server.bin / "pg_dump", source])
    psql = [str(second_server.bin / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", target]
    subprocess.run(psql, input=dump, check=True, capture_output=True)
    with psycopg.connect(target) as restored:
        found = restored.execute("SELECT sqlvec.relevance('m', '[1,2,3]', 0.5)").fetchone()
        restored.execute(
            "SELECT sqlvec._check_relevance('m', 'vector', 'doc'::regclass, 'embedding')"
        )
        models = restored.execute(
            "SELECT models FROM sqlvec.relevance_model WHERE leg = 'fused'"
        ).fetchone()
    assert found == (before,) and models == (list(MODELS),)
