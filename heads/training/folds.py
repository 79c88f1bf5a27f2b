"""Train one head for each fold and one to use, each on the right rows."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from embed.arrays import Ints
from embed.progress import Progress, silent
from embed.spec import InputError
from heads.config import HeadConfig, TrainConfig
from heads.data.comparisons import Labels, Pairs, pairs_among
from heads.data.features import Features
from heads.data.split import Split, rows_apart_from, split_groups
from heads.models import HEADS, Blend, Convex, Head, build_head
from heads.training import blend, convex
from heads.training.checkpoint import Checkpoints
from heads.training.convex import Round
from heads.training.objectives import OBJECTIVES, Part, examples_for, require_head
from heads.training.train import fit, require_examples

logger = logging.getLogger(__name__)

STILL = 0.995  # if more than this share of the loss remains, training has done nothing
VALIDATION_SHARE = 0.1  # of the training groups, to choose the epoch or the penalty
# A tenth of so few rows is too few to choose a penalty, which is then chosen by cross-validation.
FEW_ROWS = 5000
INNER_FOLDS = 5

History = list[dict[str, float]]
Observer = Callable[[str, int, dict[str, float]], None]  # called with each record of a stage


@dataclass(frozen=True)
class OtherTable:
    """Another table to train on, which is not measured. Its items are numbered by `comparisons.join_labels`."""

    labels: Labels
    loss: str
    weight: float = 1.0  # weight of its loss; that of the measured table is 1


@dataclass(frozen=True)
class TrainedHeads:
    """The trained heads. `head` is the one to use and was trained on `rows`; each of `fold_heads` scores the rows that
    its fold holds out."""

    head: Head
    fold_heads: list[Head]
    rows: Ints
    histories: list[History]  # of `head`, then of each fold's head: one record for each epoch or penalty
    chosen: dict[str, float]  # chosen by validation for `head`: epochs, or penalty and details of its solution
    other_rows: list[Ints]  # the rows of each other table that `head` was trained on

    @property
    def scorers(self) -> list[Head]:
        """The heads that score held-out rows: each fold's head, or the only head."""
        return self.fold_heads or [self.head]


@dataclass(frozen=True)
class Task:
    """All parts of a training that are the same for every fold.

    `others` are only trained on: all held-out rows are rows of `labels`.
    """

    labels: Labels
    features: Features
    split: Split
    head_config: HeadConfig
    config: TrainConfig
    min_ratio: float | None = None
    others: Sequence[OtherTable] = ()
    device: str = "cpu"
    observe: Observer | None = None
    checkpoints: Checkpoints | None = None
    progress: Progress = silent

    @property
    def tables(self) -> list[Labels]:
        """The measured table, then the others."""
        return [self.labels, *(other.labels for other in self.others)]

    def new_head(self) -> Head:
        return build_head(self.head_config, self.config.seed).to(self.device)

    def rows(self, held_out: Ints) -> Ints:
        """The rows to train on: those that share no picture and, unless the split allows it, no prompt with the rows
        `held_out`."""
        return rows_apart_from(self.labels, held_out, shares_prompts=self.split.shares_prompts)

    def parts(self, held_out: Ints, rng: np.random.Generator) -> list[Part]:
        """The training examples of all tables, from rows that may be trained on if `held_out` are held out."""
        parts = [self.part(self.rows(held_out), rng)]
        for other, seen in zip(self.others, self.other_rows(held_out), strict=True):
            examples = examples_for(other.loss, other.labels, seen, rng, self.min_ratio)
            if len(examples):
                parts.append(Part(other.loss, examples, other.weight, self.config))
        return parts

    def part(self, rows: Ints, rng: np.random.Generator) -> Part:
        """The training examples of some rows of the measured table."""
        examples = examples_for(self.config.loss, self.labels, rows, rng, self.min_ratio)
        return Part(self.config.loss, examples, options=self.config)

    def other_rows(self, held_out: Ints) -> list[Ints]:
        shared = self.split.shares_prompts
        return [rows_apart_from(self.labels, held_out, None, other.labels, shared) for other in self.others]


