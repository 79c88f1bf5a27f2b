"""Train an unfrozen backbone, and take the mean of tuned and original weights."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from embed.arrays import Ints
from embed.backbones.backbone import weights_hash
from embed.modes import parse_mode
from embed.progress import Progress, silent, stage
from embed.spec import InputError
from heads.config import UnfreezeConfig
from heads.data.comparisons import Pairs
from heads.metrics import pair_credit, ranked_pairs
from heads.training.checkpoint import Checkpoints
from heads.training.loop import Batch, Diverged, Loop, copy_of, decay_groups, load, rates, replaced
from heads.training.objectives import OBJECTIVES, Examples, Groups, require_head
from heads.training.train import score_items
from heads.unfreeze.model import Unfrozen

# Pairs for each row in an epoch. 590 rows with counts have 173,755 pairs: 5,430 steps, in which the blocks would run on
# each picture some 590 times. Groups of up to 17 pictures have no more pairs than this.
PAIRS_PER_ROW = 8


@dataclass(frozen=True)
class Data:
    """The data of a training: examples over items, and the items' cache rows `image` and `prompt` (n,)."""

    image: Ints
    prompt: Ints
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


def train(
    unfrozen: Unfrozen,
    data: Data,
    config: UnfreezeConfig,
    folder: Path | None = None,
    on_step: Callable[[Loop], None] = lambda loop: None,
    progress: Progress = silent,
) -> Loop:
    """Train to the end, from the state in `folder` if there is one. The weights of the best epoch are then in place,
    possibly the initial ones (epoch 0). Without validation they are those of the last epoch.

    Returns the loop, whose history has one record for each epoch, with the initial state first. `on_step` is called
    after every step.
    """
    loop = new_loop(unfrozen, data, config, folder)
    with progress(loop.epoch_steps * config.epochs, "step", "unfreezing") as step:
        step(loop.step)

        def after(loop: Loop) -> None:
            on_step(loop)
            step()

        if not loop.history:
            loop.record_epoch()
        loop.run(config.epochs, after)
    return loop


def new_loop(unfrozen: Unfrozen, data: Data, config: UnfreezeConfig, folder: Path | None = None) -> Loop:
    """The loop that `train` runs, at its first step or at the step that was saved in `folder`.

    The order of the examples and the randomness of dropout depend only on the seed and the step.
    """
    require_head(config.loss, unfrozen.head)
    if len(data.train) == 0:
        raise InputError("nothing to train on: 0 examples; give more rows, or hold out less")
    weights = unfrozen.trained()
    epoch_size = _epoch_size(data.train, config)
    epoch_steps = math.ceil(epoch_size / config.batch_size)
    steps = epoch_steps * config.epochs

    def batches(epoch: int) -> Sequence[Batch]:
        order = np.random.default_rng([config.seed, epoch]).permutation(len(data.train))[:epoch_size]
        return [(order[start : start + config.batch_size],) for start in range(0, len(order), config.batch_size)]

    def losses(step: int, batch: Batch) -> Iterator[Tensor]:
        (numbers,) = batch
        unfrozen.head.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([config.seed, step]).generate_state(1)[0]))
            for part in np.array_split(numbers, min(config.accumulate, len(numbers))):
                yield loss_of(unfrozen, data, config, part) * _share(config, data.train, part, numbers)
        unfrozen.ranks.average_gradients(weights.values())

    return Loop(
        weights=weights,
        optimizer=_optimizer(weights, config),
        rate=rates(steps, round(config.warmup * steps), config.schedule),
        epoch_steps=epoch_steps,
        batches=batches,
        units=[OBJECTIVES[config.loss].unit],
        losses=losses,
        validate=None if data.validation is None else lambda: accuracy_of(unfrozen, data),
        max_grad_norm=config.max_grad_norm,
        ema=config.ema,
        checkpoints=None if folder is None else _checkpoints(unfrozen, data, config, folder),
    )


def _epoch_size(examples: Examples, config: UnfreezeConfig) -> int:
    size = config.epoch_size
    if size is None and isinstance(examples, Pairs):
        size = PAIRS_PER_ROW * len(np.unique([examples.row_a, examples.row_b]))
    return min(len(examples), size or len(examples))


def loss_of(unfrozen: Unfrozen, data: Data, config: UnfreezeConfig, numbers: Ints) -> Tensor:
    """The loss of the training examples with these numbers, with gradients."""
    features, examples = unfrozen.local(data.image, data.prompt, data.train.take(numbers))
    return OBJECTIVES[config.loss].loss(unfrozen.head, features, examples, np.arange(len(examples)), config)


