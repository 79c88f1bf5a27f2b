import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin

from embed import images
from embed.images import ImageError, Limits, load_image, load_pixels, preprocess, to_rgb, upright
from embed.spec import InputError, Preprocess

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
DEFAULT = Limits()
SQUARE = Preprocess((224, 224), "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
REASONS = {
    ("read", "empty file"),
    ("limits", "too many bytes"),
    ("limits", "too many pixels"),
    ("limits", "too much metadata"),
    ("limits", "too many scans"),
    ("decode", "unknown format"),
    ("decode", "unsupported encoding"),
    ("decode", "truncated"),
    ("decode", "damaged"),
    ("decode", "out of memory"),
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours: like a photograph, every resampling shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(1, height // 7), max(1, width // 7), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def failure(data: bytes, limits: Limits = DEFAULT) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_image(data, limits)
    assert (caught.value.stage, caught.value.reason) in REASONS
    return caught.value


def shared(folder: str) -> list[Path]:
    if not (DATA / folder).is_dir():
        pytest.skip(f"needs the pictures of {DATA / folder}")
    return sorted(path for path in (DATA / folder).rglob("*") if path.is_file())


# Against open_clip's own transform


def open_clip_output(spec: Preprocess) -> Any:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = PreprocessCfg(
        size=spec.size,
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
        resize_mode=spec.resize_mode,
        fill_color=spec.fill_color,
    )
    return image_transform_v2(cfg, is_train=False)


def normalized(pixels: np.ndarray, spec: Preprocess) -> Any:
    """What a backbone makes of uint8 pixels: (c, h, w) float32."""
    import torch

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255).sub(mean).div(std)


SPECS = [
    Preprocess(size, mode, interpolation, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), fill_color=13)
    for mode in ("shortest", "longest", "squash")
    for interpolation in ("bicubic", "bilinear")
    for size in ((224, 224), (225, 225), (200, 336), (337, 201))
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.resize_mode}-{spec.interpolation}-{spec.size}")
def test_resizing_equals_open_clip_bit_for_bit(spec: Preprocess) -> None:
    import torch

    transform = open_clip_output(spec)
    sizes = [(1, 1), (1, 40), (40, 1), (3, 2), (333, 500), (500, 333), (224, 224), (225, 224), (223, 601), (640, 223)]
    for width, height in sizes:
        image = picture(width, height)
        pixels = preprocess(image, spec)
        assert pixels.shape == (*spec.size, 3) and pixels.dtype == np.uint8
        assert torch.equal(transform(image), normalized(pixels, spec)), (width, height)


@pytest.mark.parametrize("size", [(1, 500), (500, 1)])
def test_thread_of_a_picture(size: tuple[int, int]) -> None:
    import torch

    image = picture(*size)
    assert torch.equal(open_clip_output(SQUARE)(image), normalized(preprocess(image, SQUARE), SQUARE))
    longest = Preprocess((224, 224), "longest", "bicubic", SQUARE.mean, SQUARE.std, fill_color=9)
    with pytest.raises(ValueError, match="must be > 0"):  # open_clip's short side rounds to 0
        open_clip_output(longest)(image)
    pixels = preprocess(image, longest)
    lines = np.argwhere((pixels != 9).any(axis=(0, 2) if size[0] == 1 else (1, 2)))
    assert len(lines) == 1 and pixels.shape == (224, 224, 3)


@pytest.mark.parametrize("spec", [SQUARE, *SPECS[9:12:2]], ids=lambda spec: f"{spec.resize_mode}-{spec.size}")
def test_huge_picture_equals_open_clip(spec: Preprocess) -> None:
    import torch

    image = picture(6000, 4000)
    assert torch.equal(open_clip_output(spec)(image), normalized(preprocess(image, spec), spec))


def test_photographs_equal_open_clip() -> None:
    import torch

    transform = open_clip_output(SQUARE)
    photos = shared("photos")
    assert len(photos) > 100
    for path in photos:
        data = path.read_bytes()
        theirs = transform(Image.open(io.BytesIO(data)))
        pixels, _ = load_pixels(data, Preprocess(**{**vars(SQUARE), "ignore_exif": True}))
        assert torch.equal(theirs, normalized(pixels, SQUARE)), path.name


def test_grey_picture_equals_open_clip() -> None:
    import torch

    data = encoded(picture(300, 200).convert("L"), "JPEG")
    theirs = open_clip_output(SQUARE)(Image.open(io.BytesIO(data)))
    assert torch.equal(theirs, normalized(load_pixels(data, SQUARE)[0], SQUARE))


def test_strip_without_bound_is_resized_only_where_the_crop_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ((224, 224), (100, 336), (336, 100)):
        spec = Preprocess(size, "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)
        for width, height in ((700, 30), (30, 700), (37, 900), (1000, 1001)):
            image = picture(width, height)
            with monkeypatch.context() as patch:
                plain = preprocess(image, spec).astype(int)
                patch.setattr(images, "MAX_RESIZED_PIXELS", 0)
                difference = np.abs(preprocess(image, spec) - plain)
                # Pillow may take the two directions in another order, and rounds in between.
                assert difference.max() <= 2 and difference.mean() < 0.2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_pixels(encoded(picture(60_000, 1), "PNG"), SQUARE)[0].shape == (224, 224, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB; the whole would take 12 GB


def test_pixels_may_be_written_to() -> None:
    pixels = preprocess(picture(20, 30), SQUARE)
    pixels[0, 0] = 7
    assert pixels.flags.c_contiguous and pixels[0, 0, 0] == 7


def test_load_pixels_tells_the_size_of_the_upright_picture() -> None:
    data = encoded(picture(40, 30), "JPEG", exif=exif_with(6))
    assert load_pixels(data, SQUARE)[1] == (30, 40)
    assert load_pixels(data, Preprocess(**{**vars(SQUARE), "ignore_exif": True}))[1] == (40, 30)


# Orientation


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_as_pillow_transposes_it(format: str, orientation: int) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(picture(31, 17), format, exif=exif_with(orientation), **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(load_image(data), expected)
    if format != "TIFF":  # which Pillow itself turns while it decodes
        assert load_image(data, ignore_exif=True).size == (31, 17)


@pytest.mark.parametrize(
    "exif",
    [
        b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
        b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
        b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x06\0\0\0\0",
    ],
    ids=["big-endian", "little-endian", "long"],
)
def test_orientation_in_either_byte_order(exif: bytes) -> None:
    image = picture(3, 2)
    image.info["exif"] = exif
    assert np.array_equal(upright(image), image.transpose(Image.Transpose.ROTATE_270))


def test_broken_exif_does_not_cost_the_picture() -> None:
    whole = exif_with(6).tobytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(whole[: rng.integers(len(whole) + 1)])
        for place in rng.integers(0, max(1, len(broken)), 3):
            broken[place : place + 1] = bytes(rng.integers(0, 256, 1, dtype=np.uint8))
        image = picture(3, 2)
        image.info["exif"] = bytes(broken)
        assert sorted(upright(image).size) == [2, 3]


def test_the_orientation_photographs_come_out_upright() -> None:
    photos = [path for path in shared("robustness/exif") if path.suffix == ".jpg"]
    assert len(photos) == 9
    thumbnails = []
    for path in photos:
        image = load_image(path.read_bytes())
        assert image.size == (1800, 1200)
        thumbnails.append(np.asarray(image.resize((30, 20)), float))
    assert max(np.abs(thumbnail - thumbnails[0]).mean() for thumbnail in thumbnails) < 3


# Modes


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def test_transparency_lies_on_white() -> None:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    expected = on_white(rgba[..., :3], rgba[..., 3])
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        got = load_image(encoded(Image.fromarray(rgba), format, **options))
        assert got.mode == "RGB" and np.abs(np.asarray(got) - expected).max() <= 1, format
    grey = np.asarray(load_image(encoded(Image.fromarray(rgba[..., :2], "LA"), "PNG")))
    assert np.abs(grey - on_white(np.repeat(rgba[..., :1], 3, axis=2), rgba[..., 1])).max() <= 1


def test_transparent_palette_and_colour_keys_lie_on_white() -> None:
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
    palette = np.array([[200, 10, 10], [10, 200, 10], [10, 10, 200], [90, 90, 90]], np.uint8)
    paletted = Image.fromarray(indices, "P")
    paletted.putpalette(palette.tobytes())
    expected = palette[indices]
    assert np.array_equal(load_image(encoded(paletted, "PNG")), expected)
    for alphas, data in (
        ([255, 0, 255, 255], encoded(paletted, "GIF", transparency=1)),
        ([255, 0, 255, 255], encoded(paletted, "PNG", transparency=1)),
        ([0, 50, 100, 255], encoded(paletted, "PNG", transparency=bytes([0, 50, 100, 255]))),
    ):
        got = np.asarray(load_image(data), float)
        assert np.abs(got - on_white(expected, np.array(alphas)[indices])).max() <= 1
    keyed = np.asarray(load_image(encoded(Image.fromarray(palette[indices]), "PNG", transparency=(200, 10, 10))))
    assert (keyed[indices == 0] == 255).all() and np.array_equal(keyed[indices != 0], expected[indices != 0])
    grey = np.asarray(load_image(encoded(Image.fromarray(indices * 20), "PNG", transparency=20)))[..., 0]
    assert np.array_equal(grey, np.where(indices == 1, 255, indices * 20))


def test_16_bit_keeps_the_high_byte_in_grey_as_in_colour() -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (16, 16), dtype=np.uint16)
    for format in ("PNG", "TIFF", "PPM"):
        got = np.asarray(load_image(encoded(Image.fromarray(wide), format)))
        assert np.array_equal(got, np.repeat(wide[..., None] >> 8, 3, axis=2)), format
    keyed = np.asarray(load_image(encoded(Image.fromarray(wide), "PNG", transparency=int(wide[3, 4]))))
    assert (keyed[3, 4] == 255).all() and keyed[0, 0, 0] == wide[0, 0] >> 8
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, axis=1).astype(">u2").tobytes() for row in wide)
    colour = png((16, 16), [(b"IDAT", zlib.compress(rows))], depth=16, kind=2)
    assert np.array_equal(load_image(colour), np.repeat(wide[..., None] >> 8, 3, axis=2))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 256, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 2**29, 2**30]], np.int32), [0, 128, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 0.25, 0.5]], np.float32), [0, 64, 128]),
        (np.array([[0, 77, 255]], np.float32), [0, 77, 255]),
        (np.array([[-3e38, 0, 3e38]], np.float32), [0, 128, 255]),
        (np.array([[1e5, 1e5, 1e5]], np.float32), [0, 0, 0]),
    ],
)
def test_wide_pixels_in_8_bits(values: np.ndarray, expected: list[int]) -> None:
    got = np.asarray(load_image(encoded(Image.fromarray(values), "TIFF")))
    assert np.array_equal(got[0, :, 0], expected) and got.shape == (1, 3, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_an_error(bad: float) -> None:
    error = failure(encoded(Image.fromarray(np.array([[0, bad]], np.float32)), "TIFF"))
    assert str(error) == "damaged: pixels that are infinite or no numbers"


def test_cmyk_bilevel_lab_and_first_frames() -> None:
    rgb = picture(24, 16)
    cmyk = encoded(rgb.convert("CMYK"), "JPEG", quality=100)
    assert np.array_equal(load_image(cmyk), Image.open(io.BytesIO(cmyk)).convert("RGB"))
    assert np.abs(np.asarray(load_image(cmyk), int) - np.asarray(rgb, int)).mean() < 8
    bilevel = rgb.convert("1")
    assert np.array_equal(np.asarray(load_image(encoded(bilevel, "TIFF")))[..., 0], np.asarray(bilevel) * 255)
    lab = Image.new("LAB", (4, 4), (255, 128, 128))  # white
    assert np.asarray(load_image(encoded(lab, "TIFF"))).min() > 250
    other = ImageOps.invert(rgb)
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        animated = encoded(rgb, format, save_all=True, append_images=[other], **options)
        assert np.array_equal(load_image(animated), rgb), format
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    assert np.array_equal(load_image(encoded(red, "GIF", save_all=True, append_images=[blue])), red)


def test_rgb_is_not_copied() -> None:
    image = picture(4, 4)
    assert to_rgb(image) is image and upright(image) is image


# What is refused


def png(size: tuple[int, int], chunks: list[tuple[bytes, bytes]], depth: int = 8, kind: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [(b"IHDR", header), *chunks, (b"IEND", b"")]
    )


def tiff(size: tuple[int, int], tags: dict[int, tuple[int, int, int]], data: bytes) -> bytes:
    """An 8-bit grey TIFF: `data` from byte 8 on, then its directory of tag: (type, count, value)."""
    base = {256: (4, 1, size[0]), 257: (4, 1, size[1]), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    entries = sorted({**base, **tags}.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries))
    return head + b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in entries) + bytes(4)


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
def test_bombs_are_refused_at_once(name: str) -> None:
    data, reason = bombs()[name]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert failure(data).reason == reason
    assert time.perf_counter() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


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


