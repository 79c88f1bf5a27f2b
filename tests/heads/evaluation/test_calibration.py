"""What is fitted is the optimum, and what is stored gives the same numbers as the library that fitted it."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import percentileofscore
from sklearn.isotonic import IsotonicRegression

from embed.spec import InputError
from heads.evaluation.calibration import Curve, Temperature, fit_isotonic, fit_percentiles, fit_temperature
from heads.metrics import expected_calibration_error, reliability


def comparisons(temperature: float, m: int = 20_000, seed: int = 0):
    rng = np.random.default_rng(seed)
    a, b = 20 * rng.normal(size=m), 20 * rng.normal(size=m)
    target = (rng.random(m) < 1 / (1 + np.exp((b - a) / temperature))).astype(float)
    return a, b, target


def test_temperature_is_recovered_and_minimises_the_loss() -> None:
    a, b, target = comparisons(temperature=12.0)
    target[:2000] = 0.5  # ties pull towards even

    def loss(temperature: float) -> float:
        p = 1 / (1 + np.exp((b - a) / temperature))
        return -np.sum(target * np.log(p) + (1 - target) * np.log(1 - p))

    best = minimize_scalar(loss, bounds=(5, 50), method="bounded", options={"xatol": 1e-8}).x
    assert fit_temperature(a, b, target).value == pytest.approx(best, rel=1e-5)
    a, b, target = comparisons(temperature=12.0, m=100_000)
    fitted = fit_temperature(a, b, target)
    assert fitted.value == pytest.approx(12, rel=0.03)
    before = expected_calibration_error(reliability(Temperature(1.0).pair_probability(a, b), target))
    after = expected_calibration_error(reliability(fitted.pair_probability(a, b), target))
    assert after < 0.01 < 0.05 < before


def test_pair_probability_is_a_sigmoid_without_overflow() -> None:
    a, b = np.array([1.0, 1e9, -1e9, 0.0]), np.zeros(4)
    np.testing.assert_allclose(Temperature(2.0).pair_probability(a, b), [1 / (1 + np.exp(-0.5)), 1, 0, 0.5])


def test_scores_without_a_best_temperature_say_why() -> None:
    a, b, target = comparisons(temperature=12.0, m=500)
    with pytest.raises(InputError, match="no better than chance"):
        fit_temperature(a, b, 1 - target)
    with pytest.raises(InputError, match="no better than chance"):
        fit_temperature(np.ones(5), np.ones(5), np.ones(5))
    with pytest.raises(InputError, match="order all 500 comparisons right"):
        fit_temperature(a, b, (a > b).astype(float))
    with pytest.raises(InputError, match="finite"):
        fit_temperature([np.nan], [0.0], [1.0])
    with pytest.raises(InputError, match="0 comparisons"):
        fit_isotonic([], [], [])


def test_isotonic_map_equals_scikit_learns_and_is_even_handed() -> None:
    a, b, target = comparisons(temperature=12.0, m=800)
    curve = fit_isotonic(a, b, target)
    difference = np.concatenate([a - b, b - a])
    oracle = IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1)
    oracle.fit(difference, np.concatenate([target, 1 - target]))
    x = np.linspace(-150, 150, 1001)
    np.testing.assert_allclose(curve(x), oracle.predict(x), atol=1e-12)
    np.testing.assert_allclose(curve(x) + curve(-x), 1.0, atol=1e-9)
    assert len(curve.x) < 400  # flat stretches are two knots


def test_percentiles_are_places_in_the_reference_set() -> None:
    rng = np.random.default_rng(3)
    reference = rng.normal(size=30_011)
    curve = fit_percentiles(reference)
    for score in rng.normal(size=20):
        assert curve(score) == pytest.approx(percentileofscore(reference, score, "mean") / 100, abs=1e-3)
    assert curve([-9.0, reference.min(), reference.max(), 9.0]).tolist() == [0, 0, 1, 1]
    # A third of the reference set shares one score, as unseen pictures share no likes.
    shared = np.where(np.arange(30_011) % 3 == 0, 0.25, reference)
    middle = percentileofscore(shared, 0.25, "mean") / 100
    assert fit_percentiles(shared)(0.25) == pytest.approx(middle, abs=2e-3)
    assert fit_percentiles([4.0])(4.0) == pytest.approx(0.5)
    with pytest.raises(InputError, match="0 scores"):
        fit_percentiles([])


def test_json_brings_back_the_same_numbers() -> None:
    a, b, target = comparisons(temperature=12.0, m=300)
    curve = fit_isotonic(a, b, target)
    again = Curve.from_json(json.loads(json.dumps(curve.to_json())))
    np.testing.assert_array_equal(again(a - b), curve(a - b))
    temperature = fit_temperature(a, b, target)
    assert Temperature.from_json(json.loads(json.dumps(vars(temperature)))) == temperature


@pytest.mark.parametrize(
    "knots",
    [
        {"x": [0.0, 0.0], "y": [0.0, 1.0]},
        {"x": [0.0, 1.0], "y": [1.0, 0.0]},
        {"x": [0.0, 1.0], "y": [0.5]},
        {"x": [], "y": []},
        {"x": [0.0, float("nan")], "y": [0.0, 1.0]},
        {"x": [0.0], "y": [0.0], "z": [1.0]},
    ],
)
def test_damaged_curves_are_refused(knots: dict) -> None:
    with pytest.raises(InputError):
        Curve.from_json(knots)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_damaged_temperatures_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="positive"):
        Temperature(value)
