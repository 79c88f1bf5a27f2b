"""Each paper's metric against a slow loop, another library, or a number that was published."""

import json
from itertools import combinations, permutations

import numpy as np
import pytest
from paths import DATA
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import brier_score_loss, ndcg_score

from embed.spec import InputError
from heads import metrics
from heads.pairs import pairs_within

IMAGEREWARD = DATA / "imagereward" / "test.json"


def table(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, group and rank of 60 ragged groups in a shuffled order, with ties on both sides."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(60) * 3, rng.integers(1, 9, 60)))
    return rng.integers(0, 7, len(group)) / 4, group, rng.integers(1, 6, len(group))


def rows_by_group(group: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(group == name) for name in np.unique(group)]


def test_pair_credit_by_tie_rule() -> None:
    a, b = [2.0, 1.0, 1.0, 1.0, 3.0, 0.0], [1.0, 2.0, 1.0, 1.0, 3.0, 1.0]
    target = [1.0, 1.0, 1.0, 0.2, 0.5, 0.4]
    for tie, credit in {"correct": 1.0, "wrong": 0.0, "half": 0.5}.items():
        expected = [1, 0, credit, credit, np.nan, 1]
        np.testing.assert_array_equal(metrics.pair_credit(a, b, target, tie), expected)
    # Social Reward counts cos(t, positive) >= cos(t, negative): a constant scorer is always right.
    assert metrics.pair_credit(np.zeros(9), np.zeros(9), np.ones(9), tie="correct").mean() == 1.0
    with pytest.raises(InputError, match="unknown tie rule 'maybe'"):
        metrics.pair_credit(a, b, target, "maybe")


def test_tie_credit_is_pickscores() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=200), rng.normal(size=200)
    b[:20] = a[:20]
    target = rng.choice([0.0, 0.5, 1.0], 200)
    for threshold in metrics.TIE_THRESHOLDS:
        expected = []
        for x, y, label in zip(a, b, target, strict=True):
            p0, p1 = np.exp([x, y]) / np.exp([x, y]).sum()
            said = "tie" if abs(p1 - p0) <= threshold else "a" if p0 > p1 else "b"
            wanted = {1.0: "a", 0.0: "b", 0.5: "tie"}[label]
            expected.append(1 if said == wanted else 0.5 if "tie" in (said, wanted) else 0)
        np.testing.assert_array_equal(metrics.tie_credit(a, b, target, threshold), expected)


def test_published_random_baseline_of_pickscore() -> None:
    # "Random" scores 56.8 in the paper's table: always a tie, where 13.6 % of the labels are ties.
    target = np.repeat([0.5, 1.0, 0.0], [136, 432, 432])
    rng = np.random.default_rng(2)
    for scores, threshold in ((np.zeros((2, 1000)), 0.0), (1000 * rng.normal(size=(2, 1000)), 1.0)):
        assert metrics.tie_credit(*scores, target, threshold).mean() == pytest.approx(0.568)


def test_tie_threshold_is_the_first_best() -> None:
    # |p_a - p_b| is tanh(0.25 / 2) = 0.12 on the ties and tanh(1) = 0.76 on the rest: 0.2 to 0.7 are all perfect.
    assert metrics.tie_threshold([0.25, 2.0], [0.0, 0.0], [0.5, 1.0]) == 0.2
    assert metrics.tie_threshold([1.0, 2.0], [0.0, 0.0], [1.0, 1.0]) == 0.0


def test_ranked_pairs_are_every_pair_of_a_group_with_different_ranks() -> None:
    _, group, rank = table()
    expected = [(i, j) for i, j in permutations(range(len(group)), 2) if group[i] == group[j] and rank[i] < rank[j]]
    better, worse = metrics.ranked_pairs(group, rank)
    assert sorted(zip(better.tolist(), worse.tolist(), strict=True)) == expected


