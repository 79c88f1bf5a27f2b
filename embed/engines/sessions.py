"""onnxruntime sessions that do what was asked or say why not: providers, threads, shapes.

onnxruntime itself drops a provider that fails to start and goes on with the CPU; here that is an error. Imports
onnxruntime only when a session is opened, and knows nothing of towers, heads or bundles.
"""

import logging
from collections.abc import Mapping, Sequence
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Array, Float32s
from embed.ort import load_cuda_libraries, require_onnxruntime
from embed.spec import InputError
from embed.wording import unknown_name

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

# Short names for the command line; onnxruntime's own names are taken too.
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
# What a session takes when nothing is asked for: the first of these that is installed, then the CPU.
PREFERRED = ("CUDAExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider")

# Whose outputs arise in the memory of a CUDA device.
TENSORRT, CUDA = DEVICE_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")

# onnxruntime 1.31 dies of a segmentation fault when this one meets the casts of an fp16 graph on the CPU.
DISABLED_OPTIMIZERS = {"fp16": ["MatmulTransposeFusion"]}

# A provider by name, or with its options as onnxruntime takes them.
Provider = str | tuple[str, Mapping[str, object]]
# Of one input or output: its numpy type, and its shape with a name where a dimension is free.
Signature = tuple[str, tuple[int | str, ...]]


def resolve_providers(
    asked: Sequence[Provider] | None,
    available: Sequence[str],
    engine_cache: Path | None = None,
    precision: str = "fp32",
) -> list[tuple[str, dict[str, object]]]:
    """Providers with their options, in order, the CPU last; None asks for the best that is installed.

    `engine_cache` is a folder for what TensorRT compiles, which takes minutes and is worth keeping.
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
                f"{full} is asked for and not in this onnxruntime, which has {list(available)};"
                f" install {package} that has it, or ask for another provider"
            )
        chosen[full] = {**_default_options(full, engine_cache, precision), **options}
    if TENSORRT in chosen and CUDA in available:  # which computes what TensorRT cannot, or the CPU would
        chosen.setdefault(CUDA, _default_options(CUDA, engine_cache, precision))
    chosen.setdefault("CPUExecutionProvider", {})
    return list(chosen.items())


def _default_options(provider: str, engine_cache: Path | None, precision: str) -> dict[str, object]:
    if provider == CUDA:
        # The default doubles the arena at each growth and never gives memory back; and it multiplies float32 in TF32,
        # which has ten bits where float32 has 23, so that fp32 would not be what a bundle was proven with.
        exact = {"use_tf32": "0"} if precision == "fp32" else {}
        return {"arena_extend_strategy": "kSameAsRequested", **exact}
    if provider == TENSORRT:
        half = {"trt_fp16_enable": True} if precision.startswith("fp16") else {}  # or it refuses a graph in fp16
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
    """A session on an ONNX file, or on the bytes of one, which errors call by its `name`.

    `threads` is the number inside one operator on the CPU; None is one for each core; `precision` is the graph's.
    `files` are the contents of the files that bytes refer to, by the name there; the session copies what it needs.
    InputError when a provider in `providers` is unknown, missing or does not start, and when the graph cannot be
    loaded.
    """
    ort = require_onnxruntime()
    wanted = resolve_providers(providers, ort.get_available_providers(), engine_cache, precision)
    if any(provider in DEVICE_PROVIDERS for provider, _ in wanted):
        load_cuda_libraries()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Threads that wait busily for a session's next run slow down decoders and other sessions: a picture and a prompt
    # of ViT-B/32 in int8, 25 and 9 ms alone, took 51 one after the other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: a warning for each unused initializer helps nobody
    for file, content in (files or {}).items():
        options.add_external_initializers_from_files_in_memory([file], [content], [len(content)])
    if name is None:
        name = str(model) if isinstance(model, Path) else f"a graph of {len(model)} bytes"
    try:
        session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=wanted,
            enable_fallback=False,
            disabled_optimizers=DISABLED_OPTIMIZERS.get(precision, []),
        )
    except Exception as error:  # onnxruntime's exceptions share no base but this
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
    """`inputs` and `outputs` by name, such as {"inputs": {"pixels": ("uint8", ("n", 224, 224, 3))}, ...}."""
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
    """Every output of the session, in order, as arrays on the CPU.

    On a GPU the inputs are bound and the outputs taken where they arise, so that nothing is copied twice.
    """
    if session.get_providers()[0] in DEVICE_PROVIDERS:
        return run_bound(session, inputs, "cuda")
    outputs: list[Float32s] = session.run(None, dict(inputs))
    return outputs


def run_bound(session: "InferenceSession", inputs: Mapping[str, Array], device: str) -> list[Float32s]:
    """`run` with the outputs made on the device ("cpu", "cuda") and copied once."""
    binding = session.io_binding()
    for name, values in inputs.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(values))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    session.run_with_iobinding(binding)
    outputs: list[Float32s] = binding.copy_outputs_to_cpu()
    return outputs
