"""Every figure of the scoreboard against loops over the rows, by the rules that the papers state."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from heads_labels import GROUPS, SIZE, comparisons, measured, single
from scipy.stats import kendalltau, spearmanr

from heads.config import Protocol
from heads.data.split import Split
from heads.evaluation.measured import Measured, measure_pairs
from heads.evaluation.scoreboard import METRICS, pair_probability, scoreboard, tie_thresholds

RNG = np.random.default_rng(5)


def by_loop(one: Measured, scores: np.ndarray, credit: Callable[[float, float, float], float | None]) -> list[list]:
    """The credits of each fold's pairs, from the rows alone."""
    labels, folds = one.labels, []
    for fold in range(one.split.folds):
        rows = np.flatnonzero(one.split.fold == fold)
        found = []
        if labels.kind == "comparisons":
            found = [credit(*scores[r], labels.values["target"][r]) for r in rows]
        else:
            value = -labels.values["rank"] if labels.kind == "groups" else next(iter(labels.values.values()))
            for i, j in combinations(rows, 2):
                if labels.prompt[i] == labels.prompt[j]:
                    found.append(credit(scores[i, 0], scores[j, 0], 0.5 + np.sign(value[i] - value[j]) / 2))
        folds.append([c for c in found if c is not None])
    return folds


def accuracy(tie: float) -> Callable[[float, float, float], float | None]:
    def credit(a: float, b: float, target: float) -> float | None:
        if target == 0.5:
            return None
        return tie if a == b else float((a > b) == (target > 0.5))

    return credit


def ranked() -> tuple[Measured, np.ndarray]:
    rank = np.concatenate([RNG.integers(1, SIZE + 1, SIZE) for _ in range(GROUPS)])
    return measured(single("groups", rank)), np.round(RNG.normal(size=(GROUPS * SIZE, 1)) - 0.3 * rank[:, None], 1)


def compared_pairs() -> tuple[Measured, np.ndarray]:
    target = RNG.choice([0.0, 0.5, 1.0], 200, p=[0.4, 0.2, 0.4])
    one = measured(comparisons(target, RNG.integers(0, 30, 200)))
    lean = 2 * (target - 0.5)
    return one, np.round(RNG.normal(size=(200, 2)) + np.stack([lean, -lean], 1), 1)


@pytest.mark.parametrize("make", [ranked, compared_pairs])
def test_accuracies_of_pairs(make: Callable[[], tuple[Measured, np.ndarray]]) -> None:
    one, scores = make()
    got = scoreboard(one, {"head": scores})
    for key, tie in (("pair_accuracy", 0.5), ("strict_accuracy", 0.0), ("social_reward_accuracy", 1.0)):
        folds = by_loop(one, scores, accuracy(tie))
        interval = got[key]["scores"]["head"]
        assert interval["value"] == pytest.approx(np.mean([np.mean(f) for f in folds]))
        assert interval["low"] < interval["value"] < interval["high"]
    pooled = np.concatenate(by_loop(one, scores, accuracy(0.0)))
    assert got["imagereward_accuracy"]["scores"]["head"]["value"] == pytest.approx(pooled.mean())


def test_pickscore_accuracy_takes_the_threshold_of_the_other_folds() -> None:
    one, scores = compared_pairs()

    def points(fold: int, threshold: float) -> list[float]:
        found = []
        for row in np.flatnonzero(one.split.fold == fold):
            a, b = np.exp(scores[row]) / np.exp(scores[row]).sum()
            said = 0.5 if abs(a - b) <= threshold else float(a > b)
            found.append(1 - abs(said - one.labels.values["target"][row]))
        return found

    thresholds = [step / 10 for step in range(11)]
    means, chosen = [], []
    for fold in range(3):
        others = [f for f in range(3) if f != fold]
        means_of_others = [np.mean([p for f in others for p in points(f, t)]) for t in thresholds]
        chosen.append(thresholds[int(np.argmax(means_of_others))])
        means.append(np.mean(points(fold, chosen[-1])))
    got = scoreboard(one, {"head": scores})["pickscore_accuracy"]["scores"]["head"]["value"]
    assert got == pytest.approx(np.mean(means))
    assert tie_thresholds(one, scores) == chosen
    assert tie_thresholds(measured(comparisons(np.ones(9), np.arange(9))), np.zeros((9, 2))) == []


