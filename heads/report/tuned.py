"""The page of `heads tune`: what became of a generator, in figures, curves, and pictures of before and after."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heads.report.page import Axis, Picture, Plot, cards, document, text_table, ticks

Curve = Sequence[tuple[float, float]]  # step and value


@dataclass(frozen=True)
class BeforeAfter:
    """A prompt's picture, from the same noise before and after."""

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
) -> str:
    """The page as HTML. `said` is told first, `kept` is the step whose weights were kept, `drawn` how the pairs were
    drawn."""
    verdict, *rest = said
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="verdict">{html.escape(verdict)}</p>',
        *(f"<p>{html.escape(line)}</p>" for line in rest),
        "<h2>Before and after</h2>",
        text_table(header, rows),
        f"<h2>The same prompts from the same noise</h2><p>Left before, right after. {html.escape(drawn)}</p>",
        f'<div class="row large pairs">{"".join(_pair(pair) for pair in pairs)}</div>',
        "<h2>On the way</h2>",
        "<p>The dashed line is the step whose weights were kept.</p>" if kept is not None else "",
        *(f"<h3>{html.escape(name)}</h3>{curve(points, kept, name)}" for name, points in curves.items()),
    ]
    return document(title, "\n".join(filter(None, sections)))


def curve(points: Curve, kept: int | None, name: str) -> str:
    """Values by step; what is not finite is left out."""
    shown = [point for point in points if math.isfinite(point[1])]
    if len(shown) < 2:
        return "<p>Not measured.</p>"
    steps, values = zip(*shown, strict=True)
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or abs(high) * 0.05 or 0.01
    y = Axis(low - margin, high + margin, ticks(low - margin, high + margin, 4))
    plot = Plot(Axis(steps[0], steps[-1], ticks(steps[0], steps[-1]), "step"), y, 640, 200, left=80, pad=6)
    marks = [] if kept is None else [plot.line([(kept, y.low), (kept, y.high)], "reference")]
    marks.append(plot.line(shown, "mark"))
    marks += [plot.dot(step, value, "mark", 3, f"step {step:g}: {value:.4g}") for step, value in shown]
    return plot.svg(marks, f"{name} by step")


def _pair(pair: BeforeAfter) -> str:
    return f'<div class="row">{cards([pair.before, pair.after])}</div>'