def train_heads(task: Task, use: bool = True) -> TrainedHeads:
    """Train by the split. With folds, train one head for each fold on the rows of the others, and one on every row;
    without folds, train one head on the rows that are not held out. The heads are returned on the CPU. If `use` is
    False, only the folds' heads are trained, and `head` is the last of them.

    Rows that share a picture or a prompt with held-out rows are left out of training. The log tells how many of the
    measured table's rows are.
    """
    task = replace(task, features=task.features.to(task.device))
    labels, split = task.labels, task.split
    folds = range(split.folds) if split.folds > 1 else range(0)
    nothing = np.empty(0, np.int64)
    runs = [(f"fold {fold + 1}", split.test_rows(fold), split.withheld_rows(fold)) for fold in folds]
    if not folds or use:
        runs.append(("head", nothing, nothing) if folds else ("head", split.test_rows(0), split.withheld_rows(0)))
    trained, scarce = [], False
    with task.progress(len(runs), "head", "heads") as step:
        for name, test, held_out in runs:
            rows = task.rows(held_out)
            validation = 0 if split.validation is None else len(split.validation)
            left_out = len(labels) - len(rows) - len(test) - validation
            if len(test) and (folds or left_out):
                logger.info(
                    f"{name}: {len(rows)} rows to train on, {len(test)} held out"
                    + (f" and {validation} for validation" if validation else "")
                    + (f", {left_out} left out because they share a picture or prompt with those" if left_out else "")
                )
            scarce |= left_out > len(rows)
            trained.append(train_apart(task, held_out, name.replace(" ", "-")))
            step()
    if scarce:
        more = f"--folds {4 * len(folds)}" if folds else "--folds or a smaller --test-fraction"
        logger.info(
            "more rows were left out than trained on, as pictures or prompts recur in many rows, so the figures are of"
            f" heads that learned from few: {more} leaves fewer out"
        )
    head, history, chosen = trained[-1]
    of_folds = trained[: len(folds)]
    histories = [history, *(history for _, history, _ in of_folds)]
    _warn_of(histories, task.config)
    fold_heads = [fold_head.cpu() for fold_head, _, _ in of_folds]
    return TrainedHeads(head.cpu(), fold_heads, rows, histories, chosen, task.other_rows(held_out))


def train_apart(task: Task, held_out: Ints, name: str) -> tuple[Head, History, dict[str, float]]:
    """A head trained on rows that share nothing with the rows `held_out`, its history, and the choices of
    validation."""
    kind = HEADS[task.head_config.kind]
    train_one = blend_one if kind is Blend else _solve_one if issubclass(kind, Convex) else _train_one
    return train_one(task, held_out, name)


def _warn_of(histories: list[History], config: TrainConfig) -> None:
    records = [record for history in histories for record in history]
    if idle := sum(int(record.get("idle_batches", 0)) for record in records):
        logger.warning(
            f"{idle} batches had a {config.loss} loss of exactly 0 and changed nothing"
            + (": every triplet in them is right by the margin" if config.loss == "triplet" else "")
        )
    measured = [history[-1] for history in histories if history and "untrained_loss" in history[-1]]
    if still := [record for record in measured if record["trained_loss"] > STILL * record["untrained_loss"]]:
        logger.warning(
            f"training has not lowered the loss of {len(still)} of {len(histories)} heads"
            f" ({still[0]['untrained_loss']:.4g} before, {still[0]['trained_loss']:.4g} after): they order as if"
            " untrained; give another --learning-rate, more --epochs, or leave out --head"
        )


