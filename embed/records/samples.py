"""Sources that give one record after another as a Python dict, and one such source: a folder of pictures.

They are read like any other table. Only one batch of records is held as Python objects at a time.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from embed.records.tables import Rows, Table, Types
from embed.spec import InputError

BATCH_RECORDS = 8192

# Files in a folder of pictures that are not pictures. Hidden files are left out too; every other file counts as one.
SIDE_FILES = (".csv", ".html", ".json", ".jsonl", ".md", ".npy", ".npz", ".parquet", ".tar", ".tsv", ".txt", ".zip")

# The words for JSON's kinds of values.
KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


class SampleTable(Table):
    """A source of Python dicts, one for each row."""

    def _samples(self, types: Types) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        start = 0
        for samples in _batched(self._samples(types), min(rows, BATCH_RECORDS)):
            columns = {name: self._array(name, _values(samples, name), start, type) for name, type in types.items()}
            yield pa.RecordBatch.from_pydict(columns)
            start += len(samples)

    def _read(self, types: Types) -> pa.Table:
        tables, start = [], 0
        for samples in _batched(self._samples(types), BATCH_RECORDS):
            tables.append(self._to_table(samples, types, start))
            start += len(samples)
        return pa.concat_tables(tables, promote_options="permissive")

    def _whole_rows(self, types: Types, rows: int, start: int) -> Iterator[Rows]:
        # The types of the other columns depend on all rows; the rows themselves, with pictures, are given one by one.
        others, row = self._read({}).schema, 0
        for samples in _batched(self._samples(types), rows):
            if row + len(samples) > start:
                table = self._to_table(samples, types, row)
                settled = {
                    name: table[name].cast(others.field(name).type)
                    if name in table.column_names
                    else pa.nulls(len(table), others.field(name).type)
                    for name in others.names
                }
                named = {name: table[name] for name in types}
                yield pa.table(settled | named).slice(max(0, start - row))
            row += len(samples)

    def _to_table(self, samples: list[dict[str, Any]], types: Types, start: int) -> pa.Table:
        """Return the columns of `types`, and every other column without lists and objects."""
        columns = {}
        for name in dict.fromkeys([*types, *itertools.chain.from_iterable(samples)]):
            values = _values(samples, name)
            if name in types or not any(isinstance(value, list | dict) for value in values):
                columns[name] = self._array(name, values, start, types.get(name))
        return pa.table(columns)

    def _array(self, name: str, values: list[Any], start: int, type: pa.DataType | None) -> pa.Array:
        """Return the values as an array of this type, or of their own type if they do not fit it."""
        attempts: list[dict[str, Any]] = [{"type": type}, {"type": type, "from_pandas": True}, {}]
        for options in attempts:  # from_pandas makes NaN among texts a null
            try:
                return pa.array(values, **options)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                reason = str(error)
        where = f"{self.path}: column {name!r}"
        kinds = [KINDS.get(value.__class__) for value in values]
        first = next(kind for kind in kinds if kind)
        for row, (kind, value) in enumerate(zip(kinds, values, strict=True), start):
            if kind not in (None, first):
                raise InputError(
                    f"{where} holds different kinds of values: {first}, and {kind} in row {row} (counted from 0)"
                )
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise InputError(f"{where} has {value} in row {row} (counted from 0), which 64 bits cannot hold")
        raise InputError(f"{where} holds different kinds of values from row {start} on: {reason}")


class FolderTable(SampleTable):
    """Every file under a folder except hidden ones and side files, sorted by name, folder by folder.

    Links to folders are not followed. The prompt of `a.jpg` is the text of `a.txt` beside it, or null without one;
    bytes of that text that are not UTF-8 become U+FFFD. A file name that is not UTF-8 becomes its `file://` URI.
    """

    plain_format = "folder"

    @property
    def files(self) -> list[str]:
        return []

    def _open(self) -> tuple[pa.Schema, bool]:
        has_rows = next(_files(self.path, ""), None) is not None
        return pa.schema([("image", pa.string()), ("prompt", pa.string())]), has_rows

    def _samples(self, types: Types) -> Iterator[dict[str, Any]]:
        for name in _files(self.path, ""):
            sample: dict[str, Any] = {"image": _utf8_name(self.path, name)}
            if "prompt" in types:
                text = Path(self.path, name).with_suffix(".txt")
                sample["prompt"] = text.read_text("utf-8", "replace").strip() if text.is_file() else None
            yield sample


def _batched(samples: Iterable[dict[str, Any]], rows: int) -> Iterator[list[dict[str, Any]]]:
    samples = iter(samples)
    while batch := list(itertools.islice(samples, rows)):
        yield batch


def _values(samples: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [sample.get(name) for sample in samples]


def _files(root: str, folder: str) -> Iterator[str]:
    with os.scandir(os.path.join(root, folder)) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_file()) for entry in entries)
    for name, is_folder, is_file in found:
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if is_folder:
            yield from _files(root, path)
        elif is_file and not name.lower().endswith(SIDE_FILES):
            yield path


def _utf8_name(root: str, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        return Path(root, name).absolute().as_uri()
    return name
