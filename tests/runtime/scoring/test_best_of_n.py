"""Best of n against hand-made scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed.inputs.images import ImageError
from embed.spec import InputError
from runtime.scoring.best_of_n import TEMPLATES, best_of_n, plan, read_sources, read_templates
from runtime.scoring.outputs import Output, Outputs
from runtime.scoring.scorer import Scored


class Sizes:
    """Scores a picture by its file's size times the length of the prompt; an empty file is a bad picture."""

    def __init__(self) -> None:
        self.sources = list[list[str]]()

    named = Outputs((Output("score", ("image_embedding",), {"score": "score", "uncertainty": "uncertainty"}),))

    def score_items(self, prompt: str, images: list[Path], sources: Sequence[Path]) -> Scored:
        self.sources.append([path.name for path in sources])
        sizes = np.array([path.stat().st_size or np.nan for path in images], np.float32)
        errors = {i: ImageError("read", "empty file") for i in np.flatnonzero(np.isnan(sizes)).tolist()}
        return Scored({"score": sizes * len(prompt), "uncertainty": sizes / 10}, errors)


def candidates(folder: Path, sizes: dict[str, int]) -> None:
    folder.mkdir()
    for name, size in sizes.items():
        (folder / name).write_bytes(b"x" * size)


def test_the_highest_is_chosen_with_its_template(tmp_path: Path) -> None:
    candidates(tmp_path / "0000", {"00_0.png": 3, "01_0.png": 7, "01_1.png": 7, "00_1.png": 0, ".hidden": 9})
    candidates(tmp_path / "0001", {"other.png": 5})
    scorer: Any = Sizes()
    first, second = best_of_n(scorer, ["ab", "c"], ["{prompt}", "{prompt}!"], tmp_path)
    assert (Path(first.image).name, first.template, first.score) == ("01_0.png", "{prompt}!", 14)
    assert first.uncertainty == pytest.approx(0.7)
    assert (first.mean, first.candidates, first.unreadable) == (pytest.approx(34 / 3), 3, 1)
    assert (second.template, second.score) == (None, 5)


def test_candidates_are_scored_with_what_their_prompt_edits(tmp_path: Path) -> None:
    for i in range(2):
        candidates(tmp_path / f"000{i}", {"00_0.png": 3})
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "sources.txt").write_text("\na.png\n")
    sources, scorer = read_sources(tmp_path / "sources.txt", 2), Sizes()
    assert sources == [None, tmp_path / "a.png"]
    given: Any = scorer
    best_of_n(given, ["ab", "c"], TEMPLATES, tmp_path, sources=sources)
    assert scorer.sources == [[], ["a.png"]]
    with pytest.raises(InputError, match="has 2 lines for 3 prompts"):
        read_sources(tmp_path / "sources.txt", 3)
    (tmp_path / "sources.txt").write_text("b.png\n")
    with pytest.raises(InputError, match=r"line 1: there is no file .*b\.png"):
        read_sources(tmp_path / "sources.txt", 1)


def test_missing_or_unreadable_candidates_name_their_prompt(tmp_path: Path) -> None:
    scorer: Any = Sizes()
    with pytest.raises(InputError, match="candidates for the prompt 'a cat'"):
        best_of_n(scorer, ["a cat"], TEMPLATES, tmp_path)
    candidates(tmp_path / "0000", {"00_0.png": 0})
    with pytest.raises(InputError, match="no picture that can be read"):
        best_of_n(scorer, ["a cat"], TEMPLATES, tmp_path)


def test_plan_is_every_template_and_seed_of_every_prompt() -> None:
    found = plan(["a cat", "{odd}"], TEMPLATES, 5)
    assert len(found) == 2 * 20 * 5 and len({item["file"] for item in found}) == 200
    assert found[0] == {"file": "0000/00_0", "seed": 0, "text": "a cat"}
    assert found[-1]["text"].startswith("{odd}, ")


def test_twenty_different_templates_begin_with_the_prompt_itself() -> None:
    assert len(set(TEMPLATES)) == 20 and TEMPLATES[0] == "{prompt}"


def test_templates_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("{prompt}\n\n big {prompt} \n")
    assert read_templates(path) == ("{prompt}", "big {prompt}")
    path.write_text("{prompt}\nno place\n")
    with pytest.raises(InputError, match=r"line 2: 'no place' has no \{prompt\}"):
        read_templates(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="no template"):
        read_templates(path)
