"""How well scores agree with people, by the rule of each paper. All functions take numpy arrays.

Per-comparison functions give a credit in [0, 1] for each comparison and per-group functions one number per group,
in the order of `np.unique(group)`; NaN marks cases that cannot be judged. The caller averages (`np.nanmean`) and
computes intervals (`heads.evaluation.intervals`). Nothing here knows a head, a prompt or a file.

`target` is the probability that side a is preferred (1, 0, 0.5 for a tie, or anything between). In `rank` the lowest
number is the best; higher scores are better.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from embed.arrays import Bools, Floats, Ints
from embed.spec import InputError
from embed.wording import unknown_name
from heads.pairs import pairs_within

TieRule = Literal["half", "correct", "wrong"]

TIE_CREDIT: dict[TieRule, float] = {"half": 0.5, "correct": 1.0, "wrong": 0.0}
TIE_THRESHOLDS = tuple(step / 10 for step in range(11))  # the same grid as PickScore


def pair_credit(score_a: ArrayLike, score_b: ArrayLike, target: ArrayLike, tie: TieRule = "half") -> Floats:
    """(m,) 1 if the scores order a comparison as people did, 0 if they order it the other way round.

    `tie` is the rule for equal scores: "correct" is Social Reward's (>=, so that a constant scorer gets 1), "wrong" is
    strict accuracy and ImageReward's, "half" is that of PickScore's training. If people tied (target 0.5) the credit is
    NaN. A soft target counts as a choice of its likelier side.
    """
    if tie not in TIE_CREDIT:
        raise unknown_name("tie rule", tie, TIE_CREDIT)
    a, b, y = _columns(score_a=score_a, score_b=score_b, target=target)
    credit = np.where(a == b, TIE_CREDIT[tie], (a > b) == (y > 0.5))
    return np.where(y == 0.5, np.nan, credit)


def tie_credit(score_a: ArrayLike, score_b: ArrayLike, target: ArrayLike, threshold: ArrayLike) -> Floats:
    """(m,) PickScore's credit with three answers, a, b and tie: 1 if right, 0.5 if exactly one of answer and target is
    a tie, otherwise 0.

    A tie is predicted if |p_a - p_b| <= threshold with p = softmax(score_a, score_b), so the scores must be on the
    logit scale. At threshold 0 only equal scores tie, at 1 all do. A soft target is a tie if it is exactly 0.5.
    """
    a, b, y = _columns(score_a=score_a, score_b=score_b, target=target)
    gap = np.tanh(np.abs(a - b) / 2)  # |p_a - p_b| of a softmax over two
    predicted = np.where(gap <= threshold, 0.0, np.sign(a - b))
    credit: Floats = 1 - np.abs(predicted - np.sign(y - 0.5)) / 2
    return credit


def tie_threshold(score_a: ArrayLike, score_b: ArrayLike, target: ArrayLike) -> float:
    """The first of `TIE_THRESHOLDS` with the highest mean `tie_credit`. It is to be found on validation rows and
    applied to test rows."""
    means = [tie_credit(score_a, score_b, target, threshold).mean() for threshold in TIE_THRESHOLDS]
    return TIE_THRESHOLDS[int(np.argmax(means))]


def ranked_pairs(group: ArrayLike, rank: ArrayLike) -> tuple[Ints, Ints]:
    """Row numbers (better, worse) of every pair within a group whose ranks differ, as ImageReward compares them."""
    (rank,) = _columns(rank=rank)
    first, second = pairs_within(group)
    better = np.where(rank[first] < rank[second], first, second)
    worse = np.where(rank[first] < rank[second], second, first)
    differ = rank[first] != rank[second]
    return better[differ], worse[differ]


def rank_accuracy(scores: ArrayLike, group: ArrayLike, rank: ArrayLike) -> Floats:
    """(g,) HPSv2's 1 - inversions / (k (k - 1) / 2) of each group. Its mean is the macro accuracy.

    Pairs that people tied are never inverted, so they count as right. HPSv2 orders equal scores arbitrarily; here they
    count as half an inversion, the mean over these orders. NaN for a group of one.
    """
    scores, rank = _columns(scores=scores, rank=rank)
    groups, row = np.unique(np.asarray(group), return_inverse=True)
    first, second = pairs_within(group)
    agreement = np.sign(scores[first] - scores[second]) * np.sign(rank[second] - rank[first])
    inverted = np.where(rank[first] == rank[second], 0.0, (1 - agreement) / 2)
    pairs = _sums(row[first], np.ones(len(first)), len(groups))
    inversions = _sums(row[first], inverted, len(groups))
    return 1 - ratio(inversions, pairs)


def recall_at_k(scores: ArrayLike, group: ArrayLike, rank: ArrayLike, k: int) -> Floats:
    """(g,) 1 if the k highest scores of a group include a picture that people ranked first, otherwise 0.

    ImageReward, appendix C.2. Equal scores are resolved against the scorer: the picture ranked first comes last
    among its equals. NaN if any k pictures would include one, because fewer than k are not ranked first.
    """
    scores, rank = _columns(scores=scores, rank=rank)
    groups, row = np.unique(np.asarray(group), return_inverse=True)
    first_rank = np.full(len(groups), np.inf)
    np.minimum.at(first_rank, row, rank)
    best = rank == first_rank[row]
    top_score = np.full(len(groups), -np.inf)
    np.maximum.at(top_score, row[best], scores[best])
    others = np.bincount(row[~best], minlength=len(groups))
    others_ahead = np.bincount(row[~best & (scores >= top_score[row])], minlength=len(groups))
    return np.where(others < k, np.nan, others_ahead < k)


def filter_at_k(scores: ArrayLike, group: ArrayLike, rank: ArrayLike, k: int) -> Floats:
    """(g,) 1 if the k lowest scores of a group include a picture that people ranked last, otherwise 0.

    The mirror image of `recall_at_k`, also for ties and NaN. The paper's text leaves the rule open; this is our
    reading.
    """
    return recall_at_k(-np.asarray(scores, np.float64), group, -np.asarray(rank, np.float64), k)


def spearman(scores: ArrayLike, values: ArrayLike) -> float:
    """Spearman's rank correlation. Ties get their mean rank. NaN if scores or values are constant."""
    from scipy.stats import spearmanr

    x, y = _columns(scores=scores, values=values)
    return float(spearmanr(x, y).statistic) if all(len(np.unique(side)) > 1 for side in (x, y)) else float("nan")


