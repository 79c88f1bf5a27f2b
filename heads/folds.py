"""One head for every fold and one for use: who is trained on which rows, and who scores which."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from embed.console import progress, warn
from embed.spec import InputError
from heads import convex
from heads.comparisons import Labels, Pairs, pairs_among
from heads.features import Features
from heads.models import HEADS, Convex, Head, HeadConfig, Kernel, build_head
from heads.objectives import OBJECTIVES, Part, examples_for, require_head
from heads.split import Split, rows_apart_from
from heads.train import TrainConfig, fit

VALIDATION_SHARE = 0.1  # of the training groups, kept for choosing the epoch or the penalty
# Up to so many rows a tenth of them is too few to choose by: a penalty is then chosen by cross-validation.
FEW_ROWS = 5000
INNER_FOLDS = 5

History = list[dict[str, float]]


@dataclass(frozen=True)
class TrainedHeads:
    """`head` is the one to use; `fold_heads` score what their fold holds out; `rows` were seen by `head`."""

    head: Head
    fold_heads: list[Head]
    rows: np.ndarray
    histories: list[History]  # of `head`, then of each fold's: one record an epoch, or a penalty
    chosen: dict[str, float]  # what validation chose for `head`: epochs, or penalty and how its solution was found


@dataclass(frozen=True)
class _Task:
    """What stays the same for every fold."""

    labels: Labels
    features: Features
    split: Split
    head_config: HeadConfig
    config: TrainConfig
    min_ratio: float | None

    def part(self, rows: np.ndarray, rng: np.random.Generator) -> Part:
        return Part(self.config.loss, examples_for(self.config.loss, self.labels, rows, rng, self.min_ratio))


def train_heads(
    labels: Labels,
    features: Features,
    split: Split,
    head_config: HeadConfig,
    config: TrainConfig,
    min_ratio: float | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> TrainedHeads:
    """Train as the split says. With folds, one head a fold on the other folds' rows, then one on every row; without,
    one head on what is not held out.

    Rows that share a picture or a prompt with the rows held out are left out of training, and counted by `report`.
    """
    task = _Task(labels, features, split, head_config, config, min_ratio)
    folds = range(split.folds) if split.folds > 1 else range(0)
    rows_of = [rows_apart_from(labels, split.test_rows(fold), np.flatnonzero(split.fold != fold)) for fold in folds]
    for fold, rows in enumerate(rows_of):
        held_out = len(split.test_rows(fold))
        left_out = len(labels) - held_out - len(rows)
        report(
            f"fold {fold + 1} of {split.folds}: {len(rows)} rows to train on, {held_out} held out"
            + (f", {left_out} left out for a picture or prompt they share with those" if left_out else "")
        )
    rows = (
        np.arange(len(labels))
        if folds
        else rows_apart_from(labels, split.test_rows(0), np.flatnonzero(split.fold != 0))
    )
    train_one = _solve_one if issubclass(HEADS[head_config.kind], Convex) else _train_one
    trained = []
    with progress(len(rows_of) + 1, "head", "training") as bar:
        for seen in [*rows_of, rows]:
            trained.append(train_one(task, seen))
            bar.update()
    *of_folds, (head, history, chosen) = trained
    histories = [history, *(history for _, history, _ in of_folds)]
    _warn_of(histories, config)
    return TrainedHeads(head, [fold_head for fold_head, _, _ in of_folds], rows, histories, chosen)


def _warn_of(histories: list[History], config: TrainConfig) -> None:
    records = [record for history in histories for record in history]
    if idle := sum(int(record.get("idle_batches", 0)) for record in records):
        warn(
            f"{idle} batches had a {config.loss} loss of exactly 0 and taught nothing"
            + (": every triplet in them is right by the margin" if config.loss == "triplet" else "")
        )


def _train_one(task: _Task, rows: np.ndarray) -> tuple[Head, History, dict[str, float]]:
    """A head on all of `rows`, trained for as many epochs as served rows kept aside best; and that first history."""
    config, rng = task.config, np.random.default_rng(task.config.seed)
    ((part, validation),) = _rounds(task, rows, rng, 1)
    history = fit(build_head(task.head_config, config.seed), task.features, part.examples, validation, config)
    best = int(np.argmax([record["validation_accuracy"] for record in history])) + 1
    head = build_head(task.head_config, config.seed)
    fit(head, task.features, task.part(rows, rng).examples, None, config, epochs=best)
    return head, history, {"epochs": best}


def _solve_one(task: _Task, rows: np.ndarray) -> tuple[Head, History, dict[str, float]]:
    """A convex head on all of `rows`, and what each penalty did for rows kept aside.

    The kernel's default penalty is its prior's: some hundreds of rows choose one worse than that (measured on the emoji
    example, over splits of its training folds). The linear head's is the one that served rows kept aside best.
    """
    config, rng = task.config, np.random.default_rng(task.config.seed)

    def new_head() -> Convex:
        return cast(Convex, build_head(task.head_config, config.seed))

    head, history = new_head(), History()
    require_head(config.loss, head)
    part, penalty = task.part(rows, rng), config.penalty
    if penalty is None and isinstance(head, Kernel):
        penalty = convex.prior_penalty([part])
    elif penalty is None:
        rounds = _rounds(task, rows, rng, INNER_FOLDS if len(rows) <= FEW_ROWS else 1)
        penalty, history = convex.choose_penalty(new_head, task.features, [([kept], pairs) for kept, pairs in rounds])
    solution = convex.solve(head, task.features, [part], penalty)
    if not solution.converged:
        warn(f"the solver stopped after {solution.iterations} iterations; give a larger --penalty than {penalty:g}")
    found = {"penalty": penalty, "iterations": solution.iterations, "objective": solution.objective}
    return head, history, found


def _rounds(task: _Task, rows: np.ndarray, rng: np.random.Generator, count: int) -> Iterator[tuple[Part, Pairs]]:
    """Training part and validation pairs, `count` times; no picture and no prompt is on both sides.

    One round keeps VALIDATION_SHARE of the groups aside, and several keep every group aside once.
    """
    names = np.unique(task.split.group[rows])
    if len(names) < 2:
        raise InputError(f"{len(names)} group is left to train on; hold out less, or split by another column")
    shuffled = rng.permutation(names)
    if count == 1:
        asides = [shuffled[: max(1, round(VALIDATION_SHARE * len(names)))]]
    else:
        asides = np.array_split(shuffled, min(count, len(names)))
    found = False
    for aside in asides:
        is_validation = np.isin(task.split.group[rows], aside)
        validation_rows = rows[is_validation]
        train_rows = rows_apart_from(task.labels, validation_rows, rows[~is_validation])
        part, pairs = task.part(train_rows, rng), pairs_among(task.labels, validation_rows, rng, task.min_ratio)
        if len(part.examples) and len(pairs):
            found = True
            yield part, pairs
    if not found:
        unit = OBJECTIVES[task.config.loss].unit
        raise InputError(
            f"nothing to train on: of {len(rows)} rows no part can be kept aside that leaves {unit} for training and"
            " pairs for validation; give more rows, or hold out less"
        )
