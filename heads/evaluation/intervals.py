"""How far a mean of credits could be off: bootstrap intervals that resample clusters, not comparisons.

Comparisons that share a prompt (or whose pictures share a group) are not independent, so whole clusters are drawn
with replacement. Knows credits, weights and cluster numbers, not what they stand for; the generator is passed in
and one seed gives one interval. NaN credits (what a metric could not judge) are left out first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from embed.arrays import Floats

# Resamples handled at once hold this many cluster counts (8 bytes each), so memory does not grow with resamples.
COUNTS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval; NaN where there is too little to say (no data, or one cluster)."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        return {name: _number(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class PairedInterval:
    """The first head's mean credit less the second's, and the two-sided p value of no difference."""

    difference: Interval
    p_value: float

    def to_json(self) -> dict[str, object]:
        return {"difference": self.difference.to_json(), "p_value": _number(self.p_value)}


def clustered_interval(
    credit: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    cluster_a: ArrayLike,
    cluster_b: ArrayLike | None = None,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The weighted mean credit and its percentile interval under resampling of clusters. Arrays are (m,).

    Each resample draws as many clusters as there are; a comparison inside one cluster then weighs as often as that
    was drawn, one between two clusters the product of both (after the pigeonhole bootstrap, Owen 2007, which
    errs on the wide side). `cluster_b` is None where both sides share the prompt.
    """
    value, means = _resampled(_judged(credit, weight, cluster_a, cluster_b), rng, resamples)
    return _interval(value, means, level)


