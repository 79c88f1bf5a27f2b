"""`python -m heads calibrate`."""

from functools import partial
from pathlib import Path

from embed.cli.console import suggest
from heads.api.options import HeldOutOptions, protocol_of
from heads.cli.common import require_inputs
from heads.config import Protocol


def calibrate(
    head: str, /, *, cache: str, held_out: HeldOutOptions, protocol: partial[Protocol], reference: str | None = None
) -> dict[str, object]:
    """Turn a head's scores into probabilities and percentiles.

    A temperature, an isotonic map and percentiles are fitted on rows that the head has not seen, and stored with it.

    Example:
        plaudit heads calibrate head --cache cache --data likes.csv

    Args:
        head: A folder made by `python -m heads train` or `import`. It is changed.
        cache: The cache with the vectors of the table.
        reference: A table whose pictures the percentiles compare with. It is read as --data is. By default the held-out
            rows of --data.
    """
    tables = [held_out.data, *([reference] if reference else [])]
    require_inputs(held_out, tables, cache, head)
    from embed.cache.store import Cache
    from heads.evaluation.evaluate import calibration_of, head_scores
    from heads.evaluation.held_out import require_backbone
    from heads.evaluation.measured import measure_pairs
    from heads.store.disk import save_calibration

    opened, data = Cache.open(cache), held_out.data
    require_backbone(head, opened)
    met, features = held_out.met(opened, tables)
    parts = [held_out.hold_out(head, opened, labels) for labels in met]
    scores = [head_scores(held.heads, labels, features, held.split) for held, labels in zip(parts, met, strict=True)]
    held, labels = parts[0], met[0]
    measured = measure_pairs(labels, held.split, protocol_of(protocol.keywords, labels, held.manifest["split"]["seed"]))
    calibration = calibration_of(measured, scores[0], scores[-1])
    calibration["fitted_on"] |= {"table": data, "part": held.part, "trained_rows": held.seen_rows}
    calibration["fitted_on"] |= {"reference_table": reference or data, "reference_part": parts[-1].part}
    save_calibration(head, calibration)
    temperature, fitted = calibration["temperature"]["value"], calibration["fitted_on"]
    print(
        f"temperature {temperature:.4g}, fitted on {fitted['pairs']} held-out pairs"
        f" ({fitted['pairs_are']}): sigmoid(difference / temperature) is the probability that the first is preferred",
        f"percentiles of {fitted['reference']} scores of {fitted['reference_table']}, {fitted['reference_part']}",
        f"stored in {head}; export it again to serve it",
        sep="\n",
    )
    suggest(["export", "onnx", head, "--out", Path(head).with_name("bundle"), "--overwrite"])
    return {"head": head, **calibration}
