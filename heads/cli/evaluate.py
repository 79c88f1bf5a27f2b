"""`python -m heads evaluate` and `compare`."""

from functools import partial
from pathlib import Path

from embed.cli.console import progress, table
from embed.files import require_out_file
from heads.api.options import Asked, HeldOutOptions, protocol_of
from heads.cli.common import require_inputs
from heads.config import Protocol
from heads.tracking.tracker import require_tracker, tracking


def evaluate(
    head: str,
    /,
    *,
    cache: str,
    held_out: HeldOutOptions,
    protocol: partial[Protocol],
    asked: Asked,
    tracker: str | None = None,
) -> dict[str, object]:
    """Measure a head on the part that was held out from it, or on a table that it has not seen.

    Example:
        plaudit heads evaluate head --cache cache --data likes.csv --report a.html

    Args:
        head: A folder made by `python -m heads train`.
        cache: The cache with the vectors of the table.
        tracker: Send options, figures and the report to a tracker: tensorboard:FOLDER, mlflow[:URI] or wandb[:PROJECT].
    """
    for option, file in (("--scores", asked.scores), ("--report", asked.report)):
        if file:
            require_out_file(file, option)
    require_tracker(tracker)
    require_inputs(held_out, [held_out.data], cache, head)
    from heads.api.measuring import evaluate_head

    with tracking(tracker, f"{Path(head).name} on {Path(held_out.data).name}") as run:
        run.parameters({"head": head, "cache": cache, "data": held_out.data, **protocol.keywords})
        found = evaluate_head(head, cache, held_out.data, held_out, protocol.keywords, asked, progress)
        metrics = {name: metric.get("scores") for name, metric in found.document["metrics"].items()}
        run.figures({"pair_accuracy": found.document["pair_accuracy"], "metrics": metrics})
        for file in (asked.report, asked.scores):
            if file:
                run.files(file.parent, file.name)
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
    require_inputs(held_out, [held_out.data], cache, first, second)
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
