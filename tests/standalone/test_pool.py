"""Pooling against scipy, scikit-learn, brute force and hand-made cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial import distance
from sklearn.cluster import KMeans

from sqlvec.encoders import Pool
from sqlvec.encoders.pool import _averages, _directions, _distances, _spherical, _ward
from sqlvec.errors import DeclarationError, EncodingError


def integers(n: int, d: int = 16, seed: int = 0) -> NDArray[np.float16]:
    """Return tokens that pooling does not round, without two pairs at one distance."""
    rng = np.random.default_rng(seed)
    return rng.integers(-15, 16, (n, d)).astype(np.float16)


def partition(labels: Any) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def unit(x: Any) -> NDArray[np.float64]:
    wide = np.asarray(x, dtype=np.float64)
    normed: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return normed


@pytest.mark.parametrize("n", [2, 3, 10, 33, 120])
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_hierarchical_is_ward_as_scipy_has_it(n, factor):
    tokens = integers(n, seed=n)
    clusters = max(n // factor, 1)
    condensed = distance.pdist(tokens.astype(np.float64), "cosine")
    labels = hierarchy.fcluster(hierarchy.linkage(condensed, "ward"), clusters, "maxclust")
    assert partition(_ward(_distances(tokens), clusters)) == partition(labels)
    means = [
        tokens[sorted(group)].astype(np.float64).mean(axis=0)
        for group in sorted(partition(labels), key=min)
    ]
    pooled = Pool(factor=factor, protected=0).document(tokens)
    np.testing.assert_array_equal(pooled, np.array(means).astype(np.float32).astype(np.float16))


def brute_force_ward(squares: NDArray[np.float64], clusters: int) -> list[int]:
    """Merge the nearest pair, the first of equal ones, until enough is merged."""
    squares = np.minimum(squares, squares.T)
    n = len(squares)
    groups = {i: [i] for i in range(n)}
    while len(groups) > clusters:
        alive = sorted(groups)
        i, j = min(
            ((a, b) for a in alive for b in alive if a < b), key=lambda pair: (squares[pair], pair)
        )
        a, b, square = len(groups[i]), len(groups[j]), squares[i, j]
        for k in set(alive) - {i, j}:
            c = len(groups[k])
            squares[i, k] = squares[k, i] = (
                (a + c) * squares[i, k] + (b + c) * squares[j, k] - c * square
            ) / (a + b + c)
        groups[i] += groups.pop(j)
    return [next(first for first, group in groups.items() if k in group) for k in range(n)]


@given(
    hnp.arrays(np.float16, st.tuples(st.integers(2, 12), st.just(2)), elements=st.integers(-2, 2)),
    st.integers(1, 5),
)
def test_ties_go_to_the_first_pair(tokens, clusters):
    clusters = min(clusters, len(tokens))
    found = _ward(_distances(tokens), clusters)
    assert found.tolist() == brute_force_ward(_distances(tokens), clusters)
    assert len(set(found)) == clusters


def test_kmeans_from_the_same_start_as_scikit_learn():
    rng = np.random.default_rng(1)
    centres = unit(rng.standard_normal((8, 32)))
    tokens = unit(centres[rng.integers(0, 8, 160)] + 0.05 * rng.standard_normal((160, 32)))
    start = tokens[np.arange(12) * 160 // 12]
    theirs = KMeans(12, init=start, n_init=1, algorithm="lloyd").fit(tokens)
    own = _spherical(tokens.astype(np.float16), 12, 50)

    def likeness(labels: Any) -> float:
        return float(sum(np.linalg.norm(tokens[labels == c].sum(axis=0)) for c in set(labels)))

    # The sum of cosines between tokens and their centre is what spherical k-means maximizes.
    assert likeness(own) == pytest.approx(likeness(theirs.labels_), rel=0.01)


def test_kmeans_settles():
    tokens = integers(60, seed=3)
    labels = _spherical(tokens, 9, 100)
    units = unit(tokens)
    means = unit(np.array([units[labels == c].mean(axis=0) for c in np.unique(labels)]))
    likeness = units @ means.T
    own = likeness[np.arange(60), np.searchsorted(np.unique(labels), labels)]
    # No token is nearer to another centre, but for what rounding to 2048 steps loses.
    assert (own >= likeness.max(axis=1) - 0.01).all()


def test_kmeans_of_what_is_told_apart_easily():
    axes = np.eye(4)
    tokens = np.concatenate([[axis, 2 * axis, axis] for axis in axes]) + 0.01
    pooled = Pool("kmeans", clusters=4, protected=0).document(tokens)
    assert pooled.shape == (4, 4)
    np.testing.assert_allclose(unit(pooled), axes, atol=0.02)


def test_at_most_so_many_vectors():
    for n in (0, 1, 2, 5, 100):
        tokens = integers(n)
        pooled = Pool("kmeans", clusters=8, protected=2).document(tokens)
        assert len(pooled) <= 8
        np.testing.assert_array_equal(pooled[:2], tokens[:2])


def test_directions_have_one_norm():
    x = (10.0 ** np.arange(-4, 4))[:, None] * np.random.default_rng(0).standard_normal((8, 32))
    directions = _directions(np.concatenate([x, np.zeros((1, 32))]).astype(np.float32))
    assert (directions == np.rint(directions)).all()
    np.testing.assert_allclose(np.linalg.norm(directions[:8], axis=1), 2048, rtol=1e-3)
    assert not directions[8].any()


NUMBERS = np.arange(1.0, 11)[:, None]


def pooled_numbers(pool: Pool, count: int = 10) -> list[float]:
    found: list[float] = pool.document(NUMBERS[:count])[:, 0].tolist()
    return found


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (Pool("sequential"), [1, 2.5, 4.5, 6.5, 8.5, 10]),
        (Pool("sequential", factor=3, protected=0), [2, 5, 8, 10]),
        (Pool("sequential", protected=20), list(range(1, 11))),
        (Pool("tiles", tile=4), [2.5, 6.5, 9.5]),
        (Pool("tiles", tile=4, protected=2), [1, 2, 4.5, 8.5]),
        (Pool("prefix", tokens=3), [1, 2, 3]),
        (Pool("prefix", tokens=30), list(range(1, 11))),
        (Pool("rows", width=3), [2, 5, 8, 10]),
        (Pool("rows", width=3, protected=1), [1, 3, 6, 9]),
        (Pool("rows", width=2, height=3, protected=1), [1, 2.5, 4.5, 6.5, 8, 9, 10]),
        (Pool("rows", width=2, height=9), [1.5, 3.5, 5.5, 7.5, 9.5]),
        (Pool("rows", width=11), list(range(1, 11))),
        (Pool("sequential", factor=3, normalize=True), [1, 1, 1, 1]),
        (Pool("sequential", factor=4, protected=2, normalize=True), [1, 2, 1, 1]),
        (Pool("rows", width=3, normalize=True), [1, 1, 1, 10]),
        # Bins of one, two and two rows.
        (Pool("rows", width=2, max_rows=3), [1.5, 4.5, 8.5]),
        (Pool("rows", width=2, max_rows=9), [1.5, 3.5, 5.5, 7.5, 9.5]),
        # Windows of one, two, three, three, three, two and one of the five rows.
        (Pool("rows", width=2, window=3), [1.5, 2.5, 3.5, 5.5, 7.5, 8.5, 9.5]),
        (Pool("rows", width=2, max_rows=3, window=3), [1.5, 3.5, 5.5, 6.5, 8.5]),
        (Pool("rows", width=5, window=5), [3, 5.5, 5.5, 5.5, 5.5, 8]),
    ],
    ids=repr,
)
def test_by_hand(pool, expected):
    assert pooled_numbers(pool) == expected


def test_a_colpali_page():
    """1,024 patches in 32 rows, then six tokens of text: the text stays."""
    tokens = np.random.default_rng(0).standard_normal((1030, 8)).astype(np.float16)
    pooled = Pool("rows").document(tokens)
    assert pooled.shape == (38, 8)
    np.testing.assert_array_equal(pooled[32:], tokens[1024:])
    np.testing.assert_allclose(pooled[5], tokens[160:192].astype(float).mean(axis=0), atol=1e-3)
    assert Pool("rows", window=3).document(tokens).shape == (40, 8)
    assert Pool("rows", max_rows=10).document(tokens).shape == (16, 8)


def test_top():
    weights = [0.1, 0.9, 0.5, 0.9, 0.2]
    top = Pool("top", share=0.5)
    assert top.document(NUMBERS[:5], weights).ravel().tolist() == [2, 3, 4]
    assert top.document(NUMBERS[:5]).ravel().tolist() == [1, 2, 3, 4, 5]
    # Of equal ones the first; seven tenths of ten are seven.
    equal = Pool("top", share=0.7).document(NUMBERS, np.ones(10))
    assert equal.ravel().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert len(Pool("top", share=0.001).document(NUMBERS, np.ones(10))) == 1
    one, all_ = top.documents([NUMBERS[:5], NUMBERS[:5]], [weights, None])
    assert (len(one), len(all_)) == (3, 5)
    with pytest.raises(EncodingError, match="5 tokens has weights of shape"):
        top.document(NUMBERS[:5], [1.0])
    with pytest.raises(EncodingError, match="not NaN"):
        top.document(NUMBERS[:1], [float("nan")])
    with pytest.raises(EncodingError, match="'prefix' takes no weights"):
        Pool("prefix").document(NUMBERS[:1], [1.0])


EVERY = [
    Pool(),
    Pool("kmeans"),
    Pool("kmeans", clusters=3),
    Pool("sequential"),
    Pool("rows", width=2),
    Pool("tiles"),
    Pool("top"),
    Pool("prefix"),
]


@pytest.mark.parametrize("pool", EVERY, ids=repr)
def test_nothing_stays_nothing(pool):
    assert pool.document([]).shape == (0, 0)
    assert pool.document(np.zeros((0, 5))).shape == (0, 5)
    one = pool.document([[1.0, 2.0]])
    assert one.dtype == np.float16 and one.tolist() == [[1, 2]]
    assert [len(found) for found in pool.documents([[], [[1.0]]])] == [0, 1]
    assert not pool.document(np.zeros((7, 3))).any()


@pytest.mark.parametrize("pool", EVERY, ids=repr)
def test_options_make_the_same_again(pool):
    assert Pool(**pool.options()) == pool
    assert eval(repr(pool)) == pool
    assert pool.code_type(128) == "halfvec(128)[]"


@pytest.mark.parametrize("pool", EVERY, ids=repr)
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1.0, 2.0], "2 dimensions"),
        ([[float("nan")]], "NaN"),
        ([[70000.0]], "out of range for type halfvec"),
    ],
)
def test_what_cannot_be_pooled(pool, tokens, message):
    with pytest.raises(EncodingError, match=message):
        pool.document(tokens)


def test_too_many_for_a_hierarchy():
    with pytest.raises(EncodingError, match="at most 4096 tokens, not 4097"):
        Pool().document(np.ones((4098, 1)))


@given(
    hnp.arrays(
        np.float16, st.tuples(st.integers(1, 9), st.just(3)), elements=st.floats(-99, 99, width=16)
    ),
    st.sampled_from(
        [Pool(protected=0), Pool("kmeans", protected=0), Pool("sequential"), Pool("tiles")]
    ),
)
def test_means_stay_within_their_tokens(tokens, pool):
    pooled = pool.document(tokens)
    assert 1 <= len(pooled) <= len(tokens)
    assert (pooled >= tokens.min(axis=0)).all() and (pooled <= tokens.max(axis=0)).all()


def test_averages_are_exact_in_any_order():
    x = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float16)
    labels = np.zeros(500, dtype=int)
    assert (_averages(x, labels) == _averages(x[::-1], labels)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "average"}, "unknown method of pooling 'average'"),
        ({"method": "rows", "factor": 2}, "'rows' has no option 'factor'; its options are: width"),
        ({"factor": 1}, "'factor' is an integer from 2 to 1000, not 1"),
        ({"factor": 2.5}, "'factor' is an integer"),
        ({"protected": -1}, "'protected' is an integer from 0 to 1000"),
        ({"method": "kmeans", "iterations": 101}, "from 1 to 100, not 101"),
        ({"method": "kmeans", "clusters": 4, "factor": 2}, "not both"),
        ({"method": "kmeans", "clusters": 1}, "more than 1, not 1"),
        ({"method": "rows", "window": 2}, "odd number of rows"),
        ({"method": "rows", "width": True}, "'width' is an integer"),
        ({"method": "top", "share": 0}, "from 0.001 to 1, not 0"),
        ({"method": "top", "share": "0.5"}, "is a number"),
        ({"method": "prefix", "tokens": 0}, "from 1 to 10000"),
        ({"normalize": 1}, "'normalize' is true or false"),
        ({"method": "top", "normalize": True}, "'top' has no option 'normalize'"),
        ({"method": "tiles", "tile": 1001}, "from 2 to 1000"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(DeclarationError, match=message):
        Pool(**options)
