"""Convert graphs to other precisions, and rewrite the patch embedding, which makes every precision faster.

fp16 keeps float32 where half precision would overflow or lose too much. int8 multiplies integers, with scales that are
found in each run for transformers, and from calibration pictures for convolution trunks. A certificate says how exact
the new graph is (embed.graphs.trace).
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Floats, UInt8s
from embed.graphs.folding import drop_unused, inferred, replace_nodes
from embed.graphs.trace import canonical, only_errors
from embed.ort import require_onnxruntime

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

PRODUCTS = ("MatMul", "Gemm", "Conv")
STATIC = ("Conv", "Add", "Clip", "Relu", "GlobalAveragePool", "AveragePool")  # computed in integers inside a trunk
FP16_MAX = 65504.0
CENTRE = 127.5  # the middle of a pixel's range
# Operators that stay in float32 inside an fp16 graph: sums and squares of many values exceed 65504 or lose the small
# ones, exponentials overflow above 11, and casts and masks may carry numbers that half precision cannot hold.
FP32_ISLANDS: tuple[str, ...] = (
    *("LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "Softmax"),
    *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "GlobalAveragePool", "AveragePool"),
    *("Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Erf", "Cast", "Where", "IsNaN", "Range", "ConstantOfShape"),
)

# A GPU's kernels for these two take half precision and sum in float32.
CUDA_ISLANDS = tuple(kind for kind in FP32_ISLANDS if kind not in ("LayerNormalization", "Softmax"))


def fold_patches(model: "ModelProto", centred: bool = False) -> "ModelProto":
    """Turn the patch embedding of `pixels` into one matrix product on integers, in place. The function stays the same.

    A convolution whose kernels tile the picture equals a product of patches (n, rows * columns, kernel) and a matrix;
    the scaling and normalisation of pixels go into the matrix and the bias. Other graphs are left as they are. With
    `centred`, pixels are shifted to lie around zero, so that half precision can hold their sums.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    conv = next((node for node in graph.node if node.op_type == "Conv"), None)
    if conv is None or not (chain := _pixel_chain(conv, producer, constants)):
        return model
    weight = numpy_helper.to_array(constants[conv.input[1]]).astype(np.float64)  # (width, 3, p, q)
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    kernel = weight.shape[2:]
    height, width = (d.dim_value for d in graph.input[0].type.tensor_type.shape.dim[1:3])
    tiles = (
        tuple(attributes.get("strides", ())) == kernel
        and attributes.get("group", 1) == 1
        and not any(attributes.get("pads", ()))
        and set(attributes.get("dilations", (1,))) == {1}
        and (height % kernel[0], width % kernel[1]) == (0, 0)
    )
    rows, columns = height // kernel[0], width // kernel[1]
    after = _tokens_after(conv, graph.node)
    if not tiles or not after:
        return model
    scale, shift = _affine(chain, constants)
    bias = numpy_helper.to_array(constants[conv.input[2]]) if len(conv.input) > 2 else np.zeros(len(weight))
    # (p * q * 3, width), in the order of pixels (n, h, w, 3)
    matrix = (weight * scale[:, None, None]).transpose(2, 3, 1, 0).reshape(-1, len(weight))
    centre = CENTRE if centred else 0.0
    bias = bias + (weight * (shift + centre * scale)[:, None, None]).sum(axis=(1, 2, 3))
    new = {
        "grid": np.array([-1, rows, kernel[0], columns, kernel[1] * 3]),
        "patch": np.array([-1, *((rows * columns,) if len(after) == 2 else (rows, columns)), len(matrix)]),
        "matrix": matrix.astype(np.float32),
        "bias": bias.astype(np.float32),
        **({"centre": np.float32(centre)} if centred else {}),
    }
    graph.initializer.extend(numpy_helper.from_array(values, f"patches.{name}") for name, values in new.items())
    nodes = [
        helper.make_node("Reshape", ["pixels", "patches.grid"], ["patches_grid"]),
        helper.make_node("Transpose", ["patches_grid"], ["patches_sorted"], perm=[0, 1, 3, 2, 4]),
        helper.make_node("Reshape", ["patches_sorted", "patches.patch"], ["patches_flat"]),
        helper.make_node("Cast", ["patches_flat"], ["patches_float"], to=1),
        helper.make_node("MatMul", ["patches_float", "patches.matrix"], ["patches_product"]),
        helper.make_node("Add", ["patches_product", "patches.bias"], [after[-1].output[0]]),
    ]
    if centred:
        nodes.insert(4, helper.make_node("Sub", ["patches_float", "patches.centre"], ["patches_centred"]))
        nodes[5].input[0] = "patches_centred"
    for node in nodes:
        node.name = f"{'centred' if centred else 'patches'}.{node.output[0]}"
    place = list(graph.node).index(conv)
    for node in (*chain, conv, *after):
        graph.node.remove(node)
    first = place - len(chain)
    replace_nodes(graph, [*graph.node[:first], *nodes, *graph.node[first:]])
    return drop_unused(model)


