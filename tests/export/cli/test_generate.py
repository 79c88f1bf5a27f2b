"""`python -m heads generate` from prompts to the best pictures, and what it says to bad input."""

import json
from pathlib import Path

import pytest
from pixel_tiny import tiny_pipeline
from reward_tiny import write_head
from unfreeze_tiny import load, make_folder

from heads.cli.main import main
from heads.config import HeadConfig

FAST = ["--sampling-steps", "2", "--guidance", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a generator, a head, prompts and templates."""
    folder = tmp_path_factory.mktemp("made")
    backbone = load(make_folder(folder / "tiny"))
    tiny_pipeline(backbone, size=16).save_pretrained(folder / "generator")
    write_head(folder / "head", backbone, HeadConfig("fusion", 16, hidden=8))
    (folder / "prompts.txt").write_text("red apple\n\nplum\n")
    (folder / "templates.txt").write_text("{prompt}\na large {prompt}\n")
    return folder


def arguments(made: Path, out: Path, *more: str) -> list[str]:
    listed = ["--prompts", str(made / "prompts.txt"), "--templates", str(made / "templates.txt")]
    return ["generate", str(made / "generator"), *listed, "--out", str(out), *FAST, *more]


def test_the_best_is_chosen_and_pictures_are_kept(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*arguments(made, out, "--seeds", "0..1"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first == {"out": str(out), "pictures": 8, "new": 8}
    assert main(arguments(made, out, "--seeds", "0..2", "--best", str(made / "head"))) == 0
    shown = capsys.readouterr().out
    assert "12 pictures of 2 prompts" in shown and "4 of them new" in shown and "a large {prompt}" in shown
    document = json.loads((out / "best.json").read_text())
    assert [one["prompt"] for one in document["best"]] == ["red apple", "plum"]
    for one in document["best"]:
        assert (out / one["image"]).exists() and one["candidates"] == 6 and one["score"] >= one["mean"]
    assert sum(one["best"] for one in document["templates"]) == pytest.approx(1)


def test_the_folder_is_one_that_runtime_chooses_from(made: Path, tmp_path: Path) -> None:
    from runtime.scoring.best_of_n import plan

    out = tmp_path / "out"
    assert main(arguments(made, out, "--seeds", "0..1")) == 0
    theirs = plan(["red apple", "plum"], ["{prompt}", "a large {prompt}"], 2)
    assert sorted(f"{one['file']}.png" for one in theirs) == sorted(str(p.relative_to(out)) for p in out.rglob("*.png"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seeds", "3..1"], "is no seed and no range"),
        (["--best", "nowhere"], "nowhere"),
        (["--guidance", "0.5"], "guidance"),
        (["--lora", "nowhere"], "nowhere is no tuned generator"),
        (["--serve"], "--serve takes no --prompts"),
    ],
)
def test_bad_input_is_told_in_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert main(arguments(made, tmp_path / "out", *change)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0]


def test_what_is_missing_is_said(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(made / "generator")]) == 2
    assert "--prompts FILE and --out FOLDER are wanted" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert main([*arguments(made, tmp_path / "out"), "--prompts", str(tmp_path / "empty.txt")]) == 2
    (tmp_path / "model_index.json").write_text('{"_class_name": "Other"}')
    listed = ["--prompts", str(made / "prompts.txt"), "--out", str(tmp_path / "out")]
    assert main(["generate", str(tmp_path), *listed]) == 2
    assert "Other" in capsys.readouterr().err
    assert main(["generate", str(made / "generator"), "--serve", "--host", "0.0.0.0"]) == 2
    assert "there is no token" in capsys.readouterr().err
