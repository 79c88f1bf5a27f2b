"""Pictures come out upright, whatever carries their orientation."""

import io
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from embed_image_files import SQUARE, encoded, picture, png, shared
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from embed.inputs.exif import upright
from embed.inputs.images import load_image, load_pixels
from embed.spec import Preprocess

WITH_EXIF = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
WITH_XMP = ("JPEG", "PNG", "WEBP", "TIFF")


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def as_text(kind: bytes, pack: Callable[[bytes], bytes], orientation: int) -> bytes:
    """A PNG with EXIF in a text chunk, as ImageMagick writes it."""
    exif = exif_with(orientation).tobytes()
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    chunk = (kind, b"Raw profile type exif\0" + pack(text))
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(picture(31, 17))))
    return png((31, 17), [chunk, (b"IDAT", pixels)], kind=2)


def with_xmp(format: str, said: str, **options: Any) -> bytes:
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><{said}</x:xmpmeta>'
    if format == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        return encoded(picture(31, 17), format, pnginfo=info)
    if format == "TIFF":
        return encoded(picture(31, 17), format, tiffinfo={700: xmp.encode(), **options.get("tags", {})})
    return encoded(picture(31, 17), format, xmp=xmp.encode(), **options)


CARRIERS: dict[str, Callable[[int], bytes]] = {
    **{name: lambda n, name=name: encoded(picture(31, 17), name, exif=exif_with(n)) for name in WITH_EXIF},
    "PNG text": partial(as_text, b"tEXt", lambda text: text),
    "PNG compressed text": partial(as_text, b"zTXt", lambda text: b"\0" + zlib.compress(text)),
    **{
        f"{name} {way}": lambda n, name=name, said=said: with_xmp(name, said.format(n))
        for name in WITH_XMP
        for way, said in (
            ("XMP attribute", 'x:d tiff:Orientation="{}"/>'),
            ("XMP element", "tiff:Orientation>{}</tiff:Orientation>"),
        )
    },
    "JPEG EXIF before XMP": lambda n: with_xmp("JPEG", 'x:d tiff:Orientation="3"/>', exif=exif_with(n)),
    "TIFF EXIF before XMP": lambda n: with_xmp("TIFF", 'x:d tiff:Orientation="3"/>', tags={274: n}),
    "JPEG XMP without EXIF's": lambda n: with_xmp("JPEG", f'x:d tiff:Orientation="{n}"/>', exif=Image.Exif()),
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_orientation_as_pillow_transposes_it(carrier: str) -> None:
    turned = 0
    for orientation in range(10):
        data = CARRIERS[carrier](orientation)
        stored = Image.open(io.BytesIO(data))
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
        assert np.array_equal(load_image(data), expected), orientation
        turned += expected.shape == (31, 17, 3)
        if not carrier.startswith("TIFF"):  # which Pillow itself turns while it decodes
            assert np.array_equal(load_image(data, ignore_exif=True), stored.convert("RGB"))
    assert turned == 4  # the orientations 5 to 8, so that the carrier was read at all


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


def test_load_pixels_tells_the_size_of_the_upright_picture() -> None:
    data = encoded(picture(40, 30), "JPEG", exif=exif_with(6))
    assert load_pixels(data, SQUARE)[1] == (30, 40)
    assert load_pixels(data, Preprocess(**{**vars(SQUARE), "ignore_exif": True}))[1] == (40, 30)
