"""How well a head orders what it has not seen, beside zero-shot CLIP and chance, with the protocol stated."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embed.files import atomic_write
from embed.spec import InputError
from heads.comparisons import Labels, Pairs, pairs_among
from heads.features import Features
from heads.intervals import Interval, mean_of_folds_interval
from heads.metrics import pair_credit
from heads.models import Head
from heads.split import Split
from heads.train import score_items


@dataclass(frozen=True)
class Protocol:
    """What counts as a pair, and as right. Printed with every number it makes."""

    min_ratio: float = 2.0  # of counts (or rates) before a pair of a popularity table has a winner
    max_pairs: int = 1_000_000  # of one fold; above it, a uniform sample
    resamples: int = 1000  # of the bootstrap over split groups
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.min_ratio >= 1:
            raise InputError(f"--min-ratio is {self.min_ratio}; wanted 1 or more")

    def describe(self, labels: Labels, split: Split) -> dict[str, Any]:
        """The protocol in words and numbers, for the report."""
        return {
            **asdict(self),
            "pairs": f"counts that differ at least {self.min_ratio:g}-fold" if labels.kind == "counts" else labels.kind,
            "labelled_ties": "left out",
            "score_ties": "half right",
            "average": "over pairs within a fold, then over folds",
            "interval": f"95 %, {self.resamples} bootstrap resamples of split groups",
            "folds": split.folds,
        }


def zero_shot_scores(features: Features) -> np.ndarray | None:
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


def held_out_pairs(labels: Labels, split: Split, protocol: Protocol) -> list[Pairs]:
    """For each fold the pairs among the rows that it holds out, ties left out."""
    rng = np.random.default_rng(protocol.seed)
    folds = []
    for fold in range(split.folds):
        pairs = pairs_among(labels, split.test_rows(fold), rng, protocol.min_ratio, protocol.max_pairs)
        decided = np.flatnonzero(pairs.target != 0.5)
        folds.append(Pairs(**{name: getattr(pairs, name)[decided] for name in pairs.__dataclass_fields__}))
    if not all(len(pairs) for pairs in folds):
        raise InputError("a held-out part has no pair with a winner; hold out more, or lower --min-ratio")
    return folds


def evaluate(labels: Labels, features: Features, heads: list[Head], split: Split, protocol: Protocol) -> dict[str, Any]:
    """Pair accuracy of each fold's head on the rows its fold holds out: keys pair_accuracy,
    zero_shot_pair_accuracy (null where items have no prompt) and chance, each {value, low, high}; protocol; pairs.
    """
    folds = held_out_pairs(labels, split, protocol)
    scorers: Mapping[str, list[np.ndarray] | None] = {
        "pair_accuracy": [score_items(head, features) for head in heads],
        "zero_shot_pair_accuracy": _everywhere(zero_shot_scores(features), len(folds)),
        # A scorer that knows nothing, measured on the same pairs: its interval says what luck alone can reach.
        "chance": _everywhere(np.random.default_rng(protocol.seed).normal(size=len(labels.image)), len(folds)),
    }
    result: dict[str, Any] = {}
    for name, scores in scorers.items():
        result[name] = None if scores is None else _accuracy(scores, folds, split, protocol).to_json()
    return {**result, "pairs": sum(map(len, folds)), "protocol": protocol.describe(labels, split)}


def write_scores(path: Path, labels: Labels, features: Features, heads: list[Head], split: Split) -> None:
    """A parquet file with a row for every item of every row held out: the table's own columns, `fold`, `score`, and
    `percentile`, the share (0 to 100) of its fold's items that score lower, which can be compared between folds."""
    tables = []
    for fold, head in enumerate(heads):
        rows = split.test_rows(fold)
        for side in range(labels.items.shape[1]):
            scores = score_items(head, features, labels.items[rows, side])
            percentile = 100 * np.searchsorted(np.sort(scores), scores) / max(1, len(scores) - 1)
            new = {"fold": np.full(len(rows), fold), "score": scores, "percentile": percentile}
            table = labels.columns.take(pa.array(rows))
            for name, values in {**{k: v[rows] for k, v in labels.values.items() if k != "group"}, **new}.items():
                table = table.append_column(name, pa.array(values))
            tables.append(table)
    with atomic_write(path) as file:
        pq.write_table(pa.concat_tables(tables), file)


def _everywhere(scores: np.ndarray | None, folds: int) -> list[np.ndarray] | None:
    return None if scores is None else [scores] * folds


def _accuracy(scores: list[np.ndarray], folds: list[Pairs], split: Split, protocol: Protocol) -> Interval:
    credit = [pair_credit(s[p.a], s[p.b], p.target, tie="half") for s, p in zip(scores, folds, strict=True)]
    return mean_of_folds_interval(
        np.concatenate(credit),
        fold=np.repeat(np.arange(len(folds)), [len(p) for p in folds]),
        cluster_a=split.group[np.concatenate([p.row_a for p in folds])],
        cluster_b=split.group[np.concatenate([p.row_b for p in folds])],
        rng=np.random.default_rng(protocol.seed),
        resamples=protocol.resamples,
    )