def _train_one(task: Task, held_out: Ints, name: str) -> tuple[Head, History, dict[str, float]]:
    """Choose the number of epochs on validation rows, then train again on all rows that are not held out for so many
    epochs.

    Gives the head, the history of the first training, and the chosen number of epochs. If the split has its own
    validation rows, there is no second training.
    """
    rng = np.random.default_rng(task.config.seed)

    def run(stage: str, parts: Sequence[Part], validation: Pairs | None, epochs: int | None) -> tuple[Head, History]:
        def observe(epoch: int, record: dict[str, float]) -> None:
            if task.observe:
                task.observe(stage, epoch, record)

        head, saved = task.new_head(), task.checkpoints and task.checkpoints.part(stage)
        history = fit(head, task.features, parts, validation, task.config, epochs, observe, saved, task.progress)
        return head, history

    (one,) = validation_rounds(task, held_out, rng, 1)
    task = replace(task, config=task.config.sized(sum(len(part.examples) for part in one.parts)))
    head, history = run(f"{name}-choosing", one.parts, one.pairs, None)
    best = best_epoch([record["validation_accuracy"] for record in history], task, one.pairs)
    if task.split.validation is None:
        head, _ = run(name, task.parts(held_out, rng), None, best)
    return head, history, {"epochs": best}


def best_epoch(accuracies: Sequence[float], task: Task, validation: Pairs) -> int:
    """The number of epochs to train for, at least 1. If the split has validation rows, it is that of the best epoch, or
    the first of equals. Otherwise it is the last epoch that is worse than the best by no more than the standard error
    of so few rows, since the best epoch on a few dozen rows is best by luck, and the learning rate falls until the
    end."""
    best = int(np.argmax(accuracies))
    if task.split.validation is None:
        rows = len(np.unique([validation.row_a, validation.row_b])) if len(validation) else 1
        error = np.sqrt(accuracies[best] * (1 - accuracies[best]) / rows)
        best = int(np.flatnonzero(np.array(accuracies) >= accuracies[best] - error)[-1])
    return best + 1


def _solve_one(task: Task, held_out: Ints, name: str) -> tuple[Head, History, dict[str, float]]:
    """A convex head trained on rows that share nothing with the rows `held_out`, its history with a record for each
    penalty, and what was chosen.

    With many rows a tenth of them validates; with few, each fifth in turn.
    """
    rng = np.random.default_rng(task.config.seed)
    head, history = cast(Convex, task.new_head()), History()
    parts = task.parts(held_out, rng)
    for part in parts:
        require_head(part.loss, head)
    penalty = task.config.penalty
    if penalty is None:
        rounds = list(validation_rounds(task, held_out, rng, rounds_for(task, held_out)))
        penalty, history = convex.choose_penalty(lambda: cast(Convex, task.new_head()), task.features, rounds)
        for i, record in enumerate(history):
            if task.observe:
                task.observe(name, i, record)
    solution = convex.solve(head, task.features, parts, penalty)
    if not solution.converged:
        logger.warning(
            f"the solver stopped after {solution.iterations} iterations; give a larger --penalty than {penalty:g}"
        )
    found = {"penalty": penalty, "iterations": solution.iterations, "objective": solution.objective}
    return head, history, found


