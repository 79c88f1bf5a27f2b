"""`python -m heads train`."""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed.console import command, progress, say, table
from embed.devices import resolve_device
from heads.cli.common import accuracy_lines, add_data_options, content_ids, tables_and_features

if TYPE_CHECKING:
    from embed.cache.store import Cache
    from heads.training.checkpoint import Checkpoints
    from heads.training.folds import Task, TrainedHeads

DEVICES = ("cpu", "cuda")  # that heads are trained on
# Options that decide what is trained and how; a file for --config names them as here, with underscores.
# name: type, of which heads (none: of all), help
SOLVED = ("linear", "kernel")
STEPPED = ("cosine", "mlp", "fusion")
OPTIONS: dict[str, tuple[type, tuple[str, ...], str]] = {
    "head": (
        str,
        (),
        "cosine, linear, mlp, fusion (default), or kernel for tables of some hundreds or thousands of rows",
    ),
    "loss": (
        str,
        (),
        "preference (any table; default), ranking or listwise (ranked groups), rating (ratings, or counts: their log"
        " rate), triplet or preference-inbatch (head cosine, both pictures of one prompt); with several tables one for"
        " all, or one each, by commas",
    ),
    "distance": (str, ("cosine",), "of triplet: squared_euclidean (default), euclidean or cosine"),
    "margin": (float, STEPPED, "of triplet (default 0.3); with ranking it gives HPSv2's hinge, whose own is 1"),
    "reduction": (str, STEPPED, "of preference and ranking: mean over a batch (default), or sum, as HPSv2"),
    "epochs": (int, STEPPED, "at most; rows kept aside decide (default 6)"),
    "patience": (int, STEPPED, "epochs without improvement before stopping (default 3)"),
    "batch_size": (int, STEPPED, "pairs, groups or ratings a step (default 16384)"),
    "learning_rate": (float, STEPPED, "highest, after warm-up (default 0.001)"),
    "weight_decay": (float, STEPPED, "of AdamW, on matrices (default 1)"),
    "penalty": (float, SOLVED, "on the squared weights (default of linear: the best for rows kept aside)"),
    "hidden": (int, ("fusion",), "width of fusion's hidden layer (default 128)"),
    "dropout": (float, ("fusion",), "of fusion's hidden layer (default 0.5)"),
    "input_dropout": (float, ("fusion",), "of fusion's inputs; less for millions of pairs (default 0.6)"),
    "landmarks": (int, ("kernel",), "training items that kernel compares with, at most (default 512)"),
    "reads": (str, ("mlp", "kernel"), "what mlp and kernel read: both (default), image or text"),
}


def add_commands(commands: Any) -> None:
    parser = command(commands, "train", train, "train a head on the vectors of a cache")
    parser.add_argument("cache", metavar="CACHE", help="a folder made by `python -m embed cache`")
    add_data_options(parser, several=True)
    parser.add_argument("--weights", metavar="W,...", help="what the loss of each --data counts for (default 1 each)")
    parser.add_argument("--out", required=True, metavar="HEAD", help="the folder to write the head to")
    add_split_options(parser)
    parser.add_argument("--folds", type=int, help="hold every group out once, in this many parts")
    parser.add_argument(
        "--split",
        metavar="pickscore",
        help="hold out PickScore's way: one comparison of each of some prompts of different users (column user_id),"
        " of which one half chooses the epoch and the other is measured",
    )
    parser.add_argument("--held-out-prompts", type=int, metavar="N", help="of --split pickscore (default 1000)")
    for name, (kind, _, text) in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument(
        "--no-activations",
        action="store_false",
        dest="activations",
        default=None,
        help="make mlp affine, as the published ones are",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="options from a file, as `python -m heads sweep` writes it"
    )
    parser.add_argument("--seeds", type=int, default=1, help="train from so many seeds, and print how far they differ")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, which must be there")
    parser.add_argument("--resume", action="store_true", help="go on where a training with the same options was ended")
    parser.add_argument("--log-dir", type=Path, metavar="FOLDER", help="write what TensorBoard shows")


