"""Towers, head and calibration as ONNX graphs, alone and joined into one, over one file of weights.

Each part is exported once; the whole is joined from the parts as graphs, so that the parts and the whole cannot
differ. Knows no manifest and no picture.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from embed.graphs.fusing import export_fused
from embed.graphs.precision import fold_patches
from embed.graphs.rewrite import serving_form
from embed.graphs.trace import canonical, export_tower
from embed.progress import stage
from heads.config import picture_inputs
from heads.evaluation.calibration import Curve, Temperature
from runtime.scoring.bundle import WEIGHTS_FILE

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto

    from embed.backbones.backbone import Backbone
    from heads.committee import Committee
    from heads.models import Head

MIN_EXTERNAL_BYTES = 1024  # smaller tensors stay in the graphs, where shape inference needs some of them
ALIGNMENT_BYTES = 4096  # onnxruntime maps a tensor into memory only where it starts on a page


@stage("exporting the tower of pictures")
def export_image(backbone: "Backbone", inputs: Sequence[str], fused: bool = False) -> "ModelProto":
    """pixels (n, h, w, 3) uint8 -> image_embedding (n, d), and image_pooled (n, p) where `inputs` names it.

    `fused` is the form that embed.graphs.fusing makes graphs for CUDA of.
    """
    import torch

    wanted = picture_inputs(inputs)
    tower = backbone.image_tower(tuple(wanted.values()))
    example = torch.zeros((2, *backbone.identity.preprocess.size, 3), dtype=torch.uint8)
    free = {"pixels": {0: "n"}}
    if fused:
        return export_fused(tower, {"pixels": example}, list(wanted), free)
    with serving_form(backbone.model.visual):
        return fold_patches(export_tower(tower, {"pixels": example}, list(wanted), free))


@stage("exporting the tower of prompts")
def export_text(backbone: "Backbone", shortens: bool, fused: bool = False) -> "ModelProto":
    """tokens (n, c) int32 -> text_embedding (n, d); c is free where the tower `shortens`, else the context length."""
    import torch

    example = torch.from_numpy(backbone.tokenize(["a photo of a cat", "two dogs on a bench"]))
    free = {0: "n", 1: "c"} if shortens else {0: "n"}
    if fused:
        return export_fused(backbone.text_tower(), {"tokens": example}, ["text_embedding"], {"tokens": free})
    with serving_form(backbone.model.text):
        return export_tower(backbone.text_tower(), {"tokens": example}, ["text_embedding"], {"tokens": free})


def export_head(head: "Head", widths: Mapping[str, int]) -> "ModelProto":
    """The head's inputs, (n, widths[name]) float32 each -> score (n,)."""
    return _exported(head, widths, "score")


def add_committee(head: "ModelProto", committee: "Committee", widths: Mapping[str, int]) -> "ModelProto":
    """The head's graph with uncertainty (n,) beside its score, which stays as it is."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(head)
    added = prefixed(_exported(committee, widths, "uncertainty").graph, "committee.")
    model.graph.node.extend(added.node)
    model.graph.initializer.extend(added.initializer)
    model.graph.output.extend(added.output)
    return model


def export_scores(
    head: "Head", committee: "Committee | None", widths: Mapping[str, int], fitted: Mapping[str, Any] | None
) -> "ModelProto":
    """The head's graph with all that it can give; `fitted` is a calibration as head.json has it."""
    graph = export_head(head, widths)
    graph = add_committee(graph, committee, widths) if committee else graph
    fitted = fitted or {}
    temperature = Temperature.from_json(fitted["temperature"]) if fitted.get("temperature") else None
    percentiles = Curve.from_json(fitted["percentiles"]) if fitted.get("percentiles") else None
    return calibrate(graph, temperature, percentiles)


def _exported(head: "Head", widths: Mapping[str, int], output: str) -> "ModelProto":
    import torch

    examples = {name: torch.nn.functional.normalize(torch.ones(2, widths[name]), dim=-1) for name in head.inputs}
    return export_tower(head, examples, [output], {name: {0: "n"} for name in head.inputs})


def text_shortens(backbone: "Backbone", prompts: Sequence[str]) -> bool:
    """Whether text vectors stay the same when columns that hold only padding are cut off.

    They do under a causal mask and where padding is masked; they do not where the tower reads every column, as
    SigLIP's does. Measured on the prompts, not looked up.
    """
    import torch

    tower = backbone.text_tower()
    with torch.inference_mode(), serving_form(backbone.model.text):
        for prompt in prompts:
            tokens = torch.from_numpy(backbone.tokenize([prompt]))
            padding = int((tokens[0] == tokens[0, -1]).int().flip(0).cumprod(0).sum())
            # The first of the last equal ids may be the end of the text, where its id is also the padding's.
            shortened = tokens[:, : tokens.shape[1] - padding + 1]
            try:
                if not (tower(tokens) - tower(shortened)).abs().max() < 1e-5:
                    return False
            except (RuntimeError, ValueError, IndexError):  # a tower with a fixed length
                return False
    return True


