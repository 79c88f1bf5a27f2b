"""In tensors a picture becomes the levels that the cache and the service have of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from embed.inputs import pixels as ours
from embed.spec import Preprocess
from heads.reward import preprocess as module
from heads.reward.preprocess import preprocess

SPECS = [
    Preprocess(size, mode, interpolation, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), fill_color=13)
    for mode in ("shortest", "longest", "squash")
    for interpolation in ("bicubic", "bilinear")
    for size in ((56, 56), (50, 84))
]
# (width, height): since Pillow 13 the pass along the height comes first for some of them.
SIZES = [(64, 64), (128, 128), (90, 210), (210, 90), (57, 300), (30, 20), (56, 56), (56, 200), (300, 50), (3, 170)]


def picture(size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3): noise over slopes."""
    width, height = size
    slope = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    return (slope + np.random.default_rng(0).integers(0, 56, (height, width, 3))).astype(np.uint8)


def as_pixels(picture: np.ndarray) -> torch.Tensor:
    """(1, 3, h, w) in [0, 1], as a generator gives it."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.resize_mode}-{spec.interpolation}-{spec.size}")
def test_levels_are_those_of_pillow(spec: Preprocess) -> None:
    for size in SIZES:
        given = picture(size)
        expected = ours.preprocess(Image.fromarray(given), spec)
        found = preprocess(as_pixels(given), spec)[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found, expected, err_msg=str(size))


def test_a_strip_of_which_a_part_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "MAX_RESIZED_PIXELS", 0)
    given = picture((40, 700))
    expected = ours.preprocess(Image.fromarray(given), SPECS[0])
    np.testing.assert_array_equal(preprocess(as_pixels(given), SPECS[0])[0].permute(1, 2, 0).numpy(), expected)


def test_pictures_are_rounded_as_they_would_be_saved() -> None:
    given = picture((90, 120))
    pixels = (
        as_pixels(given) + torch.rand(1, 3, 120, 90, generator=torch.Generator().manual_seed(0)).sub(0.5) * 0.9 / 255
    )
    spec = SPECS[0]
    assert torch.equal(preprocess(pixels, spec), preprocess(as_pixels(given), spec))
    assert torch.equal(preprocess(pixels * 3 - 1, spec), preprocess((pixels * 3 - 1).clamp(0, 1), spec))


def test_the_order_of_passes_is_pillows_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever order the installed Pillow has, the other one is noticed and would be wrong."""
    given, spec = picture((57, 300)), replace(SPECS[0], resize_mode="squash")
    expected = ours.preprocess(Image.fromarray(given), spec)
    found = module._height_first
    monkeypatch.setattr(module, "_height_first", lambda *axes: not found(*axes))
    wrong = preprocess(as_pixels(given), spec)[0].permute(1, 2, 0).numpy()
    assert (wrong != expected).mean() > 0.05


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[4], SPECS[9]], ids=lambda spec: spec.resize_mode)
def test_the_gradient_is_that_of_central_differences(spec: Preprocess) -> None:
    """Rounding taken out; with rounding it is the same but for what was clipped."""
    generator = torch.Generator().manual_seed(0)
    pixels = 0.3 + 0.4 * torch.rand(1, 3, 90, 70, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 3, *spec.size, generator=generator, dtype=torch.float64)
    pixels.requires_grad_()
    (exact,) = torch.autograd.grad((preprocess(pixels, spec, rounding=False) * weight).sum(), pixels)
    step = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ends = [preprocess(pixels + sign * 1e-4 * step, spec, rounding=False) for sign in (1, -1)]
        difference = float(((ends[0] - ends[1]) * weight).sum() / 2e-4)
    assert float((exact * step).sum()) == pytest.approx(difference, rel=1e-6)
    (rounded,) = torch.autograd.grad((preprocess(pixels, spec) * weight).sum(), pixels)
    np.testing.assert_allclose(rounded.numpy(), exact.numpy(), rtol=1e-3, atol=1e-3)
