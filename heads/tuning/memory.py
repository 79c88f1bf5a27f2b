"""How much memory a step of tuning takes, measured on one and two pictures before the work.

What lives is counted as it is made, by the bytes that operations allocate, so that it is the same on every device. What
a device's allocator keeps besides is not in it: leave a tenth free.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from embed.spec import InputError

STATE_BYTES = 8  # AdamW's two means in float32, of each number that moves


@dataclass(frozen=True)
class Memory:
    """Bytes that tuning takes."""

    resident: int  # weights, what the optimizer keeps, and means of weights
    first: int  # the most of a step with one picture, besides
    more: int  # for each further picture

    def of(self, pictures: int) -> int:
        """With so many pictures at once."""
        return self.resident + self.first + (pictures - 1) * self.more

    def at_once(self, limit: int) -> int:
        """How many pictures fit; raise InputError if not one does."""
        if self.of(1) > limit:
            raise InputError(
                f"a step with one picture takes {self.of(1) / 1e9:.3g} GB, and --max-vram is {limit / 1e9:.3g}: of"
                f" these {self.resident / 1e9:.3g} are weights and what the optimizer keeps; say --precision bf16,"
                " make smaller pictures with --size, or leave --whole and --keep-activations out"
            )
        return 1 + (limit - self.of(1)) // max(1, self.more)


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, the most bytes at a time of tensors that operations have made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.most = 0, 0
        self._seen = set[int]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and id(one.untyped_storage()) not in given:
                self._count(one)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self._seen:
            return
        self._seen.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.now -= size


def bytes_of(modules: Iterable[nn.Module], device: torch.device) -> int:
    """What parameters and buffers take on a device, shared ones once."""
    tensors = {
        one.untyped_storage()._cdata: one.untyped_storage().nbytes()
        for module in modules
        for one in (*module.parameters(), *module.buffers())
        if one.device.type == device.type
    }
    return sum(tensors.values())


def memory_of(device: torch.device) -> int | None:
    """The bytes that a step may take on a GPU, all but a tenth; None where the system gives what it has."""
    if device.type != "cuda":
        return None
    return int(0.9 * torch.cuda.get_device_properties(device).total_memory)


def is_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory is at its end."""
    said = ("not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)
