"""Large JPEGs decoded at a fraction of their size look as they do exactly, and nothing else is decoded otherwise."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed_image_files import SPEC, SPECS, encoded, picture, shared
from paths import ROOT
from PIL import Image

from embed.inputs.decoding import Decoders, decode
from embed.inputs.decoding import Picture as Work
from embed.inputs.images import ImageError, Limits, load_image, load_pixels, load_scaled
from embed.inputs.pixels import preprocess
from embed.spec import Preprocess


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def off(data: bytes, spec: Preprocess, scale: int) -> float:
    """The mean difference of levels, once it is known that the picture was decoded smaller."""
    ours, size, scaled = load_scaled(data, spec, scale=scale)
    exact, whole = load_pixels(data, spec)
    assert scaled and size == whole
    return float(np.abs(ours.astype(int) - exact.astype(int)).mean())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.resize_mode}-{spec.size[0]}")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_pixel_is_where_it_is_exactly(spec: Preprocess, orientation: int) -> None:
    """Sides that are no multiples of 8: without the box of the whole picture it would be off by 1.7 to 8 levels."""
    for width, height in ((523, 393), (393, 523)):
        data = encoded(picture(width, height), "JPEG", quality=95, exif=exif(orientation))
        assert off(data, spec, 2) < 1.4
        assert off(data, spec, 4) < 0.8


def test_the_whole_pictures_sides_decide_where_it_is_cropped() -> None:
    """400 x 265 becomes 48 x 32, and the 100 x 67 that is decoded would become 47 x 32."""
    assert off(encoded(picture(400, 265), "JPEG", quality=95), SPEC, 2) < 1.4


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"quality": 40}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_kinds_of_jpegs(mode: str, options: dict[str, Any]) -> None:
    data = encoded(picture(640, 480).convert(mode), "JPEG", **options)
    assert off(data, SPEC, 2) < 1.5
    assert load_scaled(data, SPEC, scale=2)[0].shape == (32, 32, 3)


def test_a_phones_two_pictures_in_one_file() -> None:
    file = io.BytesIO()
    picture(640, 480).save(file, "MPO", save_all=True, append_images=[picture(640, 480, seed=1)])
    assert Image.open(file).format == "MPO"
    assert off(file.getvalue(), SPEC, 2) < 0.7


def test_the_stored_sides_count_where_exif_is_ignored() -> None:
    data = encoded(picture(523, 393), "JPEG", exif=exif(6))
    spec = replace(SPEC, ignore_exif=True)
    assert off(data, spec, 2) < 0.7
    assert load_scaled(data, spec, scale=2)[1] == (523, 393) != load_scaled(data, SPEC, scale=2)[1]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("scale, smallest", [(2, 128), (3, 192), (4, 256)])
def test_large_is_what_leaves_so_many_pixels_at_half_its_size(scale: int, smallest: int, orientation: int) -> None:
    """Anything smaller is the same to the bit."""
    for short, large in ((smallest, True), (smallest - 1, False)):
        data = encoded(picture(short + 51, short), "JPEG", exif=exif(orientation))
        pixels, size, scaled = load_scaled(data, SPEC, scale=scale)
        assert scaled is large
        assert large or np.array_equal(pixels, load_pixels(data, SPEC)[0])
        assert size == ((short, short + 51) if orientation == 6 else (short + 51, short))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_are_exact(format: str) -> None:
    data = encoded(picture(640, 480), format)
    pixels, _, scaled = load_scaled(data, SPEC, scale=2)
    assert not scaled and np.array_equal(pixels, load_pixels(data, SPEC)[0])


def test_what_is_refused_is_refused_at_any_scale() -> None:
    data = encoded(picture(640, 480), "JPEG")
    for bad, limits, reason in (
        (data[: len(data) * 2 // 3], Limits(), "truncated"),
        (data, Limits(max_pixels=640 * 480 - 1), "too many pixels"),
    ):
        with pytest.raises(ImageError) as caught:
            load_scaled(bad, SPEC, limits, scale=2)
        assert caught.value.reason == reason


def test_a_grey_is_resized_as_its_three_equal_channels_are() -> None:
    for size in ((640, 480), (30, 20), (33, 32), (500, 31)):
        data = encoded(picture(*size).convert("L"), "JPEG")
        image = load_image(data)
        assert image.mode == "RGB"
        for spec in SPECS:
            assert np.array_equal(load_pixels(data, spec)[0], preprocess(image, spec))


def test_workers_decode_at_the_scale_they_are_told() -> None:
    data = encoded(picture(640, 480), "JPEG")
    one = decode(Work("k", None, data), SPEC, Limits(), 2)
    assert one.scaled and (one.width, one.height) == (640, 480) and one.pixels is not None
    wanted = {None: load_pixels(data, SPEC)[0], 2: load_scaled(data, SPEC, scale=2)[0]}
    assert not np.array_equal(wanted[2], wanted[None]) and np.array_equal(one.pixels, wanted[2])
    decoders = Decoders(1, Limits(), 60.0)
    try:
        for scale, pixels in wanted.items():
            found = decoders.submit(data, SPEC, scale).result()
            assert isinstance(found, np.ndarray) and np.array_equal(found, pixels)
    finally:
        decoders.close()


def test_photographs() -> None:
    for path in shared("photos")[:10]:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        large = image.resize((4 * image.width + 3, 4 * image.height + 1), Image.Resampling.BICUBIC)
        assert off(encoded(large, "JPEG", quality=90), replace(SPEC, size=(224, 224)), 2) < 1.5


PEAKS = """
import re, sys
from pathlib import Path
from embed.inputs.images import load_scaled
from embed.spec import Preprocess
spec = Preprocess((224, 224), "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)
data, small = (Path(path).read_bytes() for path in sys.argv[1:])
for given, scale in ((small, None), (small, 2), (data, 2), (data, None)):
    load_scaled(given, spec, scale=scale)
    # Not getrusage, which counts what the process was before it became this program.
    print(int(re.search("VmHWM:\\\\s*(\\\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_large_picture_takes_little_memory_where_it_is_scaled(tmp_path: Path) -> None:
    for name, size in (("large.jpg", 8000), ("small.jpg", 300)):
        (tmp_path / name).write_bytes(encoded(Image.new("RGB", (size, size), "teal"), "JPEG"))
    command = [sys.executable, "-c", PEAKS, str(tmp_path / "large.jpg"), str(tmp_path / "small.jpg")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    _, before, scaled, exact = map(float, done.stdout.split())
    # Pillow keeps a picture of 64 megapixels in 256 MB.
    assert scaled - before < 32 and exact - scaled > 200
