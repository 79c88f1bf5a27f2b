"""Options of training and measuring that the commands and `plaudit` share. Imports nothing heavy."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from embed.config import TableConfig
from embed.options import Range
from embed.progress import stage
from embed.spec import InputError
from heads.config import Protocol

if TYPE_CHECKING:
    from embed.cache.store import Cache
    from embed.records.formats import Records
    from embed.records.sources import TableSource
    from heads.data.comparisons import Labels
    from heads.data.features import Features
    from heads.evaluation.held_out import HeldOut

PathLike: TypeAlias = str | os.PathLike[str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelOptions(TableConfig):
    """How the rows of a table are matched with the vectors of a cache."""

    max_missing: Annotated[float, Range(0, 1)] = 0.01
    """The share of rows whose pictures or prompts may be missing from the cache."""

    def read(self, table: "TableSource") -> "Records":
        """The records of a table."""
        from embed.records.formats import read_records

        return read_records(table, self.format, self.images_root, self.columns)

    @staticmethod
    def name_of(table: "TableSource") -> str:
        """The table's name in records and messages: its path, or the kind of frame."""
        if isinstance(table, str | Path):
            return str(table)
        return f"the {type(table).__module__.partition('.')[0]}.{type(table).__name__}"

    @stage("reading the tables")
    def met(self, cache: "Cache", tables: "Sequence[TableSource]") -> "tuple[list[Labels], Features]":
        """The labels of some tables over one numbering of items, and the vectors of these items."""
        from heads.data.comparisons import join_labels, match_labels
        from heads.data.features import features_of

        met = []
        for table in tables:
            records = self.read(table)
            met.append(match_labels(records, cache, self.max_missing))
            if met[-1].missing:
                logger.warning(f"{met[-1].missing} rows of {records.path} left out: no vector in {cache.path}")
        met = join_labels(met)
        vectors = cache.image_embeddings(), cache.text_embeddings()
        (first, *_), pooled = met, cache.pooled_embeddings()
        return met, features_of(*vectors, first.image, first.prompt, pooled, first.source)


@dataclass(frozen=True, kw_only=True)
class TableOptions(LabelOptions):
    """One table of labels."""

    data: str
    """The table of labels: parquet, csv, json or json lines, or a pattern of its shards in quotes."""


@dataclass(frozen=True, kw_only=True)
class RowOptions(LabelOptions):
    """The rows that heads are measured on."""

    all: bool = False
    """Score every row, even those that the head was trained on."""
    strict: bool = False
    """Refuse a table that shares pictures with training."""

    @stage("reading head and table")
    def met_heads(
        self, path: PathLike, table: "TableSource", *heads: PathLike
    ) -> "tuple[Cache, Labels, Features, list[HeldOut]]":
        """The cache at a path, the table's labels and vectors, and the rows that the table holds out from each head.
        Raise InputError if the cache is of another backbone than the heads'."""
        from embed.cache.store import Cache
        from heads.evaluation.held_out import require_backbone

        cache = Cache.open(Path(path))
        for head in heads:
            require_backbone(os.fspath(head), cache)
        (labels,), features = self.met(cache, [table])
        return cache, labels, features, [self.hold_out(head, cache, labels) for head in heads]

    def hold_out(self, head: PathLike, cache: "Cache", labels: "Labels") -> "HeldOut":
        """The rows of a table that are held out from a head."""
        from heads.evaluation.held_out import hold_out

        return hold_out(os.fspath(head), cache, labels, self.all, self.strict)


@dataclass(frozen=True, kw_only=True)
class HeldOutOptions(RowOptions, TableOptions):
    """One table of labels, and the rows of it that heads are measured on."""

    def open(self, path: str, *heads: str) -> "tuple[Cache, Labels, Features, list[HeldOut]]":
        """The result of `met_heads` for the table."""
        return self.met_heads(path, self.data, *heads)


@dataclass(frozen=True)
class PairOptions:
    """The pairs of a popularity table that are trained on."""

    min_ratio: Annotated[float | None, Range(1)] = None
    """Train only on pairs in which one count is at least this many times the other. By default all pairs teach, clear
    ones more than close ones."""

    def require_use(self, tables: "Sequence[Labels]", losses: Sequence[str], keeps_aside: bool = True) -> None:
        """Raise InputError if --min-ratio is given but has no effect: no table is one of counts, or the only loss is
        rating and no pairs are kept aside either."""
        counts = [loss for table, loss in zip(tables, losses, strict=True) if table.kind == "counts"]
        chooses = set(counts) - {"rating"} or (keeps_aside and tables[0].kind == "counts")
        if self.min_ratio is not None and not chooses:
            of = "the loss rating, which has no pairs" if counts else f"tables of {tables[0].kind}"
            raise InputError(f"--min-ratio chooses pairs of counts, and does nothing for {of}; leave it out")


@dataclass(frozen=True)
class HeadTraining(PairOptions):
    """How heads are trained on the vectors of a cache."""

    device: str = "cpu"
    """The device to train on: cpu, or cuda if there is a GPU."""


@dataclass(frozen=True)
class Asked:
    """What else to measure, and which files to write."""

    baselines: bool = False
    """Train the same head without prompts, without pictures, and, if rows have source pictures, without these, on the
    same rows. Each of these takes one more training."""
    uncertainty: bool = False
    """Measure whether pairs with a larger difference of scores over their uncertainty are ordered right more often.
    On rows held out from the head this trains up to two heads for each fold. By default it is then done only for
    --report, tables of up to 3,000 rows, and the heads blend, kernel and linear, which are fitted in moments. On other
    tables it takes no training and is always done."""
    prior_by: str | None = None
    """The column of the prior: a guess that a picture is liked as much as the training pictures that have the same
    value in it. For comparisons, the two columns A,B. By default the guess is made from each column with few different
    values, and the best one is shown."""
    slice_by: str | None = None
    """Also measure pair accuracy separately for each value of this column."""
    all_metrics: bool = False
    """Print the metrics of all papers."""
    scores: Path | None = None
    """Write the score of every row measured to this file, as parquet."""
    report: Path | None = None
    """Write a page with plots and pictures to this .html file."""


def protocol_of(given: Mapping[str, Any], labels: "Labels", seed: int) -> Protocol:
    """The protocol that a table is measured by. Raise InputError if --min-ratio is given and the table is not one of
    counts."""
    if "min_ratio" in given and labels.kind != "counts":
        raise InputError(
            f"--min-ratio chooses pairs of counts, and does nothing for a table of {labels.kind}; leave it out"
        )
    return Protocol(**given, seed=seed)
