"""What the page shows: the ends of the ranking, the surest mistakes, and slices."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from heads_labels import GROUPS, SIZE, comparisons, measured, single

from heads.report import write
from heads.report.drawn import scatter_plot
from heads.report.write import _items, _slices, _wrong_pairs

RNG = np.random.default_rng(2)


def test_the_ends_of_the_ranking_by_percentile_within_the_part() -> None:
    n = GROUPS * SIZE
    one = measured(single("ratings", RNG.integers(1, 9, n)))
    scores = RNG.normal(size=(n, 1)) + 10 * one.split.fold[:, None]  # heads whose scores mean different things
    percentile = np.empty(n)
    for row in range(n):
        part = [scores[i, 0] for i in range(n) if one.split.fold[i] == one.split.fold[row]]
        percentile[row] = 100 * sum(s < scores[row, 0] for s in part) / (len(part) - 1)
    order = np.argsort(-percentile, kind="stable")
    got = [item for item, _ in _items(one, scores)]  # one a picture
    assert got == [*order[: write.SHOWN], *order[-write.SHOWN :]]
    assert _items(one, scores)[0][1] == f"scored above 100 %, rating {one.labels.values['rating'][order[0]]:g}"


def test_the_surest_mistakes_show_each_picture_once() -> None:
    target = RNG.choice([0.0, 0.5, 1.0], 60)
    labels = comparisons(target, np.arange(60))
    labels.image[:] = RNG.integers(0, 40, 120)  # the same pictures meet again and again
    one, scores = measured(labels), RNG.normal(size=(60, 2))
    lead = np.where(one.pairs.target > 0.5, 1, -1) * (one.of_pairs(scores)[0] - one.of_pairs(scores)[1])
    met: set[int] = set()
    expected = []
    for i in sorted(range(60), key=lambda i: lead[i]):
        pictures = {labels.image[one.pairs.a[i]], labels.image[one.pairs.b[i]]}
        if one.pairs.target[i] != 0.5 and lead[i] < 0 and not pictures & met:
            expected.append(i)
            met |= pictures
    assert _wrong_pairs(one, scores) == expected[: write.SHOWN_PAIRS]
    assert len(expected) > 4


@pytest.mark.parametrize("exposures", [None, 1000.0])
def test_counts_and_rates_are_on_a_logarithmic_axis_with_nothing_at_its_left(exposures: float | None) -> None:
    count = np.concatenate([[0, 1, 10, 100, 1000], RNG.integers(1, 1000, GROUPS * SIZE - 5)]).astype(float)
    labels = single("counts", count)
    if exposures:
        labels.values["exposures"] = np.full(len(count), exposures)
    root = ET.fromstring(scatter_plot(measured(labels), -count[:, None])["plot"])
    x = {c.find("title").text.split(",")[0].split(" ")[1]: float(c.get("cx")) for c in root.iter("circle")}
    shown = [f"{c / (exposures or 1):g}" for c in (0, 1, 10, 100, 1000)]
    steps = np.diff([x[name] for name in shown])
    np.testing.assert_allclose(steps, steps[0], atol=0.3)  # each step of ten is as long
    texts = [text.text for text in root.iter("text")]
    name = "rate" if exposures else "count"
    assert {"0", "percentile of the score", f"{name}, on a logarithmic axis"} <= {*texts}
    assert ("0.01" if exposures else "100") in texts


def test_slices_without_a_pair_draw_nothing() -> None:
    found = _slices({"slices": {"by": "<x>", "across": 7, "slices": []}})
    assert found == {"by": "<x>", "across": 7, "rest": 0, "plot": None}
