"""Write a bundle as a model repository for NVIDIA Triton: the same graphs, configured for batching.

    REPO/NAME/config.pbtxt          pixels and tokens -> scores and vectors in one model
    REPO/NAME/1/model.onnx
    REPO/NAME/1/weights.bin         one file with several names (hard links), if the file system has links
    REPO/NAME_image/ NAME_text/ NAME_head/    the parts, so that a prompt is encoded once for many pictures

Triton is given pixels and tokens: its clients decode, resize and tokenise. Requests whose prompts have different
numbers of tokens are not batched together. Triton is not needed here; the graphs are those of the bundle, byte for
byte."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from embed.engines.sessions import Signature
from embed.files import replacing
from embed.spec import InputError
from runtime.scoring.bundle import WEIGHTS_FILE, Bundle, Graph
from runtime.scoring.manifest import PARTS

MAX_BATCH = 64
QUEUE_DELAY_US = 2000
MAX_QUEUE = 256
TIMEOUT_US = 10_000_000

TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}


def export_repository(
    bundle: Bundle, out: Path, precision: str | None = None, name: str = "plaudit", overwrite: bool = False
) -> list[str]:
    """Write the repository to `out` (see embed.files.replacing), and return the names of its models."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise InputError(f"a model's name is {name!r}; wanted letters, digits, - and _")
    graphs = bundle.graphs[bundle.precision(precision)]
    models = {name if part == "model" else f"{name}_{part}": graphs[part] for part in PARTS if part in graphs}
    with replacing(out, "Triton repository", overwrite) as folder:
        first: Path | None = None
        for model, graph in models.items():
            version = folder / model / "1"
            version.mkdir(parents=True)
            (folder / model / "config.pbtxt").write_text(model_config(model, graph), encoding="utf-8")
            shutil.copyfile(bundle.path / graph.file, version / "model.onnx")
            weights = version / WEIGHTS_FILE
            if first is None:
                first = shutil.copyfile(bundle.path / WEIGHTS_FILE, weights)
            else:
                _link_or_copy(first, weights)
    return list(models)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no links
        shutil.copyfile(source, target)


def model_config(name: str, graph: Graph) -> str:
    """Return the text of config.pbtxt, Triton's ModelConfig: requests that wait form batches of up to MAX_BATCH."""
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {MAX_BATCH}",
        *_tensors("input", graph.inputs),
        *_tensors("output", graph.outputs),
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {QUEUE_DELAY_US}",
        "  default_queue_policy {",
        f"    max_queue_size: {MAX_QUEUE}",
        f"    default_timeout_microseconds: {TIMEOUT_US}",
        "    timeout_action: REJECT",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _tensors(side: str, tensors: Mapping[str, Signature]) -> Iterator[str]:
    """Yield a block for each input or output, without the batch dimension, and with -1 for a free dimension."""
    for name, (kind, shape) in tensors.items():
        dims = [dim if isinstance(dim, int) else -1 for dim in shape[1:]]
        yield f"{side} {{"
        yield f'  name: "{name}"'
        yield f"  data_type: {TYPES[kind]}"
        yield f"  dims: {dims or [1]}"
        if not dims:  # Triton has no tensors with only the batch dimension
            yield "  reshape { shape: [ ] }"
        yield "}"