def spearman_by_group(scores: ArrayLike, values: ArrayLike, group: ArrayLike) -> Floats:
    """(g,) `spearman` of each group's rows."""
    from scipy.stats import rankdata

    x, y = _columns(scores=scores, values=values)
    groups, row, sizes = np.unique(np.asarray(group), return_inverse=True, return_counts=True)

    def centred_rank(column: Floats) -> Floats:
        """Each row's rank in its group minus the group's mean rank."""
        level = np.unique(column, return_inverse=True)[1]
        rank: Floats = rankdata(row * len(row) + level)  # ranks over all rows, group by group
        return rank - (_sums(row, rank, len(groups)) / sizes)[row]

    return _correlation(centred_rank(x), centred_rank(y), row, len(groups))


def kendall_by_group(scores: ArrayLike, values: ArrayLike, group: ArrayLike) -> Floats:
    """(g,) Kendall's tau-b of each group's rows."""
    x, y = _columns(scores=scores, values=values)
    first, second = pairs_within(group)
    groups, row = np.unique(np.asarray(group), return_inverse=True)
    x, y = (np.sign(column[first] - column[second]) for column in (x, y))
    return _correlation(x, y, row[first], len(groups))


def ndcg(scores: ArrayLike, gain: ArrayLike, group: ArrayLike) -> Floats:
    """(g,) the discounted cumulative gain of each group in order of score, divided by that of its ideal order.

    Järvelin & Kekäläinen 2002. `gain` (n,) must not be negative. From ranks take, for example, the worst rank minus the
    rank. The discount is 1 / log2(1 + position). Equal scores share the mean of their gains (McSherry & Najork 2008).
    NaN if no gain of the group is above 0.
    """
    scores, gain = _columns(scores=scores, gain=gain)
    if gain.size and gain.min() < 0:
        raise InputError(f"a gain is {gain.min()}; wanted gains of 0 or more")
    groups, row, sizes = np.unique(np.asarray(group), return_inverse=True, return_counts=True)
    position = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its group, from 0
    discount = 1 / np.log2(2 + position)

    def total(by: Floats) -> Floats:
        order = np.lexsort((-by, row))
        same = (np.diff(row[order]) == 0) & (by[order][1:] == by[order][:-1])
        level = np.cumsum(np.append(False, ~same)[: len(order)])  # one number for each value in each group
        shared = np.bincount(level, gain[order]) / np.bincount(level)
        return _sums(row[order], shared[level] * discount, len(groups))

    return ratio(total(scores), total(gain))


