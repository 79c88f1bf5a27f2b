"""The recipe of docs/tuning.md for a reward and a judge from halves of one table, as it stands on the page."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from doc_pages import blocks, commands_in
from PIL import Image
from unfreeze_tiny import make_folder

from embed.cli.main import main as embed
from heads.cli.main import main as heads
from heads.store.disk import load_manifest

PAGE, ROWS = "docs/tuning.md", 60


def test_each_half_makes_a_head_on_a_backbone_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "machine"))
    monkeypatch.setattr("heads.config.FEWEST_STEPS", 20)  # there is nothing to learn here
    rng = np.random.default_rng(0)
    for i in range(ROWS):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(f"{i}.png")
    prompts = [f"prompt {i // 2}" for i in range(ROWS)]
    table = {"image": [f"{i}.png" for i in range(ROWS)], "prompt": prompts, "rating": rng.random(ROWS) * 4 + 1}
    pq.write_table(pa.table(table), "ratings.parquet")
    mine = [block for block in blocks() if block.page == PAGE]
    (python,) = (block.text for block in mine if block.language == "python")
    exec(compile(python, PAGE, "exec"), {})
    halves = [set(pq.read_table(f"{name}.parquet")["prompt"].to_pylist()) for name in ("reward", "judge")]
    assert not halves[0] & halves[1] and halves[0] | halves[1] == set(prompts) and min(map(len, halves)) > 5
    (recipe,) = (block.text for block in mine if "embed cache" in block.text)
    models = {"ViT-L-14": make_folder(tmp_path / "a"), "ViT-B-16-SigLIP": make_folder(tmp_path / "b", seed=1)}
    for words in commands_in(recipe):
        _, _, package, *rest = words
        given = [f"local-dir:{models[word]}" if word in models else word for word in rest]
        if "--pretrained" in given:
            place = given.index("--pretrained")
            given = given[:place] + given[place + 2 :] + ["--workers", "1", "--device", "cpu"]
        assert {"embed": embed, "heads": heads}[package](given) == 0
    identities = [load_manifest(Path(name))["identity"] for name in ("head", "judge")]
    assert identities[0] != identities[1]
