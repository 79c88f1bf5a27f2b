"""`heads evaluate`, `compare`, `calibrate` and `generators` from a cache to a page, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heads_tiny import make_cache

from heads.cli import main
from heads.store import load_manifest

PROMPTS, PICTURES = 12, 5
Run = Callable[..., dict]
Fails = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of 60 pictures of 12 prompts, rated along the first coordinate of their vectors, and a trained head."""
    monkeypatch.chdir(tmp_path)
    images = [f"g{i % PICTURES}_{i}.png" for i in range(PROMPTS * PICTURES)]
    prompts = [f"prompt {i}" for i in range(PROMPTS)]
    cache = make_cache(tmp_path / "cache", images, prompts)
    rating = np.round(3 + 4 * cache.image_embeddings()[:, 0].astype(float), 1)
    prompt = np.repeat(prompts, PICTURES)
    columns = {"image": images, "prompt": prompt, "rating": rating, "style": [f"s{i % 2}" for i in range(len(images))]}
    pq.write_table(pa.table(columns), "ratings.parquet")
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> dict:
        assert main([*argv, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    def fails(*argv: str) -> str:
        assert main(list(argv)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        return captured.err

    return fails


DATA = ("--data", "ratings.parquet")
TRAIN = ("train", "cache", *DATA, "--split-by", "prompt", "--epochs", "2", "--input-dropout", "0")
HELD_OUT = ("--cache", "cache", *DATA)


def test_probe(run: Run, fails: Fails, folder: Path, capsys) -> None:
    run(*TRAIN, "--folds", "3", "--out", "head")
    print(json.dumps(load_manifest("head")["calibration"])[:200])
    r = run(
        "evaluate", "head", *HELD_OUT, "--baselines", "--prior-by", "style", "--slice-by", "style", "--report", "r.html"
    )
    assert main(["evaluate", "head", *HELD_OUT, "--baselines", "--prior-by", "style", "--slice-by", "rating"]) == 0
    print(capsys.readouterr().out)
    assert main(["generators", "head", *HELD_OUT, "--by", "image", "--pattern", "^[^_]+"]) == 0
    print(capsys.readouterr().out)
    run(*TRAIN, "--head", "linear", "--out", "linear")
    assert main(["compare", "head", "linear", *HELD_OUT]) == 0
    print(capsys.readouterr())
    assert main(["calibrate", "linear", *HELD_OUT]) == 0
    print(capsys.readouterr())
    assert 0
