"""Heads score what they say they score, and are the same head after a round trip through their configuration."""

from dataclasses import asdict

import pytest
import torch

from embed.spec import InputError
from heads.models import INPUTS, Dropout, HeadConfig, build_head, config_from_json


def inputs(n: int, dim: int, pooled_dim: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"image_embedding": dim, "text_embedding": dim, "image_pooled": pooled_dim}
    return {k: torch.nn.functional.normalize(torch.randn(n, d, generator=generator)) for k, d in sizes.items() if d}


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
    with pytest.raises(InputError, match="unknown head 'fusoin'; near names: fusion"):
        HeadConfig("fusoin", 8)
    with pytest.raises(InputError, match=r"HeadConfig.dropout is 1.0; wanted 0 <= dropout < 1"):
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
