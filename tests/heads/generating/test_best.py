"""The best of n and the rates of templates are those of a loop over prompts and pairs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embed.inputs.images import load_image
from embed.inputs.pixels import preprocess
from embed.spec import InputError
from heads.generating.best import choose, rates, score_all
from heads.generating.pictures import plan
from heads.generating.rewarded import scores_of
from heads.reward.module import Reward

PROMPTS = ["apple", "pear", "plum"]
TEMPLATES = ["{prompt}", "{prompt}, red", "{prompt}, blue"]
CANDIDATES = plan(PROMPTS, TEMPLATES, (0, 1))


def values(ties: bool) -> np.ndarray:
    found = np.random.default_rng(0).normal(size=len(CANDIDATES))
    return np.round(found) if ties else found


@pytest.mark.parametrize("ties", [False, True])
def test_the_best_and_the_rates_are_those_of_a_loop(ties: bool) -> None:
    scores = values(ties)
    best = choose(PROMPTS, TEMPLATES, CANDIDATES, scores)
    found = rates(TEMPLATES, CANDIDATES, scores)
    won, met, over = np.zeros(3), np.zeros(3), [[], [], []]
    firsts = np.zeros(3)
    for i, prompt in enumerate(PROMPTS):
        rows = [k for k, one in enumerate(CANDIDATES) if one.prompt == i]
        top = max(rows, key=lambda k: scores[k])
        assert best[i].image == CANDIDATES[top].file and best[i].prompt == prompt
        assert best[i].score == scores[top] and best[i].mean == pytest.approx(np.mean(scores[rows]))
        assert best[i].template == TEMPLATES[CANDIDATES[top].template] and best[i].candidates == 6
        firsts[CANDIDATES[top].template] += 1
        for k in rows:
            for other in rows:
                a, b = CANDIDATES[k].template, CANDIDATES[other].template
                if a == b:
                    continue
                credit = 0.5 * (scores[k] == scores[other]) + (scores[k] > scores[other])
                won[a] += credit
                met[a] += 1
                if b == 0:
                    over[a].append(credit)
    for j, one in enumerate(found):
        assert one.template == TEMPLATES[j]
        assert one.best == pytest.approx(firsts[j] / 3) and one.wins == pytest.approx(won[j] / met[j])
        if j == 0:
            assert one.over_first is None
        else:
            assert one.over_first is not None and one.over_first.value == pytest.approx(np.mean(over[j]))
            assert 0 <= one.over_first.low <= one.over_first.value <= one.over_first.high <= 1


def test_one_template_wins_all_and_meets_none() -> None:
    candidates = plan(PROMPTS, TEMPLATES[:1], (0, 1))
    (one,) = rates(TEMPLATES[:1], candidates, np.arange(6.0))
    assert one.best == 1 and one.wins is None and one.over_first is None


def test_more_than_ten_templates_keep_their_numbers() -> None:
    templates = [f"{i} {{prompt}}" for i in range(12)]
    candidates = plan(PROMPTS, templates, (0,))
    found = rates(templates, candidates, np.array([float(one.template) for one in candidates]))
    assert [one.wins for one in found] == pytest.approx(np.arange(12) / 11)


def test_scores_are_asked_for_by_prompt_and_must_be_there() -> None:
    asked = list[tuple[str, int]]()

    def score(prompt: str, paths: Sequence[Path]) -> np.ndarray:
        asked.append((prompt, len(paths)))
        return np.arange(len(paths)) + 10.0 * len(asked)

    found = score_all(score, PROMPTS, CANDIDATES, Path("out"))
    assert asked == [(prompt, 6) for prompt in PROMPTS]
    np.testing.assert_array_equal(found, np.concatenate([np.arange(6) + 10.0 * i for i in (1, 2, 3)]))
    with pytest.raises(InputError, match=r"0000/00_0\.png has no score"):
        score_all(lambda prompt, paths: np.full(len(paths), np.nan), PROMPTS, CANDIDATES, Path("out"))


def test_a_head_scores_files_as_its_reward_does(head: Path, tmp_path: Path) -> None:
    reward, paths = Reward.load(head, "cpu"), []
    for i, size in enumerate(((16, 16), (20, 12))):
        levels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    found = scores_of(reward, "red apple", paths)
    tower = reward.encoder.image
    for path, score in zip(paths, found, strict=True):
        levels = preprocess(load_image(path.read_bytes()), reward.encoder.identity.preprocess)
        with torch.no_grad():
            vector = tower(torch.from_numpy(levels)[None])
            text = reward.encoder.prompts(["red apple"])
            assert score == pytest.approx(float(reward.head(image_embedding=vector, text_embedding=text)), abs=2e-5)
