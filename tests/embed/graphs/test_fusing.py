"""Graphs for CUDA: in float32 they are torch's function on a CPU, and nothing is left that a GPU would do in pieces."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_tiny import huggingface_backbone, random_pixels, tiny_backbone
from onnx import TensorProto, helper, numpy_helper
from open_clip.transformer import TextTransformer, VisionTransformer

from embed.backbones.backbone import Backbone
from embed.backbones.load import load_backbone
from embed.engines.sessions import open_session
from embed.graphs.fusing import export_fused, for_cuda, fuse
from embed.graphs.rewrite import fused_form
from embed.spec import Source

# Attention by its products, and steps that have a single node.
UNFUSED = {"Erf", "Sigmoid", "Tanh"}


def fused(backbone: Backbone, side: str) -> tuple[onnx.ModelProto, torch.Tensor, torch.nn.Module]:
    """A tower as `export_fused` gives it, inputs for it, and the tower."""
    if side == "image":
        inputs = torch.from_numpy(random_pixels(backbone, 3))
        tower, name = backbone.image_tower(), "pixels"
    else:
        inputs = torch.from_numpy(backbone.tokenize(["a b c", "two dogs", "a"]))
        tower, name = backbone.text_tower(), "tokens"
    return export_fused(tower, {name: inputs}, ["vectors"], {name: {0: "n"}}), inputs, tower


def backbone_of(family: str, folder: Path) -> Backbone:
    if family == "starter":
        return load_backbone(Source("starter"))
    return huggingface_backbone(folder, family) if family in ("bert", "roberta") else tiny_backbone(family)


def run(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    """The model's only output on a CPU."""
    session = open_session(model.SerializeToString(), ["cpu"], 1)
    vectors: np.ndarray = session.run(None, {model.graph.input[0].name: inputs})[0]
    return vectors


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("family", ["vit", "siglip", "resnet", "convnext", "bert", "roberta", "starter"])
def test_every_family_is_fused_and_equals_torch(family: str, side: str, tmp_path: Path) -> None:
    backbone = backbone_of(family, tmp_path)
    exported, inputs, tower = fused(backbone, side)
    model = fuse(exported)
    counted = Counter(node.op_type for node in model.graph.node)
    assert not UNFUSED & counted.keys()
    assert counted["Softmax"] == ((family, side) == ("starter", "image")), "its classifier's is all that may be left"
    assert counted["Gelu"] <= 1, "but for one in a projection, each has its bias"
    transformer = family not in ("convnext", "starter") or side == "text"
    assert transformer == bool(counted["Attention"] + counted["MultiHeadAttention"])
    if transformer:
        # Of the sums in the blocks none is left alone; embeddings, whose shapes differ, are normalised as they are.
        assert counted["LayerNormalization"] <= 2 < counted["SkipLayerNormalization"] or family == "resnet"
    with torch.inference_mode():
        expected = tower(inputs).numpy()
    np.testing.assert_allclose(run(model, inputs.numpy()), expected, atol=1e-5)
    assert len(set(np.round(expected[:, 0], 6))) == 3  # or a constant would do


@pytest.mark.parametrize("options", [{}, {"pool_type": "avg"}, {"ls_init_value": 0.5}, {"attentional_pool": True}])
def test_pictures_towers_of_open_clip(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    tower = VisionTransformer(32, 8, 32, 3, 4, 2.0, output_dim=16, **options).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = tower(x)
        with fused_form(tower):
            torch.testing.assert_close(tower(x), expected, atol=2e-6, rtol=1e-5)
            assert "forward" in vars(tower.transformer)
        assert torch.equal(tower(x), expected)
    model = fuse(export_fused(tower, {"x": x}, ["vectors"], {"x": {0: "n"}}))
    np.testing.assert_allclose(run(model, x.numpy()), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"no_causal_mask": True, "pool_type": "last"}, {"embed_cls": True}, {"pool_type": "eos", "eos_id": 7}],
)
def test_text_towers_of_open_clip(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    tower = TextTransformer(12, 50, 32, 4, 3, 2.0, output_dim=16, **options).eval()
    tokens = torch.randint(8, 50, (4, 12))
    tokens[torch.arange(4), torch.tensor([3, 11, 1, 6])] = 7 if "eos_id" in options else 49
    with torch.inference_mode():
        expected = tower(tokens).numpy()
    model = fuse(export_fused(tower, {"text": tokens}, ["vectors"], {"text": {0: "n"}}))
    np.testing.assert_allclose(run(model, tokens.numpy()), expected, atol=1e-5)


def test_half_precision_takes_and_gives_what_float32_does() -> None:
    exported, _, _ = fused(tiny_backbone(), "image")
    model = for_cuda(exported)
    onnx.checker.check_model(model)
    assert [value.SerializeToString() for value in (*model.graph.input, *model.graph.output)] == [
        value.SerializeToString() for value in (*exported.graph.input, *exported.graph.output)
    ]
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Attention", "SkipLayerNormalization", "BiasGelu"):
            assert {kinds[name] for name in node.input if name in kinds} == {TensorProto.FLOAT16}
    # Nothing else is cast but pixels, and what makes the vectors' length 1.
    assert sum(node.op_type == "Cast" for node in model.graph.node) <= 4


def test_pixels_are_centred_before_half_precision_sums_them() -> None:
    exported, inputs, _ = fused(tiny_backbone(), "image")
    white = np.full_like(inputs.numpy(), 255)
    centred = next(node for node in exported.graph.node if node.op_type == "Sub")
    exported.graph.output.append(helper.make_tensor_value_info(centred.output[0], TensorProto.FLOAT, None))
    session = open_session(exported.SerializeToString(), ["cpu"], 1)
    assert np.unique(session.run([centred.output[0]], {"pixels": white})[0]).tolist() == [127.5]


def test_a_sum_that_repeats_one_side_stays_as_it_is() -> None:
    """SkipLayerNormalization takes two of the same shape; a row for all tokens is none."""
    ones = numpy_helper.from_array(np.ones(8, np.float32), "ones")
    zeros = numpy_helper.from_array(np.zeros(8, np.float32), "zeros")
    nodes = [
        helper.make_node("Add", ["x", "row"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "ones", "zeros"], ["y"], axis=-1),
    ]
    values = [helper.make_tensor_value_info("x", 1, ["n", 5, 8]), helper.make_tensor_value_info("row", 1, ["n", 1, 8])]
    outputs = [helper.make_tensor_value_info("y", 1, ["n", 5, 8])]
    graph = helper.make_graph(nodes, "g", values, outputs, [ones, zeros])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert [node.op_type for node in fuse(model).graph.node] == ["Add", "LayerNormalization"]
