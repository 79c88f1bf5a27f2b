"""`python -m heads calibrate`."""

import argparse
from typing import Any

from embed.console import command, say
from heads.cli.common import add_held_out_options, tables_and_features


def add_commands(commands: Any) -> None:
    parser = command(
        commands, "calibrate", calibrate, "make a head's scores mean something: probabilities, percentiles"
    )
    parser.add_argument("head", metavar="HEAD", help="a folder made by `python -m heads train` or `import`; is changed")
    add_held_out_options(parser)
    parser.add_argument(
        "--reference",
        metavar="TABLE",
        help="a table whose pictures the percentiles compare with, read as --data is; without, what is held out there",
    )


def calibrate(args: argparse.Namespace) -> dict[str, Any]:
    """Fit a temperature, an isotonic map and percentiles on rows that the head has not seen; store them with it."""
    from embed.cache.store import Cache
    from heads.evaluation.evaluate import Protocol, calibration_of, head_scores, measure_pairs
    from heads.evaluation.held_out import hold_out, require_backbone
    from heads.store.disk import save_calibration

    cache = Cache.open(args.cache)
    require_backbone(args.head, cache)
    tables, features = tables_and_features(args, cache, [args.data, *([args.reference] if args.reference else [])])
    parts = [hold_out(args.head, cache, labels, args.all, args.strict) for labels in tables]
    scores = [head_scores(held.heads, labels, features, held.split) for held, labels in zip(parts, tables, strict=True)]
    held, labels = parts[0], tables[0]
    measured = measure_pairs(labels, held.split, Protocol(args.min_ratio, seed=held.manifest["split"]["seed"]))
    calibration = calibration_of(measured, scores[0], scores[-1])
    calibration["fitted_on"] |= {"table": args.data, "part": held.part, "trained_rows": held.seen_rows}
    calibration["fitted_on"] |= {"reference_table": args.reference or args.data, "reference_part": parts[-1].part}
    save_calibration(args.head, calibration)
    say(args, *calibration_lines(calibration), f"stored in {args.head}; export it again to serve it")
    return {"head": args.head, **calibration}


def calibration_lines(calibration: dict[str, Any]) -> list[str]:
    fitted = calibration["fitted_on"]
    return [
        f"temperature {calibration['temperature']['value']:.4g}, fitted on {fitted['pairs']} held-out pairs"
        f" ({fitted['pairs_are']}): sigmoid(difference / temperature) is the probability that one is preferred",
        f"percentiles of {fitted['reference']} scores of {fitted['reference_table']}, {fitted['reference_part']}",
    ]
