"""95 % intervals of mean credits, by a bootstrap that resamples clusters and not comparisons.

Comparisons that share a prompt (or whose pictures share a group) are not independent, so whole clusters are drawn
with replacement. Knows credits and cluster numbers, not their meaning. NaN credits, which a metric could not judge, are
left out first.

Resamples of few clusters vary too little, above all if the comparisons are spread unevenly over them. With
n = (sum of sizes)^2 / (sum of squared sizes), the number of clusters of equal size with as much information (Kish
1965), their standard deviation is therefore multiplied by sqrt(n / (n - 1)), and an interval extends as many of these
as the quantile of Student's t with n - 1 degrees of freedom. Folds make it wider still, see
heads.evaluation.fold_noise. `benchmarks/coverage.py` measures how often the true value is inside.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embed.arrays import Bools, Floats, Ints
from heads.metrics import ratio

FEW = 10  # with fewer clusters an interval is still right as often, but too wide to be useful
ENDS = (0.025, 0.975)  # the quantiles at the two ends of an interval
NORMAL = NormalDist().inv_cdf(ENDS[1])  # the same in standard deviations
NOTHING = "nothing could be judged"
ROUNDING = 1e-9  # smaller differences of correlations and credits come from rounding
# Resamples are handled in blocks of this many cluster counts (8 bytes each), to bound memory.
COUNTS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval. What cannot be computed is NaN, and `reason` says why."""

    value: float
    low: float
    high: float
    reason: str = ""

    def within(self, least: float, most: float) -> "Interval":
        """The interval clipped to the values that are possible, `least` to `most`."""
        return replace(self, low=float(np.clip(self.low, least, most)), high=float(np.clip(self.high, least, most)))

    def to_json(self) -> dict[str, float | str | None]:
        json: dict[str, float | str | None] = {name: _number(getattr(self, name)) for name in ("value", "low", "high")}
        return json | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True)
class PairedInterval:
    """The first head's mean credit minus the second's, and the two-sided p value of no difference."""

    difference: Interval
    p_value: float

    def to_json(self) -> dict[str, object]:
        return {"difference": self.difference.to_json(), "p_value": _number(self.p_value)}


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """How to resample. The clusters of the two sides of each comparison are (m,); they are equal if the sides share
    one.

    Each resample draws as many clusters as there are. The weight of a comparison inside one cluster is the number of
    times that the cluster was drawn, and that of one between two clusters is the product of both numbers (after the
    pigeonhole bootstrap, Owen 2007, which errs on the wide side). The same seed of `rng` gives the same interval.
    """

    cluster_a: NDArray[np.generic]
    cluster_b: NDArray[np.generic]
    rng: np.random.Generator
    resamples: int = 1000
    name: str = "clusters"  # the name of the clusters in messages
    noise: float = 0.0  # the share of the variance that counts twice, see heads.evaluation.fold_noise

    def of(self, comparisons: Ints | Bools) -> "Bootstrap":
        """The same for some of the comparisons, given by their numbers or by a mask (m,)."""
        return replace(self, cluster_a=self.cluster_a[comparisons], cluster_b=self.cluster_b[comparisons])

    @property
    def worth(self) -> float:
        """The number of clusters of equal size with as much information. It is lower than the number of clusters if
        most comparisons are in a few of them."""
        size = np.unique(np.concatenate([self.cluster_a, self.cluster_b]), return_counts=True)[1].astype(np.float64)
        return float(size.sum() ** 2 / np.square(size).sum())

    def sums(self, columns: Sequence[Floats]) -> Iterator[tuple[slice, list[Floats]]]:
        """Yield the sums of each column (m,) over the comparisons of each resample: the slice of resamples, and their
        sums. Yields nothing for fewer than two clusters."""
        from scipy.sparse import csr_array

        names, number = np.unique(np.concatenate([self.cluster_a, self.cluster_b]), return_inverse=True)
        clusters = len(names)
        if clusters < 2:
            return
        # Only the sums of the columns in each cluster, or pair of clusters, are needed.
        a, b = np.split(number, 2)
        within, between = [], []
        for column in columns:
            same, cross = (a == b) & (column != 0), (a != b) & (column != 0)
            within.append(np.bincount(a[same], column[same], clusters))
            between.append(csr_array((column[cross], (a[cross], b[cross])), (clusters, clusters)))
        for some, counts in self.draws(clusters, clusters):
            sums = [inside @ counts for inside in within]
            if (a != b).any():
                sums = [s + np.einsum("cr,cr->r", counts, pair @ counts) for s, pair in zip(sums, between, strict=True)]
            yield some, sums

    def draws(self, clusters: int, rows: int) -> Iterator[tuple[slice, Floats]]:
        """Yield how often each resample holds each cluster: the slice of resamples, and counts (clusters, resamples).

        `rows` is the number of counts that the caller makes of each resample, to bound its memory.
        """
        at_once = max(1, COUNTS_AT_ONCE // rows)
        for start in range(0, self.resamples, at_once):
            some = slice(start, min(start + at_once, self.resamples))
            number = some.stop - some.start
            drawn = self.rng.integers(clusters, size=(number, clusters)) * number + np.arange(number)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=clusters * number)
            yield some, counts.reshape(clusters, number).astype(np.float64)


