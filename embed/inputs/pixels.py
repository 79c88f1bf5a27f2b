"""A decoded picture as a backbone wants it: RGB, resized, uint8."""

import numpy as np
from PIL import Image

from embed.arrays import UInt8s
from embed.inputs.errors import ImageError
from embed.spec import Preprocess

# A strip of 1 x 60,000 pixels, its short side resized to 224, would be 224 x 13,440,000: beyond this many pixels only
# the part that the crop keeps is resized, which differs by at most 2 of 255 levels.
MAX_RESIZED_PIXELS = 1 << 26

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


def preprocess(image: Image.Image, spec: Preprocess) -> UInt8s:
    """uint8 pixels (h, w, 3) of a picture, resized as `spec` says.

    Equal, to the bit, to open_clip's `image_transform` of an RGB picture before it normalises, its rounding
    included; where that fails (a side that rounds to 0) or would need memory without bound, the nearest picture.
    """
    image = to_rgb(image)
    height, width = spec.size
    resample = RESAMPLING[spec.interpolation]
    if spec.resize_mode == "squash":
        image = image.resize((width, height), resample)
    elif spec.resize_mode == "longest":
        ratio = max(image.height / height, image.width / width)
        size = max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
        image = _pad(image.resize(size, resample), width, height, spec.fill_color)
    elif width == height:
        short, long = sorted(image.size)
        new_long = int(width * long / short)
        size = (width, new_long) if image.width <= image.height else (new_long, width)
        image = _resize_and_crop(image, size, width, height, resample)
    else:
        ratio = min(image.height / height, image.width / width)
        size = round(image.width / ratio), round(image.height / ratio)
        # open_clip forgets to hand the interpolation on in this one case; whoever trained with it trained on bicubic.
        image = _resize_and_crop(image, size, width, height, Image.Resampling.BICUBIC)
    return np.array(image)


def _resize_and_crop(
    image: Image.Image, size: tuple[int, int], width: int, height: int, resample: Image.Resampling
) -> Image.Image:
    """The middle of the picture resized to `size`, with the rounding of torchvision's center_crop."""
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        x, y = image.width / size[0], image.height / size[1]
        return image.resize((width, height), resample, (left * x, top * y, (left + width) * x, (top + height) * y))
    return image.resize(size, resample).crop((left, top, left + width, top + height))


def _pad(image: Image.Image, width: int, height: int, fill: int) -> Image.Image:
    """The picture in the middle of a canvas, the odd pixel of the border to the right and below."""
    canvas = Image.new("RGB", (width, height), (fill, fill, fill))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas
