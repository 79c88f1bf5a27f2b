"""The functions `plaudit.train` and `plaudit.evaluate`. They do what the commands of these names do, and also take
tables from memory."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast

from embed.options import require_valid
from embed.progress import Progress, silent
from embed.records.sources import TableSource
from embed.spec import InputError
from heads.api.measuring import evaluate_head
from heads.api.options import Asked, HeadTraining, LabelOptions, PathLike, RowOptions
from heads.api.results import Evaluation, Trained
from heads.api.training import Plan, train_head
from heads.config import Distance, Reduction


class HeadOptions(TypedDict, total=False):
    """Options of a head, its loss and its training: the fields of heads.config.HeadConfig and TrainConfig, where each
    is described."""

    hidden: int
    dropout: float
    input_dropout: float
    reads: Literal["both", "image", "text", "all"]
    activations: bool
    landmarks: int
    distance: Distance | None
    margin: float | None
    reduction: Reduction | None
    learning_rate: float
    weight_decay: float
    batch_size: int | None
    epochs: int | None
    patience: int | None
    penalty: float | None
    bf16: bool


def train(
    cache: PathLike,
    data: TableSource | Sequence[TableSource],
    out: PathLike,
    *,
    head: Literal["auto", "cosine", "linear", "mlp", "fusion", "kernel", "blend"] = "auto",
    loss: str = "preference",
    images_root: PathLike | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_missing: float = 0.01,
    weights: Sequence[float] | None = None,
    split_by: str | None = None,
    folds: int | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    min_ratio: float | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress = silent,
    **options: Unpack[HeadOptions],
) -> Trained:
    """Train a head on the vectors of a cache, measure it on what was held out, and write it.

    Args:
        cache: What `embed` gave, or the path of a cache.
        data: The table of labels: a path, a frame of pandas or polars, or a table of Arrow. Of several tables only the
            first has rows held out and measured; all of them train the head.
        out: The folder to write the head to.
        head: The head. With auto it is blend for tables of up to 20,000 rows and fusion for larger ones, or the first
            head that reads all other options given.
        loss: The loss. `plaudit heads train --help` lists the losses at --loss.
        images_root: The folder or URL where relative paths of pictures start. By default the table's own folder.
        format: The format of the tables. By default it is recognised by their columns.
        columns: The tables' own names of the columns, {ours: theirs}.
        max_missing: The share of rows whose pictures or prompts may be missing from the cache.
        weights: The weight of each table's loss. By default 1 each.
        split_by: The column to split by: rows with the same value stay together.
        folds: Divide the groups into this many parts, and hold out each part once.
        test_fraction: The share of the groups to hold out, if the table is not divided into folds.
        seed: The seed of everything random.
        min_ratio: Train only on pairs in which one count is at least this many times the other.
        device: The device to train on: cpu or cuda.
        overwrite: Replace a head that is already in `out`, once the new one is complete.
        progress: Called with the progress of the work.
        options: Options of the head and its training, such as `hidden=64` or `epochs=10`.

    Raise InputError for tables or options that cannot be used.
    """
    given = {"by": split_by, "folds": folds, "test_fraction": test_fraction}
    splitting = {name: value for name, value in given.items() if value is not None} | {"seed": seed}
    chosen = {"loss": loss, **({} if head == "auto" else {"head": head}), **options}
    where = HeadTraining(min_ratio, device)
    require_valid(where)
    labels = LabelOptions(**_reading(images_root, format, columns), max_missing=max_missing)
    require_valid(labels)
    plan = Plan(labels=labels, options=chosen, weights=weights, splitting=splitting, where=where, overwrite=overwrite)
    tables = list(data) if isinstance(data, list | tuple) else [cast(TableSource, data)]
    return train_head(cache, tables, Path(out), plan, progress)


def evaluate(
    head: Trained | PathLike,
    cache: PathLike | None = None,
    data: TableSource | None = None,
    *,
    images_root: PathLike | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_missing: float = 0.01,
    all_rows: bool = False,
    strict: bool = False,
    min_ratio: float | None = None,
    baselines: bool = False,
    uncertainty: bool = False,
    prior_by: str | None = None,
    slice_by: str | None = None,
    report: PathLike | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a head on the part that was held out from it, or on a table that it has not seen.

    Args:
        head: What `train` gave, or the path of a head.
        cache: The cache with the vectors of the table. By default the one that `train` was given.
        data: The table: a path, a frame of pandas or polars, or a table of Arrow. By default the one that `train` was
            given, read in the same way.
        images_root: The folder or URL where relative paths of pictures start. By default the table's own folder.
        format: The format of the table. By default it is recognised by its columns.
        columns: The table's own names of the columns, {ours: theirs}.
        max_missing: The share of rows whose pictures or prompts may be missing from the cache.
        all_rows: Score every row, even those that the head was trained on.
        strict: Refuse a table that shares pictures with training.
        min_ratio: Two pictures of a table of counts make a pair if one count is at least this many times the other.
        baselines: Also train the same head without prompts, and without pictures, to compare with.
        uncertainty: Measure whether pairs are ordered right more often if the head is surer of them.
        prior_by: The column of the prior: a guess that a picture is liked as much as the training pictures with the
            same value in this column.
        slice_by: Also measure pair accuracy separately for each value of this column.
        report: Write a page with plots and pictures to this .html file.
        progress: Called with the progress of the work.

    Raise InputError for a table that cannot be used, or if `head` is a path and cache or table is missing.
    """
    reading = _reading(images_root, format, columns)
    options = RowOptions(**reading, max_missing=max_missing, all=all_rows, strict=strict)
    if isinstance(head, Trained):
        cache = head.cache if cache is None else cache
        if data is None:
            data, own = head.data, {**vars(head.labels), **{k: v for k, v in reading.items() if v}}
            options = RowOptions(**own, all=all_rows, strict=strict)
    if cache is None or data is None:
        raise InputError(f"{os.fspath(head)} is the path of a head; give its cache and a table too")
    require_valid(options)
    page = None if report is None else Path(report)
    asked = Asked(baselines, uncertainty, prior_by, slice_by, all_metrics=False, report=page)
    protocol = {} if min_ratio is None else {"min_ratio": min_ratio}
    return evaluate_head(head, cache, data, options, protocol, asked, progress)


def _reading(images_root: PathLike | None, format: str | None, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """The fields of embed.config.TableConfig."""
    root = None if images_root is None else os.fspath(images_root)
    return {"format": format, "columns": dict(columns or {}), "images_root": root}
