"""Measure a head on disk on rows that it has not seen, for `heads evaluate` and `plaudit.evaluate`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embed.arrays import Floats
from embed.files import require_out_file
from embed.progress import Progress, silent
from embed.records.sources import TableSource
from embed.spec import InputError
from heads.api.lines import SCORERS, metric_lines, scorer_lines, slice_lines
from heads.api.options import Asked, PathLike, RowOptions, protocol_of
from heads.api.results import SHOWN, Evaluation, Ranked
from heads.config import STEPPED
from heads.data.features import Features
from heads.data.split import SMALL_ROWS
from heads.evaluation.baselines import (
    BLINDED,
    WITHOUT_SOURCE,
    prior_columns,
    ridge_scores,
    strongest_prior,
    trained_scores,
)
from heads.evaluation.certainty import certainty, uncertainties
from heads.evaluation.evaluate import fast_scores, pair_accuracies, percentiles, scores_table, write_scores
from heads.evaluation.held_out import HeldOut
from heads.evaluation.measured import Measured, lead, lone_rows, measure_pairs
from heads.evaluation.scoreboard import MAPS, reliability, scoreboard, tie_thresholds
from heads.evaluation.slices import pair_accuracy_by
from heads.report.figures import sure_line, verdict_of
from heads.report.write import write_report

logger = logging.getLogger(__name__)


def evaluate_head(
    head: PathLike,
    cache: PathLike,
    data: TableSource,
    options: RowOptions,
    protocol: Mapping[str, Any],
    asked: Asked,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a head on the part of a table that was held out from it, or on a table that it has not seen. `protocol`
    holds the given fields of heads.config.Protocol."""
    for option, file in (("--scores", asked.scores), ("--report", asked.report)):
        if file:
            require_out_file(file, option)

    opened, labels, features, (held,) = options.met_heads(cache, data, head)
    measured = measure_pairs(
        labels, held.split, protocol_of(protocol, labels, held.manifest["split"]["seed"]), held.noise
    )
    if alone := lone_rows(labels, held.split):
        logger.warning(f"{alone} of {held.rows} rows are alone in their group and cannot be compared")
    found = fast_scores(measured, features, held.heads)
    baselines, priors = _baselines(asked, measured, features, held, found, progress)
    found = {name: found[name] for name in SCORERS if name in found}
    result: dict[str, Any] = {
        **pair_accuracies(measured, found).to_json(),
        "metrics": scoreboard(measured, found),
        "lead": lead(measured, found),
        "tie_thresholds": tie_thresholds(measured, found["head"]),
        "tie_thresholds_of": "the best for each part on the other parts"
        if held.split.validation is None
        else "the best on the validation rows",
        "reliability": {map: [vars(bin) for bin in reliability(measured, found["head"], map)] for map in MAPS},
        "uncertainty": _certainty(asked, measured, features, held, found["head"], progress),
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
    records, name = options.read(data), f"{Path(head)} on {options.name_of(data)}"
    if asked.report:
        is_held_out = (held.split.fold >= 0)[:, None]
        shown = {scorer: np.where(is_held_out, values, np.nan) for scorer, values in found.items()}
        title = f"{Path(head).name} on {Path(options.name_of(data)).name}"  # the terminal shows whole paths
        write_report(asked.report, title, result, measured, shown, records, opened)
    lines = [result["verdict"], f"{name}: {held.part}", *scorer_lines(result, priors)]
    if asked.uncertainty or "missing" not in result["uncertainty"]:
        lines.append(sure_line(result["uncertainty"]))
    if asked.slice_by:
        lines += slice_lines(result)
    if asked.all_metrics:
        lines += ["", *metric_lines(result)]
    else:
        rest = "" if asked.report else "; plots and pictures: --report FILE.html"
        lines.append(f"the metrics of all papers: --all-metrics, or --json{rest}")
    best, worst = _ends(measured, found["head"], opened.metadata("images", ["image_path"])["image_path"])
    scores = scores_table(labels, held.split, found["head"])
    return Evaluation(result["verdict"], tuple(lines), best, worst, result, scores, records, opened)


def _ends(measured: Measured, scores: Floats, names: pa.ChunkedArray) -> tuple[tuple[Ranked, ...], tuple[Ranked, ...]]:
    """The pictures with the highest scores, and those with the lowest. Each picture occurs once, with its best
    score."""
    row, side = np.nonzero(~np.isnan(scores) & (measured.split.fold >= 0)[:, None])
    percentile = percentiles(scores, measured.split.fold)[row, side]
    picture = measured.labels.image[measured.labels.items[row, side]]
    order = np.argsort(-percentile, kind="stable")
    order = order[np.sort(np.unique(picture[order], return_index=True)[1])]
    ranked = [Ranked(names[int(picture[i])].as_py(), int(picture[i]), float(percentile[i])) for i in order]
    return tuple(ranked[:SHOWN]), tuple(ranked[: -SHOWN - 1 : -1])


def _baselines(
    asked: Asked,
    measured: Measured,
    features: Features,
    held: HeldOut,
    scores: dict[str, Floats],
    progress: Progress,
) -> tuple[dict[str, str | None], list[dict[str, object]]]:
    """Add the baselines to `scores`. Gives for each baseline None, or the reason why it is missing, and the priors, the
    strongest first."""
    labels = measured.labels
    missing: dict[str, str | None] = dict.fromkeys(SCORERS, None)
    blinded = list(BLINDED)
    if features.source is None:
        del missing[WITHOUT_SOURCE]
        blinded.remove(WITHOUT_SOURCE)
    if "zero_shot" not in scores:
        missing["zero_shot"] = "some rows have no prompt"
    if not held.own_split:
        missing |= dict.fromkeys(("ridge", "prior", *blinded), "the table lacks the rows that the head was trained on")
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


def _certainty(
    asked: Asked, measured: Measured, features: Features, held: HeldOut, scores: Floats, progress: Progress
) -> dict[str, Any]:
    """The result of `heads.evaluation.certainty` and the heads that gave the uncertainties, or under `missing` the
    reason why there is none."""
    is_solved = held.manifest["head"]["kind"] not in STEPPED
    quick = asked.report is not None and is_solved and len(measured.labels) <= SMALL_ROWS
    if held.committee and held.own_split and not (asked.uncertainty or quick):
        return {"missing": "--uncertainty measures it"}
    try:
        uncertainty = uncertainties(held, measured.labels, features, progress)
    except InputError as error:
        return {"missing": str(error)}
    by = "newly trained heads that have not seen the pair" if held.own_split else "the head's own committee"
    return {"by": by, **certainty(measured, scores, uncertainty)}
