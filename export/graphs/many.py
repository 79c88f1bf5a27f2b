"""Join several heads in one graph, and add weighted sums of their scores. torch and manifests are not known here.

The first head's values keep their names; the values of other outputs get a prefix (see runtime.scoring.outputs).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from export.graphs.compose import prefixed, rename
from runtime.scoring.outputs import spelled

if TYPE_CHECKING:
    from onnx import ModelProto


def merge(heads: Mapping[str, "ModelProto"]) -> "ModelProto":
    """Join the heads' graphs, given by name, into one with the outputs of all. Inputs of the same name become one."""
    import onnx

    merged: ModelProto | None = None
    for name, head in heads.items():
        graph = prefixed(head.graph, f"{name}.")
        if merged is None:
            merged = onnx.ModelProto()
            merged.CopyFrom(head)
            merged.graph.CopyFrom(graph)
            continue
        outputs = {value.name: spelled(name, value.name) for value in graph.output}
        rename(graph, lambda given, outputs=outputs: outputs.get(given, given))  # type: ignore[misc]
        there = {value.name for value in merged.graph.input}
        merged.graph.input.extend(value for value in graph.input if value.name not in there)
        merged.graph.node.extend(graph.node)
        merged.graph.initializer.extend(graph.initializer)
        merged.graph.output.extend(graph.output)
    assert merged is not None
    return merged


def add_similarity(model: "ModelProto", name: str, dim: int) -> None:
    """Add the cosine (n,) of picture and prompt, whose vectors have length 1, as an output."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    there = {value.name for value in graph.input}
    for wanted in ("image_embedding", "text_embedding"):
        if wanted not in there:
            graph.input.append(helper.make_tensor_value_info(wanted, TensorProto.FLOAT, ["n", dim]))
    axes = numpy_helper.from_array(np.array([-1]), f"{name}.axes")
    graph.initializer.append(axes)
    product = f"{name}.product"
    made: list[onnx.NodeProto] = [
        helper.make_node("Mul", ["image_embedding", "text_embedding"], [product], name=product),
        helper.make_node("ReduceSum", [product, axes.name], [name], name=f"{name}.sum", keepdims=0),
    ]
    graph.node.extend(made)
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]))


def add_blend(model: "ModelProto", name: str, terms: Mapping[str, float]) -> None:
    """Add a weighted sum (n,) of outputs, given by their names in the graph, as an output."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    weighted = []
    for number, (term, weight) in enumerate(terms.items()):
        factor = numpy_helper.from_array(np.array(weight, np.float32), f"{name}.weight_{number}")
        graph.initializer.append(factor)
        weighted.append(f"{name}.term_{number}")
        graph.node.append(helper.make_node("Mul", [term, factor.name], weighted[-1:], name=weighted[-1]))
    graph.node.append(helper.make_node("Sum", weighted, [name], name=f"{name}.sum"))
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]))
