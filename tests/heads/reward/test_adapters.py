"""Every block of examples/rewards/README.md does in its trainer what it says: the trainers here only have their
signatures, and the ways in which each hands over pictures."""

import inspect
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from reward_tiny import PROMPTS, as_pixels, pictures, write_head

from embed.backbones.backbone import Backbone
from embed.spec import InputError
from heads.config import HeadConfig
from heads.reward import adapters
from heads.reward.adapters import Pictures, plain, score_pictures, step_callback
from heads.reward.module import Reward

FUSION = HeadConfig("fusion", 16, 32, hidden=8)
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "examples/rewards/README.md").read_text(), re.S | re.M)


def block(names: str) -> dict[str, Any]:
    """What the block that names this defines."""
    (code,) = (one for one in BLOCKS if names in one)
    defined: dict[str, Any] = {"__name__": "block"}
    exec(code, defined)
    return defined


@pytest.fixture(scope="module")
def folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `head`, with a committee, and `other` lie."""
    path = tmp_path_factory.mktemp("heads")
    write_head(path / "head", backbone, FUSION, folds=3)
    write_head(path / "other", backbone, HeadConfig("cosine", 16))
    return path


@pytest.fixture
def reward(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Reward:
    """The reward of `head`, which lies in the folder of this process."""
    monkeypatch.chdir(folder)
    return Reward.load("head", "cpu")


@pytest.fixture
def expected(reward: Reward) -> np.ndarray:
    return reward(as_pixels(pictures(3)), PROMPTS).numpy()


def test_a_loss_with_a_gradient(reward: Reward, expected: np.ndarray) -> None:
    decoded = (as_pixels(pictures(3)) * 2 - 1).requires_grad_()
    loss = block("checkpointing=True")["loss_of"](decoded, PROMPTS)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-expected.mean(), rel=1e-5) and decoded.grad.abs().sum() > 0


def test_a_loss_of_several(reward: Reward, expected: np.ndarray) -> None:
    found = block("Rewards.load")
    found["start"]([(as_pixels(pictures(3)), PROMPTS)])
    decoded = (as_pixels(pictures(3)) * 2 - 1).requires_grad_()
    loss, means = found["loss_of"](decoded, PROMPTS)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-4)  # of the reference set itself
    assert means["liked"] == pytest.approx(expected.mean(), rel=1e-5) and set(means) == {"liked", "shared"}


def test_flow_grpo(reward: Reward, expected: np.ndarray) -> None:
    """As its multi_score: a factory by device, scores that are weighted and added in a loop, arrays or tensors."""
    function = block("def plaudit_score(device)")["plaudit_score"](torch.device("cpu"))
    for images in (as_pixels(pictures(3)), np.stack(pictures(3))):
        scores, details = function(images, PROMPTS, [{}] * 3)
        totals = [
            total + weighted for total, weighted in zip([0.0] * 3, [0.5 * score for score in scores], strict=True)
        ]
        np.testing.assert_allclose(totals, 0.5 * expected, rtol=1e-5)
        as_tensors = {name: torch.as_tensor(values).float() for name, values in details.items()}
        assert set(as_tensors) == {"head", "head_uncertainty"} and as_tensors["head"].shape == (3,)


class PointwiseRewardModel:
    """Flow-Factory's, as far as it matters."""

    def __init__(self, config: SimpleNamespace, accelerator: SimpleNamespace) -> None:
        self.config, self.accelerator, self.model = config, accelerator, None
        self.device, self.dtype = accelerator.device, config.dtype


