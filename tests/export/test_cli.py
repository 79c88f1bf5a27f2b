"""`python -m export`: head to bundle and its check, in one process each, with exit codes."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from export_tiny import head_manifest, tiny_backbone, tiny_head, write_pictures

from embed.backbones import load as loading
from embed.inputs.fetch import some_pictures
from embed.spec import InputError, Source
from export import exported, measure
from export.cli.main import main
from heads.store.disk import save_head


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(source: Source, device: str = "cpu") -> Any:
        if source.model != "tiny-vit":
            raise InputError(f"unknown model {source.model!r}")
        return tiny_backbone()

    for module in (exported, loading):
        monkeypatch.setattr(module, "load_backbone", load)
    monkeypatch.setattr(measure, "GENERATED_PICTURES", 6)


def test_a_saved_head_becomes_a_bundle_that_proves_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = head_manifest(tiny_backbone(), source={"model": "tiny-vit", "pretrained": None})
    save_head(tmp_path / "head", tiny_head(), [], pa.array(["a"]), manifest)
    out = tmp_path / "bundle"
    assert main(["onnx", str(tmp_path / "head"), "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parity"]["precisions"]["fp32"]["scores"]["flips"] == 0
    assert main(["onnx", str(tmp_path / "head"), "--out", str(tmp_path / "head"), "--overwrite"]) == 2
    assert "is a head, not a bundle; choose another --out" in capsys.readouterr().err
    (out / "left.onnx").touch()
    assert main(["onnx", str(tmp_path / "head"), "--out", str(out), "--overwrite"]) == 0
    assert not (out / "left.onnx").exists() and sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "head"]
    assert main(["check", str(out), "--head", str(tmp_path / "head")]) == 0
    text = capsys.readouterr().out
    assert "all files are unchanged since the export" in text
    assert "ONNX against torch on 6 generated pictures under 12 prompts" in text


def test_check_measures_every_precision_on_own_pictures(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", 4)
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    options = ["--images", str(tmp_path / "pictures"), "--prompts", str(tmp_path / "prompts.txt"), "--max-flips", "0.5"]
    assert main(["check", str(bundle), "--json", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["reference"]) == set(document["torch"]["precisions"]) == {"fp32", "fp16", "int8"}
    scores = document["torch"]["precisions"]["int8"]["scores"]
    assert (scores["pictures"], scores["prompts"]) == (4, 2)


def test_runtime_half_alone(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(bundle), "--runtime-only"]) == 0
    assert "not compared with torch: --runtime-only" in capsys.readouterr().out


def test_a_backbone_that_is_not_here_leaves_the_runtime_half(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(source: Source) -> Any:
        raise InputError("weights not found")

    for module in (exported, loading):
        monkeypatch.setattr(module, "load_backbone", fail)
    assert main(["check", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torch"] is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["onnx", "{tmp}/none", "--out", "{tmp}/out"], "is not a head"),
        (["check", "{tmp}"], "is not a bundle"),
        (["check", "{bundle}", "--images", "{tmp}/none"], "not a folder of pictures"),
        (["check", "{bundle}", "--max-flips", "2"], "--max-flips is 2"),
        (["onnx", "{tmp}/none", "--out", "{bundle}"], "is a bundle already; say --overwrite to replace it"),
        (["onnx", "{tmp}/none", "--out", "{bundle}/.."], "is not a bundle and not empty"),
        (["triton", "{tmp}/none", "--out", "{bundle}"], "is a bundle, not a Triton repository"),
        (["check", "{bundle}", "--provider", "cuda"], "has no CUDAExecutionProvider, only"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    bundle: Path, tmp_path: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([part.format(tmp=tmp_path, bundle=bundle) for part in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m export: ") and message in error and error.count("\n") == 1


def test_pictures_are_spread_over_a_folder(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.jpg").touch()
    (tmp_path / "notes.txt").touch()
    assert [path.name for path in some_pictures(tmp_path, 4)] == ["0.jpg", "2.jpg", "5.jpg", "7.jpg"]
    assert len(some_pictures(tmp_path, 100)) == 10
