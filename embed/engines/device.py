"""Run a graph on a CUDA device with inputs and outputs kept there: a run allocates nothing and needs few calls.

Batches have one of a few sizes. For each size the device's memory is reserved once, and if `cuda_graph` is set, all
kernels of a run are recorded and later started by one call. Smaller batches are padded with leftover values.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Array, Float32s
from embed.engines.sessions import signature
from embed.ort import require_onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding, OrtValue, RunOptions

SIZES = (1, 2, 4, 8, 16, 32, 64)  # of batches
RUN_ROWS = 3  # starting a run takes as long as computing this many inputs


def sizes_for(count: int, sizes: Sequence[int]) -> list[int]:
    """Return the batch sizes, each one of the ascending `sizes`, that run `count` inputs in the least time.

    Their sum may be larger than `count`; then the last batch is not full.
    """
    if count <= 0:
        return []
    room = [size for size in sizes if size >= count][:1]
    fitting = [size for size in sizes if size < count]
    if not fitting:
        return room
    split = [fitting[-1], *sizes_for(count - fitting[-1], sizes)]
    return min((plan for plan in (room, split) if plan), key=lambda plan: sum(plan) + RUN_ROWS * len(plan))


@dataclass(frozen=True)
class _Place:
    """What the device holds for one batch size."""

    inputs: "OrtValue"
    padded: Array  # on the host
    outputs: "list[OrtValue]"
    binding: "IOBinding"
    options: "RunOptions"


class DeviceGraph:
    """A function of arrays that runs a session of one input on a device. It may be called from any thread.

    Only the first dimension of the input may be free.
    """

    def __init__(
        self, session: "InferenceSession", sizes: Sequence[int] = SIZES, device: str = "cuda", cuda_graph: bool = False
    ) -> None:
        self.sizes = sorted(sizes)
        self._session = session
        self._device, _, index = device.partition(":")
        self._index = int(index or 0)
        self._cuda_graph = cuda_graph
        self._places: dict[int, _Place] = {}
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="device"
        )  # recordings can only be run by the thread that made them

    def __call__(self, inputs: Array) -> list[Float32s]:
        """Return every output (n, ...) for inputs (n, ...), in host memory."""
        return self._thread.submit(self._run_all, inputs).result()

    def compute(self, size: int) -> None:
        """Run once on what is already in the device's memory."""
        self._thread.submit(self._compute, size).result()

    def close(self) -> None:
        """End the thread. Nothing can be run after that."""
        self._thread.shutdown()

    def _run_all(self, inputs: Array) -> list[Float32s]:
        parts, start = [], 0
        for size in sizes_for(len(inputs), self.sizes):
            parts.append(self._run(inputs[start : start + size], size))
            start += size
        return [np.concatenate(output) for output in zip(*parts, strict=True)]

    def _run(self, inputs: Array, size: int) -> list[Float32s]:
        place = self._place(size)
        count = len(inputs)
        if count < size:
            place.padded[:count] = inputs
            inputs = place.padded
        place.inputs.update_inplace(inputs)
        self._compute(size)
        # A copy, because on a CPU `numpy` gives the memory that the next run writes to.
        return [output.numpy()[:count].copy() for output in place.outputs]

    def _compute(self, size: int) -> None:
        place = self._place(size)
        self._session.run_with_iobinding(place.binding, place.options)

    def _place(self, size: int) -> _Place:
        if size not in self._places:
            self._places[size] = self._new_place(size)
        return self._places[size]

    def _new_place(self, size: int) -> _Place:
        ort = require_onnxruntime()

        shapes = signature(self._session)
        binding = self._session.io_binding()
        padded = []
        values = {}
        for name, (kind, shape) in (shapes["inputs"] | shapes["outputs"]).items():
            host = np.zeros((size, *map(int, shape[1:])), kind)
            values[name] = ort.OrtValue.ortvalue_from_numpy(host, self._device, self._index)
            padded += [host] if name in shapes["inputs"] else []
        (given,) = shapes["inputs"]
        binding.bind_ortvalue_input(given, values[given])
        for name in shapes["outputs"]:
            binding.bind_ortvalue_output(name, values[name])
        options = ort.RunOptions()
        if self._cuda_graph:
            options.add_run_config_entry("gpu_graph_id", str(size))
        return _Place(values[given], padded[0], [values[name] for name in shapes["outputs"]], binding, options)