def test_pickscores_threshold_comes_from_the_rows_for_validation_where_there_are_some() -> None:
    one, scores = compared_pairs()
    validation = np.arange(0, 200, 2)
    split = Split(np.arange(200) % 2 - 1, one.split.group, 1, validation)
    one = measure_pairs(one.labels, split, Protocol(resamples=100))

    def points(rows: np.ndarray, threshold: float) -> float:
        p = [np.exp(scores[row]) / np.exp(scores[row]).sum() for row in rows]
        said = [0.5 if abs(a - b) <= threshold else float(a > b) for a, b in p]
        return float(np.mean(1 - np.abs(said - one.labels.values["target"][rows])))

    steps = [step / 10 for step in range(11)]
    best = steps[int(np.argmax([points(validation, step) for step in steps]))]
    got = scoreboard(one, {"head": scores})["pickscore_accuracy"]["scores"]["head"]["value"]
    assert got == pytest.approx(points(np.arange(1, 200, 2), best))
    assert tie_thresholds(one, scores) == [best]


def test_what_is_fitted_is_of_these_scores_and_not_of_what_stood_there_before() -> None:
    one, scores = compared_pairs()
    before = pair_probability(one, scores, "temperature")
    scores *= -1
    np.testing.assert_array_equal(pair_probability(one, scores, "isotonic") > 0.5, pair_probability(
        measured(one.labels), scores.copy(), "isotonic") > 0.5)  # fmt: skip
    assert not np.array_equal(pair_probability(one, scores, "temperature"), before, equal_nan=True)
    scores *= -1
    np.testing.assert_array_equal(pair_probability(one, scores, "temperature"), before)


def test_hps_accuracy_of_comparisons_is_a_mean_over_prompts_in_which_ties_of_people_are_right() -> None:
    one, scores = compared_pairs()
    prompt, target = one.labels.prompt[one.labels.items[:, 0]], one.labels.values["target"]
    folds = []
    for fold in range(3):
        shares = []
        for name in np.unique(prompt[one.split.fold == fold]):
            credit = [
                1.0 if target[i] == 0.5 else 0.5 if a == b else float((a > b) == (target[i] > 0.5))
                for i, (a, b) in enumerate(scores)
                if prompt[i] == name
            ]
            shares.append(np.mean(credit))
        folds.append(np.mean(shares))
    got = scoreboard(one, {"head": scores})["hps_accuracy"]["scores"]["head"]["value"]
    assert got == pytest.approx(np.mean(folds))


def test_a_single_part_is_fitted_on_one_half_and_applied_to_the_other() -> None:
    one, _ = compared_pairs()
    one = measured(one.labels, folds=1)
    assert set(one.part) == {0, 1}
    for prompt in np.unique(one.split.group):
        assert len(set(one.part[one.split.group[one.pairs.row_a] == prompt])) == 1  # no prompt in both halves
    told = []
    one.crossed(lambda others, part: told.append((set(others), set(part))) or np.zeros(len(part)))
    assert told[0] == told[1][::-1] and not told[0][0] & told[0][1]


