"""A backbone's preprocessing in tensors: the same levels as from `embed.inputs.pixels`, with a gradient.

Pictures come from a generator, in [0, 1]. They are first rounded to the 8 bits in which they would be saved.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from embed.inputs.pixels import RESAMPLING, placement
from embed.spec import Preprocess
from heads.reward.resample import BLOCK, Axis, along, clipped


def preprocess(pixels: Tensor, spec: Preprocess, rounding: bool = True) -> Tensor:
    """Turn pictures (n, 3, any, any) in [0, 1] into levels (n, 3, h, w) from 0 to 255 in the size that the backbone
    takes.

    The levels are whole numbers in float32, equal to those of `embed.inputs.pixels.preprocess`. Without `rounding` they
    are in the type of `pixels` and exactly differentiable, to check the gradient.
    """
    height, width = pixels.shape[-2:]
    placed = placement(width, height, spec)
    left, top, right, bottom = placed.box
    wanted_height, wanted_width = spec.size
    columns = max(placed.left, 0), min(placed.left + wanted_width, placed.size[0])
    rows = max(placed.top, 0), min(placed.top + wanted_height, placed.size[1])
    across = Axis(width, placed.size[0], (left, right), columns, placed.interpolation)
    down = Axis(height, placed.size[1], (top, bottom), rows, placed.interpolation)
    levels: Tensor = _Levels.apply(pixels.float()) if rounding else (pixels * 255).clamp(0, 255)
    if _height_first(across, down):
        levels = along(along(levels, down, -2, rounding), across, -1, rounding)
    else:
        levels = along(along(levels, across, -1, rounding), down, -2, rounding)
    begins, ends = (columns[0] - placed.left, rows[0] - placed.top), (columns[1] - placed.left, rows[1] - placed.top)
    border = (begins[0], wanted_width - ends[0], begins[1], wanted_height - ends[1])
    return F.pad(levels, border, value=placed.fill) if any(border) else levels


@lru_cache(maxsize=1024)
@torch.inference_mode()
def _height_first(across: Axis, down: Axis) -> bool:
    """Whether the pass along the height comes first. Since Pillow 13 this depends on the sizes; before, it never did.

    This is found by resizing noise with Pillow: a corner of the result shows the order.
    """
    if across.is_copy or down.is_copy:
        return False
    noise = np.random.default_rng(0).integers(0, 256, (down.size, across.size), dtype=np.uint8)
    box = across.box[0], down.box[0], across.box[1], down.box[1]
    size = across.resized, down.resized
    theirs = np.asarray(Image.fromarray(noise).resize(size, RESAMPLING[across.interpolation], box))
    x, y = (replace(axis, kept=(axis.kept[0], min(axis.kept[1], axis.kept[0] + BLOCK))) for axis in (across, down))
    ours = along(along(torch.from_numpy(noise).float(), y, -2), x, -1).numpy()
    return bool((ours == theirs[slice(*y.kept), slice(*x.kept)]).all())


class _Levels(torch.autograd.Function):
    """Turn [0, 1] into whole levels. The gradient sees the clipping but not the rounding."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        return clipped(ctx, (pixels * 255).round_())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        result: Tensor = gradients[0] * kept * 255
        return result
