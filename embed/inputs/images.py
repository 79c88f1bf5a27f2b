"""Bytes of a picture in, uint8 pixels for a backbone out: one pipeline for training, the parity check and the service.

A picture that cannot be used raises ImageError, whatever is wrong with it. What the pixels mean:

- the first frame, upright by its EXIF orientation (open_clip ignores that: `ignore_exif`);
- transparency on white; a palette, grey, CMYK or LAB becomes RGB; embedded colour profiles are ignored, as every
  CLIP pipeline does;
- 16-bit channels keep their high byte. Wider integers and floats have no range of their own: see `to_rgb`;
- resized exactly as open_clip's own transform does.

A file cut short is an error, never a half-grey picture. Pillow and numpy only; knows no model, no file and no network.
Nothing of Pillow's is changed, so threads may decode side by side; the one thing that is global is an entry in the
warning filters that keeps Pillow's warnings about metadata quiet.
"""

import io
import math
import re
import warnings
from typing import Literal

import numpy as np
from PIL import (  # importing a plugin registers its format
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from embed.arrays import UInt8s
from embed.config import Limits as Limits
from embed.spec import InputError, Preprocess

# What people post and what data sets hold. EPS runs Ghostscript, WMF asks the operating system, and the decoders of
# JPEG 2000, PSD, ICNS and the like are seldom tried. AVIF is left out as long as Pillow cannot bound its decoder: four
# kilobytes whose container says 100 x 100 may hold a frame of 16384 x 16384, which is decoded whole, then scaled down.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# Rare encodings (run-length BMP, textual PPM, PPM of an odd depth) whose decoders are written in Python: seconds per
# megapixel.
SLOW_DECODERS = ("bmp_rle", "ppm", "ppm_plain")

# What Pillow reads beside pixels becomes Python objects of up to fifty times its size. A photograph takes 50 reads, a
# PNG of 40 MB 2,000; metadata of a few megabytes exist.
MAX_READS = 1 << 16
MAX_HEADER_BYTES = 8 << 20
MAX_TIFF_VALUES = 1 << 18

# A JPEG may go over the whole picture again and again, a few bytes a time; 10 scans are usual where it is progressive.
START_OF_SCAN = b"\xff\xda"
MAX_SCANNED_PIXELS = 1 << 31

# A strip of 1 x 60,000 pixels, its short side resized to 224, would be 224 x 13,440,000: beyond this many pixels only
# the part that the crop keeps is resized, which differs by at most 2 of 255 levels.
MAX_RESIZED_PIXELS = 1 << 26

ORIENTATION = 0x0112
DIRECTORIES = (0x8769, 0x8825, 0xA005)  # tags that lead to more tags: EXIF, GPS, interoperability
BYTES_TYPES = (1, 2, 7)  # tags of these types stay bytes

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class ImageError(InputError):
    """A picture that cannot be used.

    `stage` is "read", "limits" or "decode", `reason` one of few phrases, fit for counting; the message says more.
    """

    def __init__(self, stage: str, reason: str, detail: str = "") -> None:
        super().__init__(stage, reason, detail)  # all of them, or it could not travel between processes
        self.stage = stage
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def load_image(data: bytes, limits: Limits = Limits(), ignore_exif: bool = False) -> Image.Image:
    """The decoded picture, RGB and upright; ImageError where `data` is none that can be used."""
    if not data:
        raise ImageError("read", "empty file")
    if len(data) > limits.max_bytes:
        raise ImageError("limits", "too many bytes", f"{len(data)}, at most {limits.max_bytes} allowed")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, by which pictures cut short would come out half grey;"
            " find what sets it, and set it back to False"
        )
    if warnings.filters[:1] != [_QUIET]:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
    try:
        image = _open(data)
        _check(image, data, limits)
        image.load()
        return to_rgb(image if ignore_exif else upright(image))
    except ImageError:
        raise
    except Exception as error:  # Pillow has no exception of its own for bad data: it may be any, MemoryError included
        raise _image_error(error) from error


def load_pixels(data: bytes, spec: Preprocess, limits: Limits = Limits()) -> tuple[UInt8s, tuple[int, int]]:
    """Pixels for the backbone, uint8 (h, w, 3), and the (width, height) of the upright picture; or ImageError."""
    image = load_image(data, limits, spec.ignore_exif)
    try:
        return preprocess(image, spec), image.size
    except MemoryError as error:
        raise _image_error(error) from error


