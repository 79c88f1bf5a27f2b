"""A torch module as an ONNX graph, and the measured distance between the two.

Graphs are plain ONNX (opset 20, no custom operators), with names that the caller chooses, and the same bytes each
time the same module is exported. Knows no backbone, no head and no bundle; `embed.engines.sessions` runs what is made
here.
"""

import contextlib
import copy
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
DOMAIN = "com.microsoft"  # of onnxruntime's own operators, which a graph has only where its caller asks for them

FreeDims = Mapping[str, Mapping[int, str]]  # of each input, the axes that may take any size, and what they are called

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Certificate:
    """How far a graph's vectors are from the reference's, on the same inputs."""

    precision: str
    rows: int
    cosine_mean: float
    cosine_min: float
    max_difference: float  # of one coordinate

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def certificate(precision: str, reference: Array, outputs: Array) -> Certificate:
    """The certificate of `outputs` (n, d) against `reference` (n, d); raise FloatingPointError if one is not finite."""
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
    """The module as an fp32 graph whose inputs have the names of its `forward`'s arguments.

    Dimensions in `free` ({"tokens": {0: "n", 1: "c"}}) may take any size; the example needs at least two in each.
    Raises torch's own errors where the module cannot be exported, or needs a dimension to be fixed.

    Tracing takes a second where torch's newer exporter takes ten, but freezes what Python decides on the way. A
    module that traces differently at another size, or not at all, goes to the newer one.
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
    """The graph but for its weights."""
    return None if model is None else without_weights(model)


def _resized(example: "torch.Tensor", free: Mapping[int, str]) -> "torch.Tensor":
    """The example with every free dimension longer or shorter by one."""
    import torch

    for axis in free:
        size = example.shape[axis]
        example = example.index_select(axis, torch.arange(size - 1 if size > 2 else size + 1) % size)
    return example


def _trace(
    tower: "torch.nn.Module", example: Mapping[str, "torch.Tensor"], output_names: Sequence[str], free: FreeDims
) -> "ModelProto | None":
    """The module as torch's tracing exporter gives it, None where that cannot."""
    import onnx
    import torch

    # The exporter passes inputs by position, which a forward that takes any names has none of.
    by_position = copy.copy(tower)
    by_position.forward = lambda *inputs: tower.forward(**dict(zip(example, inputs, strict=True)))
    with tempfile.TemporaryDirectory() as folder:  # in memory, no graph may be larger than 2 GB
        path = str(Path(folder) / "model.onnx")
        try:
            torch.onnx.export(
                by_position,
                tuple(example.values()),
                path,
                input_names=list(example),
                output_names=list(output_names),
                dynamic_axes={**free, **{name: {0: "n"} for name in output_names}},
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:  # of any kind, as it runs the module's own code in an unusual way
            logger.debug("%s cannot be traced: %s", type(tower).__name__, error)
            return None
        return hoist_constants(onnx.load(path))


def _capture(
    tower: "torch.nn.Module", example: Mapping[str, "torch.Tensor"], output_names: Sequence[str], free: FreeDims
) -> "ModelProto":
    """The module as torch's newer exporter gives it."""
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
    """torch's fused attention off, since it has no ONNX form, and the exporter's chatter kept from the user."""
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
    """These loggers, None being the root, pass errors alone while the block runs."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def canonical(model: "ModelProto") -> "ModelProto":
    """The same graph without what differs between machines: stack traces, paths, versions, notes."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")  # inferred again by whoever needs it
    graph.name = "plaudit"
    model.producer_name, model.producer_version = "plaudit", ""
    return model
