"""Run a tower at a precision on a device as a function of arrays, with torch or with onnxruntime."""

import copy
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from embed.arrays import Float32s, Int32s, UInt8s
from embed.process.allocator import keep_freed_memory
from embed.spec import InputError, Precision

if TYPE_CHECKING:
    from torch import nn

# Inputs of one run on a CPU. Larger batches make convolutions and onnxruntime no faster and take more memory.
TORCH_AT_ONCE, ONNX_AT_ONCE = 8, 4
LANES = 8  # the largest number of parallel runs; a batch of 32 needs no more

Inputs: TypeAlias = UInt8s | Int32s  # pixels (n, h, w, 3), or tokens (n, c)
Run = Callable[[Inputs], list[Float32s]]


def cast(tower: "nn.Module", precision: Precision) -> "nn.Module":
    """Return the tower itself for fp32, or a copy in another precision."""
    import torch

    if precision == "fp32":
        return tower
    return copy.deepcopy(tower).to({"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def multiplies_bf16(device: str) -> bool:
    """Whether a device has instructions for bfloat16. A CPU without them takes several times as long as with fp32."""
    import torch

    if device != "cpu":
        return True
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def torch_runner(tower: "nn.Module", precision: Precision, device: str) -> Run:
    """Return a function from uint8 pixels (n, h, w, 3) or int32 tokens (n, c) to float32 arrays, run by torch.

    The tower is moved to the device. Raise InputError if torch does not support the precision.
    """
    import torch

    if precision not in ("fp32", "bf16", "fp16"):
        raise InputError(f"torch does not support {precision} here; ask for --engine onnx")
    tower = cast(tower, precision).to(device)
    has_convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in tower.modules()) > 1
    if has_convolutions and not device.startswith("mps"):
        tower = tower.to(memory_format=torch.channels_last)  # pixels have this layout, so nothing is reordered
    at_once = TORCH_AT_ONCE if has_convolutions and device == "cpu" else sys.maxsize
    if device == "cpu":
        keep_freed_memory()

    def run(inputs: Inputs) -> list[Float32s]:
        parts = []
        with torch.inference_mode():
            for part in torch.split(torch.from_numpy(inputs), at_once):
                outputs = tower(part.to(device))
                parts.append(outputs if isinstance(outputs, tuple) else (outputs,))
        return [torch.cat(feature).cpu().numpy() for feature in zip(*parts, strict=True)]

    return run


def onnx_runner(graph: Path, name: str, precision: Precision, device: str, threads: int | None) -> Run:
    """Return the same function for an exported tower whose input is called `name`, run by onnxruntime.

    On a CPU a batch is divided among parallel runs, because threads inside one run wait for each other at every
    operator: on two cores, two runs of one thread each do ViT-B/32 in int8 a quarter faster than one of two threads.
    """
    from embed.engines.device import SIZES, DeviceGraph
    from embed.engines.sessions import open_session

    kind, _, index = device.partition(":")
    provider = (kind, {"device_id": index}) if index else kind
    if kind == "cuda":
        return DeviceGraph(open_session(graph, [provider], threads, precision=precision), (*SIZES, 256), device)
    if kind != "cpu":
        session = open_session(graph, [provider], threads, precision=precision)
        return lambda inputs: session.run(None, {name: inputs})
    cores = threads or os.cpu_count() or 1
    lanes = min(cores, LANES)
    session = open_session(graph, [provider], cores // lanes, precision=precision)
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="session")

    def run_part(part: Inputs) -> list[Float32s]:
        outputs: list[Float32s] = session.run(None, {name: part})
        return outputs

    def run(inputs: Inputs) -> list[Float32s]:
        parts = [inputs[start : start + ONNX_AT_ONCE] for start in range(0, max(1, len(inputs)), ONNX_AT_ONCE)]
        return [np.concatenate(feature) for feature in zip(*pool.map(run_part, parts), strict=True)]

    return run
