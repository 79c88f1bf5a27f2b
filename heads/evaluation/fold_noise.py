"""How much wider intervals over folds must be, because rows that are measured in one fold train the heads of the
others.

Two rows in different folds meet twice: once the first trains and the second is measured, once the other way round.
The luck of their two labels changes the share of right pairs by the same amount both times. So the variance due to this
luck counts twice in a mean over folds, but only once if the folds were independent. No estimate from the credits of one
cross-validation can see that (Bengio and Grandvalet 2004, "No Unbiased Estimator of the Variance of K-Fold
Cross-Validation"). For a head that has learned nothing all variance is luck: with shuffled labels, intervals without
this correction would hold 0.5 in only eight or nine of ten cases.
"""

import logging
from dataclasses import replace

import numpy as np

from embed.spec import InputError
from heads.evaluation.evaluate import head_scores
from heads.evaluation.measured import Measured
from heads.training.folds import Task, train_apart

logger = logging.getLogger(__name__)

FOLDS = 2  # folds whose heads are trained on halves; a single one gives poor estimates if there is little to learn


def fold_noise(task: Task, measured: Measured) -> float:
    """The share, 0 to 1, of the variance of a fold head's scores that is due to the luck of its training labels; 0
    without folds.

    For each of two folds, two heads are trained on two halves of the fold's training groups, and both score the pairs
    that the fold holds out. Let r be the mean correlation between the two heads' differences of scores. Then 2 r / (1 +
    r) is the correlation for heads of twice as many rows (Spearman 1910, Brown 1910), and the rest is luck. If the
    halves are too small to train on, all is luck.
    """
    if task.split.folds < 2:
        return 0.0
    task = replace(task, features=task.features.to(task.device), observe=None, checkpoints=None)
    try:
        correlation = float(np.mean([_agreement(task, measured, fold) for fold in range(FOLDS)]))
    except InputError as error:
        logger.info(f"cannot train on half of the rows, so intervals treat all differences of scores as luck: {error}")
        return 1.0
    return float(np.clip(1 - 2 * correlation / (1 + correlation), 0, 1)) if correlation > 0 else 1.0


def _agreement(task: Task, measured: Measured, fold: int) -> float:
    """The correlation between the differences of scores that two heads trained on halves give the fold's pairs. It is 0
    if one head gives all pictures the same score."""
    held_out, group = task.split.withheld_rows(fold), task.split.group
    names = np.random.default_rng(task.config.seed).permutation(np.unique(group[task.rows(held_out)]))
    apart = []
    for i, half in enumerate(np.array_split(names, 2)):
        others = np.flatnonzero(np.isin(group, np.setdiff1d(names, half)))
        head = train_apart(task, np.concatenate([held_out, others]), f"fold-{fold + 1}-half-{i + 1}")[0]
        scores = head_scores([head] * task.split.folds, task.labels, task.features, task.split)
        apart.append(np.subtract(*measured.of_pairs(scores))[measured.fold == fold])
    lengths = np.sqrt(np.square(apart).sum(axis=1))
    return float(apart[0] @ apart[1] / lengths.prod()) if lengths.all() else 0.0
