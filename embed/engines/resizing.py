"""Resize many pictures of different sizes at once on a device, with the same result as Pillow.

Each pass computes every output pixel as a weighted sum of a few input pixels, in integers: weights are rounded to 22
bits after the binary point and sums to 8 bits, as in Pillow. The width is resized first. Pillow 13 and later resizes
the height first if that is less work; its values then differ by a rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embed.inputs.pixels import placement
from embed.spec import Interpolation, Preprocess

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BITS = 22
RADIUS: dict[Interpolation, float] = {"bicubic": 2.0, "bilinear": 1.0}


def resize(pictures: "Sequence[Tensor]", spec: Preprocess) -> "Tensor":
    """Return uint8 (n, 3, h, w), equal to `embed.inputs.pixels.preprocess`, from pictures uint8 (3, h, w)."""
    import torch

    height, width = (max(picture.shape[dim] for picture in pictures) for dim in (-2, -1))
    levels = pictures[0].new_zeros((len(pictures), 3, height, width))
    for row, picture in enumerate(pictures):
        levels[row, :, : picture.shape[-2], : picture.shape[-1]] = picture
    placed = [placement(picture.shape[-1], picture.shape[-2], spec) for picture in pictures]
    across = [Side(p.shape[-1], one.size[0], one.box[::2], one.left) for p, one in zip(pictures, placed, strict=True)]
    down = [Side(p.shape[-2], one.size[1], one.box[1::2], one.top) for p, one in zip(pictures, placed, strict=True)]
    tall, wide = spec.size
    kind, fill = placed[0].interpolation, placed[0].fill  # the same for all pictures of a backbone
    levels = along(levels, across, wide, kind)
    levels = along(levels.transpose(-2, -1), down, tall, kind).transpose(-2, -1)
    held = _held(across, wide)[:, None, None] & _held(down, tall)[:, None, :, None]
    return torch.where(held.to(levels.device), levels, fill).to(torch.uint8)


@dataclass(frozen=True)
class Side:
    """One side of a picture: `box` of its `size` pixels is resized to `resized` pixels, which are kept from `first`."""

    size: int
    resized: int
    box: tuple[float, ...]
    first: int


def along(levels: "Tensor", sides: Sequence[Side], kept: int, interpolation: Interpolation) -> "Tensor":
    """Resize along the last side: uint8 (n, 3, other, at least each picture's `size`) to uint8 (n, 3, other, kept)."""
    import torch

    begin, coefficients = _taps(sides, kept, interpolation, levels.device)
    last = torch.tensor([[side.size - 1] for side in sides], device=levels.device)
    sums = torch.full((*levels.shape[:-1], kept), 1 << (BITS - 1), dtype=torch.int32, device=levels.device)
    for tap in range(coefficients.shape[-1]):
        place = (begin + tap).minimum(last)[:, None, None].expand(sums.shape)
        sums += levels.gather(-1, place).int() * coefficients[:, None, None, :, tap]
    return (sums >> BITS).clamp_(0, 255).to(torch.uint8)


def _taps(
    sides: Sequence[Side], kept: int, interpolation: Interpolation, device: "torch.device"
) -> "tuple[Tensor, Tensor]":
    """Return (n, kept), the first input pixel of each output, and (n, kept, taps), the integer weights of that pixel
    and those that follow it."""
    import torch

    rows = [(*side.box, side.size, side.resized, side.first) for side in sides]
    low, high, size, resized, first = torch.tensor(rows, dtype=torch.float64, device=device).T[..., None]
    step = (high.float() - low.float()).double() / resized  # Pillow, too, rounds these to float before subtracting
    stretch = step.clamp(min=1)
    reach = RADIUS[interpolation] * stretch
    outputs = (first + torch.arange(kept, device=device)).clamp(min=0).minimum(resized - 1)
    centers = low.float().double() + (outputs + 0.5) * step
    # A cast to int rounds towards zero, as in C; negative values become 0 either way.
    begin = (centers - reach + 0.5).long().clamp(min=0)
    end = (centers + reach + 0.5).long().minimum(size.long())
    most = max(1.0, *((side.box[1] - side.box[0]) / side.resized for side in sides))
    taps = 2 * math.ceil(RADIUS[interpolation] * most) + 1
    places = begin[..., None] + torch.arange(taps, device=device)
    x = ((places - centers[..., None] + 0.5) / stretch[..., None]).abs()
    weights = _bicubic(x) if interpolation == "bicubic" else (1 - x).clamp(min=0)
    weights *= places < end[..., None]
    weights /= weights.sum(-1, keepdim=True)
    scaled = weights * (1 << BITS)
    return begin, torch.trunc(scaled + torch.copysign(torch.full_like(scaled, 0.5), scaled)).int()


def _bicubic(x: "Tensor") -> "Tensor":
    """Return Keys' kernel with a = -1/2 at distances `x`."""
    import torch

    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _held(sides: Sequence[Side], kept: int) -> "Tensor":
    """Return (n, kept): which outputs lie inside the resized picture and not in the border."""
    import torch

    first, resized = (torch.tensor([[getattr(side, name)] for side in sides]) for name in ("first", "resized"))
    outputs = first + torch.arange(kept)
    return (outputs >= 0) & (outputs < resized)
