"""Pictures as open_clip has them, bit for bit; upright, in RGB; and nothing changed around them."""

import io
import resource
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from embed_image_files import SQUARE, encoded, failure, picture, png, shared, tiff
from paths import ROOT
from PIL import Image, ImageOps

from embed.inputs.exif import upright
from embed.inputs.images import ImageError, load_image, load_pixels
from embed.inputs.pixels import preprocess, to_rgb
from embed.spec import Preprocess

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
                patch.setattr("embed.inputs.pixels.MAX_RESIZED_PIXELS", 0)
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
    assert str(error) == "damaged: pixels that are infinite or not a number"


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
    filters, threads = len(warnings.filters), threading.active_count()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, pictures * 10)) == alone * 10
    assert len(warnings.filters) == filters and threading.active_count() <= threads


def test_importing_changes_nothing_and_needs_no_torch() -> None:
    code = (
        "import sys, warnings, numpy; from PIL import Image, ImageFile\n"
        "state = lambda: (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)\n"
        "before = state(); import embed.inputs.images\n"
        "assert state() == before\n"
        "print({'torch', 'torchvision', 'open_clip', 'pyarrow', 'PIL.EpsImagePlugin'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
