"""The demo's page: one HTML file with every picture and style inside, so that it opens anywhere, offline."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from embed.inputs.thumbnails import data_uri
from heads.report.page import Axis, Picture, Plot, cards, document, text_table


def picture(path: Path, name: str, detail: str) -> Picture:
    """A picture for the page, with what is shown beneath it."""
    return Picture(_source(path, 96), name, detail)


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
    body = f"""<h1>Which emoji do people use?</h1>
<p>{len(points)} pictures, how often each occurs in tweets, and a head trained on frozen vectors of the pictures and
their names. Every score on this page was given by a head that had not seen the picture, nor any other picture of its
subcategory.</p>
{text_table(header, rows)}
<p>{html.escape(protocol)}</p>
<h2>Scored highest</h2><div class="row">{cards(best)}</div>
<h2>Scored lowest</h2><div class="row">{cards(worst)}</div>
<h2>Predicted against real popularity</h2>
<p>Right: used more often (logarithmic). Up: scored higher. Hover over a picture for its name.</p>
{_scatter(points)}
<h2>Similar and popular</h2>
<p>Ranked by cosine + weight &times; popularity percentile. Beneath each picture: its cosine, and its percentile.</p>
{"".join(_query(query) for query in queries)}"""
    return document("plaudit: emoji that people use", body)


def _query(query: Query) -> str:
    rows = (f'<div class="row"><b>{html.escape(w)}</b>{cards(found)}</div>' for w, found in query.found.items())
    return f'<div class="query"><strong>{html.escape(query.title)}</strong>{"".join(rows)}</div>'


def _scatter(points: Sequence[Point], size: int = 22) -> str:
    """An SVG with the pictures themselves as marks."""
    low = min(math.log10(p.count) for p in points)
    high = max(math.log10(p.count) for p in points)
    counts = [(float(power), f"{10**power:,}") for power in range(math.ceil(low), math.floor(high) + 1)]
    percents = [(p, f"{p} %") for p in (0, 25, 50, 75, 100)]
    plot = Plot(Axis(low, high, counts, "times used"), Axis(0, 100, percents, "percentile"), pad=size)
    marks = []
    for p in points:
        x, y = plot.at(math.log10(p.count), p.percentile)
        marks.append(
            f'<image href="{_source(p.path, size)}" x="{x - size / 2:.1f}" y="{y - size / 2:.1f}" width="{size}"'
            f' height="{size}"><title>{html.escape(p.name)}: used {p.count:,.0f} times, scored above'
            f" {p.percentile:.0f} %</title></image>"
        )
    return plot.svg(marks, "score against use")


def _source(path: Path, size: int) -> str:
    with Image.open(path) as image:
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        return data_uri(image)
