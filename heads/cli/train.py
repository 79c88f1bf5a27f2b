"""`python -m heads train`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from embed.cli.arguments import Argument, arguments_of
from embed.cli.console import progress, table
from embed.config import Overwriting
from embed.devices import resolve_device
from embed.files import require_out
from embed.options import Only, Range, metadata, require_value
from embed.spec import InputError
from embed.wording import unknown_name
from heads.cli.common import (
    HeadTraining,
    LabelOptions,
    accuracy_lines,
    configs,
    content_ids,
    per_table,
    suggest_uses,
    tensorboard,
)
from heads.config import (
    PICKSCORE_PROMPTS,
    STEPPED,
    Choice,
    HeadConfig,
    Kind,
    Protocol,
    SplitConfig,
    TrainConfig,
    require_use,
)
from heads.tracking.tracker import Tracker, require_tracker, tracking

if TYPE_CHECKING:
    from embed.cache.store import Cache
    from heads.data.comparisons import Labels
    from heads.data.features import Features
    from heads.evaluation.evaluate import Accuracies
    from heads.training.checkpoint import Checkpoints
    from heads.training.folds import Task, TrainedHeads

DEVICES = ("cpu", "cuda")  # that heads are trained on
TOLD_APART = 0.05  # half an interval's width, above which heads that differ are seldom told apart
IN_FILES = ("head", "loss", "shape", "training")  # parameters of `train` whose options a file may hold


@dataclass(frozen=True)
class Tables:
    """What is trained on."""

    data: tuple[str, ...]
    """A table of labels: parquet, csv, json or json lines, or a pattern of its shards in quotes. The first is held
    out from and measured, others only teach."""
    weights: str | None = None
    """How much the loss of each --data counts, with commas between the numbers: W,... By default 1 each."""


@dataclass(frozen=True)
class Run:
    """How often a head is trained, and what comes with it."""

    seeds: Annotated[int, Range(1)] = 1
    """Train with this many seeds, and print how far the results differ."""
    split_seeds: Annotated[int, Range(1)] = 1
    """Do everything with this many splits, and print how far the results differ. The head of the first is kept."""
    resume: bool = False
    """Go on where a training with the same options was interrupted."""
    log_dir: Path | None = None
    """Write the curves of training to this folder, for TensorBoard."""
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
    """Train a head on the vectors of a cache, and evaluate it on what was held out.

    Example:
        plaudit heads train cache --data likes.csv --out head

    Args:
        cache: A folder made by `python -m embed cache`.
        out: The folder to write the head to.
        head: The head. By default auto: blend for tables of up to 20,000 rows, fusion for larger ones, and the first
            head that reads all other options given.
        loss: The loss. By default preference, for any table; ranking and listwise are for ranked groups, rating is for
            ratings, or the log rate of counts, and triplet and preference-inbatch are for the head cosine and pairs of
            pictures under one prompt. If there are several tables, one for all, or one each with commas between them.
        config: A file with these options of the head, the loss and the training, as `python -m heads sweep` writes it.
            Options on the command line go before those in the file.
        split: Hold out PickScore's way: one comparison of each of some prompts of different users (column user_id), of
            which one half chooses the epoch and the other is measured.
    """
    import numpy as np

    from embed.cache.store import Cache
    from heads.data.split import small_folds, split_report, split_rows
    from heads.store.disk import save_head
    from heads.training.checkpoint import Checkpoints
    from heads.training.folds import OtherTable, Task

    require_out(out, "head", overwriting.overwrite)
    require_tracker(run.tracker)
    resolve_device(where.device, DEVICES)
    opened = Cache.open(cache)
    split_config = _split_config(splitting, split)
    named = {name: value for name, value in (("head", head), ("loss", loss)) if value is not None}
    options = _chosen_options(config, named | shape.keywords | training.keywords)
    losses, weights = per_table(str(options.get("loss", "preference")), tables.weights, len(tables.data))
    (measured, *more), features = labels.met(opened, tables.data)
    options, lines = chosen_head({**options, "loss": losses[0]}, [measured, *more], features, losses, where.min_ratio)
    head_config, train_config = configs(options, split_config.seed, features)
    require_use(train_config, losses)
    where.require_use([measured, *more], losses, keeps_aside=head_config.kind in STEPPED)
    others = [OtherTable(*other) for other in zip(more, losses[1:], weights[1:], strict=True)]
    if split is None and not {"folds", "test_fraction"} & set(splitting.keywords):
        split_config = small_folds(measured, split_config)
    rows = split_rows(measured, split_config)
    described = split_report(measured, rows, split_config, opened)
    task = Task(measured, features, rows, head_config, train_config, where.min_ratio, others, where.device)
    checkpoints = Checkpoints(Path(f"{out}.checkpoints"), _identity(opened, task, described))
    if not run.resume:
        checkpoints.clear()
    with tracking(run.tracker, out.name) as tracker:
        tracker.parameters({"cache": cache, "data": ", ".join(tables.data), **options, **asdict(train_config)})
        found = _train_seeds(run, task, checkpoints, tracker)
        tracker.figures(found[0][1].to_json())
    trained, accuracies = found[0]
    result = accuracies.to_json()
    lines = [*too_few(accuracies), *lines, *accuracy_lines(accuracies)]
    if run.seeds > 1:
        result["seeds"], of_seeds = _spread("seed", split_config.seed, [one for _, one in found])
        lines += of_seeds
    if run.split_seeds > 1:
        others_found = _train_splits(run, task, split_config)
        result["split_seeds"], of_seeds = _spread("split seed", split_config.seed, [accuracies, *others_found])
        lines += of_seeds
    seen = zip(task.tables, [trained.rows, *trained.other_rows], strict=True)
    ids = content_ids(opened, measured, np.concatenate([table.items[rows].ravel() for table, rows in seen]))
    manifest = _manifest(opened, tables.data, task, trained) | {"split": described, "metrics": result}
    save_head(out, trained.head, trained.fold_heads, ids, manifest, overwriting.overwrite)
    checkpoints.clear()
    print(*lines, f"written to {out}", sep="\n")
    suggest_uses(out, cache, tables.data[0], labels.images_root)
    return {"head": str(out), "split": described, **result}


def too_few(found: "Accuracies") -> list[str]:
    """A line where the interval is too wide to tell a good head from a poor one; none elsewhere."""
    accuracy = found.pair_accuracy
    if not accuracy.high - accuracy.low > 2 * TOLD_APART:  # or there is no interval, which is said with its reason
        return []
    return [
        f"too few rows to tell: {found.pairs} pairs held out put the accuracy anywhere from {accuracy.low:.3f} to"
        f" {accuracy.high:.3f}; give more rows, or see how far --split-seeds 10 differ"
    ]


def _spread(name: str, first: int, found: "Sequence[Accuracies]") -> tuple[dict[str, object], list[str]]:
    """How far the seeds from `first` on differ in pair accuracy, for the document and for people."""
    import numpy as np

    accuracies = [one.pair_accuracy.value for one in found]
    seeds = list(range(first, first + len(accuracies)))
    mean, sd = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    lines = table((name, "pair accuracy"), [(seed, f"{x:.3f}") for seed, x in zip(seeds, accuracies, strict=True)])
    said = f"{mean:.3f} ± {sd:.3f} (standard deviation); kept is the head of {first}"
    return {"seeds": seeds, "pair_accuracy": accuracies, "mean": mean, "sd": sd}, ["", *lines, said]


def _train_splits(run: Run, task: "Task", split_config: SplitConfig) -> "list[Accuracies]":
    """How the heads of all splits but the first were measured."""
    from heads.data.split import split_rows
    from heads.evaluation.evaluate import evaluate
    from heads.training.folds import train_heads

    found = []
    for seed in range(split_config.seed + 1, split_config.seed + run.split_seeds):
        rows = split_rows(task.labels, replace(split_config, seed=seed))
        trained = train_heads(
            replace(task, split=rows, config=replace(task.config, seed=seed), progress=progress), use=False
        )
        found.append(evaluate(task.labels, task.features, trained.scorers, rows, Protocol(seed=seed)))
    return found


def _split_config(given: partial[SplitConfig], split: str | None) -> SplitConfig:
    prompts = given.keywords.get("held_out_prompts")
    if split is None and prompts is not None:
        raise InputError("--held-out-prompts is of --split pickscore; give that too, or leave it out")
    if "test_fraction" in given.keywords and (split or "folds" in given.keywords):
        beside = f"--split {split}" if split else f"--folds {given.keywords['folds']}"
        share = given.keywords["test_fraction"]
        raise InputError(f"--test-fraction {share} would be ignored beside {beside}; leave one of them out")
    return given(held_out_prompts=prompts or PICKSCORE_PROMPTS) if split else given()


def _chosen_options(file: Path | None, given: Mapping[str, Any]) -> dict[str, object]:
    """The options given, on the command line or else in a file. Raise InputError for one that the head ignores."""
    known = {one.place[1] or one.place[0]: one for one in arguments_of(train) if one.place[0] in IN_FILES}
    options = {**(_read_options(file, known) if file else {}), **given}
    head = options.get("head", "auto")
    require_value("head", head, Choice)
    for name, readers in _readers(options).items():
        if head != "auto" and head not in readers:
            raise InputError(f"{name} is of {' and '.join(readers)} and does nothing for the head {head}; leave it out")
    return options


def _readers(options: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """The heads that read each option that is not of all heads, by the option's name."""
    found = {}
    for argument in arguments_of(train):
        only = metadata(argument.hint, Only)
        if only and argument.place[0] in IN_FILES and (argument.place[1] or argument.place[0]) in options:
            found[argument.name] = only.values if only.option == "head" else STEPPED
    return found


