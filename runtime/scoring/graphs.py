"""The sessions of a bundle's graphs. They are opened when first used, checked against the manifest, and used by many
threads.

Knows arrays only: no picture, no prompt.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from mmap import mmap
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Array, Float32s, UInt8s
from embed.engines.device import SIZES, DeviceGraph
from embed.engines.sessions import DEVICE_PROVIDERS, Provider, open_session, resolve_providers, run, signature
from embed.ort import require_onnxruntime
from embed.spec import InputError
from runtime.config import CUDA_PRECISION, Precision, SessionConfig
from runtime.scoring.bundle import WEIGHTS_FILE, Bundle, BundleError
from runtime.scoring.manifest import Part
from runtime.scoring.pinned import locked_array
from runtime.scoring.weights import read_weights

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Pixels = Sequence[UInt8s] | UInt8s  # n pictures (h, w, 3) of the backbone's size

CUDA = "CUDAExecutionProvider"
BATCH = 32  # the most pictures in a run

logger = logging.getLogger(__name__)


def first_provider(config: SessionConfig) -> str:
    """The name of the first execution provider for onnxruntime. Raise InputError if it is not available."""
    available = require_onnxruntime().get_available_providers()
    return resolve_providers(config.providers, available, config.engine_cache)[0][0]


def runnable(precisions: Iterable[Precision], config: SessionConfig) -> list[Precision]:
    """The precisions whose graphs can run on the used provider; some run only on CUDA."""
    on_cuda = first_provider(config) == CUDA
    return [precision for precision in precisions if on_cuda or precision != CUDA_PRECISION]


class Sessions:
    """The graphs of `bundle` at one precision, by part: "image", "text", "head", and "model", which is all of them in
    one graph."""

    def __init__(self, bundle: Bundle, precision: Precision, config: SessionConfig) -> None:
        self._bundle = bundle
        self._precision = precision
        self._config = config
        self._weights: mmap | None = read_weights(bundle, precision)
        self._open: dict[tuple[Part, int | None], InferenceSession] = {}
        self._devices: dict[InferenceSession, DeviceGraph] = {}  # for sessions whose batches stay on a CUDA device
        self._lock = threading.Lock()
        self._local = threading.local()

    @cached_property
    def provider(self) -> str:
        """The name of the first execution provider for onnxruntime. Raise InputError if it is not available."""
        return first_provider(self._config)

    def run(self, part: Part, inputs: Mapping[str, Array], threads: int | None = None) -> dict[str, Float32s]:
        """Run a graph and return its outputs (n, ...) by name. On a CPU it uses so many threads, the calling one
        included.

        Each number of threads has its own session with its own copy of the weights.
        """
        session = self._session(part, threads)
        if not len(next(iter(inputs.values()))):  # operators treat empty inputs differently
            outputs = self._bundle.graph(self._precision, part).outputs
            return {name: np.empty((0, *map(int, shape[1:])), kind) for name, (kind, shape) in outputs.items()}
        names = [output.name for output in session.get_outputs()]
        device = self._devices.get(session)
        values = run(session, inputs) if device is None else device(inputs["pixels"])
        return dict(zip(names, values, strict=True))

    def release_weights(self) -> None:
        """Free the weights that were read. Open sessions have copies, and a new session reads them again."""
        with self._lock:
            self._weights = None

    def close(self) -> None:
        """Drop the sessions. Their memory is freed once no run uses them."""
        self.release_weights()
        with self._lock:
            for device in self._devices.values():
                device.close()
            self._devices.clear()
            self._open.clear()

    def encode(self, pixels: Pixels, threads: int | None = None) -> dict[str, Float32s]:
        """Vectors (n, d) by name of up to BATCH decoded pictures. `threads` is as for `run`."""
        return self.run("image", {"pixels": self._stack(pixels)}, threads)

    def _stack(self, pixels: Pixels) -> UInt8s:
        """The pictures as one array. On a CUDA device the array belongs to this thread, and is overwritten by the next
        call."""
        size = (*self._bundle.identity.preprocess.size, 3)
        if self.provider not in DEVICE_PROVIDERS:
            return np.asarray(pixels) if len(pixels) else np.empty((0, *size), np.uint8)
        if not hasattr(self._local, "batch"):
            self._session("image")  # makes onnxruntime load CUDA's library
            self._local.batch = locked_array((BATCH, *size))
        batch: UInt8s = self._local.batch[: len(pixels)]
        for place, picture in zip(batch, pixels, strict=True):
            place[:] = picture
        return batch

    def _session(self, part: Part, threads: int | None = None) -> "InferenceSession":
        config = self._config
        if part in ("text", "head"):  # too little work for several threads
            threads = 1
        elif threads is None or self.provider != "CPUExecutionProvider":
            threads = config.threads
        with self._lock:
            if (part, threads) not in self._open:
                self._open[part, threads] = self._new_session(part, threads)
            return self._open[part, threads]

    def _new_session(self, part: Part, threads: int | None) -> "InferenceSession":
        graph, config = self._bundle.graph(self._precision, part), self._config
        path = self._bundle.path / graph.file
        if self._weights is None:
            self._weights = read_weights(self._bundle, self._precision)
        model, weights = self._bundle.read(graph.file), {WEIGHTS_FILE: self._weights}
        open_graph = partial(
            open_session,
            model,
            threads=threads,
            engine_cache=config.engine_cache,
            precision=self._precision,
            files=weights,
            name=str(path),
        )
        if part == "image" and self.provider == CUDA:
            session, recorded = self._record(open_graph)
            device = "cuda" if session.get_providers()[0] == CUDA else "cpu"
            self._devices[session] = DeviceGraph(session, SIZES, device, recorded)
        else:
            session = open_graph(config.providers)
        found = signature(session)
        for side, wanted in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            if found[side] != wanted:
                raise BundleError(f"{path} has {side} {found[side]}, its manifest {dict(wanted)}")
        return session

    def _record(self, open_graph: Callable[..., "InferenceSession"]) -> tuple["InferenceSession", bool]:
        """A session on CUDA, and whether its runs are recorded, which is possible only if the whole graph runs on
        CUDA."""
        providers = self._config.providers or (CUDA,)
        if self._precision != CUDA_PRECISION:  # recording was never tried with the operators of other precisions
            return open_graph(self._config.providers), False
        first: Provider = (providers[0], {"enable_cuda_graph": "1"})
        try:
            return open_graph([first, *providers[1:]]), True
        except InputError as error:
            logger.warning(f"runs on CUDA cannot be recorded, so small batches take longer ({error})")
            return open_graph(providers), False
