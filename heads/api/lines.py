"""Lines that show in a terminal or a notebook what was measured."""

from collections.abc import Mapping
from typing import Any

from embed.wording import table
from heads.evaluation.evaluate import Accuracies
from heads.report.figures import cell, ends, figures_of, number, verdict

SHOWN_SLICES = 20
CELL = "{} ({}..{})"
TOLD_APART = 0.05  # if half the interval is wider than this, real differences between heads are seldom seen
SCORERS = {
    "head": "head",
    "zero_shot": "zero-shot",
    "ridge": "ridge",
    "prior": "prior",
    "image_only": "image only",
    "prompt_only": "prompt only",
    "without_source": "without source",
    "chance": "chance",
}


def accuracy_lines(found: Accuracies) -> list[str]:
    """A verdict, the accuracies with their intervals, and the protocol."""
    measured = {
        "pair accuracy": found.pair_accuracy,
        "zero shot pair accuracy": found.zero_shot_pair_accuracy,
        "chance": found.chance,
    }
    rows = [(name, number(x.value, ".3f"), ends(x)) for name, x in measured.items() if x]
    names = "head", "zero_shot", "chance"
    accuracy = {name: one.value for name, one in zip(names, measured.values(), strict=True) if one}
    lines = table(("", "mean", "95 % interval"), rows)
    return [verdict(accuracy, found.lead), *lines, protocol_line(found.pairs, found.protocol)]


def protocol_line(pairs: int, protocol: Mapping[str, object]) -> str:
    """The number of pairs and the protocol by which they were measured."""
    return (
        f"{pairs} pairs ({protocol['pairs']}), {protocol['folds']} held-out parts, {protocol['average']};"
        f" intervals {protocol['interval']}"
    )


def too_few(found: Accuracies) -> list[str]:
    """A warning line if the interval is too wide to tell a good head from a poor one, otherwise no line."""
    accuracy = found.pair_accuracy
    if not accuracy.high - accuracy.low > 2 * TOLD_APART:  # also true for NaN, when there is no interval
        return []
    return [
        f"too few rows to tell: {found.pairs} pairs held out put the accuracy anywhere from {accuracy.low:.3f} to"
        f" {accuracy.high:.3f}; give more rows, or see how far results differ over splits with --split-seeds 10"
    ]


def scorer_lines(result: dict[str, Any], priors: list[dict[str, Any]]) -> list[str]:
    """The pair accuracy of each scorer, the head's lead over it, and the protocol."""
    rows = []
    for name, interval in result["metrics"]["pair_accuracy"]["scores"].items():
        lead = result["lead"].get(name)
        by = f" by {priors[0]['by']}" if name == "prior" else ""
        row = SCORERS[name] + by, number(interval["value"], ".3f"), ends(interval)
        rows.append(
            (
                *row,
                *((number(lead["difference"]["value"], "+.3f"), number(lead["p_value"], ".2g")) if lead else ("", "")),
            )
        )
    lines = table(("pair accuracy, tie = ½", "mean", "95 % interval", "head's lead", "p"), rows)
    absent = [f"{SCORERS[name]} ({reason})" for name, reason in result["baselines"].items() if reason]
    if absent:
        lines.append(f"without {', '.join(absent)}")
    if others := priors[1:4]:
        lines.append(
            "other priors: " + ", ".join(f"{p['by']} {number(p['pair_accuracy']['value'], '.3f')}" for p in others)
        )
    return [*lines, protocol_line(result["pairs"], result["protocol"])]


def metric_lines(result: dict[str, Any]) -> list[str]:
    """The metrics of all papers for every scorer."""
    names = list(result["metrics"]["pair_accuracy"]["scores"])
    figures = figures_of(result, names, CELL)
    rows = [(label, *cells) for label, _, cells in figures.metrics]
    rows += [("head's lead in pair accuracy", *figures.leads), ("  p, paired bootstrap", *figures.p_values)]
    lines = table(("", *(SCORERS[name] for name in names)), rows)
    if result["tie_thresholds"]:
        thresholds = ", ".join(f"{threshold:g}" for threshold in result["tie_thresholds"])
        lines.append(f"PickScore's tie threshold for the head, {result['tie_thresholds_of']}: {thresholds}")
    return lines + [f"without {', '.join(labels)}: {reason}" for reason, labels in figures.missing.items()]


def slice_lines(result: dict[str, Any]) -> list[str]:
    """The pair accuracy of every scorer for each value of a column."""
    sliced, names = result["slices"], list(result["metrics"]["pair_accuracy"]["scores"])
    shown = sliced["slices"][:SHOWN_SLICES]
    rows = [(s["value"], s["pairs"], *(cell(s["pair_accuracy"][name], CELL) for name in names)) for s in shown]
    lines = ["", *table((f"pair accuracy by {sliced['by']}", "pairs", *(SCORERS[name] for name in names)), rows)]
    if rest := len(sliced["slices"]) - len(shown):
        lines.append(f"and {rest} more values with fewer pairs")
    if sliced["across"]:
        lines.append(f"{sliced['across']} pairs between two values of {sliced['by']} are in no slice")
    return lines