@pytest.mark.skipif(not IMAGEREWARD.exists(), reason="the ImageReward test ranks are not on this machine")
def test_imagereward_test_set_has_its_known_pairs() -> None:
    ranking = [entry["ranking"] for entry in json.loads(IMAGEREWARD.read_text())]
    group, rank = np.repeat(np.arange(len(ranking)), [len(r) for r in ranking]), np.concatenate(ranking)
    assert len(metrics.ranked_pairs(group, rank)[0]) == 6399
    assert len(pairs_within(group)[0]) == 6399 + 831


def hps_inversion_score(order: np.ndarray, rank: np.ndarray) -> float:
    """1 - strict inversions / pairs, between a predicted order (best first) and ranks."""
    place = np.argsort(order)
    inversions = sum((place[i] - place[j]) * (rank[i] - rank[j]) < 0 for i, j in combinations(range(len(rank)), 2))
    return 1 - inversions / (len(rank) * (len(rank) - 1) / 2)


def test_rank_accuracy_is_hpsv2s_mean_over_orders_of_equal_scores() -> None:
    scores, group, rank = table()
    accuracy = metrics.rank_accuracy(scores, group, rank)
    for got, rows in zip(accuracy, rows_by_group(group), strict=True):
        if len(rows) == 1:
            assert np.isnan(got)
        elif len(rows) <= 6:
            allowed = [o for o in permutations(range(len(rows))) if (np.diff(scores[rows][list(o)]) <= 0).all()]
            expected = np.mean([hps_inversion_score(np.array(order), rank[rows]) for order in allowed])
            assert got == pytest.approx(expected)
    assert metrics.rank_accuracy([3.0, 2.0, 1.0], [0, 0, 0], [1, 1, 1]).tolist() == [1.0]  # ties of people are right
    assert metrics.rank_accuracy([0.0, 0.0], [0, 0], [1, 2]).tolist() == [0.5]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_recall_and_filter_at_k(k: int) -> None:
    scores, group, rank = table()
    recall, filtered = [], []
    for rows in rows_by_group(group):
        by_score = sorted(rows, key=lambda i: (-scores[i], -rank[i]))  # among equals, people's best last
        best = [i for i in rows if rank[i] == rank[rows].min()]
        could_miss = len(rows) - len(best) >= k
        recall.append(float(bool(set(by_score[:k]) & set(best))) if could_miss else np.nan)
        by_score = sorted(rows, key=lambda i: (scores[i], rank[i]))  # among equals, people's worst last
        worst = [i for i in rows if rank[i] == rank[rows].max()]
        could_miss = len(rows) - len(worst) >= k
        filtered.append(float(bool(set(by_score[:k]) & set(worst))) if could_miss else np.nan)
    assert 0 < np.nanmean(recall) < 1 and np.isnan(recall).any()
    np.testing.assert_array_equal(metrics.recall_at_k(scores, group, rank, k), recall)
    np.testing.assert_array_equal(metrics.filter_at_k(scores, group, rank, k), filtered)


def test_recall_of_eight_pictures_by_hand() -> None:
    scores, rank = [8, 7, 6, 5, 4, 3, 2, 1], [2, 2, 1, 2, 2, 2, 3, 2]
    assert [metrics.recall_at_k(scores, np.zeros(8), rank, k).item() for k in (1, 2, 4)] == [0, 0, 1]
    assert [metrics.filter_at_k(scores, np.zeros(8), rank, k).item() for k in (1, 2, 4)] == [0, 1, 1]
    assert metrics.recall_at_k(np.zeros(8), np.zeros(8), rank, 4).item() == 0  # a constant scorer finds nothing


