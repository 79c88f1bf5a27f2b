"""Runs that are interrupted and resumed, running means, the best epoch, WiSE-FT, and two processes against one."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import unfreeze_tiny as tiny
from paths import HELPERS, ROOT
from safetensors.torch import load_file

from embed.modes import parse_mode
from embed.spec import InputError
from heads.config import HeadConfig, UnfreezeConfig
from heads.data.comparisons import Pairs
from heads.models import build_head
from heads.training.loop import Diverged, Loop, copy_of, load
from heads.unfreeze.model import Unfrozen
from heads.unfreeze.train import Data, accuracy_of, interpolate, new_loop, train

MODE = "blocks=1,1"
PAIRS = tiny.PAIRS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_folder(tmp_path_factory.mktemp("model") / "clip")


def setup(folder: Path, head: str | None = None, **options: Any) -> tuple[Unfrozen, Data, UnfreezeConfig]:
    settings = {"mode": MODE, "loss": "preference", "learning_rate": 1e-3, "batch_size": 16, "epochs": 3, **options}
    config = UnfreezeConfig(**settings)
    on_top = None if head is None else build_head(HeadConfig(head, 16))
    unfrozen = tiny.from_memory(tiny.load(folder), parse_mode(config.mode), on_top)
    return unfrozen, tiny.data(config.loss, validation=True), config


@pytest.mark.parametrize("loss", ["preference", "ranking"])
def test_a_sum_is_the_same_computed_whole_or_in_parts(loss: str, folder: Path) -> None:
    one = [setup(folder, loss=loss, reduction="sum", accumulate=parts, epochs=1) for parts in (1, 3)]
    assert one[0][1].fingerprint() == one[1][1].fingerprint()
    whole, in_parts = (train(*each).history[1]["train_loss"] for each in one)
    mean = train(*setup(folder, loss=loss, epochs=1)).history[1]["train_loss"]
    assert whole == pytest.approx(in_parts, rel=1e-4) and whole > 3 * mean


@pytest.mark.parametrize("loss", ["preference", "triplet", "ranking", "listwise", "rating"])
def test_a_mean_has_the_same_gradient_computed_whole_or_in_parts(loss: str, folder: Path) -> None:
    """Groups are of two to four rows, some tied, and pairs weigh differently."""
    loops = [new_loop(*setup(folder, loss=loss, accumulate=parts)) for parts in (1, 3)]
    first, second = (loop.take_step() for loop in loops)
    assert first == pytest.approx(second, rel=1e-4)
    for name, weight in loops[0].weights.items():
        assert weight.grad is not None
        torch.testing.assert_close(loops[1].weights[name].grad, weight.grad, rtol=1e-3, atol=1e-6)


RICH = {"ema": 0.7, "warmup": 0.2, "schedule": "cosine", "max_grad_norm": 0.05, "accumulate": 2, "head": "mlp"}


CONVOLUTION = {"mode": "visual"}  # moves one, which has its channels innermost


class Killed(Exception):
    """The process ends here."""


@pytest.mark.parametrize("options", [{}, RICH, CONVOLUTION])
def test_interrupted_anywhere_and_resumed_it_ends_with_the_same_bits(
    options: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.training.checkpoint.EVERY_S", 0.0)
    whole = train(*setup(folder, **options))
    assert whole.step == 12 and len(whole.history) == 4
    for stop in (1, 3, 4, 5, 9):

        def kill(loop: Loop, stop: int = stop) -> None:
            if loop.step == stop:
                raise Killed

        with pytest.raises(Killed):
            train(*setup(folder, **options), tmp_path / f"{stop}", kill)
        # The step in which it was killed had not been saved.
        assert new_loop(*setup(folder, **options), tmp_path / f"{stop}").step == stop - 1
        again = train(*setup(folder, **options), tmp_path / f"{stop}")
        assert json.dumps(again.history) == json.dumps(whole.history)
        for name, value in whole.weights.items():
            assert torch.equal(again.weights[name], value), name


def test_a_checkpoint_of_another_run_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heads.training.checkpoint.EVERY_S", 0.0)
    train(*setup(folder, epochs=1), tmp_path / "c")
    for other in (setup(folder), setup(tiny.make_folder(tmp_path / "clip", seed=1), epochs=1)):
        with pytest.raises(InputError, match=r"another training.* remove .*/c$"):
            train(*other, tmp_path / "c")


def test_the_best_epoch_is_kept_even_if_it_is_the_first(folder: Path) -> None:
    unfrozen, data, config = setup(folder, learning_rate=0.5)  # ruins the model
    loop = train(unfrozen, data, config)
    accuracies = [record["validation_accuracy"] for record in loop.history]
    assert np.argmax(accuracies) == loop.best_epoch
    assert accuracy_of(unfrozen, data) == max(accuracies)
    start = new_loop(*setup(folder)).weights
    good = train(*setup(folder))
    assert any(not torch.equal(value, start[name]) for name, value in good.weights.items())


@pytest.mark.parametrize("options, size", [({}, 160), ({"epoch_size": 30}, 30), ({"epoch_size": 999}, 190)])
def test_an_epoch_draws_some_of_all_pairs_of_few_rows(options: dict[str, Any], size: int, folder: Path) -> None:
    unfrozen, data, config = setup(folder, **options)
    a, b = np.triu_indices(20, 1)  # rows with counts: each is compared with each
    ones = np.ones(len(a), np.float32)
    loop = new_loop(unfrozen, replace(data, train=Pairs(a, b, ones, ones, a, b)), config)
    epochs = [np.concatenate([numbers for (numbers,) in loop.batches(epoch)]) for epoch in range(3)]
    assert loop.epoch_steps == len(loop.batches(0)) == -(-size // 16)
    assert [len(np.unique(drawn)) for drawn in epochs] == [size] * 3
    assert (len(np.unique(epochs)) > size) == (size < 190), "each epoch draws its own"


def test_rates_means_and_bounds_are_those_of_the_configuration(folder: Path) -> None:
    options = {"warmup": 0.25, "schedule": "cosine", "epochs": 2, "max_grad_norm": 1e-3, "ema": 0.9}
    loop = new_loop(*setup(folder, head="mlp", head_learning_rate=2e-3, **options))
    rates, start = [], copy_of(loop.weights)
    for _ in range(8):
        loop.take_step()
        rates.append([group["lr"] for group in loop.optimizer.param_groups])
        if len(rates) == 1:
            norm = sum(float(weight.grad.square().sum()) for weight in loop.weights.values()) ** 0.5
            assert norm == pytest.approx(1e-3, rel=1e-3)
            for name, mean in loop.mean.items():
                torch.testing.assert_close(mean, 0.9 * start[name] + 0.1 * loop.weights[name].detach())
    of_model = [rate for rate, *_ in rates]
    assert of_model[:3] == [0.5e-3, 1e-3, 1e-3]
    assert of_model[2:] == sorted(of_model[2:], reverse=True) and of_model[-1] < 1e-4
    assert [one[1:] for one in rates] == [[2 * rate] * 2 for rate in of_model]


def test_wise_lies_between_the_start_and_the_tuned(folder: Path) -> None:
    unfrozen, data, config = setup(folder, learning_rate=3e-3)
    base = copy_of(unfrozen.trained())
    best_accuracy = train(unfrozen, data, config).best_accuracy
    tuned = copy_of(unfrozen.trained())
    w, measured = interpolate(unfrozen, data, base, None)
    assert len(measured) == 11 and measured[w] == max(measured.values())
    assert measured[1.0] == best_accuracy
    assert accuracy_of(unfrozen, data) == measured[w]
    load(unfrozen.trained(), tuned)
    assert interpolate(unfrozen, data, base, 0.25)[0] == 0.25
    for name, value in unfrozen.trained().items():
        torch.testing.assert_close(value.detach(), 0.75 * base[name] + 0.25 * tuned[name])


def test_nonsense_is_refused(folder: Path) -> None:
    for options, message in (
        ({"loss": "tripletts"}, "loss is 'tripletts'; .*near names: triplet"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; wanted adam or adamw"),
        ({"schedule": "linear"}, "schedule is 'linear'; wanted constant or cosine"),
        ({"epochs": 0}, "epochs is 0; wanted at least 1"),
        ({"ema": 1.0}, "ema is 1.0; wanted at least 0 and less than 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0; wanted more than 0"),
    ):
        with pytest.raises(InputError, match=message):
            UnfreezeConfig(MODE, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"loss triplet compares embeddings"):
        new_loop(*setup(folder, head="mlp", loss="triplet"))


def test_a_loss_that_is_no_number_is_the_users_to_mend(folder: Path) -> None:
    def ruin(loop: Loop) -> None:
        load(loop.weights, {name: torch.full_like(weight, torch.nan) for name, weight in loop.weights.items()})

    with pytest.raises(InputError, match=r"the loss is nan at epoch 0, step 1, of a batch of 16 pairs, .*lower --lear"):
        train(*setup(folder), on_step=ruin)
    # After the only step of an epoch it is the validation that meets it.
    with pytest.raises(Diverged, match="scores of the validation pairs are not finite any more; lower --learning"):
        train(*setup(folder, batch_size=PAIRS, learning_rate=1e18))


RANK = """
import sys
import numpy as np
from pathlib import Path
from safetensors.torch import save_file
import unfreeze_tiny as tiny
from embed.modes import parse_mode
from heads.config import HeadConfig
from heads.models import build_head
from heads.unfreeze.distributed import find_ranks
from heads.config import UnfreezeConfig
from heads.unfreeze.train import new_loop

