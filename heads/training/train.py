"""Training a head on frozen embeddings: everything in memory, batches by gather, the best epoch kept.

Knows no table and no format: features and examples in, a trained head and its history out.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from embed.progress import Progress, silent
from embed.spec import InputError
from embed.wording import unknown_name
from heads.data.comparisons import Pairs, expected_accuracy
from heads.data.features import Features
from heads.models import Head
from heads.training.checkpoint import Checkpoints
from heads.training.objectives import OBJECTIVES, Diverged, Examples, LossOptions, Part, items_of, require_head

MAX_INBATCH = 4096  # pairs of a batch with in-batch negatives, whose similarities are twice its square

PREPARE_ITEMS = 50_000  # of which a head takes its means, at most: all of a million would not fit in memory

Observer = Callable[[int, dict[str, float]], None]  # of each epoch's record, as it ends


@dataclass(frozen=True)
class TrainConfig(LossOptions):
    """How a head is trained; written beside it. `loss` is the measured table's, the loss options are for all tables."""

    loss: str = "preference"
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    batch_size: int = 16384  # pairs, groups or ratings
    epochs: int = 6  # at most: validation decides, see `fit`
    patience: int = 3  # epochs without a better order of the validation rows before training stops
    warmup: float = 0.05  # share of the steps in which the learning rate rises
    max_grad_norm: float = 1.0
    penalty: float | None = None  # of linear and kernel, see `heads.training.convex`; None: theirs
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in OBJECTIVES:
            raise unknown_name("loss", self.loss, OBJECTIVES)
        if self.loss == "preference-inbatch" and self.batch_size > MAX_INBATCH:
            raise InputError(
                f"the loss preference-inbatch compares every picture with every prompt of a batch of {self.batch_size}"
                f" pairs; give --batch-size {MAX_INBATCH} or less (PickScore's is 128)"
            )
        for name in ("learning_rate", "batch_size", "epochs", "patience", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"TrainConfig.{name} is {getattr(self, name)}; it must be positive")
        if self.penalty is not None and not self.penalty > 0:
            raise InputError(f"TrainConfig.penalty is {self.penalty}; it must be positive")
        if self.weight_decay < 0 or not 0 <= self.warmup < 1:
            raise InputError(
                f"TrainConfig: weight_decay is {self.weight_decay} and warmup {self.warmup};"
                " wanted weight_decay >= 0 and 0 <= warmup < 1"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def score_items(head: Head, features: Features, items: np.ndarray | None = None, batch_size: int = 16384) -> np.ndarray:
    """(n,) float32 scores of the given items, or of all."""
    head.eval()
    chosen = torch.arange(len(features.image)) if items is None else torch.from_numpy(items)
    parts = [head(**features.take(part, head.inputs)).cpu() for part in chosen.split(batch_size)]
    return torch.cat(parts).numpy() if parts else np.empty(0, np.float32)


def fit(
    head: Head,
    features: Features,
    train: Examples | Sequence[Part],
    validation: Pairs | None,
    config: TrainConfig,
    epochs: int | None = None,
    observe: Observer | None = None,
    checkpoints: Checkpoints | None = None,
    stage: str = "fit",
    progress: Progress = silent,
) -> list[dict[str, float]]:
    """Train `head` in place on `train` and leave it with the weights of its best epoch on `validation`; without
    validation, with those of its last. `epochs` ends training early; the learning rate keeps its whole schedule.

    `train` is the examples of `config.loss`, or what several tables teach, whose losses are added by their weights:
    every batch then holds the same share of each table. Head and features are on one device. With `checkpoints`, a
    training that was interrupted goes on at the epoch saved under `stage` and, on a CPU, ends with the same bytes.

    Returns one record an epoch: train_loss, validation_accuracy (NaN without), learning_rate, idle_batches (with a
    loss of 0, they teach nothing). Raises Diverged with the step and the batch when the loss is not finite.
    """
    parts = [Part(config.loss, train, options=config)] if isinstance(train, Examples) else list(train)
    for part in parts:
        require_head(part.loss, head)
    require_examples(parts, validation)
    epochs = epochs or config.epochs
    sizes = [len(part.examples) for part in parts]
    steps = min(math.ceil(sum(sizes) / config.batch_size), max(sizes))
    items = items_of_parts(parts)
    items = items[:: math.ceil(len(items) / PREPARE_ITEMS)]
    head.prepare(**features.take(torch.from_numpy(items), head.inputs))
    run = _Run(head, config, steps)
    if checkpoints and (saved := checkpoints.load(stage)):
        run.restore(saved)
    # The order of the examples and dropout come from the seed; the caller's generator is left as it was.
    with torch.random.fork_rng(devices=[]), progress(epochs, "epoch", "training") as step:
        torch.manual_seed(config.seed)
        if run.generator is not None:
            torch.set_rng_state(run.generator)
        step(len(run.history))
        for epoch in range(len(run.history), epochs):
            if run.over(config):
                break
            batch_losses = _train_epoch(run, features, parts, config, steps, epoch)
            accuracy = math.nan if validation is None else _validation_accuracy(head, features, validation)
            record = {
                "train_loss": float(np.mean(batch_losses)),
                "validation_accuracy": accuracy,
                "learning_rate": float(run.schedule.get_last_lr()[0]),
                "idle_batches": batch_losses.count(0.0),
            }
            run.note(record)
            step()
            if observe:
                observe(epoch, record)
            if checkpoints and checkpoints.due():
                checkpoints.save(stage, run.state())
    head.load_state_dict(run.best_state)
    head.eval()
    return run.history


class _Run:
    """What a training is made of besides its data: all that a checkpoint holds."""

    def __init__(self, head: Head, config: TrainConfig, steps: int) -> None:
        self.head = head
        self.optimizer = torch.optim.AdamW(_decay_groups(head, config.weight_decay), lr=config.learning_rate)
        factor = _warmup_cosine(steps * config.epochs, config.warmup)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.best_state, self.best_epoch = copy.deepcopy(head.state_dict()), -1
        self.history: list[dict[str, float]] = []
        self.generator: torch.Tensor | None = None  # where a restored run's random numbers go on

    def note(self, record: dict[str, float]) -> None:
        """Add an epoch; keep its weights if it is the best, or if nothing says which is."""
        accuracy = record["validation_accuracy"]
        self.history.append(record)
        if self.best_epoch < 0 or not accuracy <= self.history[self.best_epoch]["validation_accuracy"]:
            self.best_state, self.best_epoch = copy.deepcopy(self.head.state_dict()), len(self.history) - 1

    def over(self, config: TrainConfig) -> bool:
        return len(self.history) - 1 - self.best_epoch >= config.patience and bool(self.history)

    def state(self) -> dict[str, Any]:
        return {
            "head": self.head.state_dict(),
            "best_state": self.best_state,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": torch.get_rng_state(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self.head.load_state_dict(saved["head"])
        self.best_state, self.best_epoch = saved["best_state"], saved["best_epoch"]
        self.history, self.generator = saved["history"], saved["generator"]
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])