def test_flow_factory(reward: Reward, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its processor: instances of its own class, called by the names in the signature, with lists of tensors."""
    for name in ("flow_factory", "flow_factory.rewards"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["flow_factory.rewards"].PointwiseRewardModel = PointwiseRewardModel  # type: ignore[attr-defined]
    kind = block("class Liked")["Liked"]
    model = kind(config=SimpleNamespace(dtype=torch.float32), accelerator=SimpleNamespace(device=torch.device("cpu")))
    assert isinstance(model, PointwiseRewardModel) and model.required_fields == ("prompt", "image")
    assert kind.use_tensor_inputs
    sample = {"prompt": PROMPTS, "image": list(as_pixels(pictures(3))), "height": 50}
    given = {name: value for name, value in sample.items() if name in inspect.signature(model.__call__).parameters}
    output = model(**given)
    rewards = torch.as_tensor(output.rewards if hasattr(output, "rewards") else output, dtype=torch.float32)
    np.testing.assert_allclose(rewards, expected, rtol=1e-5)
    with pytest.raises(InputError, match="got none"):
        model(prompt=PROMPTS, video=[[]])


def test_verl_omni(reward: Reward, expected: np.ndarray) -> None:
    """As its managers: by keyword, one picture a call, from several threads at once; floats or uint8."""
    function = block("compute_score_liked")["compute_score_liked"]
    assert not inspect.iscoroutinefunction(function)
    images = [as_pixels(pictures(3))[0], torch.from_numpy(pictures(3)[1]).permute(2, 0, 1), as_pixels(pictures(3))[2:]]
    found: dict[int, dict[str, float]] = {}

    def ask(i: int) -> None:
        found[i] = function(data_source="any", solution_image=images[i], ground_truth=PROMPTS[i], extra_info={}, k=1)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([found[i]["score"] for i in range(3)], expected, rtol=1e-5)
    assert all(type(value) is float for one in found.values() for value in one.values())
    assert set(found[0]) == {"score", "head", "head_uncertainty"}


def test_a_function_of_pictures_and_prompts(reward: Reward, expected: np.ndarray) -> None:
    function = block("reward_function")["reward_function"]
    found = function([Image.fromarray(one) for one in pictures(3)], PROMPTS)
    assert all(type(score) is float for score in found)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class Vae:
    """Latents are half the pixels in [-1, 1], scaled and shifted as diffusers has them."""

    config = SimpleNamespace(scaling_factor=0.5, shift_factor=0.25)
    dtype = torch.float32

    def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        assert not return_dict
        return (latents * 2,)


class Pipeline:
    """Steps whose last one has the pictures, two for each prompt."""

    def __init__(self, vae: Vae | None, pixels: torch.Tensor) -> None:
        if vae is not None:
            self.vae = vae
        decoded = pixels * 2 - 1
        self.latents = decoded if vae is None else (decoded / 2 - 0.25) * 0.5

    def __call__(
        self, prompt: list[str], callback_on_step_end: Any, callback_on_step_end_tensor_inputs: list[str], steps: int
    ) -> torch.Tensor:
        assert callback_on_step_end_tensor_inputs == ["latents"]
        for step in range(steps):
            kwargs = callback_on_step_end(self, step, torch.tensor(1000 - step), {"latents": self.latents})
            latents: torch.Tensor = kwargs.pop("latents")
        return latents


@pytest.mark.parametrize("vae", [Vae(), None], ids=["latents", "pixels"])
def test_a_pipeline_watched(reward: Reward, vae: Vae | None) -> None:
    written: list[tuple[str, float, int]] = []
    writer = SimpleNamespace(add_scalar=lambda *record: written.append(record))
    pixels = as_pixels(pictures(4))
    made = block("def watched")["watched"](Pipeline(vae, pixels), ["plum", "pear"], writer, steps=11)
    assert torch.equal(made, Pipeline(vae, pixels).latents)
    expected = float(reward(pixels, ["plum", "plum", "pear", "pear"]).mean())
    scores = [(value, step) for name, value, step in written if name == "score"]
    assert [step for _, step in scores] == [0, 5, 10]
    assert scores[0][0] == pytest.approx(expected, rel=1e-3)
    assert {name for name, _, _ in written} == {"score", "head", "head_uncertainty"}


def test_packed_latents_are_refused(reward: Reward) -> None:
    callback = step_callback(reward, "plum", lambda step, scores: None)
    with pytest.raises(InputError, match="packed"):
        callback(Pipeline(Vae(), torch.zeros(1)), 0, 0, {"latents": torch.zeros(1, 64, 16)})


def forms() -> Iterator[tuple[str, Pictures]]:
    given, pixels = pictures(3), as_pixels(pictures(3))
    yield "floats, channels first", pixels
    yield "floats, channels last", pixels.permute(0, 2, 3, 1)
    yield "uint8 array, channels last", np.stack(given)
    yield "uint8 tensor, channels first", torch.from_numpy(np.stack(given)).permute(0, 3, 1, 2)
    yield "arrays", given
    yield "tensors", list(pixels)
    yield "PIL", [Image.fromarray(one) for one in given]


@pytest.mark.parametrize(("name", "given"), list(forms()))
def test_pictures_in_every_form(reward: Reward, expected: np.ndarray, name: str, given: Pictures) -> None:
    np.testing.assert_allclose(plain(reward)(given, PROMPTS), expected, rtol=1e-5)


def test_pictures_of_several_sizes_in_batches(reward: Reward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "BATCH", 2)
    given = [*pictures(3), *pictures(1, 33, 90), *pictures(3)]
    prompts = [f"plum {i}" for i in range(7)]
    found = score_pictures(reward, given, prompts)
    alone = [reward(as_pixels([one]), prompt).item() for one, prompt in zip(given, prompts, strict=True)]
    np.testing.assert_allclose(found.total, alone, rtol=1e-5)
    assert found.uncertainty["head"].shape == (7,) and not found.total.requires_grad


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        ([], [], "got no pictures"),
        (torch.zeros(2, 3, 8, 8), ["a"], "got 1 prompts for 2 pictures"),
        (torch.zeros(2, 4, 8, 8), "a", "wanted .3, h, w."),
        ([torch.zeros(5, 3, 8, 8)], "a", "got a picture of shape"),
    ],
)
def test_what_cannot_be_scored_is_an_error(reward: Reward, images: Pictures, prompts: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plain(reward)(images, prompts)
