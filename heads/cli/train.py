"""`python -m heads train`."""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from embed.cli.console import progress
from embed.config import Overwriting
from embed.files import require_out
from embed.options import Range
from embed.spec import InputError
from heads.api.options import HeadTraining, LabelOptions
from heads.cli.common import require_inputs, suggest_uses, tensorboard
from heads.config import Choice, HeadConfig, SplitConfig, TrainConfig
from heads.tracking.tracker import require_tracker, tracking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from heads.training.folds import Observer


@dataclass(frozen=True)
class Tables:
    """The tables to train on."""

    data: tuple[str, ...]
    """A table of labels: parquet, csv, json or json lines, or a pattern of its shards in quotes. Only the first has
    rows held out and measured; all of them train the head."""
    weights: str | None = None
    """The weight of each --data in the loss, as numbers with commas between them: W,... By default 1 each."""


@dataclass(frozen=True)
class Run:
    """How often a head is trained, and what is recorded."""

    seeds: Annotated[int, Range(1)] = 1
    """Train with this many seeds, and print how far the results differ."""
    split_seeds: Annotated[int, Range(1)] = 1
    """Train and measure with this many splits, and print how far the results differ. The head of the first split is
    kept."""
    resume: bool = False
    """Continue an interrupted training with the same options."""
    log_dir: Path | None = None
    """Write the training curves to this folder, for TensorBoard."""
    tracker: str | None = None
    """Send options, curves and figures to a tracker: tensorboard:FOLDER, mlflow[:URI] or wandb[:PROJECT]."""


def train(
    cache: str,
    /,
    *,
    tables: Tables,
    labels: LabelOptions,
    out: Path,
    overwriting: Overwriting,
    head: Choice | None = None,
    loss: str | None = None,
    shape: partial[HeadConfig],
    training: partial[TrainConfig],
    config: Path | None = None,
    splitting: partial[SplitConfig],
    split: Literal["pickscore"] | None = None,
    where: HeadTraining,
    run: Run,
) -> dict[str, object]:
    """Train a head on the vectors of a cache, and evaluate it on the held-out rows.

    Example:
        plaudit heads train cache --data likes.csv --out head

    Args:
        cache: A folder made by `python -m embed cache`.
        out: The folder to write the head to.
        head: The head. By default auto: blend for tables of up to 20,000 rows and fusion for larger ones, or the first
            head that reads all other options given.
        loss: The loss. By default preference, for any table. Ranking and listwise are for ranked groups, rating is for
            ratings or the log rate of counts, and triplet and preference-inbatch are for the head cosine and pairs of
            pictures under one prompt. For several tables give one for all, or one each with commas between them.
        config: A file with options of the head, the loss and the training, as `python -m heads sweep` writes it.
            Options on the command line override those in the file.
        split: Hold out rows as PickScore does: one comparison for each of some prompts by different users (column
            user_id). One half of these chooses the epoch, and the other half is measured.
    """
    require_out(out, "head", overwriting.overwrite)
    require_tracker(run.tracker)
    require_inputs(labels, tables.data, cache)
    from heads.api.training import Plan, train_head

    named = {name: value for name, value in (("head", head), ("loss", loss)) if value is not None}
    plan = Plan(
        labels=labels,
        options=named | shape.keywords | training.keywords,
        config=config,
        weights=parse_weights(tables.weights),
        splitting=splitting.keywords,
        split=split,
        where=where,
        seeds=run.seeds,
        split_seeds=run.split_seeds,
        resume=run.resume,
        overwrite=overwriting.overwrite,
    )

    with tracking(run.tracker, out.name) as tracker:
        tracker.parameters({"cache": cache, "data": ", ".join(tables.data), **plan.options, **plan.splitting})

        @contextmanager
        def observing(name: str) -> "Iterator[Observer | None]":
            with tensorboard(run.log_dir and run.log_dir / name) as curves:
                yield tracker.beside(curves, name)

        found = train_head(cache, tables.data, out, plan, progress, observing)
        tracker.figures(found.accuracies.to_json())
        tracker.files(out, "head.json")
    print(found)
    suggest_uses(out, cache, tables.data[0], labels)
    return found.document


def parse_weights(text: str | None) -> list[float] | None:
    """The numbers of a comma-separated text. Raise InputError for anything that is not a number."""
    try:
        return [float(number) for number in text.split(",")] if text else None
    except ValueError:
        raise InputError(f"--weights is {text!r}; wanted numbers and commas, such as 1,0.5") from None
