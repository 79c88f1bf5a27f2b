"""JPEGs decoded and resized in tensors have Pillow's levels, whatever their sizes; here torchvision and nvImageCodec
decode on the CPU, by the same library as Pillow."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from embed_image_files import SPEC, SPECS, encoded, picture
from PIL import Image

from embed.engines import jpegs, nvjpeg
from embed.engines.jpegs import decode_jpegs
from embed.engines.nvjpeg import Library, installed_library
from embed.engines.plain import plain_jpeg
from embed.engines.resizing import resize
from embed.inputs.images import Limits, load_pixels
from embed.inputs.pixels import RESAMPLING, placement
from embed.spec import Preprocess

SIZES = [(70, 50), (41, 97), (32, 32), (9, 200), (20, 12), (301, 33), (1, 5)]


def width_first(image: Image.Image, spec: Preprocess) -> np.ndarray:
    """Pillow's own passes one after the other, on a canvas."""
    placed = placement(*image.size, spec)
    left, top, right, bottom = placed.box
    kind = RESAMPLING[placed.interpolation]
    resized = image.resize((placed.size[0], image.height), kind, (left, 0, right, image.height))
    resized = resized.resize(placed.size, kind, (0, top, placed.size[0], bottom))
    canvas = Image.new("RGB", spec.size[::-1], (placed.fill,) * 3)
    canvas.paste(resized, (-placed.left, -placed.top))
    return np.asarray(canvas)


def noise(width: int, height: int, seed: int) -> Image.Image:
    """In which no rounding can hide."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.resize_mode}-{spec.size[0]}")
def test_pictures_of_all_sizes_are_resized_together_as_pillow_does(spec: Preprocess) -> None:
    images = [noise(*size, seed) for seed, size in enumerate(SIZES)]
    ours = resize([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images], spec)
    for image, one in zip(images, ours.permute(0, 2, 3, 1).numpy(), strict=True):
        assert np.array_equal(one, width_first(image, spec)), image.size


def test_only_a_part_of_an_endless_strip_is_resized() -> None:
    strip = noise(1, 70_000, 0)
    assert placement(*strip.size, SPEC).size == (32, 32), "the rest would be gigabytes"
    ours = resize([torch.from_numpy(np.array(strip)).permute(2, 0, 1)], SPEC)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(ours, width_first(strip, SPEC))


def decoded(files: list[bytes], library: Library, spec: Preprocess = SPEC) -> tuple[np.ndarray, list[tuple[int, int]]]:
    found = [plain_jpeg(data, Limits()) for data in files]
    return decode_jpegs(files, [one for one in found if one is not None], spec, "cpu", library)


@pytest.fixture(params=get_args(Library))
def library(request: pytest.FixtureRequest) -> Library:
    """Each of the libraries, if it is installed."""
    found: Library = request.param
    if found == "nvimgcodec":
        pytest.importorskip("nvidia.nvimgcodec")
    return found


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def off(ours: np.ndarray, data: bytes, spec: Preprocess) -> int:
    """The largest difference of a level from those of every other part of the program."""
    return int(np.abs(ours.astype(int) - load_pixels(data, spec)[0]).max())


def test_what_is_decoded_is_what_pillow_decodes_and_as_upright(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[dict[str, Any]] = [{"subsampling": kind} for kind in ("4:4:4", "4:2:2", "4:2:0")]
    kinds += [{"exif": exif(orientation)} for orientation in range(10)]
    files = [encoded(picture(90 + i, 71 - i, i), "JPEG", quality=90, **kind) for i, kind in enumerate(kinds)]
    files.append(encoded(picture(60, 60).convert("L"), "JPEG"))
    for together in (jpegs.TOGETHER, 1 << 14):  # many groups too
        monkeypatch.setattr(jpegs, "TOGETHER", together)
        for spec in (SPEC, replace(SPEC, ignore_exif=True)):
            pixels, sizes = decoded(files, library, spec)
            assert [off(ours, data, spec) <= 1 for ours, data in zip(pixels, files, strict=True)] == [True] * len(files)
            assert sizes == [load_pixels(data, spec)[1] for data in files]


def test_what_the_device_cannot_decode_is_an_error(library: Library) -> None:
    good = encoded(picture(50, 40), "JPEG")
    found = plain_jpeg(good, Limits())
    assert found is not None
    with pytest.raises(RuntimeError):
        decode_jpegs([good[:100]], [found], SPEC, "cpu", library)
    with pytest.raises(RuntimeError, match=r"decoded to \(3, 40, 50\), but the file states 51 x 40"):
        decode_jpegs([good], [replace(found, width=51)], SPEC, "cpu", library)


def test_nvimagecodec_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg, "find_spec", lambda name: None if name == "nvidia" else object())
    assert installed_library() == "torchvision"
    monkeypatch.setattr(nvjpeg, "find_spec", lambda name: None if name == "nvidia.nvimgcodec" else object())
    assert installed_library() == "torchvision"
    monkeypatch.setattr(nvjpeg, "find_spec", lambda name: object())
    assert installed_library() == "nvimgcodec"
