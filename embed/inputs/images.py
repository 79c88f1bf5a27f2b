"""Turn bytes of a picture into uint8 pixels for a backbone. Training, the parity check and the service all use this.

A picture that cannot be used raises ImageError, whatever is wrong with it. The pixels are:

- the first frame, upright by the orientation in its metadata (open_clip ignores that: `ignore_exif`);
- transparency on white; a palette, grey, CMYK or LAB becomes RGB; embedded colour profiles are ignored, as every
  CLIP pipeline does;
- reduced from 16-bit channels by keeping the high byte; wider integers and floats are stretched, see `to_rgb`;
- resized exactly as by open_clip's own transform.

A file that is cut short is an error and never gives a half-grey picture. AVIF is decoded only in a process with limited
memory: in the workers of a job or the service, or else in processes started for it. The module needs only Pillow and
numpy, and does not know models, files or networks. It changes nothing in Pillow, so threads may decode in parallel; its
only global effect is an entry in the warning filters that hides Pillow's warnings about metadata.
"""

import atexit
import io
import math
import os
import re
import struct
import warnings
from collections.abc import Callable
from functools import cache, partial

from PIL import (  # importing a plugin registers its format
    AvifImagePlugin,
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
from embed.inputs.errors import BLAMED
from embed.inputs.errors import ImageError as ImageError
from embed.inputs.exif import BYTES_TYPES, DIRECTORIES, tags, upright
from embed.inputs.pixels import Whole, preprocess, to_rgb
from embed.inputs.scaled import shrink
from embed.process.bounds import CAN_BOUND, is_bounded
from embed.process.workers import Answers, WorkerPool
from embed.spec import InputError, Preprocess

# Formats that people post and that data sets contain. EPS runs Ghostscript, WMF needs the operating system, and the
# decoders of JPEG 2000, PSD, ICNS and similar formats are rarely tested.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

# What decoding may take: the file twice, every pixel in several layouts, and what libraries need to work. For AVIF this
# is the only limit: four kilobytes whose container states 100 x 100 may hold a frame of 16384 x 16384, which is decoded
# in full and then scaled down.
BYTES_A_PIXEL = 16
SPARE_BYTES = 256 << 20
STALL_S = 120.0  # no picture within the limits takes this long, so a process that does is stuck

# Rare encodings (run-length BMP, textual PPM, PPM of an odd depth) whose decoders are written in Python: they take
# seconds per megapixel.
SLOW_DECODERS = ("bmp_rle", "ppm", "ppm_plain")

# Metadata becomes Python objects of up to fifty times its size. A photograph takes 50 reads and a PNG of 40 MB 2,000;
# metadata of a few megabytes exists.
MAX_READS = 1 << 16
MAX_HEADER_BYTES = 8 << 20
MAX_TIFF_VALUES = 1 << 18
MAX_AVIF_HEADER = 1 << 16

# A JPEG may refine the whole picture again and again, a few bytes at a time. 10 scans are usual if it is progressive.
START_OF_SCAN = b"\xff\xda"
MAX_SCANNED_PIXELS = 1 << 31

_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def growth_bytes(limits: Limits) -> int:
    """Return how many bytes decoding one picture may add to the address space of a process."""
    return SPARE_BYTES + 2 * limits.max_bytes + BYTES_A_PIXEL * limits.max_pixels


def load_image(data: bytes, limits: Limits = Limits(), ignore_exif: bool = False) -> Image.Image:
    """Decode a picture to RGB and turn it upright. Raise ImageError if `data` cannot be used."""
    return _load(data, limits, ignore_exif, lambda image: None, to_rgb)[0]


def _load(
    data: bytes,
    limits: Limits,
    ignore_exif: bool,
    before: Callable[[ImageFile.ImageFile], Whole | None],
    after: Callable[[Image.Image], Image.Image],
) -> tuple[Image.Image, Whole | None]:
    """Return the result of `after` on the decoded, upright picture, and of `before` on the opened one."""
    if not data:
        raise ImageError("read", "empty file")
    if len(data) > limits.max_bytes:
        raise ImageError("limits", "too many bytes", f"{len(data)}, at most {limits.max_bytes} allowed")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so pictures that are cut short would be half grey;"
            " find the code that sets it, and set it back to False"
        )
    if warnings.filters[:1] != [_QUIET]:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
    if _accepts("AVIF", data) and not is_bounded():
        return after(_load_apart(data, limits, ignore_exif)), None
    try:
        image = _open(data, limits)
        _check(image, data, limits)
        whole = before(image)
        image.load()
        turned = image if ignore_exif else upright(image)
        del image  # frees what its decoder holds, if the picture was turned
        return after(turned), whole
    except ImageError:
        raise
    except Exception as error:  # Pillow has no exception for bad data: it raises any, including MemoryError
        raise _image_error(error) from error


