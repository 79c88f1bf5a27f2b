"""Soft and hard targets against numeric integration and Monte Carlo."""

import itertools

import numpy as np
import pytest

from embed.spec import InputError
from heads.data.counts import count_posterior_target, hard_target, rate_posterior_target


def posterior_by_integration(a: float, b: float, c: float, d: float) -> float:
    """P(Beta(a, b) > Beta(c, d)) by the trapezoidal rule on the log odds of the narrower one."""
    from scipy.special import betainc, betaln, expit, polygamma, psi

    if polygamma(1, [a, b]).sum() > polygamma(1, [c, d]).sum():
        return 1 - posterior_by_integration(c, d, a, b)
    centre, width = psi(a) - psi(b), 10 * np.sqrt(polygamma(1, a) + polygamma(1, b))
    grid = np.linspace(max(centre - width - 40 / a, -700), min(centre + width + 40 / b, 700), 4001)
    density = np.exp(-a * np.logaddexp(0, -grid) - b * np.logaddexp(0, grid) - betaln(a, b))
    return np.trapezoid(density * betainc(c, d, expit(grid)), grid) / np.trapezoid(density, grid)


def rate_cases() -> list[tuple[int, int, int, int]]:
    cases = []
    for count, exposures, others in itertools.product((0, 1, 3, 31, 60, 400), (1, 20, 1000, 10**7), (1, 100, 10**8)):
        for shift in (-3, -1, 0, 0.5, 2):
            if count <= exposures:
                expected = (count + shift * (count + 1) ** 0.5) / exposures * others
                cases.append((count, exposures, round(min(max(expected, 0), others)), others))
    return cases


@pytest.mark.parametrize("prior", [0.5, 1.0])
def test_rate_target_is_the_posterior_probability_by_integration(prior: float) -> None:
    count_a, exposures_a, count_b, exposures_b = np.array(rate_cases()).T
    got = rate_posterior_target(count_a, exposures_a, count_b, exposures_b, prior)
    wanted = [
        posterior_by_integration(a + prior, n - a + prior, b + prior, m - b + prior) for a, n, b, m in rate_cases()
    ]
    assert len(got) > 200
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    # Small parameters are raised by an exact recurrence, so with few exposures nothing but rounding is left.
    few = np.maximum(exposures_a, exposures_b) <= 20
    np.testing.assert_allclose(got[few], np.array(wanted)[few], atol=1e-5)


def test_rate_target_is_antisymmetric_and_even_for_equals() -> None:
    count, exposures = np.array([0, 3, 40, 5000]), np.array([10, 30, 900, 9_000_000])
    np.testing.assert_allclose(rate_posterior_target(count, exposures, count, exposures), 0.5, atol=1e-9)
    forward = rate_posterior_target(count, exposures, count[::-1], exposures[::-1])
    back = rate_posterior_target(count[::-1], exposures[::-1], count, exposures)
    np.testing.assert_allclose(forward + back, 1, atol=1e-9)


def test_exposures_decide_over_counts() -> None:
    # 30 of 100 is a higher rate than 300 of 10,000, although the count is lower.
    assert rate_posterior_target(np.array([30]), np.array([100]), np.array([300]), np.array([10_000]))[0] > 0.999
    assert count_posterior_target(np.array([30]), np.array([300]))[0] < 0.001


@pytest.mark.parametrize("prior", [0.5, 1.0, 2.0])
def test_count_target_matches_monte_carlo(prior: float) -> None:
    rng = np.random.default_rng(0)
    count_a, count_b = np.array([3, 0, 0, 10, 300, 7.5]), np.array([2, 0, 4, 14, 330, 2])
    rates_a = rng.gamma(count_a + prior, size=(200_000, 6))
    rates_b = rng.gamma(count_b + prior, size=(200_000, 6))
    got = count_posterior_target(count_a, count_b, prior)
    np.testing.assert_allclose(got, (rates_a > rates_b).mean(0), atol=5e-3)
    np.testing.assert_allclose(got + count_posterior_target(count_b, count_a, prior), 1, atol=1e-12)


def test_few_likes_are_nearly_a_tie_and_many_are_not() -> None:
    # By hand: with a flat prior P(Gamma(4) > Gamma(3)) is the chance of at most 3 heads in 6 fair tosses, 42/64.
    got = count_posterior_target(np.array([3, 3000, 10**9]), np.array([2, 2000, 10**9]))
    np.testing.assert_allclose(got, [42 / 64, 1, 0.5], atol=1e-9)


def test_hard_target_keeps_only_clear_pairs() -> None:
    count_a, count_b = np.array([4, 2, 3, 0, 0, 5, 5, np.nan]), np.array([2, 4, 2, 0, 1, 0, 5, 2])
    target, keep = hard_target(count_a, count_b, 2.0)
    assert keep.tolist() == [True, True, False, False, True, True, False, False]
    assert target[keep].tolist() == [1, 0, 0, 1]
    # A ratio of 1 keeps everything but ties.
    assert hard_target(count_a, count_b, 1.0)[1].tolist() == [True, True, True, False, True, True, False, False]
    for ratio in (0.5, float("nan")):
        with pytest.raises(InputError, match=r"min_ratio is .*; wanted 1 or more"):
            hard_target(count_a, count_b, ratio)
