"""Score a table of millions of rows, of any kind that `embed cache` reads, into a folder of Parquet files. It can be
resumed.

    job.json              the table and the bundle; written first, so that a resumed run can check that it is the same
    part-000000.parquet   the first ROWS rows, and so on: the table's columns without pictures, the head's outputs (null
    if there is an error), and `error` manifest.json         the numbers of rows and errors; written last

Parts are written atomically, and are the same for every run. Only one part's pictures are in memory at a time.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embed.files import read_manifest, require_out, write_json, write_with
from embed.progress import Progress, silent
from embed.records.columns import Picture, absolute, picture
from embed.records.sources import open_table, pictures_root
from embed.records.tables import Table, Types
from embed.spec import InputError
from runtime.config import TableConfig

if TYPE_CHECKING:
    from runtime.scoring.scorer import Scorer

FORMAT = 3  # 3: percentiles are 0 to 100
SOURCE_COLUMN = "source_path"
ROWS = 1024  # rows of a part, which is held in memory with its pictures


def score_table(
    scorer: "Scorer", source: str | Path, out: Path, config: TableConfig, progress: Progress = silent
) -> dict[str, int]:
    """Score every row of a table into the folder `out`, and return the contents of manifest.json.

    The image column holds paths, which are relative to `images_root`, or bytes, or {bytes, path} as in Hugging Face
    datasets. Raise InputError if a column is missing, `out` belongs to another job, or no row can be scored.
    """
    table = open_table(source, {})
    reading = RowReading.of(scorer, table, config)
    _claim(out, _job(scorer, table, config))
    parts = list(takewhile(Path.exists, (_part(out, number) for number in count())))
    with progress(table.rows, "rows", "scoring") as step:
        step(sum(pq.read_metadata(path).num_rows for path in parts))
        for wanted, others in table.pieces(reading.types, ROWS, len(parts) * ROWS):
            parts.append(_part(out, len(parts)))
            if not parts[-1].exists():
                write_with(parts[-1], partial(pq.write_table, reading.score(scorer, wanted, others)))
            step(len(wanted))
    errors = [pq.read_table(path, columns=["error"])["error"] for path in parts]
    rows = sum(map(len, errors))
    if rows and not any(column.null_count for column in errors):
        first = pq.read_table(parts[0]).slice(0, 1).to_pylist()[0]
        which = first.get(config.image_column) or "its first row"
        raise InputError(f"none of the {rows:,} rows of {source} can be scored: {which}: {first['error']}")
    summary = {"format": FORMAT, "rows": rows, "errors": rows - sum(column.null_count for column in errors)}
    write_json(out / "manifest.json", summary)
    return summary


@dataclass(frozen=True)
class RowReading:
    """How to read pictures, prompts and sources from a table's rows, and the names of the scores' columns."""

    side: Picture
    made_from: Picture | None
    prompt_column: str | None  # None: one prompt for all rows, or no prompt is read
    prompt: str
    root: str
    columns: Mapping[str, str]
    types: Types

    @classmethod
    def of(cls, scorer: "Scorer", table: Table, config: TableConfig) -> "RowReading":
        """The reading of a table by its columns. Raise InputError if one is missing."""
        texts = [config.prompt_column] if scorer.named.needs_prompt(config.outputs) and config.prompt is None else []
        columns = scorer.named.columns(config.outputs)
        _check_columns(table, [config.image_column, *texts], {"error", *columns})
        side, made_from = picture(table, config.image_column), _source(scorer, table, config)
        root = pictures_root(table, config.images_root)
        types = side.types(table) | dict.fromkeys(texts, pa.string()) | (made_from.types(table) if made_from else {})
        return cls(side, made_from, next(iter(texts), None), config.prompt or "", root, columns, types)

    def score(self, scorer: "Scorer", wanted: pa.Table, others: pa.Table) -> pa.Table:
        """`score_rows` for rows. `wanted` holds their columns that are read here, and `others` the rest."""
        column = self.prompt_column
        prompts = wanted[column].to_pylist() if column else [self.prompt] * len(wanted)
        sources = _images(wanted, self.made_from, self.root) if self.made_from else ()
        return score_rows(scorer, self.images(wanted), prompts, others, self.columns, sources)

    def images(self, wanted: pa.Table) -> list[str | bytes | None]:
        """The pictures of rows, as bytes or paths."""
        return _images(wanted, self.side, self.root)


def score_rows(
    scorer: "Scorer",
    images: Sequence[str | bytes | None],
    prompts: Sequence[str | None],
    others: pa.Table,
    outputs: Mapping[str, str],
    sources: Sequence[str | bytes | None] = (),
) -> pa.Table:
    """The columns `others` of rows with `error` and the heads' outputs, which get the names that `outputs` maps to
    them."""
    errors = [
        "no picture" if image is None else "no prompt" if prompt is None else None
        for image, prompt in zip(images, prompts, strict=True)
    ]
    good = [number for number, error in enumerate(errors) if error is None]
    made_from = [sources[i] for i in good] if sources else ()
    scored = scorer.score_items([prompts[i] or "" for i in good], [images[i] or b"" for i in good], made_from)
    for number, error in scored.errors.items():
        errors[good[number]] = str(error)
    columns = dict(zip(others.column_names, others.columns, strict=True))
    for name, there in outputs.items():
        full = np.full(len(images), np.nan, np.float32)
        full[good] = scored.outputs[there]
        columns[name] = pa.array(full, mask=np.isnan(full))
    return pa.table({**columns, "error": pa.array(errors, pa.string())})


def _source(scorer: "Scorer", table: Table, config: TableConfig) -> Picture | None:
    """The column of source pictures, if one is named, or if there is one and a head reads it."""
    name = config.source_column
    if name is None:
        return picture(table, SOURCE_COLUMN) if scorer.reads_source and SOURCE_COLUMN in table.types else None
    if not scorer.reads_source:
        raise InputError(f"no head of {scorer.bundle.path} reads sources; leave --source-column out")
    if name not in table.types:
        raise InputError(f"{table.path} has no column {name!r}, only {list(table.types)}")
    return picture(table, name)


def _images(rows: pa.Table, side: Picture, root: str) -> list[str | bytes | None]:
    """The pictures of rows for the scorer, as bytes or paths."""
    images: list[str | bytes | None] = []
    for batch in map(side.batch, rows.to_batches()):
        paths = absolute(batch["uri"], root).to_pylist()
        images += [path if data is None else data for path, data in zip(paths, batch["bytes"].to_pylist(), strict=True)]
    return images


def _part(out: Path, number: int) -> Path:
    return out / f"part-{number:06d}.parquet"


def _check_columns(table: Table, wanted: Sequence[str], ours: set[str]) -> None:
    if missing := [name for name in wanted if name not in table.types]:
        raise InputError(
            f"{table.path} has no column {missing[0]!r}, only {list(table.types)};"
            " name yours with --image-column and --prompt-column, or give one --prompt for all rows"
        )
    if taken := ours & table.types.keys():
        raise InputError(f"{table.path} has a column {min(taken)!r}, which is the name of a score; rename it")


def _job(scorer: "Scorer", table: Table, config: TableConfig) -> dict[str, object]:
    return {
        "format": FORMAT,
        "bundle": scorer.bundle.digest,
        "precision": scorer.precision,
        "table": _fingerprint(table),
        "rows": ROWS,
        **asdict(config),
        "outputs": config.outputs and list(config.outputs),
    }


def _fingerprint(table: Table) -> str:
    """A hash of the files of a table, or of the names in a folder of pictures.

    For Parquet only the footer is hashed, which has every row group's place, size and statistics: hashing terabytes of
    pictures would take too long.
    """
    digest = hashlib.sha256()
    for path in table.files:
        with open(path, "rb") as file:
            digest.update(str(os.stat(path).st_size).encode())
            if path.lower().endswith(".parquet"):
                file.seek(-8, os.SEEK_END)
                file.seek(-8 - int.from_bytes(file.read(4), "little"), os.SEEK_END)
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for batch in () if table.files else table.stream({"image": pa.string()}):
        digest.update(json.dumps(batch["image"].to_pylist()).encode())
    return digest.hexdigest()


def _claim(out: Path, job: dict[str, object]) -> None:
    """Write job.json into a new folder, or check that the existing one is of the same job.

    If no row has been scored yet, for example because the job failed, a new job begins.
    """
    require_out(out, "job of scores", overwrite=True)
    path, parts = out / "job.json", sorted(out.glob("part-*.parquet"))
    if any(_scored(part) for part in parts):
        found = read_manifest(path, "job of scores", (FORMAT,), dict)
        if different := sorted(name for name in job if found.get(name) != job[name]):
            raise InputError(f"{out} holds scores of another job: {different[0]} differs; choose another --out")
    else:
        write_json(path, job)
        for file in [out / "manifest.json", *parts]:
            file.unlink(missing_ok=True)


def _scored(part: Path) -> bool:
    return bool(pq.read_table(part, columns=["error"])["error"].null_count)