def load_pixels(data: bytes, spec: Preprocess, limits: Limits = Limits()) -> tuple[UInt8s, tuple[int, int]]:
    """Return pixels uint8 (h, w, 3) for the backbone, and (width, height) of the upright picture. Raise ImageError."""
    return load_scaled(data, spec, limits)[:2]


def load_scaled(
    data: bytes, spec: Preprocess, limits: Limits = Limits(), scale: int | None = None
) -> tuple[UInt8s, tuple[int, int], bool]:
    """Do the same as `load_pixels`, and also return whether the picture was decoded smaller than it is.

    That happens to large JPEGs if `scale` is given (see embed.inputs.scaled).
    """

    def before(image: ImageFile.ImageFile) -> Whole | None:
        return shrink(image, spec, scale) if scale else None

    def after(image: Image.Image) -> Image.Image:
        return image if image.mode == "L" else to_rgb(image)  # grey is resized before it gets three channels

    image, whole = _load(data, limits, spec.ignore_exif, before, after)
    try:
        return preprocess(image, spec, whole), whole.size if whole else image.size, whole is not None
    except MemoryError as error:
        raise _image_error(error) from error


def _load_apart(data: bytes, limits: Limits, ignore_exif: bool) -> Image.Image:
    """Do the same as `load_image` in a process whose memory is limited."""
    if not CAN_BOUND:
        detail = "AVIF is only decoded where the memory of a process can be limited, that is on Linux; convert it"
        raise ImageError("decode", "unsupported encoding", detail)

    def collect(answers: Answers, _: memoryview) -> Image.Image:
        found = ImageError("decode", BLAMED) if answers[0] is None else _loaded(answers[0])
        if isinstance(found, ImageError):
            raise found
        return found

    pool = _decoders(os.getpid(), limits)
    return pool.submit([(data, ignore_exif)], collect, 9 + max(1 << 20, 3 * limits.max_pixels), _loaded).result()


@cache
def _decoders(process: int, limits: Limits) -> "WorkerPool[tuple[bytes, bool]]":
    """Return the processes that decode for the process with this id. They start when there is work.

    The id makes a forked process start its own.
    """
    handle = partial(_load_here, limits=limits)
    pool = WorkerPool(handle, os.cpu_count() or 1, STALL_S, growth_bytes=growth_bytes(limits), reach="bytes")
    atexit.register(lambda: pool.close() if os.getpid() == process else None)
    return pool


def _load_here(item: tuple[bytes, bool], _: memoryview, limits: Limits) -> bytes:
    data, ignore_exif = item
    try:
        image = load_image(data, limits, ignore_exif)
        return b"=" + struct.pack("=2l", *image.size) + image.tobytes()
    except ImageError as error:
        return error.to_json()
    except MemoryError as error:
        return _image_error(error).to_json()


def _loaded(answer: bytes) -> Image.Image | ImageError:
    """Read the answer of `_load_here`. Raise ValueError if it is neither a picture nor an error of one."""
    if answer[:1] == b"{":
        return ImageError.from_json(answer)
    size = struct.unpack_from("=2l", answer, 1) if len(answer) > 9 else (0, 0)
    if min(size) < 1 or 9 + 3 * math.prod(size) != len(answer):
        raise ValueError(f"a picture of {size} in {len(answer)} bytes")
    return Image.frombytes("RGB", size, answer[9:])


class _Reader(io.BytesIO):
    """The file as Pillow sees it. It stops reading files that consist of endless tiny parts."""

    reads = 0

    def __init__(self, data: bytes, end: float) -> None:
        super().__init__(data)
        self.end = end

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS or self.tell() > self.end:
            raise ImageError("limits", "too much metadata", f"{self.reads} parts in {self.tell()} bytes")
        return super().read(size)