def test_figures_of_groups() -> None:
    one, scores = ranked()
    got = {
        key: value["scores"]["head"]["value"]
        for key, value in scoreboard(one, {"head": scores}).items()
        if "scores" in value
    }
    rank = one.labels.values["rank"]
    found: dict[str, list[list[float]]] = {key: [[] for _ in range(3)] for key in got}
    for group in range(GROUPS):
        rows = np.arange(group * SIZE, (group + 1) * SIZE)
        s, r, fold = scores[rows, 0], rank[rows], group % 3
        right = [1 - (np.sign(s[i] - s[j]) * np.sign(r[i] - r[j]) + 1) / 2 * (r[i] != r[j])
                 for i, j in combinations(range(SIZE), 2)]  # fmt: skip
        found["hps_accuracy"][fold].append(np.mean(right))
        for k in (1, 2, 4):
            worst_tied = np.lexsort((r == r.min(), -s))  # what people ranked first comes last among equal scores
            if (r > r.min()).sum() >= k:
                found[f"recall_at_{k}"][fold].append(float((r == r.min())[worst_tied[:k]].any()))
            worst_tied = np.lexsort((r == r.max(), s))
            if (r < r.max()).sum() >= k:
                found[f"filter_at_{k}"][fold].append(float((r == r.max())[worst_tied[:k]].any()))
        if len(set(r)) > 1 and len(set(s)) > 1:
            found["spearman_in_group"][fold].append(spearmanr(s, -r).statistic)
            found["kendall_in_group"][fold].append(kendalltau(s, -r).statistic)
        gain = (r[:, None] < r).sum(1)
        discount = 1 / np.log2(2 + np.arange(SIZE))
        shared = np.array([gain[s == value].mean() for value in s])
        if gain.any():
            dcg = (shared[np.argsort(-s, kind="stable")] * discount).sum()
            found["ndcg"][fold].append(dcg / (np.sort(gain)[::-1] * discount).sum())
    for key, folds in found.items():
        if any(folds):
            assert got[key] == pytest.approx(np.mean([np.mean(f) for f in folds if f])), key
    assert sum(any(folds) for folds in found.values()) == 10


def test_correlations_over_the_rows_of_each_part() -> None:
    rating = RNG.integers(1, 20, GROUPS * SIZE)
    one = measured(single("ratings", rating))
    scores = np.round(rating[:, None] / 8 + RNG.normal(size=(len(rating), 1)), 1)
    got = scoreboard(one, {"head": scores})
    for key, oracle in (("spearman", spearmanr), ("kendall", kendalltau)):
        parts = [np.flatnonzero(one.split.fold == fold) for fold in range(3)]
        expected = np.mean([oracle(scores[rows, 0], rating[rows]).statistic for rows in parts])
        interval = got[key]["scores"]["head"]
        assert interval["value"] == pytest.approx(expected)
        assert interval["low"] < interval["value"] < interval["high"]


def test_calibration_is_fitted_where_it_is_not_judged() -> None:
    lean = RNG.normal(size=2000)
    target = (RNG.random(2000) < 1 / (1 + np.exp(-lean))).astype(float)
    one = measured(comparisons(target, RNG.integers(0, 200, 2000)))
    sure = np.stack([4 * lean, np.zeros(2000)], axis=1)  # four times too sure
    got = {k: v["scores"] for k, v in scoreboard(one, {"head": sure, "chance": sure}).items() if "scores" in v}
    assert got["ece_raw"]["head"]["value"] > 0.15
    assert got["ece_temperature"]["head"]["value"] < 0.03 > 0.5 * got["ece_isotonic"]["head"]["value"]
    assert got["brier_temperature"]["head"]["value"] < got["brier_raw"]["head"]["value"] - 0.02
    by_hand = np.square(1 / (1 + np.exp(-4 * lean)) - target)
    assert got["brier_raw"]["head"]["value"] == pytest.approx(
        np.mean([by_hand[one.split.fold == fold].mean() for fold in range(3)])
    )
    assert "chance" not in got["brier_raw"]
    # The targets of one part must not change what is said of that part.
    seen = one.crossed(lambda others, part: np.full(len(part), float(np.isin(part, others).any())))
    assert not seen.any()


def test_what_the_labels_do_not_permit_is_said() -> None:
    one, scores = compared_pairs()
    got = scoreboard(one, {"head": scores})
    assert "groups" in got["recall_at_1"]["missing"]
    assert "ratings or counts" in got["spearman"]["missing"]
    assert "scores" in got["hps_accuracy"]
    one, scores = ranked()
    got = scoreboard(one, {"head": scores})
    assert "ratings or counts" in got["spearman"]["missing"]  # ranks of two groups have no common scale
    counts = single("counts", RNG.integers(1, 1000, GROUPS * SIZE))
    counts.values["group"][:] = 0  # a table without groups
    got = scoreboard(measured(counts), {"head": RNG.normal(size=(GROUPS * SIZE, 1))})
    assert "no labelled ties" in got["pickscore_accuracy"]["missing"]
    assert "groups" in got["hps_accuracy"]["missing"]
    assert "scores" in got["spearman"]
    assert list(got) == list(METRICS)