def chosen_head(
    options: Mapping[str, object],
    tables: "Sequence[Labels]",
    features: "Features",
    losses: Sequence[str],
    min_ratio: float | None,
) -> tuple[dict[str, object], list[str]]:
    """The options with the head that `auto` stands for, and a line that says which it is."""
    from heads.training.auto import READ_SOURCES, choose_head, reads_sources

    readers = _readers(options)
    sourced = reads_sources(options.get("reads"), tables, features)
    if (named := options.get("head", "auto")) != "auto":
        return {**options, **({"reads": "all"} if sourced and named in READ_SOURCES else {})}, []
    readers |= {"source pictures": READ_SOURCES} if sourced else {}
    if min_ratio is not None:
        readers["--min-ratio"] = tuple(kind for kind in get_args(Kind) if kind != "blend")  # which is fitted to rows
    choice = choose_head(tables, features, losses, readers)
    reads = "all" if sourced else choice.reads
    options = {**options, "head": choice.head, **({"reads": reads} if reads else {})}
    return options, [f"auto: {choice.head} ({choice.why})"]


def _read_options(file: Path, known: Mapping[str, Argument]) -> dict[str, object]:
    """The options that a file holds, by name."""
    try:
        options = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is no file of options ({error})") from None
    if not isinstance(options, dict):
        raise InputError(f"{file} is no file of options; wanted an object such as {{'head': 'fusion', 'hidden': 64}}")
    for name, value in options.items():
        if name not in known:
            raise unknown_name(f"option in {file}:", name, known)
        numbers: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float)}
        if type(value) not in numbers.get(known[name].type, (str,)):
            raise InputError(f"{file} is no file of options ({name} is {value!r})")
        require_value(f"{name} in {file}", value, known[name].hint)
    return options