@dataclass(frozen=True)
class ReliabilityBin:
    """Comparisons whose confidence is in [low, high): their number, mean confidence and accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def confidences(probability: ArrayLike, target: ArrayLike, bins: int = 10) -> tuple[Floats, Floats, Ints]:
    """(m,) each comparison's confidence, its outcome, and the number of its bin, out of `bins` equal slices of
    confidence from 0.5 to 1. The last bin includes 1.

    It is arbitrary which picture is called a, so the likelier side counts: confidence is
    max(p, 1 - p) and the outcome is the target of that side (0.5 at p = 0.5). Guo et al. 2017, section 2.
    """
    p, y = _columns(probability=probability, target=target)
    confidence = np.maximum(p, 1 - p)
    outcome = 0.5 + np.sign(p - 0.5) * (y - 0.5)
    return confidence, outcome, np.minimum(((confidence - 0.5) * 2 * bins).astype(np.intp), bins - 1)


def reliability(probability: ArrayLike, target: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """The bins of `confidences` that are not empty."""
    confidence, outcome, slot = confidences(probability, target, bins)
    found = []
    for index in np.unique(slot):
        inside = slot == index
        low, high = 0.5 + index / (2 * bins), 0.5 + (index + 1) / (2 * bins)
        means = float(confidence[inside].mean()), float(outcome[inside].mean())
        found.append(ReliabilityBin(float(low), float(high), int(inside.sum()), *means))
    return found


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """Mean |confidence - accuracy| over the bins of `reliability`, weighted by count (Guo et al. 2017, equation 3)."""
    total = sum(bin.count for bin in bins)
    return sum(bin.count * abs(bin.confidence - bin.accuracy) for bin in bins) / total if total else float("nan")


def brier(probability: ArrayLike, target: ArrayLike) -> Floats:
    """(m,) (probability - target)^2 of each comparison, NaN without a probability. The mean is the Brier score (Brier
    1950)."""
    return np.square(np.asarray(probability, np.float64) - np.asarray(target, np.float64))


def _correlation(x: Floats, y: Floats, row: Ints, groups: int) -> Floats:
    """(g,) sum x y / sqrt(sum x^2 sum y^2) within each group."""
    xy, xx, yy = (_sums(row, product, groups) for product in (x * y, x * x, y * y))
    return ratio(xy, np.sqrt(xx * yy))


def _sums(index: Ints, values: Floats, size: int) -> Floats:
    """(size,) the sum of the values at each index."""
    return np.bincount(index, values, size).astype(np.float64)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """(n,) numerator / denominator, NaN if the denominator is 0."""
    ratio = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio


def flipped_pairs(reference: ArrayLike, scores: ArrayLike, noise: float = 0.0) -> tuple[Floats, Bools]:
    """Compare the order of all pairs of rows in each column of `reference` and `scores`, both (n, m). Only pairs that
    `reference` separates by more than `noise` count, k over all columns. Gives by how much (k,) it separates them, and
    whether `scores` order them otherwise (k,)."""
    theirs, ours = np.asarray(reference, np.float64), np.asarray(scores, np.float64)
    first, second = np.triu_indices(len(theirs), k=1)
    gap, new_gap = (theirs[first] - theirs[second]).ravel(), (ours[first] - ours[second]).ravel()
    decided = np.abs(gap) > noise
    return np.abs(gap[decided]), np.sign(gap[decided]) != np.sign(new_gap[decided])


def _columns(**named: ArrayLike) -> list[Floats]:
    """The arguments as float64 (n,). Raise ValueError if their lengths differ, and InputError for NaN, which would
    count as a tie."""
    columns = {name: np.asarray(values, np.float64) for name, values in named.items()}
    if len({column.shape for column in columns.values()}) > 1 or any(c.ndim != 1 for c in columns.values()):
        shapes = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
        raise ValueError(f"shapes differ or have more than one axis: {shapes}; wanted (n,) each")
    for name, column in columns.items():
        if missing := int(np.isnan(column).sum()):
            raise InputError(f"{missing} of {len(column)} values of {name} are NaN; wanted none")
    return list(columns.values())
