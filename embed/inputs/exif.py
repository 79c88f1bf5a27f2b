"""Find which way up a picture is, from its EXIF or else its XMP, as Pillow's `ImageOps.exif_transpose` does.

Pillow's own function is not used because it makes Python objects of every value that a stranger's tag claims to have,
and rejects pictures whose EXIF is broken.
"""

import re
from typing import Literal

from PIL import Image

ORIENTATION = 0x0112
DIRECTORIES = (0x8769, 0x8825, 0xA005)  # tags that lead to more tags: EXIF, GPS, interoperability
BYTES_TYPES = (1, 2, 7)  # tags of these types stay bytes

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Return the picture turned upright as its metadata says. TIFFs are unchanged: Pillow has turned them already."""
    found = 1 if image.format == "TIFF" else orientation(image)
    return image.transpose(TRANSPOSE[found]) if found in TRANSPOSE else image


def orientation(image: Image.Image) -> int:
    """Return the orientation of the picture: 1 to 8, or a number without meaning."""
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    return turned(_exif(image), xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp)


def turned(exif: bytes, xmp: bytes) -> int:
    """Return the orientation in the EXIF, or else in the XMP: 1 to 8, or a number without meaning."""
    found = tags(exif.removeprefix(b"Exif\0\0"))
    if ORIENTATION in found:
        return found[ORIENTATION][2]
    said = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
    return int(said[1]) if said else 1


def _exif(image: Image.Image) -> bytes:
    """Return the EXIF from its own chunk, or from hexadecimal digits in a PNG's text."""
    exif = image.info.get("exif")
    if exif is not None:
        return bytes(exif)
    lines = str(image.info.get("Raw profile type exif", "")).split("\n")
    try:
        return bytes.fromhex("".join(lines[3:]))  # after an empty line, the name and the length
    except ValueError:
        return b""


def tags(data: bytes, offset: int | None = None) -> dict[int, tuple[int, int, int]]:
    """Return type, number of values and first value of each tag in a directory of a TIFF or EXIF.

    The directory begins at `offset`; by default it is the first one.
    """
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    start = number(4, 4) if offset is None else offset
    tags = {}
    for at in range(start + 2, min(start + 2 + 12 * number(start, 2), len(data) - 11), 12):
        kind = number(at + 2, 2)
        tags[number(at, 2)] = (kind, number(at + 4, 4), number(at + 8, {1: 1, 3: 2}.get(kind, 4)))
    return tags
