"""Leads and comparisons are differences of accuracies by a loop, on the same pairs."""

import numpy as np
import pytest
from heads_labels import comparisons, measured

from heads.evaluation.paired import compared, lead
from heads.evaluation.scoreboard import scoreboard

RNG = np.random.default_rng(5)


def accuracy(scores: np.ndarray, target: np.ndarray) -> float:
    """Of the decided rows; equal scores are half right."""
    credit = [
        0.5 if a == b else float((a > b) == (wanted > 0.5))
        for (a, b), wanted in zip(scores, target, strict=True)
        if wanted != 0.5
    ]
    return float(np.mean(credit))


def test_lead_and_comparison_are_differences_on_the_same_pairs() -> None:
    target = RNG.choice([0.0, 0.5, 1.0], 200, p=[0.4, 0.2, 0.4])
    one = measured(comparisons(target, RNG.integers(0, 30, 200)))
    lean = 2 * (target - 0.5)
    scores = np.round(RNG.normal(size=(200, 2)) + np.stack([lean, -lean], 1), 1)
    other = RNG.normal(size=scores.shape)
    figures = scoreboard(one, {"head": scores, "chance": other})["pair_accuracy"]["scores"]
    got = lead(one, {"head": scores, "chance": other})["chance"]
    assert got["difference"]["value"] == pytest.approx(figures["head"]["value"] - figures["chance"]["value"])
    assert got["p_value"] == pytest.approx(2 / 101)  # the fewest that 100 resamples can say
    assert lead(one, {"head": scores, "chance": scores})["chance"]["p_value"] == 1

    first, _, test = compared(one, other, scores)
    expected = [accuracy(s[one.rows], target[one.rows]) for s in (other, scores)]
    assert first.value == pytest.approx(expected[0])
    assert test.difference.value == pytest.approx(expected[0] - expected[1])
    assert test.difference.high < 0
