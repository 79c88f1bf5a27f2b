"""One HTML file with every picture, plot and style inside, so that it opens anywhere, offline.

Pieces of a page as strings: tables, rows of pictures, and plots in SVG that follow the reader's light or dark theme.
Knows no head and no file.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 760  # pixels, of plots: on a telephone they are wider than the screen and can be moved
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #6b7685; --line: #dde3ea; --card: #fff; --page: #f5f7fa;
        --mark: #c2410c; --other: #a8b5c5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --faint: #98a3b3; --line: #2c3542; --card: #1a212b; --page: #12171e; --mark: #fb923c;
          --other: #56657a; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
       max-width: 1080px; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p, figcaption { color: var(--faint); margin: .25rem 0 1rem; max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
td, th { padding: .45rem .9rem; text-align: right; border-top: 1px solid var(--line); vertical-align: top;
         font-variant-numeric: tabular-nums; }
td small { display: block; color: var(--faint); font-size: .72rem; white-space: nowrap; }
td:first-child small { white-space: normal; max-width: 22rem; }
td:first-child, th:first-child { text-align: left; } thead th { border-top: 0; color: var(--faint); font-weight: 500; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: stretch; }
.row > b { width: 7.5rem; align-self: center; font-weight: 500; }
.verdict { color: var(--ink); font-size: 1.15rem; max-width: none; }
.card { width: 112px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .4rem;
        text-align: center; font-size: .8rem; line-height: 1.25; color: var(--faint); overflow-wrap: anywhere; }
.card img { width: 96px; height: 96px; object-fit: contain; display: block; margin: 0 auto .25rem; }
.large .card { width: 136px; } .large .card img { width: 128px; height: 128px; }
.pairs { gap: 1rem 2rem; }
.card b { color: var(--ink); font-weight: 500; display: block; }
.query { border-left: 3px solid var(--mark); padding-left: .9rem; margin: 1.25rem 0; }
.query > .row { margin: .5rem 0; }
svg { background: var(--card); border: 1px solid var(--line); border-radius: 8px; height: auto; }
svg text { fill: var(--faint); font-size: 13px; } svg .name { fill: var(--ink); } svg line { stroke: var(--line); }
svg .mark { fill: var(--mark); stroke: var(--mark); } svg .other { fill: var(--other); stroke: var(--other); }
svg .whisker { stroke-width: 2; } svg polyline { fill: none !important; stroke-width: 2; }
svg .reference { stroke: var(--faint); stroke-dasharray: 4 4; } svg .dot { stroke: none; fill-opacity: .55; }
"""


@dataclass(frozen=True)
class Picture:
    """One picture, as the source of an <img>, with what is shown beneath it: a name, and a line of figures."""

    source: str
    name: str
    detail: str


@dataclass(frozen=True)
class Axis:
    """The range that a side of a plot shows, its ticks (where, and what they say), and its name."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str = ""


def document(title: str, body: str) -> str:
    """The whole page; `body` is HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
{body}
</body></html>
"""


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; what follows a line break in a cell is set small beneath it."""
    body = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{_cells(header, 'th')}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def cards(pictures: Sequence[Picture]) -> str:
    """Pictures in a row."""
    return "".join(
        f'<div class="card"><img src="{p.source}" alt=""><b>{html.escape(p.name)}</b>{html.escape(p.detail)}</div>'
        for p in pictures
    )


class Plot:
    """An SVG with axes; `at` says where a point lies, `svg` draws the marks made with it."""

    def __init__(self, x: Axis, y: Axis, width: int = WIDTH, height: int = 520, left: int = 56, pad: int = 0) -> None:
        """`left` pixels are kept for the names of the y ticks, `pad` around what is drawn, for marks of some size."""
        self.x, self.y, self.width, self.height = x, y, width, height
        self.left, self.right, self.top, self.bottom = left, width - 16, 16, height - 44
        self.pad = pad

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        across = (x - self.x.low) / (self.x.high - self.x.low) * (self.right - self.left - 2 * self.pad)
        up = (y - self.y.low) / (self.y.high - self.y.low) * (self.bottom - self.top - 2 * self.pad)
        return self.left + self.pad + across, self.bottom - self.pad - up

    def svg(self, marks: Sequence[str], label: str) -> str:
        """The plot; `label` is what a screen reader says of it."""
        grid = []
        for value, name in self.x.ticks:
            at = self.at(value, self.y.low)[0]
            grid.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{self.top}" y2="{self.bottom}"/>')
            grid.append(f'<text x="{at:.1f}" y="{self.bottom + 18}" text-anchor="middle">{html.escape(name)}</text>')
        for value, name in self.y.ticks:
            at = self.at(self.x.low, value)[1]
            grid.append(f'<line x1="{self.left}" x2="{self.right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            grid.append(f'<text x="{self.left - 8}" y="{at + 4:.1f}" text-anchor="end">{html.escape(name)}</text>')
        middle = (self.left + self.right) / 2
        names = [
            f'<text x="{middle:.0f}" y="{self.height - 6}" text-anchor="middle">{html.escape(self.x.label)}</text>'
        ]
        if self.y.label:
            names.append(f'<text x="{self.left + 6}" y="{self.top + 12}">{html.escape(self.y.label)}</text>')
        return (
            f'<div class="wide"><svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" role="img"'
            f' aria-label="{html.escape(label)}">{"".join(grid + list(marks) + names)}</svg></div>'
        )

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
    """A line of `intervals`: a name, a value and its interval, None where there is none."""

    name: str
    value: float
    low: float | None
    high: float | None
    kind: str = "other"  # "mark" for what the page is about


def intervals(estimates: Sequence[Estimate], reference: float, label: str) -> str:
    """Values one beneath the other, each with its interval as a whisker; `reference` is a dashed line."""
    ends = [end for e in estimates for end in (e.value, e.low, e.high, reference) if end is not None]
    margin = max(0.05 * (max(ends) - min(ends)), 0.01)
    low, high = min(ends) - margin, max(ends) + margin
    x = Axis(low, high, ticks(low, high), label)
    left = 40 + 7 * max(len(_short(e.name)) for e in estimates)  # pixels; a letter of 13 pixels is some 7 wide
    plot = Plot(x, Axis(0, len(estimates), []), height=70 + 30 * len(estimates), left=left)
    marks = [plot.line([(reference, 0), (reference, len(estimates))], "reference")]
    for i, e in enumerate(estimates):
        height = len(estimates) - i - 0.5
        name, down = html.escape(_short(e.name)), plot.at(low, height)[1] + 4
        marks.append(f'<text class="name" x="{plot.left - 12}" y="{down:.1f}" text-anchor="end">{name}</text>')
        if e.low is not None and e.high is not None:
            marks.append(plot.line([(e.low, height), (e.high, height)], f"{e.kind} whisker"))
        marks.append(plot.dot(e.value, height, e.kind, title=f"{e.name}: {e.value:.3f}"))
    return plot.svg(marks, label)


def ticks(low: float, high: float, about: int = 6) -> list[tuple[float, str]]:
    """Some six round numbers between two, and how they are written."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)  # 0.3 / 0.1 is below 3
    return [(i * step, f"{i * step:.10g}") for i in range(first, last + 1)]


def _cells(values: Sequence[str], tag: str) -> str:
    cells = []
    for value in values:
        shown, _, small = value.partition("\n")
        cells.append(f"<{tag}>{html.escape(shown)}{f'<small>{html.escape(small)}</small>' if small else ''}</{tag}>")
    return "".join(cells)


def _title(text: str) -> str:
    return f"<title>{html.escape(text)}</title>" if text else ""


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:33] + "…"
