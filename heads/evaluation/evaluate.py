"""How well scores order what was held out from training, beside zero-shot CLIP and chance, with the protocol stated.

Scores are (m, sides): one for each item of each row of a table, given by the head that has not seen the row, NaN where
no head may. `heads.evaluation.scoreboard` measures the same pairs by every paper's rule.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embed.arrays import Bools, Float32s, Floats, Ints
from embed.files import atomic_write
from embed.spec import InputError
from heads.config import Protocol
from heads.data.comparisons import Labels, Pairs, groups_of, pairs_among
from heads.data.features import Features
from heads.data.split import Split
from heads.evaluation.calibration import fit_calibration
from heads.evaluation.intervals import Bootstrap, Interval, mean_interval
from heads.metrics import pair_credit
from heads.models import Cosine, Head
from heads.training.train import score_items

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """The pairs of what is held out, labelled ties included; none crosses folds. Intervals resample `cluster`."""

    labels: Labels
    split: Split
    protocol: Protocol
    pairs: Pairs
    fold: Ints  # (p,) of each pair
    cluster: Ints  # (m,) of each row
    clusters: str  # what a cluster is, in words

    @property
    def decided(self) -> Bools:
        """(p,) the pairs with a winner."""
        return np.asarray(self.pairs.target != 0.5, np.bool_)

    def of_pairs(self, scores: Floats) -> tuple[Floats, Floats]:
        """The scores of both sides of each pair, (p,) each, from scores (m, sides)."""
        return scores[self.pairs.row_a, 0], scores[self.pairs.row_b, -1]

    @property
    def bootstrap(self) -> Bootstrap:
        """Of the pairs; the same resamples each time."""
        return self.bootstrap_of(self.pairs.row_a, self.pairs.row_b)

    def bootstrap_of(self, row_a: Ints, row_b: Ints) -> Bootstrap:
        """Of other comparisons, given the rows of their two sides."""
        rng = np.random.default_rng(self.protocol.seed)
        return Bootstrap(self.cluster[row_a], self.cluster[row_b], rng, self.protocol.resamples)

    def interval(self, credit: Floats) -> Interval:
        """The mean over folds of the mean credit (p,) of their pairs, NaN left out."""
        return mean_interval(credit, self.bootstrap, self.fold)

    def pooled_interval(self, credit: Floats) -> Interval:
        """The mean credit (p,) of the pairs of all folds: where some folds may have next to none."""
        return mean_interval(credit, self.bootstrap)

    def describe(self) -> dict[str, object]:
        """The protocol in words and numbers, for the report."""
        kind = self.labels.kind
        return {
            **asdict(self.protocol),
            "pairs": f"counts that differ at least {self.protocol.min_ratio:g}-fold" if kind == "counts" else kind,
            "labelled_ties": "left out",
            "score_ties": "half right",
            "average": "over pairs within a fold, then over folds",
            "interval": f"95 %, {self.protocol.resamples} bootstrap resamples of {self.clusters}",
            "folds": self.split.folds,
        }


def measure_pairs(labels: Labels, split: Split, protocol: Protocol) -> Measured:
    """The pairs among the rows that each fold holds out; InputError where no pair has a winner.

    A cluster is a prompt where both sides of every pair share theirs, and a group of the split elsewhere.
    """
    rng = np.random.default_rng(protocol.seed)
    folds = [
        pairs_among(labels, split.test_rows(fold), rng, protocol.min_ratio, protocol.max_pairs)
        for fold in range(split.folds)
    ]
    pairs = Pairs(**{name: np.concatenate([getattr(p, name) for p in folds]) for name in Pairs.__dataclass_fields__})
    empty = sum(not (p.target != 0.5).any() for p in folds)
    if empty == len(folds):
        alone = lone_rows(labels, split)
        raise InputError(
            f"nothing to measure: no pair with a winner among the {int((split.fold >= 0).sum())} rows held out"
            + (f", of which {alone} are alone in their group" if alone else "")
            + "; hold out more, or lower --min-ratio"
        )
    if empty:
        logger.warning(f"{empty} of {len(folds)} held-out parts have no pair with a winner and do not count")
    prompt = labels.prompt[pairs.a]
    shared = bool((prompt >= 0).all() and (prompt == labels.prompt[pairs.b]).all())
    cluster, clusters = (labels.prompt[labels.items[:, 0]], "prompts") if shared else (split.group, "split groups")
    fold = np.repeat(np.arange(len(folds)), [len(p) for p in folds])
    return Measured(labels, split, protocol, pairs, fold, cluster, clusters)


def lone_rows(labels: Labels, split: Split) -> int:
    """How many of the rows held out have no other of their group beside them, and so are in no pair."""
    if labels.kind == "comparisons":
        return 0
    rows = np.flatnonzero(split.fold >= 0)
    number = np.unique(groups_of(labels, rows) * split.folds + split.fold[rows], return_counts=True)[1]
    return int((number == 1).sum())


def head_scores(heads: Sequence[Head], labels: Labels, features: Features, split: Split) -> Floats:
    """(m, sides): fold i's rows scored by heads[i], NaN for rows that no fold holds out."""
    scores = np.full(labels.items.shape, np.nan)
    for fold, head in enumerate(heads):
        rows = split.test_rows(fold)
        items, position = np.unique(labels.items[rows], return_inverse=True)
        scores[rows] = score_items(head, features, items)[position].reshape(len(rows), -1)
    return scores


