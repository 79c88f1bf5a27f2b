"""Pictures are a function of text and seed, whatever was made before, beside or after them."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embed.spec import InputError
from heads.generating.config import GenerateConfig, parse_seeds
from heads.generating.pictures import begin, generate, plan
from heads.tuning.pixel import PixelPipeline

PROMPTS = ["red apple", "plum"]
TEMPLATES = ["{prompt}", "a large {prompt}"]
CONFIG = GenerateConfig(sampling_steps=2, guidance=1.0, batch_size=3)


@pytest.fixture(scope="module")
def pipeline(generator: Path) -> PixelPipeline:
    loaded = PixelPipeline.from_pretrained(generator)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_every_prompt_in_every_template_with_every_seed(pipeline: PixelPipeline, tmp_path: Path) -> None:
    candidates = plan(PROMPTS, TEMPLATES, (3, 5))
    assert generate(pipeline, candidates, tmp_path, CONFIG) == 8
    assert sorted(contents(tmp_path)) == sorted(
        f"{i:04d}/{j:02d}_{s}.png" for i in (0, 1) for j in (0, 1) for s in (3, 5)
    )
    with torch.no_grad():
        alone = pipeline(["a large plum"], 2, 1.0, generator=torch.Generator().manual_seed(5), output_type="pt").images
    found = np.asarray(Image.open(tmp_path / "0001" / "01_5.png")) / 255
    np.testing.assert_allclose(found, alone[0].permute(1, 2, 0).numpy(), atol=0.51 / 255 + 1e-5)


def test_pictures_have_the_size_that_was_asked_for(pipeline: PixelPipeline, tmp_path: Path) -> None:
    for size, expected in ((None, 16), (24, 24)):
        generate(pipeline, plan(["plum"], TEMPLATES[:1], (0,)), tmp_path / str(size), replace(CONFIG, size=size))
        with Image.open(tmp_path / str(size) / "0000" / "00_0.png") as image:
            assert image.size == (expected, expected)


def test_a_killed_run_goes_on(pipeline: PixelPipeline, tmp_path: Path) -> None:
    candidates = plan(PROMPTS, TEMPLATES, (0, 1))
    generate(pipeline, candidates, tmp_path / "whole", CONFIG)
    generate(pipeline, candidates[:3], tmp_path / "parts", CONFIG)
    os.utime(tmp_path / "parts" / candidates[0].file, (0, 0))
    assert generate(pipeline, candidates, tmp_path / "parts", CONFIG) == 5
    assert (tmp_path / "parts" / candidates[0].file).stat().st_mtime == 0  # kept, not made again
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, data in whole.items():  # of other batches: equal but for rounding
        images = [np.asarray(Image.open(tmp_path / run / name)).astype(int) for run in ("whole", "parts")]
        assert abs(images[0] - images[1]).max() <= 1, (name, len(data))


class Small:
    """A pipeline whose device has room for so many pictures."""

    def __init__(self, room: int) -> None:
        self.room, self.asked = room, list[int]()

    def __call__(self, prompt: Sequence[str], **options: Any) -> SimpleNamespace:
        self.asked.append(len(prompt))
        if len(prompt) > self.room:
            raise torch.cuda.OutOfMemoryError("full")
        return SimpleNamespace(images=[Image.new("RGB", (2, 2))] * len(prompt))


def test_batches_are_halved_where_memory_is_short(tmp_path: Path) -> None:
    pipeline = Small(2)
    candidates = plan(PROMPTS, TEMPLATES, (0, 1))
    generate(pipeline, candidates, tmp_path, GenerateConfig(batch_size=8))  # type: ignore[arg-type]
    assert pipeline.asked == [8, 4, 2, 2, 2, 2] and len(contents(tmp_path)) == 8
    with pytest.raises(InputError, match="does not fit into the memory"):
        generate(Small(0), candidates, tmp_path / "none", CONFIG)  # type: ignore[arg-type]


def test_a_folder_holds_pictures_of_one_kind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out, "sd", None, PROMPTS[:1], TEMPLATES, CONFIG)
    begin(out, "sd", None, PROMPTS, TEMPLATES[:1], GenerateConfig(2, 1.0, batch_size=1))
    there = json.loads((out / "generated.json").read_text())
    assert there["prompts"] == PROMPTS and there["templates"] == TEMPLATES
    with pytest.raises(InputError, match="pictures with pipeline sd"):
        begin(out, "xl", None, PROMPTS, TEMPLATES, CONFIG)
    with pytest.raises(InputError, match="pictures with settings"):
        begin(out, "sd", None, PROMPTS, TEMPLATES, GenerateConfig(3, 1.0))
    with pytest.raises(InputError, match="other prompts; only append"):
        begin(out, "sd", None, PROMPTS[::-1], TEMPLATES, CONFIG)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    with pytest.raises(InputError, match="not empty"):
        begin(tmp_path / "mine", "sd", None, PROMPTS, TEMPLATES, CONFIG)


def test_seeds_are_ranges_and_numbers() -> None:
    assert parse_seeds("0..3,7, 2") == (0, 1, 2, 3, 7)
    assert parse_seeds("4294967295") == (2**32 - 1,)
    for wrong in ("", "3..1", "-1", "a", "0..", "1.5", "4294967296", "0..99999999"):
        with pytest.raises(InputError, match="--seeds"):
            parse_seeds(wrong)
