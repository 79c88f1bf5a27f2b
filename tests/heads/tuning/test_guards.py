"""Diversity and fine grain against slow loops, and what the guards refuse of them."""

import numpy as np
import pytest
import torch

from heads.tuning.config import TuneConfig
from heads.tuning.guards import diversity, generator_of, share_of, sharpness, variety, why_refused


def test_diversity_is_the_mean_cosine_distance_within_a_prompt() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = []
    for group in (vectors[:3], vectors[3:]):
        pairs = [(0, 1), (0, 2), (1, 2)]
        expected.append(np.mean([1 - float(group[i] @ group[j]) for i, j in pairs]))
    np.testing.assert_allclose(diversity(vectors, 3), expected, rtol=1e-5)
    assert diversity(vectors[:1].repeat(4, 1), 4)[0] == pytest.approx(0, abs=1e-6)


def test_diversity_between_prompts_is_the_mean_cosine_distance_from_others() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = []
    for mine in ((0, 1), (2, 3), (4, 5)):
        others = [i for i in range(6) if i not in mine]
        expected.append(np.mean([1 - float(vectors[i] @ vectors[j]) for i in mine for j in others]))
    np.testing.assert_allclose(variety(vectors, 2), expected, rtol=1e-5)
    assert not len(variety(vectors, 6))
    # The pictures of a prompt may differ as much as before where all prompts have come to the same.
    same = torch.cat([vectors[:2]] * 3)
    assert diversity(same, 2)[0] == pytest.approx(diversity(vectors, 2)[0])
    assert variety(same, 2).mean() < 0.7 * variety(vectors, 2).mean()


def test_fine_grain_is_what_waves_shorter_than_four_pixels_hold() -> None:
    x = torch.arange(32)[None, :].expand(32, 32) * 2 * np.pi
    smooth, grid = (x / 16).sin() / 4, (x / 2 + 1).sin() / 4
    pictures = torch.stack([smooth, grid, smooth + grid]) + 0.5
    found = sharpness(pictures[:, None].expand(-1, 3, -1, -1))
    strength = float(grid.double().square().mean() / (smooth.double().square().mean() + grid.double().square().mean()))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, strength]).double(), rtol=1e-4, atol=1e-6)
    assert float(sharpness(torch.full((1, 3, 8, 8), 0.4))) == 0


def test_random_numbers_depend_on_all_of_their_place() -> None:
    draws = {float(torch.rand((), generator=generator_of(*place))) for place in [(0, 1, 2), (0, 2, 1), (1, 0, 2)]}
    assert len(draws) == 3
    again = torch.rand((), generator=generator_of(0, 1, 2)), torch.rand((), generator=generator_of(0, 1, 2))
    assert again[0] == again[1]


def values(prompts: int, factor: float, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Diversity of prompts that differ much, before and `factor` of it after, with noise."""
    rng = np.random.default_rng(seed)
    before = rng.uniform(0.05, 0.4, prompts)
    return before, before * factor * (1 + noise * rng.standard_normal(prompts))


def test_the_share_that_is_left_has_the_interval_of_resampled_prompts() -> None:
    before, after = values(40, 0.9, 0.3, 0)
    found = share_of(after, before, np.arange(40), seed=0)
    rng, ratios = np.random.default_rng(5), []
    for _ in range(4000):
        drawn = [int(rng.integers(40)) for _ in range(40)]
        ratios.append(sum(after[i] for i in drawn) / sum(before[i] for i in drawn))
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert found.value == pytest.approx(after.sum() / before.sum())
    assert found.low == pytest.approx(low, abs=0.01) and found.high == pytest.approx(high, abs=0.01)
    same = share_of(before, before, np.arange(40), seed=0)
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))


def test_pictures_of_one_prompt_are_resampled_together() -> None:
    before, after = values(20, 0.9, 0.3, 1)
    alone = share_of(after, before, np.arange(20), seed=0)
    each = share_of(after.repeat(4), before.repeat(4), np.arange(20).repeat(4), seed=0)
    assert (each.low, each.high) == pytest.approx((alone.low, alone.high), rel=1e-6)


def shares(name: str, factor: float, noise: float, seed: int, prompts: int = 16) -> dict[str, float]:
    before, after = values(prompts, factor, noise, seed)
    found = share_of(after, before, np.arange(prompts), seed)
    return {f"{name}_share": found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def test_what_is_surely_below_the_limit_is_refused_and_chance_is_not() -> None:
    config = TuneConfig("draft")
    chance = [shares("diversity", 0.9, 0.4, seed) for seed in range(60)]
    assert sum(one["diversity_share"] < config.min_diversity for one in chance) > 5  # by the value alone
    assert sum(bool(why_refused(one, config)) for one in chance) <= 2
    fallen = [shares("diversity", 0.5, 0.4, seed) for seed in range(60)]
    assert sum(bool(why_refused(one, config)) for one in fallen) >= 57
    assert why_refused(shares("variety", 0.5, 0.1, 0), config)[0].startswith("diversity between prompts 5")
    (why,) = why_refused(shares("diversity", 0.5, 0.1, 0), config)
    assert why.startswith("diversity 5") and "% of before, 4" in why
    assert why_refused(shares("sharpness", 3, 0.1, 0), config) and not why_refused(
        shares("sharpness", 2.1, 0.4, 1), config
    )
    assert not why_refused(shares("sharpness", 0.1, 0.1, 0), config)  # smoother is not refused


@pytest.mark.parametrize("prompts", [1, 9])
def test_of_few_prompts_the_value_decides(prompts: int) -> None:
    config = TuneConfig("draft", min_diversity=0.8)
    refused = [why_refused(shares("diversity", factor, 0.01, 0, prompts), config) for factor in (0.75, 0.85)]
    assert refused[0][0].startswith("diversity 7") and refused[0][0].endswith("% of before") and not refused[1]
