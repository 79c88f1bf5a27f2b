"""`python -m heads evaluate` and `compare`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from embed.cli.console import progress, table, warn
from embed.files import require_out_file
from embed.spec import InputError
from heads.cli.common import HeldOutOptions, protocol_line, protocol_of
from heads.config import Protocol
from heads.report.figures import cell, comparison, ends, figures_of, number, sure_line, verdict_of

SHOWN_SLICES = 20
CELL = "{} ({}..{})"
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


@dataclass(frozen=True)
class Asked:
    """What is measured beside the head, and what is written."""

    baselines: bool = False
    """Train the same head without prompts, without pictures, and, where rows have source pictures, without these, on
    the same rows. Each takes a training."""
    uncertainty: bool = False
    """Measure whether pairs with a larger difference of scores over their uncertainty are ordered right more often.
    On what was held out that trains up to two heads for each fold, so it is done unasked only for --report and tables
    of up to 3,000 rows. On other tables it takes no training and is always done."""
    prior_by: str | None = None
    """The column of the prior: a guess that a picture is liked as much as the training pictures that have the same
    value in it. For comparisons, the two columns A,B. By default the guess is made from each column of few values, and
    the best one is shown."""
    slice_by: str | None = None
    """A column for each value of which pair accuracy is measured too."""
    all_metrics: bool = False
    """Print every paper's figure."""
    scores: Path | None = None
    """Write the score of every row measured to this file, as parquet."""
    report: Path | None = None
    """Write a page with plots and pictures to this file, .html."""


