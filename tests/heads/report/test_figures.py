"""Figures in words: what an interval says, which sign zero has, and when a head is better."""

import pytest

from heads.evaluation.intervals import Interval
from heads.report.figures import comparison, ends, number, told, verdict


def test_a_figure_says_its_interval_or_why_it_has_none() -> None:
    assert told(Interval(0.7094, 0.6606, 0.757)) == "0.709 (0.661 to 0.757)"
    assert told(Interval(0.5, float("nan"), float("nan"), "one prompt")) == "0.500 (no interval: one prompt)"
    assert ends(Interval(0.02, -0.0001, 0.04), "+.2f") == "+0.00 to +0.04"
    assert ends({"value": 0.5, "low": None, "high": None, "reason": "one prompt"}) == "one prompt"


@pytest.mark.parametrize(
    ("value", "format", "expected"),
    [(-0.001, ".2f", "0.00"), (-0.001, "+.2f", "+0.00"), (-0.01, ".2f", "-0.01"), (None, ".2f", "-")],
)
def test_zero_has_no_sign(value: float | None, format: str, expected: str) -> None:
    assert number(value, format) == expected


def test_the_verdict_goes_by_the_paired_test() -> None:
    accuracy = {"head": 0.709, "zero_shot": 0.567, "ridge": 0.7, "prior": 0.86, "chance": 0.5}

    def lead(**leads: tuple[float, float | None]) -> dict[str, object]:
        return {name: {"difference": {"value": value}, "p_value": p} for name, (value, p) in leads.items()}

    every = lead(zero_shot=(0.142, 0.001), ridge=(0.009, 0.4), prior=(-0.151, 0.002), chance=(0.2, 0.001))
    assert verdict(accuracy, every, "maker") == (
        "Better than zero-shot CLIP, ridge regression and the prior? No: the head orders 0.709 of the pairs as people"
        " did, better than zero-shot CLIP (0.567), worse than the prior by maker (0.860), not to be told from ridge"
        " regression (0.700)."
    )
    assert "? Yes: " in verdict(accuracy, lead(zero_shot=(0.142, 0.049)))
    assert "? Cannot tell: " in verdict(accuracy, lead(zero_shot=(0.142, 0.05)))
    assert "? Cannot tell: " in verdict(accuracy, lead(zero_shot=(0.142, None)))
    assert "Better than chance? Yes" in verdict(accuracy, lead(chance=(0.2, 0.001)))
    assert "not an honest test" in verdict(accuracy, every, trained_rows=3)
    assert comparison("a", "b", 0.1, 0.04) == "a orders pairs better than b."
    assert comparison("a", "b", -0.1, 0.04) == "b orders pairs better than a."
    assert comparison("a", "b", -0.1, float("nan")) == "Cannot tell which of a and b orders pairs better."