def _accepts(name: str, data: bytes) -> bool | str:
    """Whether Pillow takes the file for that format, or a text that says what it lacks to read the format."""
    accept = Image.OPEN[name][1]
    return accept is not None and accept(data[:16])


def _open(data: bytes, limits: Limits) -> ImageFile.ImageFile:
    """Open the picture and read its header. Unlike Image.open, this says what is wrong with a header that it knows."""
    for name in FORMATS:
        accepted = _accepts(name, data)
        if isinstance(accepted, str):
            raise ImageError("decode", "unsupported encoding", accepted)
        if not accepted:
            continue
        if name == "TIFF":
            _check_tiff(data)
        if name == "AVIF":
            _check_avif(data, limits)
            AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the process is our own, and threads would take address space
        in_order = name in ("JPEG", "PNG", "GIF")  # metadata first, then pixels
        reader = _Reader(data, MAX_HEADER_BYTES if in_order else math.inf)
        image = Image.OPEN[name][0](reader, "")
        reader.end = math.inf
        return image
    raise ImageError("decode", "unknown format", f"begins with {data[:12]!r}; wanted one of {', '.join(FORMATS)}")


def _check(image: ImageFile.ImageFile, data: bytes, limits: Limits) -> None:
    """Raise ImageError if decoding an opened picture would need more memory or time than its size allows."""
    width, height = image.size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(width, height, limits)
    known = getattr(image, "tag_v2", {})
    # The tiles of a TIFF are decoded completely and may be larger than the picture that they belong to.
    across, down = (int(known.get(tag, 0)) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
    if across > 0 and down > 0:
        decoded = -(-width // across) * across * -(-height // down) * down
        if across * down > limits.max_pixels or decoded > 4 * max(width * height, 1 << 20):
            raise ImageError("limits", "too many pixels", f"{decoded} in the tiles of {width} x {height} pixels")
    if image.format in ("JPEG", "MPO") and (scans := data.count(START_OF_SCAN)) * width * height > MAX_SCANNED_PIXELS:
        raise ImageError("limits", "too many scans", f"{scans} of {width} x {height}")
    if image.tile and image.tile[0][0] in SLOW_DECODERS:
        raise ImageError("decode", "unsupported encoding", f"{image.format} by the decoder {image.tile[0][0]}")


def _check_tiff(data: bytes) -> None:
    """Raise ImageError if a tag would make Pillow build a list of millions of values."""
    if 43 in data[2:4]:
        raise ImageError("decode", "unsupported encoding", "BigTIFF, which is for files above 4 GiB")
    directories = [tags(data)]
    for found in directories:
        if len(directories) < 8:
            directories += [tags(data, found[tag][2]) for tag in DIRECTORIES if tag in found]
    entries = [entry for found in directories for entry in found.values()]
    # Pillow skips a tag that claims more than the file holds.
    values = sum(count for kind, count, _ in entries if kind not in BYTES_TYPES and count <= len(data))
    if values > MAX_TIFF_VALUES:
        raise ImageError("limits", "too much metadata", f"tags of {values} values, at most {MAX_TIFF_VALUES} allowed")


def _check_avif(data: bytes, limits: Limits) -> None:
    """Raise ImageError if a box of the header states too many pixels, which libavif would call damaged."""
    for found in re.finditer(rb"ispe\0{4}(.{8})", data[:MAX_AVIF_HEADER], re.DOTALL):
        width, height = struct.unpack(">2I", found[1])
        if width * height > limits.max_pixels:
            raise _too_many_pixels(width, height, limits)


def _too_many_pixels(width: int, height: int, limits: Limits) -> ImageError:
    return ImageError("limits", "too many pixels", f"{width} x {height}, at most {limits.max_pixels} allowed")


def _image_error(error: Exception) -> ImageError:
    """Turn an exception of Pillow into an ImageError with one of our few reasons."""
    text = f"{type(error).__name__}: {error}"
    if "planes failed" in text:  # the AVIF decoder does not say that it lacks memory
        text += "; damaged, or a frame so large that decoding it takes too much memory"
    if isinstance(error, Image.DecompressionBombError):
        return ImageError("limits", "too many pixels", text)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return ImageError("decode", "out of memory", text)
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return ImageError("decode", "truncated", text)
    return ImageError("decode", "damaged", text)
