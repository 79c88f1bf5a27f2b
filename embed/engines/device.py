"""Run a graph on a CUDA device with inputs and outputs kept there: a run allocates nothing and needs few calls.

Batches have one of a few sizes. For each, the device's memory is set aside once and, where `cuda_graph` is set, all
kernels of a run are recorded and later started as one. Fewer inputs than the size are padded with what was there.

Each size has two places: while one is computed, the inputs of the next batch are copied into the other. onnxruntime
computes in a stream of its own that waits for no other, and copies in CUDA's default stream.
"""

import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Array, Float32s
from embed.engines.recording import recordings
from embed.engines.sessions import signature
from embed.ort import require_onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding, OrtValue, RunOptions

SIZES = (1, 2, 4, 8, 16, 32, 64)  # of batches
RUN_ROWS = 3  # inputs whose computation takes as long as it takes to start a run
PLACES = 2  # of each size: one is computed and one is filled


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


@dataclass(eq=False)
class _Place:
    """What a batch of one size has on the device."""

    size: int
    inputs: "OrtValue"
    padded: Array  # on the host
    outputs: "list[OrtValue]"
    binding: "IOBinding"
    options: "RunOptions"
    computed: bool = False  # at least once, so that its run is recorded if runs are


class DeviceGraph:
    """Runs a session with one input on a device. It can be called like a function, from any thread.

    Only the first dimension of the input may be free.
    """

    def __init__(
        self, session: "InferenceSession", sizes: Sequence[int] = SIZES, device: str = "cuda", cuda_graph: bool = False
    ) -> None:
        self.sizes = sorted(sizes)
        self.session = session
        self._device, _, index = device.partition(":")
        self._index = int(index or 0)
        self._cuda_graph = cuda_graph
        self._made = 0  # places, by whose numbers recordings are called
        self._free: dict[int, queue.SimpleQueue[_Place]] = {}  # of the sizes that were asked for
        self._lock = threading.Lock()  # held while the places of a new size are made
        # Recordings belong to the thread that made them.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")

    def __call__(self, inputs: Array) -> list[Float32s]:
        """Return every output (n, ...) for inputs (n, ...), on the host."""
        under_way: deque[tuple[_Place, int, Future[None]]] = deque()
        done: list[list[Float32s]] = []
        start = 0
        try:
            for size in sizes_for(len(inputs), self.sizes):
                # A thread that holds a place does not wait for another, or two threads could wait for each other.
                while (place := self._take(size, wait=not under_way)) is None:
                    done.append(self._finish(*under_way.popleft()))
                part = inputs[start : start + size]
                under_way.append((place, len(part), self._start(place, part)))
                start += size
            while under_way:
                done.append(self._finish(*under_way.popleft()))
        finally:  # places are still under way only if something failed
            wait([running for _, _, running in under_way])
            for place, *_ in under_way:
                self._free[place.size].put(place)
        return [np.concatenate(output) for output in zip(*done, strict=True)]

    def compute(self, size: int) -> None:
        """Run a batch of this size once, on the inputs that are already on the device."""
        place = self._places(size).get()
        try:
            self._thread.submit(self._compute, place).result()
        finally:
            self._free[size].put(place)

    def record(self) -> None:
        """Run each size once in each of its places, so that all recordings are made now and not by a later run."""
        for size in self.sizes:
            for place in [self._places(size).get() for _ in range(PLACES)]:
                self._thread.submit(self._compute, place).result()
                self._free[size].put(place)

    def close(self) -> None:
        """End the thread. Nothing can be run after that."""
        self._thread.shutdown()

    def _places(self, size: int) -> "queue.SimpleQueue[_Place]":
        """Return the queue of a size's free places."""
        with self._lock:
            if size not in self._free:
                made = [self._thread.submit(self._new_place, size).result() for _ in range(PLACES)]
                self._free[size] = queue.SimpleQueue()
                for place in made:
                    self._free[size].put(place)
            return self._free[size]

    def _take(self, size: int, wait: bool) -> _Place | None:
        """Take a free place. If there is none, wait for one, or return None without `wait`."""
        try:
            return self._places(size).get(wait)
        except queue.Empty:
            return None

    def _start(self, place: _Place, inputs: Array) -> "Future[None]":
        """Copy the inputs to the device, and have them computed after the batches before them."""
        count = len(inputs)
        try:
            if count < place.size:
                place.padded[:count] = inputs
                inputs = place.padded
            with recordings.using():
                place.inputs.update_inplace(inputs)
            return self._thread.submit(self._compute, place)
        except BaseException:
            self._free[place.size].put(place)
            raise

    def _finish(self, place: _Place, count: int, running: "Future[None]") -> list[Float32s]:
        try:
            running.result()
            with recordings.using():
                # A copy, since on a CPU `numpy` gives the memory that the next run writes to.
                return [output.numpy()[:count].copy() for output in place.outputs]
        finally:
            self._free[place.size].put(place)

    def _compute(self, place: _Place) -> None:
        records = self._cuda_graph and not place.computed
        with recordings.recording() if records else recordings.using():
            self.session.run_with_iobinding(place.binding, place.options)
        place.computed = True

    def _new_place(self, size: int) -> _Place:
        ort = require_onnxruntime()

        self._made += 1
        shapes = signature(self.session)
        padded = []
        values = {}
        with recordings.using():
            binding = self.session.io_binding()
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
            options.add_run_config_entry("gpu_graph_id", str(self._made))
        return _Place(size, values[given], padded[0], [values[name] for name in shapes["outputs"]], binding, options)