def _train_epoch(
    run: _Run, features: Features, parts: Sequence[Part], config: TrainConfig, steps: int, epoch: int
) -> list[float]:
    """The loss of each batch."""
    run.head.train()
    losses_seen: list[float] = []
    orders = [np.array_split(_order(part, features), steps) for part in parts]
    for batches in zip(*orders, strict=True):
        loss = _batch_loss(run.head, features, parts, batches)
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(value, epoch, len(losses_seen), parts, batches)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.head.parameters(), config.max_grad_norm)
        run.optimizer.step()
        run.schedule.step()
        losses_seen.append(value)
    return losses_seen


def _batch_loss(head: Head, features: Features, parts: Sequence[Part], batches: Sequence[np.ndarray]) -> torch.Tensor:
    terms = [
        part.weight * OBJECTIVES[part.loss].loss(head, features, part.examples, batch, part.options)
        for part, batch in zip(parts, batches, strict=True)
        if len(batch)
    ]
    return torch.stack(terms).sum()


def _order(part: Part, features: Features) -> np.ndarray:
    """(n,) the examples in an order drawn anew: prompt by prompt where the pairs are of one prompt each.

    The pairs of a prompt share its pictures, which are then scored once a batch and not once a pair. In-batch
    negatives want the opposite, as many different prompts as there can be.
    """
    order = torch.randperm(len(part.examples)).numpy()
    if not isinstance(part.examples, Pairs) or part.loss == "preference-inbatch":
        return order
    prompt = features.prompt.cpu().numpy()
    of_pair = prompt[part.examples.a]
    if of_pair.min() < 0 or not np.array_equal(of_pair, prompt[part.examples.b]):
        return order
    turn = torch.randperm(int(of_pair.max()) + 1).numpy()
    return order[np.argsort(turn[of_pair[order]], kind="stable")]


def _diverged(value: float, epoch: int, step: int, parts: Sequence[Part], batches: Sequence[np.ndarray]) -> Diverged:
    held = [
        f"{len(batch)} {OBJECTIVES[part.loss].unit}, the first of number {', '.join(map(str, batch[:5]))}"
        for part, batch in zip(parts, batches, strict=True)
    ]
    return Diverged(
        f"the loss is {value} at epoch {epoch}, step {step}, of a batch of {' and '.join(held)};"
        " lower --learning-rate, or look for labels that are no numbers"
    )


def items_of_parts(parts: Sequence[Part]) -> np.ndarray:
    """The different items among the examples of all parts."""
    return np.unique(np.concatenate([items_of(part.examples) for part in parts]))


def require_examples(parts: Sequence[Part], validation: Pairs | None) -> None:
    """Nothing, or InputError where there is nothing to train on or nothing to validate with."""
    if not any(len(part.examples) for part in parts) or (validation is not None and len(validation) == 0):
        counts = " and ".join(f"{len(part.examples)} {OBJECTIVES[part.loss].unit}" for part in parts)
        raise InputError(
            f"nothing to train on: {counts} for training, {len(validation or ())} pairs for validation;"
            " give more rows, or hold out less"
        )


def _validation_accuracy(head: Head, features: Features, pairs: Pairs) -> float:
    """The accuracy and not the loss, as PickScore chooses its checkpoint: on few rows the loss rises with a head's
    confidence while its order still improves."""
    items = items_of(pairs)
    scores = score_items(head, features, items)
    return expected_accuracy(scores[np.searchsorted(items, pairs.a)], scores[np.searchsorted(items, pairs.b)], pairs)


def _decay_groups(head: Head, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for biases and scalars."""
    parameters = [p for p in head.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _warmup_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """The learning rate's factor by step: a straight rise, then half a cosine down to zero."""
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor
