"""Open onnxruntime sessions with the providers, threads and shapes asked for, or say why that is not possible.

onnxruntime itself drops a provider that fails to start and continues on the CPU; here that is an error. onnxruntime is
imported only when a session is opened. This module does not know towers, heads or bundles.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Array, Float32s
from embed.engines.recording import recordings
from embed.ort import load_cuda_libraries, require_onnxruntime
from embed.spec import InputError
from embed.wording import unknown_name

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

# Short names for the command line; onnxruntime's own names are accepted too.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
}
# The default of a session: the first of these that is installed, then the CPU.
PREFERRED = ("CUDAExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider")

# These providers create their outputs in the memory of a CUDA device.
TENSORRT, CUDA = DEVICE_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")

# onnxruntime 1.31 crashes with a segmentation fault when this one meets the casts of an fp16 graph on the CPU.
DISABLED_OPTIMIZERS = {"fp16": ["MatmulTransposeFusion"]}

# The name of a provider, or its name with options for onnxruntime.
Provider = str | tuple[str, Mapping[str, object]]
# The numpy type of an input or output, and its shape, with a name for each free dimension.
Signature = tuple[str, tuple[int | str, ...]]


def resolve_providers(
    asked: Sequence[Provider] | None,
    available: Sequence[str],
    engine_cache: Path | None = None,
    precision: str = "fp32",
) -> list[tuple[str, dict[str, object]]]:
    """Return providers with their options, in order, with the CPU last. None asks for the best one installed.

    `engine_cache` is a folder for what TensorRT compiles, because compiling takes minutes. Raise InputError if a
    provider is unknown or not installed.
    """
    if asked is None:
        asked = [name for name in PREFERRED if name in available][:1]
    chosen: dict[str, dict[str, object]] = {}
    for item in asked:
        name, options = (item, {}) if isinstance(item, str) else item
        full = PROVIDERS.get(name.lower(), name)
        if full not in PROVIDERS.values():
            raise unknown_name("provider", name, PROVIDERS)
        if full not in available:
            package = "plaudit[gpu]" if full in DEVICE_PROVIDERS else "a build"
            raise InputError(
                f"this onnxruntime has no {full}, only {list(available)};"
                f" install {package} that has it, or ask for another provider"
            )
        chosen[full] = {**_default_options(full, engine_cache, precision), **options}
    if TENSORRT in chosen and CUDA in available:  # CUDA computes what TensorRT cannot; otherwise the CPU would
        chosen.setdefault(CUDA, _default_options(CUDA, engine_cache, precision))
    chosen.setdefault("CPUExecutionProvider", {})
    return list(chosen.items())


def _default_options(provider: str, engine_cache: Path | None, precision: str) -> dict[str, object]:
    if provider == CUDA:
        # The default doubles the arena each time it grows and never frees memory. It also multiplies float32 in TF32,
        # with 10 bits of mantissa instead of 23, so that fp32 would differ from what a bundle was checked with.
        exact = {"use_tf32": "0"} if precision == "fp32" else {}
        return {"arena_extend_strategy": "kSameAsRequested", **exact}
    if provider == TENSORRT:
        half = {"trt_fp16_enable": True} if precision.startswith("fp16") else {}  # otherwise it refuses an fp16 graph
        if engine_cache is None:
            return {**half}
        folder = str(engine_cache)
        return {
            **half,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": folder,
        }
    return {}


def open_session(
    model: Path | bytes,
    providers: Sequence[Provider] | None = None,
    threads: int | None = None,
    engine_cache: Path | None = None,
    precision: str = "fp32",
    files: Mapping[str, bytes | mmap] | None = None,
    name: str | None = None,
) -> "InferenceSession":
    """Open a session on an ONNX file or on the bytes of one. `name` is what errors call it.

    `threads` is the number inside one operator on the CPU (None is one for each core), and `precision` is that of the
    graph. `files` holds the contents of files that the graph refers to, by name; the session copies what it needs.
    Raise InputError if a provider is unknown, missing or does not start, or if the graph cannot be loaded.
    """
    ort = require_onnxruntime()
    wanted = resolve_providers(providers, ort.get_available_providers(), engine_cache, precision)
    if any(provider in DEVICE_PROVIDERS for provider, _ in wanted):
        load_cuda_libraries()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Threads that wait busily for the session's next run slow down decoders and other sessions: a picture and a
    # prompt of ViT-B/32 in int8, which alone take 25 and 9 ms, took 51 ms one after the other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only, because there is a warning for each unused initializer
    for file, content in (files or {}).items():
        options.add_external_initializers_from_files_in_memory([file], [content], [len(content)])
    if name is None:
        name = str(model) if isinstance(model, Path) else f"a graph of {len(model)} bytes"
    on_device = any(provider in DEVICE_PROVIDERS for provider, _ in wanted)
    try:
        with recordings.using() if on_device else nullcontext():
            session = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                options,
                providers=wanted,
                enable_fallback=False,
                disabled_optimizers=DISABLED_OPTIMIZERS.get(precision, []),
            )
    except Exception as error:  # onnxruntime's exceptions have no other common base
        raise InputError(f"onnxruntime cannot load {name} with {[p for p, _ in wanted]}: {error}") from None
    dropped = [provider for provider, _ in wanted if provider not in session.get_providers()]
    if dropped:
        text = f"{name}: {', '.join(dropped)} did not start; only {session.get_providers()} is active"
        if providers is not None:
            brings = "; pip install 'onnxruntime-gpu[cuda,cudnn]' brings what CUDA needs beside a driver"
            raise InputError(
                f"{text}. See onnxruntime's message above, or ask for --provider cpu{brings if CUDA in dropped else ''}"
            )
        logger.warning(text)
    return session


def signature(session: "InferenceSession") -> dict[str, dict[str, Signature]]:
    """Return `inputs` and `outputs` by name, such as {"inputs": {"pixels": ("uint8", ("n", 224, 224, 3))}, ...}."""
    types = {"tensor(float)": "float32", "tensor(float16)": "float16"}
    return {
        side: {
            node.name: (
                types.get(node.type, node.type.removeprefix("tensor(").removesuffix(")")),
                tuple(node.shape),
            )
            for node in nodes
        }
        for side, nodes in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))
    }


def run(session: "InferenceSession", inputs: Mapping[str, Array]) -> list[Float32s]:
    """Return every output of the session, in order, as arrays on the CPU.

    On a GPU, inputs and outputs are bound to the device's memory so that nothing is copied twice.
    """
    if session.get_providers()[0] in DEVICE_PROVIDERS:
        return run_bound(session, inputs, "cuda")
    outputs: list[Float32s] = session.run(None, dict(inputs))
    return outputs


def run_bound(session: "InferenceSession", inputs: Mapping[str, Array], device: str) -> list[Float32s]:
    """Do the same as `run`, with outputs that are made on the device ("cpu", "cuda") and copied once."""
    binding = session.io_binding()
    for name, values in inputs.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(values))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    with recordings.using():
        session.run_with_iobinding(binding)
        outputs: list[Float32s] = binding.copy_outputs_to_cpu()
    return outputs
