"""Rows as Arrow, from whatever holds them: what every source of rows offers.

A source reads its own file and says what columns it has. Their types become plain here, once (`plain`), so that nobody
downstream meets another. Every source offers the same readings: `stream`, a few typed columns in small batches; `read`,
the typed columns with every other scalar column, whole; and `pieces`, both, so many rows at a time. Knows nothing of
pictures and labels.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

import pyarrow as pa

from embed.records.plain import Column, convert, holds_bytes, is_light, is_scalar, plain, plain_type
from embed.spec import InputError
from embed.wording import one_line

# Rows in a batch. Pictures inside a table are up to megabytes each.
BATCH_ROWS = 65_536
BATCH_ROWS_WITH_BYTES = 64

Types: TypeAlias = Mapping[str, pa.DataType]
Rows: TypeAlias = pa.Table | pa.RecordBatch
RecordFormat = Literal[
    "social-reward", "pick-a-pic", "imagereward", "hpd", "ratings", "popularity", "images", "folder", "webdataset"
]


class Table:
    """A source of rows, opened once for what its columns are and whether there are rows; each reading is a pass.

    `aliases` gives columns a further name: {"rating": "mos_quality"} for {ours: theirs}. Relative paths of pictures
    start in the folder `root`.
    """

    # What a source without labels is called among the formats.
    plain_format: RecordFormat = "images"
    rows: int | None = None  # where that is known without reading them

    def __init__(self, path: str, root: str, aliases: Mapping[str, str]) -> None:
        self.path = path
        self.root = root
        self.aliases = aliases
        with self._readable():
            schema, self.has_rows = self._open()
        self._know(schema)

    def _know(self, schema: pa.Schema) -> None:
        """Take note of the columns."""
        names = schema.names
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{self.path} has more than one column called {repeated[0]!r}")
        for ours, theirs in self.aliases.items():
            if theirs not in names:
                turned = f" (NAME=YOURS; did you mean {theirs}={ours}?)" if ours in names else ""
                raise InputError(
                    f"{self.path} has no column {theirs!r} to read as {ours!r}{turned}; it has {', '.join(names)}"
                )
        self._own_types = {field.name: plain_type(field.type) for field in schema}
        self.types = self._own_types | {ours: self._own_types[theirs] for ours, theirs in self.aliases.items()}

    @property
    def files(self) -> list[str]:
        """What it reads; nothing where that is no files of tables."""
        return [self.path]

    def complete(self) -> None:
        """Find the columns that only later rows have, where opening has not looked at all rows."""

    def stream(self, types: Types) -> Iterator[pa.RecordBatch]:
        """Batches of the columns named, as the types given."""
        rows = BATCH_ROWS_WITH_BYTES if any(map(holds_bytes, types.values())) else BATCH_ROWS
        start, schema = 0, pa.schema(list(types.items()))
        with self._readable():
            for batch in self._stream(self._own(types), rows):
                for piece in range(0, batch.num_rows, rows):
                    columns = self._typed(batch.slice(piece, rows), types, start + piece)
                    yield pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)
                start += batch.num_rows

    def read(self, types: Types) -> tuple[pa.Table, pa.Table]:
        """The columns named, as the types given; and every other column of scalars, under its own name."""
        with self._readable():
            table = self._read(self._own(types))
            wanted = pa.table(self._typed(table, types))
            others = table.select([name for name in table.column_names if name not in types])
            return wanted, pa.table(self._others(others, wanted, is_scalar))

    def pieces(self, types: Types, rows: int, start: int = 0) -> Iterator[tuple[pa.Table, pa.Table]]:
        """The rows from `start` on, `rows` at a time and fewer in the end: the columns named, as the types given; and
        every column of scalars or lists of them, under its own name."""
        with self._readable():
            for piece in _regrouped(self._whole_rows(self._own(types), rows, start), rows):
                wanted = pa.table(self._typed(piece, types, start))
                yield wanted, pa.table(self._others(piece, wanted, is_light))
                start += len(piece)

    def _own(self, types: Types) -> dict[str, pa.DataType]:
        own: dict[str, pa.DataType] = {}
        for name, type in types.items():
            own.setdefault(self.aliases.get(name, name), type)
        return own

    def _with(self, types: Types, kept: Callable[[pa.DataType], bool]) -> list[str]:
        """The names of these columns and of every other one that is to be kept."""
        return [name for name, type in self._own_types.items() if name in types or kept(type)]

    def _typed(self, rows: Rows, types: Types, start: int = 0) -> dict[str, Column]:
        columns = {}
        for name, type in types.items():
            own = self.aliases.get(name, name)
            columns[name] = convert(rows[own], type, f"{self.path}: column {own!r}", start)
        return columns

    def _others(self, rows: Rows, wanted: pa.Table, kept: Callable[[pa.DataType], bool]) -> dict[str, Column]:
        """The columns to be kept. Text that was read as something else under a further name is that here too."""
        renamed = {theirs: ours for ours, theirs in self.aliases.items() if ours in wanted.column_names}
        columns = {}
        for name in rows.schema.names:
            type = plain_type(rows[name].type)
            if type == pa.string() and name in renamed:
                columns[name] = wanted[renamed[name]]
            elif kept(type):
                try:
                    columns[name] = plain(rows[name])
                except pa.ArrowInvalid as error:
                    raise InputError(
                        f"{self.path}: column {name!r} holds {rows[name].type} that is no {type} ({error}); cast it"
                    ) from None
        return columns

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, json.JSONDecodeError, UnicodeError, OverflowError, RecursionError) as error:
            raise InputError(f"{self.path} cannot be read: {one_line(error)}") from None
        except OSError as error:
            if error.filename:
                raise
            raise InputError(f"{self.path} cannot be read: {one_line(error)}") from None  # Arrow's, of damaged data

    # What a source has to know. `types` are of its own columns: what each is asked to be, which it need not be yet.

    def _open(self) -> tuple[pa.Schema, bool]:
        """The columns, and whether there are rows."""
        raise NotImplementedError

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        """These columns, in batches of about so many rows."""
        raise NotImplementedError

    def _read(self, types: Types) -> pa.Table:
        """These columns and every other one of scalars."""
        raise NotImplementedError

    def _whole_rows(self, types: Types, rows: int, start: int) -> Iterator[Rows]:
        """What `_read` gives, from row `start` on, in batches of any size."""
        yield self._read(types).slice(start)


def _regrouped(batches: Iterable[Rows], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows`; the last one may have fewer."""
    held: list[pa.Table] = []
    free = rows
    for batch in batches:
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        while len(table):
            held.append(table.slice(0, free))
            table = table.slice(free)
            free -= len(held[-1])
            if free == 0:
                yield pa.concat_tables(held, promote_options="permissive")
                held, free = [], rows
    if held:
        yield pa.concat_tables(held, promote_options="permissive")
