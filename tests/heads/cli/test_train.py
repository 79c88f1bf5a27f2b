"""What `heads train` is told, and what it chooses where it is told nothing."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heads_commands import EVALUATE, ROWS, run

from heads.cli.main import main
from heads.store.disk import load_fold_heads, load_head


def test_the_options_of_a_loss_reach_it_and_its_resuming(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"p{i}.png" for i in range(ROWS)]
    table = [
        {"prompt": f"prompt {i // 2}", "pos_path": names[i], "neg_path": names[i + 1]} for i in range(0, ROWS - 1, 2)
    ]
    Path("pairs.json").write_text(json.dumps(table))
    argv = ("train", "cache", "--data", "pairs.json", "--head", "cosine", "--loss", "triplet", "--epochs", "2")
    run(capsys, *argv, "--out", "plain")
    run(capsys, *argv, "--margin", "0.3", "--distance", "squared_euclidean", "--out", "own")
    run(capsys, *argv, "--margin", "0.15", "--distance", "cosine", "--out", "half")

    def first_loss(head: str) -> float:
        return load_head(head)[1]["training"]["history"][0]["train_loss"]

    assert (folder / "plain/head.safetensors").read_bytes() == (folder / "own/head.safetensors").read_bytes()
    # |t - p|^2 - |t - n|^2 + 0.3 = 2 (cos(t, n) - cos(t, p) + 0.15)
    assert first_loss("plain") == pytest.approx(2 * first_loss("half"), rel=1e-5)
    recorded = load_head("half")[1]["training"]
    assert (recorded["margin"], recorded["distance"], recorded["reduction"]) == (0.15, "cosine", None)

    def killed(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("heads.training.checkpoint.EVERY_S", 0.0)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("heads.api.training.evaluate", killed)
        main([*argv, "--margin", "0.2", "--out", "again"])
    assert main([*argv, "--margin", "0.4", "--out", "again", "--resume"]) == 2
    assert "belongs to another training" in capsys.readouterr().err


def pick_a_pic(path: str) -> None:
    """Comparisons of pictures p0 to p59 under prompts 0 to 29, four a prompt, each by another user; some are ties."""
    rng = np.random.default_rng(4)
    rows = []
    for row in range(120):
        prompt, (a, b) = row % 30, rng.permutation(2)
        one, other = (2 * prompt + a, 2 * prompt + b)
        label = 0.5 if row % 5 == 0 else float(one < other)
        rows.append({"caption": f"prompt {prompt}", "jpg_0": b"", "jpg_1": b"", "image_0_uid": f"p{one}.png",
                     "image_1_uid": f"p{other}.png", "label_0": label, "label_1": 1 - label, "has_label": label != 0.5,
                     "num_example_per_prompt": 4, "user_id": row % 40,
                     "model_0": row % 3, "model_1": row % 2})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_pickscores_split_from_training_to_its_threshold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pick_a_pic("picks.parquet")
    argv = ("train", "cache", "--data", "picks.parquet", "--split", "pickscore", "--epochs", "2", "--out", "head")
    trained = run(capsys, *argv, "--held-out-prompts", "20")
    split = trained["split"]
    assert (split["held_out_prompts"], split["held_out_rows"], split["validation_rows"]) == (20, 10, 10)
    assert (split["by"], split["folds"], split["test_fraction"]) == (None, None, None)
    ids = pq.read_table("head/trained.parquet")["id"]
    assert len(ids) == 10 * 3, "ten prompts and their two pictures each"

    evaluate = ("evaluate", "head", "--cache", "cache", "--data", "picks.parquet")
    files = ("--scores", "scores.parquet", "--report", "page.html")
    found = run(capsys, *evaluate, "--baselines", "--prior-by", "model_0,model_1", *files)
    assert found["rows"] == 10 and found["part"].startswith("held out by split")
    assert found["pair_accuracy"] == trained["pair_accuracy"]
    assert len(found["tie_thresholds"]) <= 1 and found["tie_thresholds_of"] == "the best on the validation rows"
    assert pq.read_table("scores.parquet").num_rows == 20
    # Another table of as many prompts: only what is new to the head is measured.
    table = pq.read_table("picks.parquet")
    pq.write_table(table.take(np.arange(119, -1, -1)), "picks.parquet")
    again = run(capsys, *evaluate)
    assert again["rows"] == 80 and again["tie_thresholds_of"] == "the best for each part on the other parts"
    assert run(capsys, "evaluate", "head", "--cache", "cache", "--data", "table.parquet")["rows"] < ROWS

    for wrong, told in (
        ((), "wants 1000 prompts that share no picture and no user; the table has 30 prompts, 60 pictures, 40 users"),
        (("--held-out-prompts", "7"), "wanted an even number"),
        (("--folds", "3"), "leave out --split-by and --folds"),
        (("--split", "pickscoer"), "near names: pickscore"),
    ):
        assert main([*argv, "--overwrite", *wrong]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    assert main(["train", "cache", "--data", "picks.parquet", "--held-out-prompts", "4", "--out", "new"]) == 2
    assert "--held-out-prompts needs --split pickscore" in capsys.readouterr().err


def test_options_that_do_nothing_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ("train", "cache", "--data", "table.parquet", "--out", "head")

    def fails(*argv: str) -> str:
        assert main([*start, *argv]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "--dropout is for fusion and does nothing for the head linear" in fails(
        "--head", "linear", "--dropout", "0.1"
    )
    assert "--learning-rate is for cosine and mlp and fusion" in fails("--head", "kernel", "--learning-rate", "1")
    assert "--penalty is for linear and kernel" in fails("--head", "fusion", "--penalty", "1")
    assert "--no-activations is for mlp" in fails("--head", "fusion", "--no-activations")
    assert "no head reads --hidden, --penalty together" in fails("--penalty", "1", "--hidden", "8")
    assert "device 'cuda:77' cannot be used here" in fails("--device", "cuda:77")
    assert "--device auto is not supported here; use cpu or cuda" in fails("--device", "auto")
    assert "--bf16 is for training on CUDA" in fails("--head", "fusion", "--bf16")
    assert "--bf16 is for cosine and mlp and fusion" in fails("--head", "linear", "--bf16")
    assert "--margin is for triplet and ranking and does nothing for the loss preference" in fails("--margin", "1")
    assert "--reduction is for cosine and mlp and fusion" in fails("--head", "linear", "--reduction", "sum")
    assert "margin is -1.0; wanted more than 0" in fails("--loss", "ranking", "--margin", "-1")
    for beside in (("--folds", "5"), ("--split", "pickscore")):
        error = fails("--test-fraction", "0.1", *beside)
        assert f"--test-fraction 0.1 has no effect together with {' '.join(beside)}" in error
    assert "--weights names 2 and there are 1 tables" in fails("--weights", "1,2")
    assert "every weight must be positive" in fails("--weights", "-1")
    assert "near names: preference" in fails("--loss", "preferenc")
    Path("options.json").write_text('{"colour": 1}')
    assert "unknown option in options.json: 'colour'" in fails("--config", "options.json")
    Path("options.json").write_text('{"hidden": "wide"}')
    assert "hidden in options.json is 'wide'; wanted a whole number" in fails("--config", "options.json")
    Path("options.json").write_text('{"head": "fussion", "hidden": 16}')
    assert "head in options.json is 'fussion'" in fails("--config", "options.json")
    Path("options.json").write_text('{"weight_decay": -1}')
    assert "weight_decay in options.json is -1; wanted at least 0" in fails("--config", "options.json")
    Path("options.json").write_text('{"epochs": true}')
    assert "epochs in options.json is True; wanted a whole number" in fails("--config", "options.json")
    assert not Path("head").exists()


def test_without_a_head_a_small_table_gets_a_blend_in_five_folds(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("train", "cache", "--data", "table.parquet", "--split-by", "sub", "--out", "head")
    assert main([*start, "--split-seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("auto: blend (60 rows are few") for line in lines)
    assert any("the head of 0 is kept" in line for line in lines)
    _, manifest = load_head("head")
    assert manifest["head"]["kind"] == "blend" and manifest["split"]["folds"] == 5
    assert len(load_fold_heads("head")) == 5
    assert manifest["metrics"]["pair_accuracy"]["value"] > 0.8  # type: ignore[typeddict-item]
    assert run(capsys, *EVALUATE)["pair_accuracy"] == manifest["metrics"]["pair_accuracy"]  # type: ignore[typeddict-item]
    # Counts that no picture tells: 60 rows are too few to say so.
    table = pq.read_table("table.parquet")
    counts = pa.array(np.random.default_rng(1).permutation(table["count"].to_numpy()))
    pq.write_table(table.set_column(table.schema.get_field_index("count"), "count", counts), "noise.parquet")
    assert main(["train", "cache", "--data", "noise.parquet", "--split-by", "sub", "--out", "noise"]) == 0
    assert capsys.readouterr().out.startswith("too few rows to tell: ")
    # Without prompts the default reads pictures alone, and is no error.
    table = pq.read_table("table.parquet").drop_columns(["prompt"])
    pq.write_table(table, "bare.parquet")
    bare = run(capsys, "train", "cache", "--data", "bare.parquet", "--split-by", "sub", "--out", "bare")
    assert bare["pair_accuracy"]["value"] > 0.8
    assert load_head("bare")[0].inputs == ("image_embedding",)


def test_comparisons_are_split_by_their_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table("table.parquet").to_pylist()
    rows = [
        {"prompt": f"prompt {i}", "pos_path": a["image"], "neg_path": b["image"]}
        for i, (one, other) in enumerate(zip(table[::2], table[1::2], strict=True))
        for a, b in [sorted((one, other), key=lambda row: -row["count"])]
    ]
    pq.write_table(pa.Table.from_pylist(rows), "pairs.parquet")
    start = ("train", "cache", "--data", "pairs.parquet", "--out", "head")
    by_prompt = run(capsys, *start, "--split-by", "prompt")
    assert by_prompt["split"]["hash"] == run(capsys, *start, "--overwrite")["split"]["hash"]
    assert by_prompt["split"]["held_out_rows"] == len(rows)


def test_min_ratio_is_of_heads_that_learn_from_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ("train", "cache", "--data", "table.parquet", "--split-by", "sub", "--min-ratio", "2", "--out")
    run(capsys, *plain, "auto", "--epochs", "1")
    assert json.loads((folder / "auto" / "head.json").read_text())["head"]["kind"] == "fusion"
    assert main([*plain, "blend", "--head", "blend"]) == 2
    assert "the head blend learns from rows, not pairs; leave out --min-ratio" in capsys.readouterr().err
