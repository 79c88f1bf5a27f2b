"""The loop of a training: batches, learning rate, gradients, the best epoch, and a state to resume from.

Knows no head, no backbone and no loss: the weights and the function for a batch's loss are passed in.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embed.arrays import Ints
from embed.spec import InputError
from heads.config import Schedule
from heads.training.checkpoint import Checkpoints

Batch = Sequence[Ints]  # the numbers of the batch's examples in each table
Record = dict[str, float]  # the values recorded for an epoch
# Attributes that a checkpoint stores unchanged.
SAVED = ("step", "history", "notes", "best", "best_epoch", "best_accuracy", "_losses", "_drawn_from", "_generator")
# Reading each step's loss makes a CUDA device idle until the next step, so losses are read together.
TOGETHER = 64


class Diverged(InputError, FloatingPointError):
    """The loss of a training is not finite. The message says at which step."""


@dataclass(kw_only=True, eq=False)
class Loop:
    """A training at its first step, or at the step that `checkpoints` has saved.

    `losses(step, batch)` yields the losses of a batch's parts, which are added. Each is differentiated before the next
    is requested (gradient accumulation), and code after the last `yield` sees the whole gradient. `validate()` measures
    the present weights; higher is better.
    """

    weights: Mapping[str, nn.Parameter]  # all trained weights by name
    optimizer: torch.optim.Optimizer  # over the weights, with the highest learning rates
    rate: Callable[[int], float]  # the factor of the learning rates at a step
    epoch_steps: int
    batches: Callable[[int], Sequence[Batch]]  # the batches of the epoch with this number, `epoch_steps` of them
    units: Sequence[str]  # the names of each table's examples in messages
    losses: Callable[[int, Batch], Iterable[Tensor]]
    validate: Callable[[], float] | None = None
    patience: float = math.inf  # training stops after so many epochs without a better one
    max_grad_norm: float | None = None
    ema: float | None = None  # decay per step of a running mean of the weights, which is validated and kept instead
    seed: int = 0
    checkpoints: Checkpoints | None = None
    together: int | None = None  # number of steps whose losses are read together; by default 1, on CUDA TOGETHER

    def __post_init__(self) -> None:
        self.step = 0
        self.history: list[Record] = []
        self.notes: Record = {}  # values that `losses` and `validate` add to the record of the present epoch
        self.best: dict[str, Tensor] = {}  # weights of the best epoch; empty without validation
        self.best_epoch, self.best_accuracy = -1, -math.inf
        self.mean = {} if self.ema is None else copy_of(self.weights)
        self._losses: list[float] = []  # of the present epoch
        self._unread: list[tuple[int, Tensor]] = []  # steps and their losses, which the device may still be computing
        if self.together is None:
            on_cuda = any(weight.device.type == "cuda" for weight in self.weights.values())
            self.together = TOGETHER if on_cuda else 1
        self._batches: Sequence[Batch] = ()  # of the present epoch, and torch's generator state before them
        self._drawn_from = Tensor()
        self._generator: Tensor | None = None  # the generator state of a saved training
        self._highest = [group["lr"] for group in self.optimizer.param_groups]
        if self.checkpoints and (saved := self.checkpoints.load()):
            self._restore(saved)

    @property
    def between_epochs(self) -> bool:
        return self.step % self.epoch_steps == 0

    def run(self, epochs: int, on_step: Callable[["Loop"], None] = lambda loop: None) -> list[Record]:
        """Train for so many epochs, or until `patience` runs out. The weights of the best epoch are then in place: the
        first of equals, or the last epoch's without validation. Returns the history.

        `on_step` follows every step, before a checkpoint is written. The state of torch's global generator does not
        change. Raise Diverged if a loss is not finite.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self._generator is not None:
                if not self.between_epochs:  # the batches of this epoch were drawn before
                    torch.set_rng_state(self._drawn_from)
                    self._draw_batches()
                torch.set_rng_state(self._generator)
            while self.step < epochs * self.epoch_steps and not self._is_over():
                self._advance()
                on_step(self)
                if self.checkpoints and self.checkpoints.due():
                    self.save()
        load(self.weights, self.best or self.mean)
        return self.history

    def take_step(self) -> float:
        """Train on the next batch and return its loss. After the last batch of an epoch, validate and record the
        epoch."""
        loss = self._advance()
        self._read_losses()
        return float(loss)

    def _advance(self) -> Tensor:
        """Like `take_step`, but the device may still be computing the loss."""
        place = self.step % self.epoch_steps
        if not self._batches:
            self._draw_batches()
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[Tensor] = []
        for part in self.losses(self.step, self._batches[place]):
            torch.autograd.backward(part)
            parts.append(part.detach().double())
        loss = reduce(torch.add, parts)
        self._unread.append((self.step, loss))
        if len(self._unread) >= (self.together or 1) or place == self.epoch_steps - 1:
            self._read_losses()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.weights.values(), self.max_grad_norm)
        for group, rate in zip(self.optimizer.param_groups, self._rates(), strict=True):
            group["lr"] = rate
        self.optimizer.step()
        for name, mean in self.mean.items():
            mean.lerp_(self.weights[name].detach(), 1 - (self.ema or 0))
        self.step += 1
        if self.between_epochs:
            self.record_epoch()
        return loss

    def _read_losses(self) -> None:
        """Wait for the losses of the steps so far. Raise Diverged if one is not finite."""
        values = torch.stack([loss for _, loss in self._unread]).tolist() if self._unread else []
        for (step, _), loss in zip(self._unread, values, strict=True):
            if not math.isfinite(loss):
                raise self._diverged(loss, *divmod(step, self.epoch_steps))
        self._unread = []
        self._losses += values

    def record_epoch(self) -> None:
        """Add the present state to the history, and keep it if it is the best. Called before the first step, it makes
        the initial weights a candidate, as epoch 0."""
        accuracy = math.nan
        if self.validate:
            with replaced(self.weights, self.mean):
                accuracy = self.validate()
        self.history.append(
            {
                "train_loss": float(np.mean(self._losses)) if self._losses else math.nan,
                "validation_accuracy": accuracy,
                "learning_rate": self._rates()[0],
                "idle_batches": self._losses.count(0.0),
                **self.notes,
            }
        )
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, len(self.history) - 1
            self.best = copy_of(self.mean or self.weights)
        self._losses, self._batches, self.notes = [], (), {}

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        self._read_losses()
        if self.checkpoints:
            self.checkpoints.save(self._state())

    def _rates(self) -> list[float]:
        """The learning rates of the next step."""
        return [highest * self.rate(self.step) for highest in self._highest]

    def _is_over(self) -> bool:
        return bool(self.best) and len(self.history) - 1 - self.best_epoch >= self.patience

    def _draw_batches(self) -> None:
        self._drawn_from = torch.get_rng_state()
        self._batches = self.batches(self.step // self.epoch_steps)

    def _state(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in SAVED} | {
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "_generator": torch.get_rng_state(),
        }

    def _restore(self, saved: Mapping[str, Any]) -> None:
        for name in SAVED:
            setattr(self, name, saved[name])
        load(self.weights, saved["weights"])
        load(self.mean, saved["mean"])
        self.optimizer.load_state_dict(saved["optimizer"])

    def _diverged(self, loss: float, epoch: int, place: int) -> Diverged:
        held = [
            f"{len(numbers)} {unit}, the first of number {', '.join(map(str, numbers[:5]))}"
            for unit, numbers in zip(self.units, self._batches[place], strict=True)
        ]
        return Diverged(
            f"the loss is {loss} at epoch {epoch}, step {place}, of a batch of {' and '.join(held)};"
            " lower --learning-rate, or look for labels that are not finite"
        )


def copy_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of the present values of some weights."""
    return {name: weight.detach().clone() for name, weight in weights.items()}


@torch.no_grad()
def load(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Set the weights that `values` names to its values."""
    for name, value in values.items():
        weights[name].copy_(value)


@contextmanager
def replaced(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, the weights that `values` names have its values."""
    before = copy_of({name: weights[name] for name in values})
    load(weights, values)
    try:
        yield
    finally:
        load(weights, before)


def rates(steps: int, rise: int, schedule: Schedule = "cosine") -> Callable[[int], float]:
    """The learning rate's factor by step: a linear rise, then constant, or half a cosine down to zero at `steps`."""

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups for an optimiser: weight decay for matrices, none for biases and scalars."""
    free = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in free if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in free if p.ndim < 2], "weight_decay": 0.0},
    ]
