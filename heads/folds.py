"""One head for every fold and one for use: who is trained on which rows, and who scores which."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from embed.console import warn
from embed.spec import InputError
from heads.comparisons import Labels, Pairs, pairs_among
from heads.features import Features
from heads.models import Head, HeadConfig, build_head
from heads.objectives import Examples, examples_for
from heads.split import Split, rows_apart_from
from heads.train import TrainConfig, fit

VALIDATION_SHARE = 0.1  # of the training groups, kept for choosing the epoch


@dataclass(frozen=True)
class TrainedHeads:
    """`head` is the one to use; `fold_heads` score what their fold holds out; `rows` were seen by `head`."""

    head: Head
    fold_heads: list[Head]
    rows: np.ndarray
    histories: list[list[dict[str, float]]]  # of `head`, then of each fold's


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
    everything = np.arange(len(labels))
    folds = range(split.folds) if split.folds > 1 else range(0)
    fold_heads, histories = [], []
    for fold in folds:
        held_out = split.test_rows(fold)
        rows = rows_apart_from(labels, held_out, np.flatnonzero(split.fold != fold))
        left_out = len(labels) - len(held_out) - len(rows)
        report(
            f"fold {fold + 1} of {split.folds}: {len(rows)} rows to train on, {len(held_out)} held out"
            + (f", {left_out} left out for a picture or prompt they share with those" if left_out else "")
        )
        head, history = _train_one(labels, features, split, rows, head_config, config, min_ratio)
        fold_heads.append(head)
        histories.append(history)
    rows = everything if folds else rows_apart_from(labels, split.test_rows(0), np.flatnonzero(split.fold != 0))
    head, history = _train_one(labels, features, split, rows, head_config, config, min_ratio)
    histories = [history, *histories]
    if idle := sum(int(record["idle_batches"]) for epochs in histories for record in epochs):
        warn(
            f"{idle} batches had a {config.loss} loss of exactly 0 and taught nothing"
            + (": every triplet in them is right by the margin" if config.loss == "triplet" else "")
        )
    return TrainedHeads(head, fold_heads, rows, histories)


def _train_one(
    labels: Labels,
    features: Features,
    split: Split,
    rows: np.ndarray,
    head_config: HeadConfig,
    config: TrainConfig,
    min_ratio: float | None,
) -> tuple[Head, list[dict[str, float]]]:
    """A head on all of `rows`, trained for as many epochs as served rows kept aside best; and that first history."""
    rng = np.random.default_rng(config.seed)
    train, validation = _train_and_validation(labels, split, rows, rng, min_ratio, config.loss)
    history = fit(build_head(head_config, config.seed), features, train, validation, config)
    best = int(np.argmax([record["validation_accuracy"] for record in history])) + 1
    head = build_head(head_config, config.seed)
    fit(head, features, examples_for(config.loss, labels, rows, rng, min_ratio), None, config, epochs=best)
    return head, history


def _train_and_validation(
    labels: Labels, split: Split, rows: np.ndarray, rng: np.random.Generator, min_ratio: float | None, loss: str
) -> tuple[Examples, Pairs]:
    names = np.unique(split.group[rows])
    if len(names) < 2:
        raise InputError(f"{len(names)} group is left to train on; hold out less, or split by another column")
    chosen = rng.choice(names, max(1, round(VALIDATION_SHARE * len(names))), replace=False)
    is_validation = np.isin(split.group[rows], chosen)
    validation_rows = rows[is_validation]
    train_rows = rows_apart_from(labels, validation_rows, rows[~is_validation])
    return (
        examples_for(loss, labels, train_rows, rng, min_ratio),
        pairs_among(labels, validation_rows, rng, min_ratio),
    )