def blend_one(task: Task, held_out: Ints, name: str) -> tuple[Head, History, dict[str, float]]:
    """A blend trained on rows that share nothing with the rows `held_out`, its history with a record for each member,
    and what was chosen."""
    rng = np.random.default_rng(task.config.seed)
    head = cast(Blend, task.new_head())
    losses = [task.config.loss, *(other.loss for other in task.others)]
    for labels, loss in zip(task.tables, losses, strict=True):
        require_head(loss, head)
        if loss != "preference":  # preference suits every table
            examples_for(loss, labels, np.arange(len(labels)), rng, task.min_ratio)
    if any(task.config.of(loss) for loss in losses):
        raise InputError("the head blend takes no margin and no reduction; leave them out, or choose another --head")
    if task.min_ratio is not None:
        raise InputError("the head blend learns from rows, not pairs; leave out --min-ratio, or choose another --head")

    def rows(apart: Ints) -> blend.Rows:
        tables = [(task.labels, task.rows(apart), 1.0)]
        for other, seen in zip(task.others, task.other_rows(apart), strict=True):
            tables.append((other.labels, seen, other.weight))
        return blend.joined([(blend.rows_of(labels, seen), weight) for labels, seen, weight in tables if len(seen)])

    rounds = []
    for aside in asides(task, held_out, rng, rounds_for(task, held_out)):
        left = np.concatenate([held_out, aside])
        if len(task.rows(left)):
            rounds.append((rows(left), blend.rows_of(task.labels, aside, within=True)))
    if not rounds:
        raise _nothing_to_train_on(task, len(task.rows(held_out)))
    found, history = blend.fit_blend(head, task.features, rows(held_out), rounds)
    for i, record in enumerate(history):
        if task.observe:
            task.observe(name, i, record)
    return head, history, found


def rounds_for(task: Task, held_out: Ints) -> int:
    """The number of validation rounds: one for many rows, and INNER_FOLDS for few."""
    return INNER_FOLDS if len(task.rows(held_out)) <= FEW_ROWS else 1


def asides(task: Task, held_out: Ints, rng: np.random.Generator, count: int) -> Iterator[Ints]:
    """Yield the validation rows of each of `count` rounds. A single round has VALIDATION_SHARE of the groups; several
    rounds have every group once. If the split has its own validation rows, there is one round with these."""
    if task.split.validation is not None:
        yield task.split.validation
        return
    rows, group = task.rows(held_out), task.split.group
    if len(np.unique(group[rows])) < 2:  # one of two values of a column is left
        group = split_groups(task.labels, None)
    names = np.unique(group[rows])
    if len(names) < 2:
        raise InputError(
            f"{'one group' if len(names) else 'no row'} is left to train on, as the others share a picture or prompt"
            " with what is held out; hold out less, or whole prompts: --split-by prompt"
        )
    shuffled = rng.permutation(names)
    if count == 1:
        parts = [shuffled[: max(1, round(VALIDATION_SHARE * len(names)))]]
    else:
        parts = np.array_split(shuffled, min(count, len(names)))
    for part in parts:
        yield rows[np.isin(group[rows], part)]


def validation_rounds(task: Task, held_out: Ints, rng: np.random.Generator, count: int) -> Iterator[Round]:
    """Yield for the validation rows of `asides` the examples to train on and the pairs to validate with. What the split
    keeps apart is not on both sides, and no held-out row is on either. Raise InputError if no round has something on
    both sides."""
    if task.split.validation is not None:
        pairs = pairs_among(task.labels, task.split.validation, rng, task.min_ratio)
        if not (pairs.target != 0.5).any():
            raise InputError(f"none of the {len(pairs)} validation comparisons has a winner; try another --seed")
        parts = task.parts(held_out, rng)
        require_examples(parts, pairs)
        # These are one comparison of each prompt, so all have the same weight.
        pairs = replace(pairs, weight=np.ones_like(pairs.weight))
        yield Round(parts, pairs, task.part(task.split.validation, rng))
        return
    found = False
    for aside in asides(task, held_out, rng, count):
        parts = task.parts(np.concatenate([held_out, aside]), rng)
        pairs = pairs_among(task.labels, aside, rng, task.min_ratio)
        own = task.part(aside, rng)
        if len(parts[0].examples) and len(pairs) and len(own.examples):
            found = True
            yield Round(parts, pairs, own)
    if not found:
        raise _nothing_to_train_on(task, len(task.rows(held_out)))


def _nothing_to_train_on(task: Task, rows: int) -> InputError:
    return InputError(
        f"nothing to train on: {rows} rows cannot be divided so that there are"
        f" {OBJECTIVES[task.config.loss].unit} for training and pairs for validation; give more rows, or hold out"
        " less"
    )
