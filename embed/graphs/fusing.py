"""Replace steps of a transformer by single nodes for which onnxruntime has fast kernels on a GPU.

The operators are onnxruntime's own ("com.microsoft"): a bias and an activation (BiasGelu, FastGelu, QuickGelu), and a
sum and its layer normalisation (SkipLayerNormalization). onnxruntime finds some of these itself, but not where a sum is
used twice, as in every block that normalises first. This module runs no session.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embed.graphs.folding import drop_unused, inferred, replace_nodes
from embed.graphs.precision import CUDA_ISLANDS, fold_patches, to_fp16
from embed.graphs.trace import DOMAIN, FreeDims, export_tower

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto, NodeProto, ValueInfoProto

QUICK_GELU = 1.702  # the factor in x * sigmoid(1.702 x), Hendrycks and Gimpel 2016, section 2

Dims = tuple[int | str, ...]
Found = tuple[list["NodeProto"], "NodeProto"]  # nodes, and the one that replaces them


def export_fused(
    tower: "torch.nn.Module", example: Mapping[str, "torch.Tensor"], output_names: Sequence[str], free: FreeDims
) -> "ModelProto":
    """Export the module as a float32 graph with attention as single nodes, ready for `for_cuda` and `fuse`.

    Arguments and errors are those of `embed.graphs.trace.export_tower`. Raise InputError too if a block has a kind of
    attention that `embed.graphs.rewrite` does not know.
    """
    from embed.graphs.rewrite import fused_form

    with fused_form(tower):
        return fold_patches(export_tower(tower, example, output_names, free), centred=True)


def for_cuda(model: "ModelProto") -> "ModelProto":
    """Return a fused copy in half precision of a graph that `export_fused` made. It runs only on CUDA."""
    return fuse(to_fp16(model, CUDA_ISLANDS))


def fuse(model: "ModelProto") -> "ModelProto":
    """Fuse nodes in place and return the model. Attention was fused earlier, in the trace (embed.graphs.attention)."""
    from onnx import helper

    shapes = {value.name: _dims(value) for value in inferred(model)}
    for rule in (_drop_expand, _activation, _quick_gelu, _sum_and_norm):
        _apply(model, rule, shapes)
    if all(opset.domain != DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return drop_unused(model)


class _View:
    """A graph seen from its values: the node that makes each, the nodes that read it, and which are constants."""

    def __init__(self, model: "ModelProto", shapes: dict[str, Dims]) -> None:
        self.shapes = shapes
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.users: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.users[name].append(node)

    def made_by(self, name: str, *kinds: str) -> "NodeProto | None":
        """Return the node that makes the value, if its kind is one of these and only one node reads the value."""
        node = self.producer.get(name)
        alone = len(self.users[name]) == 1 and name not in self.outputs
        return node if node is not None and alone and node.op_type in kinds else None

    def product_and_bias(self, name: str) -> tuple["NodeProto", str, str] | None:
        """Return the Add that makes the value, its other input, and its bias (a constant vector), or None."""
        node = self.made_by(name, "Add")
        for value, bias in (node.input, node.input[::-1]) if node is not None else ():
            if bias in self.constants and len(self.constants[bias].dims) == 1 and value not in self.constants:
                return node, value, bias  # type: ignore[return-value]  # node is not None if there are inputs
        return None

    def value(self, name: str) -> float | None:
        """Return the number that a constant holds, or None if it is not a constant of one number."""
        from onnx import numpy_helper

        tensor = self.constants.get(name)
        return None if tensor is None or np.prod(tensor.dims) != 1 else float(numpy_helper.to_array(tensor).item())


def _apply(model: "ModelProto", rule: Callable[["NodeProto", _View], Found | None], shapes: dict[str, Dims]) -> None:
    view = _View(model, shapes)
    nodes: list[NodeProto] = []
    gone: set[str] = set()  # first outputs of the nodes that were replaced
    for node in model.graph.node:
        found = rule(node, view)
        if found is None:
            nodes.append(node)
            continue
        taken, new = found
        gone |= {old.output[0] for old in taken}
        nodes.append(new)
    replace_nodes(model.graph, [node for node in nodes if node.domain == DOMAIN or node.output[0] not in gone])


def _drop_expand(node: "NodeProto", view: _View) -> Found | None:
    """Remove an Expand before a division, which broadcasts by itself."""
    import onnx

    expand = view.made_by(node.input[1], "Expand") if node.op_type == "Div" else None
    if expand is None:
        return None
    new = onnx.NodeProto()
    new.CopyFrom(node)
    new.input[1] = expand.input[0]
    return [expand], new


def _activation(node: "NodeProto", view: _View) -> Found | None:
    """Fuse Gelu and the bias before it."""
    from onnx import helper

    found = view.product_and_bias(node.input[0]) if node.op_type == "Gelu" else None
    if found is None:
        return None
    total, value, bias = found
    approximate = any(helper.get_attribute_value(attribute) == b"tanh" for attribute in node.attribute)
    kind = "FastGelu" if approximate else "BiasGelu"
    return [total, node], helper.make_node(kind, [value, bias], node.output, name=node.name, domain=DOMAIN)


def _quick_gelu(node: "NodeProto", view: _View) -> Found | None:
    """Fuse x * sigmoid(1.702 x)."""
    from onnx import helper

    for x, gate in (node.input, node.input[::-1]) if node.op_type == "Mul" else ():
        sigmoid = view.made_by(gate, "Sigmoid")
        scaled = view.made_by(sigmoid.input[0], "Mul") if sigmoid is not None else None
        if sigmoid is None or scaled is None or x not in scaled.input:
            continue
        factor = next((view.value(name) for name in scaled.input if name != x), None)
        if factor is not None and abs(factor - QUICK_GELU) < 2e-3:  # in half precision the factor is 1.7021
            new = helper.make_node("QuickGelu", [x], node.output, name=node.name, domain=DOMAIN, alpha=QUICK_GELU)
            return [scaled, sigmoid, node], new
    return None


def _sum_and_norm(node: "NodeProto", view: _View) -> Found | None:
    """Fuse the sum of two activations and a bias with its normalisation. The sum remains available as an output."""
    from onnx import helper

    if node.op_type != "LayerNormalization" or len(node.input) < 3:
        return None
    total = view.producer.get(node.input[0])
    if total is None or total.op_type != "Add" or not _same(*(view.shapes.get(name, ()) for name in total.input)):
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("axis", -1) not in (-1, len(view.shapes[total.input[0]]) - 1):
        return None
    for skip, branch in (total.input, total.input[::-1]):
        if found := view.product_and_bias(branch):
            inner, value, bias = found
            taken, inputs = [inner, total, node], [value, skip, node.input[1], node.input[2], bias]
            break
    else:
        taken, inputs = [total, node], [*total.input, node.input[1], node.input[2]]
    outputs = [node.output[0], "", "", total.output[0]]
    epsilon = attributes.get("epsilon", 1e-5)
    new = helper.make_node("SkipLayerNormalization", inputs, outputs, name=node.name, domain=DOMAIN, epsilon=epsilon)
    return taken, new


def _dims(value: "ValueInfoProto") -> Dims:
    return tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim)


def _same(first: Dims, second: Dims) -> bool:
    """Whether both shapes, of two or three dimensions, are equal as far as they are known."""
    known = all(
        a == b if isinstance(a, int) and isinstance(b, int) else isinstance(a, str) and isinstance(b, str)
        for a, b in zip(first, second, strict=False)
    )
    return len(first) == len(second) and len(first) in (2, 3) and known