def _train_seeds(
    run: Run, task: "Task", checkpoints: "Checkpoints", tracker: Tracker
) -> "list[tuple[TrainedHeads, Accuracies]]":
    """The heads of each seed, and how they were measured."""
    from heads.evaluation.evaluate import evaluate
    from heads.training.folds import train_heads

    found, protocol = [], Protocol(seed=task.config.seed)
    for seed in range(task.config.seed, task.config.seed + run.seeds):
        with tensorboard(run.log_dir and run.log_dir / f"seed-{seed}") as curves:
            observe = tracker.beside(curves, f"seed-{seed}")
            config, saved = replace(task.config, seed=seed), checkpoints.part(f"seed-{seed}")
            trained = train_heads(replace(task, config=config, observe=observe, checkpoints=saved, progress=progress))
        found.append((trained, evaluate(task.labels, task.features, trained.scorers, task.split, protocol)))
    return found


def _manifest(cache: "Cache", paths: Sequence[str], task: "Task", trained: "TrainedHeads") -> dict[str, object]:
    """What head.json says of a training; its split and its figures come beside."""
    import torch

    from heads.evaluation.evaluate import calibrate
    from heads.training.committees import committee_of

    committee = committee_of(trained, task)
    found = {"min_ratio": task.min_ratio, "chosen": trained.chosen, "history": trained.histories[0]}
    protocol = Protocol(seed=task.config.seed)
    return {
        "head": asdict(task.head_config),
        "identity": cache.identity.to_json(),
        "source": asdict(cache.source),
        "decoding": cache.decoding[-1] if cache.scale else None,
        "training": {**asdict(task.config), **found},
        "data": task.labels.described(paths[0]),
        "other_data": [
            {**other.labels.described(path), "loss": other.loss, "weight": other.weight, "used": len(seen)}
            for path, other, seen in zip(paths[1:], task.others, trained.other_rows, strict=True)
        ],
        "calibration": calibrate(task.labels, task.features, trained.scorers, task.split, protocol),
        "committee": committee and committee.alignment,
        "versions": {"torch": torch.__version__},
    }


def _identity(cache: "Cache", task: "Task", splitting: dict[str, Any]) -> str:
    """A hash of everything that decides what a training comes to."""
    import hashlib

    losses = [task.config.loss, *(other.loss for other in task.others)]
    weights = [1.0, *(other.weight for other in task.others)]
    options = [asdict(task.head_config), asdict(task.config), losses, weights, task.min_ratio, task.device]
    facts = [cache.identity.to_json(), [splitting, *options]]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for labels in task.tables:
        sources = [] if labels.source is None else [labels.source]
        for values in (labels.image, labels.prompt, labels.items, *labels.values.values(), *sources):
            digest.update(values.tobytes())
    return digest.hexdigest()
