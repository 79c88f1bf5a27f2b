"""The sweep begins with the default, keeps to its time, and never sees what is held out."""

import json
import shlex
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from heads_tiny import make_cache, unit

from embed.spec import InputError
from heads.api.choices import configs
from heads.cli.main import main
from heads.config import SplitConfig, SweepConfig
from heads.data.comparisons import Labels
from heads.data.features import Features, features_of
from heads.data.split import split_rows
from heads.training.folds import Task
from heads.training.loop import Diverged
from heads.training.sweep import Options, Trial, best_of, sweep

ROWS = 80
DEFAULT: Options = {"head": "fusion", "loss": "preference", "epochs": 2}


def table() -> tuple[Labels, Features]:
    """Counts that follow the first coordinate of the pictures."""
    images = unit(ROWS, 1)
    counts = np.exp(4 + 6 * images[:, 0].astype(float)).round()
    rows = np.arange(ROWS)
    labels = Labels("counts", rows, rows, rows[:, None], {"count": counts}, pa.table({"x": rows}), 0)
    return labels, features_of(images, unit(ROWS, 2), rows, rows)


def search(config: SweepConfig, seconds_a_look: float, default: Options = DEFAULT) -> list[Trial]:
    """A sweep whose clock goes on at every look; what is held out is no number, which training would stumble over."""
    labels, features = table()
    split = split_rows(labels, SplitConfig())
    held_out = split.test_rows(0)
    features.image_embeddings[held_out] = np.nan
    clock = count(0, seconds_a_look)

    def task_of(options: Options) -> Task:
        given = options | ({} if options["head"] in ("linear", "kernel", "blend") else {"epochs": 2, "batch_size": 512})
        return Task(labels, features, split, *configs(given, 0, features))

    return sweep(task_of, default, config, clock=lambda: float(next(clock)))


def test_a_sweep_begins_with_the_default_and_repeats_itself() -> None:
    trials = search(SweepConfig(minutes=2, seed=1), 1)
    assert trials[0].options == DEFAULT
    assert len(trials[0].accuracies) == 3
    assert len(trials) > 5
    assert {trial.options["head"] for trial in trials} >= {"fusion", "kernel"}
    assert all(0 <= accuracy <= 1 for trial in trials for accuracy in trial.accuracies)
    assert any(len(trial.accuracies) < 3 for trial in trials[1:]), "nothing was given up early"
    again = search(SweepConfig(minutes=2, seed=1), 1)
    assert [(x.options, x.accuracies) for x in again] == [(x.options, x.accuracies) for x in trials]


def test_a_penalty_counts_by_the_accuracy_of_the_one_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By loss, and not by the best accuracy of all that were tried: training does not know which that is."""
    history = [
        {"penalty": 1.0, "validation_loss": 0.7, "validation_accuracy": 0.9},
        {"penalty": 0.1, "validation_loss": 0.6, "validation_accuracy": 0.8},
    ]
    monkeypatch.setattr("heads.training.convex.choose_penalty", lambda *_: (0.1, history))
    trials = search(SweepConfig(folds=2), 1e6, {"head": "linear", "loss": "preference"})
    assert trials[0].accuracies == [0.8, 0.8]


def test_the_default_is_finished_whatever_the_time() -> None:
    (only,) = search(SweepConfig(minutes=0.01), 100)
    assert only.options == DEFAULT
    assert len(only.accuracies) == 3
    with pytest.raises(InputError, match="minutes is 0; wanted more than 0"):
        SweepConfig(minutes=0)


def test_every_head_is_tried_at_its_own_defaults_first_and_without_prompts_too() -> None:
    labels, features = table()
    for prompts in (True, False):
        labels = labels if prompts else replace(labels, prompt=np.full(ROWS, -1))
        features = features if prompts else replace(features, prompt=torch.full((ROWS,), -1))
        split, clock = split_rows(labels, SplitConfig()), count(0, 0.1)

        def task_of(options: Options, labels=labels, features=features, split=split) -> Task:
            given = options | ({} if options["head"] in ("linear", "kernel", "blend") else {"epochs": 1})
            return Task(labels, features, split, *configs(given, 0, features))

        default = {"head": "blend", "loss": "preference"} | ({} if prompts else {"reads": "image"})
        trials = sweep(task_of, default, SweepConfig(minutes=0.2), clock=lambda clock=clock: float(next(clock)))
        tried = [trial.options["head"] for trial in trials]
        wanted = ["blend", "linear", "mlp", "fusion", *(["cosine"] if prompts else []), "kernel"]
        assert tried[: len(wanted)] == wanted


def test_a_trial_that_diverges_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> list[dict[str, float]]:
        raise Diverged("the loss is nan")

    monkeypatch.setattr("heads.training.sweep.fit", fails)
    trials = search(SweepConfig(minutes=1, seed=1), 1, {"head": "linear", "loss": "preference"})
    assert {trial.options["head"] for trial in trials} <= {"linear", "kernel", "blend"}
    with pytest.raises(Diverged):
        search(SweepConfig(minutes=1), 1)


def test_the_best_must_beat_the_default_clearly() -> None:
    default = Trial({"head": "fusion"}, [0.70, 0.74, 0.72], 1)
    lucky = Trial({"head": "mlp"}, [0.80, 0.70, 0.69], 1)  # +0.01 +- 0.05
    better = Trial({"head": "kernel"}, [0.71, 0.75, 0.731], 1)
    given_up = Trial({"head": "linear"}, [0.99], 1)
    assert best_of([default, lucky, given_up]) is default
    assert best_of([default, better, given_up]) is better
    assert best_of([default]) is default


def test_the_command_writes_what_train_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images, prompts = [f"p{i}.png" for i in range(ROWS)], [f"prompt {i}" for i in range(ROWS)]
    cache = make_cache(tmp_path / "cache", images, prompts)
    counts = np.exp(4 + 6 * cache.image_embeddings()[:, 0].astype(float)).round().astype(int)
    pq.write_table(pa.table({"image": images, "prompt": prompts, "count": counts}), "table.parquet")
    start = ("cache", "--data", "table.parquet")
    assert main(["sweep", *start, "--minutes", "0.05", "--out", "found", "--json"]) == 0
    result, said = json.loads((captured := capsys.readouterr()).out), captured.err
    assert result["trials"][0]["options"] == {"head": "blend", "loss": "preference"}
    assert result["validation_accuracy"]["best"] >= result["validation_accuracy"]["default"]
    assert json.loads(Path("found/sweep.json").read_text())["best"] == result["best"]
    (command,) = [line for line in said.splitlines() if line.startswith("train it with: ")]
    assert main([*shlex.split(command)[5:], "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    # The same split and training: the number that the sweep found when it opened the held-out part.
    assert trained["pair_accuracy"] == result["test"]["best"]
    assert trained["split"]["hash"] == result["split"]["hash"]
