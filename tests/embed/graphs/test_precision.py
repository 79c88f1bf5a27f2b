"""Half and quarter precision stay near the fp32 graph; the folded patch embedding is the same function."""

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from export_tiny import random_pixels, tiny_backbone
from onnx import TensorProto, helper, numpy_helper

from embed.engines.sessions import open_session
from embed.graphs import precision
from embed.graphs.trace import certificate, export_tower


@cache
def graph(family: str) -> onnx.ModelProto:
    """A picture tower as torch exports it."""
    backbone = tiny_backbone(family)
    example = torch.zeros((2, *backbone.identity.preprocess.size, 3), dtype=torch.uint8)
    return export_tower(backbone.image_tower(), {"pixels": example}, ["image_embedding"], {"pixels": {0: "n"}})


def folded(family: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph(family))
    return precision.fold_patches(copy)


def extremes(family: str) -> np.ndarray:
    """Noise, black, white, stripes: the ends of the range of pixels."""
    pixels = random_pixels(tiny_backbone(family), 6)
    pixels[1], pixels[2], pixels[3, ::2], pixels[3, 1::2] = 0, 255, 0, 255
    pixels[4] = np.where(pixels[4] > 127, 255, 0)
    return pixels


def run(model: onnx.ModelProto, pixels: np.ndarray, kind: str = "fp32") -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString(), precision=kind)
    return np.concatenate([session.run(None, {"pixels": picture[None]})[0] for picture in pixels])


@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_folded_patches_are_the_same_function(family: str) -> None:
    model = folded(family)
    assert "Conv" not in {node.op_type for node in model.graph.node}
    pixels = extremes(family)
    np.testing.assert_allclose(run(model, pixels), run(graph(family), pixels), atol=1e-6)


def test_a_stem_that_does_not_tile_is_not_folded() -> None:
    assert folded("resnet").SerializeToString() == graph("resnet").SerializeToString()


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_fp16_is_finite_and_near_at_the_extremes(family: str) -> None:
    pixels = extremes(family)
    model = precision.to_fp16(folded(family))
    found = certificate("fp16", run(folded(family), pixels), run(model, pixels, "fp16"))
    assert found.cosine_min > 0.99999
    kinds = {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 1000}
    assert TensorProto.FLOAT16 in kinds
    assert {o.type.tensor_type.elem_type for o in model.graph.output} == {TensorProto.FLOAT}


@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_fp16_text_is_finite_and_near_for_the_longest_and_the_empty(family: str) -> None:
    backbone = tiny_backbone(family)
    tokens = backbone.tokenize(["", "word " * 200, "!" * 300, "a photo of a cat"])
    example = {"tokens": torch.from_numpy(tokens[2:])}
    model = export_tower(backbone.text_tower(), example, ["text_embedding"], {"tokens": {0: "n"}})
    outputs = [
        open_session(graph.SerializeToString(), precision=kind).run(None, {"tokens": tokens})[0]
        for graph, kind in ((model, "fp32"), (precision.to_fp16(model), "fp16"))
    ]
    assert certificate("fp16", *outputs).cosine_min > 0.99999


def test_fp16_keeps_large_sums_in_islands() -> None:
    """A mean over squares of 300 overflows in half precision, whose largest number is 65504."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Pow", ["product", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        helper.make_node("Mul", ["product", "root"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "tiny"], ["y"]),
    ]
    constants = {
        "w": np.eye(8, dtype=np.float32),
        "tiny": 1e-3 * np.eye(8, dtype=np.float32),
        "two": np.array(2, np.float32),
        "axis": np.array([-1]),
    }
    initializers = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], initializers),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    values = np.full((2, 8), 200, np.float32)
    half = open_session(precision.to_fp16(model).SerializeToString()).run(None, {"x": values})[0]
    np.testing.assert_allclose(half, 200 * 200 * 1e-3, rtol=1e-2)


def test_int8_of_a_transformer_is_near_and_small() -> None:
    pixels = extremes("vit")
    model = precision.to_int8(folded("vit"))
    kinds = {node.op_type for node in model.graph.node}
    assert "MatMulInteger" in kinds and "MatMul" in kinds  # attention's products of activations stay
    assert certificate("int8", run(folded("vit"), pixels), run(model, pixels)).cosine_min > 0.999
    assert model.ByteSize() < 0.4 * folded("vit").ByteSize()


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_int8_products_cannot_saturate_where_a_processor_lacks_vnni(family: str) -> None:
    """There onnxruntime adds a uint8 times an int8 to another such product in 16 bits: 2 * 255 * 127 is too much."""
    model = precision.to_int8(folded(family), [extremes(family)])
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if len(tensor.dims) > 1]
    assert any(values.dtype in (np.int8, np.uint8) for values in weights)
    for values in weights:
        assert values.dtype != np.int8 or 2 * 255 * np.abs(values.astype(int)).max() < 2**15


def test_int8_of_a_convolution_trunk_needs_pictures() -> None:
    pixels = extremes("resnet")
    with pytest.raises(ValueError, match="calibration pictures"):
        precision.to_int8(graph("resnet"))
    model = precision.to_int8(graph("resnet"), [pixels[:3], pixels[3:]])
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert certificate("int8", run(graph("resnet"), pixels), run(model, pixels)).cosine_min > 0.999


def test_conversion_leaves_its_input_and_gives_same_bytes_twice() -> None:
    source = folded("vit")
    before = source.SerializeToString(deterministic=True)
    for convert in (precision.to_fp16, precision.to_int8):
        first, second = (convert(source).SerializeToString(deterministic=True) for _ in range(2))
        assert first == second
    assert source.SerializeToString(deterministic=True) == before
