"""Score a table in memory, for `plaudit.score`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from embed.inputs.shown import Tabular, lines_html, picture_at, pictures_html
from embed.inputs.thumbnails import data_uri, thumbnail
from embed.options import require_valid
from embed.progress import Progress, silent
from embed.records.sources import TableSource, open_table
from embed.spec import InputError
from embed.wording import table as lines_of
from runtime.config import TableConfig
from runtime.scoring.scorer import Scorer
from runtime.scoring.tables import ROWS, RowReading

SHOWN = 12  # number of pictures in a notebook, and of lines in a terminal


@dataclass(frozen=True, repr=False)
class Scores(Tabular):
    """A table with the outputs for each of its rows, and an `error` for rows that cannot be scored."""

    table: pa.Table
    outputs: tuple[str, ...]  # names of the scores; rows are ranked by the first
    pictures: tuple[tuple[str, str | bytes | None], ...] = field(compare=False)  # the best ones: name and address

    @property
    def errors(self) -> int:
        """The number of rows that could not be scored."""
        return len(self.table) - int(self.table["error"].null_count)

    def __repr__(self) -> str:
        rows = [(name, f"{score:.4f}") for (name, _), score in zip(self.pictures, self._best(), strict=True)]
        count = f"{len(self.table):,} rows scored, {self.errors:,} of them could not be; the highest:"
        return "\n".join([count, *lines_of(("picture", self.outputs[0]), rows)])

    def _repr_html_(self) -> str:
        shown = [
            (_source(picture), name, f"{self.outputs[0]} {score:.4f}")
            for (name, picture), score in zip(self.pictures, self._best(), strict=True)
        ]
        count = f"{len(self.table):,} rows scored, {self.errors:,} of them could not be"
        return lines_html([count]) + pictures_html(shown, "The highest")

    def _best(self) -> list[float]:
        scores = self.table[self.outputs[0]].drop_null().to_pylist()
        return sorted(scores, reverse=True)[: len(self.pictures)]

    def to_arrow(self) -> pa.Table:
        """The table's columns without pictures, the scores, and `error`."""
        return self.table


def score(
    bundle: Scorer | str | os.PathLike[str],
    data: TableSource,
    *,
    prompt: str | None = None,
    image_column: str = "image",
    prompt_column: str = "prompt",
    source_column: str | None = None,
    images_root: str | os.PathLike[str] | None = None,
    outputs: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Scores:
    """Score every row of a table that fits into memory. For millions of rows use `plaudit runtime score-table`.

    Args:
        bundle: A Scorer, what `export` gave, or the path of a bundle.
        data: The table: a path, a folder of pictures, a frame of pandas or polars, or a table of Arrow.
        prompt: One prompt for all rows, instead of a column.
        image_column: The column with the pictures: paths, or the bytes of files.
        prompt_column: The column of prompts.
        source_column: The column with the source pictures that the pictures were made from. By default source_path, if
            there is one.
        images_root: The folder where relative paths start. By default the table's own folder, or the current one for
            tables in memory.
        outputs: The outputs to give. By default the first head's.
        progress: Called with the progress of the work.

    Raise InputError if a column is missing, or if no row can be scored.
    """
    root = None if images_root is None else os.fspath(images_root)
    asked = None if outputs is None else tuple(outputs)
    config = TableConfig(image_column, prompt_column, prompt, source_column, root, asked)
    require_valid(config)
    opened = open_table(data, {})
    if not opened.has_rows:
        raise InputError(f"{opened.path} has no rows; wanted at least one to score")
    scorer = bundle if isinstance(bundle, Scorer) else Scorer.load(Path(bundle))
    try:
        reading = RowReading.of(scorer, opened, config)
        parts, best = list[pa.Table](), list[tuple[float, str, str | bytes | None]]()
        ranking = next(iter(reading.columns))
        with progress(opened.rows, "rows", "scoring") as step:
            for wanted, others in opened.pieces(reading.types, ROWS):
                parts.append(reading.score(scorer, wanted, others))
                best = _best_of(best, parts[-1], ranking, reading.images(wanted))
                step(len(wanted))
    finally:
        if not isinstance(bundle, Scorer):
            scorer.close()
    scored = pa.concat_tables(parts, promote_options="permissive")
    if scored["error"].null_count == 0:
        raise InputError(f"none of the {len(scored):,} rows of {opened.path} can be scored: {scored['error'][0]}")
    return Scores(scored, tuple(reading.columns), tuple((name, picture) for _, name, picture in best))


def _best_of(
    best: list[tuple[float, str, str | bytes | None]],
    part: pa.Table,
    ranking: str,
    pictures: Sequence[str | bytes | None],
) -> list[tuple[float, str, str | bytes | None]]:
    """The pictures with the highest scores, among the best so far and those of a new part."""
    scores = part[ranking].to_numpy()
    for row in np.argsort(-scores, kind="stable")[:SHOWN]:
        if np.isfinite(scores[row]):
            picture = pictures[row]
            name = picture if isinstance(picture, str) else f"row {row}"
            best = [*best, (float(scores[row]), Path(name).name, picture)]
    return sorted(best, key=lambda one: -one[0])[:SHOWN]


def _source(picture: str | bytes | None) -> str:
    """A small version of a picture as the source of an <img>, or a grey square if it cannot be read."""
    if isinstance(picture, bytes):
        try:
            return data_uri(thumbnail(picture))
        except InputError:
            return picture_at([])
    return picture_at([picture] if picture else [])
