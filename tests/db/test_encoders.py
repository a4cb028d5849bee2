"""Codes that the server computes equal the codes that numpy computes."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pgvector import Vector
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sqlvec.catalog import load_encoder
from sqlvec.encoders import Binary, Encoder, Halfvec, Linear, Truncate
from sqlvec.encoders.binary import LEVELS
from sqlvec.errors import EncodingError

# Denormal, huge and everyday numbers, in one vector as well as in vectors of their own.
any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)
everyday = st.floats(-100, 100, width=32)
property_settings = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_numbers = itertools.count()


def batches(
    elements: st.SearchStrategy[float], most: int = 33
) -> st.SearchStrategy[NDArray[np.float32]]:
    shapes = st.tuples(st.integers(1, 12), st.integers(1, most))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements))


def create(
    conn: Connection, encoder: Encoder, dimensions: int, mean: NDArray[Any] | None = None
) -> tuple[str, Encoder, Any]:
    """Make an encoder in the catalog and read it back as numpy sees it."""
    name = f"encoder {next(_numbers)}"
    conn.execute(
        text("CALL sqlvec.create_encoder(:name, :kind, :dimensions, :options, :mean)"),
        {
            "name": name,
            "kind": encoder.kind,
            "dimensions": dimensions,
            "options": json.dumps(encoder.options()),
            "mean": None if mean is None else Vector(mean).to_text(),
        },
    )
    loaded, parts = load_encoder(conn, name)
    assert loaded == encoder
    return name, loaded, parts


def codes_of_server(
    conn: Connection, name: str, encoder: Encoder, x: NDArray[np.float32]
) -> NDArray[Any]:
    """Encode a batch in one statement."""
    code_type = encoder.code_type(x.shape[1]).partition("(")[0]
    null = "bit varying" if code_type == "bit" else code_type
    read = "code::text" if code_type == "bit" else "code::vector::real[]"
    statement = text(
        f"SELECT {read} FROM unnest(CAST(:x AS vector[])) WITH ORDINALITY AS t (x, i),"
        f" sqlvec.encode(:name, t.x, NULL::{null}) AS code ORDER BY t.i"
    )
    vectors = [Vector(row).to_text() for row in x]
    rows = conn.scalars(statement, {"name": name, "x": vectors}).all()
    if code_type == "bit":
        return np.array([[bit == "1" for bit in row] for row in rows])
    return np.array(rows, dtype=np.float16 if code_type == "halfvec" else np.float32)


def assert_equal_codes(conn: Connection, name: str, encoder: Encoder, parts: Any, x: Any) -> None:
    x = np.asarray(x, dtype=np.float32)
    try:
        expected = encoder.encode(x, parts)
    except EncodingError:
        # What numpy refuses the server refuses.
        with pytest.raises(DBAPIError, match="out of range|infinite|overflow"), conn.begin_nested():
            codes_of_server(conn, name, encoder, x)
        return
    found = codes_of_server(conn, name, encoder, x)
    assert found.shape == expected.shape
    if expected.dtype == np.bool_:
        assert (found == expected).all()
    else:
        np.testing.assert_array_max_ulp(found, expected, maxulp=1)


@property_settings
@given(batches(any_float))
def test_halfvec(conn, x):
    assert_equal_codes(conn, *create(conn, Halfvec(), x.shape[1]), x)


@property_settings
@given(batches(any_float))
def test_binary(conn, x):
    assert_equal_codes(conn, *create(conn, Binary(), x.shape[1]), x)


@property_settings
@given(batches(any_float), st.data())
def test_binary_centred(conn, x, data):
    mean = data.draw(hnp.arrays(np.float32, x.shape[1], elements=any_float))
    assert_equal_codes(conn, *create(conn, Binary(center=True), x.shape[1], mean), x)


@property_settings
@given(batches(any_float), st.integers(-(10**17), 10**17))
def test_binary_rotated(conn, x, seed):
    encoder = Binary(rotate=True, seed=seed)
    assert_equal_codes(conn, *create(conn, encoder, x.shape[1]), x)


@property_settings
@given(batches(everyday), st.data())
def test_binary_rotated_and_centred(conn, x, data):
    mean = data.draw(hnp.arrays(np.float32, x.shape[1], elements=everyday))
    encoder = Binary(rotate=True, seed=1, center=True)
    assert_equal_codes(conn, *create(conn, encoder, x.shape[1], mean), x)


@property_settings
@given(batches(any_float), st.integers(2, 8))
def test_binary_levels(conn, x, levels):
    assert_equal_codes(conn, *create(conn, Binary(levels=levels), x.shape[1]), x)


def ending_in(start: NDArray[np.float32], rest: Fraction) -> NDArray[np.float32]:
    """Append float32 numbers whose squares add up to `rest`, to far beyond float64."""
    found = list(start)
    for _ in range(6):
        found.append(np.float32(math.sqrt(rest)))
        if Fraction(float(found[-1])) ** 2 > rest:
            found[-1] = np.nextafter(found[-1], np.float32(0))
        rest -= Fraction(float(found[-1])) ** 2
        if rest == 0:
            break
    return np.array([*found, *[0] * (len(start) + 6 - len(found))], dtype=np.float32)


def borderline(rng: np.random.Generator, dimensions: int, levels: int) -> NDArray[np.float32]:
    """Return a vector one of whose components lies as near to a threshold as can be.

    To the threshold itself, or to the border at which its quotient by the length is rounded to
    another float32.
    """
    threshold = rng.choice([t for t in LEVELS[levels] if t > 0]) / math.sqrt(dimensions)
    if rng.integers(2):
        near = np.float32(threshold)
        threshold = (float(near) + float(np.nextafter(near, np.float32(1)))) / 2
    while True:
        start = rng.standard_normal(dimensions - 6).astype(np.float32)
        start[0] = abs(start[0]) + np.float32(0.5) * math.sqrt(dimensions)
        length = (Fraction(float(start[0])) / Fraction(threshold)) ** 2
        rest = length - sum(Fraction(float(value)) ** 2 for value in start)
        if rest > 0:
            sign = rng.choice(np.array([-1, 1], np.float32))
            return np.asarray(rng.permutation(ending_in(start, rest)) * sign, dtype=np.float32)


@property_settings
@given(st.integers(0, 2**32), st.integers(7, 100), st.integers(2, 8))
def test_binary_levels_at_their_borders(conn, seed, dimensions, levels):
    rng = np.random.default_rng(seed)
    x = np.array([borderline(rng, dimensions, levels) for _ in range(40)])
    assert_equal_codes(conn, *create(conn, Binary(levels=levels), dimensions), x)
    # Next to them as well.
    x = np.nextafter(x, rng.choice(np.array([-9, 9], np.float32), x.shape))
    assert_equal_codes(conn, *create(conn, Binary(levels=levels), dimensions), x)


@property_settings
@given(batches(st.integers(-3, 3).map(float)), st.integers(2, 8), st.integers(-126, 126))
def test_binary_levels_of_few_values(conn, x, levels, exponent):
    x = np.ldexp(x, exponent)
    assert_equal_codes(conn, *create(conn, Binary(levels=levels), x.shape[1]), x)


@property_settings
@given(batches(any_float), st.integers(2, 8), st.data())
def test_binary_levels_centred(conn, x, levels, data):
    mean = data.draw(hnp.arrays(np.float32, x.shape[1], elements=any_float))
    encoder = Binary(center=True, levels=levels)
    assert_equal_codes(conn, *create(conn, encoder, x.shape[1], mean), x)


@property_settings
@given(batches(any_float), st.integers(2, 8), st.integers(0, 10**9))
def test_binary_levels_rotated(conn, x, levels, seed):
    encoder = Binary(rotate=True, seed=seed, levels=levels)
    assert_equal_codes(conn, *create(conn, encoder, x.shape[1]), x)


@property_settings
@given(batches(everyday), st.integers(2, 8), st.data())
def test_binary_levels_rotated_and_centred(conn, x, levels, data):
    mean = data.draw(hnp.arrays(np.float32, x.shape[1], elements=everyday))
    encoder = Binary(rotate=True, center=True, levels=levels)
    assert_equal_codes(conn, *create(conn, encoder, x.shape[1], mean), x)


@property_settings
@given(batches(any_float), st.sampled_from(["halfvec", "vector"]), st.data())
def test_truncate(conn, x, code_type, data):
    encoder = Truncate(data.draw(st.integers(1, x.shape[1])), code_type)
    assert_equal_codes(conn, *create(conn, encoder, x.shape[1]), x)


@property_settings
@given(batches(everyday), st.integers(0, 10**9), st.data())
def test_linear(conn, x, seed, data):
    encoder = Linear(data.draw(st.integers(1, x.shape[1])), seed=seed)
    assert_equal_codes(conn, *create(conn, encoder, x.shape[1]), x)


@property_settings
@given(batches(any_float), st.data())
def test_linear_of_any_size_centred(conn, x, data):
    mean = data.draw(hnp.arrays(np.float32, x.shape[1], elements=everyday))
    encoder = Linear(data.draw(st.integers(1, x.shape[1])), center=True)
    assert_equal_codes(conn, *create(conn, encoder, x.shape[1], mean), x)


EVERY_KIND = [
    Halfvec(),
    Binary(),
    Binary(rotate=True, seed=3),
    Binary(levels=2),
    Binary(levels=7),
    Binary(rotate=True, levels=4),
    Truncate(1),
    Truncate(1, "vector"),
    Linear(1),
]


@pytest.mark.parametrize("encoder", EVERY_KIND, ids=repr)
@pytest.mark.parametrize("dimensions", [1, 2, 384])
def test_corner_cases(conn, encoder, dimensions):
    rng = np.random.default_rng(0)
    x = np.array(
        [
            np.zeros(dimensions),
            -np.zeros(dimensions),
            np.full(dimensions, 1e-45),
            np.full(dimensions, -1e-45),
            np.full(dimensions, 60_000 / dimensions),
            np.full(dimensions, 1e-45) * (np.arange(dimensions) % 4 - 1),
            rng.standard_normal(dimensions) * 1e-44,
            np.eye(dimensions)[-1],
            np.arange(dimensions) % 3 - 1,
            rng.standard_normal(dimensions),
            rng.standard_normal(dimensions) * 1e-30,
        ],
        dtype=np.float32,
    )
    assert_equal_codes(conn, *create(conn, encoder, dimensions), x)


@pytest.mark.parametrize(
    "encoder",
    [
        *(Halfvec(), Binary(), Binary(center=True), Binary(levels=4), Binary(levels=8)),
        *(Truncate(16_000, "vector"), Truncate(4_000)),
    ],
    ids=repr,
)
def test_16000_dimensions(conn, encoder):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 16_000)).astype(np.float32)
    mean = x.mean(axis=0) if encoder == Binary(center=True) else None
    assert_equal_codes(conn, *create(conn, encoder, 16_000, mean), x)


@pytest.mark.parametrize("levels", [2, 3, 8])
def test_levels_of_the_largest_numbers(conn, levels):
    rng = np.random.default_rng(5)
    x = (rng.choice([-1, 1], (6, 500)) * rng.uniform(1e38, 3.4e38, (6, 500))).astype(np.float32)
    name, encoder, parts = create(conn, Binary(levels=levels), 500)
    assert_equal_codes(conn, name, encoder, parts, x)
    assert (encoder.encode(x) == encoder.encode(np.ldexp(x, -120))).all()


@pytest.mark.parametrize("encoder", [Binary(levels=4), Binary(rotate=True, levels=5)], ids=repr)
@pytest.mark.parametrize("scale", [1, 1e-30])
def test_many_levels_at_real_sizes(conn, encoder, scale):
    x = (np.random.default_rng(6).standard_normal((300, 384)) * scale).astype(np.float32)
    assert_equal_codes(conn, *create(conn, encoder, 384), x)


@pytest.mark.parametrize(
    "encoder",
    [Binary(rotate=True), Binary(rotate=True, levels=3), Linear(64)],
    ids=repr,
)
def test_real_sizes_of_matrices(conn, encoder):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20, 768)).astype(np.float32)
    assert_equal_codes(conn, *create(conn, encoder, 768), x)


@pytest.mark.parametrize("encoder", [Linear(256, seed=5), Linear(128, seed=6)], ids=repr)
def test_random_projection_keeps_inner_products(conn, encoder):
    _, encoder, parts = create(conn, encoder, 256)
    x = np.random.default_rng(4).standard_normal((60, 256)).astype(np.float32)
    codes = encoder.encode(x, parts).astype(np.float64)
    before, after = (np.corrcoef(m @ m.T)[np.triu_indices(60, 1)] for m in (x, codes))
    assert np.corrcoef(before, after)[0, 1] > (0.99 if encoder.dimensions == 256 else 0.5)
    ratio = (codes**2).sum(axis=1) / (x**2).sum(axis=1)
    assert ratio.mean() == pytest.approx(1, abs=0.1)