def mean_interval(
    credit: ArrayLike,
    bootstrap: Bootstrap,
    fold: ArrayLike | None = None,
    least: float = -np.inf,
    most: float = np.inf,
) -> Interval:
    """The mean credit of the comparisons with its interval. With `fold` (m,) it is the mean over folds of each fold's
    mean. Credits are from `least` to `most`.

    Clusters are then resampled within each fold. A fold without credits is left out.
    """
    found = _estimated(credit, bootstrap, fold)
    return found.interval_at_an_end(least, most) or found.interval.within(least, most)


def spearman_interval(scores: ArrayLike, values: ArrayLike, bootstrap: Bootstrap, fold: ArrayLike) -> Interval:
    """The mean over folds of Spearman's correlation of scores and values, all (n,), resampled by the cluster of side a.

    Ranks are computed again in each resample: a row drawn twice is two rows of equal value. A fold in which scores or
    values are constant is left out.
    """
    x, y, fold = np.asarray(scores), np.asarray(values), np.asarray(fold)
    found = []
    for name in np.unique(fold):
        rows = np.flatnonzero(fold == name)
        whole = _rank_correlation(x[rows], y[rows], np.ones((len(rows), 1)))[0]
        if np.isnan(whole):
            continue
        names, number = np.unique(bootstrap.cluster_a[rows], return_inverse=True)
        correlations = np.full(bootstrap.resamples, np.nan)
        if len(names) > 1:
            for some, counts in bootstrap.draws(len(names), max(len(rows), len(names))):
                correlations[some] = _rank_correlation(x[rows], y[rows], counts[number])
        found.append(_Part(whole, correlations, bootstrap.of(rows).worth))
    estimate = _mean_over_folds(found, bootstrap)
    # The bound at an end is exact for means, and here only better than an interval without width.
    return estimate.interval_at_an_end(-1, 1) or estimate.interval.within(-1, 1)


def calibration_error_interval(gap: ArrayLike, bin: ArrayLike, bootstrap: Bootstrap) -> Interval:
    """sum over bins |sum of their gaps| / m, of the gaps (m,) between confidence and outcome, with its interval.

    Noise raises a sum of absolute values. A resample has the noise twice, so if the true error is 0 it raises the sum
    sqrt(2) times as much. Let `added` be the resamples' mean minus the value. The upper quantile is therefore lowered
    by `added`, and the lower one by all possible noise, sqrt(2) / (sqrt(2) - 1) = 2 + sqrt(2) times `added`. With 400
    and 3,000 simulated comparisons in 3 and 8 bins the 95 % interval held true errors from 0.02 to 0.1 in 96 to 99 of
    100 cases, and a true error of 0 in 88 to 92.
    """
    gaps, bins = np.asarray(gap, np.float64), np.asarray(bin)
    columns = [*(np.where(bins == name, gaps, 0.0) for name in np.unique(bins)), np.ones_like(gaps)]
    if not len(gaps):
        return Interval(np.nan, np.nan, np.nan, NOTHING)
    value = float(sum(abs(column.sum()) for column in columns[:-1]) / len(gaps))
    errors = np.full(bootstrap.resamples, np.nan)
    for some, sums in bootstrap.sums(columns):
        errors[some] = ratio(np.abs(sums[:-1]).sum(axis=0), sums[-1])
    estimate = _mean_over_folds([_Part(value, errors, bootstrap.worth)], bootstrap)
    if np.isnan(estimate.error):
        return estimate.interval
    middle, spread = float(np.nanmean(errors)), float(np.nanstd(errors))
    wider = estimate.reach / (NORMAL * spread) if spread else 1.0
    low, high = middle + wider * (np.nanquantile(errors, ENDS) - middle)
    added = middle - value
    return Interval(value, low - (2 + 2**0.5) * added, high - added).within(0, 1)


def paired_interval(
    credit_1: ArrayLike, credit_2: ArrayLike, bootstrap: Bootstrap, fold: ArrayLike | None = None
) -> PairedInterval:
    """The difference of credits between two scorers on the same comparisons, with its interval and p value.

    Both are measured on each resample, so that comparisons that are hard for both cancel. p is that of Student's t, or
    of the sign test if one scorer is right and the other wrong everywhere; but at least 2 / (1 + resamples), the least
    that so many resamples can support (Davison & Hinkley 1997, chapter 4). With `fold` it is the mean over folds as in
    `mean_interval`. Credits are from 0 to 1.
    """
    from scipy.stats import t

    difference = np.asarray(credit_1, np.float64) - np.asarray(credit_2, np.float64)
    found = _estimated(difference, bootstrap, fold)
    p_value = np.nan
    at_an_end = found.interval_at_an_end(-1, 1)
    if not np.isnan(found.error):
        far = abs(found.value) / found.error if found.error else np.inf if found.value else 0.0
        p_value = 2 * 0.5**found.clusters if at_an_end else float(2 * t.sf(far, found.freedom))
        p_value = max(p_value, 2 / (1 + bootstrap.resamples))
    return PairedInterval(at_an_end or found.interval.within(-1, 1), p_value)


