"""Train a head on a cache and tables and write it, for `heads train` and `plaudit.train`."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from embed.arrays import Ints
from embed.cache.store import Cache
from embed.devices import resolve_device
from embed.files import require_out
from embed.progress import Progress, silent
from embed.records.sources import TableSource
from embed.wording import table
from heads.api.choices import chosen_head, chosen_options, configs, per_table, split_config
from heads.api.lines import accuracy_lines, too_few
from heads.api.options import HeadTraining, LabelOptions, PathLike
from heads.api.results import Trained
from heads.config import STEPPED, Protocol, SplitConfig, require_use
from heads.data.comparisons import Labels
from heads.data.split import small_folds, split_report, split_rows
from heads.evaluation.evaluate import Accuracies, calibrate, evaluate
from heads.evaluation.fold_noise import fold_noise
from heads.evaluation.measured import measure_pairs
from heads.store.disk import save_head
from heads.training.checkpoint import Checkpoints
from heads.training.committees import committee_of
from heads.training.folds import Observer, OtherTable, Task, TrainedHeads, train_heads

DEVICES = ("cpu", "cuda")  # the devices that heads can be trained on
Observing: TypeAlias = Callable[[str], AbstractContextManager[Observer | None]]  # takes the name of a training


def unobserved(name: str) -> AbstractContextManager[Observer | None]:
    """A context that gives no observer."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a training apart from its cache and tables. `options` and `splitting` hold only what was
    given."""

    labels: LabelOptions = field(default_factory=LabelOptions)
    options: Mapping[str, object] = field(default_factory=dict)  # of the head, the loss and the training, by name
    config: Path | None = None  # a file with such options
    weights: Sequence[float] | None = None  # one for each table
    splitting: Mapping[str, Any] = field(default_factory=dict)  # fields of SplitConfig
    split: Literal["pickscore"] | None = None
    where: HeadTraining = field(default_factory=HeadTraining)
    seeds: int = 1
    split_seeds: int = 1
    resume: bool = False
    overwrite: bool = False


def train_head(
    cache: PathLike,
    tables: Sequence[TableSource],
    out: Path,
    plan: Plan,
    progress: Progress = silent,
    observing: Observing = unobserved,
) -> Trained:
    """Train a head on the vectors of a cache, measure it on the held-out rows of the first table, and write it."""
    require_out(out, "head", plan.overwrite)
    resolve_device(plan.where.device, DEVICES)
    opened, min_ratio = Cache.open(Path(cache)), plan.where.min_ratio
    splitting = split_config(plan.splitting, plan.split)
    options = chosen_options(plan.config, plan.options)
    losses, weights = per_table(str(options.get("loss", "preference")), plan.weights, len(tables))
    (measured, *more), features = plan.labels.met(opened, tables)
    options, lines = chosen_head({**options, "loss": losses[0]}, [measured, *more], features, losses, min_ratio)
    head_config, train_config = configs(options, splitting.seed, features)
    require_use(train_config, losses)
    plan.where.require_use([measured, *more], losses, keeps_aside=head_config.kind in STEPPED)
    others = [OtherTable(*other) for other in zip(more, losses[1:], weights[1:], strict=True)]
    if plan.split is None and not {"folds", "test_fraction"} & set(plan.splitting):
        splitting = small_folds(measured, splitting)
    rows = split_rows(measured, splitting)
    described = split_report(measured, rows, splitting, opened)
    device = plan.where.device
    task = Task(measured, features, rows, head_config, train_config, min_ratio, others, device, progress=progress)
    checkpoints = Checkpoints(Path(f"{out}.checkpoints"), _identity(opened, task, described))
    if not plan.resume:
        checkpoints.clear()
    found, noise = _train_seeds(plan.seeds, task, checkpoints, observing)
    trained, accuracies = found[0]
    result = accuracies.to_json()
    lines = [*too_few(accuracies), *lines, *accuracy_lines(accuracies)]
    if plan.seeds > 1:
        result["seeds"], of_seeds = _spread("seed", splitting.seed, [one for _, one in found])
        lines += of_seeds
    if plan.split_seeds > 1:
        others_found = _train_splits(plan.split_seeds, task, splitting)
        result["split_seeds"], of_seeds = _spread("split seed", splitting.seed, [accuracies, *others_found])
        lines += of_seeds
    seen = zip(task.tables, [trained.rows, *trained.other_rows], strict=True)
    ids = content_ids(opened, measured, np.concatenate([table.items[rows].ravel() for table, rows in seen]))
    names = [plan.labels.name_of(one) for one in tables]
    manifest = _manifest(opened, names, task, trained) | {"split": described, "metrics": result, "fold_noise": noise}
    save_head(out, trained.head, trained.fold_heads, ids, manifest, plan.overwrite)
    checkpoints.clear()
    document = {"head": str(out), "split": described, **result}
    lines.append(f"written to {out}")
    return Trained(out, tuple(lines), document, opened.path, tables[0], plan.labels, head_config.kind, accuracies)


def _spread(name: str, first: int, found: Sequence[Accuracies]) -> tuple[dict[str, object], list[str]]:
    """The spread of pair accuracy over seeds counted from `first`, as fields of the document and as lines for
    people."""
    accuracies = [one.pair_accuracy.value for one in found]
    seeds = list(range(first, first + len(accuracies)))
    mean, sd = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    lines = table((name, "pair accuracy"), [(seed, f"{x:.3f}") for seed, x in zip(seeds, accuracies, strict=True)])
    said = f"{mean:.3f} ± {sd:.3f} (standard deviation); the head of {first} is kept"
    return {"seeds": seeds, "pair_accuracy": accuracies, "mean": mean, "sd": sd}, ["", *lines, said]


def _train_splits(count: int, task: Task, config: SplitConfig) -> list[Accuracies]:
    """The accuracies of the heads of all splits but the first."""
    found = []
    for seed in range(config.seed + 1, config.seed + count):
        rows = split_rows(task.labels, replace(config, seed=seed))
        trained = train_heads(replace(task, split=rows, config=replace(task.config, seed=seed)), use=False)
        found.append(evaluate(task.labels, task.features, trained.scorers, rows, Protocol(seed=seed)))
    return found


def _train_seeds(
    count: int, task: Task, checkpoints: Checkpoints, observing: Observing
) -> tuple[list[tuple[TrainedHeads, Accuracies]], float]:
    """The heads and the accuracies of each seed, and the `fold_noise` of the first."""
    found, protocol, noise = list[tuple[TrainedHeads, Accuracies]](), Protocol(seed=task.config.seed), 0.0
    for seed in range(task.config.seed, task.config.seed + count):
        with observing(f"seed-{seed}") as observe:
            config, saved = replace(task.config, seed=seed), checkpoints.part(f"seed-{seed}")
            trained = train_heads(replace(task, config=config, observe=observe, checkpoints=saved))
        if not found:
            noise = fold_noise(task, measure_pairs(task.labels, task.split, protocol))
        measured = evaluate(task.labels, task.features, trained.scorers, task.split, protocol, noise)
        found.append((trained, measured))
    return found, noise


def _manifest(cache: Cache, paths: Sequence[str], task: Task, trained: TrainedHeads) -> dict[str, object]:
    """The contents of head.json for a training, without its split and figures."""
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


def _identity(cache: Cache, task: Task, splitting: dict[str, Any]) -> str:
    """A hash of everything that decides the result of a training."""
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


def content_ids(cache: Cache, labels: Labels, items: Ints) -> pa.Array:
    """The ids of every picture and prompt of some items, as an Arrow array."""
    items = np.unique(items)
    prompts = np.unique(labels.prompt[items])
    pictures = np.unique(labels.image[items])
    if labels.source is not None:
        sources = labels.source[items]
        pictures = np.unique(np.concatenate([pictures, sources[sources >= 0]]))
    images = cache.metadata("images", ["image_id"])["image_id"].take(pa.array(pictures))
    texts = cache.metadata("prompts", ["prompt_id"])["prompt_id"].take(pa.array(prompts[prompts >= 0]))
    return pa.chunked_array([*images.chunks, *texts.chunks], pa.string()).combine_chunks()
