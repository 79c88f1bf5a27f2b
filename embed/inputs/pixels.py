"""A decoded picture as a backbone wants it: RGB, resized, uint8."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from embed.arrays import UInt8s
from embed.inputs.errors import ImageError
from embed.spec import Preprocess

# A strip of 1 x 60,000 pixels, its short side resized to 224, would be 224 x 13,440,000: beyond this many pixels only
# the part that the crop keeps is resized, which differs by at most 2 of 255 levels.
MAX_RESIZED_PIXELS = 1 << 26


@dataclass(frozen=True)
class Whole:
    """The picture of which a smaller one was decoded: its size, and the box of the smaller one that holds all of it."""

    size: tuple[int, int]  # width, height
    box: tuple[float, float, float, float]  # left, top, right, bottom


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
    height, width = spec.size
    resample = RESAMPLING[spec.interpolation]
    size = resized_size(whole.size, spec)
    if spec.resize_mode == "squash":
        image = image.resize(size, resample, whole.box)
    elif spec.resize_mode == "longest":
        image = _pad(image.resize(size, resample, whole.box), width, height, spec.fill_color)
    else:
        # open_clip forgets to hand the interpolation on in this one case; whoever trained with it trained on bicubic.
        resample = resample if width == height else Image.Resampling.BICUBIC
        image = _resize_and_crop(image, size, whole.box, width, height, resample)
    return np.array(to_rgb(image))


def resized_size(picture: tuple[int, int], spec: Preprocess) -> tuple[int, int]:
    """The width and height to which a picture of so many pixels is resized, before anything is cropped or padded."""
    (across, down), (height, width) = picture, spec.size
    if spec.resize_mode == "squash":
        return width, height
    if spec.resize_mode == "longest":
        ratio = max(down / height, across / width)
        return max(1, round(across / ratio)), max(1, round(down / ratio))
    if width == height:
        new_long = int(width * max(picture) / min(picture))
        return (width, new_long) if across <= down else (new_long, width)
    ratio = min(down / height, across / width)
    return round(across / ratio), round(down / ratio)


def _resize_and_crop(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    width: int,
    height: int,
    resample: Image.Resampling,
) -> Image.Image:
    """The middle of the picture in `box` resized to `size`, with the rounding of torchvision's center_crop."""
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        x, y = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
        across, down = box[0] + left * x, box[1] + top * y
        middle = (across, down, box[0] + (left + width) * x, box[1] + (top + height) * y)
        return image.resize((width, height), resample, middle)
    return image.resize(size, resample, box).crop((left, top, left + width, top + height))


def _pad(image: Image.Image, width: int, height: int, fill: int) -> Image.Image:
    """The picture in the middle of a canvas, the odd pixel of the border to the right and below."""
    canvas = Image.new("RGB", (width, height), (fill, fill, fill))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas
