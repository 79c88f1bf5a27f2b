"""How popular each picture is: raw counts or rates become percentiles in (0, 1).

Pure functions on arrays. Knows no file, no vector and no index.
"""

import numpy as np

from embed.arrays import Float32s, Floats


def percentiles(values: Floats | Float32s) -> Float32s:
    """(n,) float32 in (0, 1): the share of values below each one, plus half the share equal to it.

    The mid-rank definition of a percentile: equal values get the same one, and n different values get
    0.5/n, 1.5/n ... 1 - 0.5/n, so the largest hundredth of many is exactly what lies at or above 0.99.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return np.empty(0, np.float32)
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    return ((below + counts / 2) / len(values)).astype(np.float32)[group]


def posterior_rates(counts: Floats, exposures: Floats) -> Floats:
    """(n,) float64: the posterior mean of each picture's rate, (count + a) / (exposures + a + b).

    a and b are the Beta prior that the data themselves suggest: its mean is the pooled rate, its strength the one
    whose variance, with the binomial noise added, gives the spread of rates seen (method of moments, weighted by
    exposures). One like in one view is then no match for 900 in 1,000.
    """
    counts, exposures = np.asarray(counts, np.float64), np.asarray(exposures, np.float64)
    shown = exposures > 0
    total = exposures.sum()
    if total == 0:
        return np.zeros(len(counts))
    mean: np.float64 = counts.sum() / total
    if mean in (0.0, 1.0):
        return np.full(len(counts), mean)
    # E[sum e (r - mean)^2] = v (total - sum(e^2)/total) + mean (1 - mean) (n - 1) with v the variance of the
    # true rates, up to v/e terms: solved for v.
    rates = counts[shown] / exposures[shown]
    spread = (exposures[shown] * (rates - mean) ** 2).sum() - mean * (1 - mean) * (shown.sum() - 1)
    weight = total - (exposures**2).sum() / total
    variance = spread / weight if weight > 0 else 0.0
    # The strength stays between one imaginary exposure and all the real ones: outside, the estimate is noise.
    strength = mean * (1 - mean) / variance - 1 if variance > 0 else total
    strength = float(np.clip(strength, 1.0, total))
    return (counts + mean * strength) / (exposures + strength)


def decayed(values: Floats, ages_s: Floats, half_life_s: float) -> Floats:
    """(n,) float64: each value halved once for every `half_life_s` of its age in seconds."""
    return np.asarray(values, np.float64) * np.exp2(-np.asarray(ages_s, np.float64) / half_life_s)
