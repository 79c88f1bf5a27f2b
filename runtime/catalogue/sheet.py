"""Pictures with their figures on one sheet: PNG, or a self-contained HTML page.

Pictures are read through the safe decoder. A picture that cannot be read becomes a grey tile that says so. Knows no
catalogue.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from embed.files import atomic_write
from embed.inputs.thumbnails import SIZE, data_uri, grey_square, thumbnail_at
from embed.showing.pages import page
from embed.spec import InputError

LINE = 17  # height of a line in pixels
LETTERS = 30  # the most letters in a line of the PNG
COLUMNS = 5


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet."""

    name: str
    addresses: Sequence[str]  # where the picture may be, the likeliest first
    figures: Mapping[str, str] = field(default_factory=dict)  # figures shown below it, by name
    note: str = ""  # a remark such as that it is the query's own picture


def write_sheet(path: Path, tiles: Sequence[Tile], title: str) -> int:
    """Write the pictures to `path`, .png or .html, and return the number of pictures that could not be read."""
    require_sheet(path)
    found = [thumbnail_at(tile.addresses) for tile in tiles]
    pictures, unread = [picture or grey_square() for picture in found], found.count(None)
    data = _png(tiles, pictures) if path.suffix == ".png" else _html(tiles, pictures, title, unread).encode()
    with atomic_write(path) as file:
        file.write(data)
    return unread


def require_sheet(path: Path) -> None:
    """Raise InputError unless the name of a sheet ends in .png or .html."""
    if path.suffix not in (".png", ".html"):
        raise InputError(f"{path} is neither .png nor .html; wanted a name with one of these endings")


def _png(tiles: Sequence[Tile], pictures: Sequence[Image.Image]) -> bytes:
    columns = min(COLUMNS, max(len(tiles), 1))
    captions = [[tile.note] * bool(tile.note) + [f"{k} {v}" for k, v in tile.figures.items()] for tile in tiles]
    lines = 1 + max(map(len, captions), default=0)
    width, height = SIZE + 8, SIZE + 8 + LINE * lines
    sheet = Image.new("RGB", (columns * width, max(1, -(-len(tiles) // columns)) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (tile, caption, picture) in enumerate(zip(tiles, captions, pictures, strict=True)):
        x, y = i % columns * width, i // columns * height
        sheet.paste(picture, (x + (width - picture.width) // 2, y + (SIZE - picture.height) // 2))
        for line, text in enumerate([*caption, tile.name]):
            # The built-in font has only Latin letters.
            shown = shortened(text.encode("latin-1", "replace").decode("latin-1"))
            draw.text((x + 4, y + SIZE + 4 + LINE * line), shown, fill="black", font=font)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def shortened(text: str) -> str:
    """At most LETTERS letters of a text: three dots and its end, which has the file's name."""
    return text if len(text) <= LETTERS else f"...{text[3 - LETTERS :]}"


def _html(tiles: Sequence[Tile], pictures: Sequence[Image.Image], title: str, unread: int) -> str:
    shown = list(zip(tiles, map(data_uri, pictures), strict=True))
    return page(Path(__file__).with_suffix(".html"), title=title, tiles=shown, unread=unread)
