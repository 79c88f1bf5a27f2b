"""Hits as pictures on one sheet: PNG, or a self-contained HTML page.

Pictures are read through the safe decoder; one that cannot be read leaves a grey tile that says so. Knows no catalogue.
"""

import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from embed.files import atomic_write
from embed.inputs.thumbnails import SIZE, data_uri, grey_square, thumbnail_at
from embed.spec import InputError
from runtime.catalogue.hits import Hit

CAPTION = 44  # pixels
COLUMNS = 5

_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:14px system-ui;margin:2em}}ol{{display:flex;flex-wrap:wrap;gap:1em;padding:0;list-style:none}}
li{{width:{tile}px}}img{{width:{tile}px;height:{tile}px;object-fit:contain;background:#eee}}
small{{color:#555;overflow-wrap:anywhere}}</style>
<h1>{title}</h1><ol>
{tiles}
</ol>
"""


def write_sheet(path: Path, hits: Sequence[Hit], addresses: Sequence[Sequence[str]], title: str) -> int:
    """Write the hits' pictures to `path`, .png or .html, and give the number of those that could not be read.

    `addresses` are for each hit the places where its picture may lie, the likeliest first.
    """
    if path.suffix not in (".png", ".html"):
        raise InputError(f"{path} is neither .png nor .html")
    found = [thumbnail_at(places) for places in addresses]
    tiles, unread = [tile or grey_square() for tile in found], found.count(None)
    if unread:
        title += f" ({unread} of {len(hits)} pictures could not be read)"
    data = _png(hits, tiles) if path.suffix == ".png" else _html(hits, tiles, title).encode()
    with atomic_write(path) as file:
        file.write(data)
    return unread


def caption(hit: Hit) -> tuple[str, str]:
    """Two lines: the scores, and the name."""
    numbers = f"{hit.blended_score:.3f}: cos {hit.similarity:.3f}, {100 * hit.popularity:.1f} %"
    return numbers, hit.key


def _png(hits: Sequence[Hit], tiles: Sequence[Image.Image]) -> bytes:
    columns = min(COLUMNS, max(len(tiles), 1))
    width, height = SIZE + 8, SIZE + CAPTION
    sheet = Image.new("RGB", (columns * width, max(1, -(-len(tiles) // columns)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (hit, tile) in enumerate(zip(hits, tiles, strict=True)):
        x, y = i % columns * width, i // columns * height
        sheet.paste(tile, (x + (width - tile.width) // 2, y + (SIZE - tile.height) // 2))
        for line, text in enumerate(caption(hit)):
            # The built-in font has Latin letters only.
            shown = text.encode("latin-1", "replace").decode("latin-1")[-32:]
            draw.text((x + 4, y + SIZE + 4 + 18 * line), shown, fill="black")
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _html(hits: Sequence[Hit], tiles: Sequence[Image.Image], title: str) -> str:
    items = []
    for hit, tile in zip(hits, tiles, strict=True):
        numbers, name = (html.escape(text) for text in caption(hit))
        items.append(f'<li><img src="{data_uri(tile)}" alt="{name}"><br>{numbers}<br><small>{name}</small></li>')
    return _PAGE.format(title=html.escape(title), tile=SIZE, tiles="\n".join(items))
