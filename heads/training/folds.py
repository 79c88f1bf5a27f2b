"""One head for every fold and one for use: who is trained on which rows, and who scores which."""

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

STILL = 0.995  # of the loss before: what is left of it where training has done nothing
VALIDATION_SHARE = 0.1  # of the training groups, kept for choosing the epoch or the penalty
# Up to so many rows a tenth of them is too few to choose by: a penalty is then chosen by cross-validation.
FEW_ROWS = 5000
INNER_FOLDS = 5

History = list[dict[str, float]]
Observer = Callable[[str, int, dict[str, float]], None]  # of a stage's record, as it comes


@dataclass(frozen=True)
class OtherTable:
    """A table that teaches beside the one that is measured; its items are numbered by `comparisons.join_labels`."""

    labels: Labels
    loss: str
    weight: float = 1.0  # of its loss; the measured table's is 1


@dataclass(frozen=True)
class TrainedHeads:
    """`head` is the one to use; `fold_heads` score what their fold holds out; `rows` were seen by `head`."""

    head: Head
    fold_heads: list[Head]
    rows: Ints
    histories: list[History]  # of `head`, then of each fold's: one record an epoch, or a penalty
    chosen: dict[str, float]  # what validation chose for `head`: epochs, or penalty and how its solution was found
    other_rows: list[Ints]  # of each other table, seen by `head`

    @property
    def scorers(self) -> list[Head]:
        """What scores the rows held out: each fold's head, or the one that there is."""
        return self.fold_heads or [self.head]


@dataclass(frozen=True)
class Task:
    """What is trained on what: all that stays the same for every fold.

    `others` only teach: what is held out is of `labels` alone.
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
        """The measured table, then those that only teach."""
        return [self.labels, *(other.labels for other in self.others)]

    def new_head(self) -> Head:
        return build_head(self.head_config, self.config.seed).to(self.device)

    def rows(self, held_out: Ints) -> Ints:
        """The rows to train on: those that share no picture and no prompt with the rows held out."""
        return rows_apart_from(self.labels, held_out)

    def parts(self, held_out: Ints, rng: np.random.Generator) -> list[Part]:
        """What all rows teach, those of other tables too, that share nothing with the rows held out."""
        parts = [self.part(self.rows(held_out), rng)]
        for other, seen in zip(self.others, self.other_rows(held_out), strict=True):
            examples = examples_for(other.loss, other.labels, seen, rng, self.min_ratio)
            if len(examples):
                parts.append(Part(other.loss, examples, other.weight, self.config))
        return parts

    def part(self, rows: Ints, rng: np.random.Generator) -> Part:
        """What some rows of the measured table teach."""
        examples = examples_for(self.config.loss, self.labels, rows, rng, self.min_ratio)
        return Part(self.config.loss, examples, options=self.config)

    def other_rows(self, held_out: Ints) -> list[Ints]:
        return [rows_apart_from(self.labels, held_out, other=other.labels) for other in self.others]


def train_heads(task: Task, use: bool = True) -> TrainedHeads:
    """Train as the split says. With folds, one head a fold on the other folds' rows, then one on every row; without,
    one head on what is not held out. The heads come back on the CPU. Without `use` only the heads that measure are
    trained, and `head` is the last of them.

    Rows that share a picture or a prompt with the rows held out are left out of training, those of the measured table
    counted in the log.
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
                    + (f", {left_out} left out for a picture or prompt they share with those" if left_out else "")
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
    """A head on what is apart from the rows held out, its history, and what validation chose."""
    kind = HEADS[task.head_config.kind]
    train_one = blend_one if kind is Blend else _solve_one if issubclass(kind, Convex) else _train_one
    return train_one(task, held_out, name)