def _pixel_chain(
    conv: "NodeProto", producer: dict[str, "NodeProto"], constants: dict[str, "TensorProto"]
) -> list["NodeProto"] | None:
    """Return the nodes from `pixels` to the convolution if they are only a cast to NCHW floats and affine steps."""
    chain: list[NodeProto] = []
    name = conv.input[0]
    while name != "pixels":
        node = producer.get(name)
        simple = node is not None and (
            node.op_type in ("Transpose", "Cast")
            or (node.op_type in ("Div", "Sub", "Mul", "Add") and node.input[1] in constants)
        )
        if node is None or not simple:
            return None
        chain.insert(0, node)
        name = node.input[0]
    return chain


def _affine(chain: Sequence["NodeProto"], constants: dict[str, "TensorProto"]) -> tuple[Floats, Floats]:
    """Return scale and shift, (3,) each, that the chain applies to the values of the three channels."""
    from onnx import numpy_helper

    scale, shift = np.ones(3), np.zeros(3)
    for node in chain:
        if node.op_type in ("Transpose", "Cast"):
            continue
        value = np.broadcast_to(numpy_helper.to_array(constants[node.input[1]]).astype(np.float64).reshape(-1), 3)
        if node.op_type in ("Add", "Sub"):
            shift = shift + (value if node.op_type == "Add" else -value)
        else:
            factor = value if node.op_type == "Mul" else 1 / value
            scale, shift = scale * factor, shift * factor
    return scale, shift


def _tokens_after(conv: "NodeProto", nodes: Sequence["NodeProto"]) -> list["NodeProto"]:
    """Return the nodes that move the channels last: to (n, patches, width) or (n, rows, columns, width)."""

    def only_user(name: str) -> "NodeProto | None":
        users = [node for node in nodes if name in node.input]
        return users[0] if len(users) == 1 else None

    def is_transpose(node: "NodeProto | None", order: list[int]) -> bool:
        return node is not None and node.op_type == "Transpose" and list(node.attribute[0].ints) == order

    first = only_user(conv.output[0])
    if first is not None and is_transpose(first, [0, 2, 3, 1]):
        return [first]
    second = only_user(first.output[0]) if first is not None and first.op_type == "Reshape" else None
    return [first, second] if first is not None and second is not None and is_transpose(second, [0, 2, 1]) else []