def evaluate(
    head: str, /, *, cache: str, held_out: HeldOutOptions, protocol: partial[Protocol], asked: Asked
) -> dict[str, object]:
    """Measure a head on the part that was held out from it, or on a table that it has not seen, by every rule.

    Example:
        plaudit heads evaluate head --cache cache --data likes.csv --report a.html

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
    measured = measure_pairs(labels, held.split, protocol_of(protocol, labels, held.manifest["split"]["seed"]))
    if alone := lone_rows(labels, held.split):
        warn(f"{alone} of {held.rows} rows are alone in their group, and compare nothing")
    found = fast_scores(measured, features, held.heads)
    baselines, priors = _baselines(asked, measured, features, held, found)
    found = {name: found[name] for name in SCORERS if name in found}
    result: dict[str, Any] = {
        **pair_accuracies(measured, found).to_json(),
        "metrics": scoreboard(measured, found),
        "lead": lead(measured, found),
        "tie_thresholds": tie_thresholds(measured, found["head"]),
        "tie_thresholds_of": "of each part the best on the others"
        if held.split.validation is None
        else "the best on the rows for validation",
        "reliability": {map: [vars(bin) for bin in reliability(measured, found["head"], map)] for map in MAPS},
        "uncertainty": _certainty(asked, measured, features, held, found["head"]),
        "baselines": baselines,
        "priors": priors,
        "slices": pair_accuracy_by(measured, found, asked.slice_by) if asked.slice_by else None,
        "part": held.part,
        "rows": held.rows,
        "trained_rows": held.seen_rows,
        "split": held.manifest["split"],
    }
    result["verdict"] = verdict_of(result)
    if asked.scores:
        write_scores(asked.scores, labels, held.split, found["head"])
    if asked.report:
        from heads.report.write import write_report

        is_held_out = (held.split.fold >= 0)[:, None]
        found = {name: np.where(is_held_out, values, np.nan) for name, values in found.items()}
        records = held_out.read(held_out.data)
        title = f"{Path(head).name} on {Path(held_out.data).name}"  # whole paths are in what is printed
        write_report(asked.report, title, result, measured, found, records, opened)
    print(result["verdict"], f"{head} on {held_out.data}: {held.part}", *_accuracies(result, priors), sep="\n")
    if asked.uncertainty or "missing" not in result["uncertainty"]:
        print(sure_line(result["uncertainty"]))
    if asked.slice_by:
        print(*_slices(result), sep="\n")
    if asked.all_metrics:
        print("", *_metrics(result), sep="\n")
    else:
        rest = "" if asked.report else "; plots and pictures: --report FILE.html"
        print(f"every paper's figure: --all-metrics, or --json{rest}")
    return result


def compare(
    first: str, second: str, /, *, cache: str, held_out: HeldOutOptions, protocol: partial[Protocol]
) -> dict[str, object]:
    """Test whether one head orders pairs better than another, on the rows that neither has seen.

    Example:
        plaudit heads compare head other --cache cache --data likes.csv

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
    measured = measure_pairs(labels, both[0].split, protocol_of(protocol, labels, both[0].manifest["split"]["seed"]))
    scores = (head_scores(held.heads, labels, features, held.split) for held in both)
    one, other, test = compared(measured, *scores)
    pairs, described = int(measured.decided.sum()), {**measured.describe(), "average": "over pairs of all parts"}
    figures = (first, one, ".3f"), (second, other, ".3f"), ("difference", test.difference, "+.3f")
    rows = [(name, number(interval.value, format), ends(interval, format)) for name, interval, format in figures]
    print(
        comparison(first, second, test.difference.value, test.p_value),
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


def _baselines(
    asked: Asked, measured: Any, features: Any, held: Any, scores: dict[str, Any]
) -> tuple[dict[str, str | None], list[dict[str, object]]]:
    """Add the baselines to `scores`; for each, None, or why it is not there; and the priors, the strongest first."""
    from heads.evaluation.baselines import (
        BLINDED,
        WITHOUT_SOURCE,
        prior_columns,
        ridge_scores,
        strongest_prior,
        trained_scores,
    )

    labels = measured.labels
    missing: dict[str, str | None] = dict.fromkeys(SCORERS, None)
    blinded = list(BLINDED)
    if features.source is None:
        del missing[WITHOUT_SOURCE]
        blinded.remove(WITHOUT_SOURCE)
    if "zero_shot" not in scores:
        missing["zero_shot"] = "some rows have no prompt"
    if not held.own_split:
        missing |= dict.fromkeys(("ridge", "prior", *blinded), "what the head was trained on is not in this table")
        return missing, []
    scores["ridge"] = ridge_scores(labels, features, held.split)
    priors: list[dict[str, object]] = []
    if columns := [asked.prior_by] if asked.prior_by else prior_columns(labels):
        scores["prior"], priors = strongest_prior(measured, columns)
    else:
        missing["prior"] = "no column has few values; --prior-by COLUMN measures it"
    for name in blinded:
        if not asked.baselines:
            missing[name] = "--baselines trains it"
        elif (found := trained_scores(name, labels, features, held.split, held.manifest, progress)) is not None:
            scores[name] = found
        else:
            read = "source pictures" if name == WITHOUT_SOURCE else "both sides"
            missing[name] = f"the head does not read {read}"
    return missing, priors


def _certainty(asked: Asked, measured: Any, features: Any, held: Any, scores: Any) -> dict[str, Any]:
    """What `heads.evaluation.certainty` finds, and by whom the uncertainties are; or why it is `missing`."""
    from heads.data.split import SMALL_ROWS
    from heads.evaluation.certainty import certainty, uncertainties

    small = asked.report is not None and len(measured.labels) <= SMALL_ROWS
    if held.committee and held.own_split and not (asked.uncertainty or small):
        return {"missing": "--uncertainty measures it"}
    try:
        uncertainty = uncertainties(held, measured.labels, features, progress)
    except InputError as error:
        return {"missing": str(error)}
    by = "heads trained anew that have not seen the pair" if held.own_split else "the head's own committee"
    return {"by": by, **certainty(measured, scores, uncertainty)}


def _accuracies(result: dict[str, Any], priors: list[dict[str, Any]]) -> list[str]:
    """The pair accuracy of each scorer, the head's lead over it, and by which protocol."""
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


def _metrics(result: dict[str, Any]) -> list[str]:
    """Every paper's figure of every scorer."""
    names = list(result["metrics"]["pair_accuracy"]["scores"])
    figures = figures_of(result, names, CELL)
    rows = [(label, *cells) for label, _, cells in figures.metrics]
    rows += [("head's lead in pair accuracy", *figures.leads), ("  p, paired bootstrap", *figures.p_values)]
    lines = table(("", *(SCORERS[name] for name in names)), rows)
    if result["tie_thresholds"]:
        thresholds = ", ".join(f"{threshold:g}" for threshold in result["tie_thresholds"])
        lines.append(f"PickScore's tie threshold for the head, {result['tie_thresholds_of']}: {thresholds}")
    return lines + [f"without {', '.join(labels)}: {reason}" for reason, labels in figures.missing.items()]


def _slices(result: dict[str, Any]) -> list[str]:
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
