"""Calibration of scores: probabilities of pairs (by a temperature or an isotonic map) and percentiles of a reference
set.

The fitted parameters are plain numbers: to apply them takes only an interpolation and a division. Knows scores and
targets, no head. `target` is the probability that side a is preferred.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from embed.arrays import Floats
from embed.spec import InputError, known_fields

PERCENTILE_KNOTS = 1001  # neighbouring knots are a thousandth of the reference set apart


@dataclass(frozen=True)
class Temperature:
    """P(a preferred) = sigmoid((score_a - score_b) / value)."""

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < np.inf:
            raise InputError(f"a temperature is {self.value}; wanted a positive number")

    def pair_probability(self, score_a: ArrayLike, score_b: ArrayLike) -> Floats:
        """The probability that a is preferred, float64 of the scores' shape."""
        from scipy.special import expit

        probability: Floats = expit((np.asarray(score_a, np.float64) - np.asarray(score_b, np.float64)) / self.value)
        return probability

    @classmethod
    def from_json(cls, data: Mapping[str, float]) -> "Temperature":
        return cls(**known_fields(cls, data))


@dataclass(frozen=True, eq=False)
class Curve:
    """A rising piecewise linear map through the knots (x, y), both (k,) float64, constant beyond its ends."""

    x: Floats
    y: Floats

    def __post_init__(self) -> None:
        rising = self.x.ndim == 1 and self.x.shape == self.y.shape and len(self.x) > 0
        if not (rising and np.isfinite([self.x, self.y]).all() and (np.diff(self.x) > 0).all()):
            raise InputError("a curve has unusable knots; wanted finite x (k,) and y (k,), with x strictly rising")
        if (np.diff(self.y) < 0).any():
            raise InputError("the y of a curve falls somewhere; wanted rising values, which keep the order of scores")

    def __call__(self, x: ArrayLike) -> Floats:
        return np.interp(np.asarray(x, np.float64), self.x, self.y)

    def to_json(self) -> dict[str, object]:
        return {"x": self.x.tolist(), "y": self.y.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, ArrayLike]) -> "Curve":
        knots = known_fields(cls, data)
        return cls(np.asarray(knots["x"], np.float64), np.asarray(knots["y"], np.float64))


def fit_temperature(score_a: ArrayLike, score_b: ArrayLike, target: ArrayLike) -> Temperature:
    """The temperature with the highest likelihood of the targets (Guo et al. 2017, section 4.2). Arguments (m,).

    Raise InputError if there is no best temperature: it would be infinite if the scores are no better than chance, and
    0 if they order every comparison right.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    difference, y = _comparisons(score_a, score_b, target)

    def slope(inverse: float) -> float:
        """The derivative of the negative log likelihood by 1 / temperature, a rising function."""
        return float(np.sum(difference * (expit(inverse * difference) - y)))

    if slope(0.0) >= 0:
        raise InputError(
            f"no temperature fits: on these {len(y)} comparisons the scores are no better than chance;"
            " calibrate on data that is like the training data"
        )
    if not np.sum(np.abs(difference) * np.where(difference > 0, 1 - y, y)) > 0:
        raise InputError(
            f"no temperature fits: the scores order all {len(y)} comparisons right; calibrate on comparisons that"
            " the head was not trained on, or on more of them"
        )
    upper = 1 / np.abs(difference).max()
    while slope(upper) < 0:
        upper *= 2
    return Temperature(1 / brentq(slope, 0.0, upper))


def fit_isotonic(score_a: ArrayLike, score_b: ArrayLike, target: ArrayLike) -> Curve:
    """The rising map from score_a - score_b to P(a preferred) with the least squared error (Zadrozny & Elkan 2002).

    Every comparison is used from both sides, so that exchanging the sides turns p into 1 - p.
    Arguments (m,).
    """
    from scipy.optimize import isotonic_regression

    difference, y = _comparisons(score_a, score_b, target)
    x, knot = np.unique(np.concatenate([difference, -difference]), return_inverse=True)
    weights, total = np.bincount(knot).astype(np.float64), np.bincount(knot, np.concatenate([y, 1 - y]))
    fitted = np.clip(isotonic_regression(total / weights, weights=weights).x, 0.0, 1.0)
    # Knots inside a flat stretch are not needed.
    ends = np.append(True, np.diff(fitted) > 0) | np.append(np.diff(fitted) > 0, True)
    return Curve(x[ends], fitted[ends])


def fit_percentiles(scores: ArrayLike) -> Curve:
    """The map from a score to its place in [0, 1] among the reference scores (n,), exact at a thousand quantiles.

    A score that several reference scores share gets the middle of their places.
    """
    reference = np.asarray(scores, np.float64)
    if not reference.size or np.isnan(reference).any():
        raise InputError(f"cannot fit percentiles on {reference.size} scores; wanted at least one, and none NaN")
    places = np.linspace(0, 1, PERCENTILE_KNOTS)
    x, knot = np.unique(np.quantile(reference, places), return_inverse=True)
    return Curve(x, np.bincount(knot, places) / np.bincount(knot))


def _comparisons(score_a: ArrayLike, score_b: ArrayLike, target: ArrayLike) -> tuple[Floats, Floats]:
    """The differences of scores and the targets, float64 (m,). Raise InputError if there are none or some are not
    finite."""
    difference = np.asarray(score_a, np.float64) - np.asarray(score_b, np.float64)
    y = np.asarray(target, np.float64)
    if not len(y) or not np.isfinite([difference, y]).all():
        raise InputError(f"cannot calibrate on {len(y)} comparisons; wanted some, with finite scores and targets")
    return difference, y