def calibrate(head: "ModelProto", temperature: Temperature | None, percentiles: Curve | None) -> "ModelProto":
    """The head's graph with calibrated_score and percentile beside its score (see runtime.scoring.bundle.OUTPUTS)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(head)
    graph = model.graph  # its score stays as it is

    def constant(name: str, values: ArrayLike) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values), f"calibration.{name}"))
        return f"calibration.{name}"

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: int) -> str:
        made = helper.make_node(kind, inputs, [output], name=f"calibration.{output}")
        made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        graph.node.append(made)
        return output

    def output(name: str) -> None:
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]))

    if temperature is not None:
        node("Div", ["score", constant("temperature", np.float32(temperature.value))], "calibrated_score")
        output("calibrated_score")
    if percentiles is not None:
        _interpolate(percentiles, constant, node)
        output("percentile")
    return model


def _interpolate(curve: Curve, constant: Callable[[str, ArrayLike], str], node: Callable[..., str]) -> None:
    """np.interp of the score as nodes, in double precision: knots lie closer together than float32 can tell."""
    x, y = curve.x, curve.y
    if len(x) == 1:  # one more knot, so that there is a segment
        x, y = np.array([x[0], x[0] + 1]), np.array([y[0], y[0]])
    slopes = np.diff(y) / np.diff(x)
    score = node("Cast", ["score"], "calibration_score", to=11)
    clipped = node("Clip", [score, constant("lowest", x[0]), constant("highest", x[-1])], "calibration_clipped")
    column = node("Unsqueeze", [clipped, constant("last_axis", np.array([-1]))], "calibration_column")
    inner = x[1:-1] if len(x) > 2 else np.array([np.inf])  # operators differ in what they make of nothing
    reached = node("GreaterOrEqual", [column, constant("inner_knots", inner)], "calibration_reached")
    counted = node("Cast", [reached], "calibration_counted", to=7)
    segment = node("ReduceSum", [counted, "calibration.last_axis"], "calibration_segment", keepdims=0)
    start = node("Gather", [constant("x", x[:-1]), segment], "calibration_start")
    base = node("Gather", [constant("y", y[:-1]), segment], "calibration_base")
    slope = node("Gather", [constant("slopes", slopes), segment], "calibration_slope")
    offset = node("Sub", [clipped, start], "calibration_offset")
    rise = node("Mul", [offset, slope], "calibration_rise")
    node("Cast", [node("Add", [base, rise], "calibration_sum")], "percentile", to=1)


def join(image: "ModelProto", text: "ModelProto | None", head: "ModelProto") -> "ModelProto":
    """One graph from the parts: pixels, tokens where there is text, and the vectors of sources where the head reads
    them -> the head's outputs and the embeddings."""
    from onnx import helper

    nodes: list[NodeProto] = []
    initializers: list[TensorProto] = []
    outputs = list(head.graph.output)
    produced = {value.name for part in (image, text) if part is not None for value in part.graph.output}
    inputs: list[ValueInfoProto] = []
    parts = {name: part for name, part in (("image", image), ("text", text), ("head", head)) if part is not None}
    for name, part in parts.items():
        renamed = prefixed(part.graph, f"{name}.")
        nodes.extend(renamed.node)
        initializers.extend(renamed.initializer)
        if name != "head":
            inputs.extend(part.graph.input)
            outputs.extend(o for o in part.graph.output if o.name != "image_pooled")
        else:  # the vector of a picture's source is made by a run of its own
            inputs.extend(value for value in part.graph.input if value.name not in produced)
    graph = helper.make_graph(nodes, "plaudit", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=_opsets(list(parts.values())))
    model.ir_version = image.ir_version
    return canonical(model)


def _opsets(models: Sequence["ModelProto"]) -> list["OperatorSetIdProto"]:
    from onnx import helper

    versions = {o.domain: o.version for model in models for o in model.opset_import}
    return [helper.make_opsetid(domain, version) for domain, version in sorted(versions.items())]


def prefixed(graph: "GraphProto", prefix: str) -> "GraphProto":
    """A copy whose nodes and values, but its inputs and outputs, carry the prefix, in subgraphs too."""
    import onnx

    copy = onnx.GraphProto()
    copy.CopyFrom(graph)
    kept = {"", *(value.name for value in (*graph.input, *graph.output))}
    rename(copy, lambda name: name if name in kept else prefix + name)
    return copy


def rename(graph: "GraphProto", new: Callable[[str], str]) -> None:
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = new(value.name)
    for node in graph.node:
        node.name = new(node.name)
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                rename(attribute.g, new)


class WeightsWriter:
    """Moves large tensors out of graphs into one file, equal ones to the same place."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0  # bytes
        self.places: dict[tuple[str, int], tuple[int, int]] = {}  # (SHA-256, bytes) -> offset, length

    def move(self, model: "ModelProto") -> None:
        """Replace the model's large initializers by references to the file, in place."""
        from onnx import TensorProto, numpy_helper

        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                continue
            if not tensor.raw_data:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
            if len(tensor.raw_data) < MIN_EXTERNAL_BYTES:
                continue
            offset, length = self._place(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(length))):
                tensor.external_data.add(key=key, value=value)

    def _place(self, data: bytes) -> tuple[int, int]:
        key = (hashlib.sha256(data).hexdigest(), len(data))
        if key not in self.places:
            padding = -self.size % ALIGNMENT_BYTES
            self.file.write(bytes(padding))
            self.file.write(data)
            self.places[key] = (self.size + padding, len(data))
            self.size += padding + len(data)
        return self.places[key]
