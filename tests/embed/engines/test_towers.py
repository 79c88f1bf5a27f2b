"""A source's towers give the same vectors by every engine, and a machine remembers what was tried."""

import json
from dataclasses import replace
from pathlib import Path

import embed_tiny
import numpy as np
import pytest
import torch

from embed.backbones import load
from embed.config import Wanted
from embed.engines.choice import Engine, Trial
from embed.engines.runners import Run
from embed.engines.towers import Towers
from embed.spec import InputError, Source

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_backbone", embed_tiny.load_tiny)
    embed_tiny.LOADED.clear()


def towers(root: Path, *features: str) -> Towers:
    return Towers(Source("tiny"), root, features or ("projected",))


@pytest.mark.parametrize("features", [("projected",), ("projected", "pooled")])
def test_every_engine_gives_the_towers_vectors(tmp_path: Path, features: tuple[str, ...]) -> None:
    ours = towers(tmp_path, *features)
    with torch.no_grad():
        expected = embed_tiny.load_tiny(Source("tiny")).image_tower(features)(torch.from_numpy(PIXELS))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for runner, precision, cosine in (
        ("torch", "fp32", 1 - 1e-6),
        ("torch", "bf16", 0.999),
        ("onnx", "fp32", 1 - 1e-6),
        ("onnx", "int8", 0.99),
    ):
        found = ours.runner("images", Engine(runner, precision, "cpu"))(PIXELS)
        assert len(found) == len(features)
        for array, reference in zip(found, expected, strict=True):
            assert array.dtype == np.float32
            least = (array.astype(np.float64) * reference.double().numpy()).sum(axis=1).min()
            assert least > cosine, (runner, precision, least)


def test_a_trial_is_remembered_and_with_its_graph_needs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embed.engines.choice.HOPELESS", 1e9)  # or on a busy machine a trial may end early
    wanted = Wanted("onnx", "auto", "cpu", 0.9)
    first = towers(tmp_path)
    assert first.find("images", wanted, "cpu") is None
    chosen = first.measure("images", PIXELS, wanted, "cpu", 16).engine
    assert chosen.runner == "onnx" and chosen.rows == 40 and 0.9 <= chosen.cosine_min <= 1
    expected = first.runner("images", chosen)(PIXELS)[0]
    embed_tiny.LOADED.clear()
    second = towers(tmp_path)
    assert second.identity == embed_tiny.IDENTITY
    assert second.find("images", wanted, "cpu") == chosen
    np.testing.assert_array_equal(second.runner("images", chosen)(PIXELS)[0], expected)
    assert embed_tiny.LOADED == []
    (file,) = tmp_path.glob("engines/*/images-projected.cpu.json")
    measured = {(t["engine"]["runner"], t["engine"]["precision"]) for t in json.loads(file.read_text())["trials"]}
    assert measured == {("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8")}
    assert all(t["start_s"] > 0 for t in json.loads(file.read_text())["trials"])


@pytest.mark.parametrize("cosine, hopeless_beside", [(0.99, 1e6), (0.5, None)])
def test_others_look_hopeless_beside_the_best_that_may_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cosine: float, hopeless_beside: float | None
) -> None:
    bests = []

    def instant(run: Run, engine: Engine, inputs: np.ndarray, reference: np.ndarray, size: int, best: float) -> Trial:
        bests.append(best)
        return Trial(replace(engine, cosine_min=cosine if engine.precision == "int8" else 1.0), 1e6)

    monkeypatch.setattr("embed.engines.towers.try_engine", instant)
    monkeypatch.setattr("embed.engines.towers.run_reference", lambda run, inputs, size: (inputs, 7.0))
    towers(tmp_path).measure("images", PIXELS, Wanted("onnx", "auto", "cpu", 0.9), "cpu", 16)
    assert bests == [7.0, hopeless_beside or 7.0]


