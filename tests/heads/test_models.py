"""Heads score what they say they score, and are the same head after a round trip through their configuration."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from embed.engines.sessions import open_session
from embed.graphs import trace
from embed.spec import InputError
from export.graphs.compose import export_head
from heads.config import HeadConfig, Kind
from heads.models import INPUTS, Cosine, Dropout, Head, build_head, config_from_json

ALL_KINDS = [
    HeadConfig("cosine", 8),
    HeadConfig("linear", 8),
    HeadConfig("mlp", 8),
    HeadConfig("mlp", 8, activations=False),
    HeadConfig("mlp", 8, reads="image"),
    HeadConfig("mlp", 8, reads="text"),
    HeadConfig("fusion", 8),
    HeadConfig("fusion", 8, 12),
    HeadConfig("fusion", 8, 12, reads="image"),
    HeadConfig("linear", 8, 12),
    HeadConfig("blend", 8, landmarks=6),
    HeadConfig("blend", 8, 12, landmarks=6),
    HeadConfig("blend", 8, 12, reads="image", landmarks=6),
    HeadConfig("blend", 8, 12, reads="text", landmarks=6),
    HeadConfig("kernel", 8, landmarks=6),
    HeadConfig("kernel", 8, 12, landmarks=6),
    HeadConfig("kernel", 8, reads="image", landmarks=6),
    HeadConfig("kernel", 8, reads="text", landmarks=6),
]


def inputs(n: int, dim: int, pooled_dim: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"image_embedding": dim, "text_embedding": dim, "image_pooled": pooled_dim}
    return {k: torch.nn.functional.normalize(torch.randn(n, d, generator=generator)) for k, d in sizes.items() if d}


def shaken(config: HeadConfig) -> Head:
    """A head with weights that matter everywhere."""
    head = build_head(config).eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in head.named_parameters():
        if name != "logit_scale":
            parameter.data.normal_(0, 0.3, generator=generator)
    head.prepare(**given(head, 7))
    return head


def given(head: Head, n: int) -> dict[str, torch.Tensor]:
    return {name: vectors for name, vectors in inputs(n, 8, 12).items() if name in head.inputs}


@pytest.mark.parametrize("config", ALL_KINDS, ids=lambda c: f"{c.kind}-{c.reads}-{c.activations}-{c.pooled_dim}")
def test_onnx_gives_the_scores_that_torch_gives(config: HeadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trace, "_capture")  # every head can be traced, in a tenth of the time
    head = shaken(config)
    widths = {"image_embedding": 8, "text_embedding": 8, "image_pooled": 12}
    model = export_head(head, {name: widths[name] for name in head.inputs})
    session = open_session(model.SerializeToString())
    assert tuple(i.name for i in session.get_inputs()) == head.inputs
    for n in (1, 5):
        with torch.no_grad():
            expected = head(**given(head, n)).numpy()
        (scores,) = session.run(None, {name: values.numpy() for name, values in given(head, n).items()})
        assert scores.shape == (n,)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(scores) > 1e-3


@pytest.mark.parametrize("kind", ["kernel", "blend", "fusion", "mlp"])
def test_a_graph_holds_each_number_once(kind: Kind) -> None:
    head = shaken(HeadConfig(kind, 8, landmarks=400))
    numbers = sum(values.numel() for values in (*head.parameters(), *head.buffers()))
    graph = export_head(head, dict.fromkeys(head.inputs, 8)).graph
    held = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    assert held < numbers + 200, (held, numbers)


def test_cosine_starts_as_zero_shot_clip() -> None:
    head = build_head(HeadConfig("cosine", 8))
    v, t = inputs(50, 8, 0).values()
    torch.testing.assert_close(head(v, t), 100 * (v * t).sum(dim=1))


@torch.no_grad()
def test_cosine_is_its_formula_and_a_space_to_search_in() -> None:
    head = shaken(HeadConfig("cosine", 8))
    assert isinstance(head, Cosine)
    v, t = inputs(5, 8, 0).values()
    images, prompts = head.embed_image(v), head.embed_text(t)
    for i in range(5):
        x = (torch.eye(8) + head.image_residual) @ v[i]
        y = (torch.eye(8) + head.text_residual) @ t[i]
        cosine = float(x @ y / (x.norm() * y.norm()))
        assert float(head(v, t)[i]) == pytest.approx(math.exp(float(head.logit_scale)) * cosine, rel=1e-4)
        assert float(images[i] @ prompts[i]) == pytest.approx(cosine, abs=1e-5)
        assert float(images[i].norm()) == pytest.approx(1, abs=1e-5)


def test_fusion_without_dropout_trains_on_the_scores_that_it_gives() -> None:
    head = shaken(HeadConfig("fusion", 8, 12, dropout=0.0, input_dropout=0.0))
    gradients = []
    for training in (False, True):
        scores = head.train(training)(**given(head, 5))
        gradients.append([scores, *torch.autograd.grad(scores.square().sum(), list(head.parameters()))])
    for evaluated, trained in zip(*gradients, strict=True):
        torch.testing.assert_close(trained, evaluated, rtol=1e-4, atol=1e-4)


def test_linear_is_affine_in_the_picture() -> None:
    head = shaken(HeadConfig("linear", 8))
    weight, bias = math.sqrt(8) * head.layer.weight[0], head.layer.bias
    (v,) = given(head, 5).values()
    torch.testing.assert_close(head(v), v @ weight + bias)
    assert not build_head(HeadConfig("linear", 8))(v).any()


@pytest.mark.parametrize("reads", ["both", "image", "text"])
def test_mlp_has_the_published_shape_and_start(reads: str) -> None:
    head = build_head(HeadConfig("mlp", 300, reads=reads, activations=False))
    layers = list(head.layers)
    linears = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    width = 600 if reads == "both" else 300
    assert [(x.in_features, x.out_features) for x in linears] == [
        (width, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]  # fmt: skip
    assert [layer.p for layer in layers if isinstance(layer, torch.nn.Dropout)] == [0.2, 0.2, 0.1]
    for layer in linears[:3]:
        assert float(layer.weight.detach().std()) * (layer.in_features + 1) == pytest.approx(1, rel=0.05)
        assert not layer.bias.any()


def test_mlp_is_affine_exactly_without_activations() -> None:
    (v,) = given(build_head(HeadConfig("linear", 8)), 2).values()
    middle = v.mean(dim=0, keepdim=True)
    for activations in (False, True):
        head = shaken(HeadConfig("mlp", 8, reads="image", activations=activations))
        same = torch.allclose(head(middle), head(v).mean(), rtol=1e-4)
        assert same is not activations


@pytest.mark.parametrize("pooled_dim", [0, 12])
def test_fusion_reads_its_inputs_and_scores_each_row_alone(pooled_dim: int) -> None:
    head = build_head(HeadConfig("fusion", 8, pooled_dim)).eval()
    torch.nn.init.normal_(head.layers[-1].weight)
    given = inputs(5, 8, pooled_dim)
    assert head.inputs == (INPUTS if pooled_dim else INPUTS[:2])
    together = head(**given)
    assert together.shape == (5,)
    alone = torch.cat([head(**{name: values[i : i + 1] for name, values in given.items()}) for i in range(5)])
    torch.testing.assert_close(together, alone)
    for name in head.inputs:
        changed = head(**{**given, name: given[name].roll(1, 0)})
        assert (changed != together).all(), f"{name} does not matter to the score"


def test_fusion_centers_on_its_training_inputs() -> None:
    head = build_head(HeadConfig("fusion", 8))
    given = inputs(40, 8, 0)
    head.prepare(**given)
    seen = []
    head.layers.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    head.eval()(**given)
    assert seen[0].mean(dim=0).abs().max() < 1e-5
    assert seen[0].abs().max() > 0.1


def test_the_seed_decides_the_weights_and_leaves_torch_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    config = HeadConfig("fusion", 8)
    first, again, other = (build_head(config, seed).layers[1].weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_configuration_survives_json_and_refuses_what_it_does_not_know() -> None:
    config = HeadConfig("fusion", 8, hidden=3)
    assert config_from_json(asdict(config)) == config
    with pytest.raises(InputError, match=r"unknown fields \['colour'\]"):
        config_from_json({**asdict(config), "colour": 1})
    with pytest.raises(InputError, match=r"kind is 'fusoin'; .* \(near names: fusion\)"):
        HeadConfig("fusoin", 8)
    assert config_from_json({"kind": "fusion", "dim": 8}) == HeadConfig("fusion", 8)
    with pytest.raises(InputError, match="reads is 'picture'; wanted both, image, text or all"):
        HeadConfig("mlp", 8, reads="picture")
    with pytest.raises(InputError, match=r"dropout is 1\.0; wanted at least 0 and less than 1"):
        HeadConfig("fusion", 8, dropout=1.0)


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.6])
def test_dropout_drops_its_share_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(333, 301)
    dropout = Dropout(probability)
    dropped = dropout(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(probability, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    # Every coordinate and row alike: bytes of one word are not tied to each other.
    assert ((dropped == 0).float().mean(dim=0) - probability).abs().max() < 0.12
    assert ((dropped == 0).float().mean(dim=1) - probability).abs().max() < 0.12
    assert torch.equal(dropout.eval()(x), x)
