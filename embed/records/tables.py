"""Rows as Arrow, from Parquet, CSV or JSON Lines.

Every source offers the same two readings: `stream`, a few typed columns in small batches, and `read`, the typed
columns with every other scalar column, whole. Knows nothing of pictures and labels.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from embed.spec import InputError

# Rows in a batch. Pictures inside a table are up to megabytes each.
BATCH_ROWS = 65_536
BATCH_ROWS_WITH_BYTES = 64
BLOCK_BYTES = 2 << 20  # of CSV or JSON Lines; must hold a whole row

Types = Mapping[str, pa.DataType]
RecordFormat = Literal[
    "social-reward", "pick-a-pic", "imagereward", "hpd", "ratings", "popularity", "images", "folder", "webdataset"
]


class Table:
    """A source of rows, opened once for what its columns are and whether there are rows; each reading is a pass.

    `aliases` gives columns a further name: {"rating": "mos_quality"} for {ours: theirs}.
    """

    # What a source without labels is called among the formats.
    plain_format: RecordFormat = "images"
    rows: int | None = None  # where that is known without reading them

    def __init__(self, path: str, aliases: Mapping[str, str]) -> None:
        self.path = path
        self.aliases = aliases
        with self._readable():
            self._own_schema, self.has_rows = self._open()
        names = self._own_schema.names
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{path} has more than one column called {repeated[0]!r}")
        for ours, theirs in aliases.items():
            if theirs not in names:
                raise InputError(f"{path} has no column {theirs!r} to read as {ours!r}; it has {', '.join(names)}")
        self.types = {field.name: field.type for field in self._own_schema}
        self.types |= {ours: self.types[theirs] for ours, theirs in aliases.items()}

    def stream(self, types: Types) -> Iterator[pa.RecordBatch]:
        """Batches of the columns named, cast to the types given."""
        rows = BATCH_ROWS_WITH_BYTES if any(map(holds_bytes, types.values())) else BATCH_ROWS
        with self._readable():
            for batch in self._stream(self._own(types), rows):
                for piece in range(0, batch.num_rows, rows):
                    columns = [self._column(batch.slice(piece, rows), name, type) for name, type in types.items()]
                    yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(list(types.items())))

    def read(self, types: Types) -> tuple[pa.Table, pa.Table]:
        """The columns named, cast to the types given; and every other column of scalars, under its own name."""
        with self._readable():
            table = self._read(self._own(types))
            wanted = pa.table({name: self._column(table, name, type) for name, type in types.items()})
        others = [name for name in table.column_names if name not in types and is_scalar(table.schema.field(name).type)]
        return wanted, table.select(others)

    def _own(self, types: Types) -> dict[str, pa.DataType]:
        own: dict[str, pa.DataType] = {}
        for name, type in types.items():
            own.setdefault(self.aliases.get(name, name), type)
        return own

    def _column(self, table: pa.Table | pa.RecordBatch, name: str, type: pa.DataType) -> pa.Array | pa.ChunkedArray:
        own = self.aliases.get(name, name)
        try:
            return table[own].cast(type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputError(f"{self.path}: column {own!r} cannot be read as {type}: {error}") from None

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, json.JSONDecodeError, UnicodeError, OverflowError, RecursionError) as error:
            raise InputError(f"{self.path} cannot be read: {error}") from None
        except OSError as error:
            if error.filename:
                raise
            raise InputError(f"{self.path} cannot be read: {error}") from None  # Arrow's, of damaged data

    def _open(self) -> tuple[pa.Schema, bool]:
        """The columns, and whether there are rows."""
        raise NotImplementedError

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        raise NotImplementedError

    def _read(self, types: Types) -> pa.Table:
        raise NotImplementedError


class ParquetTable(Table):
    def _open(self) -> tuple[pa.Schema, bool]:
        import pyarrow.parquet as pq

        metadata = pq.read_metadata(self.path)
        self.rows = metadata.num_rows
        return metadata.schema.to_arrow_schema(), metadata.num_rows > 0

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        # With a buffer a column is read page by page; without one, a whole row group of pictures at once.
        with pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield from file.iter_batches(rows, columns=list(types))

    def _read(self, types: Types) -> pa.Table:
        import pyarrow.parquet as pq

        scalars = [field.name for field in self._own_schema if is_scalar(field.type)]
        with pq.ParquetFile(self.path) as file:
            return file.read(columns=list(dict.fromkeys([*types, *scalars])))


class CsvTable(Table):
    """Comma-separated, or tab-separated where the name says `.tsv`. An empty cell is null; `""` is an empty text."""

    def _options(self, types: Types, only: bool) -> dict[str, Any]:
        import pyarrow.csv as csv

        return {
            "read_options": csv.ReadOptions(block_size=BLOCK_BYTES),
            "parse_options": csv.ParseOptions(
                delimiter="\t" if ".tsv" in Path(self.path).suffixes else ",", newlines_in_values=True
            ),
            "convert_options": csv.ConvertOptions(
                column_types=types,
                include_columns=list(types) if only else [],
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        }

    def _open(self) -> tuple[pa.Schema, bool]:
        import pyarrow.csv as csv

        with csv.open_csv(self.path, **self._options({}, only=False)) as reader:
            # Text that is not UTF-8 would pass for bytes; as text it is refused when it is read.
            texts = [
                field.with_type(pa.string()) if pa.types.is_binary(field.type) else field for field in reader.schema
            ]
            return pa.schema(texts), any(map(len, reader))

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        import pyarrow.csv as csv

        with csv.open_csv(self.path, **self._options(types, only=True)) as reader:
            yield from reader

    def _read(self, types: Types) -> pa.Table:
        import pyarrow.csv as csv

        return csv.read_csv(self.path, **self._options(types, only=False))


class JsonLinesTable(Table):
    def _options(self, types: Types, others: str) -> dict[str, Any]:
        import pyarrow.json as paj

        return {
            "read_options": paj.ReadOptions(block_size=BLOCK_BYTES),
            "parse_options": paj.ParseOptions(
                explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior=others
            ),
        }

    def _open(self) -> tuple[pa.Schema, bool]:
        import pyarrow.json as paj

        with paj.open_json(self.path, **self._options({}, "infer")) as reader:
            return reader.schema, any(map(len, reader))

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        import pyarrow.json as paj

        with paj.open_json(self.path, **self._options(types, "ignore")) as reader:
            yield from reader

    def _read(self, types: Types) -> pa.Table:
        import pyarrow.json as paj

        return paj.read_json(self.path, **self._options(types, "infer"))


def holds_bytes(type: pa.DataType) -> bool:
    """Whether a column of this type may hold pictures: binary, or a struct as the `datasets` library stores images."""
    binary = pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type)
    return bool(binary or (pa.types.is_struct(type) and type.get_field_index("bytes") >= 0))


def is_scalar(type: pa.DataType) -> bool:
    """Whether a column of this type can be kept beside the labels: numbers, booleans, dates, texts."""
    text = pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type)
    return bool(text or pa.types.is_primitive(type) or pa.types.is_decimal(type) or pa.types.is_dictionary(type))
