"""What is kept where it is close: the first of epochs that validate equally well, and the default of a search."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import sem
from trainings import task

from heads.data.comparisons import Pairs, expected_accuracy
from heads.training import convex, folds
from heads.training.sweep import Trial, best_of


@pytest.mark.parametrize(("accuracies", "first", "last"), [
    ([0.5, 0.7, 0.7], 2, 3),
    ([0.7, 0.7, 0.6], 1, 2),
    ([0.5, 0.6, 0.7], 3, 3),
    ([0.5, 0.7, 0.66, 0.65], 2, 3),  # the standard error of .7 in 100 is .046
])  # fmt: skip
def test_of_epochs_as_good_the_first_is_chosen_or_the_last_where_they_are_good_by_luck(
    accuracies: list[float], first: int, last: int
) -> None:
    plain, rows = task("fusion", folds=None), np.arange(50)
    ones = np.ones(50, np.float32)
    pairs = Pairs(rows, rows + 50, ones, ones, rows, rows + 50)
    assert folds.best_epoch(accuracies, plain, pairs) == last
    validated = replace(plain, split=replace(plain.split, validation=rows))
    assert folds.best_epoch(accuracies, validated, pairs) == first


@pytest.mark.parametrize(("more", "better"), [(0.008, False), (0.012, True)])
def test_a_trial_must_lead_by_more_than_the_standard_error_of_its_lead(more: float, better: bool) -> None:
    lead = np.array([-0.02, 0.0, 0.059]) + more
    assert (lead.mean() > sem(lead)) == better and lead.mean() > sem(lead, ddof=0)
    rounds = np.array([0.7, 0.72, 0.68])
    first, other = Trial({}, rounds.tolist(), 1.0), Trial({"hidden": 64}, (rounds + lead).tolist(), 1.0)
    assert best_of([first, other]) is (other if better else first)


def test_the_strongest_of_penalties_that_are_as_good_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convex, "trial", lambda *_: lambda penalty: {"validation_loss": 0.7})
    given = task("linear", folds=None)
    trained = folds.train_heads(replace(given, config=replace(given.config, penalty=None)))
    assert trained.chosen["penalty"] == convex.PENALTIES[0]


def test_the_accuracy_that_chooses_epochs_is_weighted_and_equal_scores_are_half_right() -> None:
    target, weight = np.array([1.0, 0.8, 0.3, 1.0], np.float32), np.array([1.0, 2.0, 4.0, 0.5], np.float32)
    rows = np.arange(4)
    pairs = Pairs(rows, rows + 4, target, weight, rows, rows)
    score_a, score_b = np.array([2, 1, 5, 0], np.float32), np.array([1, 1, 0, 3], np.float32)
    agreement = [1.0, 0.5, 0.3, 0.0]
    expected = sum(w * x for w, x in zip(weight, agreement, strict=True)) / 7.5
    assert expected_accuracy(score_a, score_b, pairs) == pytest.approx(expected)
