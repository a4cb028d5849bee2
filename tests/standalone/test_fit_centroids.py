"""Fitted centroids: where the tokens are, and in an order that Hamming distance follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from sqlvec.encoders import Centroid
from sqlvec.errors import DeclarationError, EncodingError
from sqlvec.fit.centroid import centroids, renumbered


def around(places: Any, each: int, noise: float, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return np.repeat(places, each, axis=0) + noise * rng.standard_normal(
        (len(places) * each, places.shape[1])
    )


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_they_lie_where_the_tokens_are():
    places = 10 * np.eye(6)[:5]
    found = centroids(around(places, 40, 0.1), clusters=5)
    assert found.shape == (5, 6) and found.dtype == np.float32
    nearest = np.linalg.norm(found[:, None] - places[None], axis=2).min(axis=1)
    assert (nearest < 0.2).all()


def test_unit_tokens_have_unit_centroids():
    tokens = unit(around(unit(np.random.default_rng(0).standard_normal((20, 8))), 20, 0.2))
    found = centroids(tokens.astype(np.float16), clusters=12)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    longer = centroids(2 * tokens, clusters=12)
    assert np.linalg.norm(longer, axis=1).max() < 2


def test_a_seed_is_a_result():
    tokens = np.random.default_rng(0).standard_normal((300, 4))
    assert (centroids(tokens, 20, seed=3) == centroids(tokens, 20, seed=3)).all()


def correlation(values: Any) -> float:
    pairs = np.triu_indices(len(values), 1)
    hamming = [(int(a) ^ int(b)).bit_count() for a, b in zip(*pairs, strict=True)]
    return float(spearmanr(hamming, -(unit(values) @ unit(values).T)[pairs])[0])


@pytest.mark.parametrize("clusters", [16, 50, 64, 200, 256])
def test_hamming_distance_follows_the_cosine(clusters):
    rng = np.random.default_rng(clusters)
    # A few strong directions, as token vectors have.
    values = rng.standard_normal((clusters, 24)) * 0.8 ** np.arange(24)
    ordered = renumbered(values)
    assert sorted(map(tuple, ordered)) == sorted(map(tuple, values.astype(np.float32)))
    assert abs(correlation(values)) < 0.2
    assert correlation(ordered) > 0.45


def test_the_corners_of_a_cube_find_their_numbers():
    corners = 1.0 - 2 * ((np.arange(16)[:, None] >> np.arange(4)) & 1)
    shuffled = corners[np.random.default_rng(1).permutation(16)]
    # Almost a cube: the principal components of a cube could lie anywhere.
    found = renumbered(shuffled * [1, 0.98, 0.96, 0.94])
    signs = np.array([[number >> bit & 1 for bit in range(4)] for number in range(16)])
    agreement = np.corrcoef(signs.T, found.T)[:4, 4:]
    np.testing.assert_allclose(np.sort(np.abs(agreement), axis=1)[:, -1], 1, atol=1e-6)


@pytest.mark.parametrize("values", [np.eye(2), np.eye(3), np.ones((5, 2)), np.zeros((4, 3))])
def test_few_and_equal_ones(values):
    assert sorted(map(tuple, renumbered(values))) == sorted(map(tuple, values))


def test_codes_by_them_keep_what_maxsim_ranks_first():
    rng = np.random.default_rng(2)
    places = unit(rng.standard_normal((60, 16)))
    documents = [unit(around(places[rng.integers(0, 60, 10)], 1, 0.05, n)) for n in range(80)]
    parts = {"centroid": centroids(np.concatenate(documents), 60)}
    encoder = Centroid(60)
    codes = encoder.documents(documents, parts)
    for n, document in enumerate(documents[:20]):
        table = encoder.table(document, parts)
        scores: Any = [encoder.maxsim(code, table) for code in codes]
        assert n in np.argsort(scores)[-3:]


def test_errors():
    with pytest.raises(DeclarationError, match="2 to 256, not 257"):
        centroids(np.eye(3), clusters=257)
    with pytest.raises(EncodingError, match="2 different tokens cannot make 3 clusters"):
        centroids([[1, 2], [1, 2], [3, 4]], clusters=3)
    with pytest.raises(EncodingError, match="2 dimensions"):
        centroids([1.0, 2.0], clusters=2)
    with pytest.raises(EncodingError, match="NaN"):
        centroids([[np.nan]], clusters=2)
