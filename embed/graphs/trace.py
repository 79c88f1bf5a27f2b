"""Export a torch module as an ONNX graph, and measure the distance between the two.

Graphs are plain ONNX (opset 20, no custom operators), with names that the caller chooses. Exporting the same module
again gives the same bytes. This module does not know backbones, heads or bundles; `embed.engines.sessions` runs the
graphs.
"""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Array, cosines
from embed.graphs.folding import fold_constants, hoist_constants, without_weights

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

OPSET = 20
DOMAIN = "com.microsoft"  # onnxruntime's own operators, which are in a graph only if the caller asks for them

FreeDims = Mapping[str, Mapping[int, str]]  # for each input, the axes that may have any size, and their names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Certificate:
    """How far the vectors of a graph are from those of the reference, on the same inputs."""

    precision: str
    rows: int
    cosine_mean: float
    cosine_min: float
    max_difference: float  # the largest absolute difference of one coordinate

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def certificate(precision: str, reference: Array, outputs: Array) -> Certificate:
    """Compare `outputs` (n, d) with `reference` (n, d). Raise FloatingPointError if a number is not finite."""
    ours, theirs = np.asarray(outputs, np.float64), np.asarray(reference, np.float64)
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"a certificate compares equal shapes with rows; got {ours.shape} and {theirs.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        bad = int((~np.isfinite(ours)).any(axis=1).sum())
        raise FloatingPointError(f"{bad} of {len(ours)} vectors at {precision} are not finite")
    cosine = cosines(ours, theirs)
    furthest = float(np.abs(ours - theirs).max())
    return Certificate(precision, len(ours), float(cosine.mean()), float(cosine.min()), furthest)


def export_tower(
    tower: "torch.nn.Module", example: Mapping[str, "torch.Tensor"], output_names: Sequence[str], free: FreeDims
) -> "ModelProto":
    """Export the module as an fp32 graph whose inputs are named like the arguments of its `forward`.

    Dimensions in `free` ({"tokens": {0: "n", 1: "c"}}) may have any size; the example needs a size of at least two in
    each. Raise torch's own errors if the module cannot be exported or needs a dimension to be fixed.

    Tracing takes about one second and torch's newer exporter ten, but tracing fixes the decisions that Python makes.
    So a module that cannot be traced, or gives another trace for another size, is exported by the newer one.
    """
    import torch

    other = {name: _resized(tensor, free.get(name, {})) for name, tensor in example.items()}
    size, other_size = (
        {dim: inputs[name].shape[axis] for name, axes in free.items() for axis, dim in axes.items()}
        for inputs in (example, other)
    )
    with quiet_exporter(), torch.no_grad():
        structure = _structure(_trace(tower, other, output_names, free))
        traced = _trace(tower, example, output_names, free)
        if traced is not None and _structure(traced) == structure:
            return canonical(fold_constants(traced, (size, other_size)))
        return canonical(_capture(tower, example, output_names, free))


def _structure(model: "ModelProto | None") -> "ModelProto | None":
    """Return the graph without its weights."""
    return None if model is None else without_weights(model)


def _resized(example: "torch.Tensor", free: Mapping[int, str]) -> "torch.Tensor":
    """Return the example with every free dimension longer or shorter by one."""
    import torch

    for axis in free:
        size = example.shape[axis]
        example = example.index_select(axis, torch.arange(size - 1 if size > 2 else size + 1) % size)
    return example


def _trace(
    tower: "torch.nn.Module", example: Mapping[str, "torch.Tensor"], output_names: Sequence[str], free: FreeDims
) -> "ModelProto | None":
    """Export the module with torch's tracing exporter. Return None if that fails."""
    import onnx
    import torch

    with tempfile.TemporaryDirectory() as folder:  # not in memory, where a graph is limited to 2 GB
        path = str(Path(folder) / "model.onnx")
        try:
            torch.onnx.export(
                tower,
                (),
                path,
                kwargs=dict(example),
                input_names=list(example),
                output_names=list(output_names),
                dynamic_axes={**free, **{name: {0: "n"} for name in output_names}},
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:  # any kind, because it runs the module's own code in an unusual way
            logger.debug("%s cannot be traced: %s", type(tower).__name__, error)
            return None
        return hoist_constants(onnx.load(path))


def _capture(
    tower: "torch.nn.Module", example: Mapping[str, "torch.Tensor"], output_names: Sequence[str], free: FreeDims
) -> "ModelProto":
    """Export the module with torch's newer exporter."""
    import torch

    program = torch.onnx.export(
        tower,
        kwargs=dict(example),
        output_names=list(output_names),
        dynamic_shapes={name: dict(free.get(name, {})) for name in example},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Turn torch's fused attention off, because it has no ONNX form, and hide the messages of the exporter."""
    import torch

    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with only_errors("torch.onnx", "torch.export", "onnxscript", "onnx_ir"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def only_errors(*loggers: str | None) -> Iterator[None]:
    """Let these loggers (None is the root) pass only errors while the block runs."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def canonical(model: "ModelProto") -> "ModelProto":
    """Remove what differs between machines, such as stack traces, paths, versions and notes, and return the graph."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")  # can be inferred again when it is needed
    graph.name = "plaudit"
    model.producer_name, model.producer_version = "plaudit", ""
    return model
