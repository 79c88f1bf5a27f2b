"""Small tables written for tests of embed.records.formats, and its answers as plain Python."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embed.records.columns import IMAGES, PROMPTS
from embed.records.formats import Records
from embed.records.labels import LABELS

Rows = list[dict[str, Any]]


def write(name: str, rows: Rows) -> Path:
    """A file of the given rows, in the form that its name says."""
    path = Path(name)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1))
    else:
        lines = [json.dumps(row) for row in rows]
        if name.endswith(".csv"):
            cells = [list(rows[0]), *(["" if value is None else str(value) for value in row.values()] for row in rows)]
            lines = [",".join(line) for line in cells]
        path.write_text("\n".join(lines) + "\n")
    return path


def images(records: Records) -> list[tuple[Any, ...]]:
    batches = list(records.images())
    assert all(batch.schema == IMAGES for batch in batches)
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


def prompts(records: Records) -> list[str]:
    batches = list(records.prompts())
    assert all(batch.schema == PROMPTS for batch in batches)
    return [row["text"] for batch in batches for row in batch.to_pylist()]


def labels(records: Records) -> list[tuple[Any, ...]]:
    table = records.labels()
    standard = LABELS[records.kind]
    assert {name: table.schema.field(name).type for name in table.column_names[: len(standard)]} == standard
    return [tuple(row.values()) for row in table.to_pylist()]
