"""Training of what is unfrozen: steps that can be interrupted anywhere and resumed to the same bits, the best epoch.

    checkpoint.safetensors    weights, moments, running mean and best weights by name; in its metadata, as JSON, the
                              step, the history and the settings they belong to

The order of the examples and the randomness of dropout are functions of the seed and of the step, so no generator's
state has to be kept.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embed.backbones.backbone import weights_hash
from embed.files import atomic_write
from embed.modes import parse_mode
from embed.progress import Progress, silent
from embed.spec import InputError
from embed.wording import unknown_name
from heads.data.comparisons import Pairs
from heads.metrics import pair_credit
from heads.training.objectives import OBJECTIVES, Examples, LossOptions, require_head, require_use
from heads.training.train import score_items
from heads.unfreeze.model import Unfrozen, taken

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class UnfreezeConfig(LossOptions):
    """How a mode is trained. The defaults are Social Reward's, but for the loss: constant rate, no clipping."""

    mode: str
    loss: str = "preference"
    learning_rate: float = 3e-5
    optimizer: str | None = None  # the mode's
    weight_decay: float = 0.01  # of adamw
    schedule: str = "constant"
    warmup: float = 0.0  # share of the steps in which the learning rate rises
    batch_size: int = 32  # pairs, groups or ratings
    accumulate: int = 1  # parts of a batch that are computed one after another; in-batch negatives are those of a part
    epochs: int = 10
    max_grad_norm: float | None = None
    ema: float | None = None  # decay a step of a running mean of the weights, which is then what is kept
    bf16: bool = False
    checkpointing: bool = False
    augment: bool = False  # pictures mirrored and cropped at random, where pixels are trained from
    head_learning_rate: float = 1e-3
    head_weight_decay: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_mode(self.mode)
        for value, known, what in (
            (self.loss, OBJECTIVES, "loss"),
            (self.optimizer or "adam", OPTIMIZERS, "optimizer"),
            (self.schedule, SCHEDULES, "schedule"),
        ):
            if value not in known:
                raise unknown_name(what, value, known)
        require_use(self, [self.loss])
        for name in ("learning_rate", "head_learning_rate", "batch_size", "accumulate", "epochs"):
            if not getattr(self, name) > 0:
                raise InputError(f"UnfreezeConfig.{name} is {getattr(self, name)}; it must be positive")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise InputError(f"UnfreezeConfig.max_grad_norm is {self.max_grad_norm}; it must be positive, or left out")
        if not 0 <= self.warmup < 1 or not 0 <= (self.ema or 0) < 1:
            raise InputError(f"UnfreezeConfig: warmup is {self.warmup} and ema {self.ema}; wanted 0 <= each < 1")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Data:
    """What is trained on: examples over items, whose cache rows `image` and `prompt` (n,) are."""

    image: np.ndarray
    prompt: np.ndarray
    train: Examples
    validation: Pairs | None = None

    def fingerprint(self) -> str:
        """A hash of everything that decides a run's batches."""
        digest = hashlib.sha256()
        for part in (self, self.train, self.validation):
            for name in getattr(part, "__dataclass_fields__", ()):
                if isinstance(array := getattr(part, name), np.ndarray):
                    digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class Trainer:
    """A run from its first step, or from its checkpoint, to its last. `on_step(epoch, step)` follows every step."""

    def __init__(
        self,
        unfrozen: Unfrozen,
        data: Data,
        config: UnfreezeConfig,
        folder: Path | None = None,
        checkpoint_steps: int = 200,
        on_step: Callable[[int, int], None] = lambda epoch, step: None,
    ) -> None:
        require_head(config.loss, unfrozen.head)
        if len(data.train) == 0:
            raise InputError("nothing to train on: 0 examples; give more rows, or hold out less")
        self.unfrozen, self.data, self.config = unfrozen, data, config
        self.file = None if folder is None else folder / "checkpoint.safetensors"
        self.checkpoint_steps = checkpoint_steps
        self.on_step = on_step
        self.epoch_steps = math.ceil(len(data.train) / config.batch_size)
        self.optimizer = _optimizer(unfrozen, config)
        self._base = weights_hash(unfrozen.moved)
        self.step = 0
        self.losses: list[float] = []  # of the present epoch
        self.history: list[dict[str, float]] = []
        self.running = unfrozen.state() if config.ema is not None else {}
        self.best_accuracy, self.best_epoch = -1.0, 0
        self.best: dict[str, Tensor] = {}
        if self.file is not None and self.file.exists():
            self._restore(self.file)

    def run(self, steps: int | None = None, progress: Progress = silent) -> list[dict[str, float]]:
        """Train to the end, or for so many steps; the best epoch's weights are then in place, which may be those of the
        start (epoch 0); without validation the last. Returns the history, one record an epoch, the start first."""
        last = self.epoch_steps * self.config.epochs
        end = last if steps is None else min(last, self.step + steps)
        with progress(last, "step", "unfreezing") as step:
            step(self.step)
            if not self.history:
                self._end_epoch()
            while self.step < end:
                self.losses.append(self._one_step())
                self.step += 1
                if self.step % self.epoch_steps == 0:
                    self._end_epoch()
                self.on_step((self.step - 1) // self.epoch_steps, self.step)
                if self.step % self.checkpoint_steps == 0 or self.step % self.epoch_steps == 0:
                    self._save()
                step()
        if self.step == last:
            self.unfrozen.load(self.best or self.running)
        return self.history

    def _one_step(self) -> float:
        config, unfrozen = self.config, self.unfrozen
        epoch, place = divmod(self.step, self.epoch_steps)
        order = np.random.default_rng([config.seed, epoch]).permutation(len(self.data.train))
        batch = order[place * config.batch_size : (place + 1) * config.batch_size]
        unfrozen.head.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([config.seed, self.step]).generate_state(1)[0]))
            for part in np.array_split(batch, min(config.accumulate, len(batch))):
                loss = self.loss(part) * _share(config, self.data.train, part, batch)
                loss.backward()
                total += loss.item()
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {total} at step {self.step}; lower --learning-rate")
        parameters = list(unfrozen.trained().values())
        unfrozen.ranks.average_gradients(parameters)
        if config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        factor = _factor(self.step, self.epoch_steps * config.epochs, config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * factor
        self.optimizer.step()
        for name, mean in self.running.items():
            mean.lerp_(unfrozen.trained()[name].detach(), 1 - (config.ema or 0))
        return total

    def loss(self, batch: np.ndarray) -> Tensor:
        """The loss of the training examples numbered `batch`, with gradients."""
        examples = taken(self.data.train, batch)
        features, examples = self.unfrozen.local(self.data.image, self.data.prompt, examples)
        loss = OBJECTIVES[self.config.loss].loss
        return loss(self.unfrozen.head, features, examples, np.arange(len(examples)), self.config)

    def _end_epoch(self) -> None:
        epoch = len(self.history)
        with self.unfrozen.with_weights(self.running):
            accuracy = math.nan if self.data.validation is None else accuracy_of(self.unfrozen, self.data)
            if accuracy > self.best_accuracy:
                self.best_accuracy, self.best_epoch, self.best = accuracy, epoch, self.unfrozen.state()
        self.history.append(
            {
                "train_loss": float(np.mean(self.losses)) if self.losses else math.nan,
                "validation_accuracy": accuracy,
                "idle_batches": self.losses.count(0.0),
            }
        )
        self.losses = []

    def _save(self) -> None:
        if self.file is None or self.unfrozen.ranks.rank:
            return
        from safetensors.torch import save

        tensors = {f"weight.{name}": value for name, value in self.unfrozen.state().items()}
        for kind, values in (("running", self.running), ("best", self.best)):
            tensors |= {f"{kind}.{name}": value for name, value in values.items()}
        for name, parameter in self.unfrozen.trained().items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}.{name}"] = value
        state = {
            "settings": self._settings(),
            "step": self.step,
            "losses": self.losses,
            "history": self.history,
            "best": [self.best_accuracy, self.best_epoch],
        }
        data = save(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"state": json.dumps(state)}
        )
        with atomic_write(self.file) as file:
            file.write(data)

    def _restore(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dictionary
        if state["settings"] != self._settings():
            raise InputError(f"{path} belongs to a run with other settings or data; finish that, or remove the file")
        trained = self.unfrozen.trained()
        by_kind: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            # Laid out in memory as the parameter is: the fused optimiser takes that for granted.
            kept = trained[rest]
            by_kind.setdefault(kind, {})[rest] = (
                torch.empty_like(kept).copy_(value) if value.ndim else value.to(kept.device)
            )
        self.unfrozen.load(by_kind.pop("weight"))
        self.running, self.best = by_kind.pop("running", {}), by_kind.pop("best", {})
        for kind, values in by_kind.items():
            for name, value in values.items():
                self.optimizer.state[trained[name]][kind] = value
        self.step, self.losses, self.history = state["step"], state["losses"], state["history"]
        self.best_accuracy, self.best_epoch = state["best"]

    def _settings(self) -> dict[str, Any]:
        return {**self.config.to_json(), "data": self.data.fingerprint(), "base": self._base}


def accuracy_of(unfrozen: Unfrozen, data: Data) -> float:
    """How many of the validation pairs are ordered as people did, weighted; equal scores count half, ties nothing."""
    pairs = data.validation
    assert pairs is not None
    items = np.unique([pairs.a, pairs.b])
    features = unfrozen.features(data.image[items], data.prompt[items])
    scores = score_items(unfrozen.head, features)
    a, b = np.searchsorted(items, pairs.a), np.searchsorted(items, pairs.b)
    credit = pair_credit(scores[a], scores[b], pairs.target)
    decided = ~np.isnan(credit)
    if not decided.any():
        raise InputError("no validation pair has a winner; hold out other rows")
    # A soft target that is nearly a tie says little about who is right.
    weight = (pairs.weight * np.abs(2 * pairs.target - 1))[decided]
    return float(np.average(credit[decided], weights=weight))


WISE = tuple(round(0.1 * i, 1) for i in range(11))


def interpolate(
    unfrozen: Unfrozen, data: Data, base: dict[str, Tensor], wise: float | None
) -> tuple[float, dict[float, float]]:
    """Put (1 - w) base + w tuned in place of the model's moved parameters: at w = `wise`, or where that is None at the
    w of `WISE` that orders the validation pairs best, the largest of equals.

    WiSE-FT (Wortsman et al. 2022). Gives w and the accuracy measured at each w that was tried. The head stays.
    """
    tuned = {name: value for name, value in unfrozen.state().items() if name.startswith("model.")}

    def mixed(w: float) -> dict[str, Tensor]:
        return {name: torch.lerp(base[name], value, w) for name, value in tuned.items()}

    measured: dict[float, float] = {}
    if wise is None:
        for w in WISE:
            with unfrozen.with_weights(mixed(w)):
                measured[w] = accuracy_of(unfrozen, data)
        wise = max(measured, key=lambda w: (measured[w], w))
    elif data.validation is not None:
        with unfrozen.with_weights(mixed(wise)):
            measured[wise] = accuracy_of(unfrozen, data)
    unfrozen.load(mixed(wise))
    return wise, measured


def _optimizer(unfrozen: Unfrozen, config: UnfreezeConfig) -> torch.optim.Optimizer:
    kind = config.optimizer or parse_mode(config.mode).optimizer
    trained = unfrozen.trained()
    model = [parameter for name, parameter in trained.items() if name.startswith("model.")]
    head = [parameter for name, parameter in trained.items() if name.startswith("head.")]
    # AdamW without decay is Adam.
    groups = [(model, config.learning_rate, config.weight_decay if kind == "adamw" else 0.0)]
    groups += [([p for p in head if p.ndim >= 2], config.head_learning_rate, config.head_weight_decay)]
    groups += [([p for p in head if p.ndim < 2], config.head_learning_rate, 0.0)]
    return torch.optim.AdamW(
        [{"params": p, "lr": rate, "highest": rate, "weight_decay": decay} for p, rate, decay in groups if p],
        fused=True,
    )


def _factor(step: int, steps: int, config: UnfreezeConfig) -> float:
    """The learning rate's factor at a step: a straight rise, then constant, or half a cosine down to zero."""
    rise = round(config.warmup * steps)
    if step < rise:
        return (step + 1) / rise
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _share(config: UnfreezeConfig, examples: Examples, part: np.ndarray, batch: np.ndarray) -> float:
    """What a part's loss counts in its batch's, so that sums and means over examples come out the same."""
    if config.of(config.loss).get("reduction") == "sum":
        return 1.0
    if isinstance(examples, Pairs) and config.loss.startswith("preference"):
        return float(examples.weight[part].sum() / examples.weight[batch].sum())
    return len(part) / len(batch)
