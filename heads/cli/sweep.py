"""`python -m heads sweep`."""

import shlex
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from embed.cli.console import progress, reading_words, table
from embed.config import Overwriting
from embed.devices import resolve_device
from embed.files import replacing, require_out
from heads.api.options import HeadTraining, TableOptions
from heads.cli.common import require_inputs
from heads.config import HoldOutConfig, Protocol, SplitConfig, SweepConfig
from heads.tracking.tracker import require_tracker, tracking

SHOWN = 10


def sweep(
    cache: str,
    /,
    *,
    table_options: TableOptions,
    out: Path,
    overwriting: Overwriting,
    searching: partial[SweepConfig],
    splitting: HoldOutConfig,
    where: HeadTraining,
    tracker: str | None = None,
) -> dict[str, object]:
    """Search for the best head, loss and options within a given time.

    The search uses rows that are not held out. The held-out part is used only once, for the best head and the default.

    Example:
        plaudit heads sweep cache --data likes.csv --minutes 5 --out sweep

    Args:
        cache: A folder made by `python -m embed cache`.
        out: The folder that gets best.json and sweep.json.
        tracker: Send options, trials and figures to a tracker: tensorboard:FOLDER, mlflow[:URI] or wandb[:PROJECT].
    """
    require_out(out, "sweep", overwriting.overwrite)
    require_inputs(table_options, [table_options.data], cache)
    from embed.cache.store import Cache
    from embed.files import write_json
    from heads.api.choices import chosen_head, configs
    from heads.api.training import DEVICES
    from heads.data import split
    from heads.evaluation.evaluate import evaluate
    from heads.report.figures import told
    from heads.training.folds import Task, train_heads
    from heads.training.sweep import Options, Trial, best_of
    from heads.training.sweep import sweep as search

    require_tracker(tracker)
    resolve_device(where.device, DEVICES)
    seed, data = splitting.seed, table_options.data
    search_config = searching(seed=seed)
    opened = Cache.open(cache)
    (labels,), features = table_options.met(opened, [data])
    split_config = SplitConfig(**vars(splitting))
    rows = split.split_rows(labels, split_config)
    where.require_use([labels], ["preference"])
    moved = features.to(where.device)
    default, said = chosen_head(
        {"loss": "preference"}, [labels], features, ["preference"], where.min_ratio
    )  # the options of `heads train`
    print(*said, sep="\n")

    def task_of(options: Options) -> Task:
        built = configs(options, seed, features)
        return Task(labels, moved, rows, *built, where.min_ratio, device=where.device, progress=progress)

    with tracking(tracker, out.name) as run:
        run.parameters({"cache": cache, "data": data, **asdict(search_config), **vars(splitting)})
        numbers = count()

        def observe(trial: Trial) -> None:
            run.record("trials", next(numbers), {"accuracy": trial.accuracy, "seconds": trial.seconds})
            print(f"{trial.accuracy:.4f} in {trial.seconds:.0f} s: {_shown(trial.options)}")

        trials = search(task_of, default, search_config, observe=observe)
        best = best_of(trials)
        measured = {}
        for name, options in {"default": default, "best": best.options}.items():
            if options != default or name == "default":
                trained = train_heads(task_of(options))
                measured[name] = evaluate(labels, features, trained.scorers, rows, Protocol(seed=seed))
        measured.setdefault("best", measured["default"])
        test = {name: accuracies.pair_accuracy for name, accuracies in measured.items()}
        result: dict[str, object] = {
            "best": best.options,
            "validation_accuracy": {"best": best.accuracy, "default": trials[0].accuracy},
            "test": {name: interval.to_json() for name, interval in test.items()},
            "protocol": measured["best"].protocol,
            "split": split.split_report(labels, rows, split_config, opened),
            "trials": [
                {"options": trial.options, "accuracies": trial.accuracies, "seconds": trial.seconds} for trial in trials
            ],
        }
        with replacing(out, "sweep", overwriting.overwrite) as folder:
            write_json(folder / "sweep.json", result)
            write_json(folder / "best.json", best.options)
        run.figures({"validation_accuracy": result["validation_accuracy"], "test": result["test"]})
        run.files(out, "sweep.json", "best.json")
    command = ["plaudit", "heads", "train", cache, "--data", data, *reading_words(table_options)]
    command += ["--config", str(out / "best.json")]
    command += ["--split-by", splitting.by] if splitting.by else []
    command += ["--test-fraction", f"{splitting.test_fraction:g}", "--seed", str(seed), "--out", f"{out}-head"]
    finished = [trial for trial in trials if len(trial.accuracies) == len(trials[0].accuracies)]
    first = sorted(finished, key=lambda trial: -trial.accuracy)[:SHOWN]
    print(
        "",
        f"{len(trials)} trials, {len(finished)} of them finished; the best {len(first)} on validation rows:",
        *table(("options", "accuracy"), [(_shown(trial.options), f"{trial.accuracy:.4f}") for trial in first]),
        "",
        f"chosen: {_shown(best.options)}" + (" (the default: none is clearly better)" if best is trials[0] else ""),
        *(f"on the held-out rows: {name} {told(interval)}" for name, interval in test.items()),
        f"train it with: {shlex.join(command)}",
        sep="\n",
    )
    return result


def _shown(options: dict[str, Any]) -> str:
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in options.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