def _warn_of(histories: list[History], config: TrainConfig) -> None:
    records = [record for history in histories for record in history]
    if idle := sum(int(record.get("idle_batches", 0)) for record in records):
        logger.warning(
            f"{idle} batches had a {config.loss} loss of exactly 0 and taught nothing"
            + (": every triplet in them is right by the margin" if config.loss == "triplet" else "")
        )
    measured = [history[-1] for history in histories if history and "untrained_loss" in history[-1]]
    if still := [record for record in measured if record["trained_loss"] > STILL * record["untrained_loss"]]:
        logger.warning(
            f"training has not moved the loss of {len(still)} of {len(histories)} heads"
            f" ({still[0]['untrained_loss']:.4g} before, {still[0]['trained_loss']:.4g} after): they order as if"
            " untrained; give another --learning-rate, more --epochs, or leave out --head"
        )


def _train_one(task: Task, held_out: Ints, name: str) -> tuple[Head, History, dict[str, float]]:
    """Choose the number of epochs on rows kept aside, then train again on all rows but those held out for that many.

    Gives the head, the history of the first training, and what it found. If the split has rows for validation, nothing
    is kept aside, and the head is the one that those chose.
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
    """The number of epochs to train for, from 1. Where the split has rows for validation, the first of the best. Else
    the last that is no worse than the best by more than the standard error of so few rows: the learning rate falls to
    the end, and a best epoch of a few dozen rows is best by luck."""
    best = int(np.argmax(accuracies))
    if task.split.validation is None:
        rows = len(np.unique([validation.row_a, validation.row_b])) if len(validation) else 1
        error = np.sqrt(accuracies[best] * (1 - accuracies[best]) / rows)
        best = int(np.flatnonzero(np.array(accuracies) >= accuracies[best] - error)[-1])
    return best + 1


def _solve_one(task: Task, held_out: Ints, name: str) -> tuple[Head, History, dict[str, float]]:
    """A convex head on what is apart from the rows held out, and what each penalty did for rows kept aside.

    Of many rows a tenth is kept aside, and of few each fifth.
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
    """A blend on what is apart from the rows held out, and what each of its members did for rows kept aside."""
    rng = np.random.default_rng(task.config.seed)
    head = cast(Blend, task.new_head())
    losses = [task.config.loss, *(other.loss for other in task.others)]
    for labels, loss in zip(task.tables, losses, strict=True):
        require_head(loss, head)
        if loss != "preference":  # which is of every table
            examples_for(loss, labels, np.arange(len(labels)), rng, task.min_ratio)
    if any(task.config.of(loss) for loss in losses):
        raise InputError("a blend is fitted by least squares; leave out margin and reduction, or choose another --head")
    if task.min_ratio is not None:
        raise InputError("a blend is fitted to rows, not to pairs; leave out --min-ratio, or choose another --head")

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
    """Of many rows a tenth is kept aside once, and of few each fifth."""
    return INNER_FOLDS if len(task.rows(held_out)) <= FEW_ROWS else 1


def asides(task: Task, held_out: Ints, rng: np.random.Generator, count: int) -> Iterator[Ints]:
    """The rows to keep aside in each of `count` rounds: one round keeps VALIDATION_SHARE of the groups aside, and
    several keep every group aside once. Where the split has rows for validation there is one round, of those."""
    if task.split.validation is not None:
        yield task.split.validation
        return
    rows, group = task.rows(held_out), task.split.group
    if len(np.unique(group[rows])) < 2:  # a column of two values leaves one, of many prompts or pictures
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
    """What `asides` leave to train on, and what they state themselves. No picture and no prompt is on both sides, and
    none of the rows held out is on either. Raise InputError if no round has something on either side."""
    if task.split.validation is not None:
        pairs = pairs_among(task.labels, task.split.validation, rng, task.min_ratio)
        if not (pairs.target != 0.5).any():
            raise InputError(f"none of the {len(pairs)} comparisons for validation has a winner; try another --seed")
        parts = task.parts(held_out, rng)
        require_examples(parts, pairs)
        # One comparison a prompt: each counts the same, however many others its prompt has.
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
        f"nothing to train on: of {rows} rows no part can be kept aside that leaves"
        f" {OBJECTIVES[task.config.loss].unit} for training and pairs for validation; give more rows, or hold out"
        " less"
    )