def add_split_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split-by", metavar="COLUMN", help="hold out whole groups of rows with one value of COLUMN")
    parser.add_argument("--test-fraction", type=float, help="share held out without --folds (default 0.2)")
    parser.add_argument("--min-ratio", type=float, help="train on pairs whose counts differ at least so many times")
    parser.add_argument("--seed", type=int, default=0)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate on what was held out, and write the head."""
    import numpy as np

    from embed.cache.store import Cache
    from heads.store import disk
    from heads.training.checkpoint import Checkpoints

    resolve_device(args.device, DEVICES)
    cache = Cache.open(args.cache)
    task, splitting = _task(args, cache)
    checkpoints = Checkpoints(Path(f"{args.out}.checkpoints"), _identity(cache, task, splitting))
    if not args.resume:
        checkpoints.clear()
    trained, result = _train_seeds(args, task, checkpoints)
    seen = zip(task.tables, [trained.rows, *trained.other_rows], strict=True)
    ids = content_ids(cache, task.labels, np.concatenate([labels.items[rows].ravel() for labels, rows in seen]))
    manifest = _manifest(args, cache, task, trained) | {"split": splitting, "metrics": result}
    disk.save_head(Path(args.out), trained.head, trained.fold_heads, ids, manifest)
    checkpoints.clear()
    say(args, *accuracy_lines(result), *_seed_lines(result), f"written to {args.out}")
    return {"head": str(args.out), "split": splitting, **result}


def _task(args: argparse.Namespace, cache: "Cache") -> tuple["Task", dict[str, Any]]:
    """What the command line asks for, and what head.json says of its split."""
    from heads.data import split
    from heads.training.folds import OtherTable, Task
    from heads.training.objectives import require_use

    split_config = _split_config(args)
    options = chosen_options(args)
    (labels, *more), features = tables_and_features(args, cache, args.data)
    losses, weights = per_table(options.pop("loss", "preference"), args.weights, len(args.data))
    head_config, config = configs(options, losses[0], args.seed, cache.identity.dim, features)
    require_use(config, losses)
    others = [OtherTable(*other) for other in zip(more, losses[1:], weights[1:], strict=True)]
    rows = split.split_rows(labels, split_config)
    task = Task(labels, features, rows, head_config, config, args.min_ratio, others, args.device)
    return task, split.split_report(labels, rows, split_config, cache)


def _train_seeds(
    args: argparse.Namespace, task: "Task", checkpoints: "Checkpoints"
) -> tuple["TrainedHeads", dict[str, Any]]:
    """The heads of the first seed and what was measured of them, with the spread where there are several seeds."""
    import numpy as np

    from heads.evaluation.evaluate import Protocol, evaluate
    from heads.training.folds import train_heads

    seeds = range(args.seed, args.seed + args.seeds)
    heads, metrics = [], []
    for seed in seeds:
        with tensorboard(args.log_dir and args.log_dir / f"seed-{seed}") as observe:
            config, saved = replace(task.config, seed=seed), checkpoints.part(f"seed-{seed}")
            trained = train_heads(replace(task, config=config, observe=observe, checkpoints=saved, progress=progress))
        heads.append(trained)
        metrics.append(evaluate(task.labels, task.features, trained.scorers, task.split, Protocol(seed=args.seed)))
    if args.seeds > 1:
        values = [metric["pair_accuracy"]["value"] for metric in metrics]
        spread = {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}
        metrics[0]["seeds"] = {"seeds": list(seeds), "pair_accuracy": values, **spread}
    return heads[0], metrics[0]


def _manifest(args: argparse.Namespace, cache: "Cache", task: "Task", trained: "TrainedHeads") -> dict[str, Any]:
    """What head.json says of a training; its split and its figures come beside."""
    import torch

    from heads.evaluation.evaluate import Protocol, calibrate

    return {
        "head": asdict(task.head_config),
        "identity": cache.identity.to_json(),
        "source": asdict(cache.source),
        "training": {
            **task.config.to_json(),
            "min_ratio": task.min_ratio,
            "chosen": trained.chosen,
            "history": trained.histories[0],
        },
        "data": _described(args.data[0], task.labels),
        "other_data": [
            {**_described(path, other.labels), "loss": other.loss, "weight": other.weight, "used": len(seen)}
            for path, other, seen in zip(args.data[1:], task.others, trained.other_rows, strict=True)
        ],
        "calibration": calibrate(task.labels, task.features, trained.scorers, task.split, Protocol(seed=args.seed)),
        "versions": {"torch": torch.__version__},
    }


def _split_config(args: argparse.Namespace) -> Any:
    from embed.spec import InputError
    from embed.wording import unknown_name
    from heads.data.split import PICKSCORE_PROMPTS, SplitConfig

    if args.split not in (None, "pickscore"):
        raise unknown_name("split", args.split, ("pickscore",))
    if args.split is None and args.held_out_prompts is not None:
        raise InputError("--held-out-prompts is of --split pickscore; give that too, or leave it out")
    prompts = args.held_out_prompts
    if args.split and prompts is None:
        prompts = PICKSCORE_PROMPTS
    if args.test_fraction is not None and (args.folds is not None or prompts is not None):
        other = f"--folds {args.folds}" if prompts is None else "--split pickscore"
        raise InputError(f"--test-fraction {args.test_fraction} would be ignored beside {other}; leave one of them out")
    return SplitConfig(args.split_by, args.folds, test_fraction(args), args.seed, prompts)


def test_fraction(args: argparse.Namespace) -> float:
    """What --test-fraction says, or else the default."""
    from heads.data.split import SplitConfig

    return SplitConfig.test_fraction if args.test_fraction is None else float(args.test_fraction)


def chosen_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options given, on the command line or else in --config; InputError for one that the head ignores."""
    from embed.spec import InputError
    from embed.wording import unknown_name
    from heads.models import HEADS

    given: dict[str, Any] = {}
    known = {**OPTIONS, "activations": (bool, ("mlp",), "")}
    if args.config:
        try:
            given = json.loads(args.config.read_text())
            for name, value in given.items():
                if name not in known:
                    raise unknown_name(f"option in {args.config}:", name, known)
                given[name] = known[name][0](value)
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{args.config} is no file of options ({error})") from None
    given |= {name: getattr(args, name) for name in known if getattr(args, name) is not None}
    head = given.get("head", "fusion")
    if head not in HEADS:
        raise unknown_name("head", head, HEADS)
    for name in given:
        if (of := known[name][1]) and head not in of:
            option = "no-activations" if name == "activations" else name.replace("_", "-")
            raise InputError(f"--{option} is of {' and '.join(of)} and does nothing for the head {head}; leave it out")
    return given


