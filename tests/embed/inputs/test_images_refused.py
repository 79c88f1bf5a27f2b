"""Files that would harm, and files that are none: refused at once, each with its reason."""

import json
import pickle
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from embed_image_files import REASONS, SQUARE, encoded, failure, picture, png, shared, tiff
from paths import ROOT
from PIL import Image, ImageFile, JpegImagePlugin, TiffImagePlugin, WebPImagePlugin

from embed.inputs import images
from embed.inputs.images import ImageError, Limits, load_image, load_pixels
from embed.spec import InputError


@cache
def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files that would be large, or slow, once decoded; each with the reason it is refused for."""
    zeros = zlib.compress(bytes(40 << 20))
    jpeg, gif = encoded(picture(16, 16), "JPEG"), encoded(picture(16, 16), "GIF")
    last_scan = encoded(picture(16, 16), "JPEG", progressive=True)
    scan = last_scan[last_scan.rindex(b"\xff\xda") : -2]
    frame = last_scan.index(b"\xff\xc2")
    large = last_scan[: frame + 5] + struct.pack(">HH", 8192, 8192) + last_scan[frame + 9 : -2]
    gif_frame = gif.index(b"\x2c\0\0\0\0")
    many = bytes(1 << 20)
    strip = {273: (4, 1, 8), 278: (4, 1, 8), 279: (4, 1, len(zeros))}
    return {
        "png claiming 60000 x 60000": (png((60000, 60000), [(b"IDAT", zeros)]), "too many pixels"),
        "png one row too many": (png((8192, 8193), [(b"IDAT", zeros)]), "too many pixels"),
        "gif canvas": (gif[:6] + b"\xff\xff\xff\xff" + gif[10:], "too many pixels"),
        "gif frame": (gif[: gif_frame + 5] + b"\xff\xff\xff\xff" + gif[gif_frame + 9 :], "too many pixels"),
        "gif comments": (gif[:gif_frame] + b"\x21\xfe\x01a\0" * 300_000 + gif[gif_frame:], "too much metadata"),
        "png iCCP": (png((4, 4), [(b"iCCP", b"a\0\0" + zeros), (b"IDAT", zeros)]), "damaged"),
        "png zTXt": (png((4, 4), [(b"zTXt", b"a\0\0" + zeros), (b"IDAT", zeros)]), "damaged"),
        "png chunks": (png((4, 4), [(b"prVt", b"")] * 100_000 + [(b"IDAT", zeros)]), "too much metadata"),
        "png tail": (
            png((4, 4), [(b"IDAT", zlib.compress(bytes(20)))] + [(b"prVt", b"")] * 99_999),
            "too much metadata",
        ),
        "jpeg segments": (jpeg[:2] + b"\xff\xe5\0\2" * 100_000 + jpeg[2:], "too much metadata"),
        "jpeg filling": (jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:], "too much metadata"),
        "jpeg metadata": (jpeg[:2] + (b"\xff\xe5\xff\xff" + bytes(65533)) * 200 + jpeg[2:], "too much metadata"),
        "jpeg scans": (large + scan * 100 + b"\xff\xd9", "too many scans"),
        "tiff strip": (tiff((60000, 60000), {**strip, 278: (4, 1, 60000)}, zeros), "too many pixels"),
        "tiff tile": (
            tiff((64, 64), {322: (4, 1, 30000), 323: (4, 1, 30000), 324: (4, 1, 8), 325: (4, 1, len(zeros))}, zeros),
            "too many pixels",
        ),
        "tiff tiles far larger than what they show of it": (
            tiff((4096, 16), {322: (4, 1, 16), 323: (4, 1, 1 << 21), 324: (4, 1, 8), 325: (4, 1, len(zeros))}, zeros),
            "too many pixels",
        ),
        "tiff offsets": (tiff((8, 8), {**strip, 273: (4, 1 << 18, 8)}, many), "too much metadata"),
        "tiff orientation": (tiff((8, 8), {**strip, 274: (3, 1 << 19, 8)}, many), "too much metadata"),
        "tiff exif": (
            # A second directory that lies in the data: its one tag has half a million values.
            tiff((8, 8), {**strip, 0x8769: (4, 1, 8)}, struct.pack("<HHHII", 1, 0x9000, 3, 1 << 19, 8) + many),
            "too much metadata",
        ),
        "bigtiff": (b"II\x2b\0\x08\0\0\0\x10\0\0\0\0\0\0\0", "unsupported encoding"),
        "webp canvas": (
            b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2 + b"VP8L\x0d\0\0\0\x2f",
            "too many pixels",
        ),
        "plain ppm": (b"P3 3000 3000 255 " + b"7 " * 1000, "unsupported encoding"),
        "bmp": (
            b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
            "too many pixels",
        ),
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_before_they_cost_anything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In little memory, after a bounded number of reads, and without decoding more than a few pixels."""
    data, reason = bombs()[name]
    readers: list[images._Reader] = []
    decoded: list[tuple[int, int]] = []

    class Reader(images._Reader):
        def __init__(self, data: bytes, end: float) -> None:
            super().__init__(data, end)
            readers.append(self)

    monkeypatch.setattr(images, "_Reader", Reader)
    for plugin in (ImageFile.ImageFile, TiffImagePlugin.TiffImageFile, WebPImagePlugin.WebPImageFile):

        def load(image: Any, load: Callable[[Any], Any] = plugin.load) -> Any:
            decoded.append(image.size)
            return load(image)

        monkeypatch.setattr(plugin, "load", load)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert failure(data).reason == reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert sum(reader.reads for reader in readers) <= images.MAX_READS + 1
    assert all(width * height <= 16 * 16 for width, height in decoded)


