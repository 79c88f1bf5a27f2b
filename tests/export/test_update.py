"""The whole loop: people vote over HTTP, a head learns from that and is served, unless it is no better."""

import csv
import importlib
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import onnx
import pytest
from backbone_folders import make_folder
from export_tiny import ImageOnly, tiny_head
from onnx import numpy_helper
from PIL import Image
from service_server import TOKEN, serving

from embed.backbones.load import load_backbone
from embed.spec import Source
from export.bundle_writer import export_bundle, export_outputs
from export.cli import update as module
from export.cli.main import main
from export.config import ExportConfig
from export.outputs import NamedHead, Outputs
from runtime.config import VotingConfig
from runtime.scoring.bundle import open_bundle

PROMPTS, EACH = 24, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Candidates of every brightness, which is in their names, a bundle whose head knows nothing of it, one of three
    heads that know as little, and votes."""
    tmp_path = tmp_path_factory.mktemp("loop")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(PROMPTS):
        for brightness in rng.choice(range(20, 236, 8), EACH, replace=False):
            noise = rng.integers(-20, 20, (64, 64, 3))
            name = f"{i}-{brightness}.png"
            Image.fromarray((brightness + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / name)
            rows.append((name, f"prompt {i}"))
    with open(tmp_path / "candidates.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "prompt"), *rows])
    backbone = load_backbone(Source(f"local-dir:{make_folder(tmp_path / 'backbone', 'vit')}"))
    manifest = {
        "head": {"kind": "fusion", "dim": 32, "hidden": 8},
        "identity": backbone.identity.to_json(),
        "training": {"loss": "preference"},
    }
    export_bundle(tmp_path / "bundle", backbone, tiny_head(), manifest, ExportConfig(max_flips=0.5))
    named = {"safe": ImageOnly().eval(), "liked": tiny_head(), "odd": tiny_head(seed=4)}
    three = Outputs(tuple(NamedHead(name, head, None, manifest) for name, head in named.items()))
    export_outputs(tmp_path / "three", backbone, three, ExportConfig(max_flips=0.5))
    vote_for_the_brighter(tmp_path)
    assert main_of("embed", "cache", tmp_path / "candidates.csv", "--model", f"local-dir:{tmp_path / 'backbone'}") == 0
    return tmp_path


def run_here(step: list[str]) -> None:
    """A command in this process, which has torch already."""
    assert importlib.import_module(f"{step[0]}.cli.main").main(step[1:]) == 0


def vote_for_the_brighter(folder: Path) -> None:
    """Two people answer every pair that they are shown, over HTTP; the reverse of a pair now and then."""
    names = {}
    config = VotingConfig(str(folder / "votes.db"), folder / "candidates.csv", random_share=0.5, votes_per_minute=9999)
    with serving(folder / "bundle", voting=config, tokens=(TOKEN,)) as running:
        from runtime.collect.candidates import read_candidates

        for one in read_candidates(folder / "candidates.csv").pictures:
            names[f"/v1/compare/pictures/{one.id}"] = int(one.key.partition("-")[2].removesuffix(".png"))
        for voter in ("ann", "ben"):
            body = {"count": 10, "voter": voter}
            while showings := running.client.post("/v1/compare/next", json=body).json()["showings"]:
                for one in showings:
                    left, right = (names[one[side]["picture"]] for side in ("left", "right"))
                    vote = {"showing": one["showing"], "choice": "left" if left > right else "right", "seconds": 2}
                    assert running.client.post("/v1/compare/votes", json=vote).status_code == 201


def test_votes_make_a_better_head_and_shuffled_ones_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "run_step", run_here)
    shutil.copy(folder / "votes.db", folder / "shuffled.db")
    shutil.copytree(folder / "bundle", folder / "old")
    given = ["update", "--votes", str(folder / "votes.db"), "--cache", str(folder / "cache")]
    given += ["--bundle", str(folder / "bundle"), "--json"]
    before = open_bundle(folder / "bundle").digest

    capsys.readouterr()
    with serving(folder / "bundle", tokens=(TOKEN,)) as running:
        monkeypatch.setenv("PLAUDIT_TOKEN", TOKEN)
        assert main([*given, "--service", str(running.client.base_url)]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["promoted"] and found["reloaded"] and found["p_value"] < 0.05
        assert found["new"]["value"] > 0.85 > 0.7 > found["old"]["value"]
        assert found["old_bundle"] == before != found["new_bundle"] == open_bundle(folder / "bundle").digest
        assert running.client.get("/health/ready").json()["bundle"] == found["new_bundle"]
    rows = sqlite3.connect(folder / "votes.db").execute("select promoted from promotions").fetchall()
    assert rows == [(1,)]
    assert main(given) == 0 and "no votes since" in capsys.readouterr().err

    rng = np.random.default_rng(1)
    with sqlite3.connect(folder / "shuffled.db") as connection:
        ids = [row[0] for row in connection.execute("select id from votes")]
        for id, side in zip(ids, rng.choice(["left", "right"], len(ids)), strict=True):
            connection.execute("update votes set choice = ? where id = ?", (side, id))
    given[2], given[6] = str(folder / "shuffled.db"), str(folder / "old")
    assert main([*given, "--max-p", "0.002"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not found["promoted"] and "not proven better" in found["why"]
    assert open_bundle(folder / "old").digest == before


def test_one_head_of_several_is_made_better_and_the_others_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "run_step", run_here)
    given = ["update", "--votes", str(folder / "votes.db"), "--cache", str(folder / "cache")]
    given += ["--bundle", str(folder / "three")]
    for wrong, why in (([], "with --name"), (["--name", "likd"], "near names: liked")):
        assert main([*given, *wrong]) == 2
        assert why in capsys.readouterr().err
    before, was = open_bundle(folder / "three"), parameters(folder / "three")
    assert main([*given, "--name", "liked", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["promoted"] and found["output"] == "liked" and found["new"]["value"] > 0.85 > found["old"]["value"]
    after, now = open_bundle(folder / "three"), parameters(folder / "three")
    assert [one["name"] for one in after.manifest["outputs"]] == ["safe", "liked", "odd"]
    assert after.manifest["outputs"][::2] == before.manifest["outputs"][::2]
    for name in ("safe.", "odd."):
        kept = {key: value for key, value in was.items() if key.startswith(name)}
        assert kept and kept == {key: value for key, value in now.items() if key.startswith(name)}
    assert main([*given, "--name", "liked"]) == 0 and "no votes since" in capsys.readouterr().out
    assert main([*given[:-1], str(folder / "bundle"), "--name", "liked"]) == 2


def parameters(bundle: Path) -> dict[str, bytes]:
    graph = onnx.load(str(bundle / "head.onnx")).graph
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer}


def main_of(package: str, *words: object) -> int:
    commands = importlib.import_module(f"{package}.cli.main")
    cache = Path(str(words[1])).parent / "cache"
    code: int = commands.main([*map(str, words), "--out", str(cache)])
    return code
