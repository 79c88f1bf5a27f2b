"""The demo's page: one HTML file with every picture and style inside, so that it opens anywhere, offline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape
from PIL import Image

from embed.inputs.thumbnails import data_uri
from embed.showing.pages import page as fill
from heads.report.page import Picture
from heads.report.plots import Axis, Plot, powers
from heads.report.tiles import tile


def picture(path: Path, name: str, detail: str) -> Picture:
    """A picture for the page, with what is shown beneath it."""
    with Image.open(path) as image:
        shown = tile(image)
    return Picture(shown.small, name, detail, shown.full)


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
    verdict: str,
    summary: Sequence[Sequence[str]],
    best: Sequence[Picture],
    worst: Sequence[Picture],
    queries: Sequence[Query],
    points: Sequence[Point],
    protocol: str,
) -> str:
    """The whole page as HTML; `summary` is a table with its header first."""
    header, *rows = summary
    return fill(
        Path(__file__).with_suffix(".html"),
        title="plaudit: emoji that people use",
        verdict=verdict,
        header=header,
        rows=rows,
        best=best,
        worst=worst,
        queries=queries,
        scatter=_scatter(points),
        count=len(points),
        protocol=protocol,
    )


def _scatter(points: Sequence[Point], size: int = 22) -> Markup:
    """An SVG with the pictures themselves as marks."""
    low = min(math.log10(p.count) for p in points)
    high = max(math.log10(p.count) for p in points)
    percents = [(p, f"{p} %") for p in (0, 25, 50, 75, 100)]
    plot = Plot(
        Axis(low, high, powers(low, high), "times used, on a logarithmic axis"),
        Axis(0, 100, percents, "percentile of the score"),
        pad=size,
    )
    marks = []
    for p in points:
        x, y = plot.at(math.log10(p.count), p.percentile)
        marks.append(
            f'<image href="{_source(p.path, size)}" x="{x - size / 2:.1f}" y="{y - size / 2:.1f}" width="{size}"'
            f' height="{size}"><title>{escape(p.name)}: used {p.count:,.0f} times, scored above'
            f" {p.percentile:.0f} %</title></image>"
        )
    return plot.svg(marks, "score against use")


def _source(path: Path, size: int) -> str:
    with Image.open(path) as image:
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        return data_uri(image)
