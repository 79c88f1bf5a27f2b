"""Which pair comes next, compared with counting and with integrals done by hand."""

import math

import numpy as np
import pytest

from runtime.collect.choose import Pool, cell_of, contrast, freshness, kept_apart, split_pools, telling


def test_pairs_are_of_one_group_and_every_pair_is_drawn() -> None:
    groups = [np.array([3, 5, 8]), np.array([1]), np.array([0, 2])]
    pool = Pool(groups)
    expected = {(3, 5), (3, 8), (5, 8), (0, 2)}
    drawn = pool.draw(4000, np.random.default_rng(0))
    counts = dict.fromkeys(expected, 0)
    for a, b in np.sort(drawn, axis=1).tolist():
        counts[a, b] += 1
    assert pool.pairs == 4 == len(pool.all()) and {tuple(pair) for pair in pool.all().tolist()} == expected
    # A group is as likely as another, however many pairs it has.
    assert abs(counts[0, 2] - 2000) < 150 and all(abs(counts[pair] - 667) < 100 for pair in expected - {(0, 2)})
    assert Pool([np.array([1])]).draw(5, np.random.default_rng(0)).shape == (0, 2)


def test_what_measures_is_never_what_teaches_and_stays_so_when_more_comes() -> None:
    names = [f"picture {i}" for i in range(400)]
    prompts = [f"prompt {i}" for i in range(90)] + ["many"]
    groups = [np.arange(3 * i, 3 * i + 3) for i in range(90)] + [np.arange(270, 400)]
    measuring, teaching = split_pools(groups, names, prompts, 0.2)
    apart = [set(np.concatenate(pool.groups).tolist()) for pool in (measuring, teaching)]
    assert not apart[0] & apart[1] and apart[0] | apart[1] == set(range(400))
    parts = [group for group in teaching.groups if group.min() >= 270]
    assert len(parts) == 5 and all(len({cell_of(names[item]) for item in part}) == 1 for part in parts)
    assert 0.1 < len(apart[0]) / 400 < 0.3
    before = dict(zip(names, kept_apart(names, 0.2), strict=True))
    more = [*names, *(f"new {i}" for i in range(400))]
    assert all(
        before.get(name, is_apart) == is_apart for name, is_apart in zip(more, kept_apart(more, 0.2), strict=True)
    )
    assert kept_apart(["only"], 0.2).sum() <= 1 and kept_apart(["a", "b", "c"], 1e-9).sum() == 1
    assert not kept_apart(names, 0.0).any() and kept_apart(names, 1.0).all()


def test_the_vote_that_is_expected_is_that_over_all_that_the_scores_may_be() -> None:
    """Against the integral over a normal distribution of the difference."""
    z, w = np.polynomial.hermite_e.hermegauss(80)
    for difference, uncertainty in ((0.0, 2.0), (1.0, 1.0), (3.0, 0.2), (3.0, 3.0), (-4.0, 4.0)):
        p = float(1 / (1 + np.exp(-(difference + uncertainty * z))) @ w / w.sum())
        expected = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
        (found,) = telling(np.array([difference]), np.array([uncertainty]))
        assert found == pytest.approx(expected, abs=0.02)


def test_pictures_that_are_far_apart_count_more() -> None:
    vectors = np.array([[0.0, 0], [3, 4], [0, 1], [np.nan, 0]])
    found = contrast(vectors, np.array([[0, 1], [0, 2], [0, 3]]))
    np.testing.assert_allclose(found, [5 / 3, 1 / 3, np.nan])
    np.testing.assert_array_equal(contrast(np.zeros((2, 2)), np.array([[0, 1]])), [1])


def test_the_least_sure_pair_tells_most_where_nobody_says_how_sure() -> None:
    found = telling(np.array([0.0, 0.5, -0.5, 3.0, -800.0]))
    assert found[0] == pytest.approx(1) and found[1] == pytest.approx(found[2]) and found.argmax() == 0
    assert found[3] > found[4] >= 0


def test_new_pictures_and_new_prompts_come_first() -> None:
    pairs = np.array([[0, 1], [0, 2], [3, 4]])
    found = freshness(pairs, np.array([3, 0, 0, 0, 0]), np.array([0, 0, 0, 1, 1]), np.array([6, 0]))
    assert found[2] == 1 > found[0] == found[1] > 0
