"""Only JPEGs of which every decoder sees the same are plain, and what they say is what Pillow reads in them."""

import io
from typing import Any

import pytest
from embed_image_files import encoded, picture
from PIL import Image

from embed.engines.plain import PlainJpeg, plain_jpeg
from embed.inputs.exif import orientation
from embed.inputs.images import Limits

DEFAULT = Limits()


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    return encoded(picture(70, 50).convert(mode), "JPEG", **options)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("options", [{}, {"quality": 100}, {"optimize": True}, {"restart_marker_blocks": 2}], ids=str)
def test_what_cameras_make_is_plain(subsampling: str, options: dict[str, Any]) -> None:
    assert plain_jpeg(jpeg(subsampling=subsampling, **options), DEFAULT) == PlainJpeg(70, 50, 1)


def test_greys_comments_colour_profiles_and_what_follows_the_picture_are_plain() -> None:
    for data in (jpeg("L"), jpeg(comment=b"hello"), jpeg(icc_profile=bytes(200_000)), jpeg() + b"\xff\xdatrailing"):
        assert plain_jpeg(data, DEFAULT) == PlainJpeg(70, 50, 1)


def test_the_way_up_is_that_which_pillow_reads() -> None:
    for turn in (1, 3, 6, 8, 9):
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = turn, "x" * 300
        xmp = b'<x tiff:Orientation="5"/>'
        for data in (jpeg(exif=exif), jpeg(exif=exif, xmp=xmp), jpeg(xmp=xmp)):
            found = plain_jpeg(data, DEFAULT)
            assert found is not None and found.orientation == orientation(Image.open(io.BytesIO(data)))


def test_other_kinds_of_jpegs_are_not_plain() -> None:
    rgb = jpeg(keep_rgb=True)
    assert Image.open(io.BytesIO(rgb)).mode == "RGB" and b"Adobe" in rgb
    for data in (jpeg("CMYK"), jpeg(progressive=True), rgb):
        assert plain_jpeg(data, DEFAULT) is None
    assert plain_jpeg(encoded(picture(70, 50), "PNG"), DEFAULT) is None


def test_what_the_marker_of_adobe_says_decides_and_one_scan_must_be_all() -> None:
    data = jpeg()
    for transform, plain in ((0, False), (1, True), (2, False)):
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(4) + bytes((transform,))
        assert (plain_jpeg(data[:2] + adobe + data[2:], DEFAULT) is not None) == plain
    assert data.endswith(b"\xff\xd9") and plain_jpeg(data[:-2] + b"\xff\xc4\x00\x02\xff\xd9", DEFAULT) is None


def test_what_is_cut_short_broken_or_too_large_is_not_plain() -> None:
    data = jpeg(restart_marker_blocks=2)
    assert all(plain_jpeg(data[:end], DEFAULT) is None for end in range(len(data)))
    for at in range(0, len(data), 3):  # whatever is read must not be the end of the job
        found = plain_jpeg(data[:at] + b"\xff" + data[at + 1 :], DEFAULT)
        assert found is None or found.width > 0
    assert plain_jpeg(data, Limits(max_bytes=len(data) - 1)) is None
    assert plain_jpeg(data, Limits(max_pixels=70 * 50 - 1)) is None
    assert plain_jpeg(data, Limits(len(data), 70 * 50)) is not None
    frame = data.index(b"\xff\xc0")
    assert plain_jpeg(data[: frame + 5] + bytes(2) + data[frame + 7 :], DEFAULT) is None, "a height of 0"
