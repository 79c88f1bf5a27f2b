"""Every function of the library that trains, called on little: in a module, for processes that nothing else set up."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import unfreeze_tiny
from heads_labels import GROUPS, SIZE, single
from heads_tiny import DIM, unit

from embed.modes import parse_mode
from heads.config import HeadConfig, Protocol, SplitConfig, SweepConfig, TrainConfig, UnfreezeConfig
from heads.data.features import features_of
from heads.data.split import split_rows
from heads.evaluation.evaluate import calibrate, evaluate
from heads.training.folds import Task, TrainedHeads, train_heads
from heads.training.loop import Loop
from heads.training.sweep import sweep
from heads.unfreeze.train import train


def task(kind: str, folds: int | None = 2, **options: Any) -> Task:
    """Counts that follow a picture's first coordinate, in two folds of whole prompts, or with a part held out."""
    images = unit(GROUPS * SIZE, 1)
    words = [f"prompt {i // SIZE}" for i in range(len(images))]
    labels = single("counts", np.exp(4 + 6 * images[:, 0].astype(float)).round(), prompt=words)
    features = features_of(images, unit(GROUPS, 2), labels.image, labels.prompt)
    split = split_rows(labels, SplitConfig("prompt", folds=folds))
    config = TrainConfig(epochs=2, batch_size=64, penalty=0.1)
    return Task(labels, features, split, HeadConfig(kind, DIM), config, 2.0, **options)


def folds(kind: str, **options: Any) -> TrainedHeads:
    return train_heads(task(kind, **options))


def evaluated(folder: Path) -> None:
    one, trained = task("fusion"), folds("fusion")
    for measure in (evaluate, calibrate):
        measure(one.labels, one.features, trained.fold_heads, one.split, Protocol(resamples=50))


def searched(folder: Path) -> None:
    clock = count(0, 20)
    sweep(lambda options: task(options["head"], folds=None), {"head": "linear"}, SweepConfig(minutes=1),
          lambda: float(next(clock)))  # fmt: skip


def unfrozen(folder: Path, **options: Any) -> Loop:
    backbone = unfreeze_tiny.load(unfreeze_tiny.make_folder(folder / "clip"))
    mode = "blocks=1,1"
    free = unfreeze_tiny.from_memory(backbone, parse_mode(mode))
    config = UnfreezeConfig(mode, epochs=2, batch_size=16)
    return train(free, unfreeze_tiny.data("preference", validation=True), config, folder, **options)


def of_kind(kind: str) -> Callable[[Path], object]:
    return lambda folder: folds(kind)


def trainings() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """By name, what trains in a folder of its own."""
    yield from ((kind, of_kind(kind)) for kind in ("fusion", "linear", "kernel"))
    yield from (("evaluated", evaluated), ("searched", searched), ("unfrozen", unfrozen))
