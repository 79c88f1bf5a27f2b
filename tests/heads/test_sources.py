"""A table of edits is learnt by a head that sees what was edited, and by no other; other tables are as they were."""

import json
from pathlib import Path

import pytest
from edits import write_edits

from heads.cli.main import main
from heads.store.disk import load_head

ROWS = 400


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edits")
    write_edits(folder, ROWS)
    return folder


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("head", ["fusion", "kernel", "mlp"])
def test_only_a_head_with_the_source_learns_edits(
    head: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", place / "edits.parquet", "--head", head, "--out", tmp_path / "head", "--overwrite"]
    options += ["--epochs", "60", "--lr", "0.003"] if head == "mlp" else []
    found = run(capsys, "train", place / "cache", *options)
    assert found["pair_accuracy"]["value"] >= 0.9
    assert load_head(tmp_path / "head")[1]["head"]["reads"] == "all"
    without = run(capsys, "train", place / "cache", *options, "--reads", "both")
    interval = without["pair_accuracy"]
    assert interval["low"] <= 0.5 <= interval["high"] and interval["value"] < 0.65


def test_the_choice_and_the_evaluation_know_sources(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", place / "pick.parquet"]
    assert main([*map(str, ["train", place / "cache", *data, "--out", tmp_path / "head"])]) == 0
    assert "auto: fusion (it reads source pictures)" in capsys.readouterr().out
    found = run(capsys, "evaluate", tmp_path / "head", "--cache", place / "cache", *data, "--baselines")
    scores = found["scoreboard"]["pair_accuracy"]["scores"]
    assert scores["head"]["value"] >= 0.9 > 0.65 > scores["without_source"]["value"]
    assert main([*map(str, ["train", place / "cache", *data, "--head", "blend", "--reads", "all", "--out", "x"])]) == 2
    assert "a blend does not read source pictures" in capsys.readouterr().err