def zero_shot_scores(features: Features) -> Float32s | None:
    """(n,) cosine of each item's picture and prompt, untrained CLIP's score; None when an item has no prompt."""
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
    """The scores (m, sides) that need no training: head, zero_shot (absent where items have no prompt), and chance.

    The head's are of rows held out and of the split's rows for validation, which fit PickScore's tie threshold.
    """
    labels = measured.labels
    found = {"head": head_scores(heads, labels, features, measured.split.with_validation())}
    if (zero_shot := zero_shot_scores(features)) is not None:
        # On the scale that CLIP was trained with, so that ties and probabilities mean something.
        found["zero_shot"] = math.exp(Cosine.LOGIT_SCALE) * zero_shot.astype(np.float64)[labels.items]
    # A scorer that knows nothing, measured on the same pairs: its interval says what luck alone can reach.
    chance = np.random.default_rng(measured.protocol.seed).normal(size=len(labels.image))
    return {**found, "chance": chance[labels.items]}


def evaluate(labels: Labels, features: Features, heads: list[Head], split: Split, protocol: Protocol) -> dict[str, Any]:
    """Pair accuracy of each fold's head on the rows its fold holds out: keys pair_accuracy,
    zero_shot_pair_accuracy (null where items have no prompt) and chance, each {value, low, high}; protocol; pairs.
    """
    measured = measure_pairs(labels, split, protocol)
    return pair_accuracies(measured, fast_scores(measured, features, heads))


def pair_accuracies(measured: Measured, scores: Mapping[str, Floats]) -> dict[str, Any]:
    """What `evaluate` returns, of the scores that `fast_scores` gives."""
    keys = {"pair_accuracy": "head", "zero_shot_pair_accuracy": "zero_shot", "chance": "chance"}
    result: dict[str, Any] = {}
    for key, name in keys.items():
        credit = pair_credit(*measured.of_pairs(scores[name]), measured.pairs.target) if name in scores else None
        result[key] = None if credit is None else measured.interval(credit).to_json()
    return {**result, "pairs": int(measured.decided.sum()), "protocol": measured.describe()}


def calibration_of(measured: Measured, scores: Floats, reference: Floats | None = None) -> dict[str, dict[str, object]]:
    """The calibration of a head by its scores (m, sides) of what it has not seen, and what it was fitted on.

    With folds the scores are those of the folds' heads, pooled: the head to use has seen every row. The reference set
    of the percentiles is the scores `reference` (NaN left out), or every item scored.
    """
    reference = scores if reference is None else reference
    reference = reference[~np.isnan(reference)]
    fitted_on = {
        "rows": int((measured.split.fold >= 0).sum()),
        "pairs": len(measured.pairs),
        "folds": measured.split.folds,
        "pairs_are": measured.describe()["pairs"],
        "reference": len(reference),
    }
    return {**fit_calibration(*measured.of_pairs(scores), measured.pairs.target, reference), "fitted_on": fitted_on}


def calibrate(
    labels: Labels, features: Features, heads: Sequence[Head], split: Split, protocol: Protocol
) -> dict[str, dict[str, object]] | None:
    """`calibration_of` freshly trained heads; None, with a warning, where no temperature fits."""
    measured = measure_pairs(labels, split, protocol)
    try:
        return calibration_of(measured, head_scores(heads, labels, features, split))
    except InputError as error:
        logger.warning(f"the head is stored without a calibration: {error}")
        return None


def percentiles(scores: Floats, fold: Ints) -> Floats:
    """(m, sides) share, in percent, of the other scores of its fold (m,) that are lower: comparable between the heads
    of folds. NaN for rows that no fold holds out."""
    percentile = np.full(scores.shape, np.nan)
    for name in np.unique(fold[fold >= 0]):
        part = scores[fold == name].ravel()
        below = np.searchsorted(np.sort(part), part)
        percentile[fold == name] = (100 * below / max(1, len(part) - 1)).reshape(-1, scores.shape[1])
    return percentile


def write_scores(path: Path, labels: Labels, split: Split, scores: Floats) -> None:
    """A parquet file with a row for every item of every row held out: the table's own columns, `fold`, `score`, and
    `percentile`, the share (0 to 100) of its fold's items that score lower, which can be compared between folds."""
    tables, percentile = [], percentiles(scores, split.fold)
    for fold in range(split.folds):
        rows = split.test_rows(fold)
        values = {name: v[rows] for name, v in labels.values.items() if name != "group"}
        values["fold"] = np.full(len(rows), fold)
        for side in range(labels.items.shape[1]):
            new = {"score": scores[rows, side].astype(np.float32), "percentile": percentile[rows, side]}
            table = labels.columns.take(pa.array(rows))
            for name, column in {**values, **new}.items():
                table = table.append_column(name, pa.array(column))
            tables.append(table)
    with atomic_write(path) as file:
        pq.write_table(pa.concat_tables(tables), file)
