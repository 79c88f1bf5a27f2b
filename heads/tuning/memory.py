"""Measure the memory of a tuning step with one and with two pictures, before training starts.

The bytes of all tensors are counted as operations make them, so that the result is the same on every device. A device's
allocator keeps more than that: leave a tenth of its memory free.
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

STATE_BYTES = 8  # AdamW's two means in float32, for each trained number


@dataclass(frozen=True)
class Memory:
    """The bytes of memory that tuning takes."""

    resident: int  # weights, the optimizer's state, and running means of weights
    first: int  # the peak of a step with one picture, in addition
    more: int  # for each further picture

    def of(self, pictures: int) -> int:
        """The bytes with so many pictures at once."""
        return self.resident + self.first + (pictures - 1) * self.more

    def at_once(self, limit: int) -> int:
        """The number of pictures that fit. Raise InputError if not even one fits."""
        if self.of(1) > limit:
            raise InputError(
                f"a step with one picture takes {self.of(1) / 1e9:.3g} GB, and --max-vram is {limit / 1e9:.3g}: of"
                f" these {self.resident / 1e9:.3g} GB are weights and the optimizer's state; give --precision bf16,"
                " make smaller pictures with --size, or leave --whole and --keep-activations out"
            )
        return 1 + (limit - self.of(1)) // max(1, self.more)


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records, inside the block, the peak number of bytes of tensors made by operations."""

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
    """The bytes of parameters and buffers on a device. Shared ones count once."""
    tensors = {
        one.untyped_storage()._cdata: one.untyped_storage().nbytes()
        for module in modules
        for one in (*module.parameters(), *module.buffers())
        if one.device.type == device.type
    }
    return sum(tensors.values())


def memory_of(device: torch.device) -> int | None:
    """The bytes that a step may take on a GPU, which is nine tenths of its memory. None on a CPU, where no limit is
    set."""
    if device.type != "cuda":
        return None
    return int(0.9 * torch.cuda.get_device_properties(device).total_memory)


def is_memory(error: RuntimeError) -> bool:
    """Whether an error means that memory ran out."""
    said = ("not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)