def to_fp16(model: "ModelProto", islands: Sequence[str] = FP32_ISLANDS) -> "ModelProto":
    """Return a copy in half precision whose inputs and outputs keep their types.

    The `islands` stay in float32. So do the steps from the last product to an output, which make its length 1, and a
    folded patch embedding, whose sums of raw pixels are much larger than what remains after the bias is subtracted.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    floats = _float_values(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    tail, outputs = _tail(model), {value.name for value in model.graph.output}
    half: set[str] = set()  # values computed in half precision
    made: dict[str, str] = {}  # from a value or constant to its counterpart in the other precision
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]

    def counterpart(name: str) -> str:
        if name not in made:
            made[name] = f"{name}.{'fp32' if name in half else 'fp16'}"
            if name in constants:
                values = np.clip(numpy_helper.to_array(constants[name]), -FP16_MAX, FP16_MAX).astype(np.float16)
                result.graph.initializer.append(numpy_helper.from_array(values, made[name]))
            else:
                kind = TensorProto.FLOAT if name in half else TensorProto.FLOAT16
                result.graph.node.append(helper.make_node("Cast", [name], [made[name]], name=made[name], to=kind))
        return made[name]

    for original in model.graph.node:
        if any(attribute.HasField("g") for attribute in original.attribute):
            raise ValueError(f"a graph with {original.op_type} is not converted to fp16")
        island = (
            original.op_type in islands
            or original.name.startswith("patches.")
            or not floats.intersection(original.input)
            or bool((tail | outputs).intersection(original.output))
        )
        node = onnx.NodeProto()
        node.CopyFrom(original)
        for i, name in enumerate(node.input):
            if name in floats and (name in half) == island:
                node.input[i] = counterpart(name)
        if not island:
            half.update(floats.intersection(node.output))
        result.graph.node.append(node)
    return drop_unused(result)


def _tail(model: "ModelProto") -> set[str]:
    """Return the values between the last products and the outputs, including the outputs."""
    outputs = {value.name for value in model.graph.output}
    found = set(outputs)
    for node in reversed(model.graph.node):
        if found.intersection(node.output) and node.op_type not in PRODUCTS:
            found.update(node.input)
    return outputs | found - {name for node in model.graph.node if node.op_type in PRODUCTS for name in node.output}


def _float_values(model: "ModelProto") -> set[str]:
    """Return the names of all float32 values and constants."""
    import onnx

    values = {value.name: value.type.tensor_type.elem_type for value in inferred(model)}
    values |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {name for name, kind in values.items() if kind == onnx.TensorProto.FLOAT}


def to_int8(model: "ModelProto", calibration: Sequence[UInt8s] = ()) -> "ModelProto":
    """Return a copy that multiplies 8-bit integers, with one scale for each channel of the weights.

    A convolution trunk needs `calibration`: batches of pixels (n, h, w, 3) of real pictures, from which the ranges of
    activations are taken once (static). A transformer finds these ranges in each run (dynamic).
    """
    import onnx

    q = require_onnxruntime("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        copy = onnx.ModelProto()  # a copy, because saving moves the weights out of the model
        copy.CopyFrom(model)
        onnx.save(copy, str(source), save_as_external_data=True, location="fp32.bin")
        if is_convolutional(model):
            if not calibration:
                raise ValueError("a convolution trunk at int8 needs calibration pictures")
            reader, uint8 = _Reader(calibration), q.QuantType.QUInt8
            static = partial(q.quantize_static, calibration_data_reader=reader, activation_type=uint8)
            _quantize(partial(static, weight_type=q.QuantType.QInt8, reduce_range=True), source, target, STATIC)
        else:
            quantize_dynamic(source, target)
        return drop_unused(canonical(onnx.load(str(target))))


def quantize_dynamic(fp32: Path, int8: Path) -> None:
    """Write the int8 graph of a transformer, with its weights beside it. Only matrix products become int8.

    The reason is that onnxruntime is slower on convolutions of integers than on convolutions of float32.
    """
    q = require_onnxruntime("onnxruntime.quantization")
    _quantize(partial(q.quantize_dynamic, weight_type=q.QuantType.QUInt8), fp32, int8, ("MatMul", "Gemm"))


def _quantize(quantize: Callable[..., object], fp32: Path, int8: Path, operators: Sequence[str]) -> None:
    """Let onnxruntime quantize these operators, with one scale for each channel.

    On a processor without VNNI, onnxruntime adds two products of uint8 and int8 in 16 bits, which saturate without an
    error (a ViT-B/32 fell to a cosine of .95). So weights are uint8, which it multiplies in another way there and as
    fast as int8 with VNNI. Convolutions, which are slow on uint8, get int8 weights of 7 bits instead.
    """
    with only_errors(None):  # it logs advice to the root logger that our users cannot follow
        quantize(fp32, int8, op_types_to_quantize=[*operators], per_channel=True, use_external_data_format=True)


def is_convolutional(model: "ModelProto") -> bool:
    """Whether most of the graph's products are convolutions."""
    kinds = [node.op_type for node in model.graph.node]
    return kinds.count("Conv") > kinds.count("MatMul") + kinds.count("Gemm")


class _Reader:
    """Gives batches of pixels in the form that onnxruntime's calibration needs."""

    def __init__(self, batches: Sequence[UInt8s]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, UInt8s] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch}
