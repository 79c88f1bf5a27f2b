"""Export towers, head and calibration as ONNX graphs, alone and joined into one, with all weights in one file.

Each part is exported once. The whole is joined from the graphs of the parts, so that they cannot differ. This module
does not know manifests or pictures.
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
from heads.config import picture_inputs
from heads.evaluation.calibration import Curve, Temperature
from runtime.scoring.bundle import WEIGHTS_FILE

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto

    from embed.backbones.backbone import Backbone
    from heads.committee import Committee
    from heads.models import Head

MIN_EXTERNAL_BYTES = 1024  # smaller tensors stay in the graph, because shape inference needs some of them
ALIGNMENT_BYTES = 4096  # onnxruntime can map a tensor into memory only if it starts on a page


def export_image(backbone: "Backbone", inputs: Sequence[str], fused: bool = False) -> "ModelProto":
    """Export pixels (n, h, w, 3) uint8 -> image_embedding (n, d), and image_pooled (n, p) if `inputs` names it.

    With `fused`, the graph has the form from which embed.graphs.fusing makes graphs for CUDA.
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


def export_text(backbone: "Backbone", shortens: bool, fused: bool = False) -> "ModelProto":
    """Export tokens (n, c) int32 -> text_embedding (n, d). c is free if the tower `shortens`, else the context
    length."""
    import torch

    example = torch.from_numpy(backbone.tokenize(["a photo of a cat", "two dogs on a bench"]))
    free = {0: "n", 1: "c"} if shortens else {0: "n"}
    if fused:
        return export_fused(backbone.text_tower(), {"tokens": example}, ["text_embedding"], {"tokens": free})
    with serving_form(backbone.model.text):
        return export_tower(backbone.text_tower(), {"tokens": example}, ["text_embedding"], {"tokens": free})


def export_head(head: "Head", widths: Mapping[str, int]) -> "ModelProto":
    """Export the head: its inputs, (n, widths[name]) float32 each -> score (n,)."""
    return _exported(head, widths, "score")


def add_committee(head: "ModelProto", committee: "Committee", widths: Mapping[str, int]) -> "ModelProto":
    """Add uncertainty (n,) to a copy of the head's graph. Its score stays the same."""
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
    """Export a head with all its outputs. `fitted` is the calibration as it is in head.json."""
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
    """Whether text vectors stay the same when columns with only padding are cut off.

    They do if the mask is causal or hides padding. They do not if the tower reads every column, as SigLIP's does. This
    is measured on the prompts.
    """
    import torch

    tower = backbone.text_tower()
    with torch.inference_mode(), serving_form(backbone.model.text):
        for prompt in prompts:
            tokens = torch.from_numpy(backbone.tokenize([prompt]))
            padding = int((tokens[0] == tokens[0, -1]).int().flip(0).cumprod(0).sum())
            # The first of the equal ids at the end may be the end of the text, if its id is also that of padding.
            shortened = tokens[:, : tokens.shape[1] - padding + 1]
            try:
                if not (tower(tokens) - tower(shortened)).abs().max() < 1e-5:
                    return False
            except (RuntimeError, ValueError, IndexError):  # the tower takes only one length
                return False
    return True


def calibrate(head: "ModelProto", temperature: Temperature | None, percentiles: Curve | None) -> "ModelProto":
    """Add calibrated_score and percentile to a copy of the head's graph (see runtime.scoring.bundle.OUTPUTS)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(head)
    graph = model.graph  # its score is not changed

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
    """Add np.interp of the score as nodes, in double precision because float32 cannot separate close knots."""
    x, y = curve.x, curve.y
    if len(x) == 1:  # add a knot, because a segment needs two
        x, y = np.array([x[0], x[0] + 1]), np.array([y[0], y[0]])
    slopes = np.diff(y) / np.diff(x)
    score = node("Cast", ["score"], "calibration_score", to=11)
    clipped = node("Clip", [score, constant("lowest", x[0]), constant("highest", x[-1])], "calibration_clipped")
    column = node("Unsqueeze", [clipped, constant("last_axis", np.array([-1]))], "calibration_column")
    inner = x[1:-1] if len(x) > 2 else np.array([np.inf])  # not empty, because operators differ on empty inputs
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
    """Join the parts into one graph that gives the head's outputs and the embeddings.

    Its inputs are pixels, tokens if there is a text tower, and the vectors of sources if the head reads them.
    """
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
        else:  # the vector of a picture's source comes from a separate run
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
    """Return a copy in which all nodes and values except inputs and outputs have the prefix, also in subgraphs."""
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
    """Moves large tensors from graphs into one file. Equal tensors share one place."""

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
