"""Of the engines that are near enough to the reference, the one that ends the job first is chosen."""

import math

import pytest

from embed.config import Wanted
from embed.engines.choice import Engine, Trial, candidates, choose
from embed.spec import InputError


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
    every = [("onnx", "int8"), ("onnx", "fp32"), ("torch", "bf16"), ("torch", "fp32")]
    assert candidates(Wanted(), "cpu") == every, "the fastest first"
    assert candidates(Wanted(precision="fp32"), "cpu") == [("onnx", "fp32"), ("torch", "fp32")]
    assert candidates(Wanted("torch", "fp16"), "cpu") == [("torch", "fp16")]
    assert all(runner == "torch" for runner, _ in candidates(Wanted(), "mps"))
    with pytest.raises(InputError, match="wanted auto, fp32, bf16, fp16, int8 or fp16-cuda"):
        Wanted(precision="fp64")
