"""A reward scores float pictures as cache and service score files, and its gradient is that of its scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export_tiny import tiny_backbone
from PIL import Image
from reward_tiny import PROMPTS, as_pixels, make_head, pictures, write_head, write_tuned
from unfreeze_tiny import load, make_folder

from embed.backbones.backbone import Backbone
from embed.backbones.load import load_backbone
from embed.inputs.pixels import preprocess
from embed.spec import ADOPTED, IdentityMismatch, InputError, Source
from heads.config import HeadConfig
from heads.models import Head
from heads.reward.module import Reward
from heads.store.disk import load_committee, load_head

FUSION = HeadConfig("fusion", 16, 32, hidden=8)  # which reads everything there is


def served(backbone: Backbone, head: Head, given: list[np.ndarray], prompts: list[str]) -> np.ndarray:
    """The scores by Pillow and the towers as the cache runs them."""
    spec = backbone.identity.preprocess
    levels = np.stack([preprocess(Image.fromarray(one), spec) for one in given])
    with torch.no_grad():
        projected, pooled = backbone.image_tower(("projected", "pooled"))(torch.from_numpy(levels))
        text = backbone.text_tower()(torch.from_numpy(backbone.tokenize(prompts)))
        named = {"image_embedding": projected, "image_pooled": pooled, "text_embedding": text}
        return head(**{name: named[name] for name in head.inputs}).numpy()


@pytest.mark.parametrize(
    "config",
    [FUSION, HeadConfig("cosine", 16), HeadConfig("linear", 16, 32), HeadConfig("mlp", 16, reads="image")],
    ids=lambda config: config.kind,
)
def test_scores_are_those_of_files(backbone: Backbone, config: HeadConfig) -> None:
    head, given = make_head(config), pictures(3)
    found = Reward(backbone, head)(as_pixels(given).requires_grad_(), PROMPTS)
    np.testing.assert_allclose(found.detach().numpy(), served(backbone, head, given, PROMPTS), rtol=1e-5, atol=2e-6)
    assert found.std() > 1e-3 and found.requires_grad


def test_the_gradient_is_that_of_central_differences(backbone: Backbone) -> None:
    reward = Reward(backbone, make_head(FUSION), dtype=torch.float64, rounding=False)
    pixels = as_pixels(pictures(2)).double() * 0.8 + 0.1
    (gradient,) = torch.autograd.grad(reward(pixels.requires_grad_(), PROMPTS[:2]).sum(), pixels)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        step = torch.randn(pixels.shape, generator=generator, dtype=torch.float64) * 1e-4
        with torch.no_grad():
            difference = float((reward(pixels + step, PROMPTS[:2]) - reward(pixels - step, PROMPTS[:2])).sum() / 2)
        assert float((gradient * step).sum()) == pytest.approx(difference, rel=0.01)
    with_rounding = Reward(backbone, make_head(FUSION))
    single = pixels.detach().float().requires_grad_()
    (rounded,) = torch.autograd.grad(with_rounding(single, PROMPTS[:2]).sum(), single)
    cosine = torch.cosine_similarity(rounded.double().flatten(), gradient.flatten(), dim=0)
    assert cosine > 0.999


def test_each_prompt_is_encoded_once(backbone: Backbone) -> None:
    reward, pixels = Reward(backbone, make_head(FUSION)), as_pixels(pictures(3))
    encoded: list[int] = []
    reward.encoder.text.register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))
    one = reward(pixels, "plum")
    with torch.inference_mode():
        reward(pixels, ["plum", "pear", "plum"])
    assert encoded == [1, 1]
    assert torch.equal(reward(pixels, ["plum"] * 3), one)
    reward(pixels.requires_grad_(), "pear").sum().backward()  # what inference remembered serves training
    assert encoded == [1, 1]
    other = Reward(backbone, make_head(FUSION))
    np.testing.assert_allclose(reward(pixels, PROMPTS).detach(), other(pixels, PROMPTS).detach(), atol=1e-6)


def test_prompts_are_forgotten_before_they_fill_memory(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heads.reward.encoder.REMEMBERED_PROMPTS", 4)
    reward, pixels = Reward(backbone, make_head(FUSION)), as_pixels(pictures(3))
    first = reward(pixels, PROMPTS)
    reward(pixels, ["a", "b", "c"])
    assert len(reward.encoder.remembered) <= 4
    np.testing.assert_allclose(reward(pixels, PROMPTS), first, atol=1e-6)


def test_nothing_of_it_trains_and_it_stays_in_eval_mode(backbone: Backbone) -> None:
    reward = Reward(backbone, make_head(replace(FUSION, dropout=0.5)))
    pixels = as_pixels(pictures(2))
    before = reward(pixels, "plum")
    torch.nn.Sequential(reward).train()
    assert torch.equal(reward(pixels, "plum"), before)
    assert not any(parameter.requires_grad for parameter in reward.parameters())


def test_a_trainers_autocast_changes_nothing(backbone: Backbone) -> None:
    reward, pixels = Reward(backbone, make_head(FUSION)), as_pixels(pictures(2))
    expected = reward(pixels, "plum")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reward(pixels, "plum"), expected)


def test_in_bf16_the_head_stays_in_fp32_and_the_backbone_as_it_is(backbone: Backbone) -> None:
    exact, half = Reward(backbone, make_head(FUSION)), Reward(backbone, make_head(FUSION), dtype=torch.bfloat16)
    pixels = as_pixels(pictures(3))
    found, expected = half(pixels, PROMPTS), exact(pixels, PROMPTS)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert {parameter.dtype for parameter in half.head.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half.encoder.image.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}


def test_checkpointed_blocks_give_the_same_gradient(backbone: Backbone) -> None:
    gradients, runs = [], []
    for checkpointing in (False, True):
        reward = Reward(backbone, make_head(FUSION), checkpointing=checkpointing)
        count: list[int] = []
        block = reward.encoder.image.visual.transformer.resblocks[0].mlp
        handle = block.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        pixels = as_pixels(pictures(2)).requires_grad_()
        reward(pixels, "plum").sum().backward()
        handle.remove()
        gradients.append(pixels.grad)
        runs.append(len(count))
    assert runs == [1, 2]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_what_has_no_blocks_says_so() -> None:
    with pytest.raises(InputError, match=r"tiny-resnet has no blocks.*leave checkpointing out"):
        Reward(tiny_backbone("resnet"), make_head(HeadConfig("cosine", 32)), checkpointing=True)


def test_a_folder_gives_scores_and_how_sure_they_are(backbone: Backbone, tmp_path: Path) -> None:
    path = write_head(tmp_path / "liked", backbone, FUSION, folds=3)
    reward, given = Reward.load(path, "cpu"), pictures(3)
    found = reward.scores(as_pixels(given).requires_grad_(), PROMPTS)
    np.testing.assert_allclose(found.total.detach(), served(backbone, load_head(path)[0], given, PROMPTS), atol=2e-6)
    assert list(found.parts) == list(found.uncertainty) == ["liked"] and found.parts["liked"] is found.total
    committee = load_committee(path)
    assert committee is not None
    expected = served(backbone, committee, given, PROMPTS)
    np.testing.assert_allclose(found.uncertainty["liked"].detach(), expected, atol=2e-6)
    assert not Reward.load(write_head(tmp_path / "single", backbone, FUSION)).scores(as_pixels(given), "a").uncertainty


def test_a_tuned_backbone_gives_its_own_scores_wherever_it_lies(model: Path, tmp_path: Path) -> None:
    tuned = write_tuned(tmp_path / "tuned", model).rename(tmp_path / "moved")
    backbone, given = load_backbone(Source(f"local-dir:{model}", f"delta:{tuned}")), pictures(2)
    head = load_head(tuned / "head")[0]
    found = Reward.load(tuned, "cpu")(as_pixels(given), "plum")
    np.testing.assert_allclose(found, served(backbone, head, given, ["plum"] * 2), atol=1e-5)
    assert not np.allclose(found, served(load(model), head, given, ["plum"] * 2), atol=1e-3)


def test_a_head_of_another_backbone_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    path = write_head(tmp_path / "head", backbone, FUSION)
    other = load(make_folder(tmp_path / "other", seed=1))
    with pytest.raises(IdentityMismatch, match="different backbones"):
        Reward.on(other, path)


class Odd(Head):
    inputs = ("image_embedding", "source_embedding")


def test_heads_that_pixels_do_not_reach_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reads only prompts.*--reads both"):
        Reward.load(write_head(tmp_path / "text", backbone, HeadConfig("mlp", 16, reads="text")))
    with pytest.raises(
        InputError, match="reads source_embedding, which pictures and prompts do not give; for a reward train"
    ):
        Reward(backbone, Odd())
    adopted = replace(backbone, source=replace(backbone.source, pretrained=ADOPTED))
    with pytest.raises(InputError, match="were adopted, so its backbone is not known here"):
        Reward.load(write_head(tmp_path / "adopted", adopted, FUSION))
    moved = replace(backbone, identity=replace(backbone.identity, model="tiny projected by a head"))
    with pytest.raises(InputError, match=r"in the space of another head.*train it on the backbone's own cache"):
        Reward.load(write_head(tmp_path / "space", moved, FUSION))


@pytest.mark.parametrize(
    ("pixels", "prompts", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "a", "wanted floats"),
        (torch.zeros(3, 8, 8), "a", "wanted floats"),
        (torch.zeros(2, 1, 8, 8), "a", "wanted floats"),
        (torch.linspace(-1, 1, 384).view(2, 3, 8, 8), "a", "pixels / 2"),
        (torch.full((2, 3, 8, 8), 255.0), "a", "wanted .0, 1."),
        (torch.zeros(2, 3, 8, 8), None, "give one for all, or one for each"),
        (torch.zeros(2, 3, 8, 8), ["a"], "got 1 prompts for 2 pictures"),
    ],
)
def test_what_is_no_picture_or_prompt(backbone: Backbone, pixels: torch.Tensor, prompts: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reward(backbone, make_head(FUSION))(pixels, prompts)


def test_a_head_that_reads_no_text_wants_no_prompts(backbone: Backbone) -> None:
    reward = Reward(backbone, make_head(HeadConfig("linear", 16, 32)))
    assert reward(as_pixels(pictures(2))).shape == (2,)
