"""Scores for a table of millions: parquet in, a folder of parquet out, memory bounded, and resumable.

    job.json                   what is scored with what; written first, so that a resumed run can tell it is the same
    part-00000-000.parquet     rows of row group 0, ROWS at a time: the table's columns but for picture bytes, the
                               head's outputs (null where there is an error), and `error`
    manifest.json              how many rows and errors; written last

A part appears whole or not at all, and is the same whichever run wrote it.
"""

import hashlib
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embed.files import read_manifest, write_json, write_with
from embed.outs import require_out
from embed.progress import Progress, silent
from embed.spec import InputError
from runtime.config import TableConfig

if TYPE_CHECKING:
    from runtime.scoring.scorer import Scorer

FORMAT = 1
ROWS = 1024  # a part: what is held in memory, pictures included


def score_table(
    scorer: "Scorer", source: Path, out: Path, config: TableConfig, progress: Progress = silent
) -> dict[str, int]:
    """Score every row of a parquet file into the folder `out`; returns what manifest.json holds.

    The image column holds paths, relative to the table's folder, or bytes, or {bytes, path} as Hugging Face datasets
    do. Raise InputError where a column is missing, `out` belongs to another job, or no row can be scored.
    """
    if not source.is_file():
        raise InputError(f"{source} is missing; wanted a parquet file")
    try:
        table = pq.ParquetFile(source)
    except pa.ArrowInvalid as error:
        raise InputError(f"{source} is no parquet file ({error})") from None
    with table:
        _check_columns(table, scorer, source, config)
        _claim(out, _job(scorer, source, table, config))
        errors = 0
        with progress(table.metadata.num_rows, "rows", "scoring") as step:
            for group in range(table.metadata.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                paths = [out / f"part-{group:05d}-{number:03d}.parquet" for number in range(-(-rows // ROWS))]
                if not all(path.exists() for path in paths):
                    batches = table.iter_batches(batch_size=ROWS, row_groups=[group])
                    for path, batch in zip(paths, batches, strict=True):
                        if not path.exists():
                            scored = score_batch(scorer, batch, source.parent, config)
                            write_with(path, partial(pq.write_table, scored))
                        step(len(batch))
                else:
                    step(rows)
                errors += sum(pq.read_metadata(path).num_rows - _scored(path) for path in paths)
        if errors and errors == table.metadata.num_rows:
            example = pq.read_table(min(out.glob("part-*.parquet"))).slice(0, 1).to_pylist()[0]
            place = example.get(config.image_column) or "its first row"
            raise InputError(f"none of the {errors:,} rows of {source} can be scored: {place}: {example['error']}")
    summary = {"format": FORMAT, "rows": table.metadata.num_rows, "errors": errors}
    write_json(out / "manifest.json", summary)
    return summary


def score_batch(scorer: "Scorer", batch: pa.RecordBatch, folder: Path, config: TableConfig) -> pa.Table:
    """The rows with the head's outputs and `error` in place of the picture's bytes."""
    images = [_picture(value, folder) for value in batch.column(config.image_column).to_pylist()]
    prompts = [config.prompt or ""] * len(images)
    if config.prompt is None and scorer.reads_text:
        prompts = batch.column(config.prompt_column).to_pylist()
    errors = [
        "no picture" if image is None else "no prompt" if prompt is None else None
        for image, prompt in zip(images, prompts, strict=True)
    ]
    good = [number for number, error in enumerate(errors) if error is None]
    scored = scorer.score_items([prompts[i] for i in good], [images[i] for i in good])
    for number, error in scored.errors.items():
        errors[good[number]] = str(error)
    columns = {name: batch.column(name) for name in batch.schema.names if not _holds_bytes(batch.schema, name)}
    for name, values in scored.outputs.items():
        full = np.full(len(images), np.nan, np.float32)
        full[good] = values
        columns[name] = pa.array(full, mask=np.isnan(full))
    return pa.table({**columns, "error": pa.array(errors, pa.string())})


def _picture(value: Any, folder: Path) -> Any:
    """What the scorer takes: bytes, or the path made relative to the table's folder."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return folder / value if isinstance(value, str) else value


def _holds_bytes(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    return bool(pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_columns(table: pq.ParquetFile, scorer: "Scorer", source: Path, config: TableConfig) -> None:
    wanted = [config.image_column, *([config.prompt_column] if scorer.reads_text and config.prompt is None else [])]
    found = table.schema_arrow.names
    if missing := [name for name in wanted if name not in found]:
        raise InputError(
            f"{source} has no column {missing[0]!r}, only {found};"
            " name yours with --image-column and --prompt-column, or give one --prompt for all rows"
        )
    if taken := {"error", *scorer.outputs} & set(found):
        raise InputError(f"{source} has a column {min(taken)!r} already, which the scores would be called; rename it")


def _job(scorer: "Scorer", source: Path, table: pq.ParquetFile, config: TableConfig) -> dict[str, object]:
    with open(source, "rb") as file:
        # The footer holds every row group's place, size and statistics; hashing terabytes of pictures would not pay.
        file.seek(-min(source.stat().st_size, table.metadata.serialized_size + 8), os.SEEK_END)
        footer = hashlib.sha256(file.read()).hexdigest()
    return {
        "format": FORMAT,
        "bundle": scorer.bundle.digest,
        "precision": scorer.precision,
        "table": {"footer": footer, "bytes": source.stat().st_size},
        "rows": ROWS,
        **asdict(config),
    }


def _claim(out: Path, job: dict[str, object]) -> None:
    """Write job.json into a new folder, or check that the one there asks for the same.

    Where no row has been scored yet, as in a job that failed, a new one begins.
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


def _scored(path: Path) -> int:
    return int(pq.read_table(path, columns=["error"])["error"].null_count)
