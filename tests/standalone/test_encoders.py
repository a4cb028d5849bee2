"""Encoders against independent references in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from sqlvec.encoders import (
    KINDS,
    Binary,
    Encoder,
    Halfvec,
    Linear,
    Truncate,
    from_options,
    matrix_parts,
)
from sqlvec.encoders.binary import LEVELS
from sqlvec.encoders.integer_parts import matrix_step, vector_parts, vector_step
from sqlvec.errors import DeclarationError, EncodingError

TINY = np.float32(1e-45)
HUGE = np.finfo(np.float32).max

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-60_000, 60_000, width=32)


def batches(
    elements: st.SearchStrategy[float] = moderate,
) -> st.SearchStrategy[NDArray[np.float32]]:
    shapes = st.tuples(st.integers(1, 4), st.integers(1, 40))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements))


def matrix(rows: int, columns: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def rotation_parts(dimensions: int) -> dict[str, NDArray[np.float32]]:
    return matrix_parts(np.linalg.qr(matrix(dimensions, dimensions))[0])


@given(batches())
def test_halfvec_is_round_to_nearest(x):
    codes = Halfvec().encode(x)
    assert codes.dtype == np.float16
    step = np.spacing(np.abs(codes)).astype(np.float64)
    assert (np.abs(codes.astype(np.float64) - x) <= step / 2).all()


def test_halfvec_refuses_what_float16_cannot_hold():
    assert Halfvec().encode([65504.0, -65519.0]).tolist() == [65504, -65504]
    with pytest.raises(EncodingError, match="65520.0 is out of range for type halfvec"):
        Halfvec().encode([1.0, 65520.0])


@given(batches(floats))
def test_binary_is_the_sign(x):
    codes = Binary().encode(x)
    assert codes.dtype == np.bool_
    assert (codes == (x > 0)).all()


@given(batches(), st.data())
def test_binary_centred_compares_with_the_mean(x, data):
    mean = data.draw(hnp.arrays(np.float32, x.shape[1], elements=moderate))
    assert (Binary(center=True).encode(x, {"mean": mean}) == (x > mean)).all()


@given(batches(floats), st.integers(2, 8))
def test_binary_levels_are_multiples_of_the_root_mean_square(x, levels):
    codes = Binary(levels=levels).encode(x).reshape(len(x), levels, -1)
    rms = np.sqrt((x.astype(np.float64) ** 2).mean(axis=1))
    for threshold, code in zip(LEVELS[levels], codes.swapaxes(0, 1), strict=True):
        border = (threshold * rms)[:, None]
        doubt = np.abs(x - border) <= 2.0**-21 * rms[:, None]
        assert ((code == (x > border)) | doubt).all()
    # A thermometer: what is above one threshold is above those before it.
    assert (codes[:, :-1] >= codes[:, 1:]).all()


@given(batches(st.floats(-1, 1, width=32)), st.integers(2, 8))
def test_binary_levels_do_not_see_the_length(x, levels):
    encoder = Binary(levels=levels)
    longer = np.ldexp(x, 100)
    assert (encoder.encode(longer) == encoder.encode(np.ldexp(longer, -90))).all()


@pytest.mark.parametrize("levels", range(1, 9))
def test_thresholds_are_symmetric(levels):
    thresholds = np.array(LEVELS[levels])
    assert len(thresholds) == levels
    assert (np.diff(thresholds) > 0).all()
    assert (thresholds == -thresholds[::-1]).all()


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("levels", range(2, 9))
def test_levels_of_zero_are_in_the_middle(rotate, levels):
    codes = Binary(rotate=rotate, levels=levels).encode(np.zeros(12), matrix_parts(np.eye(12)))
    assert (codes.reshape(levels, 12).sum(axis=0) == levels // 2).all()


def test_more_levels_order_better():
    rng = np.random.default_rng(11)
    x = rng.standard_normal((2000, 128)) * np.geomspace(1, 0.2, 128)
    queries = x[:50] + 0.5 * rng.standard_normal((50, 128)) * np.geomspace(1, 0.2, 128)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = np.argsort(-(queries @ unit.T), axis=1)[:, :10]
    found = []
    for levels in (1, 2, 4, 8):
        encoder = Binary(levels=levels)
        codes, asked = encoder.encode(x), encoder.encode(queries)
        distances = (asked[:, None] != codes).sum(axis=2)
        candidates = np.argsort(distances, axis=1, kind="stable")[:, :20]
        found.append(
            np.mean([np.isin(a, b).mean() for a, b in zip(nearest, candidates, strict=True)])
        )
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.2


@given(batches(floats))
def test_binary_rotated_is_the_sign_of_the_product(x):
    parts = rotation_parts(x.shape[1])
    codes = Binary(rotate=True).encode(x, parts)
    exact = x.astype(np.float64) @ parts["high"].astype(np.float64).T
    # The vector was rounded to 1 / c of its largest value; only near zero may a sign differ.
    largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
    doubt = largest * 4200 * x.shape[1] / 4096
    assert ((codes == (exact > 0)) | (np.abs(exact) <= doubt)).all()


def test_rotated_bits_keep_angles():
    rng = np.random.default_rng(7)
    a, noise = rng.standard_normal((2, 200, 128))
    b = a + 0.7 * noise
    parts = rotation_parts(128)
    bits = Binary(rotate=True)
    differing = (bits.encode(a, parts) != bits.encode(b, parts)).mean(axis=1)
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert np.abs(differing - np.arccos(cosine) / np.pi).mean() < 0.05


@given(batches(floats), st.data())
def test_truncate_is_a_unit_prefix(x, data):
    dimensions = data.draw(st.integers(1, x.shape[1]))
    codes = Truncate(dimensions, "vector").encode(x)
    assert codes.dtype == np.float32
    prefix = x[:, :dimensions].astype(np.float64)
    norms = np.linalg.norm(prefix, axis=1)
    nonzero = norms > 0
    exact = prefix[nonzero] / norms[nonzero, None]
    np.testing.assert_allclose(codes[nonzero], exact, rtol=1e-6, atol=float(TINY))
    np.testing.assert_allclose(np.linalg.norm(codes[nonzero], axis=1), 1, rtol=1e-5)
    assert (codes[~nonzero] == 0).all()
    halves = Truncate(dimensions).encode(x)
    assert (halves == codes.astype(np.float16)).all()


@given(batches(moderate), st.integers(0, 2**32 - 1))
def test_linear_is_the_product_within_its_bound(x, seed):
    w = matrix(5, x.shape[1], seed) / 60_000
    codes = Linear(5).encode(x, matrix_parts(w)).astype(np.float64)
    assert_product_within_bound(codes, x, w)


def assert_product_within_bound(codes, x, w) -> None:
    d = x.shape[1]
    exact = x.astype(np.float64) @ w.T
    row_norms = np.linalg.norm(w, axis=1)
    largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
    stated = 5e-8 * d**1.5 * largest * row_norms
    single = 2**-22 * np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) * row_norms
    before_rounding = stated + single
    step = np.spacing((np.abs(exact) + before_rounding).astype(np.float16)).astype(np.float64)
    assert (np.abs(codes - exact) <= before_rounding + step / 2).all()


@given(batches(moderate), st.data())
def test_linear_centred_takes_the_mean_off(x, data):
    mean = data.draw(hnp.arrays(np.float32, x.shape[1], elements=st.floats(-1, 1, width=32)))
    parts = matrix_parts(matrix(3, x.shape[1]) / 60_000)
    centred = Linear(3, center=True).encode(x, parts | {"mean": mean})
    assert (centred == Linear(3).encode(x - mean, parts)).all()


@pytest.mark.parametrize("dimensions", [1, 2, 1000, 4096, 16_000])
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_linear_at_every_size(dimensions, magnitude):
    rng = np.random.default_rng(dimensions)
    x = (rng.standard_normal((2, dimensions)) * magnitude).astype(np.float32)
    w = rng.standard_normal((4, dimensions)) / magnitude / dimensions
    codes = Linear(4).encode(x, matrix_parts(w)).astype(np.float64)
    assert_product_within_bound(codes, x, w)


@given(batches(floats))
def test_integer_parts_stay_exact_in_float32(x):
    """The premise of every matrix code: no partial sum of a product reaches 2^24."""
    split = vector_parts(x)
    w = matrix_parts(matrix(3, x.shape[1]))
    for left, right in (
        (split.high, w["high"]),
        (split.low, w["high"]),
        (split.high, w["low"]),
    ):
        assert (left == np.rint(left)).all() and (right == np.rint(right)).all()
        assert (np.abs(left) @ np.abs(right).T <= 2**24).all()


@pytest.mark.parametrize("dimensions", [1, 2, 3, 63, 64, 65, 4095, 4096, 4097, 15_883, 16_000])
def test_integer_parts_stay_exact_for_the_worst_vector(dimensions):
    c, b = vector_step(dimensions), matrix_step(dimensions)
    largest_low = np.ceil(b / 2)
    root = np.sqrt(dimensions)
    assert c * root * (4000 + root / 2) < 2**24
    assert c * largest_low * dimensions <= 2**24


SAMPLES: list[tuple[Encoder, int]] = [
    (Halfvec(), 12),
    (Binary(), 12),
    (Binary(center=True), 12),
    (Binary(rotate=True), 12),
    (Binary(rotate=True, center=True), 12),
    (Binary(levels=3), 36),
    (Binary(rotate=True, center=True, levels=2), 24),
    (Truncate(5), 5),
    (Truncate(5, "vector"), 5),
    (Linear(4), 4),
    (Linear(4, center=True), 4),
]


def parts_for(encoder: Encoder) -> dict[str, NDArray[np.float32]]:
    rows = 12 if encoder.kind == "binary" else 4
    parts = matrix_parts(matrix(rows, 12))
    return parts | {"mean": np.linspace(-1, 1, 12, dtype=np.float32)}


@pytest.mark.parametrize(("encoder", "code_dimensions"), SAMPLES)
def test_batch_is_row_by_row(encoder, code_dimensions):
    x = matrix(20, 12, seed=3)
    parts = parts_for(encoder)
    batch = encoder.encode(x, parts)
    assert batch.shape == (20, code_dimensions)
    assert (batch == np.array([encoder.encode(row, parts) for row in x])).all()
    assert encoder.encode(x[:0], parts).shape == (0, code_dimensions)


@pytest.mark.parametrize(("encoder", "code_dimensions"), SAMPLES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_nan_and_infinity_are_refused(encoder, code_dimensions, value):
    x = np.ones(12)
    x[7] = value
    with pytest.raises(EncodingError, match="NaN, infinity"):
        encoder.encode(x, parts_for(encoder))


@pytest.mark.parametrize("encoder", [e for e, _ in SAMPLES if "center" not in repr(e)])
def test_zero_gives_zero(encoder):
    assert not encoder.encode(np.zeros(12), parts_for(encoder)).any()


@pytest.mark.parametrize(
    "encoder",
    [
        *(Binary(), Binary(rotate=True), Binary(levels=5), Binary(rotate=True, levels=4)),
        Truncate(5),
    ],
)
def test_a_power_of_two_changes_nothing(encoder):
    x = matrix(1, 12, seed=5)[0].astype(np.float32)
    parts = parts_for(encoder)
    assert (encoder.encode(x * np.float32(2.0**-60), parts) == encoder.encode(x, parts)).all()


@pytest.mark.parametrize("value", [TINY, HUGE, -TINY, -HUGE])
def test_tiny_and_huge(value):
    x = np.full((1, 3), value, np.float32)
    assert (Binary().encode(x) == (value > 0)).all()
    unit = np.sign(value) / np.sqrt(3)
    np.testing.assert_allclose(Truncate(3, "vector").encode(x)[0], unit, rtol=1e-6)
    assert (Binary(rotate=True).encode(x, matrix_parts(np.eye(3))) == (value > 0)).all()


def test_centring_that_overflows_is_refused():
    with pytest.raises(EncodingError):
        Binary(center=True).encode([HUGE], {"mean": np.array([-HUGE])})


def test_code_types():
    assert Halfvec().code_type(384) == "halfvec(384)"
    assert Binary().code_type(384) == "bit(384)"
    assert Binary(levels=4).code_type(384) == "bit(1536)"
    assert Truncate(64).code_type(384) == "halfvec(64)"
    assert Truncate(64, "vector").code_type(384) == "vector(64)"
    assert Linear(32).code_type(384) == "halfvec(32)"
    with pytest.raises(DeclarationError, match="400 dimensions cannot come from 384"):
        Truncate(400).code_type(384)


@pytest.mark.parametrize(("encoder", "code_dimensions"), SAMPLES)
def test_options_make_the_same_encoder_again(encoder, code_dimensions):
    assert from_options(encoder.kind, encoder.options()) == encoder
    assert type(encoder) is KINDS[encoder.kind]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ternary", {}, "unknown encoder kind 'ternary'; the kinds are: halfvec, binary"),
        ("binary", {"rotated": True}, "encoder kind 'binary': .*rotated"),
        ("binary", {"levels": 0}, "option 'levels' is an integer from 1 to 8, not 0"),
        ("binary", {"levels": 9}, "from 1 to 8, not 9"),
        ("binary", {"levels": 1.5}, "from 1 to 8, not 1.5"),
        ("binary", {"levels": 2.0}, "from 1 to 8, not 2.0"),
        ("binary", {"levels": True}, "from 1 to 8, not True"),
        ("binary", {"levels": "x"}, "from 1 to 8, not 'x'"),
        ("truncate", {}, "encoder kind 'truncate': .*dimensions"),
        ("truncate", {"dimensions": 0}, "option 'dimensions' is a positive integer, not 0"),
        ("truncate", {"dimensions": 4, "type": "bit"}, "'type' is halfvec or vector, not 'bit'"),
        ("linear", {"dimensions": 2.5}, "option 'dimensions' is a positive integer, not 2.5"),
    ],
)
def test_wrong_options_are_named(kind, options, message):
    with pytest.raises(DeclarationError, match=message):
        from_options(kind, options)


@pytest.mark.parametrize(
    ("encoder", "x", "parts", "message"),
    [
        (Halfvec(), [[[1.0]]], {}, "1 or 2 dimensions, found 3"),
        (Halfvec(), [], {}, "1 to 16000 dimensions, found 0"),
        (Halfvec(), np.ones(16_001), {}, "1 to 16000 dimensions, found 16001"),
        (Halfvec(), [[1.0], [1.0, 2.0]], {}, "equally long"),
        (Halfvec(), ["a"], {}, "not a vector"),
        (Truncate(3), [1.0, 2.0], {}, "first 3 dimensions of a vector that has 2"),
        (Linear(2), [1.0, 2.0], {}, "needs part 'high'"),
        (Linear(2), [1.0, 2.0], matrix_parts(np.eye(3)), r"'high' .* shape \(3, 3\), not \(2, 2\)"),
        (Binary(center=True), [1.0], {"mean": np.ones(2)}, "'mean'"),
    ],
)
def test_wrong_input_is_named(encoder, x, parts, message):
    with pytest.raises(EncodingError, match=message):
        encoder.encode(x, parts)


def test_matrix_parts_refuses_what_is_no_matrix():
    with pytest.raises(EncodingError, match=r"shape \(3,\)"):
        matrix_parts(np.ones(3))
    with pytest.raises(EncodingError, match="NaN"):
        matrix_parts([[np.nan]])
    with pytest.raises(EncodingError, match="range of float32"):
        matrix_parts([[1e50]])
