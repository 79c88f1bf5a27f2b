"""`python -m heads generators`."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from embed.cli.console import table, warn
from embed.options import Range
from embed.spec import InputError
from heads.api.options import HeldOutOptions
from heads.cli.common import require_inputs
from heads.config import Protocol, Seed
from heads.report.figures import cell, number


@dataclass(frozen=True)
class EloOptions:
    """How Elo ratings are computed."""

    orders: Annotated[int, Range(1)] = 50
    """The number of random orders in which the choices are played."""
    seed: Seed = 0
    """The seed of the orders."""


def generators(
    head: str | None = None,
    /,
    *,
    cache: str | None = None,
    held_out: HeldOutOptions,
    protocol: partial[Protocol],
    by: str,
    pattern: str | None = None,
    playing: EloOptions,
) -> dict[str, object]:
    """Rank image generators by people's choices, and by a head's.

    Prints Elo and Bradley-Terry ratings of each generator. With a head it also prints how far its ranking agrees with
    people's, and how often the picture that people like best or least is among the head's k highest or k lowest of the
    prompt (recall@k, filter@k).

    Example:
        plaudit heads generators --data pairs.csv --by model_a,model_b

    Args:
        head: Also rank by this head, on rows that it has not seen.
        cache: The cache with the vectors of the table, if a head is given.
        by: The column that names the generator of a picture. For comparisons two columns A,B, one for each side.
        pattern: A regular expression for the part of the column that names the generator, such as '^[^_]+'. If it has a
            group, the first group is the name, as in '^([^_]+)_'.
    """
    import numpy as np

    from heads.data.comparisons import labels_alone
    from heads.evaluation.generators import choices_in, elo_agreement, found_at_k, generators_of
    from heads.metrics import spearman

    if bool(head) != bool(cache):
        raise InputError("only one of HEAD and --cache was given; give both, or neither")
    if head and cache:
        require_inputs(held_out, [held_out.data], cache, head)
        from heads.evaluation.evaluate import head_scores

        _, labels, features, (held,) = held_out.open(cache, head)
        scores = head_scores(held.heads, labels, features, held.split)
        fold, part = held.split.fold, held.part
    else:
        labels = labels_alone(held_out.read(held_out.data))
        scores, fold, part = None, np.zeros(len(labels), np.int64), "all rows"
    generator = generators_of(labels, by, pattern)
    people = choices_in(labels, generator, fold)
    result: dict[str, Any] = {"part": part, "choices": len(people.a), "orders": playing.orders}
    result["people"] = _ranking(people, playing)
    if scores is not None:
        theirs = choices_in(labels, generator, fold, scores)
        result["head"] = _ranking(theirs, playing)
        mean, sd = elo_agreement(people, theirs, np.random.default_rng(playing.seed), playing.orders)
        agreement: dict[str, Any] = {"elo_spearman": {"mean": mean, "sd": sd}, "bradley_terry_spearman": None}
        if all(result[side]["bradley_terry"] for side in ("people", "head")):
            strengths = (
                [result[side]["bradley_terry"][name]["value"] for name in people.generators]
                for side in ("people", "head")
            )
            agreement["bradley_terry_spearman"] = spearman(*strengths)
        result["agreement"] = agreement
        if labels.kind != "comparisons":
            found = found_at_k(labels, fold, scores, playing.seed)
            result["found"] = {name: value.to_json() for name, value in found.items()}
    print(f"{held_out.data}: {part}", *_lines(result), sep="\n")
    return result


def _ranking(choices: Any, playing: EloOptions) -> dict[str, object]:
    import numpy as np

    from heads.evaluation.generators import bradley_terry, elo, win_rates

    try:
        strengths = {name: strength.to_json() for name, strength in bradley_terry(choices).items()}
    except InputError as error:
        warn(str(error))
        strengths = None
    rated = elo(choices, np.random.default_rng(playing.seed), playing.orders)
    return {"win_rate": win_rates(choices), "elo": rated, "bradley_terry": strengths}


def _lines(result: dict[str, Any]) -> list[str]:
    people, head = result["people"], result.get("head")
    names = sorted(people["elo"], key=lambda name: -people["elo"][name]["mean"])
    rows = []
    for name in names:
        row = [name, number(people["win_rate"][name], ".3f"), *_figures(people, name)]
        rows.append(row + (_figures(head, name) if head else []))
    header = ("generator", "wins", "Elo", "Bradley-Terry") + (("head's Elo", "head's Bradley-Terry") if head else ())
    lines = [*table(header, rows), f"{result['choices']} choices within prompts; Elo: mean ± sd over {result['orders']}"
             " random orders; Bradley-Terry: log odds, 95 % interval clustered by prompt"]  # fmt: skip
    strengths = people["bradley_terry"] or {}
    if reasons := {one["reason"] for one in strengths.values() if "reason" in one}:
        lines.append(f"there are no intervals: {', '.join(reasons)}")
    if head:
        elo, terry = result["agreement"]["elo_spearman"], result["agreement"]["bradley_terry_spearman"]
        lines.append(f"Spearman of the head's and people's Elo: {elo['mean']:.3f} ± {elo['sd']:.3f} over orders")
        lines += [] if terry is None else [f"Spearman of the strengths: {terry:.3f}"]
        for name, value in result.get("found", {}).items():
            lines.append(f"{name.replace('_at_', '@')}: {cell(value, '{} ({}..{})', '.3f')}")
    return lines


def _figures(ranking: dict[str, Any], name: str) -> list[str]:
    elo, terry = ranking["elo"][name], ranking["bradley_terry"]
    strength = cell(terry[name], "{} ({}..{})", "+.2f") if terry else "-"
    return [f"{elo['mean']:.0f} ± {elo['sd']:.0f}", strength]
