import numpy as np
import pytest

from runtime.catalogue.popularity import decayed, percentiles, posterior_rates


def test_percentiles_are_scipys_mean_rank():
    from scipy.stats import percentileofscore

    values = np.random.default_rng(0).integers(0, 30, 500).astype(float)
    expected = percentileofscore(values, values, kind="mean") / 100
    np.testing.assert_allclose(percentiles(values), expected, atol=1e-6)


def test_the_top_hundredth_lies_at_or_above_99():
    assert (percentiles(np.arange(1000)) >= np.float32(0.99)).sum() == 10
    assert len(percentiles(np.array([]))) == 0


def test_posterior_rates_shrink_what_was_rarely_shown():
    rng = np.random.default_rng(1)
    exposures = rng.integers(200, 400, 2000)
    true = rng.beta(4, 36, 2000)
    counts = rng.binomial(exposures, true)
    rates = posterior_rates(np.append(counts, [1, 90]), np.append(exposures, [1, 300]))
    # The prior that made the data, Beta(4, 36), is found again: what was hardly shown lies near its mean.
    assert abs(rates[-2] - (1 + 4) / (1 + 40)) < 0.01
    assert rates[-1] > rates[-2]
    assert np.abs(rates[:-2] - true).mean() < np.abs(counts / exposures - true).mean()


def test_posterior_rates_are_the_method_of_moments():
    """Few pictures, of which n - 1 is far from n: Kleinman's (1973) estimate, picture by picture."""
    counts, exposures = [3, 1, 9, 4], [10, 20, 30, 8]
    total, mean = sum(exposures), sum(counts) / sum(exposures)
    seen = sum(e * (c / e - mean) ** 2 for c, e in zip(counts, exposures, strict=True))
    variance = (seen - mean * (1 - mean) * 3) / (total - sum(e * e for e in exposures) / total)
    strength = mean * (1 - mean) / variance - 1
    assert 1 < strength < total
    expected = [(c + mean * strength) / (e + strength) for c, e in zip(counts, exposures, strict=True)]
    np.testing.assert_allclose(posterior_rates(np.array(counts), np.array(exposures)), expected)


def test_the_prior_is_worth_one_exposure_at_least():
    # Rates of 0 and 1, more apart than any Beta prior's: the estimate of its strength is below 0.
    np.testing.assert_allclose(
        posterior_rates(np.array([0, 9, 0, 9]), np.array([9, 9, 9, 9])), [0.05, 0.95, 0.05, 0.95]
    )


@pytest.mark.parametrize(("counts", "expected"), [([0, 0], 0.0), ([5, 9], 1.0)])
def test_posterior_rates_where_all_or_none_applaud(counts, expected):
    np.testing.assert_allclose(posterior_rates(np.array(counts), np.array([5, 9])), expected)


def test_posterior_rates_of_equal_rates_are_equal():
    np.testing.assert_allclose(posterior_rates(np.array([1, 10]), np.array([10, 100])), 0.1)


def test_decay_halves_once_a_half_life():
    np.testing.assert_allclose(decayed(np.array([8.0, 8.0, 8.0]), np.array([0.0, 5.0, 10.0]), 5.0), [8, 4, 2])
