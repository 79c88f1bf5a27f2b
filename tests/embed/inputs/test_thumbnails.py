"""Small pictures, with the colours and the shape of the large ones."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from embed_image_files import encoded
from PIL import Image

from embed.inputs.images import ImageError
from embed.inputs.thumbnails import GREY, SIZE, data_uri, grey_square, thumbnail, thumbnail_at


def halves(size: tuple[int, int]) -> Image.Image:
    """Red to the left, blue to the right."""
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize("size, expected", [((768, 384), (192, 96)), ((60, 300), (38, 192)), ((20, 10), (20, 10))])
def test_a_thumbnail_is_the_picture_in_small(size: tuple[int, int], expected: tuple[int, int]) -> None:
    small = thumbnail(encoded(halves(size), "PNG"))
    assert (small.mode, small.size) == ("RGB", expected)
    with Image.open(io.BytesIO(base64.b64decode(data_uri(small).removeprefix("data:image/webp;base64,")))) as shown:
        assert (shown.format, shown.size) == ("WEBP", expected)
        pixels = np.asarray(shown.convert("RGB"), int)
    for side, colour in ((pixels[:, : expected[0] // 4], (255, 0, 0)), (pixels[:, -expected[0] // 4 :], (0, 0, 255))):
        assert np.abs(side.mean((0, 1)) - colour).max() < 10


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(halves((64, 64)), "PNG")[:-60]])
def test_what_cannot_be_used_is_no_thumbnail(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        thumbnail(data)
    (tmp_path / "bad.png").write_bytes(data)
    (tmp_path / "good.png").write_bytes(encoded(halves((64, 64)), "PNG"))
    bad, good, gone = (str(tmp_path / f"{name}.png") for name in ("bad", "good", "gone"))
    assert thumbnail_at([bad, gone]) is None
    assert thumbnail_at([gone, bad, good]) == thumbnail(encoded(halves((64, 64)), "PNG"))


def test_the_square_in_its_place_is_grey_and_says_so() -> None:
    square = np.asarray(grey_square())
    assert square.shape == (SIZE, SIZE, 3) and (square[0] == GREY).all()
    assert 50 < (square < 150).all(axis=2).sum() < 2000, "letters"