folder, out, loss = sys.argv[1:]
ranks = find_ranks("cpu")
assert ranks.count == 2
head = build_head(HeadConfig("cosine", 16))
unfrozen = tiny.from_memory(tiny.load(Path(folder)), parse_mode("blocks=1,1"), head, ranks=ranks)
config = UnfreezeConfig("blocks=1,1", loss, batch_size=15)
loop = new_loop(unfrozen, tiny.data(loss), config)
loop.take_step()
weights = {name: p.detach() for name, p in loop.weights.items()}
grads = {name: p.grad for name, p in loop.weights.items()}
save_file({f"{k}.{name}": v for k, vs in (("grad", grads), ("weight", weights)) for name, v in vs.items()},
          f"{out}/{ranks.rank}.safetensors")
ranks.wait()
"""


def test_two_processes_give_the_gradient_of_one(folder: Path, tmp_path: Path) -> None:
    loss = "preference-inbatch"  # compares the batch with itself
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"PYTHONPATH": f"{ROOT}:{HELPERS}", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), str(tmp_path), loss],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for process in processes:
        assert not process.communicate()[1].count("Traceback") and process.returncode == 0
    alone = tiny.from_memory(tiny.load(folder), parse_mode(MODE), build_head(HeadConfig("cosine", 16)))
    new_loop(alone, tiny.data(loss), UnfreezeConfig(MODE, loss, batch_size=15)).take_step()
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for name, parameter in alone.trained().items():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0
        for found in ranks:
            torch.testing.assert_close(found[f"grad.{name}"], parameter.grad, rtol=1e-3, atol=1e-6)
        assert torch.equal(ranks[0][f"weight.{name}"], ranks[1][f"weight.{name}"])
