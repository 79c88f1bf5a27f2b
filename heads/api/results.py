"""Results of training and measuring. In a notebook each shows what its command prints, and each can be used as the path
of its folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from embed.cache.store import Cache
from embed.inputs.shown import Artifact, Tabular, lines_html, picture_at, pictures_html, table_html
from embed.records.formats import Records
from embed.records.sources import TableSource
from heads.api.lines import SCORERS
from heads.api.options import LabelOptions
from heads.evaluation.evaluate import Accuracies
from heads.report.figures import ends, number
from heads.report.tiles import read_tiles

SHOWN = 6  # pictures with the highest scores, and as many with the lowest


@dataclass(frozen=True, repr=False)
class Trained(Artifact):
    """A head on disk, and how well it orders pictures that it has not seen. It can be given in place of the path of a
    head."""

    cache: Path
    data: TableSource  # the table that it was measured on
    labels: LabelOptions  # how that table was read
    kind: str
    accuracies: Accuracies


@dataclass(frozen=True)
class Ranked:
    """A measured picture: its name, its row in the cache, and the percentile of its score."""

    key: str
    row: int
    percentile: float


@dataclass(frozen=True, repr=False)
class Evaluation(Tabular):
    """How well a head orders pictures that it has not seen, compared with simpler scorers."""

    verdict: str
    lines: tuple[str, ...]  # what the command prints
    highest: tuple[Ranked, ...]
    lowest: tuple[Ranked, ...]
    document: dict[str, Any] = field(compare=False)  # what the command prints with --json
    scores: pa.Table = field(compare=False)  # one row for every item of every held-out row, with the table's columns
    records: Records = field(compare=False)
    cache: Cache = field(compare=False)

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        result = self.document
        rows = []
        for name, interval in result["metrics"]["pair_accuracy"]["scores"].items():
            lead = result["lead"].get(name)
            by = (number(lead["difference"]["value"], "+.3f"), number(lead["p_value"], ".2g")) if lead else ("", "")
            rows.append((SCORERS[name], number(interval["value"], ".3f"), ends(interval), *by))
        header = ("pair accuracy, tie = ½", "mean", "95 % interval", "head's lead", "p")
        parts = [table_html(header, rows, self.verdict), lines_html(self.lines[-2:])]
        tiles = read_tiles(self.records, self.cache, {one.row for one in (*self.highest, *self.lowest)})
        for title, ranked in (("Scored highest", self.highest), ("Scored lowest", self.lowest)):
            shown = [
                (
                    tiles[one.row].small if one.row in tiles else picture_at([]),
                    one.key,
                    f"percentile {one.percentile:.1f}",
                )
                for one in ranked
            ]
            parts.append(pictures_html(shown, title))
        return "".join(parts)

    def to_arrow(self) -> pa.Table:
        """The scores: the table's own columns, `fold`, `score` and `percentile`."""
        return self.scores