def mean_of_folds_interval(
    credit: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    fold: ArrayLike,
    cluster_a: ArrayLike,
    cluster_b: ArrayLike | None = None,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The mean over folds of each fold's weighted mean credit; clusters are resampled within each fold.

    `fold` (m,) is each comparison's fold; the rest is as in `clustered_interval`. A fold without a single credit
    does not count.
    """
    value, means = _of_folds(credit, weight, fold, cluster_a, cluster_b, rng, resamples)
    return _interval(value, means, level)


def spearman_interval(
    scores: ArrayLike,
    values: ArrayLike,
    *,
    fold: ArrayLike,
    cluster: ArrayLike,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The mean over folds of Spearman's correlation of scores and values, all (n,), resampled by cluster.

    Ranks are taken anew in each resample: a row drawn twice is two rows of equal value. A fold in which either side is
    constant does not count.
    """
    x, y, fold, cluster = np.asarray(scores), np.asarray(values), np.asarray(fold), np.asarray(cluster)
    found = []
    for name in np.unique(fold):
        rows = np.flatnonzero(fold == name)
        whole = _rank_correlation(x[rows], y[rows], np.ones((len(rows), 1)))[0]
        if np.isnan(whole):
            continue
        names, number = np.unique(cluster[rows], return_inverse=True)
        correlations = np.full(resamples, np.nan)
        if len(names) > 1:
            for some, counts in _draws(rng, len(names), resamples, max(len(rows), len(names))):
                correlations[some] = _rank_correlation(x[rows], y[rows], counts[number])
        found.append((whole, correlations))
    if not found:
        return Interval(np.nan, np.nan, np.nan)
    value = float(np.mean([whole for whole, _ in found]))
    return _interval(value, np.mean([correlations for _, correlations in found], axis=0), level)


def calibration_error_interval(
    gap: ArrayLike,
    bin: ArrayLike,
    *,
    cluster_a: ArrayLike,
    cluster_b: ArrayLike,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """sum over bins |sum of their gaps| / m, of the gaps (m,) between confidence and outcome, and its interval.

    Noise raises a sum of absolute values, and as a resample has the noise twice, it raises that sqrt(2) times as much
    where the true error is 0. Of `added`, the resamples' mean less the value, the upper quantile is therefore lowered
    once, and the lower one by all the noise that there can be, sqrt(2) / (sqrt(2) - 1) = 2 + sqrt(2) times. With 400
    and 3,000 simulated comparisons in 3 and 8 bins the 95 % interval held true errors from 0.02 to 0.1 in 96 to 99
    cases of 100, and 0 in 88 to 92.
    """
    gaps, bins = np.asarray(gap, np.float64), np.asarray(bin)
    columns = [*(np.where(bins == name, gaps, 0.0) for name in np.unique(bins)), np.ones_like(gaps)]
    if not len(gaps):
        return Interval(np.nan, np.nan, np.nan)
    value = float(sum(abs(column.sum()) for column in columns[:-1]) / len(gaps))
    errors = np.full(resamples, np.nan)
    for some, sums in _resampled_sums(columns, cluster_a, cluster_b, rng, resamples):
        apart = np.abs(sums[:-1]).sum(axis=0)
        errors[some] = np.divide(apart, sums[-1], out=np.full(len(apart), np.nan), where=sums[-1] > 0)
    around = _interval(value, errors, level)
    if np.isnan(around.low):
        return around
    added = float(np.nanmean(errors)) - value
    return Interval(value, max(0.0, around.low - (2 + 2**0.5) * added), max(0.0, around.high - added))


def paired_interval(
    credit_1: ArrayLike,
    credit_2: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    fold: ArrayLike | None = None,
    cluster_a: ArrayLike,
    cluster_b: ArrayLike | None = None,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> PairedInterval:
    """Whether one scorer beats another on the same comparisons: interval and p value of the difference of credits.

    Both are judged on each resample, so what is hard for both cancels. p = 2 min(share of resampled differences
    <= 0, share >= 0), each share as (1 + count) / (1 + resamples) (Davison & Hinkley 1997, chapter 4): never 0.
    With `fold`, the mean over folds as in `mean_of_folds_interval`.
    """
    difference = np.asarray(credit_1, np.float64) - np.asarray(credit_2, np.float64)
    one = np.zeros(len(difference), np.int64) if fold is None else fold
    value, means = _of_folds(difference, weight, one, cluster_a, cluster_b, rng, resamples)
    means = means[~np.isnan(means)]
    fewer = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2 * (1 + fewer) / (1 + len(means))) if len(means) else np.nan
    return PairedInterval(_interval(value, means, level), float(p_value))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


class _Judged(NamedTuple):
    """Comparisons that have a credit; all (m,)."""

    credit: Floats
    weight: Floats
    cluster_a: Any
    cluster_b: Any


def _judged(credit: ArrayLike, weight: ArrayLike | None, cluster_a: ArrayLike, cluster_b: ArrayLike | None) -> _Judged:
    values = np.asarray(credit, np.float64)
    weights = np.ones_like(values) if weight is None else np.asarray(weight, np.float64)
    a = np.asarray(cluster_a)
    columns = (values, weights, a, a if cluster_b is None else np.asarray(cluster_b))
    return _Judged(*(column[~np.isnan(values)] for column in columns))


def _of_folds(
    credit: ArrayLike,
    weight: ArrayLike | None,
    fold: ArrayLike,
    cluster_a: ArrayLike,
    cluster_b: ArrayLike | None,
    rng: np.random.Generator,
    resamples: int,
) -> tuple[float, Floats]:
    """The mean over folds of `_resampled`; NaN without a single credit."""
    judged = _judged(credit, weight, cluster_a, cluster_b)
    fold = np.asarray(fold)[~np.isnan(np.asarray(credit, np.float64))]
    folds = [
        _resampled(_Judged(*(column[fold == name] for column in judged)), rng, resamples) for name in np.unique(fold)
    ]
    if not folds:
        return np.nan, np.full(resamples, np.nan)
    return float(np.mean([value for value, _ in folds])), np.mean([means for _, means in folds], axis=0)


def _interval(value: float, means: Floats, level: float) -> Interval:
    means = means[~np.isnan(means)]
    if not len(means):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _resampled(judged: _Judged, rng: np.random.Generator, resamples: int) -> tuple[float, Floats]:
    """The weighted mean credit, and the same of each resample (resamples,).

    A resample that happens to give no comparison any weight is NaN, and so are all with fewer than two clusters.
    """
    means = np.full(resamples, np.nan)
    weights = judged.weight.sum()
    if not weights > 0:
        return np.nan, means
    columns = (judged.weight * judged.credit, judged.weight)
    for some, (total, weight) in _resampled_sums(columns, judged.cluster_a, judged.cluster_b, rng, resamples):
        means[some] = np.divide(total, weight, out=np.full(len(total), np.nan), where=weight > 0)
    return float(judged.weight @ judged.credit / weights), means


def _resampled_sums(
    columns: Sequence[Floats], cluster_a: ArrayLike, cluster_b: ArrayLike, rng: np.random.Generator, resamples: int
) -> Iterator[tuple[slice, list[Floats]]]:
    """The sum of each column (m,) over the comparisons of each resample: which resamples, and their sums. Nothing of
    fewer than two clusters."""
    from scipy.sparse import csr_array

    names, number = np.unique(np.concatenate([cluster_a, cluster_b]), return_inverse=True)
    clusters = len(names)
    if clusters < 2:
        return
    # Of each cluster, or pair of clusters, only the sums of the columns matter.
    a, b = np.split(number, 2)
    within, between = [], []
    for column in columns:
        same, cross = (a == b) & (column != 0), (a != b) & (column != 0)
        within.append(np.bincount(a[same], column[same], clusters))
        between.append(csr_array((column[cross], (a[cross], b[cross])), (clusters, clusters)))
    for some, counts in _draws(rng, clusters, resamples, clusters):
        sums = [inside @ counts for inside in within]
        if (a != b).any():
            sums = [s + np.einsum("cr,cr->r", counts, pair @ counts) for s, pair in zip(sums, between, strict=True)]
        yield some, sums


def _draws(rng: np.random.Generator, clusters: int, resamples: int, rows: int) -> Iterator[tuple[slice, Floats]]:
    """How often each resample holds each cluster: which resamples, and their counts (clusters, that many).

    `rows` is how many counts a resample becomes in the caller's memory.
    """
    at_once = max(1, COUNTS_AT_ONCE // rows)
    for start in range(0, resamples, at_once):
        some = slice(start, min(start + at_once, resamples))
        number = some.stop - some.start
        drawn = rng.integers(clusters, size=(number, clusters)) * number + np.arange(number)[:, None]
        yield some, np.bincount(drawn.ravel(), minlength=clusters * number).reshape(clusters, number).astype(np.float64)


def _rank_correlation(x: Floats, y: Floats, counts: Floats) -> Floats:
    """(r,) Spearman's correlation of x and y, (n,) each, row i taken counts[i] (n, r) times; NaN where constant."""
    weight = counts / counts.sum(axis=0)
    ranks = [_ranks(side, counts) for side in (x, y)]
    a, b = (rank - np.einsum("nr,nr->r", weight, rank) for rank in ranks)
    ab, aa, bb = (np.einsum("nr,nr,nr->r", weight, left, right) for left, right in ((a, b), (a, a), (b, b)))
    # Ranks are of the order of n, and what a constant side leaves is rounding.
    tiny = 1e-12 * len(x) ** 2
    return np.divide(ab, np.sqrt(aa * bb), out=np.full(len(ab), np.nan), where=(aa > tiny) & (bb > tiny))


def _ranks(values: Floats, counts: Floats) -> Floats:
    """(n, r) mean rank of each row less one half, where row i stands counts[i] (n, r) times."""
    distinct, level = np.unique(values, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(distinct)))
    at_level = np.add.reduceat(counts[order], starts, axis=0)
    return (np.cumsum(at_level, axis=0) - at_level / 2)[level]
