"""A decoded picture as a backbone wants it: RGB, resized, uint8."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from embed.arrays import UInt8s
from embed.inputs.errors import ImageError
from embed.spec import Interpolation, Preprocess

# A strip of 1 x 60,000 pixels, its short side resized to 224, would be 224 x 13,440,000: beyond this many pixels only
# the part that the crop keeps is resized, which differs by at most 2 of 255 levels.
MAX_RESIZED_PIXELS = 1 << 26


Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Whole:
    """The picture of which a smaller one was decoded: its size, and the box of the smaller one that holds all of it."""

    size: tuple[int, int]  # width, height
    box: Box


RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, transparency on white; itself where it is RGB already.

    16-bit greys keep the high byte, as Pillow's own decoders do for 16-bit colour. Of 32-bit integers, those of 0 to
    65535 count as 16-bit; of floats, 0 to 1 and 0 to 255 count as such; others are stretched from their least value
    to their greatest.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        grey = _eight_bits(values)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        white = Image.new("RGB", image.size, "white")
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: np.ndarray) -> UInt8s:
    """uint8 of the same shape from integers or floats; see `to_rgb`."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu" and low >= 0 and high <= 0xFFFF:
        return (values >> 8).astype(np.uint8)
    if not np.isfinite(values).all():
        raise ImageError("decode", "damaged", "pixels that are infinite or no numbers")
    if values.dtype.kind == "f" and low >= 0 and high <= 255:
        low, high = 0, 1 if high <= 1 else 255
    scale = 255 / (high - low) if high - low > 1e-30 else 0
    scaled = values.astype(np.float32)
    scaled *= np.float32(scale)
    scaled -= np.float32(low * scale)
    return np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8)


def preprocess(image: Image.Image, spec: Preprocess, whole: Whole | None = None) -> UInt8s:
    """uint8 pixels (h, w, 3) of a picture, resized as `spec` says; of one decoded smaller than it is, as if `whole`.

    Equal, to the bit, to open_clip's `image_transform` of an RGB picture before it normalises, its rounding
    included; where that fails (a side that rounds to 0) or would need memory without bound, the nearest picture.
    """
    if image.mode != "L" or image.has_transparency_data:  # the three channels of a grey are resized alike: do one
        image = to_rgb(image)
    whole = whole or Whole(image.size, (0, 0, *image.size))
    placed = placement(*whole.size, spec)
    resized = image.resize(placed.size, RESAMPLING[placed.interpolation], _in_smaller(placed.box, whole))
    canvas = Image.new("RGB", spec.size[::-1], (placed.fill,) * 3)
    canvas.paste(resized, (-placed.left, -placed.top))
    return np.array(canvas)


def _in_smaller(box: Box, whole: Whole) -> Box:
    """Where a box of the whole picture lies in the smaller one that was decoded."""
    if box == (0, 0, *whole.size):
        return whole.box
    left, top, right, bottom = whole.box
    across, down = (right - left) / whole.size[0], (bottom - top) / whole.size[1]
    return left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down


@dataclass(frozen=True)
class Placement:
    """How a picture of some size becomes pixels: `box` of it is resized to `size`, from which a canvas is taken."""

    size: tuple[int, int]  # width, height
    box: Box
    left: int = 0  # where in the resized picture the canvas begins; negative where that is narrower
    top: int = 0
    fill: int = 0  # of the canvas where the picture leaves it free
    interpolation: Interpolation = "bicubic"


def placement(width: int, height: int, spec: Preprocess) -> Placement:
    """How `preprocess` treats a picture of that size."""
    wanted_height, wanted_width = spec.size
    whole = (0, 0, width, height)
    if spec.resize_mode == "squash":
        return Placement((wanted_width, wanted_height), whole, interpolation=spec.interpolation)
    if spec.resize_mode == "longest":
        ratio = max(height / wanted_height, width / wanted_width)
        size = max(1, round(width / ratio)), max(1, round(height / ratio))
        # The odd pixel of the border is to the right and below.
        left, top = -((wanted_width - size[0]) // 2), -((wanted_height - size[1]) // 2)
        return Placement(size, whole, left, top, spec.fill_color, spec.interpolation)
    if wanted_width == wanted_height:
        short, long = sorted((width, height))
        new_long, interpolation = int(wanted_width * long / short), spec.interpolation
        size = (wanted_width, new_long) if width <= height else (new_long, wanted_width)
    else:
        ratio = min(height / wanted_height, width / wanted_width)
        size = round(width / ratio), round(height / ratio)
        # open_clip forgets to hand the interpolation on in this one case; whoever trained with it trained on bicubic.
        interpolation = "bicubic"
    # The rounding of torchvision's center_crop, or of Hugging Face's.
    rounded = math.floor if spec.resize_mode == "shortest_floor" else round
    left, top = rounded((size[0] - wanted_width) / 2), rounded((size[1] - wanted_height) / 2)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        x, y = width / size[0], height / size[1]
        box = (left * x, top * y, (left + wanted_width) * x, (top + wanted_height) * y)
        return Placement((wanted_width, wanted_height), box, interpolation=interpolation)
    return Placement(size, whole, left, top, interpolation=interpolation)
