"""`python -m heads evaluate` and `compare`."""

from functools import partial

from embed.cli.console import progress, table
from embed.files import require_out_file
from heads.api.options import Asked, HeldOutOptions, protocol_of
from heads.config import Protocol


def evaluate(
    head: str, /, *, cache: str, held_out: HeldOutOptions, protocol: partial[Protocol], asked: Asked
) -> dict[str, object]:
    """Measure a head on the part that was held out from it, or on a table that it has not seen.

    Example:
        plaudit heads evaluate head --cache cache --data likes.csv --report a.html

    Args:
        head: A folder made by `python -m heads train`.
        cache: The cache with the vectors of the table.
    """
    for option, file in (("--scores", asked.scores), ("--report", asked.report)):
        if file:
            require_out_file(file, option)
    from heads.api.measuring import evaluate_head

    found = evaluate_head(head, cache, held_out.data, held_out, protocol.keywords, asked, progress)
    print(found)
    return found.document


def compare(
    first: str, second: str, /, *, cache: str, held_out: HeldOutOptions, protocol: partial[Protocol]
) -> dict[str, object]:
    """Test whether one head orders pairs better than another, on the rows that neither has seen.

    Example:
        plaudit heads compare head other --cache cache --data likes.csv

    Args:
        first: A folder made by `python -m heads train`.
        second: Another such folder.
        cache: The cache with the vectors of the table.
    """
    from heads.api.lines import protocol_line
    from heads.evaluation.evaluate import head_scores
    from heads.evaluation.held_out import in_common
    from heads.evaluation.measured import compared, measure_pairs
    from heads.report.figures import comparison, ends, number

    _, labels, features, parts = held_out.open(cache, first, second)
    both = in_common(*parts)
    rules = protocol_of(protocol.keywords, labels, both[0].manifest["split"]["seed"])
    measured = measure_pairs(labels, both[0].split, rules, max(held.noise for held in both))
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
