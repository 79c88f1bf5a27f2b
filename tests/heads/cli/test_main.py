"""`python -m heads` from a cache to an honest number."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heads_commands import EVALUATE, ROWS, TRAIN, run
from heads_tiny import identity, make_cache

from heads.cli.main import main
from heads.store.disk import load_committee, load_fold_heads, load_head


def test_shards_of_any_types_are_split_as_one_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(capsys, *TRAIN, "--out", "head")
    table = pq.read_table("table.parquet")
    for place, type in enumerate([pa.string_view(), pa.large_string(), pa.uint16(), pa.string_view()]):
        table = table.set_column(place, table.column_names[place], table.column(place).cast(type))
    for number, start in enumerate(range(0, ROWS, 25)):
        pq.write_table(table.slice(start, 25), f"t-{number}.parquet")
    shards = [*TRAIN[:3], "t-{0..2}.parquet", *TRAIN[4:]]
    found = run(capsys, *shards, "--out", "other")
    assert (found["split"], found["pair_accuracy"]) == (whole["split"], whole["pair_accuracy"])


def test_folds_are_trained_measured_and_found_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = run(capsys, *TRAIN, "--folds", "3", "--out", "head")
    assert len(load_fold_heads("head")) == 3
    assert (committee := load_committee("head")) is not None and committee.groups == 3
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
    trained = run(capsys, *TRAIN, "--test-fraction", "0.2", "--out", "head")
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
        *warnings, error = captured.err.splitlines()
        assert all(line.startswith("warning: intervals rest on") for line in warnings), captured.err
        return error

    assert "nowhere is not a cache" in fails("train", "nowhere", "--data", "table.parquet", "--out", "head")
    assert "missing.parquet" in fails("train", "cache", "--data", "missing.parquet", "--out", "head")
    assert "near names: fusion" in fails(*TRAIN, "--out", "head", "--head", "fussion")
    assert "'color' is not a column" in fails(
        "train", "cache", "--data", "table.parquet", "--out", "h", "--split-by", "color"
    )
    # Where the head cannot be written is known before any table is read.
    missing = ("train", "cache", "--data", "missing.parquet", "--out")
    assert "cache is a cache, not a head; choose another --out" in fails(*missing, "cache")
    assert "table.parquet is a file; wanted a folder" in fails(*missing, "table.parquet")
    run(capsys, *TRAIN, "--out", "head")
    assert "head is a head already; say --overwrite to replace it" in fails(*missing, "head")
    assert "head is a head, not a sweep" in fails("sweep", "cache", "--data", "missing.parquet", "--out", "head")
    assert "head is a head, not a cache" in fails("project", "nowhere", "--cache", "nowhere", "--out", "head")
    assert "say --overwrite" in fails("import", "nowhere.pth", "--cache", "nowhere", "--out", "head")
    assert "cache is a folder; wanted a file for --report" in fails(*EVALUATE, "--report", "cache")
    make_cache(folder / "other", ["p0.png"], ["prompt 0"], identity("b" * 64))
    error = fails("evaluate", "head", "--cache", "other", "--data", "table.parquet")
    assert "a" * 64 in error
    assert "b" * 64 in error


def test_min_ratio_that_chooses_no_pair_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table("table.parquet")
    pq.write_table(table.rename_columns(["image", "prompt", "rating", "sub"]), "ratings.parquet")
    rating = ("train", "cache", "--data", "table.parquet", "--split-by", "sub", "--loss", "rating")
    for argv, reason in (
        ((*rating, "--head", "kernel"), "the loss rating"),
        ((*rating, "--head", "linear"), "the loss rating"),
        (("train", "cache", "--data", "ratings.parquet"), "tables of ratings"),
        (("sweep", "cache", "--data", "ratings.parquet"), "tables of ratings"),
    ):
        assert main([*argv, "--min-ratio", "2", "--out", "head"]) == 2
        assert f"--min-ratio chooses pairs of counts, and does nothing for {reason}" in capsys.readouterr().err
    # Here it chooses the pairs that the epoch is chosen by.
    run(capsys, *rating, "--head", "fusion", "--epochs", "1", "--min-ratio", "2", "--out", "head")
    run(capsys, *TRAIN, "--min-ratio", "2", "--out", "other")


def test_a_head_with_other_weights_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *TRAIN, "--out", "head")
    before = (folder / "head" / "head.safetensors").read_bytes()
    run(capsys, *TRAIN, "--hidden", "7", "--out", "head", "--overwrite")
    (folder / "head" / "head.safetensors").write_bytes(before)
    with pytest.raises(ValueError, match="the weights do not fit"):
        load_head("head")
    (folder / "head" / "head.safetensors").write_bytes(before[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_head("head")


def test_a_table_that_only_teaches_is_kept_from_what_is_held_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Ratings against the counts, of the same pictures and in the end strong enough to turn the head.
    table = pq.read_table("table.parquet")
    rating = pa.array(-np.log(table["count"].to_numpy() + 1.0))
    pq.write_table(pa.table({"image": table["image"], "prompt": table["prompt"], "rating": rating}), "ratings.parquet")
    both = (*TRAIN, "--data", "ratings.parquet", "--loss", "preference,rating", "--folds", "2")
    plain = run(capsys, *TRAIN, "--folds", "2", "--out", "plain")
    light = run(capsys, *both, "--weights", "1,0.001", "--out", "light")
    heavy = run(capsys, *both, "--weights", "1,1000", "--out", "heavy")
    assert heavy["pair_accuracy"]["value"] < 0.3 < 0.7 < light["pair_accuracy"]["value"]
    assert light["split"]["hash"] == plain["split"]["hash"]
    (other,) = load_head("light")[1]["other_data"]
    assert other == {"table": "ratings.parquet", "kind": "ratings", "rows": ROWS, "missing": 0, "loss": "rating",
                     "weight": 0.001, "used": ROWS}  # fmt: skip
    # Without folds the pictures held out of the first table are left out of the second.
    once = run(capsys, *both[:-2], "--test-fraction", "0.2", "--out", "once")
    assert load_head("once")[1]["other_data"][0]["used"] == ROWS - once["split"]["held_out_rows"]


def test_seeds_and_logs_and_a_file_of_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Path("options.json").write_text(json.dumps({"hidden": 16, "epochs": 2, "head": "fusion"}))
    argv = ("train", "cache", "--data", "table.parquet", "--split-by", "sub", "--config", "options.json")
    result = run(capsys, *argv, "--seeds", "3", "--log-dir", "logs", "--dropout", "0.1", "--out", "head")
    spread = result["seeds"]
    assert spread["seeds"] == [0, 1, 2]
    assert spread["pair_accuracy"][0] == result["pair_accuracy"]["value"]
    assert spread["mean"] == pytest.approx(np.mean(spread["pair_accuracy"]))
    assert spread["sd"] == pytest.approx(np.std(spread["pair_accuracy"]) * np.sqrt(3 / 2))
    manifest = load_head("head")[1]
    assert (manifest["head"]["hidden"], manifest["head"]["dropout"], manifest["training"]["epochs"]) == (16, 0.1, 2)
    alone = run(capsys, *argv, "--seed", "0", "--dropout", "0.1", "--out", "alone")
    assert (folder / "alone/head.safetensors").read_bytes() == (folder / "head/head.safetensors").read_bytes()
    assert alone["pair_accuracy"] == result["pair_accuracy"]
    log = EventAccumulator("logs/seed-0/head-choosing").Reload()
    assert [event.step for event in log.Scalars("train_loss")] == [0, 1]
    values = [record["validation_accuracy"] for record in manifest["training"]["history"]]
    assert [event.value for event in log.Scalars("validation_accuracy")] == pytest.approx(values)


def test_a_command_resumes_to_the_same_bytes(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = (*TRAIN, "--folds", "2", "--out")
    run(capsys, *argv, "whole")
    monkeypatch.setattr("heads.training.checkpoint.EVERY_S", 0.0)
    epochs = []

    def die(*parts: object) -> None:
        epochs.append(parts)
        if len(epochs) == 8:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("heads.cli.train.tensorboard", lambda _: contextlib.nullcontext(die))
        with pytest.raises(ZeroDivisionError):
            main([*argv, "again"])
    assert len(list(Path("again.checkpoints").iterdir())) == 3
    assert main([*argv, "again", "--hidden", "5", "--resume"]) == 2
    assert "belongs to another training" in capsys.readouterr().err
    run(capsys, *argv, "again", "--resume")
    for file in ("head.json", "head.safetensors", "folds.safetensors", "trained.parquet"):
        assert (folder / "whole" / file).read_bytes() == (folder / "again" / file).read_bytes(), file
    assert not Path("again.checkpoints").exists()
