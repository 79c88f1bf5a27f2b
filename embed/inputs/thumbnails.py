"""Pictures made small, for a page or a sheet to show."""

import base64
import io

from PIL import Image

from embed.inputs.images import ImageError, load_image

SIZE = 192  # pixels
GREY = (200, 200, 200)


def thumbnail(data: bytes) -> Image.Image:
    """The picture in RGB, at most SIZE pixels wide and high; a grey square where `data` is none that can be used."""
    try:
        image = load_image(data)
    except ImageError:
        return Image.new("RGB", (SIZE, SIZE), GREY)
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return image


def data_uri(image: Image.Image) -> str:
    """The picture as WebP inside a text, for the source of an <img>."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