def _checkpoints(unfrozen: Unfrozen, data: Data, config: UnfreezeConfig, folder: Path) -> Checkpoints:
    facts = [asdict(config), data.fingerprint(), weights_hash(unfrozen.moved)]
    return Checkpoints(folder, json.dumps(facts), math.inf if unfrozen.ranks.rank else None)


def accuracy_of(unfrozen: Unfrozen, data: Data) -> float:
    """The weighted share of validation pairs that are ordered as people did. Equal scores count half; labelled ties are
    left out."""
    pairs = data.validation
    assert pairs is not None
    items = np.unique([pairs.a, pairs.b])
    features = unfrozen.features(data.image[items], data.prompt[items])
    scores = score_items(unfrozen.head, features.to(unfrozen.device))
    a, b = np.searchsorted(items, pairs.a), np.searchsorted(items, pairs.b)
    if not np.isfinite(scores).all():
        raise Diverged("the scores of the validation pairs are not finite any more; lower --learning-rate")
    credit = pair_credit(scores[a], scores[b], pairs.target)
    decided = ~np.isnan(credit)
    if not decided.any():
        raise InputError("no validation pair has a winner; hold out other rows")
    # A soft target near a tie hardly tells which picture is better.
    weight = (pairs.weight * np.abs(2 * pairs.target - 1))[decided]
    return float(np.average(credit[decided], weights=weight))


WISE = tuple(round(0.1 * i, 1) for i in range(11))


@stage("choosing the share of the tuned weights")
def interpolate(
    unfrozen: Unfrozen, data: Data, base: dict[str, Tensor], wise: float | None
) -> tuple[float, dict[float, float]]:
    """Replace the unfrozen parameters by (1 - w) base + w tuned. w is `wise`, or with None the w of `WISE` that orders
    the validation pairs best, the largest of equals.

    WiSE-FT (Wortsman et al. 2022). Gives w and the accuracies of all w that were tried. The head does not change.
    """
    weights = {name: weight for name, weight in unfrozen.trained().items() if name.startswith("model.")}
    tuned = copy_of(weights)

    def mixed(w: float) -> dict[str, Tensor]:
        return {name: torch.lerp(base[name], value, w) for name, value in tuned.items()}

    measured: dict[float, float] = {}
    if wise is None:
        for w in WISE:
            with replaced(weights, mixed(w)):
                measured[w] = accuracy_of(unfrozen, data)
        wise = max(measured, key=lambda w: (measured[w], w))
    elif data.validation is not None:
        with replaced(weights, mixed(wise)):
            measured[wise] = accuracy_of(unfrozen, data)
    load(weights, mixed(wise))
    return wise, measured


def _optimizer(weights: Mapping[str, nn.Parameter], config: UnfreezeConfig) -> torch.optim.Optimizer:
    kind = config.optimizer or parse_mode(config.mode).optimizer
    model = [weight for name, weight in weights.items() if name.startswith("model.")]
    head = decay_groups((weights[name] for name in weights if name.startswith("head.")), config.head_weight_decay)
    # AdamW without weight decay is Adam.
    return torch.optim.AdamW(
        [
            {"params": model, "weight_decay": config.weight_decay if kind == "adamw" else 0.0},
            *({**group, "lr": config.head_learning_rate} for group in head),
        ],
        lr=config.learning_rate,
        fused=True,
    )


def _share(config: UnfreezeConfig, examples: Examples, part: Ints, batch: Ints) -> float:
    """The weight of a part's loss in the loss of its batch, so that the result is the same as without parts."""
    if config.reduction == "sum":
        return 1.0
    if isinstance(examples, Pairs) and config.loss.startswith("preference"):
        return float(examples.weight[part].sum() / examples.weight[batch].sum())
    whole, own = examples.take(batch), examples.take(part)
    if isinstance(whole, Groups) and isinstance(own, Groups) and config.loss == "ranking":
        return ranked_pairs_of(own) / max(1, ranked_pairs_of(whole))  # the loss is a mean over such pairs
    return len(part) / len(batch)


def ranked_pairs_of(groups: Groups) -> int:
    """The number of pairs within groups whose ranks differ."""
    return len(ranked_pairs(np.repeat(np.arange(len(groups)), np.diff(groups.start)), groups.rank)[0])
