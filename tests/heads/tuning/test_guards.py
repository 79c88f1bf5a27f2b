"""Diversity and fine grain against slow loops."""

import numpy as np
import pytest
import torch

from heads.tuning.guards import diversity, generator_of, sharpness


def test_diversity_is_the_mean_cosine_distance_within_a_prompt() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = []
    for group in (vectors[:3], vectors[3:]):
        pairs = [(0, 1), (0, 2), (1, 2)]
        expected.append(np.mean([1 - float(group[i] @ group[j]) for i, j in pairs]))
    np.testing.assert_allclose(diversity(vectors, 3), expected, rtol=1e-5)
    assert diversity(vectors[:1].repeat(4, 1), 4)[0] == pytest.approx(0, abs=1e-6)


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
