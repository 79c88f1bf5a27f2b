"""Bootstrap intervals: against explicit resampling, closed forms, and how often they hold the truth."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr, t, ttest_1samp, ttest_ind

from heads.evaluation import intervals
from heads.evaluation.intervals import (
    Bootstrap,
    _rank_correlation,
    calibration_error_interval,
    mean_interval,
    paired_interval,
    spearman_interval,
)


def example(seed: int, m: int = 300, clusters: int = 9):
    rng = np.random.default_rng(seed)
    return rng.random(m), rng.integers(clusters, size=m) * 7, rng.integers(clusters, size=m) * 7


def bootstrap(cluster_a, cluster_b=None, seed: int | np.random.Generator = 0, resamples: int = 1000) -> Bootstrap:
    a = np.asarray(cluster_a)
    return Bootstrap(a, a if cluster_b is None else np.asarray(cluster_b), np.random.default_rng(seed), resamples)


def slow_interval(credit, cluster_a, cluster_b, rng, resamples: int) -> tuple[float, float]:
    """Every comparison copied as often as its clusters were drawn; the same draws as the fast one."""
    names = np.unique([*cluster_a, *cluster_b]).tolist()
    means = []
    for _ in range(resamples):
        drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
        total = count = 0.0
        for c, a, b in zip(credit, cluster_a, cluster_b, strict=True):
            copies = drawn.count(a) if a == b else drawn.count(a) * drawn.count(b)
            total, count = total + copies * c, count + copies
        means.append(total / count)
    return tuple(np.mean(credit) + np.array([-1, 1]) * reach(cluster_a, cluster_b) * np.std(means))


def reach(cluster_a, cluster_b) -> float:
    """By how many standard deviations of the resamples an interval reaches: with clusters of one size, Student's t for
    so many, widened as a variance is that is divided by n - 1."""
    sides = [*cluster_a, *cluster_b]
    sizes = [sides.count(c) for c in set(sides)]
    worth = sum(sizes) ** 2 / sum(size * size for size in sizes)
    return t.ppf(0.975, worth - 1) * np.sqrt(worth / (worth - 1))


@pytest.mark.parametrize("sides", [1, 2])
def test_intervals_are_those_of_copied_comparisons(sides: int, monkeypatch) -> None:
    credit, a, b = example(0)
    b = a if sides == 1 else b
    expected = slow_interval(credit, a, b, np.random.default_rng(5), 40)
    for at_once in (intervals.COUNTS_AT_ONCE, 30):  # all resamples at once, and three at a time
        monkeypatch.setattr(intervals, "COUNTS_AT_ONCE", at_once)
        # What could not be judged is left out.
        got = mean_interval(np.append(credit, np.nan), bootstrap(np.append(a, 999), np.append(b, 999), 5, 40))
        assert got.value == pytest.approx(credit.mean())
        assert (got.low, got.high) == pytest.approx(expected)


def test_clusters_of_one_give_the_normal_interval() -> None:
    credit = np.repeat([1.0, 0.0], [700, 300])
    got = mean_interval(credit, bootstrap(np.arange(1000), resamples=4000))
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert (got.low, got.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.002)
    # Ten copies of each comparison in its cluster say nothing new; taken for new ones they would.
    copies = np.repeat(credit, 10)
    same = mean_interval(copies, bootstrap(np.arange(10_000) // 10, resamples=4000))
    assert (same.low, same.high) == pytest.approx((got.low, got.high))


@pytest.mark.parametrize("prompts", [4, 30])
def test_clusters_of_one_size_give_students_t(prompts: int) -> None:
    credit = np.random.default_rng(3).random((prompts, 6))
    resampling = bootstrap(np.arange(prompts).repeat(6), resamples=20_000)
    got = mean_interval(credit.ravel(), resampling)
    expected = ttest_1samp(credit.mean(1), 0).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), rel=0.02)
    test = paired_interval(
        credit.ravel(), 1 - credit.ravel(), bootstrap(np.arange(prompts).repeat(6), resamples=20_000)
    )
    assert test.p_value == pytest.approx(ttest_1samp(credit.mean(1), 0.5).pvalue, rel=0.05)


def test_uneven_clusters_are_worth_fewer() -> None:
    assert bootstrap(np.repeat([0, 1, 2], 5)).worth == pytest.approx(3)
    assert bootstrap(np.repeat([0, 1, 2], [1, 1, 98])).worth == pytest.approx(100**2 / (98**2 + 2))
    assert bootstrap([0, 0, 1], [0, 1, 1]).worth == pytest.approx(2)  # a comparison counts for both of its sides


@pytest.mark.parametrize(("prompts", "folds"), [(40, 1), (27, 5), (5, 1), (3, 1)])
def test_the_truth_is_inside_as_often_as_stated(prompts: int, folds: int) -> None:
    rng = np.random.default_rng(1)
    inside, certain = [], []
    for _ in range(200):
        skill = np.repeat(rng.beta(6, 2, prompts), 8)  # prompts differ in how easy they are; mean 0.75
        prompt = np.arange(8 * prompts) // 8
        credit = (rng.random(8 * prompts) < skill).astype(float)
        got = mean_interval(credit, bootstrap(prompt, seed=rng, resamples=150), prompt % folds)
        inside.append(got.low <= 0.75 <= got.high)
        other = (rng.random(8 * prompts) < np.repeat(rng.beta(6, 2, prompts), 8)).astype(float)
        certain.append(paired_interval(credit, other, bootstrap(prompt, seed=rng, resamples=150)).p_value < 0.05)
    assert 0.91 <= np.mean(inside) <= 0.985
    assert np.mean(certain) <= 0.08


@pytest.mark.parametrize("sides", [1, 2])
def test_calibration_error_is_that_of_copied_comparisons(sides: int) -> None:
    gap, a, b = example(4, m=80)
    b, bins = (a if sides == 1 else b), np.random.default_rng(0).integers(3, size=80)
    gap = gap - 0.4

    def error(copies: np.ndarray) -> float:
        return sum(abs((copies * gap)[bins == name].sum()) for name in range(3)) / copies.sum()

    rng, names, errors = np.random.default_rng(5), np.unique([*a, *b]).tolist(), []
    for _ in range(60):
        drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
        copies = [drawn.count(x) if x == y else drawn.count(x) * drawn.count(y) for x, y in zip(a, b, strict=True)]
        errors.append(error(np.array(copies)))
    got = calibration_error_interval(gap, bins, bootstrap(a, b, 5, 60))
    value = error(np.ones(80))
    middle = np.mean(errors)
    low, high = middle + reach(a, b) / 1.959964 * (np.quantile(errors, [0.025, 0.975]) - middle)
    assert got.value == pytest.approx(value)
    added = middle - value
    assert (got.low, got.high) == pytest.approx((max(0, low - 3.414214 * added), high - added))


@pytest.mark.parametrize(("true", "often"), [(0.0, 0.85), (0.05, 0.93)])
def test_the_true_calibration_error_is_inside(true: float, often: float) -> None:
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(150):
        confidence = rng.uniform(0.6, 0.9, 400)
        outcome = rng.random(400) < confidence - true
        slot = (confidence * 10).astype(int)
        resampling = bootstrap(np.arange(400), seed=rng, resamples=150)
        got = calibration_error_interval(confidence - outcome, slot, resampling)
        inside.append(got.low <= true <= got.high)
    assert np.mean(inside) >= often


def test_mean_of_folds() -> None:
    credit, a, b = example(2)
    fold = np.arange(300) % 3
    folds = [np.flatnonzero(fold == f) for f in range(3)]
    got = mean_interval(credit, bootstrap(a, b, 3), fold)
    assert got.value == pytest.approx(np.mean([credit[i].mean() for i in folds]))
    assert got.low < got.value < got.high
    # Folds are independent, so three of one width give a mean of that width / sqrt(3).
    one = [mean_interval(credit[i], bootstrap(a[i], b[i], 4)) for i in folds]
    width = np.sqrt(sum((i.high - i.low) ** 2 for i in one)) / 3
    assert got.high - got.low == pytest.approx(width, rel=0.15)
    # One fold is the plain interval, and a fold without any credit does not count.
    single = mean_interval(credit, bootstrap(a, seed=6))
    nothing = np.append(np.zeros(300), 1)
    assert mean_interval(np.append(credit, np.nan), bootstrap(np.append(a, 0), seed=6), nothing) == single


def test_the_degrees_of_freedom_of_folds_are_satterthwaites() -> None:
    """Welch's test of two samples of uneven spread is that of a mean over two folds."""
    rng = np.random.default_rng(2)
    wide, narrow = rng.normal(0, 1.0, 4), rng.normal(0, 0.05, 12)
    fold, cluster = np.repeat([0, 1], [4, 12]), np.arange(16)
    got = mean_interval(np.append(wide, narrow), bootstrap(cluster, resamples=20_000), fold)
    welch = ttest_ind(wide, -narrow, equal_var=False).confidence_interval(0.95)  # of the sum, twice the mean
    assert (got.low, got.high) == pytest.approx((welch.low / 2, welch.high / 2), rel=0.02)