@dataclass(frozen=True, eq=False)
class _Part:
    """The value of one fold, the values of its resamples, and its effective number of clusters."""

    value: float
    resampled: Floats
    worth: float


@dataclass(frozen=True)
class _Estimate:
    """A value, its standard error (NaN for the given `reason`), and the degrees of freedom."""

    value: float
    error: float
    freedom: float
    clusters: float = np.nan  # of equal size and independent, with as much information
    reason: str = ""

    def interval_at_an_end(self, least: float, most: float) -> Interval | None:
        """The interval if every credit is the least or the most that is possible, else None.

        Resamples are all equal then, and would give an interval without width. If the true mean is a share p of the way
        from the other end, n clusters all lie at this end with a probability of at most p^n, whatever the distribution.
        The interval ends where that is 0.025, as that of Clopper & Pearson (1934) does.
        """
        at_an_end = min(self.value - least, most - self.value) < ROUNDING
        if not (self.error < ROUNDING and at_an_end):  # also if the error is NaN
            return None
        reach = (1 - ENDS[0] ** (1 / self.clusters)) * (most - least)
        return Interval(self.value, max(least, self.value - reach), min(most, self.value + reach))

    @property
    def reach(self) -> float:
        """Half the width of the interval."""
        from scipy.stats import t

        return float(t.ppf(ENDS[1], self.freedom)) * self.error

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.value - self.reach, self.value + self.reach, self.reason)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _estimated(credit: ArrayLike, bootstrap: Bootstrap, fold: ArrayLike | None) -> _Estimate:
    """The mean over folds of the mean credit."""
    credit = np.asarray(credit, np.float64)
    judged = ~np.isnan(credit)
    fold = np.zeros(len(credit), np.int64) if fold is None else np.asarray(fold)
    found = []
    for name in np.unique(fold[judged]):
        rows = np.flatnonzero(judged & (fold == name))
        means, inside = np.full(bootstrap.resamples, np.nan), bootstrap.of(rows)
        for some, (total, count) in inside.sums((credit[rows], np.ones(len(rows)))):
            means[some] = ratio(total, count)  # NaN if a resample happens to hold no comparison
        found.append(_Part(float(credit[rows].mean()), means, inside.worth))
    return _mean_over_folds(found, bootstrap)


def _mean_over_folds(parts: Sequence[_Part], bootstrap: Bootstrap) -> _Estimate:
    """The mean of the parts' values. Their variances add, because parts share no cluster. The degrees of freedom are
    those of Satterthwaite (1946)."""
    if not parts:
        return _Estimate(np.nan, np.nan, np.nan, reason=NOTHING)
    value = float(np.mean([part.value for part in parts]))
    if any(np.isnan(part.resampled).all() for part in parts):
        each = " in a held-out part" if len(parts) > 1 else ""
        return _Estimate(value, np.nan, np.nan, reason=f"fewer than two {bootstrap.name}{each}")
    freedom = np.array([part.worth - 1 for part in parts])
    variance = np.array([np.nanvar(part.resampled) for part in parts]) * (1 + 1 / freedom) * (1 + bootstrap.noise)
    total = variance.sum()
    joint = total**2 / (variance**2 / freedom).sum() if total else freedom.sum()
    # Of n clusters in parts of different size, the smallest part decides how surely its own value lies at an end.
    clusters = len(parts) * (freedom.min() + 1) / (1 + bootstrap.noise)
    return _Estimate(value, float(np.sqrt(total)) / len(parts), float(joint), float(clusters))


def _rank_correlation(x: Floats, y: Floats, counts: Floats) -> Floats:
    """(r,) Spearman's correlation of x and y, (n,) each, if row i occurs counts[i] (n, r) times. NaN if x or y is
    constant."""
    weight = counts / counts.sum(axis=0)
    ranks = [_ranks(side, counts) for side in (x, y)]
    a, b = (rank - np.einsum("nr,nr->r", weight, rank) for rank in ranks)
    ab, aa, bb = (np.einsum("nr,nr,nr->r", weight, left, right) for left, right in ((a, b), (a, a), (b, b)))
    # Ranks are of the order of n, so a constant side leaves only rounding errors.
    tiny = 1e-12 * len(x) ** 2
    return ratio(ab, np.where((aa > tiny) & (bb > tiny), np.sqrt(aa * bb), 0.0))


def _ranks(values: Floats, counts: Floats) -> Floats:
    """(n, r) the mean rank of each row minus one half, if row i occurs counts[i] (n, r) times."""
    distinct, level = np.unique(values, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(distinct)))
    at_level = np.add.reduceat(counts[order], starts, axis=0)
    return (np.cumsum(at_level, axis=0) - at_level / 2)[level]
