"""The page of `heads tune`: how tuning changed a generator, in figures, curves, and pictures before and after."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heads.report.page import Picture, fill
from heads.report.plots import Axis, Plot, ticks

Curve = Sequence[tuple[float, float]]  # step and value


@dataclass(frozen=True)
class BeforeAfter:
    """A prompt's pictures before and after tuning, from the same noise."""

    before: Picture
    after: Picture


def tuned_page(
    title: str,
    said: Sequence[str],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    curves: Mapping[str, Curve],
    kept: int | None,
    pairs: Sequence[BeforeAfter],
    drawn: str,
) -> bytes:
    """The HTML of the page. `said` comes first, `kept` is the step whose weights were kept, and `drawn` says how the
    pairs were drawn."""
    return fill(
        "tuned.html",
        title=title,
        said=said,
        header=header,
        rows=rows,
        kept=kept,
        pairs=[(pair.before, pair.after) for pair in pairs],
        drawn=drawn,
        curves={name: curve(points, kept, name) for name, points in curves.items()},
    )


def curve(points: Curve, kept: int | None, name: str) -> str | None:
    """A plot of the finite values by step, or None if there are fewer than two."""
    shown = [point for point in points if math.isfinite(point[1])]
    if len(shown) < 2:
        return None
    steps, values = zip(*shown, strict=True)
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or abs(high) * 0.05 or 0.01
    y = Axis(low - margin, high + margin, ticks(low - margin, high + margin, 4), name)
    plot = Plot(Axis(steps[0], steps[-1], ticks(steps[0], steps[-1]), "step"), y, height=260, pad=6)
    marks = [] if kept is None else [plot.line([(kept, y.low), (kept, y.high)], "reference")]
    marks.append(plot.line(shown, "mark"))
    marks += [plot.dot(step, value, "mark", 3, f"step {step:g}: {value:.4g}") for step, value in shown]
    return plot.svg(marks, f"{name} by step")
