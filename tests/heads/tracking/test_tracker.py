"""What trackers hold after a training is what the training says; and a tracker that fails stops nothing."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heads_tiny import make_cache

from embed.spec import InputError
from heads.cli.main import main
from heads.tracking.tracker import Tracker, require_tracker, tracking

ROWS = 24
PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = [f"{i}.png" for i in range(ROWS)]
    cache = make_cache(tmp_path / "cache", names, [f"p{i}" for i in range(6)])
    counts = np.exp(4 + 6 * cache.image_embeddings()[:, 0].astype(float)).round().astype(int)
    lines = [f"{name},p{i % 6},{counts[i]}" for i, name in enumerate(names)]
    Path("likes.csv").write_text("\n".join(["image,prompt,count", *lines]))
    return tmp_path


def trained(capsys: pytest.CaptureFixture[str], tracker: str) -> dict[str, Any]:
    argv = "train cache --data likes.csv --split-by prompt --folds 2 --head fusion --hidden 8 --epochs 2 --out head"
    assert main([*argv.split(), "--tracker", tracker, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_tensorboard_has_curves_and_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = trained(capsys, "tensorboard:logs")
    (stage, *_) = sorted(path.name for path in Path("logs/seed-0").iterdir())
    log = EventAccumulator(f"logs/seed-0/{stage}").Reload()
    assert [event.step for event in log.Scalars("train_loss")] == [0, 1]
    run = EventAccumulator("logs").Reload()
    for name in ("value", "low", "high"):
        tag = "result/pair_accuracy" + f"/{name}" * (name != "value")
        assert run.Scalars(tag)[0].value == pytest.approx(found["pair_accuracy"][name])
    assert {"parameters/text_summary"} <= set(run.Tags()["tensors"])


def test_an_evaluation_is_a_run_with_its_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(capsys, "tensorboard:training")
    argv = "evaluate head --cache cache --data likes.csv --report a.html --tracker tensorboard:logs --json"
    assert main(argv.split()) == 0
    found = json.loads(capsys.readouterr().out)
    run = EventAccumulator("logs").Reload()
    assert run.Scalars("result/pair_accuracy")[0].value == pytest.approx(found["pair_accuracy"]["value"])
    for scorer in ("head", "ridge"):
        low = found["metrics"]["spearman"]["scores"][scorer]["low"]
        assert run.Scalars(f"result/metrics/spearman/{scorer}/low")[0].value == pytest.approx(low)
    assert {"parameters/text_summary", "files/text_summary"} <= set(run.Tags()["tensors"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_has_parameters_curves_and_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    found = trained(capsys, "mlflow:sqlite:///runs.db")
    client = mlflow.MlflowClient("sqlite:///runs.db")
    experiment = client.get_experiment_by_name("plaudit")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("head", "FINISHED")
    assert (run.data.params["head"], run.data.params["epochs"], run.data.params["hidden"]) == ("fusion", "2", "8")
    for name in ("value", "low", "high"):
        got = run.data.metrics["pair_accuracy" + f"/{name}" * (name != "value")]
        assert got == pytest.approx(found["pair_accuracy"][name])
    curves = [name for name in run.data.metrics if name.startswith("seed-0/") and name.endswith("/train_loss")]
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, sorted(curves)[0])]
    assert steps == [0, 1]

    with pytest.raises(ZeroDivisionError), tracking("mlflow:sqlite:///runs.db", "broken") as tracker:
        tracker.pictures("pictures", 3, PIXELS)
        tracker.files(folder, "likes.csv", "absent.csv")
        raise ZeroDivisionError
    (broken,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'broken'")
    assert broken.info.status == "FAILED"
    assert {file.path for file in client.list_artifacts(broken.info.run_id)} == {"likes.csv", "pictures"}


@pytest.fixture
def wandb_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    wandb = pytest.importorskip("wandb")
    for name, value in {
        "MODE": "offline",
        "DIR": str(folder),
        "CACHE_DIR": str(folder / "kept"),
        "SILENT": "true",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield wandb
    wandb.teardown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_weights_and_biases_has_the_same_offline(
    wandb_offline: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = trained(capsys, "wandb:tried")
    wandb_offline.teardown()  # what its service has not written yet it writes now
    (file,) = Path("wandb").glob("offline-run-*/*.wandb")
    data = file.read_bytes()  # records whose numbers are written as JSON, in blocks that begin with 7 other bytes
    kept = b"".join(data[start + 7 : start + 32768] for start in range(0, len(data), 32768))
    assert b"scikit-learn" not in kept  # nor what is installed
    for text in (
        "tried",
        "fusion",
        "seed-0/",
        "train_loss",
        "pair_accuracy/low",
        repr(found["pair_accuracy"]["value"]),
    ):
        assert text.encode() in kept, text


class Broken:
    """A tracker whose server is gone."""

    def __getattr__(self, name: str) -> Any:
        def fail(*parts: object) -> None:
            raise ConnectionError("gone\nfor good")

        return fail


def test_a_tracker_that_fails_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    tracker, told = Tracker(Broken()), list[object]()
    observe = tracker.beside(lambda *parts: told.append(parts), "seed-0")
    observe("a", 1, {"x": 1.0, "y": math.nan})
    tracker.figures({"x": {"value": 1.0, "low": None, "reason": "few"}})
    tracker.close(False)
    assert told[0][:2] == ("a", 1) and [record.message for record in caplog.records] == [
        "the tracker failed and may lack a part of this run: gone"
    ]


def test_what_is_no_tracker_is_refused_before_any_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("comet", "tensorboard", "tensorboard:"):
        with pytest.raises(InputError, match="wanted tensorboard:FOLDER, mlflow or mlflow:URI"):
            require_tracker(wrong)
    argv = ["train", "cache", "--data", "likes.csv", "--out", "head", "--tracker", "comet"]
    assert main(argv) == 2 and "--tracker is 'comet'" in capsys.readouterr().err and not Path("head").exists()
    require_tracker(None)
    Path("file").write_text("")
    with pytest.raises(InputError, match="cannot open a run there"), tracking("tensorboard:file/x", "a"):
        pass
