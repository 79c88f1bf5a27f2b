"""Make pictures small, to show them on a page or a sheet."""

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
    """Return the picture in RGB, at most `size` pixels wide and high. Raise ImageError if it cannot be used."""
    return shrunk(load_image(data, limits), size)


def shrunk(image: Image.Image, size: int) -> Image.Image:
    """Shrink the picture in place to at most `size` pixels a side, and return it."""
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return image


def thumbnail_at(addresses: Iterable[str], size: int = SIZE) -> Image.Image | None:
    """Return a thumbnail of the first picture at these addresses that can be read, or None if none can."""
    for address in addresses:
        with suppress(InputError, OSError):
            return thumbnail(read_bytes(address), size)
    return None


def grey_square() -> Image.Image:
    """Return a grey picture with a text that says that the real one could not be read."""
    image = Image.new("RGB", (SIZE, SIZE), GREY)
    ImageDraw.Draw(image).text((SIZE // 4, SIZE // 2), "could not be read", fill="black")
    return image


def webp(image: Image.Image) -> bytes:
    """Return the picture as a WebP file without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """Return the picture as a WebP data URI, for the source of an <img>."""
    return f"data:image/webp;base64,{base64.b64encode(webp(image)).decode()}"
