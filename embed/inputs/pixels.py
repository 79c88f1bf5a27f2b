"""Turn a decoded picture into the pixels that a backbone takes: RGB, resized, uint8."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from embed.arrays import UInt8s
from embed.inputs.errors import ImageError
from embed.spec import Interpolation, Preprocess

# If the short side of a strip of 1 x 60,000 pixels is resized to 224, the whole has 224 x 13,440,000 pixels. Above this
# limit only the part that the crop keeps is resized, which differs by at most 2 of 255 levels.
MAX_RESIZED_PIXELS = 1 << 26


Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Whole:
    """The original of a picture that was decoded smaller: its size, and the box in the small picture that shows it."""

    size: tuple[int, int]  # width, height
    box: Box


RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture in RGB with transparency on white, or the picture itself if it is RGB already.

    16-bit greys keep their high byte, as Pillow's own decoders do for 16-bit colour. 32-bit integers from 0 to 65535
    are read as 16-bit. Floats from 0 to 1, or from 0 to 255, are read as such. Other values are stretched from their
    smallest to their largest.
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
    """Return uint8 of the same shape from integers or floats; see `to_rgb`. Raise ImageError if one is not finite."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu" and low >= 0 and high <= 0xFFFF:
        return (values >> 8).astype(np.uint8)
    if not np.isfinite(values).all():
        raise ImageError("decode", "damaged", "pixels that are infinite or not a number")
    if values.dtype.kind == "f" and low >= 0 and high <= 255:
        low, high = 0, 1 if high <= 1 else 255
    scale = 255 / (high - low) if high - low > 1e-30 else 0
    scaled = values.astype(np.float32)
    scaled *= np.float32(scale)
    scaled -= np.float32(low * scale)
    return np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8)


def preprocess(image: Image.Image, spec: Preprocess, whole: Whole | None = None) -> UInt8s:
    """Return the pixels of a picture, uint8 (h, w, 3), resized as `spec` says.

    If the picture was decoded smaller, `whole` describes the original, whose pixels are then returned. They
    are equal, to the bit, to open_clip's `image_transform` of an RGB picture before it normalises, including its
    rounding. If that fails (a side that rounds to 0) or needs unlimited memory, they are the closest possible.
    """
    if image.mode != "L" or image.has_transparency_data:  # a grey picture is resized before it gets three channels
        image = to_rgb(image)
    whole = whole or Whole(image.size, (0, 0, *image.size))
    placed = placement(*whole.size, spec)
    resized = image.resize(placed.size, RESAMPLING[placed.interpolation], _in_smaller(placed.box, whole))
    canvas = Image.new("RGB", spec.size[::-1], (placed.fill,) * 3)
    canvas.paste(resized, (-placed.left, -placed.top))
    return np.array(canvas)


def _in_smaller(box: Box, whole: Whole) -> Box:
    """Return the box in the small picture that corresponds to a box of the whole picture."""
    if box == (0, 0, *whole.size):
        return whole.box
    left, top, right, bottom = whole.box
    across, down = (right - left) / whole.size[0], (bottom - top) / whole.size[1]
    return left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down


@dataclass(frozen=True)
class Placement:
    """How a picture becomes pixels: its `box` is resized to `size`, and a canvas is cut from the result."""

    size: tuple[int, int]  # width, height
    box: Box
    left: int = 0  # where in the resized picture the canvas begins; negative if the canvas is wider
    top: int = 0
    fill: int = 0  # the colour of the canvas outside the picture
    interpolation: Interpolation = "bicubic"


def placement(width: int, height: int, spec: Preprocess) -> Placement:
    """Return how `preprocess` treats a picture of that size."""
    wanted_height, wanted_width = spec.size
    whole = (0, 0, width, height)
    if spec.resize_mode == "squash":
        return Placement((wanted_width, wanted_height), whole, interpolation=spec.interpolation)
    if spec.resize_mode == "longest":
        ratio = max(height / wanted_height, width / wanted_width)
        size = max(1, round(width / ratio)), max(1, round(height / ratio))
        # If the border is uneven, the extra pixel is to the right and below.
        left, top = -((wanted_width - size[0]) // 2), -((wanted_height - size[1]) // 2)
        return Placement(size, whole, left, top, spec.fill_color, spec.interpolation)
    if wanted_width == wanted_height:
        short, long = sorted((width, height))
        new_long, interpolation = int(wanted_width * long / short), spec.interpolation
        size = (wanted_width, new_long) if width <= height else (new_long, wanted_width)
    else:
        ratio = min(height / wanted_height, width / wanted_width)
        size = round(width / ratio), round(height / ratio)
        # open_clip forgets to pass the interpolation on in this case, so models were trained with bicubic here.
        interpolation = "bicubic"
    # The rounding of center_crop in torchvision, or in Hugging Face.
    rounded = math.floor if spec.resize_mode == "shortest_floor" else round
    left, top = rounded((size[0] - wanted_width) / 2), rounded((size[1] - wanted_height) / 2)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        x, y = width / size[0], height / size[1]
        box = (left * x, top * y, (left + wanted_width) * x, (top + wanted_height) * y)
        return Placement((wanted_width, wanted_height), box, interpolation=interpolation)
    return Placement(size, whole, left, top, interpolation=interpolation)
