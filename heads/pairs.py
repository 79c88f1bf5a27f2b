"""All pairs of rows within groups, or a sample of them. Pure functions of arrays."""

import numpy as np
from numpy.typing import ArrayLike

from embed.arrays import Ints


def pairs_within(group: ArrayLike) -> tuple[Ints, Ints]:
    """Row numbers (p,) and (p,) of every pair of two rows with the same entry in `group` (n,).

    Each pair occurs once, with the earlier row first. Pairs are listed group by group, and in a group of rows 0, 1, 2,
    ... in the order (0, 1), (0, 2), (1, 2), (0, 3), ...
    """
    order, sizes = _by_group(group)
    position = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its group, from 0
    second = np.repeat(np.arange(len(order)), position)  # each row is paired with all rows before it in its group
    nth = np.arange(len(second)) - np.repeat(np.cumsum(position) - position, position)
    return order[second - position[second] + nth], order[second]


def sample_pairs(group: ArrayLike, max_pairs: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """The result of `pairs_within` if there are at most `max_pairs` pairs, and otherwise a uniform sample of so many.

    Time and memory grow with n + max_pairs, not with the number of pairs.
    """
    order, sizes = _by_group(group)
    ends = np.cumsum(sizes * (sizes - 1) // 2)
    if ends[-1] <= max_pairs:
        return pairs_within(group)
    pair = _distinct(int(ends[-1]), max_pairs, rng)
    of_group = np.searchsorted(ends, pair, side="right")
    within = pair - np.append(0, ends)[of_group]
    # Pair number j (j - 1) / 2 + i of a group has the rows i < j.
    j = ((1 + np.sqrt(1 + 8 * within.astype(np.float64))) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > within
    j += j * (j + 1) // 2 <= within
    i = within - j * (j - 1) // 2
    start = (np.cumsum(sizes) - sizes)[of_group]
    return order[start + i], order[start + j]


def _by_group(group: ArrayLike) -> tuple[Ints, Ints]:
    """The rows (n,) sorted by group, and the size of each group."""
    group = np.asarray(group)
    order = np.argsort(group, kind="stable")
    changes = np.flatnonzero(group[order][1:] != group[order][:-1]) + 1
    return order, np.diff(changes, prepend=0, append=len(order))


def _distinct(total: int, size: int, rng: np.random.Generator) -> Ints:
    """(size,) different numbers below `total`, sorted. Every set of numbers is equally likely."""
    if total <= 4 * size:
        return np.sort(rng.permutation(total)[:size])
    drawn = np.empty(0, np.int64)
    while len(drawn) < size:
        drawn = np.sort(np.append(drawn, rng.integers(total, size=size + size // 4 + 1)))
        drawn = drawn[np.append(True, drawn[1:] != drawn[:-1])]  # far faster than np.unique, which hashes
    # The numbers are uniform, so a random subset of them is uniform too.
    return np.sort(rng.choice(drawn, size, replace=False, shuffle=False))
