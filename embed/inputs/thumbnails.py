"""Pictures made small, for a page or a sheet to show."""

import base64
import io
from collections.abc import Iterable
from contextlib import suppress

from PIL import Image, ImageDraw

from embed.config import Limits
from embed.inputs.fetch import read_bytes
from embed.inputs.images import load_image
from embed.spec import InputError

SIZE = 192  # pixels
GREY = (200, 200, 200)


def thumbnail(data: bytes, size: int = SIZE, limits: Limits = Limits()) -> Image.Image:
    """The picture in RGB, at most `size` pixels wide and high; raise ImageError if `data` is none that can be used."""
    return shrunk(load_image(data, limits), size)


def shrunk(image: Image.Image, size: int) -> Image.Image:
    """The same picture, at most `size` pixels wide and high."""
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return image


def thumbnail_at(addresses: Iterable[str], size: int = SIZE) -> Image.Image | None:
    """The first of the pictures at these addresses that can be used, made small; None if none can."""
    for address in addresses:
        with suppress(InputError, OSError):
            return thumbnail(read_bytes(address), size)
    return None


def grey_square() -> Image.Image:
    """What stands for a picture that cannot be shown, and says so."""
    image = Image.new("RGB", (SIZE, SIZE), GREY)
    ImageDraw.Draw(image).text((SIZE // 4, SIZE // 2), "could not be read", fill="black")
    return image


def webp(image: Image.Image) -> bytes:
    """The picture as a file, with nothing of the metadata that it came with."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """The picture as WebP inside a text, for the source of an <img>."""
    return f"data:image/webp;base64,{base64.b64encode(webp(image)).decode()}"
