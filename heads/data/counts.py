"""Turn counts into comparisons: the probability that one picture is more popular than another.

Pure functions of arrays. Knows no table and no model.
"""

import numpy as np

from embed.arrays import Bools, Floats
from embed.spec import InputError

# Beta parameters below this are raised before the tail is expanded; it sets the error of `rate_posterior_target`.
_LARGE = 32.0


def count_posterior_target(count_a: Floats, count_b: Floats, prior: float = 1.0) -> Floats:
    """(n,) P(rate a > rate b) of Poisson counts observed under equal conditions: 0.66 for 3 against 2, 1 for 3,000
    against 2,000.

    With a Gamma(`prior`, 0) prior, flat for 1, the rates are Gamma(count + prior) at one scale, so a's share of their
    sum is Beta(count a + prior, count b + prior), and the target is the probability that it exceeds one half.
    """
    from scipy.special import betainc

    target: Floats = betainc(count_b + prior, count_a + prior, 0.5)
    return target


def rate_posterior_target(
    count_a: Floats, exposures_a: Floats, count_b: Floats, exposures_b: Floats, prior: float = 1.0
) -> Floats:
    """(n,) P(rate a > rate b), if `count` of the `exposures` led to a like. The absolute error is below 1e-4.

    With a Beta(`prior`, `prior`) prior the rates are Beta(count + prior, exposures - count + prior). Small parameters
    are raised one by one with the exact recurrence of Cook, "Exact calculation of beta inequalities" (2005); for large
    ones the difference of the log odds, a sum of four log-gamma variables with polygamma cumulants, is expanded about
    the normal distribution (Edgeworth, to the fourth cumulant).
    """
    won = np.stack(np.broadcast_arrays(count_a, count_b)).astype(np.float64)
    lost = np.stack(np.broadcast_arrays(exposures_a, exposures_b)) - won
    parameters = np.stack([won, lost], axis=1) + prior  # (2 pictures, 2 outcomes, ...)
    correction = _raise_small(parameters)
    return np.clip(_edgeworth(parameters) - correction, 0.0, 1.0)


def expected_log_rate(count: Floats, exposures: Floats | None = None, prior: float = 1.0) -> Floats:
    """(n,) posterior mean of the log of a picture's rate, up to a constant, or of its log odds if there are exposures.

    The posteriors are those of `count_posterior_target` and `rate_posterior_target`: a Gamma(k, .) variable's log has
    the mean digamma(k), and a Beta(k, m) variable's log odds digamma(k) - digamma(m).
    """
    from scipy.special import psi

    mean: Floats = psi(count + prior) - (0.0 if exposures is None else psi(exposures - count + prior))
    return mean


def _raise_small(p: Floats) -> Floats:
    """Raise every small entry of `p` in place, one by one, until it is large, and give the change of P(X > Y) to
    correct for.

    X is Beta(p[0, 0], p[0, 1]) and Y is Beta(p[1, 0], p[1, 1]). Raising p[i, j] by one adds h / p[i, j] if i = j and
    subtracts it otherwise, with h = B(p[0] + p[1]) / (B(p[0]) B(p[1])).
    """
    from scipy.special import betaln

    grown = np.zeros(p.shape[2:])
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        small = np.nonzero(p[i, j] < _LARGE)
        if len(small[0]) == 0:
            continue
        x, row, column = (part[small] for part in (p[i, j], p[i, 1 - j], p[1 - i, j]))
        opposite = p[1 - i, 1 - j][small]
        h = np.exp(betaln(x + column, row + opposite) - betaln(x, row) - betaln(column, opposite))
        steps = np.ceil(_LARGE - x)
        total = np.zeros_like(x)
        for step in range(int(steps.max())):
            total += np.where(step < steps, h / x, 0.0)
            h *= (x + row) * (x + column) / ((x + row + column + opposite) * x)
            x += 1
        grown[small] += total if i == j else -total
        p[i, j][small] += steps
    return grown


def _edgeworth(p: Floats) -> Floats:
    """P(X > Y) for large parameters: the probability that logit X - logit Y, whose cumulants are known, is positive."""
    from scipy.special import ndtr, psi

    sign = np.array([[1.0, -1.0], [-1.0, 1.0]]).reshape(2, 2, *[1] * (p.ndim - 2))
    mean = (sign * psi(p)).sum((0, 1))
    # The polygamma functions of order 1 to 3 by their asymptotic series, whose error at _LARGE is below 1e-7.
    q = 1 / p
    deviation = np.sqrt((q * (1 + q * (1 / 2 + q / 6))).sum((0, 1)))
    skewness = -(sign * (q * q * (1 + q * (1 + q / 2)))).sum((0, 1)) / deviation**3
    kurtosis = (q * q * q * (2 + q * (3 + 2 * q))).sum((0, 1)) / deviation**4
    z = mean / deviation
    zz = z * z
    density = np.exp(-zz / 2) / np.sqrt(2 * np.pi)
    # The Hermite polynomials He2, He3 and He5 at -z: the standardised difference is above -z.
    he2, he3, he5 = zz - 1, z * (3 - zz), z * (10 * zz - zz * zz - 15)
    chance: Floats = ndtr(z) + density * (skewness / 6 * he2 + kurtosis / 24 * he3 + skewness * skewness / 72 * he5)
    return chance


def hard_target(count_a: Floats, count_b: Floats, min_ratio: float) -> tuple[Floats, Bools]:
    """The targets (n,), 1 if a has more and otherwise 0, and the mask (n,) of pairs in which the larger is at least
    `min_ratio` times the smaller.

    Every positive count passes any ratio to zero. Equal counts, two zeros among them, and NaN never make a pair.
    """
    if not min_ratio >= 1:
        raise InputError(f"min_ratio is {min_ratio}; wanted 1 or more")
    larger, smaller = np.maximum(count_a, count_b), np.minimum(count_a, count_b)
    return np.greater(count_a, count_b).astype(np.float64), (larger > smaller) & (larger >= min_ratio * smaller)
