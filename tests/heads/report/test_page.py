"""Pieces of a page: where marks land, what ticks say, and that nothing of the user's becomes HTML."""

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from embed.inputs.thumbnails import data_uri
from heads.report.page import Axis, Estimate, Picture, Plot, cards, document, intervals, text_table, ticks

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


def test_marks_land_where_the_axes_say() -> None:
    plot = Plot(Axis(0, 10, []), Axis(-1, 1, []), width=400, height=300, left=50, pad=5)
    assert plot.at(0, -1) == (55, 251)  # 44 pixels for the x axis, 16 above and to the right
    assert plot.at(10, 1) == (379, 21)
    assert plot.at(5, 0) == (217, 136)
    bar = ET.fromstring(plot.bar(0, 5, 0, "mark"))
    assert (float(bar.get("x")), float(bar.get("y")), float(bar.get("height"))) == (55, 136, 115)


def test_intervals_draw_value_and_ends_in_proportion() -> None:
    svg = intervals([Estimate("head", 0.7, 0.6, 0.8, "mark"), Estimate(EVIL, 0.5, None, None)], 0.5, "accuracy")
    root = ET.fromstring(svg)  # the plot, in what scrolls where a screen is narrow
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    assert dots[0][1] < dots[1][1]  # the first is on top
    whiskers = [p for p in root.iter("polyline") if "whisker" in p.get("class")]
    (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in whiskers[0].get("points").split())
    assert len(whiskers) == 1
    assert (x1 + x2) / 2 == pytest.approx(dots[0][0], abs=0.11) and y1 == y2 == pytest.approx(dots[0][1], abs=0.06)
    # 0.5 lies as far left of 0.6 as 0.6 of 0.7.
    assert x1 - dots[1][0] == pytest.approx(dots[0][0] - x1, abs=0.21)
    assert EVIL in [t.text for t in root.iter("text")]


def test_texts_are_escaped_and_pictures_are_inside() -> None:
    picture = Picture(data_uri(Image.new("RGB", (60, 20), (255, 0, 0))), EVIL, EVIL)
    page = document(EVIL, text_table([EVIL], [[f"{EVIL}\n{EVIL}"]]) + cards([picture]))
    assert EVIL not in page
    assert page.count("&lt;b&gt;&quot;&amp;") == 6
    data = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (60, 20)
        assert np.abs(np.asarray(image.convert("RGB"), int).mean((0, 1)) - [255, 0, 0]).max() < 10
