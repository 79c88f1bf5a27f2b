"""Turn counts or rates into popularity, each picture's place in (0, 1).

Pure functions on arrays. Knows no file, no vector and no index.
"""

import numpy as np

from embed.arrays import Float32s, Floats


def percentiles(values: Floats | Float32s) -> Float32s:
    """(n,) float32 in (0, 1): the share of values below each one, plus half the share equal to it.

    This is the mid-rank definition of a percentile: equal values get the same one, and n different values get 0.5/n,
    1.5/n ... 1 - 0.5/n. So with many values, exactly the largest hundredth is at or above 0.99.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return np.empty(0, np.float32)
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    return ((below + counts / 2) / len(values)).astype(np.float32)[group]


def posterior_rates(counts: Floats, exposures: Floats) -> Floats:
    """(n,) float64: the posterior mean of each picture's rate, (count + a) / (exposures + a + b).

    a and b are a Beta prior fitted to the data: its mean is the pooled rate, and its strength is such that its variance
    plus the binomial noise equals the observed spread of rates (method of moments, weighted by exposures). So one like
    in one view ranks below 900 in 1,000.
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
    # The strength is limited to between one exposure and all of them; estimates outside are noise.
    strength = mean * (1 - mean) / variance - 1 if variance > 0 else total
    strength = float(np.clip(strength, 1.0, total))
    return (counts + mean * strength) / (exposures + strength)


def decayed(values: Floats, ages_s: Floats, half_life_s: float) -> Floats:
    """(n,) float64: each value, halved once for every `half_life_s` seconds of its age."""
    return np.asarray(values, np.float64) * np.exp2(-np.asarray(ages_s, np.float64) / half_life_s)
