"""`python -m heads generate` from prompts to the best pictures, and what it says to bad input."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from pixel_tiny import tiny_pipeline
from reward_tiny import write_head
from unfreeze_tiny import load, make_folder
from waiting import wait_until

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
    (folder / "plain.txt").write_text("{prompt}\n")
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


def test_a_bundle_chooses_by_the_scores_that_it_serves(made: Path, tmp_path: Path, bundle: Path) -> None:
    from runtime.scoring.scorer import Scorer

    out = tmp_path / "out"
    assert main(arguments(made, out, "--seeds", "0..2", "--best", str(bundle))) == 0
    document, scorer = json.loads((out / "best.json").read_text()), Scorer.load(bundle)
    for place, one in enumerate(document["best"]):
        scores = {}
        for path in sorted((out / f"{place:04d}").glob("*.png")):
            (score,) = scorer.score_items(one["prompt"], [path]).scores
            scores[str(path.relative_to(out))] = float(score)
        assert len(scores) == one["candidates"] == 6
        assert one["score"] == pytest.approx(max(scores.values()), abs=1e-4)
        assert scores[one["image"]] == pytest.approx(max(scores.values()), abs=1e-4)
        assert one["mean"] == pytest.approx(sum(scores.values()) / 6, abs=1e-4)


def test_a_process_serves_the_pictures_that_a_folder_would_hold(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*arguments(made, out, "--seeds", "3..4"), "--templates", str(made / "plain.txt")]) == 0
    command = [sys.executable, "-m", "heads", "generate", str(made / "generator"), "--serve", "--port", "0", *FAST]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PLAUDIT_TOKEN": "secret"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"on (127\.0\.0\.1:\d+); stop with Ctrl-C", said)
        assert found, said
        with httpx.Client(base_url=f"http://{found[1]}", timeout=120, trust_env=False) as client:
            wait_until(lambda: _answers(client))
            asked = {"prompt": "plum", "seed": 3, "n": 2}
            assert client.post("/generate", json=asked).status_code == 401
            answer = client.post("/generate", json=asked, headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 200 and answer.json()["seeds"] == [3, 4]
        served = [base64.b64decode(one) for one in answer.json()["pictures"]]
        for data, seed in zip(served, (3, 4), strict=True):
            with Image.open(io.BytesIO(data)) as one, Image.open(out / "0001" / f"00_{seed}.png") as other:
                np.testing.assert_allclose(np.asarray(one, int), np.asarray(other, int), atol=1)  # batches round
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False


def test_the_folder_is_one_that_runtime_chooses_from(made: Path, tmp_path: Path) -> None:
    from runtime.scoring.best_of_n import plan

    out = tmp_path / "out"
    assert main(arguments(made, out, "--seeds", "0..1")) == 0
    theirs = plan(["red apple", "plum"], ["{prompt}", "a large {prompt}"], 2)
    assert sorted(f"{one['file']}.png" for one in theirs) == sorted(str(p.relative_to(out)) for p in out.rglob("*.png"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seeds", "3..1"], "is neither a seed nor a range"),
        (["--best", "nowhere"], "nowhere"),
        (["--prompts", "LATIN"], "is not a UTF-8 text (byte 3)"),
        (["--templates", "LATIN"], "is not a UTF-8 text (byte 3)"),
        (["--lora", "HEAD"], "is not a tuned generator"),
        (["--out", "OTHER"], "is not a folder of generated pictures and not empty (it has mine.txt)"),
        (["--guidance", "0.5"], "guidance"),
        (["--lora", "nowhere"], "nowhere is not a tuned generator"),
        (["--serve"], "--serve takes no --prompts"),
    ],
)
def test_bad_input_is_told_in_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    (tmp_path / "LATIN").write_bytes(b"caf\xe9\n")
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER" / "mine.txt").write_text("kept")
    names = {"LATIN": tmp_path / "LATIN", "OTHER": tmp_path / "OTHER", "HEAD": made / "head"}
    assert main(arguments(made, tmp_path / "out", *(str(names.get(word, word)) for word in change))) == 2
    assert (tmp_path / "OTHER" / "mine.txt").read_text() == "kept"
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0]


def test_what_is_missing_is_said(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(made / "generator")]) == 2
    assert "wanted --prompts FILE and --out FOLDER" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert main([*arguments(made, tmp_path / "out"), "--prompts", str(tmp_path / "empty.txt")]) == 2
    (tmp_path / "model_index.json").write_text('{"_class_name": "Other"}')
    listed = ["--prompts", str(made / "prompts.txt"), "--out", str(tmp_path / "out")]
    assert main(["generate", str(tmp_path), *listed]) == 2
    assert "Other" in capsys.readouterr().err
    assert main(["generate", str(made / "generator"), "--serve", "--host", "0.0.0.0"]) == 2
    assert "there is no token" in capsys.readouterr().err
