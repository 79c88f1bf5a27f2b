"""Choices and examples out of tables, against the rows as they are written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embed.records.formats import read_records
from embed.spec import InputError
from heads.tuning.data import kept_aside, read_examples, read_preferences, read_prompts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        Image.new("RGB", (20 + 4 * i, 20), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def records_of(folder: Path, rows: list[dict[str, object]]):  # type: ignore[no-untyped-def]
    (folder / "table.json").write_text(json.dumps(rows))
    return read_records(str(folder / "table.json"))


def test_choices_are_pairs_without_ties(folder: Path) -> None:
    rows = [
        {"caption": "a", "image_0_url": "0.png", "image_1_url": "1.png", "label_0": 0.0, "label_1": 1.0},
        {"caption": "b", "image_0_url": "2.png", "image_1_url": "3.png", "label_0": 0.5, "label_1": 0.5},
        {"caption": "c", "image_0_url": "2.png", "image_1_url": "0.png", "label_0": 1.0, "label_1": 0.0},
    ]
    found = read_preferences(records_of(folder, rows))
    names = [(Path(won).name, Path(lost).name) for won, lost in zip(found.better, found.worse, strict=True)]
    assert list(zip(found.prompt, names, strict=True)) == [("a", ("1.png", "0.png")), ("c", ("2.png", "0.png"))]
    pixels = found.pictures.read(found.better, 16)
    assert pixels.shape == (2, 3, 16, 16)
    torch.testing.assert_close(pixels.mean(dim=(2, 3))[:, 0], torch.tensor([60 / 255, 120 / 255]))
    with pytest.raises(InputError, match="no pair of pictures of one prompt"):
        read_preferences(records_of(folder, rows[1:2]))


def test_ratings_are_choices_between_the_pictures_of_a_prompt(folder: Path) -> None:
    rows = [{"image": f"{i}.png", "prompt": "ab"[i // 2], "rating": [3, 5, 1, 1][i]} for i in range(4)]
    found = read_preferences(records_of(folder, rows))
    assert [(Path(a).name, Path(b).name, p) for a, b, p in zip(found.better, found.worse, found.prompt, strict=True)] \
        == [("1.png", "0.png", "a")]  # fmt: skip


def test_examples_are_every_picture_with_its_prompt_once(folder: Path) -> None:
    rows = [{"prompt": "a", "pos_path": "0.png", "neg_path": "1.png"}] * 2
    found = read_examples(records_of(folder, rows))
    assert [(Path(key).name, text) for key, text in zip(found.image, found.prompt, strict=True)] == [
        ("0.png", "a"),
        ("1.png", "a"),
    ]
    plain = read_examples(records_of(folder, [{"image": f"{i}.png", "prompt": f"p{i}"} for i in range(3)]))
    assert plain.prompt == ["p0", "p1", "p2"] and len(plain) == 3
    with pytest.raises(InputError, match="has no column prompt"):
        read_examples(records_of(folder, [{"image": "0.png"}]))


def test_prompts_are_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(["a", "", " b ", "a", "c", "d", "e"]))
    prompts = read_prompts(path)
    assert prompts == ["a", "b", "c", "d", "e"]
    learnt, aside = kept_aside(prompts, 2, 0)
    assert len(aside) == 2 and sorted(learnt + aside) == prompts
    assert len(kept_aside(prompts, 16, 0)[1]) == 2 and kept_aside(["a"], 4, 0) == (["a"], ["a"])
    assert np.unique([kept_aside(prompts, 1, seed)[1][0] for seed in range(20)]).size > 1
    path.write_text("\n \n")
    with pytest.raises(InputError, match="holds no prompt; wanted one a line"):
        read_prompts(path)
