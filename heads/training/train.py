"""Train a head on frozen embeddings: all data in memory, batches by gather, the best epoch kept.

Takes features and examples, and gives a trained head and its history. Knows no table and no format.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from embed.arrays import Float32s, Ints
from embed.progress import Progress, silent
from embed.spec import InputError
from heads.config import TrainConfig
from heads.data.comparisons import Pairs, expected_accuracy
from heads.data.features import Features
from heads.models import Head
from heads.training.checkpoint import Checkpoints
from heads.training.loop import Batch, Loop, decay_groups, rates
from heads.training.objectives import OBJECTIVES, Examples, Part, Ratings, items_of, require_head

LOSS_EXAMPLES = 2048  # number of examples that tell whether training changed the loss
PREPARE_ITEMS = 50_000  # the most items for a head's means; all of a million would not fit in memory

Observer = Callable[[int, dict[str, float]], None]  # called with each epoch's record at its end


@torch.no_grad()
def score_items(head: Head, features: Features, items: Ints | None = None, batch_size: int = 16384) -> Float32s:
    """(n,) scores of the given items, or of all items."""
    head.eval()
    chosen = torch.arange(len(features.image)) if items is None else torch.from_numpy(items)
    parts = [head(**features.take(part, head.inputs)).cpu() for part in torch.split(chosen, batch_size)]
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
    progress: Progress = silent,
) -> list[dict[str, float]]:
    """Train `head` in place on `train`. It keeps the weights of its best epoch on `validation`, or those of its last
    epoch without validation. `epochs` ends training early, without a change of the learning rate's schedule.

    `train` holds the examples of `config.loss`, or the parts of several tables, whose weighted losses are added; every
    batch then has the same share of each table. Head and features must be on the same device. With `checkpoints`, an
    interrupted training continues at the saved step and, on a CPU, gives the same bytes.

    Ratings are standardised before training, and the head is scaled back afterwards.

    Returns one record for each epoch: train_loss, validation_accuracy (NaN without validation), learning_rate, and
    idle_batches (the number of batches with a loss of 0). The last record also has untrained_loss and trained_loss,
    without dropout. Raise Diverged with the step and the batch if the loss is not finite.
    """
    parts = [Part(config.loss, train, options=config)] if isinstance(train, Examples) else list(train)
    for part in parts:
        require_head(part.loss, head)
    require_examples(parts, validation)
    items = items_of_parts(parts)
    items = items[:: math.ceil(len(items) / PREPARE_ITEMS)]
    head.prepare(**features.take(torch.from_numpy(items), head.inputs))
    config = config.sized(sum(len(part.examples) for part in parts))
    epochs = epochs or config.epochs or 0
    parts, gain, offset = standardised(parts)
    untrained = _mean_loss(head, features, parts)
    loop = _loop(head, features, parts, validation, config, checkpoints)
    with progress(epochs, "epoch", "training") as step:
        step(len(loop.history))

        def on_step(loop: Loop) -> None:
            if loop.between_epochs:
                step()
                if observe:
                    observe(len(loop.history) - 1, loop.history[-1])

        loop.run(epochs, on_step)
    loop.history[-1] |= {"untrained_loss": untrained, "trained_loss": _mean_loss(head, features, parts)}
    head.rescale(gain, offset)
    head.eval()
    return loop.history


def standardised(parts: Sequence[Part]) -> tuple[list[Part], float, float]:
    """The parts with ratings of mean 0, and the gain and offset that turn scores back. If all parts are ratings, they
    also get a standard deviation of 1, because a network starts with scores near 0 that differ by about as much."""
    ratings = [part.examples.rating for part in parts if isinstance(part.examples, Ratings)]
    if not ratings:
        return list(parts), 1.0, 0.0
    every = np.concatenate(ratings).astype(np.float64)
    offset = float(every.mean())
    gain = float(every.std()) if len(ratings) == len(parts) else 1.0
    gain = gain if gain > 0 and math.isfinite(gain) else 1.0
    moved = []
    for part in parts:
        examples = part.examples
        if isinstance(examples, Ratings):
            examples = replace(examples, rating=((examples.rating - offset) / gain).astype(np.float32))
        moved.append(replace(part, examples=examples))
    return moved, gain, offset


@torch.no_grad()
def _mean_loss(head: Head, features: Features, parts: Sequence[Part]) -> float:
    """The mean loss of some of the examples, without dropout."""
    head.eval()
    losses = []
    for part in parts:
        some = np.unique(np.linspace(0, len(part.examples) - 1, LOSS_EXAMPLES).astype(np.int64))
        if len(part.examples):
            loss = OBJECTIVES[part.loss].loss(head, features, part.examples, some, part.options)
            losses.append(part.weight * float(loss))
    return sum(losses)


def _loop(
    head: Head,
    features: Features,
    parts: Sequence[Part],
    validation: Pairs | None,
    config: TrainConfig,
    checkpoints: Checkpoints | None,
) -> Loop:
    sizes = [len(part.examples) for part in parts]
    assert config.batch_size and config.epochs and config.patience  # see `TrainConfig.sized`
    steps = min(math.ceil(sum(sizes) / config.batch_size), max(sizes))

    def batches(epoch: int) -> Sequence[Batch]:
        return list(zip(*(np.array_split(_order(part, features), steps) for part in parts), strict=True))

    def losses(step: int, batch: Batch) -> Iterator[Tensor]:
        head.train()
        terms = [
            part.weight * OBJECTIVES[part.loss].loss(head, features, part.examples, numbers, part.options)
            for part, numbers in zip(parts, batch, strict=True)
            if len(numbers)
        ]
        yield torch.stack(terms).sum()

    return Loop(
        weights=dict(head.named_parameters()),
        optimizer=_optimizer(head, config),
        rate=rates(steps * config.epochs, max(1, round(config.warmup * steps * config.epochs))),
        epoch_steps=steps,
        batches=batches,
        units=[OBJECTIVES[part.loss].unit for part in parts],
        losses=losses,
        validate=None if validation is None else lambda: validation_accuracy(head, features, validation),
        patience=config.patience,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        checkpoints=checkpoints,
    )


def _optimizer(head: Head, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW. On CUDA it is fused into one kernel for all weights. Elsewhere it is not, so that heads stay the same to
    the bit."""
    fused = True if next(head.parameters()).device.type == "cuda" else None
    return torch.optim.AdamW(decay_groups(head.parameters(), config.weight_decay), lr=config.learning_rate, fused=fused)


