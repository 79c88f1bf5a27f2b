"""`python -m heads` from a cache to an honest number."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heads_tiny import identity, make_cache

from heads.cli import main
from heads.store import load_fold_heads, load_head

ROWS = 60


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, and a table whose counts follow the first coordinate of the pictures' vectors."""
    monkeypatch.chdir(tmp_path)
    images, prompts = [f"p{i}.png" for i in range(ROWS)], [f"prompt {i}" for i in range(ROWS)]
    cache = make_cache(tmp_path / "cache", images, prompts)
    count = np.exp(4 + 6 * cache.image_embeddings()[:, 0].astype(float)).round().astype(int)
    group = [f"g{i % 12}" for i in range(ROWS)]
    pq.write_table(pa.table({"image": images, "prompt": prompts, "count": count, "sub": group}), "table.parquet")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


TRAIN = ("train", "cache", "--data", "table.parquet", "--split-by", "sub", "--epochs", "3", "--input-dropout", "0")
EVALUATE = ("evaluate", "head", "--cache", "cache", "--data", "table.parquet")


def test_folds_are_trained_measured_and_found_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = run(capsys, *TRAIN, "--folds", "3", "--out", "head")
    assert len(load_fold_heads("head")) == 3
    evaluated = run(capsys, *EVALUATE, "--scores", "scores.parquet")
    for key in ("pair_accuracy", "zero_shot_pair_accuracy", "chance"):
        assert evaluated[key] == trained[key]
        assert evaluated[key]["low"] <= evaluated[key]["value"] <= evaluated[key]["high"]
    assert evaluated["pair_accuracy"]["value"] > 0.75 > 0.65 > abs(evaluated["chance"]["value"])
    assert evaluated["split"]["hash"] == trained["split"]["hash"]

    # The accuracy again, by a plain loop over the scores that were written.
    rows = pq.read_table("scores.parquet").to_pylist()
    assert sorted(row["image"] for row in rows) == sorted(f"p{i}.png" for i in range(ROWS))
    by_fold = []
    for fold in range(3):
        held_out = [row for row in rows if row["fold"] == fold]
        right = [
            (a["score"] > b["score"]) == (a["count"] > b["count"])
            for i, a in enumerate(held_out)
            for b in held_out[i + 1 :]
            if max(a["count"], b["count"]) >= 2 * min(a["count"], b["count"]) and a["count"] != b["count"]
        ]
        by_fold.append(np.mean(right))
    assert evaluated["pair_accuracy"]["value"] == pytest.approx(np.mean(by_fold), abs=1e-9)


def test_two_runs_give_the_same_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("first", "second"):
        run(capsys, *TRAIN, "--folds", "2", "--out", out)
    for file in ("head.json", "head.safetensors", "folds.safetensors", "trained.parquet"):
        assert (folder / "first" / file).read_bytes() == (folder / "second" / file).read_bytes(), file


def test_what_was_trained_on_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = run(capsys, *TRAIN, "--out", "head")
    held_out = trained["split"]["held_out_rows"]
    assert 0 < held_out < ROWS
    # The same rows in another order are another split: only what training never saw is measured.
    table = pq.read_table("table.parquet")
    pq.write_table(table.take(np.random.default_rng(0).permutation(ROWS)), "table.parquet")
    assert run(capsys, *EVALUATE)["rows"] == held_out
    assert main([*EVALUATE, "--all", "--json"]) == 0
    captured = capsys.readouterr()
    assert f"{ROWS - held_out} of {ROWS} rows" in captured.err
    assert "TRAINED" in captured.err
    assert json.loads(captured.out)["trained_rows"] == ROWS - held_out


def test_bad_input_is_one_line_and_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*argv: str) -> str:
        assert main(list(argv)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        return captured.err

    assert "nowhere is not a cache" in fails("train", "nowhere", "--data", "table.parquet", "--out", "head")
    assert "missing.parquet" in fails("train", "cache", "--data", "missing.parquet", "--out", "head")
    assert "near names: fusion" in fails(*TRAIN, "--out", "head", "--head", "fussion")
    assert "'color' is no column" in fails(
        "train", "cache", "--data", "table.parquet", "--out", "h", "--split-by", "color"
    )
    assert "holds something that is not a head" in fails(*TRAIN, "--out", "cache")
    run(capsys, *TRAIN, "--out", "head")
    make_cache(folder / "other", ["p0.png"], ["prompt 0"], identity("b" * 64))
    error = fails("evaluate", "head", "--cache", "other", "--data", "table.parquet")
    assert "a" * 64 in error
    assert "b" * 64 in error


def test_a_head_with_other_weights_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *TRAIN, "--out", "head")
    before = (folder / "head" / "head.safetensors").read_bytes()
    run(capsys, *TRAIN, "--hidden", "7", "--out", "head")
    (folder / "head" / "head.safetensors").write_bytes(before)
    with pytest.raises(ValueError, match="the weights do not fit"):
        load_head("head")
    (folder / "head" / "head.safetensors").write_bytes(before[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_head("head")
