"""The numpy twin of BM25."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlvec.encoders import BM25
from sqlvec.encoders.bm25 import DIMENSIONS, MAX_TERMS, dimension, idf
from sqlvec.errors import DeclarationError, EncodingError

COLLIDING = ("w39570", "w27862")
"""Two lexemes of one dimension."""

frequencies = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    st.floats(0.01, 1e4),
    max_size=30,
)
parameters = st.builds(BM25, st.floats(0, 10), st.floats(0, 1))


def by_hand(bm25: BM25, counts: dict[str, float], avgdl: float) -> dict[int, float]:
    dl = math.fsum(counts.values())
    weights: defaultdict[int, float] = defaultdict(float)
    for term, tf in counts.items():
        norm = bm25.k1 * (1 - bm25.b + bm25.b * dl / avgdl)
        weights[dimension(term) - 1] += tf * (bm25.k1 + 1) / (tf + norm)
    return {index: min(weight, bm25.k1 + 1) for index, weight in weights.items()}


@given(parameters, frequencies, st.floats(0.1, 1e4))
def test_weights_are_those_of_the_formula(bm25, counts, avgdl):
    indices, values = bm25.encode(counts, avgdl)
    expected = by_hand(bm25, counts, avgdl)
    assert indices.dtype == np.int32 and values.dtype == np.float32
    assert indices.tolist() == sorted(expected)
    np.testing.assert_allclose(values, [expected[i] for i in indices.tolist()], rtol=1e-6)
    assert (values > 0).all()
    assert (values <= np.float32(bm25.k1 + 1)).all()


@given(parameters, st.floats(0.1, 100), st.floats(0.1, 100))
def test_weights_grow_with_the_frequency_and_shrink_with_the_length(bm25, tf, avgdl):
    def weight(frequency: float, others: float) -> float:
        code = bm25.encode({"a": frequency, "b": others}, avgdl)
        values: dict[int, float] = dict(zip(*code, strict=True))
        return values[dimension("a") - 1]

    assert weight(tf * 2, 1) >= weight(tf, 1 + tf) - 1e-6
    assert weight(tf, 2) <= weight(tf, 1)


@given(frequencies, st.integers(0, 10**9), st.data())
def test_a_query_weighs_rare_terms_more(counts, documents, data):
    holding = {term: data.draw(st.integers(0, max(documents, 1))) for term in counts}
    indices, values = BM25().query(counts, documents, holding)
    expected: defaultdict[int, float] = defaultdict(float)
    for term, count in counts.items():
        df = holding[term]
        n = max(documents, df)
        expected[dimension(term) - 1] += count * math.log(1 + (n - df + 0.5) / (df + 0.5))
    assert indices.tolist() == sorted(expected)
    np.testing.assert_allclose(values, [expected[i] for i in indices.tolist()], rtol=1e-5)
    assert (values > 0).all()


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_idf_is_positive_and_falls(documents, holding):
    assert idf(documents, holding) > 0
    assert idf(documents, holding) >= idf(documents, holding + 1) or holding >= documents


def test_known_numbers():
    assert dimension("appl") == 1 + int("63469c3c4f19f07", 16) % DIMENSIONS
    bm25 = BM25(k1=2, b=0.5)
    indices, values = bm25.encode({"appl": 2, "tree": 2}, avgdl=2)
    assert indices.tolist() == sorted(dimension(term) - 1 for term in ("appl", "tree"))
    # L = 0.5 + 0.5 · 4/2 = 1.5; 2 · 3 / (2 + 2 · 1.5)
    assert values.tolist() == [np.float32(1.2)] * 2
    assert idf(10, 0) == pytest.approx(math.log(22))
    assert idf(3, 10) == idf(10, 10)  # There are at least the documents that hold the term.


def test_no_words_are_no_values():
    assert [part.size for part in BM25().encode({}, 1)] == [0, 0]
    assert [part.size for part in BM25().query({}, 10, {})] == [0, 0]


def test_terms_that_collide_are_added_up_to_the_bound_of_one():
    one, two = COLLIDING
    assert dimension(one) == dimension(two)
    bm25 = BM25()
    (index,), (weight,) = bm25.encode({one: 1, two: 1}, avgdl=2)
    assert index == dimension(one) - 1
    assert weight == np.float32(2 * 2.2 / (1 + 1.2))
    assert bm25.encode({one: 1, two: 9}, avgdl=10).values.tolist() == [np.float32(2.2)]
    (weight,) = bm25.query({one: 1, two: 1}, 10, {one: 1}).values
    assert weight == np.float32(idf(10, 1) + idf(10, 0))


def test_the_heaviest_terms_are_kept():
    counts = {f"term{i:05}": 1.0 for i in range(MAX_TERMS)} | {"zebra": 2.0}
    indices, _ = BM25().encode(counts, avgdl=100)
    kept = set(indices.tolist())
    assert len(kept) <= MAX_TERMS
    assert dimension("zebra") - 1 in kept
    assert dimension(f"term{MAX_TERMS - 1:05}") - 1 not in kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": -0.1}, "k1 of BM25 is a number from 0 to 100, not -0.1"),
        ({"k1": math.inf}, "k1 of BM25"),
        ({"b": 1.5}, "b of BM25 is a number from 0 to 1, not 1.5"),
        ({"b": math.nan}, "b of BM25"),
    ],
)
def test_parameters_out_of_range_are_named(options, message):
    with pytest.raises(DeclarationError, match=message):
        BM25(**options)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(EncodingError, match="above 0"):
        BM25().encode({"a": 0}, 1)
    with pytest.raises(EncodingError, match="average length"):
        BM25().encode({"a": 1}, 0)