def configs(options: Mapping[str, Any], loss: str, seed: int, dim: int, features: Any) -> tuple[Any, Any]:
    """The configurations of the head and of its training that the options name, theirs being the defaults."""
    from dataclasses import fields

    from heads.models import HeadConfig
    from heads.training.train import TrainConfig

    of_head = {field.name for field in fields(HeadConfig)} & options.keys()
    pooled_dim = 0 if features.image_pooled is None else features.image_pooled.shape[1]
    head = HeadConfig(options.get("head", "fusion"), dim, pooled_dim, **{name: options[name] for name in of_head})
    rest = {name: value for name, value in options.items() if name not in of_head and name != "head"}
    if loss == "preference-inbatch":
        rest.setdefault("batch_size", 128)  # PickScore's
    return head, TrainConfig(loss=loss, seed=seed, **rest)


def per_table(loss: str, weights: str | None, tables: int) -> tuple[list[str], list[float]]:
    """A loss and a weight for each table, the first's weight 1."""
    from embed.spec import InputError
    from embed.wording import unknown_name
    from heads.training.objectives import OBJECTIVES

    losses = loss.split(",")
    losses = losses * tables if len(losses) == 1 else losses
    try:
        numbers = [float(weight) for weight in weights.split(",")] if weights else [1.0] * tables
    except ValueError:
        raise InputError(f"--weights is {weights!r}; wanted numbers and commas, such as 1,0.5") from None
    for name, values in (("--loss", losses), ("--weights", numbers)):
        if len(values) != tables:
            raise InputError(f"{name} names {len(values)} and there are {tables} tables; give one for each --data")
    for name in losses:
        if name not in OBJECTIVES:
            raise unknown_name("loss", name, OBJECTIVES)
    if not all(0 < number < float("inf") for number in numbers):
        raise InputError(f"--weights is {weights!r}; every weight must be positive")
    return losses, [number / numbers[0] for number in numbers]


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Any]:
    """A `folds.Observer` that writes TensorBoard's files, a run for each stage; None without a folder."""
    writers: dict[str, Any] = {}

    def write(stage: str, step: int, record: Mapping[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if stage not in writers:
            writers[stage] = SummaryWriter(f"{folder}/{stage}")
        for name, value in record.items():
            if value == value:  # NaN: an accuracy without validation
                writers[stage].add_scalar(name, value, step)

    yield write if folder else None
    for writer in writers.values():
        writer.close()


def _identity(cache: "Cache", task: "Task", splitting: dict[str, Any]) -> str:
    """A hash of everything that decides what a training comes to."""
    import hashlib

    losses = [task.config.loss, *(other.loss for other in task.others)]
    weights = [1.0, *(other.weight for other in task.others)]
    options = [asdict(task.head_config), task.config.to_json(), losses, weights, task.min_ratio, task.device]
    facts = [cache.identity.to_json(), [splitting, *options]]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for labels in task.tables:
        for values in (labels.image, labels.prompt, labels.items, *labels.values.values()):
            digest.update(values.tobytes())
    return digest.hexdigest()


def _described(path: str, labels: Any) -> dict[str, Any]:
    return {"table": Path(path).name, "kind": labels.kind, "rows": len(labels), "missing": labels.missing}


def _seed_lines(result: Mapping[str, Any]) -> list[str]:
    if "seeds" not in result:
        return []
    spread = result["seeds"]
    rows = [(seed, f"{value:.3f}") for seed, value in zip(spread["seeds"], spread["pair_accuracy"], strict=True)]
    return [
        "",
        *table(("seed", "pair accuracy"), rows),
        f"{spread['mean']:.3f} ± {spread['sd']:.3f} (standard deviation); kept is the head of {spread['seeds'][0]}",
    ]
