"""What `heads evaluate` found, as the cells of a table: for the terminal and for the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heads.evaluation.intervals import Interval


@dataclass(frozen=True)
class Figures:
    """A cell for each scorer in every row; `missing` names the metrics that were not measured, by the reason."""

    metrics: list[tuple[str, str, list[str]]]  # label, rule, cells
    leads: list[str]  # of the head over each scorer
    p_values: list[str]
    missing: dict[str, list[str]]


def figures_of(result: Mapping[str, Any], scorers: Sequence[str], pattern: str) -> Figures:
    """The figures of what `heads evaluate` returns; `pattern` is of cells with an interval."""
    rows, missing = [], dict[str, list[str]]()
    for metric in result["metrics"].values():
        if "missing" in metric:
            missing.setdefault(metric["missing"], []).append(metric["label"])
        else:
            cells = [cell(metric["scores"].get(name), pattern) for name in scorers]
            rows.append((metric["label"], metric["rule"], cells))
    leads = [result["lead"].get(name) for name in scorers]
    differences = [cell(one and one["difference"], pattern, "+.3f") for one in leads]
    return Figures(rows, differences, [number(one["p_value"], ".3g") if one else "" for one in leads], missing)


def cell(interval: Mapping[str, Any] | None, pattern: str, format: str = ".3f") -> str:
    """An interval's value, low and high in a pattern such as `{} ({}..{})`, or its value alone; nothing for None."""
    if interval is None:
        return ""
    value, *both = (number(interval[name], format) for name in ("value", "low", "high"))
    return value if "-" in both else pattern.format(value, *both)


def told(interval: Interval, format: str = ".3f") -> str:
    """A value with its interval or why it has none: `0.709 (0.661 to 0.757)`."""
    return f"{number(interval.value, format)} ({'no interval: ' * bool(interval.reason)}{ends(interval, format)})"


def ends(interval: Interval, format: str = ".3f") -> str:
    """An interval without its value, `0.661 to 0.757`, or why there is none."""
    return interval.reason or f"{number(interval.low, format)} to {number(interval.high, format)}"


def number(value: float | None, format: str) -> str:
    """A number as text, and a dash for none or NaN; what is rounded to zero has no sign."""
    if value is None or math.isnan(value):
        return "-"
    sign, rest = ("+", format[1:]) if format.startswith("+") else ("", format)
    return f"{value:{sign}z{rest}}"
