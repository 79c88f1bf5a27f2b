"""Pairs within groups against a double loop, and samples of them against counting."""

import tracemalloc

import numpy as np
import pytest

from heads.pairs import pairs_within, sample_pairs


def all_pairs(groups: list | np.ndarray) -> list[tuple[int, int]]:
    """Group by group, and in each by the later row."""
    rows = range(len(groups))
    found = [(i, j) for j in rows for i in range(j) if groups[i] == groups[j]]
    return sorted(found, key=lambda pair: groups[pair[0]])  # stable


@pytest.mark.parametrize("groups", [[], [5], [1, 2, 3], [7, 7], [2, 0, 2, 1, 0, 2, 2, 9], [0] * 40, list("cabbage")])
def test_all_pairs_are_those_of_a_double_loop(groups: list) -> None:
    for a, b in (pairs_within(groups), sample_pairs(groups, 1000, np.random.default_rng(0))):
        assert list(zip(a.tolist(), b.tolist(), strict=True)) == all_pairs(groups)
        assert a.dtype == b.dtype == np.int64


@pytest.mark.parametrize("size", [3, 20])  # far fewer than there are, and most of them: two ways of drawing
def test_a_sample_is_uniform_over_pairs_and_without_repeats(size: int) -> None:
    groups = np.array([0, 1, 0, 0, 1, 0, 2, 1, 0, 3, 3])
    if size == 20:
        groups = np.r_[groups, 0, 0, 0]
    counts = dict.fromkeys(all_pairs(groups), 0)
    assert len(counts) == {3: 14, 20: 32}[size]
    rng, rounds = np.random.default_rng(1), 4000
    for _ in range(rounds):
        a, b = sample_pairs(groups, size, rng)
        pairs = set(zip(a.tolist(), b.tolist(), strict=True))
        assert len(pairs) == size
        for pair in pairs:
            counts[pair] += 1  # a KeyError for a pair that does not exist
    share = size / len(counts)
    spread = np.sqrt(rounds * share * (1 - share))
    assert np.abs(np.array(list(counts.values())) - rounds * share).max() < 4.5 * spread


def test_a_group_of_a_million_is_sampled_without_building_its_pairs() -> None:
    groups = np.zeros(1_000_000, np.int64)
    tracemalloc.start()
    try:
        a, b = sample_pairs(groups, 100_000, np.random.default_rng(0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6  # its 5e11 pairs would need 8 TB
    assert len(np.unique(a * 1_000_000 + b)) == 100_000
    assert ((a >= 0) & (a < b) & (b < 1_000_000)).all()
    # For a uniform pair the expected smaller number is a third, the larger two thirds of the way.
    assert abs(a.mean() / 1e6 - 1 / 3) < 0.005
    assert abs(b.mean() / 1e6 - 2 / 3) < 0.005


def test_pairs_of_a_huge_group_are_found_exactly() -> None:
    # Rounding of the square root must not lose or invent rows at the ends of the triangle's rows.
    groups = np.zeros(3000, np.int64)
    wanted = 3000 * np.tril_indices(3000, -1)[0] + np.tril_indices(3000, -1)[1]
    a, b = sample_pairs(groups, len(wanted) - 1, np.random.default_rng(0))
    assert (np.diff(3000 * b + a) > 0).all()
    found = np.zeros(3000**2, bool)  # np.setdiff1d takes as long as all else of this file
    found[3000 * b + a] = True
    assert np.count_nonzero(~found[wanted]) == 1
    np.testing.assert_array_equal(3000 * np.array(pairs_within(groups))[1] + pairs_within(groups)[0], wanted)