def test_paired_interval_agrees_with_the_sign_test() -> None:
    # 60 comparisons on which only the first is right, 40 on which only the second is; the rest says nothing.
    credit_1 = np.repeat([1.0, 0.0, 1.0], [60, 40, 400])
    credit_2 = np.repeat([0.0, 1.0, 1.0], [60, 40, 400])
    got = paired_interval(credit_1, credit_2, bootstrap(np.arange(500), resamples=20_000))
    assert got.difference.value == pytest.approx(0.04)
    assert got.p_value == pytest.approx(binomtest(60, 100).pvalue, abs=0.015)  # 0.057: McNemar's exact test
    back = paired_interval(credit_2, credit_1, bootstrap(np.arange(500)))
    assert back.difference.value == pytest.approx(-0.04) and back.difference.low < -0.04 < back.difference.high
    assert back.p_value == pytest.approx(got.p_value, abs=0.03)
    assert paired_interval(credit_1, credit_1, bootstrap(np.arange(500))).p_value == 1.0
    certain = paired_interval(np.ones(50), np.zeros(50), bootstrap(np.arange(50)))
    assert certain.p_value == pytest.approx(2 / 1001)


@pytest.mark.parametrize("clusters", [2, 4, 30])
def test_an_interval_of_equal_credits_at_an_end_is_that_of_clopper_and_pearson(clusters: int) -> None:
    cluster = np.repeat(np.arange(clusters), 3)
    exact = binomtest(clusters, clusters).proportion_ci(method="exact")
    right, wrong = np.ones(len(cluster)), np.zeros(len(cluster))
    up = mean_interval(right, bootstrap(cluster), None, 0, 1)
    down = mean_interval(wrong, bootstrap(cluster), None, 0, 1)
    assert (up.value, up.low, up.high) == pytest.approx((1, exact.low, 1))
    assert (down.value, down.low, down.high) == pytest.approx((0, 0, 1 - exact.low))
    apart = paired_interval(wrong, right, bootstrap(cluster))
    assert (apart.difference.low, apart.difference.high) == pytest.approx((-1, 1 - 2 * exact.low))
    assert apart.p_value == pytest.approx(max(binomtest(0, clusters).pvalue, 2 / 1001))
    half = mean_interval(right / 2, bootstrap(cluster), None, 0, 1)  # a scorer that gives only ties
    assert half.low == half.high == 0.5


