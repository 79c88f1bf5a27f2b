"""Runs that are interrupted and resumed, running means, the best epoch, WiSE-FT, and two processes against one."""

import json
import os
import socket
import subprocess
import sys
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
from heads.models import HeadConfig, build_head
from heads.unfreeze.train import Trainer, UnfreezeConfig, accuracy_of, interpolate

MODE = "blocks=1,1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_folder(tmp_path_factory.mktemp("model") / "clip")


def trainer(folder: Path, out: Path | None = None, head: str | None = None, **options: Any) -> Trainer:
    settings = {"mode": MODE, "loss": "preference", "learning_rate": 1e-3, "batch_size": 16, "epochs": 3, **options}
    config = UnfreezeConfig(**settings)
    on_top = None if head is None else build_head(HeadConfig(head, 16))
    unfrozen = tiny.from_memory(tiny.load(folder), parse_mode(config.mode), on_top)
    return Trainer(unfrozen, tiny.data(config.loss, validation=True), config, out, checkpoint_steps=3)


@pytest.mark.parametrize("loss", ["preference", "ranking"])
def test_a_sum_is_the_same_computed_whole_or_in_parts(loss: str, folder: Path) -> None:
    one = [trainer(folder, loss=loss, reduction="sum", accumulate=parts, epochs=1) for parts in (1, 3)]
    assert one[0].data.fingerprint() == one[1].data.fingerprint()
    whole, in_parts = (each.run()[1]["train_loss"] for each in one)
    mean = trainer(folder, loss=loss, epochs=1).run()[1]["train_loss"]
    assert whole == pytest.approx(in_parts, rel=1e-4) and whole > 3 * mean


RICH = {"ema": 0.7, "warmup": 0.2, "schedule": "cosine", "max_grad_norm": 0.05, "accumulate": 2, "head": "mlp"}


CONVOLUTION = {"mode": "visual"}  # moves one, which has its channels innermost


@pytest.mark.parametrize("options", [{}, RICH, CONVOLUTION])
def test_interrupted_anywhere_and_resumed_it_ends_with_the_same_bits(
    options: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    whole = trainer(folder, **options)
    history = whole.run()
    assert whole.step == 12 and len(history) == 4
    for stop in (2, 3, 7):
        out = tmp_path / f"{stop}"
        first = trainer(folder, out, **options)
        first.run(stop)
        del first
        second = trainer(folder, out, **options)
        assert second.step == stop // 3 * 3 if stop < 4 else second.step == 6
        again = second.run()
        assert json.dumps(again) == json.dumps(history)
        for name, value in whole.unfrozen.state().items():
            assert torch.equal(second.unfrozen.state()[name], value), name


def test_a_checkpoint_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    trainer(folder, tmp_path).run(3)
    with pytest.raises(InputError, match="other settings or data; finish that, or remove the file"):
        trainer(folder, tmp_path, learning_rate=2e-3)
    with pytest.raises(InputError, match="other settings or data"):
        trainer(tiny.make_folder(tmp_path / "clip", seed=1), tmp_path)


def test_the_best_epoch_is_kept_even_if_it_is_the_first(folder: Path) -> None:
    run = trainer(folder, learning_rate=0.5)  # ruins the model
    start = run.unfrozen.state()
    history = run.run()
    accuracies = [record["validation_accuracy"] for record in history]
    assert np.argmax(accuracies) == run.best_epoch
    assert accuracy_of(run.unfrozen, run.data) == max(accuracies)
    good = trainer(folder)
    good.run()
    assert any(not torch.equal(value, start[name]) for name, value in good.unfrozen.state().items())


def test_the_running_mean_is_an_exponential_one(folder: Path) -> None:
    run = trainer(folder, ema=0.9)
    name = next(iter(run.unfrozen.state()))
    expected = run.unfrozen.state()[name].clone()
    for _ in range(4):
        run._one_step()
        run.step += 1
        expected = 0.9 * expected + 0.1 * run.unfrozen.state()[name]
    torch.testing.assert_close(run.running[name], expected)
    assert not torch.equal(run.running[name], run.unfrozen.state()[name])


def test_rates_rise_and_fall_as_asked(folder: Path) -> None:
    rates = []
    run = trainer(folder, warmup=0.25, schedule="cosine", epochs=2)
    for _ in range(8):
        run._one_step()
        run.step += 1
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates[:2] == [0.5e-3, 1e-3] and rates[2] == 1e-3
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] < 1e-4


