"""One pass of Pillow's resize in tensors, along the width or the height, with a gradient.

Pillow resizes in two passes, and rounds the result of each to 8 bits. This is not a smooth filter, and scores depend on
its roundings. A pass is a band of coefficients, each rounded to 22 bits after the point. Here it is computed block by
block as products of matrices, in whole numbers that float32 holds exactly, so that all levels equal Pillow's on any
device. The gradient is that of the same filter: it ignores the rounding (Bengio et al. 2013, "straight-through"), and
is zero at clipped levels.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embed.arrays import Floats
from embed.spec import Interpolation

BITS = 22  # bits of a coefficient after the point, as in Pillow: 32 minus 8 for a level and 2 to spare
LOW_BITS = 11  # the coefficient is split here, so that each half times a level is exact in float32
BLOCK = 32  # outputs computed together; their inputs are only a small part of the whole side
RADIUS: dict[Interpolation, float] = {"bicubic": 2.0, "bilinear": 1.0}


@dataclass(frozen=True)
class Axis:
    """One pass along a side: the part `box` of its `size` pixels is resized to `resized`, of which `kept` is kept."""

    size: int
    resized: int
    box: tuple[float, float]
    kept: tuple[int, int]  # the first, and one after the last
    interpolation: Interpolation

    @property
    def is_copy(self) -> bool:
        """Whether the pass changes nothing, in which case Pillow skips it."""
        return self.size == self.resized and self.box == (0, self.size)


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbouring outputs of a pass, and the inputs that they are computed from."""

    outputs: slice
    inputs: slice
    coefficients: Floats  # (inputs, outputs), whole numbers


def along(levels: Tensor, axis: Axis, dim: int, rounding: bool = True) -> Tensor:
    """Levels (..., h, w) from 0 to 255 after one pass, along the width for `dim` -1 and the height for -2.

    With `rounding`, both the levels and the results are whole numbers in float32.
    """
    if axis.is_copy:
        return levels.narrow(dim, axis.kept[0], axis.kept[1] - axis.kept[0])
    if rounding:
        rounded: Tensor = _Rounded.apply(levels, axis, dim)
        return rounded
    matrices = _matrices(axis, levels.device, levels.dtype)
    parts = [_product(_part(levels, dim, block.inputs), one, dim) for block, one in matrices]
    return torch.cat(parts, dim=dim).clamp(0, 255)


class _Rounded(torch.autograd.Function):
    """A pass that clips and rounds levels. Its gradient ignores the rounding."""

    @staticmethod
    def forward(ctx: Any, levels: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim, ctx.shape = axis, dim, levels.shape
        shape = list(levels.shape)
        shape[dim] = axis.kept[1] - axis.kept[0]
        sums = levels.new_empty(shape, dtype=torch.int32)
        with torch.autocast(levels.device.type, enabled=False):
            for block, matrix in _halves(axis, levels.device):
                high, low = _product(_part(levels, dim, block.inputs), matrix, dim).to(torch.int32).chunk(2, dim)
                torch.add(low, high, alpha=1 << LOW_BITS, out=_part(sums, dim, block.outputs))
        return clipped(ctx, sums.add_(1 << (BITS - 1)).bitwise_right_shift_(BITS)).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (kept,) = gradients, ctx.saved_tensors
        gradient = gradient * kept
        result = gradient.new_zeros(ctx.shape)
        with torch.autocast(gradient.device.type, enabled=False):
            for block, matrix in _matrices(ctx.axis, gradient.device, gradient.dtype):
                part = _product(_part(gradient, ctx.dim, block.outputs), matrix.T, ctx.dim)
                _part(result, ctx.dim, block.inputs).add_(part)
        return result, None, None


def clipped(ctx: Any, levels: Tensor) -> Tensor:
    """Whole levels clipped to 0 to 255. This is done in place, unless a gradient needs to know which were clipped."""
    if not ctx.needs_input_grad[0]:
        return levels.clamp_(0, 255)
    inside = levels.clamp(0, 255)
    ctx.save_for_backward(inside == levels)
    return inside


def _part(levels: Tensor, dim: int, part: slice) -> Tensor:
    return levels.narrow(dim, part.start, part.stop - part.start)


def _product(levels: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Levels with `matrix` (inputs, outputs) applied along `dim`."""
    return levels @ matrix if dim == -1 else matrix.T @ levels


@lru_cache(maxsize=64)
def blocks(axis: Axis) -> tuple[Block, ...]:
    """The pass as matrix products. Coefficients are whole numbers: Pillow's fractions times 2^22."""
    low, high = np.float32(axis.box[0]), np.float32(axis.box[1])  # Pillow also subtracts them as float32
    step = float(high - low) / axis.resized
    stretch = max(step, 1.0)
    reach = RADIUS[axis.interpolation] * stretch
    centers = float(low) + (np.arange(*axis.kept) + 0.5) * step
    # astype truncates towards zero as C does; negative numbers become 0 in any case.
    first = np.maximum((centers - reach + 0.5).astype(int), 0)
    last = np.minimum((centers + reach + 0.5).astype(int), axis.size)
    found = []
    for begin in range(0, len(centers), BLOCK):
        rows = slice(begin, min(begin + BLOCK, len(centers)))
        inputs = slice(int(first[rows].min()), int(last[rows].max()))
        places = np.arange(inputs.start, inputs.stop)[:, None]
        weights = _FILTERS[axis.interpolation](np.abs((places - centers[rows] + 0.5) / stretch))
        weights[(places < first[rows]) | (places >= last[rows])] = 0
        weights /= weights.sum(axis=0)
        scaled = weights * (1 << BITS)
        found.append(Block(rows, inputs, np.trunc(scaled + np.copysign(0.5, scaled))))
    return tuple(found)


def _bicubic(x: Floats) -> Floats:
    """Keys' kernel with a = -1/2, at these distances."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    result: Floats = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return result


def _bilinear(x: Floats) -> Floats:
    result: Floats = np.maximum(1 - x, 0)
    return result


_FILTERS = {"bicubic": _bicubic, "bilinear": _bilinear}


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # tensors in the cache must be usable for training, even if inference asks first
def _matrices(axis: Axis, device: torch.device, dtype: torch.dtype) -> list[tuple[Block, Tensor]]:
    """Each block with its coefficients (inputs, outputs) as a tensor."""
    scale = math.ldexp(1, -BITS)
    return [(one, torch.from_numpy(one.coefficients * scale).to(device, dtype)) for one in blocks(axis)]


@lru_cache(maxsize=64)
def _halves(axis: Axis, device: torch.device) -> list[tuple[Block, Tensor]]:
    """Each block with the upper and the lower halves of its coefficients side by side, also transposed for the
    height."""
    result = []
    for one in blocks(axis):
        high = np.rint(one.coefficients / (1 << LOW_BITS))
        both = np.concatenate([high, one.coefficients - high * (1 << LOW_BITS)], axis=1)
        result.append((one, torch.from_numpy(both).to(device, torch.float32)))
    return result
