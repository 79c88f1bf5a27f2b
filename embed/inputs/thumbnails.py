"""Pictures made small, for a page or a sheet to show."""

import base64
import io
from collections.abc import Iterable
from contextlib import suppress

from PIL import Image, ImageDraw

from embed.inputs.fetch import read_bytes
from embed.inputs.images import load_image
from embed.spec import InputError

SIZE = 192  # pixels
GREY = (200, 200, 200)


def thumbnail(data: bytes) -> Image.Image:
    """The picture in RGB, at most SIZE pixels wide and high; raise ImageError if `data` is none that can be used."""
    image = load_image(data)
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return image


def thumbnail_at(addresses: Iterable[str]) -> Image.Image | None:
    """The first of the pictures at these addresses that can be used, made small; None if none can."""
    for address in addresses:
        with suppress(InputError, OSError):
            return thumbnail(read_bytes(address))
    return None


def grey_square() -> Image.Image:
    """What stands for a picture that cannot be shown, and says so."""
    image = Image.new("RGB", (SIZE, SIZE), GREY)
    ImageDraw.Draw(image).text((SIZE // 4, SIZE // 2), "could not be read", fill="black")
    return image


def data_uri(image: Image.Image) -> str:
    """The picture as WebP inside a text, for the source of an <img>."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