def test_what_looks_like_a_bomb_but_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = zlib.compress(bytes(range(64)))
    strip = {273: (4, 1, 8), 278: (4, 1, 8), 279: (4, 1, len(pixels))}
    assert load_image(tiff((8, 8), {**strip, 50000: (3, 1 << 30, 8)}, pixels)).size == (8, 8)  # more than it has
    monkeypatch.setattr(images, "MAX_HEADER_BYTES", 2000)
    large = encoded(picture(300, 300), "JPEG", quality=100)
    assert len(large) > 20_000 and load_image(large).size == (300, 300)  # large by its pixels


def test_limits_come_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(30, 20), "PNG")
    assert load_image(data, Limits(max_bytes=len(data), max_pixels=600)).size == (30, 20)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("was decoded"))
    too_large = failure(data, Limits(max_pixels=599))
    assert str(too_large) == "too many pixels: 30 x 20, at most 599 allowed"
    assert (too_large.stage, too_large.reason) == ("limits", "too many pixels")
    assert failure(data, Limits(max_bytes=len(data) - 1)).reason == "too many bytes"


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": 0}, {"max_pixels": 1 << 30}])
def test_limits_that_make_no_sense(limits: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(limits))):
        Limits(**limits)


@pytest.mark.parametrize("format", ["EPS", "PDF", "ICO", "TGA", "JPEG2000", "PCX", "SGI"])
def test_formats_outside_the_list_are_not_even_opened(format: str) -> None:
    error = failure(encoded(picture(16, 16), format))
    assert error.reason == "unknown format" and "JPEG, PNG" in str(error)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty file"), (b"<!DOCTYPE html><html>", "unknown format"), (b"\xff\xd8\xff\xe0\0", "damaged")],
)
def test_no_picture(data: bytes, reason: str) -> None:
    assert failure(data).reason == reason


@cache
def truncatable() -> dict[str, bytes]:
    rgb = picture(40, 48)
    kinds: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("jpeg", rgb, "JPEG", {}),
        ("jpeg-progressive", rgb, "JPEG", {"progressive": True}),
        ("png", rgb, "PNG", {}),
        ("apng", rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("gif", rgb, "GIF", {}),
        ("webp", rgb, "WEBP", {}),
        ("webp-lossless", rgb, "WEBP", {"lossless": True}),
        ("bmp", rgb, "BMP", {}),
        ("ppm", rgb, "PPM", {}),
        ("tiff", rgb, "TIFF", {}),
        ("tiff-lzw", rgb, "TIFF", {"compression": "tiff_lzw"}),
        ("tiff-jpeg", rgb, "TIFF", {"compression": "jpeg"}),
    ]
    return {name: encoded(image, format, **options) for name, image, format, options in kinds}


@pytest.mark.parametrize("name", truncatable())
def test_cut_short_is_an_error_or_the_whole_picture(name: str) -> None:
    data = truncatable()[name]
    whole = np.asarray(load_image(data))
    failures = 0
    for length in {*range(1, len(data), 37), *range(len(data) - 40, len(data))}:
        try:
            assert np.array_equal(load_image(data[:length]), whole), length  # only the end of the container is missing
        except ImageError:
            failures += 1
    assert failures > 20


def test_pillows_switch_for_truncated_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES") as caught:
        load_image(encoded(picture(8, 8), "JPEG"))
    assert not isinstance(caught.value, ImageError)  # no fault of the picture


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("image file is truncated (3 bytes not processed)"), "truncated"),
        (EOFError("no more images"), "truncated"),
        (MemoryError(), "out of memory"),
        (Image.DecompressionBombError("large"), "too many pixels"),
        *(
            (kind("bad"), "damaged")
            for kind in (OSError, SyntaxError, ValueError, struct.error, zlib.error, IndexError)
        ),
        *((kind("bad"), "damaged") for kind in (KeyError, TypeError, OverflowError, RecursionError, AssertionError)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_whatever_pillow_raises_is_an_image_error(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: Image.Image) -> None:
        raise error

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", load)
    caught = failure(encoded(picture(8, 8), "JPEG"))
    assert caught.reason == reason and caught.__cause__ is error


def test_no_memory_left_to_resize_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", resize)
    with pytest.raises(ImageError, match="out of memory"):
        load_pixels(encoded(Image.new("RGB", (8, 8)), "PNG"), SQUARE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_swallowed(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise error

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", load)
    with pytest.raises(error):
        load_image(encoded(picture(8, 8), "JPEG"))


def test_image_error_travels_between_processes() -> None:
    error = failure(b"no picture")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.stage, again.reason, str(again)) == (error.stage, error.reason, str(error))


def test_every_robustness_file_is_pixels_or_an_error_with_a_reason() -> None:
    decoded = 0
    for path in shared("robustness"):
        try:
            pixels, _ = load_pixels(path.read_bytes(), SQUARE)
            decoded += pixels.shape == (224, 224, 3)
        except ImageError as error:
            assert (error.stage, error.reason) in REASONS, path.name
    assert decoded >= 55


def test_200_mutated_pictures() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_images.py"), "--count", "200", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["bad"] == {}
    assert sum(report["outcomes"].values()) == 200 and report["outcomes"]["pixels"] > 20
    assert report["peak_mib"] - report["first_mib"] < 150
