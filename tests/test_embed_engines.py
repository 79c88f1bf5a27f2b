import json
import math
from pathlib import Path

import embed_tiny
import numpy as np
import pytest
import torch

from embed import backbone
from embed.engines import Engine, Towers, Trial, Wanted, candidates, choose, resolve_device
from embed.spec import InputError, Source

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "load_backbone", embed_tiny.load_tiny)
    embed_tiny.LOADED.clear()


def towers(root: Path, *features: str) -> Towers:
    return Towers(Source("tiny"), root, features or ("projected",))


def trial(runner: str, precision: str, cosine_min: float, per_s: float) -> Trial:
    return Trial(Engine(runner, precision, "cpu", 100, cosine_min, cosine_min), per_s)


TRIALS = [
    trial("torch", "fp32", 1.0, 20),
    trial("onnx", "fp32", 0.999999, 37),
    trial("torch", "bf16", 0.9995, 70),
    trial("onnx", "int8", 0.99, 97),
]


@pytest.mark.parametrize(
    "wanted, winner",
    [
        (Wanted(), ("torch", "bf16")),
        (Wanted(min_cosine=0.9), ("onnx", "int8")),
        (Wanted(min_cosine=0.9999), ("onnx", "fp32")),
        (Wanted(precision="fp32"), ("onnx", "fp32")),
        (Wanted(runner="torch", min_cosine=0.9999), ("torch", "fp32")),
    ],
)
def test_the_fastest_that_is_near_enough_wins(wanted: Wanted, winner: tuple[str, str]) -> None:
    engine = choose(TRIALS, wanted).engine
    assert (engine.runner, engine.precision) == winner


def test_the_start_counts_as_much_as_the_work() -> None:
    slow = Trial(Engine("torch", "bf16", "cpu"), 50.0, 8.0)
    quick = Trial(Engine("onnx", "int8", "cpu"), 36.0, 0.5)
    meet = (8.0 - 0.5) / (1 / 36 - 1 / 50)  # 964 inputs
    assert choose([slow, quick], Wanted(), math.floor(meet)) == quick
    assert choose([slow, quick], Wanted(), math.ceil(meet)) == slow
    assert choose([slow, quick], Wanted()) == slow


def test_where_none_is_near_enough_the_measurements_are_told() -> None:
    with pytest.raises(InputError, match=r"0\.999 to fp32 .*onnx int8 on cpu: 0\.990000.*--min-cosine"):
        choose(TRIALS, Wanted(precision="int8"))


def test_candidates_follow_what_is_asked_for() -> None:
    assert set(candidates(Wanted(), "cpu")) == {
        ("onnx", "fp32"),
        ("onnx", "int8"),
        ("torch", "bf16"),
        ("torch", "fp32"),
    }
    assert candidates(Wanted(precision="fp32"), "cpu") == [("onnx", "fp32"), ("torch", "fp32")]
    assert candidates(Wanted("torch", "fp16"), "cpu") == [("torch", "fp16")]
    assert all(runner == "torch" for runner, _ in candidates(Wanted(), "mps"))
    with pytest.raises(InputError, match="wanted auto or one of fp32"):
        Wanted(precision="fp64")


def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match="'cuda:77' cannot be used here"):
        resolve_device("cuda:77")
    assert resolve_device("cpu") == "cpu"


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


def test_a_trial_is_remembered_and_with_its_graph_needs_no_model(tmp_path: Path) -> None:
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


def test_the_reference_itself_needs_no_trial(tmp_path: Path) -> None:
    assert towers(tmp_path).find("images", Wanted("torch", "fp32"), "cpu") == Engine("torch", "fp32", "cpu")


def test_prompts_have_engines_of_their_own(tmp_path: Path) -> None:
    ours = towers(tmp_path)
    tokens, truncated = ours.tokenize(["a cat", "a dog that is long"])
    assert truncated == 1
    torch_vectors = ours.runner("prompts", Engine("torch", "fp32", "cpu"))(tokens)[0]
    onnx_vectors = ours.runner("prompts", Engine("onnx", "fp32", "cpu"))(tokens)[0]
    np.testing.assert_allclose(onnx_vectors, torch_vectors, atol=1e-6)
