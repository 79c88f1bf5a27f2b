"""Training from activations at the cut against training the whole model live, tensor by tensor."""

from pathlib import Path

import numpy as np
import pytest
import torch
import unfreeze_tiny as tiny
from no_waiting import require_no_waiting
from torch.nn import functional as F

from embed.backbones.backbone import Backbone
from embed.cache.boundary import decode, encode
from embed.modes import MODES, Mode, parse_mode
from embed.spec import InputError
from embed.unfreeze.top_blocks import InMemory, augmented
from heads.config import HeadConfig, UnfreezeConfig
from heads.data.comparisons import Pairs
from heads.models import build_head
from heads.training.loop import copy_of
from heads.training.objectives import OBJECTIVES
from heads.unfreeze.model import Unfrozen, renumbered
from heads.unfreeze.train import loss_of, new_loop

UPPER = "visual_upper_layers_textual_upper_layers"
DEEPER = f"{UPPER}_deeper"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_folder(tmp_path_factory.mktemp("model") / "clip")


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return tiny.load(folder)


def live_vectors(backbone: Backbone, images: np.ndarray, prompts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """open_clip's own towers, on everything."""
    shown = (tiny.pixels()[images].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    text = backbone.model.text(tiny.tokens(backbone)[prompts])
    return F.normalize(backbone.model.visual(shown), dim=-1), F.normalize(text, dim=-1)


def triplet(backbone: Backbone, pairs: Pairs, batch: np.ndarray) -> torch.Tensor:
    """Social Reward's loss by its formula, through the whole model."""
    image, prompt = tiny.items()
    a, b = pairs.a[batch], pairs.b[batch]
    positive, anchor = live_vectors(backbone, image[a], prompt[a])
    negative, _ = live_vectors(backbone, image[b], prompt[b])
    gap = (anchor - positive).square().sum(1) - (anchor - negative).square().sum(1)
    return torch.relu(gap + 0.3).mean()


def batches(seed: int, steps: int, size: int = 16) -> list[np.ndarray]:
    """The order that a run of that seed takes its examples in."""
    per_epoch = -(-tiny.PAIRS // size)
    found = []
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(tiny.PAIRS)
        found.append(order[place * size : (place + 1) * size])
    return found


def social_reward(folder: Path, mode: Mode, names: list[str], steps: int) -> tuple[list[float], Backbone]:
    """The original's loop: gradients through everything, an optimiser over the mode's parameters alone."""
    backbone = tiny.load(folder)
    backbone.model.requires_grad_(True)
    chosen = [parameter for name, parameter in backbone.model.named_parameters() if name in names]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[mode.optimizer]
    optimizer = kind(chosen, lr=1e-3)
    pairs, losses = tiny.examples("triplet"), []
    assert isinstance(pairs, Pairs)
    for batch in batches(0, steps):
        loss = triplet(backbone, pairs, batch)
        backbone.model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, backbone


def run(unfrozen: Unfrozen, mode: Mode, steps: int, loss: str = "triplet", **options: object) -> list[float]:
    settings = {"learning_rate": 1e-3, "batch_size": 16, "epochs": 100, **options}
    config = UnfreezeConfig(mode.name, loss, **settings)  # type: ignore[arg-type]
    loop = new_loop(unfrozen, tiny.data(loss), config)
    return [loop.take_step() for _ in range(steps)]


@pytest.mark.parametrize(
    "name, steps",
    [(UPPER, 50), ("visual_last_layer", 8), ("visual_upper_layers", 8), (DEEPER, 8), ("visual", 8), ("all", 8)],
)
def test_losses_and_weights_are_those_of_social_rewards_loop(name: str, steps: int, folder: Path) -> None:
    backbone, mode = tiny.load(folder), parse_mode(name)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    unfrozen = tiny.from_memory(backbone, mode)
    names = list(unfrozen.moved)
    live_losses, live = social_reward(folder, mode, names, steps)
    losses = run(unfrozen, mode, steps)
    np.testing.assert_allclose(losses, live_losses, atol=1e-5)
    if steps == 50:
        assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    after, expected = backbone.model.state_dict(), live.model.state_dict()
    for key in before:
        if key in names and key != "logit_scale":
            assert not torch.equal(after[key], before[key]), f"{key} did not move"
            # Keys' biases have no gradient but rounding, which Adam makes into steps of either sign.
            if "in_proj_bias" not in key:
                torch.testing.assert_close(after[key], expected[key], rtol=0, atol=2e-3)
        else:
            assert torch.equal(after[key], before[key]), f"{key} moved"


def test_half_precision_activations_change_the_losses_little(folder: Path) -> None:
    mode = MODES[UPPER]
    curves = {}
    for dtype in ("float32", "float16", "int8"):
        unfrozen = tiny.from_memory(tiny.load(folder), mode)
        for side in unfrozen.sides.values():
            assert isinstance(side.rows, InMemory)
            stored = decode(*encode(side.rows.values, dtype), dtype)
            side.rows = InMemory(stored, side.rows.lengths)
        curves[dtype] = run(unfrozen, mode, 10 if dtype == "int8" else 50, learning_rate=1e-4)
    np.testing.assert_allclose(curves["float16"], curves["float32"], atol=1e-3)
    difference = np.abs(np.subtract(curves["int8"], curves["float32"][:10])).max()
    assert 0 < difference < 2e-2


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_gradients_equal_those_of_live_training_for_every_loss(loss: str, folder: Path) -> None:
    mode = MODES[UPPER]
    gradients = []
    for live in (False, True):
        unfrozen = tiny.from_memory(tiny.load(folder), mode, live=live)
        loss_of(unfrozen, tiny.data(loss), UnfreezeConfig(mode.name, loss), np.arange(12)).backward()
        gradients.append({name: p.grad for name, p in unfrozen.trained().items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6)


def test_gradients_equal_autograd_through_the_whole_model(backbone: Backbone, folder: Path) -> None:
    unfrozen = tiny.from_memory(tiny.load(folder), MODES[UPPER])
    loss_of(unfrozen, tiny.data("triplet"), UnfreezeConfig(UPPER, "triplet"), np.arange(16)).backward()
    backbone.model.requires_grad_(True)
    pairs = tiny.examples("triplet")
    assert isinstance(pairs, Pairs)
    triplet(backbone, pairs, np.arange(16)).backward()
    for name, parameter in backbone.model.named_parameters():
        if name in unfrozen.moved:
            torch.testing.assert_close(unfrozen.moved[name].grad, parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", ["preference", "triplet", "rating"])
def test_accumulation_and_checkpointing_leave_the_gradient_as_it_is(loss: str, folder: Path) -> None:
    gradients = []
    for accumulate, checkpointing in ((1, False), (3, False), (1, True)):
        unfrozen = tiny.from_memory(tiny.load(folder), MODES[UPPER])
        for side in unfrozen.sides.values():
            assert side.cut is not None
            side.cut.checkpointing = checkpointing
        config = UnfreezeConfig(UPPER, loss, batch_size=16, accumulate=accumulate)
        new_loop(unfrozen, tiny.data(loss), config).take_step()
        gradients.append({name: p.grad for name, p in unfrozen.trained().items()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-6)


def test_autocast_computes_in_bf16_and_keeps_weights_in_fp32(folder: Path) -> None:
    losses = [
        run(tiny.from_memory(tiny.load(folder), MODES[UPPER], bf16=bf16), MODES[UPPER], 20) for bf16 in (False, True)
    ]
    difference = np.abs(np.subtract(*losses)).max()
    assert 0 < difference < 0.02 and losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_no_step_waits_for_the_device(loss: str, live: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device "meta" has no numbers, so whatever asks for one there fails. It has no fused optimiser either."""
    plain = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, fused: plain(groups, lr=lr))
    for name in (UPPER, "visual", "all"):
        head = None if name == "all" or OBJECTIVES[loss].embeds else build_head(HeadConfig("mlp", 16, reads="image"))
        unfrozen = tiny.from_memory(tiny.load(folder), MODES[name], head, live, device="meta")
        loop = new_loop(unfrozen, tiny.data(loss), UnfreezeConfig(name, loss, batch_size=4, max_grad_norm=1.0))
        assert {weight.device.type for name, weight in loop.weights.items() if name != "model.logit_scale"} == {"meta"}
        require_no_waiting(loop)


def test_a_head_on_top_is_trained_along(folder: Path) -> None:
    mode = MODES["visual_last_layer"]
    head = build_head(HeadConfig("mlp", 16, reads="image"))
    unfrozen = tiny.from_memory(tiny.load(folder), mode, head)
    before = copy_of(unfrozen.trained())
    assert any(name.startswith("head.") for name in before)
    run(unfrozen, mode, 20, "rating")
    assert all(not torch.equal(value, before[name]) for name, value in unfrozen.trained().items())


def test_each_picture_and_prompt_is_computed_once_a_batch(folder: Path) -> None:
    unfrozen = tiny.from_memory(tiny.load(folder), MODES[UPPER])
    seen: list[int] = []

    class Counting(InMemory):
        def take(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
            seen.append(len(rows))
            assert len(np.unique(rows)) == len(rows)
            return super().take(rows)

    for side in unfrozen.sides.values():
        assert isinstance(side.rows, InMemory)
        side.rows = Counting(side.rows.values, side.rows.lengths)
    pairs = tiny.examples("triplet")
    features, local = unfrozen.local(*tiny.items(), pairs)
    assert seen == [tiny.PICTURES, tiny.PROMPTS]
    assert isinstance(local, Pairs) and isinstance(pairs, Pairs)
    image, prompt = tiny.items()
    assert np.array_equal(features.image.numpy()[local.a], image[pairs.a])
    assert np.array_equal(features.prompt.numpy()[local.b], prompt[pairs.b])


@pytest.mark.parametrize("loss", ["triplet", "ranking", "rating"])
def test_examples_are_taken_and_renumbered(loss: str) -> None:
    found = tiny.examples(loss)
    batch = np.array([3, 1])
    some = found.take(batch)
    assert len(some) == 2
    items = np.arange(0, 300, 2)
    twice = renumbered(renumbered(some, np.arange(300)), np.arange(300))
    for name in some.__dataclass_fields__:
        assert np.array_equal(getattr(twice, name), getattr(some, name))
    if isinstance(found, Pairs):
        assert isinstance(some, Pairs) and np.array_equal(some.target, found.target[batch])
    elif loss == "ranking":
        size = found.start[4] - found.start[3]
        assert np.array_equal(some.item[:size], found.item[found.start[3] : found.start[4]])
        even = type(some)(some.start, some.item // 2 * 2, some.rank)
        assert np.array_equal(items[renumbered(even, items).item], even.item)


def test_augmentation_changes_pictures_and_needs_pixels(folder: Path) -> None:
    torch.manual_seed(0)
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).view(1, 1, 32, 1).expand(64, 32, 32, 3)
    changed = augmented(ramp).float()
    rising = changed[:, 16, 31, 0] > changed[:, 16, 0, 0]
    assert changed.shape == ramp.shape and 10 < int(rising.sum()) < 54
    width = (changed[:, 16, 31, 0] - changed[:, 16, 0, 0]).abs()
    assert float(width.min()) > 0.75 * 248 and float(width.max()) <= 248 and width.unique().numel() > 10
    with pytest.raises(InputError, match="which only --live reads; add --live"):
        tiny.from_memory(tiny.load(folder), MODES[UPPER], augment=True)
    losses = []
    for augment in (False, True, True):
        unfrozen = tiny.from_memory(tiny.load(folder), MODES["visual"], augment=augment)
        losses.append(run(unfrozen, MODES["visual"], 3))
    assert losses[1] == losses[2] != losses[0]