def _order(part: Part, features: Features) -> Ints:
    """(n,) the examples in a new random order, prompt by prompt if both sides of every pair share their prompt.

    The pairs of a prompt share its pictures, which are then scored once per batch and not once per pair. In-batch
    negatives need the opposite: as many different prompts as possible.
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


def items_of_parts(parts: Sequence[Part]) -> Ints:
    """The different items among the examples of all parts."""
    return np.unique(np.concatenate([items_of(part.examples) for part in parts]))


def require_examples(parts: Sequence[Part], validation: Pairs | None) -> None:
    """Raise InputError if there is nothing to train on, or nothing to validate with."""
    if not any(len(part.examples) for part in parts) or (validation is not None and len(validation) == 0):
        counts = " and ".join(f"{len(part.examples)} {OBJECTIVES[part.loss].unit}" for part in parts)
        raise InputError(
            f"nothing to train on: {counts} for training, {len(validation or ())} pairs for validation;"
            " give more rows, or hold out less"
        )


def validation_accuracy(head: Head, features: Features, pairs: Pairs) -> float:
    """The accuracy that chooses the epoch. As in PickScore it is not the loss: with few rows the loss rises with a
    head's confidence while its order still improves."""
    items = items_of(pairs)
    scores = score_items(head, features, items)
    return expected_accuracy(scores[np.searchsorted(items, pairs.a)], scores[np.searchsorted(items, pairs.b)], pairs)
