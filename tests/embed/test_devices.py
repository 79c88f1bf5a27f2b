"""A device is what was asked for, or an error that says what would do."""

import pytest
import torch

from embed.devices import resolve_device
from embed.spec import InputError


def test_a_device_that_is_not_there_is_an_error() -> None:
    for name in ("cuda:77", "abacus"):
        with pytest.raises(InputError, match=f"'{name}' cannot be used here: [^\n]+$"):
            resolve_device(name)
    assert resolve_device("cpu") == "cpu"


def test_auto_is_a_device_that_torch_can_use() -> None:
    name = resolve_device("auto")
    torch.empty(0, device=name)
    assert (name == "cuda") == torch.cuda.is_available()


@pytest.mark.parametrize("name", ["auto", "mps", "abacus"])
def test_a_caller_that_supports_only_some_kinds_says_which(name: str) -> None:
    with pytest.raises(InputError, match=f"^--device {name} is not supported here; use cpu or cuda$"):
        resolve_device(name, ("cpu", "cuda"))
    assert resolve_device("cpu", ("cpu", "cuda")) == "cpu"
    with pytest.raises(InputError, match="'cuda:77' cannot be used here"):
        resolve_device("cuda:77", ("cpu", "cuda"))