# Warnings, threads, imports


def warning_tiff() -> bytes:
    """A sound TIFF at which Pillow warns: its orientation has two values."""
    pixels = zlib.compress(bytes(range(64)))
    return tiff((8, 8), {273: (4, 1, 8), 274: (3, 2, 1), 278: (4, 1, 8), 279: (4, 1, len(pixels))}, pixels)


def test_pillows_warnings_neither_show_nor_fail() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="too many entries"):
            Image.open(io.BytesIO(warning_tiff())).load()
        assert load_image(warning_tiff()).size == (8, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_image(warning_tiff()).size == (8, 8)
        warnings.warn("of others", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["of others"]


def test_threads_decode_side_by_side() -> None:
    pictures = [encoded(picture(60 + i, 50, seed=i), "JPEG") for i in range(16)] + [warning_tiff(), b"no picture"]

    def outcome(data: bytes) -> bytes | str:
        try:
            return load_pixels(data, SQUARE)[0].tobytes()
        except ImageError as error:
            return str(error)

    alone = [outcome(data) for data in pictures]
    filters = len(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, pictures * 10)) == alone * 10
    assert len(warnings.filters) == filters and threading.active_count() < 8


def test_importing_changes_nothing_and_needs_no_torch() -> None:
    code = (
        "import sys, warnings, numpy; from PIL import Image, ImageFile\n"
        "state = lambda: (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)\n"
        "before = state(); import embed.images\n"
        "assert state() == before\n"
        "print({'torch', 'torchvision', 'open_clip', 'pyarrow', 'PIL.EpsImagePlugin'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


# Hostile files


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
