"""Pieces of a page: where marks land, what ticks say, and that nothing of the user's becomes HTML."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embed.showing import pages
from embed.showing.pages import page
from heads.report.page import Picture
from heads.report.plots import WIDTH, Axis, Estimate, Plot, intervals, powers, ticks
from heads.report.tiles import tile

STYLE = (pages.HERE / "style.css").read_text()
EVIL = '<b>"&'


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0.4, 1, ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]),
        (-0.013, 0.011, ["-0.01", "-0.005", "0", "0.005", "0.01"]),
        (3, 4120, ["1000", "2000", "3000", "4000"]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[str]) -> None:
    assert [name for _, name in ticks(low, high)] == expected
    assert all(low - 1e-9 <= value <= high + 1e-9 and float(name) == pytest.approx(value, abs=1e-12)
               for value, name in ticks(low, high))  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 4.2, {0: "1", 1: "10", 2: "100", 3: "1k", 4: "10k"}),
        (-3.5, -1, {-3: "0.001", -2: "0.01", -1: "0.1"}),
        (0.2, 9, {1: "10", 3: "1k", 5: "100k", 7: "10 m", 9: "1 bn"}),
    ],
)
def test_powers_of_ten_are_few_and_short(low: float, high: float, expected: dict[float, str]) -> None:
    assert dict(powers(low, high)) == expected


def test_marks_land_where_the_axes_say() -> None:
    plot = Plot(Axis(0, 10, []), Axis(-1, 1, []), width=400, height=300, pad=5)
    left, bottom = plot.left + 5, 300 - 56 - 5  # 56 for what stands below the x axis
    assert plot.at(0, -1) == (left, bottom)
    assert plot.at(10, 1) == (400 - 24 - 5, 16 + 5)
    assert plot.at(5, 0) == ((left + 371) / 2, (bottom + 21) / 2)
    bar = ET.fromstring(plot.bar(0, 5, 0, "mark"))
    assert (float(bar.get("x")), float(bar.get("y"))) == (left, (bottom + 21) / 2)
    assert float(bar.get("height")) == bottom - (bottom + 21) / 2


def test_intervals_draw_value_and_ends_in_proportion() -> None:
    svg = intervals([Estimate("head", 0.7, 0.6, 0.8, "mark"), Estimate(EVIL, -0.0001, None, None)], 0.5, "accuracy")
    root = ET.fromstring(svg)
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    assert dots[0][1] < dots[1][1]  # the first is on top
    whiskers = [p for p in root.iter("polyline") if "whisker" in p.get("class")]
    (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in whiskers[0].get("points").split())
    assert len(whiskers) == 1
    assert (x1 + x2) / 2 == pytest.approx(dots[0][0], abs=0.11) and y1 == y2 == pytest.approx(dots[0][1], abs=0.06)
    # 0 lies six times as far left of 0.6 as 0.6 of 0.7.
    assert x1 - dots[1][0] == pytest.approx(6 * (dots[0][0] - x1), abs=0.5)
    texts = [t.text for t in root.iter("text")]
    assert EVIL in texts and "0.700 (0.600 to 0.800)" in texts and "0.000" in texts  # zero has no sign


def test_letters_of_plots_are_10_pixels_high_on_a_telephone() -> None:
    """In the 358 pixels that a screen of 390 leaves."""
    narrow = STYLE[STYLE.index("max-width: 640px) {") :]
    assert float(re.search(r"\.plot text \{ font-size: (\d+)px", narrow)[1]) * 358 / WIDTH >= 10


@pytest.mark.parametrize("dark", [False, True])
def test_colours_of_plots_can_be_told_apart_by_lightness(dark: bool) -> None:
    colours = dict(re.findall(r"--(\w+): (#\w+)", STYLE[STYLE.index("dark)") :] if dark else STYLE.split("@media")[0]))

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    assert contrast("mark", "other") >= 1.8
    assert min(contrast(kind, "card") for kind in ("mark", "other")) >= 3  # what WCAG asks of graphics
    assert min(contrast("faint", ground) for ground in ("card", "page", "tile")) >= 4.5  # and of text


def test_texts_are_escaped_and_pictures_are_inside(tmp_path: Path) -> None:
    shown = tile(Image.new("RGB", (600, 200), (255, 0, 0)))
    (tmp_path / "page.html").write_text(
        """{% extends "layout.html" %}{% import "pieces.html" as pieces %}{% block body %}
        {{ pieces.table([evil], [[evil ~ "\n" ~ evil]], evil) }}{{ pieces.glance(pictures, "p") }}
        {{ pieces.cards(pictures, "p") }}{{ pieces.legend(evil, evil) }}{% endblock %}"""
    )
    pictures = [Picture(shown.small, EVIL, EVIL, shown.full), Picture("", EVIL, EVIL)]
    html = page(tmp_path / "page.html", title=EVIL, evil=EVIL, pictures=pictures)
    assert EVIL not in html and html.count("&lt;b&gt;&#34;&amp;") > 10
    assert set(re.findall(r'popovertarget="([^"]+)"', html)) == set(re.findall(r' id="([^"]+)"', html)) == {"p-1"}
    assert html.count("could not be read") == 2
    sizes = []
    for data in re.findall(r'src="data:image/webp;base64,([^"]+)"', html):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            sizes.append(image.size)
            assert np.abs(np.asarray(image.convert("RGB"), int).mean((0, 1)) - [255, 0, 0]).max() < 10
    assert sizes == [(192, 64), (192, 64), (600, 200)]
