"""Every family equals torch; the whole equals its parts; weights are stored once; calibration is in the graph."""

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_tiny import (
    CALIBRATION,
    FAMILIES,
    ImageOnly,
    huggingface_backbone,
    random_pixels,
    tiny_backbone,
    tiny_head,
)

from embed.engines.sessions import open_session
from export.graphs import compose
from heads.evaluation.calibration import Curve, Temperature

PROMPTS = ["a cat", "two dogs on a red bench in the park", "", "word " * 100, "x y z"]


@pytest.mark.parametrize("family", FAMILIES)
def test_picture_tower_equals_torch_at_any_batch(family: str) -> None:
    backbone = tiny_backbone(family)
    pixels = random_pixels(backbone, 5)
    model = compose.export_image(backbone, ("image_embedding",))
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString())
    expected = backbone.image_tower()(torch.from_numpy(pixels)).numpy()
    for rows in (1, 2, 5):
        np.testing.assert_allclose(session.run(None, {"pixels": pixels[:rows]})[0], expected[:rows], atol=1e-6)


@pytest.mark.parametrize(("family", "shortens"), [("vit", True), ("siglip", False)])
def test_text_tower_equals_torch_by_its_own_end_of_text(family: str, shortens: bool) -> None:
    backbone = tiny_backbone(family)
    assert compose.text_shortens(backbone, PROMPTS) is shortens
    model = compose.export_text(backbone, shortens)
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString())
    tokens = backbone.tokenize(PROMPTS)
    expected = backbone.text_tower()(torch.from_numpy(tokens)).numpy()
    for rows in (1, 5):
        np.testing.assert_allclose(session.run(None, {"tokens": tokens[:rows]})[0], expected[:rows], atol=2e-6)
    short = tokens[:1, :4]  # start, a, cat, end
    if shortens:
        np.testing.assert_allclose(session.run(None, {"tokens": short})[0], expected[:1], atol=2e-6)
    else:
        assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [0, 64]


@pytest.mark.parametrize("kind", ["bert", "roberta"])  # the latter counts positions from its padding
def test_text_towers_of_transformers_equal_torch(kind: str, tmp_path: Path) -> None:
    backbone = huggingface_backbone(tmp_path, kind)
    prompts = ["a b c", "", "d", "e f g h i j " * 20, "unheard of"]
    shortens = compose.text_shortens(backbone, prompts)
    session = open_session(compose.export_text(backbone, shortens).SerializeToString())
    tokens = backbone.tokenize(prompts)
    expected = backbone.text_tower()(torch.from_numpy(tokens)).numpy()
    assert np.abs(expected - expected[0])[1:].max(axis=1).min() > 1e-3
    for rows in (1, 5):
        np.testing.assert_allclose(session.run(None, {"tokens": tokens[:rows]})[0], expected[:rows], atol=2e-6)
    assert shortens
    np.testing.assert_allclose(session.run(None, {"tokens": tokens[:1, :5]})[0], expected[:1], atol=2e-6)


