"""`python -m heads evaluate` and `compare`."""

import argparse
from pathlib import Path
from typing import Any

from embed.console import command, progress, say, table, warn
from heads.cli.common import add_held_out_options, cache_labels_features, protocol_line

SHOWN_SLICES = 20
SCORERS = {
    "head": "head",
    "zero_shot": "zero-shot",
    "image_only": "image only",
    "prompt_only": "prompt only",
    "prior": "prior",
    "chance": "chance",
}


def add_commands(commands: Any) -> None:
    parser = command(commands, "evaluate", evaluate, "measure a head on the part that was held out from it")
    parser.add_argument("head", metavar="HEAD", help="a folder made by `python -m heads train`")
    add_held_out_options(parser)
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="train the same head without prompts, and without pictures, on the same rows: takes two trainings",
    )
    parser.add_argument(
        "--prior-by",
        metavar="COLUMN",
        help="a baseline that knows only how much was liked in training what has the same COLUMN (for comparisons A,B)",
    )
    parser.add_argument("--slice-by", metavar="COLUMN", help="pair accuracy for each value of COLUMN, too")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="write the score of every row measured, as parquet")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page (.html) with plots and pictures")

    parser = command(commands, "compare", compare, "test whether one head orders pairs better than another")
    parser.add_argument("first", metavar="HEAD_A")
    parser.add_argument("second", metavar="HEAD_B")
    add_held_out_options(parser)


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the head on its held-out rows, or on those of a table that it has not seen, by every rule."""
    import numpy as np

    from heads.evaluation.evaluate import Protocol, fast_scores, lone_rows, measure_pairs, pair_accuracies, write_scores
    from heads.evaluation.groups import GroupedRows
    from heads.evaluation.held_out import hold_out
    from heads.evaluation.paired import lead
    from heads.evaluation.scoreboard import MAPS, reliability, scoreboard, tie_thresholds
    from heads.evaluation.slices import pair_accuracy_by

    cache, labels, features = cache_labels_features(args, args.head)
    held = hold_out(args.head, cache, labels, args.all, args.strict)
    protocol = Protocol(min_ratio=args.min_ratio, seed=held.manifest["split"]["seed"])
    measured = measure_pairs(labels, held.split, protocol)
    if alone := lone_rows(labels, held.split):
        warn(f"{alone} of {held.rows} rows are alone in their group, and compare nothing")
    scores = fast_scores(measured, features, held.heads)
    baselines = _baselines(args, labels, features, held, scores)
    grouped = GroupedRows(measured)
    scores = {name: scores[name] for name in SCORERS if name in scores}
    result = {
        **pair_accuracies(measured, scores),
        "metrics": scoreboard(grouped, scores),
        "lead": lead(grouped, scores),
        "tie_thresholds": tie_thresholds(grouped, scores["head"]),
        "tie_thresholds_of": "of each part the best on the others"
        if held.split.validation is None
        else "the best on the rows for validation",
        "reliability": {map: [vars(bin) for bin in reliability(grouped, scores["head"], map)] for map in MAPS},
        "baselines": baselines,
        "slices": pair_accuracy_by(measured, scores, args.slice_by) if args.slice_by else None,
        "part": held.part,
        "rows": held.rows,
        "trained_rows": held.seen_rows,
        "split": held.manifest["split"],
    }
    if args.scores:
        write_scores(args.scores, labels, held.split, scores["head"])
    if args.report:
        from embed.config import parse_columns
        from embed.records.formats import read_records
        from heads.report.write import write_report

        records = read_records(args.data, args.format, columns=parse_columns(args.columns or ""))
        held_out = (held.split.fold >= 0)[:, None]
        scores = {name: np.where(held_out, values, np.nan) for name, values in scores.items()}
        write_report(args.report, f"{args.head} on {args.data}", result, grouped, scores, records, cache)
    say(args, f"{args.head} on {args.data}: {held.part}", *_lines(result))
    return result


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both heads' pair accuracy on the rows that neither has seen, and the paired test of their difference."""
    from heads.evaluation.evaluate import Protocol, head_scores, measure_pairs
    from heads.evaluation.held_out import hold_out, in_common
    from heads.evaluation.paired import compared

    cache, labels, features = cache_labels_features(args, args.first, args.second)
    both = in_common(*(hold_out(path, cache, labels, args.all, args.strict) for path in (args.first, args.second)))
    measured = measure_pairs(labels, both[0].split, Protocol(args.min_ratio, seed=both[0].manifest["split"]["seed"]))
    result = {
        **compared(measured, *(head_scores(held.heads, labels, features, held.split) for held in both)),
        "part": both[0].part,
        "rows": both[0].rows,
        "trained_rows": [held.seen_rows for held in both],
        "pairs": int(measured.decided.sum()),
        "protocol": {**measured.describe(), "average": "over pairs of all parts"},
    }
    accuracy = result["pair_accuracy"]
    rows = [
        (args.first, *_value_and_interval(accuracy["first"])),
        (args.second, *_value_and_interval(accuracy["second"])),
        ("difference", *_value_and_interval(result["difference"], sign="+")),
    ]
    say(
        args,
        f"{args.data}: {both[0].part}",
        *table(("pair accuracy, tie = ½", "mean", "95 % interval"), rows),
        f"p = {_number(result['p_value'], '.3g')} (paired bootstrap, two-sided)",
        protocol_line(result),
    )
    return result


