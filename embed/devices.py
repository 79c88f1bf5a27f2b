"""Choose the device that torch computes on, and move tensors to it."""

import platform
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from embed.spec import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def resolve_device(name: str, supported: Collection[str] = ()) -> str:
    """Return the device `name`, or the best device of this machine for "auto". The CPU never replaces a missing device.

    `supported` are the kinds of device that the caller can use, such as ("cpu", "cuda"); if it is empty, every kind and
    "auto" are allowed. Raise InputError if the device is of another kind, or torch cannot use it here. torch is
    imported only if there may be more than a CPU.
    """
    if supported and name.partition(":")[0] not in supported:
        raise InputError(f"--device {name} is not supported here; use {' or '.join(supported)}")
    if name == "cpu":
        return name
    if name == "auto":
        if not (Path("/dev/nvidiactl").exists() or (sys.platform, platform.machine()) == ("darwin", "arm64")):
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: {str(error).partition(chr(10))[0]}") from None
    return name


def moved(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """Return the tensor on a device. A copy to CUDA does not wait for earlier work of the device."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned copy until it is read
