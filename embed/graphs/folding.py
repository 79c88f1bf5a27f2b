"""Compute parts of a graph once that no input changes, which are mostly shapes, instead of in every run.

A trace records how torch computes every size, even those that are the same for any batch, and runtimes only fold shapes
that are fully known. This module takes graphs and returns graphs of the same function; it needs neither torch nor a
session.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embed.arrays import Array, Ints

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

ATTENTION = ("Attention", "MultiHeadAttention")  # of onnxruntime's own operators
MAX_ELEMENTS = 1024  # in a value that is computed here: shapes have few, and weights need not be looked at

Values = dict[str, Array]
Shape = tuple[int, ...] | None  # None if a dimension is not known


def fold_constants(model: "ModelProto", sizes: tuple[Mapping[str, int], Mapping[str, int]]) -> "ModelProto":
    """Remove, in place, the nodes whose result no input changes, give outputs their shapes, and return the model.

    Values are computed for two `sizes` of the free dimensions, such as ({"n": 2}, {"n": 3}). A value that is the same
    for both is a constant.
    """
    from onnx import numpy_helper

    graph = model.graph
    _drop_copies(model)
    first, shapes = _known_values(model, sizes[0])
    second, other_shapes = _known_values(model, sizes[1])
    computed = {name for node in graph.node for name in node.output} & first.keys() & second.keys()
    constants = {name: first[name] for name in computed if np.array_equal(first[name], second[name])}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] not in constants:
            ends = (node.input[0], node.output[0])
            target = _target(*(at.get(name) for at in (shapes, other_shapes) for name in ends))
            if target is not None:
                node.input[1] = f"{node.output[0]}.shape"
                constants[node.input[1]] = target
    replace_nodes(graph, [node for node in graph.node if not constants.keys() >= set(node.output)])
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in sorted(constants.items()))
    for output in graph.output:
        at, other = shapes[output.name] or (), other_shapes[output.name] or ()
        for dim, size, other_size in zip(output.type.tensor_type.shape.dim, at, other, strict=False):
            if size == other_size:
                dim.dim_value = size
    return drop_unused(model)


def _target(taken: Shape, given: Shape, other_taken: Shape, other_given: Shape) -> Ints | None:
    """Return the target of a Reshape for any size, from the shapes that it takes and gives at two sizes.

    A free dimension is either copied from the input (0) or inferred (-1). Return None if two would have to be inferred.
    """
    if taken is None or given is None or other_taken is None or other_given is None:
        return None
    target = [size if size == other else -1 for size, other in zip(given, other_given, strict=True)]
    for axis in range(min(len(taken), len(target))):
        if target[axis] == -1 and (taken[axis], other_taken[axis]) == (given[axis], other_given[axis]):
            target[axis] = 0
    return np.array(target, np.int64) if target.count(-1) <= 1 else None


def hoist_constants(model: "ModelProto") -> "ModelProto":
    """Turn the Constant nodes into initializers, in place, and return the model."""
    graph = model.graph
    rest = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            rest.append(node)
    replace_nodes(graph, rest)
    return model


def _drop_copies(model: "ModelProto") -> None:
    """Remove nodes that do not change their input: Identity, and Cast to the type that the value already has."""
    outputs = {value.name for value in model.graph.output}
    types = {value.name: value.type.tensor_type.elem_type for value in inferred(model)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    source: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        node.input[:] = [source.get(name, name) for name in node.input]
        is_cast = node.op_type == "Cast" and types.get(node.input[0]) == node.attribute[0].i
        if (is_cast or node.op_type == "Identity") and node.output[0] not in outputs:
            source[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    replace_nodes(model.graph, kept)


def _known_values(model: "ModelProto", sizes: Mapping[str, int]) -> tuple[Values, dict[str, Shape]]:
    """Return all small values that follow from the sizes of the inputs, constants included, and all shapes."""
    from onnx import numpy_helper

    light = without_weights(model)
    for value in light.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    small = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) <= MAX_ELEMENTS]
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in small}
    while True:  # a value that is found may determine the shapes of others
        shapes = {value.name: _shape(value) for value in inferred(light)}
        found: Values = {}
        for node in light.graph.node:
            if value := _evaluate(node, known | found, shapes):
                found |= value
        if not found:
            return known, shapes
        known |= found
        replace_nodes(light.graph, [node for node in light.graph.node if not found.keys() >= set(node.output)])
        light.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in found.items())


def _shape(value: "ValueInfoProto") -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def _evaluate(node: "NodeProto", known: Values, shapes: Mapping[str, Shape]) -> Values | None:
    """Return the outputs if they are small and the inputs (for Shape, the shape of the input) are known, else None."""
    from onnx.reference import ReferenceEvaluator

    inputs = {name: known.get(name) for name in node.input if name}
    if node.op_type == "Shape":
        shape = shapes.get(node.input[0])
        if shape is None:
            return None
        inputs = {node.input[0]: np.empty(shape, np.bool_)}
    if any(values is None for values in inputs.values()) or node.op_type.startswith("Random"):
        return None
    results: Any = ReferenceEvaluator(node, opsets={"": 20}).run(None, inputs)
    return dict(zip(node.output, results, strict=True)) if all(np.size(r) <= MAX_ELEMENTS for r in results) else None


def inferred(model: "ModelProto") -> list["ValueInfoProto"]:
    """Return name, type and shape of every value that ONNX can infer, including inputs and outputs."""
    import onnx

    light = without_weights(model)
    for node in light.graph.node:
        if node.op_type in ATTENTION:  # ONNX does not know it; its output has the shape of its first input
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output))
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return [*graph.input, *graph.value_info, *graph.output]


def without_weights(model: "ModelProto") -> "ModelProto":
    """Return a copy that holds only type and shape of large tensors, because ONNX's inference has a limit of 2 GB."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = light.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= MAX_ELEMENTS:
            graph.initializer.append(tensor)
        else:
            large = graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            large.data_location = onnx.TensorProto.EXTERNAL
            large.external_data.add(key="location", value="none")
    return light


def drop_unused(model: "ModelProto") -> "ModelProto":
    """Remove initializers and nodes that nothing reads, in place, and return the model."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
            for attribute in node.attribute:
                needed |= {name for inner in attribute.g.node for name in inner.input}
    replace_nodes(graph, kept[::-1])
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    return model


def replace_nodes(graph: "GraphProto", nodes: Sequence["NodeProto"]) -> None:
    """Replace the nodes of a graph by these, which may include nodes of the graph itself."""
    del graph.node[:]
    graph.node.extend(nodes)
