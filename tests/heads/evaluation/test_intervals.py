"""Bootstrap intervals: against explicit resampling, closed forms, and how often they hold the truth."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr

from heads.evaluation import intervals
from heads.evaluation.intervals import (
    _rank_correlation,
    calibration_error_interval,
    clustered_interval,
    mean_of_folds_interval,
    paired_interval,
    spearman_interval,
)


def example(seed: int, m: int = 300, clusters: int = 9):
    rng = np.random.default_rng(seed)
    credit, weight = rng.choice([0.0, 0.5, 1.0], m), rng.random(m)
    return credit, weight, rng.integers(clusters, size=m) * 7, rng.integers(clusters, size=m) * 7


def slow_interval(credit, weight, cluster_a, cluster_b, rng, resamples: int) -> tuple[float, float]:
    """Every comparison copied as often as its clusters were drawn; the same draws as the fast one."""
    names = np.unique([*cluster_a, *cluster_b]).tolist()
    means = []
    for _ in range(resamples):
        drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
        total = weights = 0.0
        for c, w, a, b in zip(credit, weight, cluster_a, cluster_b, strict=True):
            copies = drawn.count(a) if a == b else drawn.count(a) * drawn.count(b)
            total, weights = total + copies * w * c, weights + copies * w
        means.append(total / weights)
    return tuple(np.quantile(means, [0.025, 0.975]))


@pytest.mark.parametrize("sides", [1, 2])
def test_intervals_are_those_of_copied_comparisons(sides: int, monkeypatch) -> None:
    credit, weight, a, b = example(0)
    b = a if sides == 1 else b
    expected = slow_interval(credit, weight, a, b, np.random.default_rng(5), 40)
    for at_once in (intervals.COUNTS_AT_ONCE, 30):  # all resamples at once, and three at a time
        monkeypatch.setattr(intervals, "COUNTS_AT_ONCE", at_once)
        got = clustered_interval(
            np.append(credit, np.nan),  # what could not be judged is left out
            np.append(weight, 1e9),
            cluster_a=np.append(a, 999),
            cluster_b=None if sides == 1 else np.append(b, 999),
            rng=np.random.default_rng(5),
            resamples=40,
        )
        assert got.value == pytest.approx(np.average(credit, weights=weight))
        assert (got.low, got.high) == pytest.approx(expected)


def test_clusters_of_one_give_the_normal_interval() -> None:
    credit = np.repeat([1.0, 0.0], [700, 300])
    got = clustered_interval(credit, cluster_a=np.arange(1000), rng=np.random.default_rng(0), resamples=4000)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert (got.low, got.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.002)
    # Ten copies of each comparison in its cluster say nothing new; taken for new ones they would.
    copies = np.repeat(credit, 10)
    same = clustered_interval(copies, cluster_a=np.arange(10_000) // 10, rng=np.random.default_rng(0), resamples=4000)
    assert (same.low, same.high) == pytest.approx((got.low, got.high))
    narrower = clustered_interval(credit, cluster_a=np.arange(1000), rng=np.random.default_rng(0), level=0.5)
    assert narrower.high - narrower.low == pytest.approx(2 * 0.674 / 1.96 * half, rel=0.1)


def test_the_truth_is_inside_as_often_as_stated() -> None:
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(150):
        skill = np.repeat(rng.beta(3, 1, 40), 8)  # prompts differ in how easy they are; mean 0.75
        credit = (rng.random(320) < skill).astype(float)
        got = clustered_interval(credit, cluster_a=np.arange(320) // 8, rng=rng, resamples=150)
        inside.append(got.low <= 0.75 <= got.high)
    assert 0.91 <= np.mean(inside) <= 0.985


@pytest.mark.parametrize("sides", [1, 2])
def test_calibration_error_is_that_of_copied_comparisons(sides: int) -> None:
    _, gap, a, b = example(4, m=80)
    b, bins = (a if sides == 1 else b), np.random.default_rng(0).integers(3, size=80)
    gap = gap - 0.4

    def error(copies: np.ndarray) -> float:
        return sum(abs((copies * gap)[bins == name].sum()) for name in range(3)) / copies.sum()

    rng, names, errors = np.random.default_rng(5), np.unique([*a, *b]).tolist(), []
    for _ in range(60):
        drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
        copies = [drawn.count(x) if x == y else drawn.count(x) * drawn.count(y) for x, y in zip(a, b, strict=True)]
        errors.append(error(np.array(copies)))
    got = calibration_error_interval(gap, bins, cluster_a=a, cluster_b=b, rng=np.random.default_rng(5), resamples=60)
    value = error(np.ones(80))
    low, high = np.quantile(errors, [0.025, 0.975])
    assert got.value == pytest.approx(value)
    added = np.mean(errors) - value
    assert (got.low, got.high) == pytest.approx((max(0, low - 3.414214 * added), high - added))


@pytest.mark.parametrize(("true", "often"), [(0.0, 0.85), (0.05, 0.93)])
def test_the_true_calibration_error_is_inside(true: float, often: float) -> None:
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(150):
        confidence = rng.uniform(0.6, 0.9, 400)
        outcome = rng.random(400) < confidence - true
        slot = (confidence * 10).astype(int)
        cluster = np.arange(400)
        got = calibration_error_interval(confidence - outcome, slot, cluster_a=cluster, cluster_b=cluster, rng=rng,
                                         resamples=150)  # fmt: skip
        inside.append(got.low <= true <= got.high)
    assert np.mean(inside) >= often


def test_mean_of_folds() -> None:
    credit, weight, a, b = example(2)
    fold = np.arange(300) % 3
    folds = [np.flatnonzero(fold == f) for f in range(3)]
    expected = np.mean([np.average(credit[i], weights=weight[i]) for i in folds])
    got = mean_of_folds_interval(credit, weight, fold=fold, cluster_a=a, cluster_b=b, rng=np.random.default_rng(3))
    assert got.value == pytest.approx(expected)
    assert got.low < got.value < got.high
    # Folds are independent, so three of one width give a mean of that width / sqrt(3).
    one = [
        clustered_interval(credit[i], weight[i], cluster_a=a[i], cluster_b=b[i], rng=np.random.default_rng(4))
        for i in folds
    ]
    width = np.sqrt(sum((i.high - i.low) ** 2 for i in one)) / 3
    assert got.high - got.low == pytest.approx(width, rel=0.15)
    # One fold is the plain interval, and a fold without any credit does not count.
    single = clustered_interval(credit, weight, cluster_a=a, rng=np.random.default_rng(6))
    nothing = np.append(np.zeros(300), 1)
    same = mean_of_folds_interval(
        np.append(credit, np.nan),
        np.append(weight, 1),
        fold=nothing,
        cluster_a=np.append(a, 0),
        rng=np.random.default_rng(6),
    )
    assert same == single


def test_paired_interval_agrees_with_the_sign_test() -> None:
    # 60 comparisons on which only the first is right, 40 on which only the second is; the rest says nothing.
    credit_1 = np.repeat([1.0, 0.0, 1.0], [60, 40, 400])
    credit_2 = np.repeat([0.0, 1.0, 1.0], [60, 40, 400])
    got = paired_interval(credit_1, credit_2, cluster_a=np.arange(500), rng=np.random.default_rng(0), resamples=20_000)
    assert got.difference.value == pytest.approx(0.04)
    assert got.p_value == pytest.approx(binomtest(60, 100).pvalue, abs=0.015)  # 0.057: McNemar's exact test
    back = paired_interval(credit_2, credit_1, cluster_a=np.arange(500), rng=np.random.default_rng(0))
    assert back.difference.value == pytest.approx(-0.04) and back.difference.low < -0.04 < back.difference.high
    assert back.p_value == pytest.approx(got.p_value, abs=0.03)
    assert paired_interval(credit_1, credit_1, cluster_a=np.arange(500), rng=np.random.default_rng(0)).p_value == 1.0
    certain = paired_interval(np.ones(50), np.zeros(50), cluster_a=np.arange(50), rng=np.random.default_rng(0))
    assert certain.p_value == pytest.approx(2 / 1001)


def test_too_little_to_say_is_missing_not_certain() -> None:
    rng = np.random.default_rng(0)
    one_cluster = clustered_interval([1.0, 0.0], cluster_a=["p", "p"], rng=rng)
    assert one_cluster.to_json() == {"value": 0.5, "low": None, "high": None}
    for nothing in (([], [], []), ([0.3], [0], [1])):  # no comparison, or one cluster
        gap, bins, cluster = nothing
        error = calibration_error_interval(gap, bins, cluster_a=cluster, cluster_b=cluster, rng=rng)
        assert np.isnan([error.low, error.high]).all() and np.isnan(error.value) == (not gap)
    nothing = clustered_interval([np.nan], cluster_a=[0], rng=rng)
    assert nothing.to_json() == {"value": None, "low": None, "high": None}
    folds = mean_of_folds_interval([np.nan], fold=[0], cluster_a=[0], rng=rng)
    assert folds.to_json() == nothing.to_json()
    paired = paired_interval([1.0], [np.nan], cluster_a=[0], rng=rng)
    assert json.loads(json.dumps(paired.to_json(), allow_nan=False))["p_value"] is None


def test_one_seed_gives_one_interval() -> None:
    credit, weight, a, b = example(7)
    twice = [
        clustered_interval(credit, weight, cluster_a=a, cluster_b=b, rng=np.random.default_rng(1)) for _ in range(2)
    ]
    other = clustered_interval(credit, weight, cluster_a=a, cluster_b=b, rng=np.random.default_rng(2))
    assert twice[0] == twice[1] != other


def test_spearman_of_a_resample_is_that_of_its_rows_taken_as_often() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 8, 30).astype(float), rng.integers(0, 8, 30).astype(float)
    counts = rng.integers(0, 4, (30, 5)).astype(float)
    for i, got in enumerate(_rank_correlation(x, y, counts)):
        rows = np.repeat(np.arange(30), counts[:, i].astype(int))
        assert got == pytest.approx(spearmanr(x[rows], y[rows]).statistic)
    assert np.isnan(_rank_correlation(np.ones(30), y, counts)).all()


def test_spearman_interval_covers_the_truth_and_resamples_clusters() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(100):
        x = rng.normal(size=120)
        y = x + rng.normal(size=120)  # Pearson's is sqrt(1/2), and Spearman's 6/pi asin of half that
        got = spearman_interval(
            x, y, fold=np.repeat([0, 1], 60), cluster=np.arange(120), rng=np.random.default_rng(0), resamples=200
        )
        covered += got.low <= 6 / np.pi * np.arcsin(np.sqrt(0.5) / 2) <= got.high
    assert 85 <= covered <= 100
    # Every row ten times over is ten times the rows, and no more to go by.
    once = spearman_interval(x, y, fold=np.zeros(120), cluster=np.arange(120), rng=np.random.default_rng(0))
    ten = spearman_interval(
        np.tile(x, 10), np.tile(y, 10), fold=np.zeros(1200), cluster=np.tile(np.arange(120), 10),
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert (ten.low, ten.high) == pytest.approx((once.low, once.high))
    assert np.isnan(spearman_interval([1.0, 1.0], [1.0, 2.0], fold=[0, 0], cluster=[0, 1], rng=rng).value)


def test_a_paired_interval_can_be_a_mean_over_folds() -> None:
    credit = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    fold, cluster = np.array([0, 0, 0, 0, 1, 1]), np.arange(6)
    got = paired_interval(credit, np.zeros(6), fold=fold, cluster_a=cluster, rng=np.random.default_rng(0))
    assert got.difference.value == pytest.approx((3 / 4 + 1 / 2) / 2)
    alone = mean_of_folds_interval(credit, fold=fold, cluster_a=cluster, rng=np.random.default_rng(0))
    assert got.difference == alone
