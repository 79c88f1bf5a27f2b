"""What is resampled, what is fitted apart, and what an interval cannot reach beyond."""

import numpy as np
import pyarrow as pa
import pytest
from heads_labels import GROUPS, SIZE, comparisons, measured, single
from scipy.stats import ttest_1samp

from heads.config import Protocol
from heads.data.comparisons import Labels
from heads.data.split import Split
from heads.evaluation.measured import Measured, compared, lead, measure_pairs
from heads.evaluation.scoreboard import scoreboard

RNG = np.random.default_rng(6)


def across(rows: int = 40, groups: int = 10) -> Measured:
    """Counts without groups: all rows are compared, those of different groups of the split too."""
    table = pa.table({"image": [f"{i}.png" for i in range(rows)]})
    own = {"count": 3.0 ** np.arange(rows)}
    labels = Labels("counts", np.arange(rows), np.full(rows, -1), np.arange(rows)[:, None], own, table, 0)
    return measure_pairs(labels, Split(np.zeros(rows, np.int64), np.arange(rows) % groups, 1), Protocol(resamples=50))


def test_pairs_of_one_prompt_are_resampled_together() -> None:
    prompt = np.repeat(np.arange(30), 8)
    ease = RNG.random(30)[prompt]
    one = measured(comparisons((RNG.random(240) < ease).astype(float), prompt), folds=1)
    assert (one.clusters, one.cluster_count) == ("prompts", 30)
    scores = np.tile([1.0, 0.0], (240, 1))
    got, credit = one.interval(one.credit(scores)), one.credit(scores).reshape(30, 8)
    expected = ttest_1samp(credit.mean(1), 0).confidence_interval(0.95)
    # Of 100 resamples the spread is known to some 7 %; as 240 prompts the interval would be less than half as wide.
    assert got.high - got.low == pytest.approx(expected.high - expected.low, rel=0.25)


def test_pictures_of_different_prompts_are_resampled_by_groups_of_the_split() -> None:
    one = across()
    assert (one.clusters, one.cluster_count) == ("split groups", 10)
    assert one.describe()["interval"] == "95 %, 50 bootstrap resamples of 10 split groups"


def test_an_accuracy_is_from_0_to_1_however_far_its_interval_reaches(caplog: pytest.LogCaptureFixture) -> None:
    one = measured(comparisons(np.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0]), np.array([0, 0, 0, 0, 1, 1])), folds=1)
    credit = one.credit(np.tile([1.0, 0.0], (6, 1)))
    for got in (one.interval(credit), one.pooled_interval(credit)):
        assert got.value == pytest.approx(5 / 6) and (got.low, got.high) == (0, 1)
    one.warn_of_few()
    assert "intervals rest on 2 prompts" in caplog.text
    caplog.clear()
    measured(single("ratings", np.arange(GROUPS * SIZE))).warn_of_few()
    assert not caplog.text


def test_what_is_fitted_on_one_half_shares_no_row_with_the_other() -> None:
    one = across()
    halves = []

    def fitted(others: np.ndarray, part: np.ndarray) -> float:
        rows = [set(one.pairs.row_a[pairs]) | set(one.pairs.row_b[pairs]) for pairs in (others, part)]
        assert rows[0] and rows[1] and not rows[0] & rows[1]
        halves.append(len(rows[1]))
        return 1.0

    values = one.crossed(fitted)
    assert halves == [20, 20]
    assert np.isnan(values).sum() == 20 * 20  # the pairs between both halves


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
