"""The loop on a small regression: its steps against the same written out, which epoch it keeps, and its resuming."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from embed.spec import InputError
from heads.training.checkpoint import Checkpoints
from heads.training.loop import Batch, Diverged, Loop, copy_of, rates

EXAMPLES, SIZE, STEPS = 22, 6, 4  # of an epoch, the last batch being a smaller one
INPUTS = torch.randn(EXAMPLES, 5, generator=torch.Generator().manual_seed(1))
TARGETS = INPUTS.sum(1) + 1


def new_loop(accumulate: int = 1, noise: float = 0.0, accuracies: Sequence[float] = (), **options: Any) -> Loop:
    """A regression whose batches and noise come from torch's generator; it validates to `accuracies`."""
    torch.manual_seed(0)
    model, given = nn.Linear(5, 1), iter(accuracies)

    def losses(step: int, batch: Batch) -> Iterator[Tensor]:
        (numbers,) = batch
        for part in np.array_split(numbers, accumulate):
            shaken = noise * torch.randn(len(part), 5) if noise else 0.0
            error = model(INPUTS[part] + shaken).squeeze(1) - TARGETS[part]
            yield error.square().sum() / len(numbers)

    settings: dict[str, Any] = {
        "weights": dict(model.named_parameters()),
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.1),
        "rate": rates(3 * STEPS, 2),
        "epoch_steps": STEPS,
        "batches": lambda epoch: [(numbers.numpy(),) for numbers in torch.randperm(EXAMPLES).split(SIZE)],
        "units": ["points"],
        "losses": losses,
        "validate": (lambda: next(given)) if accuracies else None,
    }
    return Loop(**{**settings, **options})


def weights_after(epochs: int, **options: Any) -> list[Tensor]:
    """The weights after some epochs, none of them chosen."""
    loop = new_loop(**options)
    loop.run(epochs)
    return list(loop.weights.values())


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_a_loop_is_the_steps_written_out() -> None:
    loop = new_loop(max_grad_norm=0.5, ema=0.8, seed=7)
    weight, bias = (value.detach().clone().requires_grad_() for value in loop.weights.values())
    history = loop.run(3)

    optimizer = torch.optim.AdamW([weight, bias], lr=0.1)
    mean = [weight.detach().clone(), bias.detach().clone()]
    torch.manual_seed(7)
    for epoch in range(3):
        losses = []
        for place, numbers in enumerate(torch.randperm(EXAMPLES).split(SIZE)):
            loss = ((INPUTS[numbers] @ weight.T + bias).squeeze(1) - TARGETS[numbers]).square().mean()
            losses.append(loss.item())
            weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
            norm = float(torch.cat([weight.grad.ravel(), bias.grad]).norm())
            weight.grad *= min(1, 0.5 / norm)
            bias.grad *= min(1, 0.5 / norm)
            done = STEPS * epoch + place
            optimizer.param_groups[0]["lr"] = 0.1 * (
                (done + 1) / 2 if done < 2 else (1 + math.cos(math.pi * (done - 2) / 10)) / 2
            )
            optimizer.step()
            mean = [0.8 * old + 0.2 * new.detach() for old, new in zip(mean, (weight, bias), strict=True)]
        assert history[epoch]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    for found, expected in zip(loop.weights.values(), mean, strict=True):
        torch.testing.assert_close(found.detach(), expected)


def test_losses_may_be_read_later_and_nothing_else_changes(tmp_path: Path) -> None:
    """As on CUDA, where nothing is waited for between steps."""
    loops = [new_loop(together=together, accumulate=2, noise=0.1) for together in (1, 3, 64)]
    histories = [loop.run(2) for loop in loops]
    assert str(histories[0]) == str(histories[1]) == str(histories[2])  # which takes a NaN for itself
    assert same(list(loops[0].weights.values()), list(loops[2].weights.values()))
    saved = new_loop(together=64, checkpoints=Checkpoints(tmp_path, "facts", 0.0))  # after every step
    assert saved.run(1)[0]["train_loss"] == new_loop().run(1)[0]["train_loss"]


@pytest.mark.parametrize("together", [1, 3, 64])
def test_a_loss_that_is_read_later_is_still_told_by_its_step_and_batch(together: int) -> None:
    loop = new_loop(together=together)
    usual = loop.losses
    batches: list[list[int]] = []

    def losses(step: int, batch: Batch) -> Iterator[Tensor]:
        batches.append(batch[0].tolist())
        for part in usual(step, batch):
            yield part * (math.nan if step == STEPS + 1 else 1.0)

    loop.losses = losses
    with pytest.raises(Diverged, match=r"nan at epoch 1, step 1, ") as found:
        loop.run(3)
    assert f"the first of number {', '.join(map(str, batches[STEPS + 1][:5]))}" in str(found.value)
    assert len(batches) == {1: STEPS + 2, 3: STEPS + 3, 64: 2 * STEPS}[together]


def test_a_batch_in_parts_has_the_gradient_of_the_whole() -> None:
    for whole, in_parts in zip(weights_after(2), weights_after(2, accumulate=3), strict=True):
        torch.testing.assert_close(in_parts, whole)


