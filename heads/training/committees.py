"""Make committees, which tell the uncertainty of a head: of the folds' heads, or of heads that have not seen the
held-out rows."""

from collections.abc import Sequence

import numpy as np

from embed.arrays import Ints
from embed.spec import InputError
from heads.committee import MEMBERS, Committee, aligned
from heads.data.features import Features
from heads.models import Head
from heads.training.folds import Task, TrainedHeads, train_apart
from heads.training.train import PREPARE_ITEMS, score_items

REACH = 2  # a fold is left out together with this many folds on each side: four members for five folds or more


def committee_of(trained: TrainedHeads, task: Task) -> Committee | None:
    """The folds' heads as the committee of the final head, or None without folds."""
    if not trained.fold_heads:
        return None
    items = task.labels.items[trained.rows].ravel()
    return _committee(trained.head, trained.fold_heads[:MEMBERS], task.features, items, len(trained.fold_heads))


def unseen_committees(task: Task, fold_heads: Sequence[Head]) -> list[Committee]:
    """For each fold's head a committee that has not seen its fold, just as the committee of `committee_of` has not seen
    new pictures. Each member was also trained without one more fold. This trains at most two heads per fold, and each
    serves two folds. Raise InputError if there are fewer than three folds, or too few rows to train on.
    """
    folds, split = task.split.folds, task.split
    if folds < 3:
        raise InputError(f"{folds} folds are too few to leave out a second one; train with at least 3")
    near = {(k, (k + step) % folds) for k in range(folds) for step in range(1, REACH + 1)}
    left_out = sorted({(min(pair), max(pair)) for pair in near if pair[0] != pair[1]})
    members: dict[tuple[int, int], Head] = {}
    with task.progress(len(left_out), "head", "committees") as step:
        for first, second in left_out:
            rows = np.concatenate([split.test_rows(first), split.test_rows(second)])
            members[first, second] = train_apart(task, rows, f"folds-{first + 1}-{second + 1}")[0].cpu()
            step()
    committees = []
    for fold, head in enumerate(fold_heads):
        own = [members[pair] for pair in left_out if fold in pair]
        items = task.labels.items[task.rows(split.test_rows(fold))].ravel()
        committees.append(_committee(head, own, task.features, items, folds - 1))
    return committees


def _committee(head: Head, members: Sequence[Head], features: Features, items: Ints, groups: int) -> Committee:
    items = np.unique(items)
    items = items[:: -(-len(items) // PREPARE_ITEMS)]
    scores = [score_items(one, features, items) for one in (head, *members)]
    return Committee(members, aligned(scores[0], scores[1:]), groups).eval()
