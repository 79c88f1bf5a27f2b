"""How well scores order the rows held out from training, compared with zero-shot CLIP and chance.

Scores are (m, sides): one for each item of each row of a table, given by the head that has not seen the row, or NaN if
every head has seen it. `heads.evaluation.scoreboard` measures the same pairs by every paper's rule.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embed.arrays import Float32s, Floats, Ints
from embed.files import atomic_write
from embed.spec import InputError
from heads.config import Protocol
from heads.data.comparisons import Labels
from heads.data.features import Features
from heads.data.split import Split
from heads.evaluation.calibration import fit_isotonic, fit_percentiles, fit_temperature
from heads.evaluation.intervals import Interval
from heads.evaluation.measured import Measured, lead, measure_pairs
from heads.models import Cosine, Head
from heads.training.train import score_items

logger = logging.getLogger(__name__)


def head_scores(heads: Sequence[Head], labels: Labels, features: Features, split: Split) -> Floats:
    """(m, sides) float64: the rows of fold i are scored by heads[i]. Rows that no fold holds out are NaN."""
    scores = np.full(labels.items.shape, np.nan)
    for fold, head in enumerate(heads):
        rows = split.test_rows(fold)
        items, position = np.unique(labels.items[rows], return_inverse=True)
        scores[rows] = score_items(head, features, items)[position].reshape(len(rows), -1)
    return scores


def zero_shot_scores(features: Features) -> Float32s | None:
    """(n,) the cosine of each item's picture and prompt, which is the score of untrained CLIP. None if some item has no
    prompt."""
    if len(features.prompt) == 0 or int(features.prompt.min()) < 0:
        return None
    scores = np.empty(len(features.image), np.float32)
    for start in range(0, len(scores), 65536):
        part = slice(start, start + 65536)
        v = features.image_embeddings[features.image[part]].float()
        t = features.text_embeddings[features.prompt[part]].float()
        scores[part] = (v * t).sum(dim=1).numpy()
    return scores


def fast_scores(measured: Measured, features: Features, heads: Sequence[Head]) -> dict[str, Floats]:
    """The scores (m, sides) that need no training: head, zero_shot (absent if some item has no prompt), and chance.

    The head scores the held-out rows and the split's validation rows; the latter fit PickScore's tie threshold.
    """
    labels = measured.labels
    found = {"head": head_scores(heads, labels, features, measured.split.with_validation())}
    if (zero_shot := zero_shot_scores(features)) is not None:
        # The scale that CLIP was trained with gives ties and probabilities their meaning.
        found["zero_shot"] = math.exp(Cosine.LOGIT_SCALE) * zero_shot.astype(np.float64)[labels.items]
    # The interval of random scores on the same pairs shows what luck alone can reach.
    chance = np.random.default_rng(measured.protocol.seed).normal(size=len(labels.image))
    return {**found, "chance": chance[labels.items]}


@dataclass(frozen=True)
class Accuracies:
    """How often scores order the held-out pairs as people did, compared with simpler scorers, and the protocol."""

    pair_accuracy: Interval
    zero_shot_pair_accuracy: Interval | None  # of untrained CLIP; None if some item has no prompt
    chance: Interval
    lead: dict[str, dict[str, object]]  # of the head over each other scorer, from `measured.lead`
    pairs: int  # with a winner
    protocol: dict[str, object]

    def to_json(self) -> dict[str, object]:
        return {name: value.to_json() if isinstance(value, Interval) else value for name, value in vars(self).items()}


def evaluate(
    labels: Labels, features: Features, heads: list[Head], split: Split, protocol: Protocol, noise: float = 0.0
) -> Accuracies:
    """The accuracies of the folds' heads, each on the rows that its fold holds out. `noise` is their `fold_noise`."""
    measured = measure_pairs(labels, split, protocol, noise)
    return pair_accuracies(measured, fast_scores(measured, features, heads))


