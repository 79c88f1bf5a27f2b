"""The base class of all sources of rows: they give their rows as Arrow.

A source reads its own file and says what columns it has. Their types become plain here, once (`plain`), so that the
rest of the program meets no others. Every source offers the same readings: `stream`, some typed columns in small
batches; `read`, the typed columns and all other scalar columns, completely; and `pieces`, the same in pieces of a given
number of rows. This module does not know pictures and labels.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

import pyarrow as pa

from embed.records.plain import Column, convert, holds_bytes, is_light, is_scalar, plain, plain_type
from embed.spec import InputError
from embed.wording import one_line

# The number of rows in a batch. A picture inside a table may have megabytes.
BATCH_ROWS = 65_536
BATCH_ROWS_WITH_BYTES = 64

Types: TypeAlias = Mapping[str, pa.DataType]
Rows: TypeAlias = pa.Table | pa.RecordBatch
RecordFormat = Literal[
    "social-reward", "pick-a-pic", "imagereward", "hpd", "ratings", "popularity", "images", "folder", "webdataset"
]


class Table:
    """A source of rows. It is opened once to learn its columns and whether it has rows; each reading is one pass.

    `aliases` gives columns a second name: {"rating": "mos_quality"} for {ours: theirs}. Relative paths of pictures
    start from the folder `root`.
    """

    # The name of the format if the source has no labels.
    plain_format: RecordFormat = "images"
    rows: int | None = None  # the number of rows, if it is known without reading them

    def __init__(self, path: str, root: str, aliases: Mapping[str, str]) -> None:
        self.path = path
        self.root = root
        self.aliases = aliases
        with self._readable():
            schema, self.has_rows = self._open()
        self._know(schema)

    def _know(self, schema: pa.Schema) -> None:
        """Store the names and types of the columns. Raise InputError if an alias names a column that is not there."""
        names = schema.names
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{self.path} has more than one column called {repeated[0]!r}")
        for ours, theirs in self.aliases.items():
            if theirs not in names:
                raise InputError(f"{self.path} has no column {theirs!r} to read as {ours!r}; it has {', '.join(names)}")
        self._own_types = {field.name: plain_type(field.type) for field in schema}
        self.types = self._own_types | {ours: self._own_types[theirs] for ours, theirs in self.aliases.items()}

    @property
    def files(self) -> list[str]:
        """The files that it reads, empty if it does not read files of tables."""
        return [self.path]

    def complete(self) -> None:
        """Find columns that only later rows have, if opening has not looked at all rows."""

    def stream(self, types: Types) -> Iterator[pa.RecordBatch]:
        """Yield batches of the columns in `types`, converted to the types given there."""
        rows = BATCH_ROWS_WITH_BYTES if any(map(holds_bytes, types.values())) else BATCH_ROWS
        start, schema = 0, pa.schema(list(types.items()))
        with self._readable():
            for batch in self._stream(self._own(types), rows):
                for piece in range(0, batch.num_rows, rows):
                    columns = self._typed(batch.slice(piece, rows), types, start + piece)
                    yield pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)
                start += batch.num_rows

    def read(self, types: Types) -> tuple[pa.Table, pa.Table]:
        """Return the columns in `types`, converted to these, and all other scalar columns under their own names."""
        with self._readable():
            table = self._read(self._own(types))
            wanted = pa.table(self._typed(table, types))
            others = table.select([name for name in table.column_names if name not in types])
            return wanted, pa.table(self._others(others, wanted, is_scalar))

    def pieces(self, types: Types, rows: int, start: int = 0) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield the rows from `start` on in pieces of `rows` rows; the last piece may be shorter.

        Each piece is a table of the columns in `types`, converted to these, and one of all columns of scalars or lists
        of scalars, under their own names.
        """
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
        """Return the names of these columns and of every other one that is to be kept."""
        return [name for name, type in self._own_types.items() if name in types or kept(type)]

    def _typed(self, rows: Rows, types: Types, start: int = 0) -> dict[str, Column]:
        columns = {}
        for name, type in types.items():
            own = self.aliases.get(name, name)
            columns[name] = convert(rows[own], type, f"{self.path}: column {own!r}", start)
        return columns

    def _others(self, rows: Rows, wanted: pa.Table, kept: Callable[[pa.DataType], bool]) -> dict[str, Column]:
        """Return the columns to keep. A text column that was read with another type under its alias has that type."""
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
                        f"{self.path}: column {name!r} holds {rows[name].type} that does not fit {type} ({error});"
                        " cast it"
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
            raise InputError(f"{self.path} cannot be read: {one_line(error)}") from None  # Arrow found damaged data

    # These methods are the source's own. `types` are its own columns, and what they will be converted to.

    def _open(self) -> tuple[pa.Schema, bool]:
        """Return the columns, and whether there are rows."""
        raise NotImplementedError

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield these columns, in batches of about this many rows."""
        raise NotImplementedError

    def _read(self, types: Types) -> pa.Table:
        """Return these columns and all other scalar columns."""
        raise NotImplementedError

    def _whole_rows(self, types: Types, rows: int, start: int) -> Iterator[Rows]:
        """Yield the result of `_read` from row `start` on, in batches of any size."""
        yield self._read(types).slice(start)


def _regrouped(batches: Iterable[Rows], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of `rows` rows; the last one may have fewer."""
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
