"""Folds that teach each other: how much of the scores is luck, and intervals that are wider by it."""

import numpy as np
import pytest
from heads_planted import made

from heads.config import HeadConfig, Protocol, SplitConfig, TrainConfig
from heads.data.split import split_rows
from heads.evaluation.fold_noise import fold_noise
from heads.evaluation.intervals import Bootstrap, mean_interval
from heads.evaluation.measured import measure_pairs
from heads.training.folds import Task, train_apart
from heads.training.train import score_items


def smoothed(rng: np.random.Generator, rows: int, folds: int) -> tuple[np.ndarray, ...]:
    """The credits of a kernel smoother on labels of pure chance in folds, with the rows of each pair, and its fold."""
    x, y, fold = rng.normal(size=(rows, 8)), rng.normal(size=rows), np.arange(rows) % folds
    kernel = x @ x.T
    found = []
    for name in range(folds):
        test = np.flatnonzero(fold == name)
        scores = kernel[:, fold != name] @ y[fold != name]
        a, b = (test[i] for i in np.triu_indices(len(test), 1))
        found.append(((scores[a] > scores[b]) == (y[a] > y[b]), a, b, np.full(len(a), name)))
    credit, a, b, folds_of = (np.concatenate(part) for part in zip(*found, strict=True))
    return credit.astype(float), a, b, folds_of


def test_intervals_of_folds_hold_a_half_over_labels_of_chance() -> None:
    """Without the noise they hold it too seldom, by far more than 200 simulations could show by luck."""
    rng = np.random.default_rng(0)
    held = {0.0: 0, 1.0: 0}
    for _ in range(200):
        credit, a, b, fold = smoothed(rng, 60, 5)
        for noise in held:
            interval = mean_interval(credit, Bootstrap(a, b, rng, 100, noise=noise), fold)
            held[noise] += interval.low <= 0.5 <= interval.high
    assert held[1.0] / 200 == pytest.approx(0.96, abs=0.03)
    assert held[0.0] / 200 < 0.93


def test_noise_widens_by_the_root_of_the_variance() -> None:
    rng = np.random.default_rng(1)
    credit, a, b, fold = smoothed(rng, 60, 5)
    one, wide = (mean_interval(credit, Bootstrap(a, b, np.random.default_rng(2), noise=n), fold) for n in (0.0, 0.44))
    assert wide.value == one.value
    assert wide.high - wide.low == pytest.approx(1.2 * (one.high - one.low), rel=1e-9)


def task_of(noise: float, folds: int | None = 5, rows: int = 240) -> tuple[Task, float]:
    """A ridge head on ratings along one direction with noise, and its fold noise."""
    labels, features = made("ratings", prompts=False, rows=rows)
    labels.values["rating"][:] += noise * np.random.default_rng(1).normal(size=rows)
    split = split_rows(labels, SplitConfig(folds=folds))
    task = Task(labels, features, split, HeadConfig("kernel", features.dim, reads="image"), TrainConfig("rating"))
    return task, fold_noise(task, measure_pairs(labels, split, Protocol()))


def test_a_head_that_learns_has_little_luck_in_it_and_one_of_chance_nearly_nothing_else() -> None:
    assert task_of(noise=0.1)[1] < 0.1
    assert task_of(noise=1e3)[1] > 0.5


def test_it_is_the_correlation_of_halves_made_that_of_wholes() -> None:
    """Two heads trained by hand on the two halves of what the first fold's head learns from."""
    task, found = task_of(noise=0.5)
    correlations = []
    for fold in range(2):
        test, others = np.flatnonzero(task.split.fold == fold), np.flatnonzero(task.split.fold != fold)
        order = np.random.default_rng(task.config.seed).permutation(np.unique(task.split.group[others]))
        scores = []
        for half in (order[:96], order[96:]):
            left_out = np.setdiff1d(np.arange(240), others[np.isin(task.split.group[others], half)])
            scores.append(score_items(train_apart(task, left_out, "half")[0], task.features)[test].astype(np.float64))
        one, other = (np.subtract.outer(part, part)[np.triu_indices(len(test), 1)] for part in scores)
        correlations.append((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))
    correlation = np.mean(correlations)
    assert found == pytest.approx(1 - 2 * correlation / (1 + correlation), abs=1e-6)


def test_one_part_held_out_teaches_nobody_and_halves_too_small_are_all_luck() -> None:
    assert task_of(noise=1e3, folds=None)[1] == 0.0
    assert task_of(noise=0.1, folds=2, rows=6)[1] == 1.0