def pair_accuracies(measured: Measured, scores: Mapping[str, Floats]) -> Accuracies:
    """The accuracies of the scores from `fast_scores`."""
    measured.warn_of_few()
    found = {
        name: measured.interval(measured.credit(scores[name]))
        for name in ("head", "zero_shot", "chance")
        if name in scores
    }
    pairs = int(measured.decided.sum())
    ahead = lead(measured, {name: scores[name] for name in found})
    return Accuracies(found["head"], found.get("zero_shot"), found["chance"], ahead, pairs, measured.describe())


def calibration_of(measured: Measured, scores: Floats, reference: Floats | None = None) -> dict[str, dict[str, object]]:
    """The calibration of a head, fitted on its scores (m, sides) of rows that it has not seen, with a record of these
    rows.

    With folds the scores of the folds' heads are pooled, because the head to use has seen every row. Percentiles refer
    to the scores `reference` without NaN, or to the scores of all items.
    """
    reference = scores if reference is None else reference
    reference = reference[~np.isnan(reference)]
    fitted_on = {
        "rows": len(measured.rows),
        "pairs": len(measured.pairs),
        "folds": measured.split.folds,
        "pairs_are": measured.describe()["pairs"],
        "reference": len(reference),
    }
    pairs = *measured.of_pairs(scores), measured.pairs.target
    return {
        "temperature": asdict(fit_temperature(*pairs)),
        "isotonic": fit_isotonic(*pairs).to_json(),
        "percentiles": fit_percentiles(reference).to_json(),
        "fitted_on": fitted_on,
    }


def calibrate(
    labels: Labels, features: Features, heads: Sequence[Head], split: Split, protocol: Protocol
) -> dict[str, dict[str, object]] | None:
    """`calibration_of` newly trained heads, or None with a warning if no temperature fits."""
    measured = measure_pairs(labels, split, protocol)
    try:
        return calibration_of(measured, head_scores(heads, labels, features, split))
    except InputError as error:
        logger.warning(f"the head is stored without a calibration: {error}")
        return None


def percentiles(scores: Floats, fold: Ints) -> Floats:
    """(m, sides) the share, 0 to 100, of the other scores in the row's fold (m,) that are lower. Percentiles can be
    compared between folds. NaN for rows that no fold holds out."""
    percentile = np.full(scores.shape, np.nan)
    for name in np.unique(fold[fold >= 0]):
        part = scores[fold == name].ravel()
        below = np.searchsorted(np.sort(part), part)
        percentile[fold == name] = (100 * below / max(1, len(part) - 1)).reshape(-1, scores.shape[1])
    return percentile


def write_scores(path: Path, labels: Labels, split: Split, scores: Floats) -> None:
    """Write `scores_table` as a parquet file."""
    table = scores_table(labels, split, scores)
    with atomic_write(path) as file:
        pq.write_table(table, file)


def scores_table(labels: Labels, split: Split, scores: Floats) -> pa.Table:
    """A table with one row for every item of every held-out row: the table's own columns, `fold`, `score`, and
    `percentile`, the share (0 to 100) of its fold's items that score lower.

    If the table itself has a column of one of these names, it is renamed, such as to `table_score`.
    """
    tables, percentile = [], percentiles(scores, split.fold)
    own, written = list(labels.columns.schema.names), {*labels.values, "fold", "score", "percentile"} - {"group"}
    for i in range(len(own)):
        while own[i] in written:
            own[i] = f"table_{own[i]}"
        written.add(own[i])
    for fold in range(split.folds):
        rows = split.test_rows(fold)
        values = {name: v[rows] for name, v in labels.values.items() if name != "group"}
        values["fold"] = np.full(len(rows), fold)
        for side in range(labels.items.shape[1]):
            new = {"score": scores[rows, side].astype(np.float32), "percentile": percentile[rows, side]}
            table = labels.columns.take(pa.array(rows)).rename_columns(own)
            for name, column in {**values, **new}.items():
                table = table.append_column(name, pa.array(column))
            tables.append(table)
    return pa.concat_tables(tables)
