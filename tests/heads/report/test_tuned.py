"""The page of a tuned generator: its pieces, and what a curve leaves out."""

import math
import re

from heads.report.page import Picture
from heads.report.tuned import BeforeAfter, curve, tuned_page


def test_the_page_holds_what_it_is_given_and_nothing_else_as_html() -> None:
    pair = BeforeAfter(Picture("data:,a", "<b>cat", "1", "data:,A"), Picture("data:,b", "<b>cat", "2", "data:,B"))
    points = [(0.0, 1.0), (10.0, 2.0)]
    page = tuned_page(
        "<t>", ["said & done", "more"], ["", "x"], [["judge", "1"]], {"judge": points}, 10, [pair], "all"
    ).decode()
    assert "<b>cat" not in page and "&lt;b&gt;cat" in page and "said &amp; done" in page
    small, full = ["data:,a", "data:,b"], ["data:,A", "data:,B"]
    assert re.findall(r'<img src="([^"]+)"', page) == [*small, small[0], full[0], small[1], full[1]]
    assert page.count("reference") > page.count(".reference")  # the step whose weights were kept


def test_a_curve_leaves_out_what_is_not_finite() -> None:
    drawn = curve([(0.0, 1.0), (5.0, -math.inf), (10.0, math.nan), (15.0, 1.0)], None, "judge")
    assert drawn.count("<circle") == 2 and "nan" not in drawn and "inf" not in drawn
    assert curve([(0.0, math.nan), (1.0, 2.0)], None, "judge") is None