def test_pooled_features_are_given_where_the_head_reads_them() -> None:
    backbone = tiny_backbone()
    model = compose.export_image(backbone, ("image_embedding", "image_pooled"))
    pixels = random_pixels(backbone, 3)
    outputs = open_session(model.SerializeToString()).run(["image_embedding", "image_pooled"], {"pixels": pixels})
    expected = backbone.image_tower(("projected", "pooled"))(torch.from_numpy(pixels))
    for found, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def unit_rows(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_calibration_in_the_graph_equals_numpy() -> None:
    head, rows = tiny_head(), 50
    temperature, percentiles = Temperature(0.25), Curve.from_json(CALIBRATION["percentiles"])
    plain = compose.export_head(head, {"image_embedding": 32, "text_embedding": 32})
    model = compose.calibrate(plain, temperature, percentiles)
    onnx.checker.check_model(model, full_check=True)
    feed = {"image_embedding": unit_rows(rows, 0), "text_embedding": unit_rows(rows, 1)}
    session = open_session(model.SerializeToString())
    score, calibrated, percentile = session.run(["score", "calibrated_score", "percentile"], feed)
    expected = head(**{name: torch.from_numpy(values) for name, values in feed.items()}).detach().numpy()
    np.testing.assert_allclose(score, expected, atol=1e-5)
    assert score.min() < -0.5 and score.max() > 0.3  # both ends of the curve are tried
    np.testing.assert_allclose(calibrated, score / 0.25, rtol=1e-6)
    np.testing.assert_allclose(percentile, percentiles(score), atol=1e-6)
    assert [o.name for o in plain.graph.output] == ["score"]


@pytest.mark.parametrize("knots", [1, 2, 3])
def test_short_curves_interpolate_too(knots: int) -> None:
    curve = Curve(np.linspace(-0.2, 0.2, knots), np.linspace(0.1, 0.9, knots))
    scores = helper_scores(curve, np.array([-1, -0.2, -0.1, 0, 0.05, 0.2, 3], np.float32))
    np.testing.assert_allclose(scores, curve(np.array([-1, -0.2, -0.1, 0, 0.05, 0.2, 3], np.float32)), atol=1e-6)


def helper_scores(curve: Curve, values: np.ndarray) -> np.ndarray:
    """The percentiles of a graph whose score is its input."""
    x, score = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n"]) for n in ("x", "score"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["score"])], "g", [x], [score])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return open_session(compose.calibrate(model, None, curve).SerializeToString()).run(["percentile"], {"x": values})[0]


def test_whole_equals_its_parts_and_weights_are_stored_once(tmp_path: Path) -> None:
    backbone, head = tiny_backbone(), tiny_head()
    image, text = compose.export_image(backbone, head.inputs), compose.export_text(backbone, True)
    head_graph = compose.export_head(head, {"image_embedding": 32, "text_embedding": 32})
    graphs = {"image": image, "text": text, "head": head_graph, "model": compose.join(image, text, head_graph)}
    weights = io.BytesIO()
    writer = compose.WeightsWriter(weights)  # type: ignore[arg-type]
    for part, model in graphs.items():
        writer.move(model)
        if part == "head":
            size_of_parts = writer.size
        (tmp_path / f"{part}.onnx").write_bytes(model.SerializeToString())
    assert writer.size == size_of_parts == len(weights.getvalue())
    assert len(weights.getvalue()) > 10 * (tmp_path / "model.onnx").stat().st_size
    (tmp_path / compose.WEIGHTS_FILE).write_bytes(weights.getvalue())
    sessions = {}
    for part in graphs:
        onnx.checker.check_model(str(tmp_path / f"{part}.onnx"), full_check=True)
        sessions[part] = open_session(tmp_path / f"{part}.onnx")
    pixels, tokens = random_pixels(backbone, 5), backbone.tokenize(PROMPTS)
    v, t = sessions["image"].run(None, {"pixels": pixels})[0], sessions["text"].run(None, {"tokens": tokens})[0]
    score = sessions["head"].run(None, {"image_embedding": v, "text_embedding": t})[0]
    names = ["score", "image_embedding", "text_embedding"]
    whole = sessions["model"].run(names, {"pixels": pixels, "tokens": tokens})
    for found, wanted in zip(whole, (score, v, t), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert [i.name for i in sessions["model"].get_inputs()] == ["pixels", "tokens"]


def test_head_without_text_needs_no_text_tower() -> None:
    backbone = tiny_backbone()
    torch.manual_seed(0)
    head = ImageOnly().eval()
    image, head_graph = (
        compose.export_image(backbone, head.inputs),
        compose.export_head(head, {"image_embedding": 32}),
    )
    session = open_session(compose.join(image, None, head_graph).SerializeToString())
    assert [i.name for i in session.get_inputs()] == ["pixels"]
    pixels = random_pixels(backbone, 2)
    expected = head(backbone.image_tower()(torch.from_numpy(pixels))).detach().numpy()
    np.testing.assert_allclose(session.run(["score"], {"pixels": pixels})[0], expected, atol=1e-6)
