"""A tower at a precision on a device as a function of arrays: by torch, or by onnxruntime."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embed.allocator import keep_freed_memory
from embed.spec import InputError

# Inputs; on a CPU neither a convolution trunk nor onnxruntime is faster with more, and both take more memory.
AT_ONCE_ON_CPU = 8

Run = Callable[[np.ndarray], list[np.ndarray]]


def cast(tower: Any, precision: str) -> Any:
    """The tower itself in fp32, else a copy in that precision."""
    import torch

    if precision == "fp32":
        return tower
    return copy.deepcopy(tower).to({"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def torch_runner(tower: Any, precision: str, device: str) -> Run:
    """uint8 pixels (n, h, w, 3) or int32 tokens (n, c) to float32 arrays; moves the tower to the device."""
    import torch

    if precision not in ("fp32", "bf16", "fp16"):
        raise InputError(f"torch runs no {precision} here; ask for --engine onnx")
    tower = cast(tower, precision).to(device)
    at_once = sys.maxsize
    if device == "cpu":
        keep_freed_memory()
        if sum(isinstance(module, torch.nn.Conv2d) for module in tower.modules()) > 1:
            at_once = AT_ONCE_ON_CPU
            tower = tower.to(memory_format=torch.channels_last)  # as pixels come: nothing is reordered then

    def run(inputs: np.ndarray) -> list[np.ndarray]:
        parts = []
        with torch.inference_mode():
            for part in torch.from_numpy(inputs).split(at_once):
                outputs = tower(part.to(device))
                parts.append(outputs if isinstance(outputs, tuple) else (outputs,))
        return [torch.cat(feature).cpu().numpy() for feature in zip(*parts, strict=True)]

    return run


def onnx_runner(graph: Path, name: str, device: str, threads: int | None) -> Run:
    """The same for an exported tower, whose input is called `name`."""
    from embed.sessions import open_session

    kind, _, index = device.partition(":")
    session = open_session(
        graph, [(kind, {"device_id": index}) if index else kind], threads, spin=False
    )  # decoders share the cores
    at_once = AT_ONCE_ON_CPU if kind == "cpu" else sys.maxsize

    def run(inputs: np.ndarray) -> list[np.ndarray]:
        starts = range(0, max(1, len(inputs)), at_once)
        parts = [session.run(None, {name: inputs[start : start + at_once]}) for start in starts]
        return [np.concatenate(feature) for feature in zip(*parts, strict=True)]

    return run