def test_the_reference_itself_needs_no_trial(tmp_path: Path) -> None:
    assert towers(tmp_path).find("images", Wanted("torch", "fp32"), "cpu") == Engine("torch", "fp32", "cpu")


def test_prompts_have_engines_of_their_own(tmp_path: Path) -> None:
    ours = towers(tmp_path)
    tokens, truncated = ours.tokenize(["a cat", "a dog that is long"])
    assert truncated == 1
    torch_vectors = ours.runner("prompts", Engine("torch", "fp32", "cpu"))(tokens)[0]
    onnx_vectors = ours.runner("prompts", Engine("onnx", "fp32", "cpu"))(tokens)[0]
    np.testing.assert_allclose(onnx_vectors, torch_vectors, atol=1e-6)


class Trunk(torch.nn.Module):
    """Convolutions and one product, as convolution trunks are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.out = torch.nn.Linear(512, 16)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(pixels.permute(0, 3, 1, 2).float() / 255).relu())
        return torch.nn.functional.normalize(self.out(x.flatten(1)), dim=-1)


def test_a_convolution_trunk_has_no_int8_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trunk = Trunk().eval().requires_grad_(False)
    monkeypatch.setattr(embed_tiny.TinyBackbone, "image_tower", lambda self, features: trunk)
    with pytest.raises(InputError, match="int8 of a convolution trunk"):
        towers(tmp_path).measure("images", PIXELS, Wanted("onnx", "int8", "cpu"), "cpu", 16)
    chosen = towers(tmp_path).measure("images", PIXELS, Wanted(runner="onnx", min_cosine=0.9), "cpu", 16)
    assert chosen.engine.precision == "fp32"
    assert towers(tmp_path).find("images", Wanted(runner="onnx", min_cosine=0.9), "cpu") == chosen.engine
    assert not list(tmp_path.glob("engines/*/.*"))


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_tried_where_the_cpu_multiplies_it_or_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    tried = []

    def instant(run: Run, engine: Engine, inputs: np.ndarray, reference: np.ndarray, size: int, best: float) -> Trial:
        tried.append(engine.precision)
        return Trial(replace(engine, rows=len(inputs)), 1e6)

    monkeypatch.setattr("embed.engines.towers.try_engine", instant)
    monkeypatch.setattr("embed.engines.towers.multiplies_bf16", lambda device: native)
    any_precision, bf16 = Wanted("torch", "auto", "cpu"), Wanted("torch", "bf16", "cpu")
    chosen = towers(tmp_path).measure("images", PIXELS, any_precision, "cpu", 16).engine
    assert tried == ["bf16"] * native and chosen.precision == ("bf16" if native else "fp32")
    assert towers(tmp_path).find("images", any_precision, "cpu") == chosen
    assert (towers(tmp_path).find("images", bf16, "cpu") is None) != native, "an engine that was not tried is measured"
    assert towers(tmp_path).measure("images", PIXELS, bf16, "cpu", 16).engine.precision == "bf16"
    assert towers(tmp_path).find("images", any_precision, "cpu").precision == "bf16", "and remembered"
    towers(tmp_path).measure("images", PIXELS, any_precision, "cpu", 16)
    assert towers(tmp_path).find("images", bf16, "cpu").precision == "bf16", "nor is it forgotten"


def test_int8_of_a_convolution_trunk_says_why_it_is_missing_after_a_trial_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = Trunk().eval().requires_grad_(False)
    monkeypatch.setattr(embed_tiny.TinyBackbone, "image_tower", lambda self, features: trunk)
    towers(tmp_path).measure("images", PIXELS, Wanted(runner="onnx", min_cosine=0.9), "cpu", 16)
    assert towers(tmp_path).find("images", Wanted("onnx", "int8", "cpu"), "cpu") is None
    with pytest.raises(InputError, match="int8 of a convolution trunk"):
        towers(tmp_path).measure("images", PIXELS, Wanted("onnx", "int8", "cpu"), "cpu", 16)