def test_rates_are_those_of_torchs_schedules() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 4, total_iters=3)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16)
    factor, expected = rates(20, 4), []
    for step in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        (rise if step < 4 else fall).step()
    assert [factor(step) for step in range(20)] == pytest.approx(expected)
    assert [rates(20, 4, "constant")(step) for step in range(20)] == pytest.approx(expected[:4] + [1.0] * 16)
    assert rates(20, 0)(0) == 1.0 and factor(20) == 0.0


def test_the_records_say_the_rate_of_the_next_step_and_the_losses_that_were_0() -> None:
    loop = new_loop()
    loop.losses = lambda step, batch: [0 * loop.weights["bias"].sum() + max(0, step - 2)]
    first, second = loop.run(2)
    assert (first["train_loss"], first["idle_batches"]) == (0.25, 3) and second["idle_batches"] == 0
    assert first["learning_rate"] == 0.1 * rates(12, 2)(4)
    assert math.isnan(first["validation_accuracy"])


def test_the_first_of_the_best_epochs_is_kept_and_patience_ends_training() -> None:
    loop = new_loop(accuracies=[0.5, 0.7, 0.7, 0.6, 0.8], patience=2)
    assert [record["validation_accuracy"] for record in loop.run(10)] == [0.5, 0.7, 0.7, 0.6]
    assert (loop.best_epoch, loop.best_accuracy) == (1, 0.7)
    assert same(list(loop.weights.values()), weights_after(2))


def test_the_start_can_be_the_best() -> None:
    loop = new_loop(accuracies=[0.7, 0.5, 0.7])
    start = copy_of(loop.weights)
    loop.record_epoch()
    assert len(loop.run(2)) == 3 and loop.best_epoch == 0
    assert same(list(loop.weights.values()), list(start.values()))


def test_without_validation_the_last_epoch_is_kept_and_nothing_ends_training() -> None:
    loop = new_loop(patience=1)
    assert len(loop.run(3)) == 3
    assert loop.best == {} and not same(list(loop.weights.values()), weights_after(2))


def test_a_running_mean_is_what_is_validated_and_kept() -> None:
    seen: list[dict[str, Tensor]] = []
    loop = new_loop(ema=0.9)
    loop.validate = lambda: seen.append(copy_of(loop.weights)) or float(len(seen) == 1)  # type: ignore[func-returns-value]
    loop.run(2)
    assert same(list(loop.weights.values()), list(seen[0].values()))
    assert same(list(loop.mean.values()), list(seen[1].values()))
    assert not same(list(seen[0].values()), weights_after(1))


class Killed(Exception):
    """The process ends here."""


def kill_at(stop: int) -> Callable[[Loop], None]:
    def on_step(loop: Loop) -> None:
        if loop.step == stop:
            raise Killed

    return on_step


@pytest.mark.parametrize("stop", range(1, 13))
def test_killed_at_any_step_it_ends_with_the_same_bytes(stop: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"noise": 0.3, "accumulate": 2, "ema": 0.5, "max_grad_norm": 1.0}
    whole = new_loop(**options, accuracies=[0.1, 0.3, 0.2])
    history = whole.run(3)
    checkpoints = Checkpoints(tmp_path, "this", every_s=0)
    with pytest.raises(Killed):
        new_loop(**options, accuracies=[0.1, 0.3, 0.2], checkpoints=checkpoints).run(3, kill_at(stop))
    accuracies = [0.1, 0.3, 0.2][(stop - 1) // STEPS :]  # a step that was killed is taken again
    again = new_loop(**options, accuracies=accuracies, checkpoints=checkpoints)
    assert again.step == stop - 1
    torch.rand(stop)  # whatever state torch's own generator is in
    before = torch.get_rng_state()
    assert again.run(3) == history
    assert same(list(again.weights.values()), list(whole.weights.values()))
    assert same(list(again.mean.values()), list(whole.mean.values()))
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator was moved"


def test_a_training_that_was_over_stays_so(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "this", every_s=0)
    first = new_loop(accuracies=[0.5, 0.4], patience=1, checkpoints=checkpoints)
    first.run(3)
    again = new_loop(accuracies=[0.5, 0.4], patience=1, checkpoints=checkpoints)
    assert again.run(3) == first.history and again.step == 2 * STEPS
    assert same(list(again.weights.values()), list(first.weights.values()))


def test_a_loss_that_is_not_finite_names_its_step_and_batch() -> None:
    loop = new_loop()
    loop.batches = lambda epoch: [(np.arange(place, place + 6),) for place in range(4)]
    loop.losses = lambda step, batch: [loop.weights["bias"].sum() * (math.inf if step == 6 else 1.0)]
    message = r"the loss is -?inf at epoch 1, step 2, of a batch of 6 points, the first of number 2, 3, 4, 5, 6; lower"
    with pytest.raises(Diverged, match=message):
        loop.run(3)
    assert issubclass(Diverged, InputError) and loop.step == 6
