"""Several rewards are brought to one scale by a reference set, and a backbone that they share runs once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from reward_tiny import PROMPTS, as_pixels, make_head, pictures, write_head, write_tuned

from embed.backbones import load as loading
from embed.backbones.backbone import Backbone
from embed.spec import InputError
from heads.config import HeadConfig
from heads.reward import several
from heads.reward.module import Reward
from heads.reward.several import Rewards

FUSION, COSINE, LINEAR = HeadConfig("fusion", 16, 32, hidden=8), HeadConfig("cosine", 16), HeadConfig("linear", 16, 32)
WEIGHTS = {"a": 1.0, "b": -0.5, "c": 2.0}


def three(backbone: Backbone) -> dict[str, Reward]:
    return {n: Reward(backbone, make_head(c)) for n, c in zip("abc", (FUSION, COSINE, LINEAR), strict=True)}


def test_totals_are_weighted_standard_scores(backbone: Backbone) -> None:
    alone, reference = three(backbone), as_pixels(pictures(9))
    batches = [(reference[:5], "plum"), (reference[5:], ["pear"] * 4)]
    rewards = Rewards({name: (one, WEIGHTS[name]) for name, one in three(backbone).items()}).standardise(batches)
    pixels = (as_pixels(pictures(3)) * 0.9).requires_grad_()
    found = rewards.scores(pixels, PROMPTS)
    expected = np.zeros(3)
    for name, one in alone.items():
        scores = np.concatenate([one(*batch).numpy() for batch in batches])
        own = one(pixels, PROMPTS).detach().numpy()
        np.testing.assert_allclose(found.parts[name].detach(), own, rtol=1e-5, atol=1e-5)
        expected += WEIGHTS[name] * (own - scores.mean()) / scores.std(ddof=1)
    np.testing.assert_allclose(found.total.detach(), expected, rtol=1e-3)
    (gradient,) = torch.autograd.grad(rewards(pixels, PROMPTS).sum(), pixels)
    assert gradient.abs().sum() > 0


def test_a_shared_backbone_runs_once(backbone: Backbone, model: Path, tmp_path: Path) -> None:
    tuned = Reward.load(write_tuned(tmp_path / "tuned", model), "cpu")
    rewards = Rewards({**{name: (one, 1.0) for name, one in three(backbone).items()}, "tuned": (tuned, 1.0)})
    ran: list[str] = []
    for name, encoder in (("shared", rewards.members[0].encoder), ("tuned", rewards.members[3].encoder)):
        encoder.image.visual.transformer.register_forward_hook(lambda *_, name=name: ran.append(name))
        encoder.text.register_forward_hook(lambda *_, name=name: ran.append(f"{name} text"))
    rewards.standardise([(as_pixels(pictures(3)), "plum")])
    rewards(as_pixels(pictures(2)), "plum")
    assert sorted(ran) == ["shared"] * 2 + ["shared text"] + ["tuned"] * 2 + ["tuned text"]


def test_folders_on_one_backbone_load_it_once(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(several, "load_backbone", lambda *a: loaded.append(a) or loading.load_backbone(*a))
    paths = {
        "a": write_head(tmp_path / "a", backbone, FUSION, folds=3),
        "b": write_head(tmp_path / "b", backbone, COSINE),
    }
    rewards = Rewards.load({name: (path, 1.0) for name, path in paths.items()}, "cpu")
    rewards.standardise([(as_pixels(pictures(4)), "plum")])
    found = rewards.scores(as_pixels(pictures(2)), "plum")
    assert len(loaded) == 1 and list(found.parts) == ["a", "b"] and list(found.uncertainty) == ["a"]
    again = Rewards.load({name: (path, 1.0) for name, path in paths.items()}, "cpu")
    again.load_state_dict(rewards.state_dict())  # with its scale
    assert torch.equal(again(as_pixels(pictures(2)), "plum"), found.total)


def test_what_has_no_scale(backbone: Backbone) -> None:
    pixels = as_pixels(pictures(3))
    with pytest.raises(InputError, match="at least one"):
        Rewards({})
    rewards = Rewards({"a": (Reward(backbone, make_head(FUSION)), 1.0)})
    with pytest.raises(InputError, match="call standardise with a reference set first"):
        rewards(pixels, "plum")
    for reference in ([], [(pixels[:1], "plum")], [(pixels[:1].repeat(3, 1, 1, 1), "plum")]):
        with pytest.raises(InputError, match="gives a no scale"):
            rewards.standardise(reference)
