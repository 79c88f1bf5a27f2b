"""The results of `heads evaluate` as cells of a table, for the terminal and for the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heads.evaluation.intervals import Interval

# Names of the simpler scorers in the verdict.
RIVALS = {"zero_shot": "zero-shot CLIP", "ridge": "ridge regression", "prior": "the prior"}


@dataclass(frozen=True)
class Figures:
    """Rows with a cell for each scorer. `missing` maps a reason to the metrics that were not measured for it."""

    metrics: list[tuple[str, str, list[str]]]  # label, rule, cells
    leads: list[str]  # the head's lead over each scorer
    p_values: list[str]
    missing: dict[str, list[str]]


def verdict(accuracy: Mapping[str, float], lead: Mapping[str, Any], prior_by: str = "", trained_rows: int = 0) -> str:
    """A sentence that says whether a head is better than each simpler scorer: yes, no, or cannot tell.

    `accuracy` is the pair accuracy of each scorer, `lead` comes from `heads.evaluation.measured.lead`. A difference
    counts if its p is below 0.05. Chance is named only if there is no other scorer.
    """
    names = [name for name in RIVALS if name in lead] or ["chance"]
    said: dict[str, list[str]] = {"better than": [], "worse than": [], "not to be told from": []}
    for name in names:
        value, p = lead[name]["difference"]["value"], lead[name]["p_value"]
        kind = "not to be told from" if p is None or p >= 0.05 else "better than" if value > 0 else "worse than"
        said[kind].append(f"{RIVALS.get(name, name)}{f' by {prior_by}' * (name == 'prior')} ({accuracy[name]:.3f})")
    answer = "No" if said["worse than"] else "Cannot tell" if said["not to be told from"] else "Yes"
    found = ", ".join(f"{kind} {_and(named)}" for kind, named in said.items() if named)
    honest = " The head was trained on some of these rows, so this is not an honest test." if trained_rows else ""
    return (
        f"Better than {_and([RIVALS.get(name, name) for name in names])}? {answer}: the head orders"
        f" {accuracy['head']:.3f} of the pairs as people did, {found}.{honest}"
    )


def comparison(first: str, second: str, difference: float, p_value: float) -> str:
    """A sentence that says which of two heads orders pairs better."""
    if not p_value < 0.05:
        return f"Cannot tell which of {first} and {second} orders pairs better."
    better, worse = (first, second) if difference > 0 else (second, first)
    return f"{better} orders pairs better than {worse}."


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def verdict_of(result: Mapping[str, Any]) -> str:
    """The verdict on the result of `heads evaluate`."""
    accuracy = {name: one["value"] for name, one in result["metrics"]["pair_accuracy"]["scores"].items()}
    by = result["priors"][0]["by"] if result["priors"] else ""
    return verdict(accuracy, result["lead"], by, result["trained_rows"])


def sure_line(found: Mapping[str, Any]) -> str:
    """A sentence on a head's uncertainty from the result of `heads evaluate`, or the reason why it was not measured."""
    if "missing" in found:
        return f"how sure each score is: not measured ({found['missing']})"
    shares, by_difference = (
        ", ".join(number(third["right"]["value"], ".3f") for third in found[name])
        for name in ("thirds", "thirds_by_difference")
    )
    return (
        f"ordered right, by thirds of the pairs from least to most certain: {shares} by the difference of scores"
        f" over its uncertainty; {by_difference} by the difference alone"
    )


def figures_of(result: Mapping[str, Any], scorers: Sequence[str], pattern: str) -> Figures:
    """The figures of the result of `heads evaluate`. `pattern` is the format of cells with an interval."""
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
    """An interval's value, low and high in a pattern such as `{} ({}..{})`, or only its value without an interval. An
    empty text for None."""
    if interval is None:
        return ""
    value, *both = (number(interval[name], format) for name in ("value", "low", "high"))
    return value if "-" in both else pattern.format(value, *both)


def told(interval: Interval, format: str = ".3f") -> str:
    """A value with its interval, `0.709 (0.661 to 0.757)`, or with the reason why it has none."""
    return f"{number(interval.value, format)} ({'no interval: ' * bool(interval.reason)}{ends(interval, format)})"


def ends(interval: Interval | Mapping[str, Any], format: str = ".3f") -> str:
    """The ends of an interval, `0.661 to 0.757`, or the reason why there are none."""
    given: Mapping[str, Any] = interval.to_json() if isinstance(interval, Interval) else interval
    return (
        given["reason"] if "reason" in given else f"{number(given['low'], format)} to {number(given['high'], format)}"
    )


def number(value: float | None, format: str) -> str:
    """A number as text, or a dash for None and NaN. A number that is rounded to zero has no sign."""
    if value is None or math.isnan(value):
        return "-"
    sign, rest = ("+", format[1:]) if format.startswith("+") else ("", format)
    return f"{value:{sign}z{rest}}"