class _Reader(io.BytesIO):
    """The file as Pillow sees it, which ends a file of endless tiny parts."""

    reads = 0

    def __init__(self, data: bytes, end: float) -> None:
        super().__init__(data)
        self.end = end

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS or self.tell() > self.end:
            raise ImageError("limits", "too much metadata", f"{self.reads} parts in {self.tell()} bytes")
        return super().read(size)


def _open(data: bytes) -> ImageFile.ImageFile:
    """The picture with its header read. Unlike Image.open this says what is wrong with a header it knows."""
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(data[:16]) is not True:
            continue
        if name == "TIFF":
            _check_tiff(data)
        in_order = name in ("JPEG", "PNG", "GIF")  # metadata first, then pixels
        reader = _Reader(data, MAX_HEADER_BYTES if in_order else math.inf)
        image = factory(reader, "")
        reader.end = math.inf
        return image
    raise ImageError("decode", "unknown format", f"begins with {data[:12]!r}; wanted one of {', '.join(FORMATS)}")


def _check(image: ImageFile.ImageFile, data: bytes, limits: Limits) -> None:
    """ImageError where decoding an opened picture would take more memory or time than its size should."""
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError("limits", "too many pixels", f"{width} x {height}, at most {limits.max_pixels} allowed")
    tags = getattr(image, "tag_v2", {})
    # A TIFF's tile is decoded whole, and may be larger than the picture it is part of.
    tile = int(tags.get(TiffImagePlugin.TILEWIDTH, 0)) * int(tags.get(TiffImagePlugin.TILELENGTH, 0))
    if tile > limits.max_pixels:
        raise ImageError("limits", "too many pixels", f"{tile} in a tile, at most {limits.max_pixels} allowed")
    if image.format in ("JPEG", "MPO") and (scans := data.count(START_OF_SCAN)) * width * height > MAX_SCANNED_PIXELS:
        raise ImageError("limits", "too many scans", f"{scans} of {width} x {height}")
    if image.tile and image.tile[0][0] in SLOW_DECODERS:
        raise ImageError("decode", "unsupported encoding", f"{image.format} by the decoder {image.tile[0][0]}")


def _check_tiff(data: bytes) -> None:
    """ImageError where Pillow would build a list of millions from a tag."""
    if 43 in data[2:4]:
        raise ImageError("decode", "unsupported encoding", "BigTIFF, which is for files above 4 GiB")
    directories = [_tags(data)]
    for tags in directories:
        if len(directories) < 8:
            directories += [_tags(data, tags[tag][2]) for tag in DIRECTORIES if tag in tags]
    entries = [entry for tags in directories for entry in tags.values()]
    # Pillow passes over a tag that claims more than the file has.
    values = sum(count for kind, count, _ in entries if kind not in BYTES_TYPES and count <= len(data))
    if values > MAX_TIFF_VALUES:
        raise ImageError("limits", "too much metadata", f"tags of {values} values, at most {MAX_TIFF_VALUES} allowed")


def _tags(data: bytes, offset: int | None = None) -> dict[int, tuple[int, int, int]]:
    """Type, number of values and first value of each tag in a directory of a TIFF or EXIF, the first by default."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    start = number(4, 4) if offset is None else offset
    tags = {}
    for at in range(start + 2, min(start + 2 + 12 * number(start, 2), len(data) - 11), 12):
        kind = number(at + 2, 2)
        tags[number(at, 2)] = (kind, number(at + 4, 4), number(at + 8, {1: 1, 3: 2}.get(kind, 4)))
    return tags


def _image_error(error: Exception) -> ImageError:
    """What Pillow's exception says, in one of our few reasons."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, Image.DecompressionBombError):
        return ImageError("limits", "too many pixels", text)
    if isinstance(error, MemoryError):
        return ImageError("decode", "out of memory", text)
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return ImageError("decode", "truncated", text)
    return ImageError("decode", "damaged", text)


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; itself where there is none. Pillow has turned TIFFs already."""
    exif = image.info.get("exif") or b""
    _, _, orientation = _tags(exif.removeprefix(b"Exif\0\0")).get(ORIENTATION, (3, 1, 1))
    return image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image


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
