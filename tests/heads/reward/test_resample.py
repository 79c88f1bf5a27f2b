"""A pass gives Pillow's levels, to the last one, and the gradient of its filter."""

import numpy as np
import pytest
import torch
from PIL import Image

from embed.spec import Interpolation
from heads.reward.resample import Axis, along

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# What Pillow is given, and what is asked of it: smaller, larger, by a hair, by a lot, from one pixel, to one pixel.
SIDES = [(500, 224), (31, 224), (225, 224), (223, 224), (5000, 7), (1, 5), (90, 1), (3, 2), (640, 33)]


def picture(height: int, width: int) -> np.ndarray:
    """Noise at full contrast, so that levels overshoot and are clipped."""
    return np.random.default_rng(0).choice([0, 40, 128, 255], (height, width)).astype(np.uint8)


def as_levels(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).float()[None, None]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "resized"), SIDES)
def test_one_pass_is_pillows(size: int, resized: int, interpolation: Interpolation) -> None:
    wide, tall = picture(9, size), picture(size, 9)
    axis = Axis(size, resized, (0, size), (0, resized), interpolation)
    theirs = Image.fromarray(wide).resize((resized, 9), PILLOW[interpolation])
    np.testing.assert_array_equal(along(as_levels(wide), axis, -1)[0, 0].numpy(), np.asarray(theirs))
    theirs = Image.fromarray(tall).resize((9, resized), PILLOW[interpolation])
    np.testing.assert_array_equal(along(as_levels(tall), axis, -2)[0, 0].numpy(), np.asarray(theirs))


def test_a_part_of_a_box_is_that_part_of_pillows() -> None:
    pixels, box = picture(900, 300), (17.3, 260.8)
    axis = Axis(300, 120, box, (40, 101), "bicubic")
    theirs = Image.fromarray(pixels).resize((120, 900), PILLOW["bicubic"], (box[0], 0, box[1], 900))
    np.testing.assert_array_equal(along(as_levels(pixels), axis, -1)[0, 0].numpy(), np.asarray(theirs)[:, 40:101])


def test_levels_do_not_follow_a_trainers_autocast() -> None:
    pixels = as_levels(picture(50, 500))
    axis = Axis(500, 224, (0, 500), (0, 224), "bicubic")
    expected = along(pixels, axis, -1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(along(pixels, axis, -1), expected)


@pytest.mark.parametrize("dim", [-1, -2])
def test_the_gradient_is_that_of_the_filter(dim: int) -> None:
    """Of levels far from both ends the pass is linear, so that its gradient is its own difference of any two points."""
    axis = Axis(60, 13, (0, 60), (1, 12), "bicubic")
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 60, 60)
    levels = torch.randint(100, 140, shape, generator=generator).float().requires_grad_()
    weight = torch.randn(along(levels, axis, dim).shape, generator=generator)
    (along(levels, axis, dim) * weight).sum().backward()
    step = torch.randn(shape, generator=generator, dtype=torch.float64)
    ends = [along(levels.detach().double() + sign * step, axis, dim, rounding=False) for sign in (1, -1)]
    difference = float(((ends[0] - ends[1]) * weight).sum() / 2)
    assert float((levels.grad.double() * step).sum()) == pytest.approx(difference, rel=1e-5)


def test_no_gradient_where_a_level_was_clipped() -> None:
    """Beside an edge of full contrast the filter overshoots; those levels could not move."""
    levels = torch.zeros(1, 1, 1, 64)
    levels[..., 32:] = 255
    levels.requires_grad_()
    axis = Axis(64, 128, (0, 64), (0, 128), "bicubic")
    exact = along(levels.detach().double(), axis, -1, rounding=False)
    raw = torch.nn.functional.interpolate(levels.detach().double(), size=(1, 128), mode="bicubic", antialias=True)
    over = (raw < -0.5) | (raw > 255.5)
    assert over.any() and exact.min() == 0 and exact.max() == 255
    for i in torch.nonzero(over[0, 0, 0])[:, 0].tolist():
        (gradient,) = torch.autograd.grad(along(levels, axis, -1)[..., i].sum(), levels)
        assert not gradient.any()


def test_what_inference_asked_first_trains_afterwards() -> None:
    axis = Axis(77, 19, (0, 77), (0, 19), "bilinear")  # asked for nowhere else
    levels = as_levels(picture(4, 77)).requires_grad_()
    for rounding in (True, False):
        with torch.inference_mode():
            along(levels, axis, -1, rounding)
        along(levels, axis, -1, rounding).sum().backward()
    assert levels.grad is not None and levels.grad.any()
