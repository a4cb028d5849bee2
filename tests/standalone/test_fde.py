"""Fixed dimensional encodings against a slow reference, hand-made cases and MaxSim itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from sqlvec.encoders import FDE
from sqlvec.errors import DeclarationError, EncodingError

numbers = st.floats(-100, 100, width=16)


def matrices(fde: FDE, d: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    planes = rng.standard_normal((fde.repetitions * fde.simhash_bits, d))
    planes = np.rint(4000 * planes / np.linalg.norm(planes, axis=1, keepdims=True))
    signs = rng.choice([-1, 1], (fde.repetitions * fde.projection, d))
    if fde.projection == d:
        signs = np.tile(np.eye(d), (fde.repetitions, 1))
    slots = rng.integers(
        1, (fde.final_dimensions or 1) + 1, (fde.repetitions, 2**fde.simhash_bits * fde.projection)
    )
    parts = {"hyperplane": planes, "sign": signs, "slot": slots * rng.choice([-1, 1], slots.shape)}
    return {name: np.asarray(value, dtype=np.float32) for name, value in parts.items()}


def reference(fde: FDE, x: Any, parts: Any, *, as_query: bool) -> NDArray[np.float64]:
    """Encode as the paper says it, token by token, in float64."""
    x = np.asarray(x, dtype=np.float64)
    blocks = []
    for r in range(fde.repetitions):
        planes = parts["hyperplane"][r * fde.simhash_bits : (r + 1) * fde.simhash_bits]
        signs = parts["sign"][r * fde.projection : (r + 1) * fde.projection].astype(np.float64)
        scale = 1 if fde.projection == x.shape[1] else fde.projection**-0.5
        bits = [tuple(planes.astype(np.float64) @ token > 0) for token in x]
        for bucket in range(2**fde.simhash_bits):
            wanted = tuple(bool(bucket >> i & 1) for i in reversed(range(fde.simhash_bits)))
            members = [token for token, own in zip(x, bits, strict=True) if own == wanted]
            if as_query:
                block = np.sum(members, axis=0) if members else np.zeros(x.shape[1])
            elif members:
                block = np.mean(members, axis=0)
            else:
                hamming = [sum(a != b for a, b in zip(own, wanted, strict=True)) for own in bits]
                block = x[int(np.argmin(hamming))]
            blocks.append(scale * (signs @ block))
    code = np.concatenate(blocks)
    if fde.final_dimensions is None:
        return code
    slots = parts["slot"].ravel()
    final = np.zeros(fde.final_dimensions)
    for value, slot in zip(code, slots, strict=True):
        final[int(abs(slot)) - 1] += np.sign(slot) * value
    return final


@pytest.mark.parametrize(
    "fde",
    [FDE(3, 2, 4), FDE(2, 0, 3), FDE(1, 3, 6), FDE(4, 3, 2, final_dimensions=10)],
    ids=repr,
)
@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_reference(fde, n):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, 6)).astype(np.float16)
    parts = matrices(fde, 6)
    for as_query, encode in ((False, fde.document), (True, fde.query)):
        expected = reference(fde, x, parts, as_query=as_query)
        code = encode(x, parts)
        assert code.dtype == np.float16 and code.shape == (fde.dimensions,)
        np.testing.assert_allclose(code, expected, rtol=2e-3, atol=3e-3)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(5)), elements=numbers),
    st.integers(0, 3),
)
def test_sums_are_exact_in_any_order(x, seed):
    """The premise of equal codes: float32 rounds nothing, so that the order of tokens is free."""
    fde = FDE(3, 3, 4)
    parts = matrices(fde, 5, seed)
    assert (fde.query(x, parts) == fde.query(x[::-1], parts)).all()


def axes(fde: FDE) -> dict[str, NDArray[np.float32]]:
    """Two hyperplanes that cut the plane into its quadrants, and no projection."""
    identity = np.eye(2, dtype=np.float32)
    return {
        "hyperplane": np.tile(4000 * identity, (fde.repetitions, 1)),
        "sign": np.tile(identity, (fde.repetitions, 1)),
    }


def blocks(code: Any) -> list[list[float]]:
    return np.asarray(code, dtype=float).reshape(-1, 2).tolist()


def test_buckets_by_hand():
    fde = FDE(1, 2, 2)
    # Buckets 00, 01, 10, 11: signs of the first and the second coordinate.
    tokens = [[1, 1], [3, 1], [-1, -2]]
    assert blocks(fde.query(tokens, axes(fde))) == [[-1, -2], [0, 0], [0, 0], [4, 2]]
    # Bucket 01 and 10 are one bit away from each of the others: the first token fills them.
    assert blocks(fde.document(tokens, axes(fde))) == [[-1, -2], [1, 1], [1, 1], [2, 1]]


def test_an_empty_bucket_takes_the_nearest_bits():
    fde = FDE(1, 2, 2)
    tokens = [[-1, -2], [3, 1], [2, -1]]
    # 01 is next to 00 and 11, of which 00 has the earlier token.
    assert blocks(fde.document(tokens, axes(fde))) == [[-1, -2], [-1, -2], [2, -1], [3, 1]]
    assert blocks(fde.document(tokens[1:], axes(fde))) == [[2, -1], [3, 1], [2, -1], [3, 1]]


def test_one_token_fills_every_bucket():
    fde = FDE(3, 2, 2)
    assert blocks(fde.document([[1, -2]], axes(fde))) == [[1, -2]] * 12
    assert blocks(fde.query([[1, -2]], axes(fde))) == [[0, 0], [0, 0], [1, -2], [0, 0]] * 3


def test_zero_lies_in_the_first_bucket():
    fde = FDE(1, 2, 2)
    assert (fde.query([[0, 0]], axes(fde)) == 0).all()
    assert blocks(fde.document([[0, 0], [1, 1]], axes(fde)))[0] == [0, 0]


def test_a_batch_is_one_by_one():
    fde = FDE()
    parts = matrices(fde, 16)
    batch = [np.random.default_rng(n).standard_normal((n, 16)) for n in (1, 5, 40)]
    documents = fde.documents(batch, parts)
    assert documents.shape == (3, 2560)
    assert (documents == [fde.document(tokens, parts) for tokens in batch]).all()
    assert (fde.queries(batch, parts)[1] == fde.query(batch[1], parts)).all()
    assert fde.documents([], parts).shape == (0, 2560)


def token_sets(rng: np.random.Generator, count: int, d: int = 64) -> list[NDArray[np.float64]]:
    """Return unit tokens around shared centres, as those of a vocabulary are."""
    centres = rng.standard_normal((80, d))
    sets = []
    for _ in range(count):
        n = int(rng.integers(20, 60))
        tokens = centres[rng.integers(0, 80, n)] + 0.6 * rng.standard_normal((n, d))
        sets.append(tokens / np.linalg.norm(tokens, axis=1, keepdims=True))
    return sets


@pytest.mark.parametrize(
    ("fde", "least"),
    [(FDE(), 0.8), (FDE(20, 5, 8, final_dimensions=2560), 0.8), (FDE(20, 3, 8), 0.7)],
    ids=repr,
)
def test_the_inner_product_finds_what_maxsim_ranks_first(fde, least):
    rng = np.random.default_rng(1)
    documents = token_sets(rng, 250)
    # Each query holds disturbed tokens of one document.
    queries = []
    for document in documents[:40]:
        query = document[rng.integers(0, len(document), 16)]
        query = query + 0.09 * rng.standard_normal(query.shape)
        queries.append(query / np.linalg.norm(query, axis=1, keepdims=True))
    parts = matrices(fde, 64)
    estimate = (
        fde.queries(queries, parts).astype(float) @ fde.documents(documents, parts).astype(float).T
    )
    exact = np.array([[(q @ d.T).max(axis=1).sum() for d in documents] for q in queries])
    best = exact.argmax(axis=1)
    candidates = np.argsort(-estimate, axis=1)[:, :25]
    assert np.mean([b in found for b, found in zip(best, candidates, strict=True)]) >= 0.95
    assert np.corrcoef(exact.ravel(), estimate.ravel())[0, 1] > least / 2
    # On the scale that the paper proves: repetitions times MaxSim, from below on average.
    own = np.arange(40)
    ratio = estimate[own, own] / fde.repetitions / exact[own, own]
    assert 0.1 < ratio.mean() < 1


def test_more_repetitions_come_closer():
    rng = np.random.default_rng(2)
    documents, queries = token_sets(rng, 120), [d[:12] for d in token_sets(rng, 20)]
    exact = np.array([[(q @ d.T).max(axis=1).sum() for d in documents] for q in queries])

    def correlation(fde: FDE) -> float:
        parts = matrices(fde, 64)
        found = (
            fde.queries(queries, parts).astype(float)
            @ fde.documents(documents, parts).astype(float).T
        )
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(exact, found, strict=True)]))

    few, many = correlation(FDE(2, 4, 8)), correlation(FDE(30, 4, 8))
    assert many > few + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetitions": 0}, "'repetitions' is a positive integer"),
        ({"projection": -1}, "'projection' is a positive integer"),
        ({"simhash_bits": 13}, "from 0 to 12, not 13"),
        (
            {"simhash_bits": 5},
            "5120 dimensions; an index on halfvec takes 4000: take fewer repetitions",
        ),
        ({"final_dimensions": 4001}, "4001 dimensions"),
    ],
)
def test_declarations_that_do_not_fit(options, message):
    with pytest.raises(DeclarationError, match=message):
        FDE(**options)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "without tokens"),
        (np.zeros((0, 6)), "without tokens"),
        ([1.0, 2.0], "2 dimensions"),
        ([[1.0, 2.0], [1.0]], "equally long|inhomogeneous"),
        ([[float("nan")] * 6], "NaN"),
        ([[70000.0] * 6], "out of range for type halfvec"),
        ([[1.0] * 5], "shape"),
    ],
)
def test_what_has_no_code(tokens, message):
    fde = FDE(2, 2, 3)
    with pytest.raises(EncodingError, match=message):
        fde.document(tokens, matrices(fde, 6))


def test_documents_of_one_batch_have_one_width():
    fde = FDE(2, 2, 3)
    with pytest.raises(EncodingError, match="expected vectors of 6 dimensions, found 5"):
        fde.documents([np.ones((1, 6)), np.ones((1, 5))], matrices(fde, 6))


def test_without_matrices():
    with pytest.raises(EncodingError, match="load_fde|load_encoder"):
        FDE().document([[1.0] * 8], {})
