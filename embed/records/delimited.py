"""Read CSV as spreadsheets, pandas and others write it. Encoding and separator are detected."""

import csv as csv_module
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embed.records.tables import Table, Types
from embed.spec import InputError

BLOCK_BYTES = 2 << 20  # a row must fit into a block
SNIFF_BYTES = 1 << 16
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class CsvTable(Table):
    """Values separated by commas, semicolons, tabs or bars, or as a first line such as `sep=;` says.

    An empty cell is null; `""` is an empty text. Spaces around column names are removed.
    """

    def _options(self, types: Types, only: bool) -> dict[str, Any]:
        import pyarrow.csv as csv

        names = [self._dialect.names[name] for name in types]
        return {
            "read_options": csv.ReadOptions(
                block_size=BLOCK_BYTES, encoding=self._dialect.encoding, skip_rows=self._dialect.skipped
            ),
            "parse_options": csv.ParseOptions(delimiter=self._dialect.separator, newlines_in_values=True),
            "convert_options": csv.ConvertOptions(
                # All columns are text here; `plain.convert` gives them their types, as in every kind of table.
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=names if only else [],
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        }

    def _open(self) -> tuple[pa.Schema, bool]:
        import pyarrow.csv as csv

        self._dialect = _dialect(self.path)
        with csv.open_csv(self._file(), **self._options({}, only=False)) as reader:
            names = [name.strip() for name in reader.schema.names]
            self._dialect.names.update(zip(names, reader.schema.names, strict=True))
            return pa.schema([(name, pa.string()) for name in names]), any(map(len, reader))

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        import pyarrow.csv as csv

        with csv.open_csv(self._file(), **self._options(types, only=True)) as reader:
            for batch in reader:
                yield batch.rename_columns(list(types))

    def _read(self, types: Types) -> pa.Table:
        import pyarrow.csv as csv

        table = csv.read_csv(self._file(), **self._options(types, only=False))
        table = table.rename_columns([name.strip() for name in table.column_names])
        for field in table.schema:
            if pa.types.is_binary(field.type):  # Arrow reads text as binary if it is not UTF-8
                raise InputError(f"{self.path}: column {field.name!r} is not in UTF-8; save the file as UTF-8")
        # Integers beyond 64 bits are read as floats, and different ones may become equal; read them as text.
        rounded = [name for name in table.column_names if _exceeds_64_bits(table[name])]
        return self._read({**types, **dict.fromkeys(rounded, pa.string())}) if rounded else table

    def _file(self) -> pa.NativeFile:
        return pa.input_stream(self.path, compression="detect")


def _exceeds_64_bits(column: pa.ChunkedArray) -> bool:
    most = pc.max(pc.abs(column)).as_py() if pa.types.is_floating(column.type) else None
    return most is not None and most >= 2**63


@dataclass(frozen=True)
class _Dialect:
    encoding: str
    skipped: int  # how many lines precede the column names
    separator: str
    names: dict[str, str]  # from our name of a column to its name in the file


def encoding_of(start: bytes) -> str:
    """Return the encoding of text that begins with these bytes: UTF-16 if its mark or zeros show it, else UTF-8."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if start[1:2] == b"\0" or start[:1] == b"\0":
        return "utf-16-le" if start[1:2] == b"\0" else "utf-16-be"
    return "utf-8"


def _dialect(path: str) -> _Dialect:
    with pa.input_stream(path, compression="detect") as file:
        start = file.read(SNIFF_BYTES)
    encoding = encoding_of(start)
    text = start.decode(encoding, "ignore").removeprefix("\ufeff")
    told = re.split(r"\r\n?|\n", text, maxsplit=1)[0]
    if told.lower().startswith("sep=") and len(told) == 5:
        return _Dialect(encoding, 1, told[4], {})
    return _Dialect(encoding, 0, _separator(path, text, len(start) == SNIFF_BYTES), {})


def _separator(path: str, text: str, cut: bool) -> str:
    """Return the separator that splits the header and all rows into equally many values.

    Raise InputError if there are several.
    """
    usual = "\t" if ".tsv" in Path(path).suffixes else ","
    fitting, present = [], []
    for separator in SEPARATORS:
        rows = [row for row in csv_module.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
        if rows and len(rows[0]) > 1:
            present.append(separator)
            if all(len(row) == len(rows[0]) for row in (rows[:-1] if cut else rows)):
                fitting.append(separator)
    if len(present) < 2:
        return (present or [usual])[0]
    if len(fitting) > 1:
        names = " or ".join(SEPARATORS[separator] for separator in fitting)
        raise InputError(f"{path} may be separated by {names}; add a first line that says which, as sep={fitting[0]}")
    return (fitting or ([usual] if usual in present else present))[0]
