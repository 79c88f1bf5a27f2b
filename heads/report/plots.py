"""SVG plots for a page, which follow the reader's light or dark theme. Knows no head and no file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 560  # SVG units; the font sizes of embed/showing/style.css are in the same units
LETTER = 9.5  # width of a letter on a telephone, in the same units
NAME = 32  # letters of a name that fit into a line next to a value with its interval


@dataclass(frozen=True)
class Axis:
    """An axis of a plot: its range, its ticks (position and text), and its name."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str = ""


class Plot:
    """An SVG plot with axes. `at` gives the place of a point, and `svg` draws the marks."""

    def __init__(self, x: Axis, y: Axis, width: int = WIDTH, height: int = 420, pad: int = 0) -> None:
        """`pad` units are kept free inside the axes, so that large marks fit."""
        self.x, self.y, self.width, self.height, self.pad = x, y, width, height, pad
        self.left = 18 + round(LETTER * max((len(name) for _, name in y.ticks), default=0))
        self.right, self.top, self.bottom = width - 24, 40 if y.label else 16, height - 56

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point in SVG units."""
        across = (x - self.x.low) / (self.x.high - self.x.low) * (self.right - self.left - 2 * self.pad)
        up = (y - self.y.low) / (self.y.high - self.y.low) * (self.bottom - self.top - 2 * self.pad)
        return self.left + self.pad + across, self.bottom - self.pad - up

    def svg(self, marks: Sequence[str], label: str) -> Markup:
        """The plot with its marks. `label` is read aloud by screen readers."""
        drawn: list[str] = []
        for value, name in self.x.ticks:
            at = self.at(value, self.y.low)[0]
            drawn.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{self.top}" y2="{self.bottom}"/>')
            drawn.append(self.text(at, self.bottom + 20, name, "middle"))
        for value, name in self.y.ticks:
            at = self.at(self.x.low, value)[1]
            drawn.append(f'<line x1="{self.left}" x2="{self.right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            drawn.append(self.text(self.left - 8, at + 5, name, "end"))
        drawn += marks
        drawn.append(self.text((self.left + self.right) / 2, self.height - 12, self.x.label, "middle"))
        drawn.append(self.text(12, 24, self.y.label))
        return Markup(  # safe: it holds only numbers and escaped texts
            f'<svg class="plot" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(label)}">'
            f"{''.join(drawn)}</svg>"
        )

    def text(self, x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
        of = f' class="{kind}"' if kind else ""
        return f'<text{of} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>' if text else ""

    def dot(self, x: float, y: float, kind: str, radius: float = 5, title: str = "") -> str:
        at = self.at(x, y)
        return f'<circle class="{kind}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}">{_title(title)}</circle>'

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        return f'<polyline class="{kind}" points="{path}"/>'

    def bar(self, low: float, high: float, value: float, kind: str, title: str = "") -> str:
        """A bar from the x `low` to `high`, of height `value`."""
        (left, top), (right, bottom) = self.at(low, value), self.at(high, self.y.low)
        size = f'width="{max(right - left - 1, 0.5):.1f}" height="{bottom - top:.1f}"'
        return f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" {size}>{_title(title)}</rect>'


@dataclass(frozen=True)
class Estimate:
    """A line of `intervals`: a name, a value, and the ends of its interval, or None without one."""

    name: str
    value: float
    low: float | None
    high: float | None
    kind: str = "other"  # "mark" for the subject of the page

    @property
    def said(self) -> str:
        """The value with its interval, as text."""
        both = "" if self.low is None or self.high is None else f" ({self.low:z.3f} to {self.high:z.3f})"
        return f"{self.value:z.3f}{both}"


def intervals(estimates: Sequence[Estimate], reference: float, label: str) -> Markup:
    """Values below each other, each with its name and interval. `reference` is a dashed line."""
    ends = [end for e in estimates for end in (e.value, e.low, e.high, reference) if end is not None]
    margin = max(0.05 * (max(ends) - min(ends)), 0.01)
    low, high = min(ends) - margin, max(ends) + margin
    plot = Plot(Axis(low, high, ticks(low, high), label), Axis(0, len(estimates), []), height=76 + 52 * len(estimates))
    marks = [plot.line([(reference, 0), (reference, len(estimates))], "reference")]
    for i, e in enumerate(estimates):
        height = len(estimates) - i - 0.72
        down = plot.at(low, len(estimates) - i - 0.4)[1]
        marks.append(plot.text(plot.left, down, shortened(e.name), kind="name"))
        marks.append(plot.text(plot.right, down, e.said, "end", "name"))
        if e.low is not None and e.high is not None:
            marks.append(plot.line([(e.low, height), (e.high, height)], f"{e.kind} whisker"))
        marks.append(plot.dot(e.value, height, e.kind, 6, f"{e.name}: {e.said}"))
    return plot.svg(marks, label)


def ticks(low: float, high: float, about: int = 6) -> list[tuple[float, str]]:
    """About six round numbers between two, each with its text."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)  # 0.3 / 0.1 is below 3
    return [(i * step, f"{i * step:.10g}") for i in range(first, last + 1)]


def powers(low: float, high: float, about: int = 6) -> list[tuple[float, str]]:
    """About six powers of ten between two logarithms: each one's logarithm, with its text."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    step = max(1, -(-(last - first) // about))
    return [(float(power), _power(power)) for power in range(first, last + 1, step)]


def shortened(name: str) -> str:
    """A name, shortened to fit into a line of `intervals`."""
    return name if len(name) <= NAME else name[: NAME - 1] + "…"


def _power(power: int) -> str:
    for size, unit in ((9, " bn"), (6, " m"), (3, "k")):
        if power >= size:
            return f"{10 ** (power - size)}{unit}"
    return f"{10.0**power:g}"


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
