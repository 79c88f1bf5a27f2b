"""Draw docs/similar.webp from the output of `make demo`: the nearest emoji, and the nearest ones that are popular too.

python docs/picture.py demo
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from plaudit import Catalogue, Scorer

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
QUERIES = ("images/1f436.webp", "something to drink")
WEIGHTS = {"similar": 0.0, "similar and popular": 0.3}
HITS, SIZE, LEFT, LINE = 5, 96, 250, 170
INK, SOFT = "#1f2933", "#5f6c7b"


def draw(demo: Path) -> Image.Image:
    catalogue, scorer = Catalogue.open(demo / "catalogue"), Scorer.load(demo / "bundle")
    font = ImageFont.load_default(22)
    small = ImageFont.load_default(17)
    width = LEFT + HITS * (SIZE + 24)
    sheet = Image.new("RGB", (width, LINE * len(QUERIES) * len(WEIGHTS) + 20), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (query, (name, weight)) in enumerate((q, w) for q in QUERIES for w in WEIGHTS.items()):
        top = 20 + row * LINE
        if query.startswith("images/"):
            vectors = scorer.embed_images([EMOJI / query])
            if not row:
                paste(sheet, query, (24, top + 34), 64)
        else:
            vectors = scorer.embed_prompts([query])
        if row % 2 == 0:
            pen.text((24, top), "like this:" if query.startswith("images/") else f"“{query}”", INK, font)
            pen.line((0, top - 12, width, top - 12), "#d9dee4") if row else None
        pen.text((24, top + 108), name, SOFT, small)
        hits = [hit for hit in catalogue.search(vectors, HITS + 1, popularity_weight=weight)[0] if hit.key != query]
        for place, hit in enumerate(hits[:HITS]):
            left = LEFT + place * (SIZE + 24)
            paste(sheet, hit.key, (left, top), SIZE)
            pen.text((left + SIZE / 2, top + SIZE + 14), f"{hit.count:,.0f}", SOFT, small, anchor="ma")
    return sheet


def paste(sheet: Image.Image, key: str, place: tuple[int, int], size: int) -> None:
    with Image.open(EMOJI / key) as picture:
        small = picture.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    sheet.paste(small, place, small)


if __name__ == "__main__":
    draw(Path(sys.argv[1])).save(Path(__file__).with_name("similar.webp"), quality=88, method=6)