def _baselines(
    args: argparse.Namespace, labels: Any, features: Any, held: Any, scores: dict[str, Any]
) -> dict[str, str | None]:
    """Add the baselines asked for to `scores`; for each, None, or why it is not there."""
    from heads.evaluation.baselines import BLINDED, prior_scores, trained_scores

    missing: dict[str, str | None] = dict.fromkeys(SCORERS, None)
    if "zero_shot" not in scores:
        missing["zero_shot"] = "some rows have no prompt"
    asked = {**dict.fromkeys(BLINDED, args.baselines and "--baselines"), "prior": args.prior_by and "--prior-by"}
    for name, option in asked.items():
        if not option:
            missing[name] = "--prior-by COLUMN measures it" if name == "prior" else "--baselines trains it"
        elif not held.own_split or "training" not in held.manifest:
            missing[name] = "what the head was trained on is not in this table"
        elif name == "prior":
            scores[name] = prior_scores(labels, held.split, args.prior_by)
        elif (found := trained_scores(name, labels, features, held.split, held.manifest, progress)) is not None:
            scores[name] = found
        else:
            missing[name] = "the head does not read both sides"
    return missing


def _lines(result: dict[str, Any]) -> list[str]:
    names = [name for name in SCORERS if name in result["metrics"]["pair_accuracy"]["scores"]]
    rows, missing = [], dict[str, list[str]]()
    for metric in result["metrics"].values():
        if "missing" in metric:
            missing.setdefault(metric["missing"], []).append(metric["label"])
        else:
            rows.append((metric["label"], *(_cell(metric["scores"].get(name)) for name in names)))
    leads = [result["lead"].get(name) for name in names]
    rows.append(("head's lead in pair accuracy", *(_cell(one and one["difference"], "+") for one in leads)))
    rows.append(("  p, paired bootstrap", *("" if one is None else _number(one["p_value"], ".3g") for one in leads)))
    lines = table(("", *(SCORERS[name] for name in names)), rows)
    if result["tie_thresholds"]:
        thresholds = ", ".join(f"{threshold:g}" for threshold in result["tie_thresholds"])
        lines.append(f"PickScore's tie threshold for the head, {result['tie_thresholds_of']}: {thresholds}")
    lines += [f"without {', '.join(labels)}: {reason}" for reason, labels in missing.items()]
    lines += [f"without {SCORERS[name]}: {reason}" for name, reason in result["baselines"].items() if reason]
    if sliced := result["slices"]:
        shown = sliced["slices"][:SHOWN_SLICES]
        rows = [(s["value"], s["pairs"], *(_cell(s["pair_accuracy"][name]) for name in names)) for s in shown]
        lines += ["", *table((f"pair accuracy by {sliced['by']}", "pairs", *(SCORERS[name] for name in names)), rows)]
        if rest := len(sliced["slices"]) - len(shown):
            lines.append(f"and {rest} more values with fewer pairs")
        if sliced["across"]:
            lines.append(f"{sliced['across']} pairs between two values of {sliced['by']} are in no slice")
    return [*lines, protocol_line(result)]


def _cell(interval: dict[str, float | None] | None, sign: str = "") -> str:
    if interval is None or interval["value"] is None:
        return "" if interval is None else "-"
    value, around = _value_and_interval(interval, sign)
    return f"{value} ({around.replace(' to ', '..')})" if around else value


def _value_and_interval(interval: dict[str, float | None], sign: str = "") -> tuple[str, str]:
    low, high = interval["low"], interval["high"]
    around = "" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"
    return _number(interval["value"], f"{sign}.3f"), around


def _number(value: float | None, format: str) -> str:
    return "-" if value is None else format and f"{value:{format}}"
