"""`python -m heads sweep`."""

import argparse
from pathlib import Path
from typing import Any

from embed.console import command, progress, say, table
from embed.devices import resolve_device
from heads.cli.common import add_data_options, tables_and_features
from heads.cli.train import DEVICES, add_split_options, configs, test_fraction

DEFAULT = {"head": "fusion", "loss": "preference"}  # of `heads train`
SHOWN = 10


def add_commands(commands: Any) -> None:
    parser = command(commands, "sweep", sweep, "search for the best head, loss and options within a time")
    parser.add_argument("cache", metavar="CACHE", help="a folder made by `python -m embed cache`")
    add_data_options(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="gets best.json and sweep.json")
    parser.add_argument("--minutes", type=float, default=5.0, help="to search, the last training not included (5)")
    add_split_options(parser)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, which must be there")


def sweep(args: argparse.Namespace) -> dict[str, Any]:
    """Search on rows that are not held out; open the held-out part once, for the best and the default."""
    from embed.cache.store import Cache
    from embed.files import write_json
    from heads.data import split
    from heads.evaluation.evaluate import Protocol, evaluate
    from heads.training.folds import Task, train_heads
    from heads.training.sweep import Options, SweepConfig, Trial, best_of
    from heads.training.sweep import sweep as search

    resolve_device(args.device, DEVICES)
    search_config = SweepConfig(args.minutes, seed=args.seed)
    cache = Cache.open(args.cache)
    (labels,), features = tables_and_features(args, cache, [args.data])
    split_config = split.SplitConfig(args.split_by, None, test_fraction(args), args.seed)
    rows = split.split_rows(labels, split_config)
    moved = features.to(args.device)

    def task_of(options: Options) -> Task:
        given = {name: value for name, value in options.items() if name != "loss"}
        built = configs(given, options["loss"], args.seed, cache.identity.dim, features)
        return Task(labels, moved, rows, *built, args.min_ratio, device=args.device, progress=progress)

    def observe(trial: Trial) -> None:
        say(args, f"{trial.accuracy:.4f} in {trial.seconds:.0f} s: {_shown(trial.options)}")

    trials = search(task_of, DEFAULT, search_config, observe=observe)
    best = best_of(trials)
    measured = {}
    for name, options in {"default": DEFAULT, "best": best.options}.items():
        if options != DEFAULT or name == "default":
            trained = train_heads(task_of(options))
            measured[name] = evaluate(labels, features, trained.scorers, rows, Protocol(seed=args.seed))
    measured.setdefault("best", measured["default"])
    result = {
        "best": best.options,
        "validation_accuracy": {"best": best.accuracy, "default": trials[0].accuracy},
        "test": {name: metrics["pair_accuracy"] for name, metrics in measured.items()},
        "protocol": measured["best"]["protocol"],
        "split": split.split_report(labels, rows, split_config, cache),
        "trials": [
            {"options": trial.options, "accuracies": trial.accuracies, "seconds": trial.seconds} for trial in trials
        ],
    }
    write_json(args.out / "sweep.json", result)
    write_json(args.out / "best.json", best.options)
    finished = [trial for trial in trials if len(trial.accuracies) == len(trials[0].accuracies)]
    first = sorted(finished, key=lambda trial: -trial.accuracy)[:SHOWN]
    say(
        args,
        "",
        f"{len(trials)} trials, {len(finished)} of them finished; the best {len(first)}, on rows kept aside:",
        *table(("options", "accuracy"), [(_shown(trial.options), f"{trial.accuracy:.4f}") for trial in first]),
        "",
        f"chosen: {_shown(best.options)}" + (" (the default: none is clearly better)" if best is trials[0] else ""),
        *(
            f"held out, opened once: {name} {x['value']:.3f} ({x['low']:.3f} to {x['high']:.3f})"
            for name, x in result["test"].items()
        ),
        f"train it with: python -m heads train {args.cache} --data {args.data} --config {args.out / 'best.json'}",
    )
    return result


def _shown(options: dict[str, Any]) -> str:
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in options.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
