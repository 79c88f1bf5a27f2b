"""What an IVF learns keeps inner products, and its choice of lists is the best by the formula."""

import numpy as np
import pytest
from catalogue_fakes import between, unit_vectors

from runtime.index.ivf import REACH, SUBVECTOR, TIER_MEANS, Lists, plain, principal_axes, tiers_of

N, DIM = 4000, 30


@pytest.fixture(scope="module")
def learned():
    vectors = unit_vectors(N, DIM, clusters=30).astype(np.float16)
    lists = Lists.learn(vectors, np.random.default_rng(0))
    return lists, vectors, lists.cells_of(vectors)


def test_turning_keeps_inner_products_and_lengths():
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((500, DIM)) * np.arange(1, DIM + 1)
    axes = principal_axes(sample.T @ sample)
    assert axes.shape == (DIM, 32)
    np.testing.assert_allclose(axes @ axes.T, np.eye(DIM), atol=1e-5)


def test_each_subvector_has_a_share_of_the_large_variances():
    variances = np.arange(1, 33) ** -1.0
    axes = principal_axes(np.diag(variances))
    shares = np.square(axes).T @ variances
    largest = shares.reshape(-1, SUBVECTOR).max(axis=1)
    np.testing.assert_allclose(np.sort(largest)[::-1], variances[:8], rtol=1e-6)
    # The product over a subvector differs far less than over neighbours in rank.
    logs = np.log(shares).reshape(-1, SUBVECTOR).sum(axis=1)
    assert np.ptp(logs) < 0.5 * np.ptp(np.log(variances).reshape(-1, SUBVECTOR).sum(axis=1))


def test_codes_and_queries_multiply_to_the_blended_score(learned):
    lists, vectors, cells = learned
    popularity = np.linspace(1, 0, N, dtype=np.float32)
    queries, weights = between(vectors, 20), np.linspace(0, 3, 20, dtype=np.float32)
    asked = lists.askable(queries, weights)
    chosen, starts = lists.best(asked, queries, weights, len(lists.centroids) * len(TIER_MEANS))
    of_list = np.empty_like(starts)
    np.put_along_axis(of_list, chosen, starts, axis=1)
    own = cells * len(TIER_MEANS) + tiers_of(popularity)
    scores = of_list[:, own] + asked @ lists.codable(vectors, popularity, cells).T
    expected = queries @ plain(vectors).T + weights[:, None] * popularity
    np.testing.assert_allclose(scores, expected, atol=2e-5)


def test_popularity_is_coded_to_a_five_hundredth(learned):
    """Each of its two coordinates has 16 values at most, or 16 that lie as near."""
    lists, vectors, cells = learned
    popularity = np.linspace(1, 0, N, dtype=np.float32)
    whole, left = lists.codable(vectors, popularity, cells)[:, [-2 * SUBVECTOR, -SUBVECTOR]].T
    assert len(np.unique(np.round(whole, 6))) == 16
    assert left.min() >= 0 and left.max() <= 16 / 512


def test_the_lists_with_the_best_prospects_are_chosen(learned):
    lists, vectors, cells = learned
    query, weight = between(vectors, 1), np.full(1, 0.7, np.float32)
    residuals = plain(vectors) - lists.centroids[cells]
    deviation = np.sqrt(np.square(residuals @ query[0]).mean())
    hopes = [
        query[0] @ lists.centroids[cell] + 0.7 * mean + REACH * deviation * lists.spreads[cell]
        for cell in range(len(lists.centroids))
        for mean in TIER_MEANS
    ]
    chosen, _ = lists.best(lists.askable(query, weight), query, weight, 20)
    # The deviation is learned from a sample, so lists on the edge may change places.
    assert len(np.intersect1d(chosen[0], np.argsort(hopes)[-20:])) >= 18
    assert lists.spreads.min() > 0.3 and abs(np.square(lists.spreads).mean() - 1) < 0.2
