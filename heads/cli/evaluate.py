"""`python -m heads evaluate` and `compare`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from embed.cli.console import progress, table, warn
from embed.files import require_out_file
from heads.cli.common import HeldOutOptions, protocol_line
from heads.config import Protocol
from heads.report.figures import cell, figures_of, number

SHOWN_SLICES = 20
CELL = "{} ({}..{})"
SCORERS = {
    "head": "head",
    "zero_shot": "zero-shot",
    "image_only": "image only",
    "prompt_only": "prompt only",
    "prior": "prior",
    "chance": "chance",
}


@dataclass(frozen=True)
class Asked:
    """What is measured beside the head, and what is written."""

    baselines: bool = False
    """Train the same head without prompts, and without pictures, on the same rows. That takes two trainings."""
    prior_by: str | None = None
    """A baseline that knows only how much was liked in training what has the same value of this column, or, for
    comparisons, of the two columns A,B."""
    slice_by: str | None = None
    """A column for each value of which pair accuracy is measured too."""
    scores: Path | None = None
    """Write the score of every row measured to this file, as parquet."""
    report: Path | None = None
    """Write a page with plots and pictures to this file, .html."""


def evaluate(
    head: str, /, *, cache: str, held_out: HeldOutOptions, protocol: partial[Protocol], asked: Asked
) -> dict[str, object]:
    """Measure a head on the part that was held out from it, or on a table that it has not seen, by every rule.

    Args:
        head: A folder made by `python -m heads train`.
        cache: The cache with the vectors of the table.
    """
    for option, file in (("--scores", asked.scores), ("--report", asked.report)):
        if file:
            require_out_file(file, option)
    import numpy as np

    from heads.evaluation.evaluate import fast_scores, pair_accuracies, write_scores
    from heads.evaluation.measured import lone_rows, measure_pairs
    from heads.evaluation.paired import lead
    from heads.evaluation.scoreboard import MAPS, reliability, scoreboard, tie_thresholds
    from heads.evaluation.slices import pair_accuracy_by

    opened, labels, features, (held,) = held_out.open(cache, head)
    measured = measure_pairs(labels, held.split, protocol(seed=held.manifest["split"]["seed"]))
    if alone := lone_rows(labels, held.split):
        warn(f"{alone} of {held.rows} rows are alone in their group, and compare nothing")
    found = fast_scores(measured, features, held.heads)
    baselines = _baselines(asked, labels, features, held, found)
    found = {name: found[name] for name in SCORERS if name in found}
    result = {
        **pair_accuracies(measured, found).to_json(),
        "metrics": scoreboard(measured, found),
        "lead": lead(measured, found),
        "tie_thresholds": tie_thresholds(measured, found["head"]),
        "tie_thresholds_of": "of each part the best on the others"
        if held.split.validation is None
        else "the best on the rows for validation",
        "reliability": {map: [vars(bin) for bin in reliability(measured, found["head"], map)] for map in MAPS},
        "baselines": baselines,
        "slices": pair_accuracy_by(measured, found, asked.slice_by) if asked.slice_by else None,
        "part": held.part,
        "rows": held.rows,
        "trained_rows": held.seen_rows,
        "split": held.manifest["split"],
    }
    if asked.scores:
        write_scores(asked.scores, labels, held.split, found["head"])
    if asked.report:
        from heads.report.write import write_report

        is_held_out = (held.split.fold >= 0)[:, None]
        found = {name: np.where(is_held_out, values, np.nan) for name, values in found.items()}
        records = held_out.read(held_out.data)
        write_report(asked.report, f"{head} on {held_out.data}", result, measured, found, records, opened)
    print(f"{head} on {held_out.data}: {held.part}", *_lines(result), sep="\n")
    return result


def compare(
    first: str, second: str, /, *, cache: str, held_out: HeldOutOptions, protocol: partial[Protocol]
) -> dict[str, object]:
    """Test whether one head orders pairs better than another, on the rows that neither has seen.

    Args:
        first: A folder made by `python -m heads train`.
        second: Another one.
        cache: The cache with the vectors of the table.
    """
    from heads.evaluation.evaluate import head_scores
    from heads.evaluation.held_out import in_common
    from heads.evaluation.measured import measure_pairs
    from heads.evaluation.paired import compared

    _, labels, features, parts = held_out.open(cache, first, second)
    both = in_common(*parts)
    measured = measure_pairs(labels, both[0].split, protocol(seed=both[0].manifest["split"]["seed"]))
    scores = (head_scores(held.heads, labels, features, held.split) for held in both)
    one, other, test = compared(measured, *scores)
    pairs, described = int(measured.decided.sum()), {**measured.describe(), "average": "over pairs of all parts"}
    figures = (first, one, ".3f"), (second, other, ".3f"), ("difference", test.difference, "+.3f")
    rows = [
        (name, *cell(interval.to_json(), "{}|{} to {}", format).partition("|")[::2])
        for name, interval, format in figures
    ]
    print(
        f"{held_out.data}: {both[0].part}",
        *table(("pair accuracy, tie = ½", "mean", "95 % interval"), rows),
        f"p = {number(test.p_value, '.3g')} (paired bootstrap, two-sided)",
        protocol_line(pairs, described),
        sep="\n",
    )
    return {
        "pair_accuracy": {"first": one.to_json(), "second": other.to_json()},
        **test.to_json(),
        "part": both[0].part,
        "rows": both[0].rows,
        "trained_rows": [held.seen_rows for held in both],
        "pairs": pairs,
        "protocol": described,
    }


def _baselines(asked: Asked, labels: Any, features: Any, held: Any, scores: dict[str, Any]) -> dict[str, str | None]:
    """Add the baselines asked for to `scores`; for each, None, or why it is not there."""
    from heads.evaluation.baselines import BLINDED, prior_scores, trained_scores

    missing: dict[str, str | None] = dict.fromkeys(SCORERS, None)
    if "zero_shot" not in scores:
        missing["zero_shot"] = "some rows have no prompt"
    prior_by = asked.prior_by or ""
    for name in (*BLINDED, "prior"):
        if not (prior_by if name == "prior" else asked.baselines):
            missing[name] = "--prior-by COLUMN measures it" if name == "prior" else "--baselines trains it"
        elif not held.own_split or "training" not in held.manifest:
            missing[name] = "what the head was trained on is not in this table"
        elif name == "prior":
            scores[name] = prior_scores(labels, held.split, prior_by)
        elif (found := trained_scores(name, labels, features, held.split, held.manifest, progress)) is not None:
            scores[name] = found
        else:
            missing[name] = "the head does not read both sides"
    return missing


def _lines(result: dict[str, Any]) -> list[str]:
    names = [name for name in SCORERS if name in result["metrics"]["pair_accuracy"]["scores"]]
    figures = figures_of(result, names, CELL)
    rows = [(label, *cells) for label, _, cells in figures.metrics]
    rows += [("head's lead in pair accuracy", *figures.leads), ("  p, paired bootstrap", *figures.p_values)]
    lines = table(("", *(SCORERS[name] for name in names)), rows)
    if result["tie_thresholds"]:
        thresholds = ", ".join(f"{threshold:g}" for threshold in result["tie_thresholds"])
        lines.append(f"PickScore's tie threshold for the head, {result['tie_thresholds_of']}: {thresholds}")
    lines += [f"without {', '.join(labels)}: {reason}" for reason, labels in figures.missing.items()]
    lines += [f"without {SCORERS[name]}: {reason}" for name, reason in result["baselines"].items() if reason]
    if sliced := result["slices"]:
        shown = sliced["slices"][:SHOWN_SLICES]
        rows = [(s["value"], s["pairs"], *(cell(s["pair_accuracy"][name], CELL) for name in names)) for s in shown]
        lines += ["", *table((f"pair accuracy by {sliced['by']}", "pairs", *(SCORERS[name] for name in names)), rows)]
        if rest := len(sliced["slices"]) - len(shown):
            lines.append(f"and {rest} more values with fewer pairs")
        if sliced["across"]:
            lines.append(f"{sliced['across']} pairs between two values of {sliced['by']} are in no slice")
    return [*lines, protocol_line(result["pairs"], result["protocol"])]
