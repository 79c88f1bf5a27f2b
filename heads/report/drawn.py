"""The plots of an evaluation's page, from the scores of held-out rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from embed.arrays import Floats
from heads.data.comparisons import appeal, exposures_of
from heads.evaluation.evaluate import percentiles
from heads.evaluation.measured import Measured
from heads.evaluation.scoreboard import MAPS, Map, reliability
from heads.metrics import expected_calibration_error
from heads.report.plots import Axis, Plot, powers, ticks

LOWEST_SHARE = 0.35  # lowest share of right pairs that the plot of certainty can show
SHOWN_DOTS = 3000  # most dots in a scatter plot


def reliability_plot(measured: Measured, scores: Floats) -> dict[str, str]:
    """How often the head is right, by its confidence, as trained and calibrated: the plot and the names of both
    lines."""
    halves = [(step / 10, f"{step / 10:g}") for step in range(5, 11)]
    plot = Plot(Axis(0.5, 1, halves, "how sure the head is"), Axis(0.4, 1, ticks(0.4, 1), "how often it is right"))
    marks, said = [plot.line([(0.5, 0.5), (1, 1)], "reference")], {"mark": "", "other": ""}
    kinds: dict[Map, str] = {"raw": "other", "temperature": "mark"}
    for map, kind in kinds.items():
        bins = reliability(measured, scores, map)
        if not bins:
            continue
        points = [(b.confidence, max(b.accuracy, 0.4)) for b in bins]
        marks.append(plot.line(points, kind))
        for b, point in zip(bins, points, strict=True):
            title = f"{b.count:,} pairs: {b.confidence:.0%} sure, {b.accuracy:.0%} right"
            marks.append(plot.dot(*point, kind, 4, title))
        said[kind] = f"{MAPS[map][0]} (ECE {expected_calibration_error(bins):.3f})"
    return {"plot": plot.svg(marks, "how often the head is right, by how sure it is"), **said}


def certainty_plot(found: Mapping[str, Any]) -> Markup:
    """The share of pairs ordered right by their difference over its uncertainty."""
    bins = found["bins"]
    reach = max(bin["middle"] for bin in bins) * 1.05 or 1.0
    ends = [(step / 10, f"{step * 10} %") for step in range(4, 11)]
    axis = Axis(0, reach, ticks(0, reach), "difference of two scores over the uncertainty of both")
    plot = Plot(axis, Axis(LOWEST_SHARE, 1, ends, "pairs ordered right"))
    marks = [plot.line([(0, 0.5), (reach, 0.5)], "reference")]
    for bin in bins:
        at, right = bin["middle"], bin["right"]
        if right["low"] is not None:
            whisker = [(at, max(right[end], LOWEST_SHARE)) for end in ("low", "high")]
            marks.append(plot.line(whisker, "mark whisker"))
        said = f"{bin['pairs']:,} pairs, {bin['low']:.2f} to {bin['high']:.2f}: {right['value']:.0%} right"
        marks.append(plot.dot(at, max(right["value"], LOWEST_SHARE), "mark", title=said))
    return plot.svg(marks, "how often pairs are ordered right, by their difference over its uncertainty")


def lead_of(measured: Measured, scores: Floats) -> Floats:
    """(p,) the preferred picture's score minus the other's, for each pair."""
    a, b = measured.of_pairs(scores)
    return np.where(measured.pairs.target > 0.5, a - b, b - a)


def leads_plot(measured: Measured, scores: Floats) -> Markup:
    """A histogram of the preferred picture's score minus the other's. Pairs left of zero are ordered wrong."""
    difference = lead_of(measured, scores)[measured.decided]
    reach = float(np.quantile(np.abs(difference), 0.995)) or 1.0
    counts, edges = np.histogram(np.clip(difference, -reach, reach), 40, (-reach, reach))
    share = counts / counts.sum()
    top = float(share.max()) * 1.05
    plot = Plot(
        Axis(-reach, reach, ticks(-reach, reach), "score of the preferred picture minus that of the other"),
        Axis(0, top, [(at, f"{100 * at:.3g} %") for at, _ in ticks(0, top, 4)], "share of pairs"),
        height=300,
    )
    marks = [
        plot.bar(low, high, float(value), "mark" if low + high > 0 else "other", f"{value:.1%} of the pairs")
        for low, high, value in zip(edges[:-1], edges[1:], share, strict=True)
    ]
    return plot.svg(marks, "by how much the preferred picture is scored higher")


def scatter_plot(measured: Measured, scores: Floats) -> dict[str, str] | None:
    """A scatter plot of percentiles against ratings or counts, with the name of these, or None for other kinds of
    labels."""
    labels = measured.labels
    if labels.kind not in ("ratings", "counts"):
        return None
    rows = np.flatnonzero(measured.split.fold >= 0)
    rows = np.random.default_rng(measured.protocol.seed).permutation(rows)[:SHOWN_DOTS]
    percentile = percentiles(scores, measured.split.fold)[rows, 0]
    liked = appeal(labels)[rows]
    counted = labels.kind == "counts"
    name = "rating" if not counted else "count" if exposures_of(labels) is None else "rate"
    # Zero has no place on a logarithmic axis: it is drawn at the left end, a tenth of the smallest positive value.
    least = float(liked[liked > 0].min(initial=1.0)) / 10
    drawn = np.log10(np.maximum(liked, least)) if counted else liked
    low, high = float(drawn.min()), float(drawn.max()) + (1e-9 if drawn.min() == drawn.max() else 0.0)
    marks_at = ticks(low, high)
    if counted:
        nothing = (liked == 0).any()
        marks_at = [(low, "0")] * bool(nothing) + powers(low + 0.5 * bool(nothing), high)
    percents = [(p, f"{p} %") for p in (0, 25, 50, 75, 100)]
    axis = Axis(low, high, marks_at, f"{name}, on a logarithmic axis" if counted else name)
    plot = Plot(axis, Axis(0, 100, percents, "percentile of the score"), pad=6)
    dots = [
        plot.dot(float(x), float(y), "mark dot", 3, f"{name} {value:g}, scored above {y:.0f} %")
        for x, y, value in zip(drawn, percentile, liked, strict=True)
    ]
    return {"name": name, "plot": plot.svg(dots, f"percentile of the score by {name}")}
