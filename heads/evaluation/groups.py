"""Held-out rows prepared for metrics: in groups, with how much each was liked, and in parts for cross-fitting.

Knows scores, no head and no metric.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from embed.arrays import Floats, Ints
from heads.data.comparisons import appeal, groups_of
from heads.evaluation.evaluate import Measured
from heads.evaluation.intervals import Interval, mean_interval


@dataclass(frozen=True)
class GroupedRows:
    """The rows held out, in the groups that metrics compare within, and the pairs measured of them."""

    measured: Measured
    fitted: dict[tuple[int, str], Floats] = field(default_factory=dict)  # of pair_probability, by id of the scores

    @cached_property
    def rows(self) -> Ints:
        """(r,) the rows held out."""
        return np.flatnonzero(self.measured.split.fold >= 0)

    @cached_property
    def liked(self) -> Floats:
        """(r,) how much people liked them, higher is better."""
        return appeal(self.measured.labels)[self.rows]

    @cached_property
    def group(self) -> Ints:
        """(r,) the group and fold of each row; rows of one number may be ranked against each other."""
        group, fold = groups_of(self.measured.labels, self.rows), self.measured.split.fold[self.rows]
        number: Ints = np.unique(group * self.measured.split.folds + fold, return_inverse=True)[1]
        return number

    @cached_property
    def part(self) -> Ints:
        """(p,) which pairs are left out together when something is fitted; -1 for pairs that must be left out of all.

        The folds; for a single one its halves, and pairs across them in neither.
        """
        measured = self.measured
        if len(np.unique(measured.fold)) > 1:
            return measured.fold
        names = np.unique(measured.split.group[self.rows])
        chosen = np.random.default_rng(measured.protocol.seed).permutation(names)[: len(names) // 2]
        half = np.isin(measured.split.group, chosen).astype(np.int64)
        a, b = half[measured.pairs.row_a], half[measured.pairs.row_b]
        return np.where(a == b, a, -1)

    def crossed(self, fitted: Callable[[Ints, Ints], Floats]) -> Floats:
        """(p,) `fitted(others, part)` of each part: made for its pairs from the pairs of the others."""
        values = np.full(len(self.part), np.nan)
        for name in np.unique(self.part[self.part >= 0]):
            part, others = np.flatnonzero(self.part == name), np.flatnonzero((self.part != name) & (self.part >= 0))
            values[part] = fitted(others, part) if len(others) else np.nan
        return values

    def by_group(self, credit: Floats, group: Ints, row: Ints) -> Interval:
        """Mean over folds of the mean of one credit a group (g,); `group` and `row` (n,) say which rows it has."""
        first = row[np.unique(group, return_index=True)[1]]
        measured = self.measured
        return mean_interval(credit, measured.bootstrap_of(first, first), measured.split.fold[first])
