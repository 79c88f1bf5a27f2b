"""The share ordered right rises with the difference over its uncertainty where uncertainties say how far scores err."""

from pathlib import Path

import numpy as np
import pytest
from heads_labels import GROUPS, SIZE, measured, single
from heads_planted import made

from embed.spec import InputError
from heads.config import HeadConfig, Protocol, SplitConfig, TrainConfig
from heads.data.split import split_rows
from heads.evaluation.certainty import BINS, certainty, uncertainties
from heads.evaluation.evaluate import head_scores
from heads.evaluation.held_out import HeldOut
from heads.evaluation.measured import measure_pairs
from heads.training.committees import committee_of
from heads.training.folds import Task, train_heads

RNG = np.random.default_rng(5)


def shares(parts: list[dict]) -> list[float]:
    return [part["right"]["value"] for part in parts]


def test_parts_are_those_of_a_slow_loop() -> None:
    n = GROUPS * SIZE
    one = measured(single("ratings", RNG.integers(1, 6, n)))
    scores, doubt = RNG.normal(size=(n, 1)), RNG.uniform(0.1, 2, (n, 1))
    found = certainty(one, scores, doubt)
    pairs = []
    for i in range(len(one.pairs)):
        a, b, target = one.pairs.row_a[i], one.pairs.row_b[i], one.pairs.target[i]
        if target != 0.5:
            difference = scores[a, 0] - scores[b, 0]
            ratio = abs(difference) / (doubt[a, 0] ** 2 + doubt[b, 0] ** 2) ** 0.5
            pairs.append((ratio, abs(difference), (difference > 0) == (target > 0.5)))
    for name, by, count in (("bins", 0, BINS), ("thirds", 0, 3), ("thirds_by_difference", 1, 3)):
        ordered = sorted(pairs, key=lambda pair: pair[by])
        for part, at in zip(found[name], np.array_split(np.arange(len(ordered)), count), strict=True):
            assert part["pairs"] == len(at)
            assert part["right"]["value"] == pytest.approx(np.mean([ordered[i][2] for i in at]))
            assert (part["low"], part["high"]) == pytest.approx((ordered[at[0]][by], ordered[at[-1]][by]))
            assert part["low"] <= part["middle"] <= part["high"]


def test_uncertainties_that_know_the_errors_tell_more_than_the_difference() -> None:
    n = GROUPS * SIZE
    truth = RNG.normal(size=n)
    doubt = np.where(RNG.random(n) < 0.5, 0.05, 4.0)[:, None]
    scores = truth[:, None] + doubt * RNG.normal(size=(n, 1))
    found = certainty(measured(single("ratings", truth)), scores, doubt)
    low, middle, high = shares(found["thirds"])
    assert max(low, middle) < 0.8 < 0.9 < high
    assert high > shares(found["thirds_by_difference"])[-1] + 0.1
    assert found["mean_uncertainty"] == pytest.approx(doubt.mean())


def test_scores_without_any_doubt_or_difference_are_measured_all_the_same() -> None:
    n = GROUPS * SIZE
    one = measured(single("ratings", RNG.integers(1, 6, n)))
    for scores in (RNG.normal(size=(n, 1)), np.zeros((n, 1))):
        found = certainty(one, scores, np.zeros((n, 1)))
        assert all(np.isfinite([part["low"], part["high"]]).all() for part in found["bins"])


def trained(rows: int, noise: float, folds: int | None = 5) -> tuple[Task, HeldOut]:
    """A kernel head on ratings along one direction, with noise."""
    labels, features = made("ratings", prompts=False, rows=rows)
    labels.values["rating"][:] += noise * np.random.default_rng(1).normal(size=rows)
    split = split_rows(labels, SplitConfig(folds=folds))
    config = HeadConfig("kernel", features.dim, landmarks=rows, reads="image")
    task = Task(labels, features, split, config, TrainConfig("rating"))
    found = train_heads(task)
    manifest = {"head": vars(config), "training": vars(task.config)}
    committee = committee_of(found, task)
    return task, HeldOut("head", manifest, found.scorers, split, "", True, committee=committee)  # type: ignore[arg-type]


def test_the_share_ordered_right_rises_on_pairs_that_no_member_has_seen() -> None:
    task, held = trained(300, noise=0.2)
    doubt = uncertainties(held, task.labels, task.features)
    assert doubt.shape == (300, 1) and (doubt > 0).all()
    one = measure_pairs(task.labels, held.split, Protocol(resamples=50))
    scores = head_scores(held.heads, task.labels, task.features, held.split)
    low, middle, high = shares(certainty(one, scores, doubt)["thirds"])
    assert low + 0.1 < middle < high - 0.1


def test_ratings_that_are_chance_raise_nothing() -> None:
    task, held = trained(180, noise=1e3)
    one = measure_pairs(task.labels, held.split, Protocol(resamples=50))
    scores = head_scores(held.heads, task.labels, task.features, held.split)
    found = shares(certainty(one, scores, uncertainties(held, task.labels, task.features))["thirds"])
    assert max(found) - min(found) < 0.1


def test_on_another_table_the_heads_own_committee_speaks_and_nothing_is_trained() -> None:
    task, held = trained(90, noise=0.2)
    assert held.committee is not None
    other = HeldOut(**{**vars(held), "own_split": False, "heads": held.heads[:1]})
    object.__setattr__(other, "split", split_rows(task.labels, SplitConfig(test_fraction=0.5)))
    found = uncertainties(other, task.labels, task.features)
    np.testing.assert_array_equal(found, head_scores([held.committee], task.labels, task.features, other.split))
    assert np.isnan(found).any() and (found > 0).any()


def test_where_no_one_can_say_the_reason_is_given(tmp_path: Path) -> None:
    task, held = trained(60, noise=0.2)
    reasons = {
        "no committee": {"committee": None},
        "trained on 3 of these rows": {"seen_rows": 3},
        "other tables": {"manifest": {**held.manifest, "other_data": [{}]}},
    }
    for reason, changed in reasons.items():
        with pytest.raises(InputError, match=reason):
            uncertainties(HeldOut(**{**vars(held), **changed}), task.labels, task.features)
    assert trained(60, noise=0.2, folds=None)[1].committee is None
