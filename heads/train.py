"""Training a head on frozen embeddings: everything in memory, batches by gather, the best epoch kept.

Knows no file and no table: features and examples in, a trained head and its history out.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from embed.console import progress, unknown_name
from embed.spec import InputError
from heads.comparisons import Pairs, expected_accuracy
from heads.features import Features
from heads.models import Head
from heads.objectives import OBJECTIVES, Examples, items_of, require_head

MAX_INBATCH = 4096  # pairs of a batch with in-batch negatives, whose similarities are twice its square


@dataclass(frozen=True)
class TrainConfig:
    """How a head is trained; written beside it."""

    loss: str = "preference"
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    batch_size: int = 16384  # pairs, groups or ratings
    epochs: int = 6  # at most: validation decides, see `fit`
    patience: int = 3  # epochs without a better order of the validation rows before training stops
    warmup: float = 0.05  # share of the steps in which the learning rate rises
    max_grad_norm: float = 1.0
    penalty: float | None = None  # of linear and kernel, see `heads.convex`; None: validation decides
    seed: int = 0

    def __post_init__(self) -> None:
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
    parts = [head(**features.take(part, head.inputs)) for part in chosen.split(batch_size)]
    return torch.cat(parts).numpy() if parts else np.empty(0, np.float32)


def fit(
    head: Head,
    features: Features,
    train: Examples,
    validation: Pairs | None,
    config: TrainConfig,
    epochs: int | None = None,
) -> list[dict[str, float]]:
    """Train `head` in place on `train` and leave it with the weights of its best epoch on `validation`; without
    validation, with those of its last. `epochs` ends training early; the learning rate keeps its whole schedule.

    Returns one record an epoch: train_loss, validation_accuracy (NaN without), learning_rate, idle_batches (with a
    loss of 0, they teach nothing). Raises FloatingPointError with the step when the loss is not finite.
    """
    require_head(config.loss, head)
    if len(train) == 0 or (validation is not None and len(validation) == 0):
        raise InputError(
            f"nothing to train on: {len(train)} {OBJECTIVES[config.loss].unit} for training,"
            f" {len(validation or ())} pairs for validation;"
            " give more rows, or hold out less"
        )
    epochs = epochs or config.epochs
    steps = math.ceil(len(train) / config.batch_size) * config.epochs
    optimizer = torch.optim.AdamW(_decay_groups(head, config.weight_decay), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_cosine(steps, config.warmup))
    best_accuracy, best_state, best_epoch = -1.0, copy.deepcopy(head.state_dict()), 0
    history: list[dict[str, float]] = []
    head.prepare(**features.take(torch.from_numpy(items_of(train)), head.inputs))
    # The order of the pairs and dropout come from the seed; the caller's generator is left as it was.
    with torch.random.fork_rng(devices=[]), progress(epochs, "epoch", "training") as bar:
        torch.manual_seed(config.seed)
        for epoch in range(epochs):
            batch_losses = _train_epoch(head, features, train, config, optimizer, schedule, epoch)
            accuracy = math.nan if validation is None else _validation_accuracy(head, features, validation)
            rate = float(schedule.get_last_lr()[0])
            history.append(
                {
                    "train_loss": float(np.mean(batch_losses)),
                    "validation_accuracy": accuracy,
                    "learning_rate": rate,
                    "idle_batches": batch_losses.count(0.0),
                }
            )
            bar.update()
            if validation is None or accuracy > best_accuracy:
                best_accuracy, best_state, best_epoch = accuracy, copy.deepcopy(head.state_dict()), epoch
            elif epoch - best_epoch >= config.patience:
                break
    head.load_state_dict(best_state)
    head.eval()
    return history


def _train_epoch(
    head: Head,
    features: Features,
    examples: Examples,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
) -> list[float]:
    """The loss of each batch."""
    head.train()
    losses_seen: list[float] = []
    for batch in torch.randperm(len(examples)).split(config.batch_size):
        loss = OBJECTIVES[config.loss].loss(head, features, examples, batch.numpy())
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at epoch {epoch}, step {len(losses_seen)}; lower --learning-rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses_seen.append(loss.item())
    return losses_seen


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
