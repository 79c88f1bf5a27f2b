"""A graph on a CUDA device, its inputs and outputs kept there: nothing is allocated in a run, and few calls start it.

Batches have one of a few sizes. For each, the device's memory is set aside once and, where `cuda_graph` is set, all
kernels of a run are recorded and later started as one. Fewer inputs than the size are padded with what was there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embed.arrays import Float32s, Int32s, UInt8s
from embed.ort import require_onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding, OrtValue, RunOptions

SIZES = (1, 4, 16, 64)  # of batches


@dataclass(frozen=True)
class _Place:
    """What one size of batch has on the device."""

    inputs: "OrtValue"
    outputs: "list[OrtValue]"
    binding: "IOBinding"
    options: "RunOptions"


class DeviceGraph:
    """A session of one input, whose first dimension alone is free, as a function of arrays. Used by one thread."""

    def __init__(
        self, session: "InferenceSession", sizes: Sequence[int] = SIZES, device: str = "cuda", cuda_graph: bool = False
    ) -> None:
        self.sizes = sorted(sizes)
        self._session = session
        self._device, _, index = device.partition(":")
        self._index = int(index or 0)
        self._cuda_graph = cuda_graph
        self._places: dict[int, _Place] = {}

    def __call__(self, inputs: UInt8s | Int32s) -> list[Float32s]:
        """Every output (n, ...) of inputs (n, ...)."""
        import numpy as np

        largest = self.sizes[-1]
        parts = [self._run(inputs[start : start + largest]) for start in range(0, len(inputs), largest)]
        return parts[0] if len(parts) == 1 else [np.concatenate(output) for output in zip(*parts, strict=True)]

    def _run(self, inputs: UInt8s | Int32s) -> list[Float32s]:
        size = next(size for size in self.sizes if size >= len(inputs))
        place = self._place(size)
        if len(inputs) < size:
            padded = place.inputs.numpy()
            padded[: len(inputs)] = inputs
        else:
            padded = inputs
        place.inputs.update_inplace(padded)
        self.compute(size)
        return [output.numpy()[: len(inputs)] for output in place.outputs]

    def compute(self, size: int) -> None:
        """One run on what is on the device."""
        place = self._place(size)
        self._session.run_with_iobinding(place.binding, place.options)

    def _place(self, size: int) -> _Place:
        if size not in self._places:
            self._places[size] = self._new_place(size)
        return self._places[size]

    def _new_place(self, size: int) -> _Place:
        ort = require_onnxruntime()

        def allocate(node: object) -> "OrtValue":
            shape = [size, *node.shape[1:]]  # type: ignore[attr-defined]
            kinds = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int32)": "int32"}
            kind = kinds[node.type]  # type: ignore[attr-defined]
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, self._device, self._index)

        node = self._session.get_inputs()[0]
        inputs, outputs = allocate(node), [allocate(output) for output in self._session.get_outputs()]
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(node.name, inputs)
        for output, value in zip(self._session.get_outputs(), outputs, strict=True):
            binding.bind_ortvalue_output(output.name, value)
        options = ort.RunOptions()
        if self._cuda_graph:
            options.add_run_config_entry("gpu_graph_id", str(size))
        return _Place(inputs, outputs, binding, options)
