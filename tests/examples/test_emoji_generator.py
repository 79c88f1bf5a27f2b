"""The emoji example trains, tunes and compares a generator; a little of everything shows that it goes through."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from paths import ROOT
from PIL import Image

from embed.backbones.starter import is_installed

pytestmark = pytest.mark.skipif(not is_installed(), reason="the starter's packages are not installed")


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "examples" / "emoji"))
    yield importlib.import_module("generator")
    sys.path.pop(0)


def test_the_whole_path_in_little(generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    generator.main(["--quick", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["prompts"]) == 4 and result["held_out"] == 2
    for name in ("tuned", "unguarded"):
        assert set(result["figures"][name]) == {"all prompts", "held out"}
        assert set(result["figures"][name]["held out"]) == {"reward", "judge", "diversity", "variety", "sharpness"}
    with Image.open(tmp_path / "pictures.png") as sheet:
        assert sheet.size == (4 * 64, 4 * 64)  # of each prompt: the emoji, before, tuned, unguarded


def test_few_emoji_are_taken_of_those_whose_use_is_known(generator: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows: list[dict[str, object]] = []
    for i in range(6):
        Image.new("RGBA", (8, 8), (40 * i, 0, 0)).save(tmp_path / f"images/{i}.png")
        rows.append({"image": f"images/{i}.png", "name": f"emoji {i}", "occurrences": i if i > 3 else None})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "emoji.parquet")
    assert generator.read_emoji(tmp_path, 2).names == ["emoji 4", "emoji 5"]
    assert len(generator.read_emoji(tmp_path).names) == 6


def test_held_out_names_are_in_no_training(generator: ModuleType) -> None:
    emoji = generator.read_emoji(generator.FOLDER, 60)
    compared, learnt = generator.choose_prompts(emoji, 6)
    held = {emoji.names[i] for i in np.flatnonzero(emoji.held_out)}
    assert len(held) == 3 and set(compared[:3]) == held and not held & set(learnt)
    assert len(set(compared)) == 6 and not set(compared) & set(learnt)
    assert len(learnt) == 54


def test_a_training_that_goes_on_ends_where_another_does(generator: ModuleType, tmp_path: Path) -> None:
    emoji, folders = generator.read_emoji(generator.FOLDER, 20), (tmp_path / "whole", tmp_path / "parts")
    generator.train(generator.new_pipeline((16, 32)), emoji, 3, folders[0], 2)
    for steps in (1, 3):
        generator.train(generator.new_pipeline((16, 32)), emoji, steps, folders[1], 2)
    weights = [(folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
