"""What tensors take at a time, against counting by hand, and what fits."""

import pytest
import torch

from embed.spec import InputError
from heads.tuning.memory import Memory, Peak, bytes_of


def test_the_peak_is_what_lives_at_once() -> None:
    x = torch.zeros(1000)
    with Peak() as peak:
        y = x + 1  # 4,000 bytes
        z = y + 1  # 8,000
        view = z[:500].reshape(5, 100)  # nothing new
        del y  # 4,000
        w = view + 1  # 6,000
        w.add_(1)
    assert (peak.most, peak.now) == (8000, 6000)
    del w
    assert peak.now == 4000


def test_what_the_backward_pass_needs_is_counted() -> None:
    weight = torch.nn.Parameter(torch.ones(1000))
    with Peak() as peak:
        loss = (weight.exp() * 2).sum()  # the exponential is kept for its gradient
        loss.backward()
    assert 8000 <= peak.most <= 16100


def test_shared_weights_count_once() -> None:
    first, second = torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 10, bias=False)
    second.weight = first.weight
    assert bytes_of([first, second, torch.nn.BatchNorm1d(3)], torch.device("cpu")) == 400 + 4 * 12 + 8


def test_as_many_pictures_as_fit() -> None:
    memory = Memory(resident=100, first=50, more=30)
    assert memory.of(3) == 210
    assert [memory.at_once(limit) for limit in (150, 179, 180, 239, 240)] == [1, 1, 2, 3, 4]
    with pytest.raises(InputError, match=r"one picture takes 1.5e-07 GB, and --max-vram is 1.49e-07"):
        memory.at_once(149)
