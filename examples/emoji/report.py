"""The demo's page: one HTML file with every picture and style inside, so that it opens anywhere, offline."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #6b7685; --line: #dde3ea; --card: #fff; --page: #f5f7fa;
        --mark: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --faint: #98a3b3; --line: #2c3542; --card: #1a212b; --page: #12171e; --mark: #fb923c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
       max-width: 1080px; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p, figcaption { color: var(--faint); margin: .25rem 0 1rem; max-width: 46rem; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
td, th { padding: .45rem .9rem; text-align: right; border-top: 1px solid var(--line);
         font-variant-numeric: tabular-nums; }
td:first-child, th:first-child { text-align: left; } thead th { border-top: 0; color: var(--faint); font-weight: 500; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: stretch; }
.row > b { width: 7.5rem; align-self: center; font-weight: 500; }
.card { width: 76px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .4rem;
        text-align: center; font-size: .7rem; line-height: 1.25; color: var(--faint); overflow-wrap: anywhere; }
.card img { width: 48px; height: 48px; display: block; margin: 0 auto .25rem; }
.card b { color: var(--ink); font-weight: 500; display: block; }
.query { border-left: 3px solid var(--mark); padding-left: .9rem; margin: 1.25rem 0; }
.query > .row { margin: .5rem 0; }
svg text { fill: var(--faint); font-size: 12px; } svg line { stroke: var(--line); }
svg { background: var(--card); border: 1px solid var(--line); border-radius: 8px; max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Picture:
    """One picture with what is shown beneath it: a name, and a line of figures."""

    path: Path
    name: str
    detail: str


@dataclass(frozen=True)
class Query:
    """What was asked for, and the pictures found at each popularity weight."""

    title: str
    found: Mapping[str, Sequence[Picture]]


@dataclass(frozen=True)
class Point:
    """A picture in the plot: its count, and the percentile (0 to 100) of the score it got while held out."""

    path: Path
    name: str
    count: float
    percentile: float


def page(
    summary: Sequence[Sequence[str]],
    best: Sequence[Picture],
    worst: Sequence[Picture],
    queries: Sequence[Query],
    points: Sequence[Point],
    protocol: str,
) -> str:
    """The whole page as HTML; `summary` is a table with its header first."""
    header, *rows = summary
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>plaudit: emoji that people use</title><style>{STYLE}</style></head><body>
<h1>Which emoji do people use?</h1>
<p>{len(points)} pictures, how often each occurs in tweets, and a head trained on frozen vectors of the pictures and
their names. Every score on this page was given by a head that had not seen the picture, nor any other picture of its
subcategory.</p>
<table><thead><tr>{_cells(header, "th")}</tr></thead>
<tbody>{"".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows)}</tbody></table>
<p>{html.escape(protocol)}</p>
<h2>Scored highest</h2><div class="row">{_cards(best)}</div>
<h2>Scored lowest</h2><div class="row">{_cards(worst)}</div>
<h2>Predicted against real popularity</h2>
<p>Right: used more often (logarithmic). Up: scored higher. Hover over a picture for its name.</p>
{_scatter(points)}
<h2>Similar and popular</h2>
<p>Ranked by cosine + weight &times; popularity percentile. Beneath each picture: its cosine, and its percentile.</p>
{"".join(_query(query) for query in queries)}
</body></html>
"""


def _cells(values: Sequence[str], tag: str) -> str:
    return "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values)


def _cards(pictures: Sequence[Picture]) -> str:
    return "".join(
        f'<div class="card"><img src="{_data_uri(p.path, 96)}" alt=""><b>{html.escape(p.name)}</b>'
        f"{html.escape(p.detail)}</div>"
        for p in pictures
    )


def _query(query: Query) -> str:
    rows = (f'<div class="row"><b>{html.escape(w)}</b>{_cards(found)}</div>' for w, found in query.found.items())
    return f'<div class="query"><strong>{html.escape(query.title)}</strong>{"".join(rows)}</div>'


def _scatter(points: Sequence[Point], width: int = 1040, height: int = 520, size: int = 22) -> str:
    """An SVG with the pictures themselves as marks."""
    left, bottom, top = 56, 44, 16
    low = min(math.log10(p.count) for p in points)
    high = max(math.log10(p.count) for p in points)

    def x(count: float) -> float:
        return left + size + (math.log10(count) - low) / (high - low) * (width - left - 2 * size)

    def y(percentile: float) -> float:
        return height - bottom - size - percentile / 100 * (height - bottom - top - 2 * size)

    ticks = [10**power for power in range(math.ceil(low), math.floor(high) + 1)]
    marks = [
        f'<line x1="{x(t):.0f}" x2="{x(t):.0f}" y1="{top}" y2="{height - bottom}"/>'
        f'<text x="{x(t):.0f}" y="{height - bottom + 18}" text-anchor="middle">{t:,}</text>'
        for t in ticks
    ]
    marks += [
        f'<line x1="{left}" x2="{width}" y1="{y(p):.0f}" y2="{y(p):.0f}"/>'
        f'<text x="{left - 8}" y="{y(p) + 4:.0f}" text-anchor="end">{p} %</text>'
        for p in (0, 25, 50, 75, 100)
    ]
    marks += [
        f'<image href="{_data_uri(p.path, size)}" x="{x(p.count) - size / 2:.1f}" y="{y(p.percentile) - size / 2:.1f}"'
        f' width="{size}" height="{size}"><title>{html.escape(p.name)}: used {p.count:,.0f} times, scored above'
        f" {p.percentile:.0f} %</title></image>"
        for p in points
    ]
    label = f'<text x="{width / 2:.0f}" y="{height - 6}" text-anchor="middle">times used</text>'
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="score against use">{"".join(marks)}{label}</svg>'
    )


def _data_uri(path: Path, size: int) -> str:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.resize((size, size), Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