def test_correlations() -> None:
    scores, group, rank = table()
    assert metrics.spearman(scores, rank) == pytest.approx(spearmanr(scores, rank).statistic)
    assert np.isnan(metrics.spearman(scores, np.ones(len(scores)))) and np.isnan(metrics.spearman([], []))
    for by_group, oracle in ((metrics.spearman_by_group, spearmanr), (metrics.kendall_by_group, kendalltau)):
        for got, rows in zip(by_group(scores, rank, group), rows_by_group(group), strict=True):
            if np.ptp(scores[rows]) and np.ptp(rank[rows]):
                assert got == pytest.approx(oracle(scores[rows], rank[rows]).statistic)
            else:
                assert np.isnan(got)
        assert len(by_group([], [], [])) == 0
        np.testing.assert_array_equal(by_group([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [0, 0, 1]), [1.0, np.nan])
    # tau-b by hand: 4 pairs in order, none reversed, one tie on each side, so 4 / sqrt(5 * 5).
    assert metrics.kendall_by_group([1, 2, 3, 3], [1, 2, 2, 3], np.zeros(4)) == pytest.approx([4 / 5])


def test_ndcg() -> None:
    scores, group, rank = table()
    got = metrics.ndcg(scores, 5.0 - rank, group)
    for value, rows in zip(got, rows_by_group(group), strict=True):
        if not (gain := 5.0 - rank[rows]).any():
            assert np.isnan(value)
        elif len(rows) > 1:
            assert value == pytest.approx(ndcg_score([gain], [scores[rows]]))
    by_hand = (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))
    np.testing.assert_allclose(metrics.ndcg([1.0, 2.0, 2.0], [0.3, 0.1, 0.1], [0, 0, 1]), [by_hand, 1])
    with pytest.raises(InputError, match="a gain is -1"):
        metrics.ndcg([1.0, 2.0], [3.0, -1.0], [0, 0])


def test_reliability_by_hand() -> None:
    probability, target = [0.9, 0.05, 0.96, 0.52, 0.5, 1.0], [1.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    bins = metrics.reliability(probability, target, bins=5)
    found = [(b.low, b.high, b.count, b.confidence, b.accuracy) for b in bins]
    np.testing.assert_allclose(found, [(0.5, 0.6, 2, 0.51, 0.5), (0.9, 1.0, 4, 3.81 / 4, 0.75)])
    error = metrics.expected_calibration_error(bins)
    assert error == pytest.approx((2 * 0.01 + 4 * (3.81 / 4 - 0.75)) / 6)
    # Which side is called a does not matter.
    swapped = metrics.reliability(1 - np.array(probability), 1 - np.array(target), bins=5)
    assert metrics.expected_calibration_error(swapped) == pytest.approx(error)
    assert np.isnan(metrics.expected_calibration_error([]))


def test_reliability_of_a_calibrated_scorer_is_near_zero() -> None:
    rng = np.random.default_rng(3)
    probability = rng.random(200_000)
    target = (rng.random(200_000) < probability).astype(float)
    assert metrics.expected_calibration_error(metrics.reliability(probability, target)) < 0.01
    overconfident = np.where(probability > 0.5, 0.99, 0.01)
    assert metrics.expected_calibration_error(metrics.reliability(overconfident, target)) == pytest.approx(
        0.24, abs=0.01
    )
    assert metrics.brier(probability, target).mean() == pytest.approx(brier_score_loss(target, probability))
    assert metrics.brier([0.5, 0.75], [0.5, 1.0]).tolist() == [0.0, 0.0625]


def test_bad_columns_are_named() -> None:
    with pytest.raises(InputError, match="1 of 2 values of score_b are NaN"):
        metrics.pair_credit([1.0, 2.0], [1.0, np.nan], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"score_a \(2,\), score_b \(1,\)"):
        metrics.pair_credit([1.0, 2.0], [1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"scores \(2, 1\)"):
        metrics.spearman(np.ones((2, 1)), np.ones((2, 1)))


def test_flipped_pairs_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    reference, scores = rng.integers(0, 5, (12, 3)) / 4, rng.integers(0, 5, (12, 3)) / 4
    expected = []
    for column in range(3):
        for i, j in combinations(range(12), 2):
            gap, other = (float(x[i, column] - x[j, column]) for x in (reference, scores))
            if abs(gap) > 0.25:
                expected.append((abs(gap), not gap * other > 0))
    gaps, flipped = metrics.flipped_pairs(reference, scores, noise=0.25)
    assert sorted(zip(gaps.tolist(), flipped.tolist(), strict=True)) == sorted(expected)
    assert not metrics.flipped_pairs(reference, 3 * reference + 1)[1].any()
