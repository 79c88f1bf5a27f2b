"""`python -m heads generators`."""

import argparse
from typing import Any

from embed.console import command, say, table, warn
from heads.cli.common import add_held_out_options, cache_labels_features


def add_commands(commands: Any) -> None:
    parser = command(commands, "generators", generators, "rank image generators by people's choices, and by a head's")
    parser.add_argument("head", metavar="HEAD", nargs="?", help="rank by this head too, on rows that it has not seen")
    add_held_out_options(parser, cache_required=False)
    parser.add_argument(
        "--by", required=True, metavar="COLUMN", help="who made the picture; for comparisons A,B, one for each side"
    )
    parser.add_argument("--pattern", metavar="REGEX", help="the part of COLUMN that names the generator: '^[^_]+'")
    parser.add_argument("--orders", type=int, default=50, help="random orders in which Elo is played (default 50)")
    parser.add_argument("--seed", type=int, default=0)


def generators(args: argparse.Namespace) -> dict[str, Any]:
    """Elo and Bradley-Terry of every generator; with a head, how far its ranking and people's agree."""
    import numpy as np

    from embed.config import parse_columns
    from embed.records.formats import read_records
    from embed.spec import InputError
    from heads.data.comparisons import labels_alone
    from heads.evaluation.generators import choices_in, elo_agreement, generators_of
    from heads.metrics import spearman

    if args.orders < 1:
        raise InputError(f"--orders is {args.orders}; wanted 1 or more")
    if bool(args.head) != bool(args.cache):
        raise InputError("a HEAD and its --cache are wanted together, or neither")
    result: dict[str, Any] = {}
    if args.head:
        labels, scores, fold, part = _scored(args)
    else:
        labels = labels_alone(read_records(args.data, args.format, columns=parse_columns(args.columns or "")))
        scores, fold, part = None, np.zeros(len(labels), np.int64), "all rows"
    generator = generators_of(labels, args.by, args.pattern)
    people = choices_in(labels, generator, fold)
    result = {"part": part, "choices": len(people.a), "orders": args.orders, "people": _ranking(people, args)}
    if scores is not None:
        theirs = choices_in(labels, generator, fold, scores)
        result["head"] = _ranking(theirs, args)
        mean, sd = elo_agreement(people, theirs, np.random.default_rng(args.seed), args.orders)
        agreement: dict[str, Any] = {"elo_spearman": {"mean": mean, "sd": sd}, "bradley_terry_spearman": None}
        if all(result[side]["bradley_terry"] for side in ("people", "head")):
            strengths = (
                [result[side]["bradley_terry"][name]["value"] for name in people.generators]
                for side in ("people", "head")
            )
            agreement["bradley_terry_spearman"] = spearman(*strengths)
        result["agreement"] = agreement
    say(args, f"{args.data}: {part}", *_lines(result))
    return result


def _scored(args: argparse.Namespace) -> tuple[Any, Any, Any, str]:
    """The labels, the head's scores (m, sides) of what it has not seen, each row's fold, and which rows these are."""
    from heads.evaluation.evaluate import head_scores
    from heads.evaluation.held_out import hold_out

    cache, labels, features = cache_labels_features(args, args.head)
    held = hold_out(args.head, cache, labels, args.all, args.strict)
    return labels, head_scores(held.heads, labels, features, held.split), held.split.fold, held.part


def _ranking(choices: Any, args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from embed.spec import InputError
    from heads.evaluation.generators import bradley_terry, elo, win_rates

    try:
        strengths = bradley_terry(choices).to_json()
    except InputError as error:
        warn(str(error))
        strengths = None
    rated = elo(choices, np.random.default_rng(args.seed), args.orders).to_json()
    return {"win_rate": win_rates(choices), "elo": rated, "bradley_terry": strengths}


def _lines(result: dict[str, Any]) -> list[str]:
    people, head = result["people"], result.get("head")
    names = sorted(people["elo"], key=lambda name: -people["elo"][name]["mean"])
    rows = []
    for name in names:
        wins = people["win_rate"][name]
        row = [name, "-" if wins is None else f"{wins:.3f}", *_figures(people, name)]
        rows.append(row + (_figures(head, name) if head else []))
    header = ("generator", "wins", "Elo", "Bradley-Terry") + (("head's Elo", "head's Bradley-Terry") if head else ())
    lines = [*table(header, rows), f"{result['choices']} choices within prompts; Elo: mean ± sd over {result['orders']}"
             " random orders; Bradley-Terry: log odds, 95 % interval clustered by prompt"]  # fmt: skip
    if head:
        elo, terry = result["agreement"]["elo_spearman"], result["agreement"]["bradley_terry_spearman"]
        lines.append(f"Spearman of the head's and people's Elo: {elo['mean']:.3f} ± {elo['sd']:.3f} over orders")
        lines += [] if terry is None else [f"Spearman of the strengths: {terry:.3f}"]
    return lines


def _figures(ranking: dict[str, Any], name: str) -> list[str]:
    elo, terry = ranking["elo"][name], ranking["bradley_terry"]
    strength = f"{terry[name]['value']:+.2f} ({terry[name]['low']:+.2f}..{terry[name]['high']:+.2f})" if terry else "-"
    return [f"{elo['mean']:.0f} ± {elo['sd']:.0f}", strength]
