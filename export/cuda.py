"""Check a bundle's graphs for CUDA, which no CPU can run, also on a machine without CUDA.

Their structure is checked in float32, where a CPU has the same operators. How much half precision changes scores is
measured on the device, or else taken from the fp16 graphs, whose rounding is similar. On the device, the bundle's
reference is compared with what the graphs give.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embed.arrays import Array
from embed.engines.sessions import open_session
from embed.graphs.fusing import for_cuda, fuse
from embed.graphs.trace import certificate
from embed.spec import InputError
from export import parity
from export.graphs import compose
from runtime.config import CUDA_PRECISION, Precision, SessionConfig
from runtime.scoring.graphs import runnable
from runtime.scoring.manifest import Part

if TYPE_CHECKING:
    from onnx import ModelProto

    from embed.backbones.backbone import Backbone


def require_measurable(precisions: Sequence[Precision]) -> None:
    """Raise InputError if this machine has no way to measure the error of the graphs for CUDA."""
    if CUDA_PRECISION in precisions and "fp16" not in precisions and not runs_here():
        raise InputError(
            f"{CUDA_PRECISION} cannot be measured, because this onnxruntime has no CUDA; export on a machine with CUDA,"
            f" or add fp16, which rounds similarly and runs on a CPU: --precision fp32,fp16,{CUDA_PRECISION}"
        )


def runs_here() -> bool:
    """Whether this machine's onnxruntime has CUDA, and uses it by default."""
    return bool(runnable([CUDA_PRECISION], SessionConfig()))


def cuda_towers(
    backbone: "Backbone",
    inputs: Sequence[str],
    shortens: bool,
    sample: Mapping[str, Array],
    reference: Mapping[str, Array],
) -> dict[Part, "ModelProto"]:
    """Return the towers that a head with these inputs needs.

    Raise ParityError if their structure, run in float32 on this CPU on the `sample` (by input), does not give the
    `reference` vectors of torch (by output).
    """
    exported: dict[Part, ModelProto] = {"image": compose.export_image(backbone, inputs, fused=True)}
    if "text_embedding" in inputs:
        exported["text"] = compose.export_text(backbone, shortens, fused=True)
    towers: dict[Part, ModelProto] = {part: for_cuda(model) for part, model in exported.items()}
    for model in exported.values():
        _require_structure(fuse(model), sample, reference)
    return towers


def _require_structure(model: "ModelProto", sample: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
    import onnx

    inputs = {value.name: sample[value.name] for value in model.graph.input}
    outputs = [value.name for value in model.graph.output]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(model, str(path), save_as_external_data=True, location="model.data")
        found = open_session(path, ["cpu"]).run(outputs, inputs)
    for name, values in zip(outputs, found, strict=True):
        cosine = certificate("fp32", reference[name], values).cosine_min
        if not cosine >= parity.MIN_COSINE:
            raise parity.ParityError(
                f"the graph for CUDA and torch disagree in float32: {name} has a cosine of {cosine:.7f}, less than"
                f" {parity.MIN_COSINE}; export without {CUDA_PRECISION}"
            )