def test_an_interval_at_an_end_counts_equal_folds_alike_and_unequal_ones_by_the_smallest() -> None:
    fold = np.array([0, 0, 0, 0, 1, 1])
    got = mean_interval(np.ones(6), bootstrap(np.arange(6)), fold, 0, 1)
    assert got.low == pytest.approx(binomtest(4, 4).proportion_ci(method="exact").low)
    noisy = Bootstrap(np.arange(6), np.arange(6), np.random.default_rng(0), noise=1.0)
    assert mean_interval(np.ones(6), noisy, fold, 0, 1).low == pytest.approx(0.025 ** (1 / 2))


def test_too_little_to_say_is_missing_not_certain() -> None:
    one_cluster = mean_interval([1.0, 0.0], bootstrap(["p", "p"]))
    reason = "fewer than two clusters"
    assert one_cluster.to_json() == {"value": 0.5, "low": None, "high": None, "reason": reason}
    lone = mean_interval([1.0, 0.0, 1.0], bootstrap([0, 1, 2]), [0, 0, 1])
    assert np.isnan(lone.low) and lone.reason == f"{reason} in a held-out part"
    for nothing in (([], [], []), ([0.3], [0], [1])):  # no comparison, or one cluster
        gap, bins, cluster = nothing
        error = calibration_error_interval(gap, bins, bootstrap(cluster))
        assert np.isnan([error.low, error.high]).all() and np.isnan(error.value) == (not gap)
    for fold in (None, [0]):
        nothing = mean_interval([np.nan], bootstrap([0]), fold)
        assert nothing.to_json() == {"value": None, "low": None, "high": None, "reason": "nothing could be judged"}
    paired = paired_interval([1.0], [np.nan], bootstrap([0]))
    assert json.loads(json.dumps(paired.to_json(), allow_nan=False))["p_value"] is None


def test_one_seed_gives_one_interval() -> None:
    credit, a, b = example(7)
    twice = [mean_interval(credit, bootstrap(a, b, 1)) for _ in range(2)]
    other = mean_interval(credit, bootstrap(a, b, 2))
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
        got = spearman_interval(x, y, bootstrap(np.arange(120), resamples=200), np.repeat([0, 1], 60))
        covered += got.low <= 6 / np.pi * np.arcsin(np.sqrt(0.5) / 2) <= got.high
    assert 85 <= covered <= 100
    # Every row ten times over is ten times the rows, and no more to go by.
    once = spearman_interval(x, y, bootstrap(np.arange(120)), np.zeros(120))
    clusters = bootstrap(np.tile(np.arange(120), 10))
    ten = spearman_interval(np.tile(x, 10), np.tile(y, 10), clusters, np.zeros(1200))
    assert (ten.low, ten.high) == pytest.approx((once.low, once.high))
    assert np.isnan(spearman_interval([1.0, 1.0], [1.0, 2.0], bootstrap([0, 1]), [0, 0]).value)


def test_a_paired_interval_can_be_a_mean_over_folds() -> None:
    credit = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    fold, cluster = np.array([0, 0, 0, 0, 1, 1]), np.arange(6)
    got = paired_interval(credit, np.zeros(6), bootstrap(cluster), fold)
    assert got.difference.value == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert got.difference == mean_interval(credit, bootstrap(cluster), fold).within(-1, 1)
    assert got.difference.high == 1  # from two clusters in a fold an interval reaches beyond what can be


def test_ranks_that_agree_everywhere_have_an_interval_with_a_width() -> None:
    got = spearman_interval(np.arange(8.0), np.arange(8.0), bootstrap(np.arange(8)), np.zeros(8))
    assert (got.value, got.high) == pytest.approx((1, 1))
    assert got.low == pytest.approx(2 * binomtest(8, 8).proportion_ci(method="exact").low - 1)