def test_clipping_bounds_the_whole_gradient(folder: Path) -> None:
    run = trainer(folder, max_grad_norm=1e-3)
    run._one_step()
    total = sum(float(p.grad.square().sum()) for p in run.unfrozen.trained().values() if p.grad is not None)
    assert total**0.5 == pytest.approx(1e-3, rel=1e-3)


def test_wise_lies_between_the_start_and_the_tuned(folder: Path) -> None:
    run = trainer(folder, learning_rate=3e-3)
    base = run.unfrozen.state()
    run.run()
    tuned = run.unfrozen.state()
    w, measured = interpolate(run.unfrozen, run.data, base, None)
    assert len(measured) == 11 and measured[w] == max(measured.values())
    assert measured[1.0] == run.best_accuracy
    assert accuracy_of(run.unfrozen, run.data) == measured[w]
    run.unfrozen.load(tuned)
    assert interpolate(run.unfrozen, run.data, base, 0.25)[0] == 0.25
    for name, value in run.unfrozen.state().items():
        torch.testing.assert_close(value, 0.75 * base[name] + 0.25 * tuned[name])


def test_nonsense_is_refused(folder: Path) -> None:
    for options, message in (
        ({"loss": "tripletts"}, "unknown loss"),
        ({"optimizer": "sgd"}, "unknown optimizer"),
        ({"schedule": "linear"}, "unknown schedule"),
        ({"epochs": 0}, "epochs is 0"),
        ({"ema": 1.0}, "wanted 0 <= each < 1"),
        ({"max_grad_norm": 0.0}, "must be positive, or left out"),
    ):
        with pytest.raises(InputError, match=message):
            UnfreezeConfig(MODE, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"loss triplet compares embeddings"):
        trainer(folder, head="mlp", loss="triplet")
    with pytest.raises(FloatingPointError, match="at step 0; lower --learning-rate"):
        run = trainer(folder)
        run.unfrozen.load({name: torch.full_like(value, torch.nan) for name, value in run.unfrozen.state().items()})
        run._one_step()


RANK = """
import sys
import numpy as np
from pathlib import Path
from safetensors.torch import save_file
import unfreeze_tiny as tiny
from embed.modes import parse_mode
from heads.models import HeadConfig, build_head
from heads.unfreeze.distributed import find_ranks
from heads.unfreeze.train import Trainer, UnfreezeConfig

folder, out, loss = sys.argv[1:]
ranks = find_ranks("cpu")
assert ranks.count == 2
head = build_head(HeadConfig("cosine", 16))
unfrozen = tiny.from_memory(tiny.load(Path(folder)), parse_mode("blocks=1,1"), head, ranks=ranks)
config = UnfreezeConfig("blocks=1,1", loss, batch_size=15)
run = Trainer(unfrozen, tiny.data(loss), config)
run._one_step()
grads = {name: p.grad for name, p in unfrozen.trained().items()}
save_file({f"{k}.{name}": v for k, vs in (("grad", grads), ("weight", unfrozen.state())) for name, v in vs.items()},
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
    run = Trainer(alone, tiny.data(loss), UnfreezeConfig(MODE, loss, batch_size=15))
    run._one_step()
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for name, parameter in alone.trained().items():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0
        for found in ranks:
            torch.testing.assert_close(found[f"grad.{name}"], parameter.grad, rtol=1e-3, atol=1e-6)
        assert torch.equal(ranks[0][f"weight.{name}"], ranks[1][f"weight.{name}"])
