"""Held-out rows prepared for metrics: pairs, groups, clusters, and parts for cross-fitting. Also compares two scorers
on the same pairs by the paired bootstrap.

Knows scores, no head, and of all metrics only the credit of a pair.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np

from embed.arrays import Bools, Floats, Ints
from embed.progress import stage
from embed.spec import InputError
from heads.config import Protocol
from heads.data.comparisons import Labels, Pairs, appeal, groups_of, pairs_among
from heads.data.split import Split
from heads.evaluation.intervals import FEW, Bootstrap, Interval, PairedInterval, mean_interval, paired_interval
from heads.metrics import TieRule, pair_credit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """The pairs of held-out rows, labelled ties included. No pair crosses folds. Intervals resample `cluster`."""

    labels: Labels
    split: Split
    protocol: Protocol
    pairs: Pairs
    fold: Ints  # (p,) the fold of each pair
    cluster: Ints  # (m,) the cluster of each row
    clusters: str  # the name of clusters in messages
    noise: float = 0.0  # the folds' heads.evaluation.fold_noise
    fitted: dict[tuple[bytes, str], Floats] = field(default_factory=dict)  # cache of pair_probability

    @property
    def decided(self) -> Bools:
        """(p,) the mask of pairs with a winner."""
        return np.asarray(self.pairs.target != 0.5, np.bool_)

    def of_pairs(self, scores: Floats) -> tuple[Floats, Floats]:
        """The scores of both sides of each pair, (p,) each, from scores (m, sides)."""
        return scores[self.pairs.row_a, 0], scores[self.pairs.row_b, -1]

    def credit(self, scores: Floats, tie: TieRule = "half") -> Floats:
        """(p,) the `pair_credit` of each pair."""
        return pair_credit(*self.of_pairs(scores), self.pairs.target, tie)

    @property
    def bootstrap(self) -> Bootstrap:
        """The bootstrap of the pairs. It draws the same resamples each time."""
        return self.bootstrap_of(self.pairs.row_a, self.pairs.row_b)

    def bootstrap_of(self, row_a: Ints, row_b: Ints) -> Bootstrap:
        """The bootstrap of other comparisons, given the rows of their two sides."""
        rng = np.random.default_rng(self.protocol.seed)
        resamples = self.protocol.resamples
        return Bootstrap(self.cluster[row_a], self.cluster[row_b], rng, resamples, self.clusters, self.noise)

    def interval(self, credit: Floats) -> Interval:
        """The mean over folds of the mean credit (p,) of the fold's pairs. NaN credits are left out."""
        return mean_interval(credit, self.bootstrap, self.fold, 0, 1)

    def pooled_interval(self, credit: Floats) -> Interval:
        """The mean credit (p,) over the pairs of all folds together, for cases in which some folds have few pairs."""
        return mean_interval(credit, self.bootstrap, None, 0, 1)

    def describe(self) -> dict[str, object]:
        """The protocol in words and numbers, for the report."""
        kind = self.labels.kind
        return {
            **asdict(self.protocol),
            "pairs": f"counts that differ at least {self.protocol.min_ratio:g}-fold" if kind == "counts" else kind,
            "labelled_ties": "left out",
            "score_ties": "half right",
            "average": "over pairs within a fold, then over folds",
            "interval": f"95 %, {self.protocol.resamples} bootstrap resamples of {self.cluster_count} {self.clusters}",
            "folds": self.split.folds,
            "fold_noise": self.noise,
        }

    @cached_property
    def cluster_count(self) -> int:
        """The number of clusters that the pairs with a winner come from."""
        rows = np.concatenate([self.pairs.row_a[self.decided], self.pairs.row_b[self.decided]])
        return len(np.unique(self.cluster[rows]))

    def warn_of_few(self) -> None:
        """Warn if there are so few clusters that intervals say little."""
        if self.cluster_count < FEW:
            logger.warning(
                f"intervals rest on {self.cluster_count} {self.clusters}; with fewer than {FEW} they are wide, and"
                " with one there is none; hold out more, or measure on another table"
            )

    @cached_property
    def rows(self) -> Ints:
        """(r,) the numbers of the held-out rows."""
        return np.flatnonzero(self.split.fold >= 0)

    @cached_property
    def liked(self) -> Floats:
        """(r,) how much people liked these rows; higher is better."""
        return appeal(self.labels)[self.rows]

    @cached_property
    def group(self) -> Ints:
        """(r,) a number for each row's group and fold. Rows with the same number may be ranked against each other."""
        group, fold = groups_of(self.labels, self.rows), self.split.fold[self.rows]
        number: Ints = np.unique(group * self.split.folds + fold, return_inverse=True)[1]
        return number

    @cached_property
    def part(self) -> Ints:
        """(p,) a number for each pair. Pairs with the same number are left out together when something is fitted; -1 is
        always left out.

        The parts are the folds. A single fold is divided into two halves, and pairs across the halves get -1.
        """
        if len(np.unique(self.fold)) > 1:
            return self.fold
        names = np.unique(self.split.group[self.rows])
        chosen = np.random.default_rng(self.protocol.seed).permutation(names)[: len(names) // 2]
        half = np.isin(self.split.group, chosen).astype(np.int64)
        a, b = half[self.pairs.row_a], half[self.pairs.row_b]
        return np.where(a == b, a, -1)

    def crossed(self, fitted: Callable[[Ints, Ints], Floats | float]) -> Floats:
        """(p,) the values of `fitted(others, part)`, which is called for each part to compute its pairs' values from
        the pairs of the other parts."""
        values = np.full(len(self.part), np.nan)
        for name in np.unique(self.part[self.part >= 0]):
            part, others = np.flatnonzero(self.part == name), np.flatnonzero((self.part != name) & (self.part >= 0))
            values[part] = fitted(others, part) if len(others) else np.nan
        return values

    def by_group(self, credit: Floats, group: Ints, row: Ints, least: float = 0.0) -> Interval:
        """The mean over folds of the mean credit of a group (g,), which is from `least` to 1. `group` and `row` (n,)
        list the rows of each group."""
        first = row[np.unique(group, return_index=True)[1]]
        return mean_interval(credit, self.bootstrap_of(first, first), self.split.fold[first], least, 1)


@stage("pairing the rows")
def measure_pairs(labels: Labels, split: Split, protocol: Protocol, noise: float = 0.0) -> Measured:
    """The pairs among the rows that each fold holds out. Raise InputError if no pair has a winner.

    Clusters are prompts if both sides of every pair share their prompt, and otherwise groups of the split. `noise` is
    the `fold_noise` of the folds' heads.
    """
    rng = np.random.default_rng(protocol.seed)
    folds = [
        pairs_among(labels, split.test_rows(fold), rng, protocol.min_ratio, protocol.max_pairs)
        for fold in range(split.folds)
    ]
    pairs = Pairs(**{name: np.concatenate([getattr(p, name) for p in folds]) for name in Pairs.__dataclass_fields__})
    empty = sum(not (p.target != 0.5).any() for p in folds)
    if empty == len(folds):
        alone = lone_rows(labels, split)
        raise InputError(
            f"nothing to measure: no pair with a winner among the {int((split.fold >= 0).sum())} held-out rows"
            + (f", of which {alone} are alone in their group" if alone else "")
            + "; hold out more, or lower --min-ratio"
        )
    if empty:
        logger.warning(f"{empty} of {len(folds)} held-out parts have no pair with a winner and are left out")
    prompt = labels.prompt[pairs.a]
    shared = bool((prompt >= 0).all() and (prompt == labels.prompt[pairs.b]).all())
    cluster, clusters = (labels.prompt[labels.items[:, 0]], "prompts") if shared else (split.group, "split groups")
    fold = np.repeat(np.arange(len(folds)), [len(p) for p in folds])
    return Measured(labels, split, protocol, pairs, fold, cluster, clusters, noise)


def lone_rows(labels: Labels, split: Split) -> int:
    """The number of held-out rows that are alone in their group, and so are in no pair."""
    if labels.kind == "comparisons":
        return 0
    rows = np.flatnonzero(split.fold >= 0)
    number = np.unique(groups_of(labels, rows) * split.folds + split.fold[rows], return_counts=True)[1]
    return int((number == 1).sum())


@stage("comparing the head with the baselines")
def lead(measured: Measured, scores: Mapping[str, Floats]) -> dict[str, dict[str, object]]:
    """The head's pair accuracy minus each other scorer's on the same pairs: {scorer: {difference, p_value}}, with
    intervals of the paired bootstrap."""
    credit = {name: measured.credit(s) for name, s in scores.items()}
    return {
        name: paired_interval(credit["head"], other, measured.bootstrap, measured.fold).to_json()
        for name, other in credit.items()
        if name != "head"
    }


@stage("comparing the heads")
def compared(measured: Measured, first: Floats, second: Floats) -> tuple[Interval, Interval, PairedInterval]:
    """The pair accuracies of two scorers (m, sides) and the paired test of their difference. All folds' pairs are
    pooled, since two heads may have few rows in common in some fold."""
    measured.warn_of_few()
    one, other = measured.credit(first), measured.credit(second)
    test = paired_interval(one, other, measured.bootstrap)
    return measured.pooled_interval(one), measured.pooled_interval(other), test
