"""What the columns of a table mean: pictures by path, by URI or by bytes, prompts, and what is refused.

Everything is computed on Arrow columns, batch by batch.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.addresses import WHOLE, join
from embed.arrays import Bools, Ints
from embed.records.plain import PICTURE, Column, holds_bytes
from embed.records.tables import Table, Types
from embed.spec import InputError, Side

STRING, FLOAT = pa.string(), pa.float64()
STRINGS, FLOATS = pa.list_(STRING), pa.list_(FLOAT)

IMAGES = pa.schema([("key", STRING), ("uri", STRING), ("bytes", pa.binary())])
PROMPTS = pa.schema([("text", STRING)])


@dataclass(frozen=True)
class Reading:
    """What is read of a table: columns, none where it has nothing of the kind, and what each batch of them holds."""

    types: Types
    batches: Callable[[pa.RecordBatch, int], Iterator[pa.RecordBatch]]  # of rows, and the number of the first
    per_row: int | None = None  # how many rows these have for each of the table's, where that is always the same


def stream(table: Table, readings: Mapping[Side, Reading]) -> Iterator[tuple[Side, pa.RecordBatch]]:
    """What some readings find, each batch with the name of its reading, in one pass over the table."""
    readings = {name: reading for name, reading in readings.items() if reading.types}
    types = {column: type for reading in readings.values() for column, type in reading.types.items()}
    start = 0
    for rows in table.stream(types) if types else ():
        for name, reading in readings.items():
            for batch in reading.batches(rows, start):
                yield name, batch
        start += len(rows)


@dataclass(frozen=True)
class Picture:
    """The columns that hold one picture of a row: its name, where to read it, its bytes."""

    key: str | None = None
    uri: str | None = None
    data: str | None = None
    _: KW_ONLY
    may_lack: bool = False  # a row may have none

    def types(self, table: Table) -> dict[str, pa.DataType]:
        types = {name: STRING for name in (self.key, self.uri) if name}
        if self.data:
            types[self.data] = table.types[self.data]
        return types

    def batch(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """IMAGES rows. Without a name, bytes are named by their hash and anything else by its URI."""
        uri = rows[self.uri] if self.uri else pa.nulls(len(rows), STRING)
        data = rows[self.data] if self.data else pa.nulls(len(rows), pa.binary())
        if data.type == PICTURE:  # bytes, or else a path
            uri = pc.coalesce(uri, pc.struct_field(data, "path"))
            data = pc.struct_field(data, "bytes")
        uri = pc.if_else(data.is_valid(), None, uri)
        key = rows[self.key] if self.key else pc.coalesce(_content_hashes(data), uri)
        return pa.RecordBatch.from_arrays([key, uri, data], schema=IMAGES)

    def keys(self, table: Table, rows: pa.Table) -> Column:
        """The pictures' names; `rows` is the table as read with `key_types`."""
        name = self.key or self.uri
        if name in rows.column_names:
            return rows[name]
        return pa.chunked_array([self.batch(batch)["key"] for batch in table.stream(self.types(table))], STRING)

    def key_types(self) -> dict[str, pa.DataType]:
        name = self.key or (None if self.data else self.uri)
        return {name: STRING} if name else {}


def absolute(uri: pa.Array, root: str) -> pa.Array:
    """Paths and URIs, those that are relative starting in `root`."""
    if "://" in root:
        return pa.array([None if name is None else join(root, name) for name in uri.to_pylist()], STRING)
    return pc.if_else(pc.match_substring_regex(uri, WHOLE), uri, pc.binary_join_element_wise(root, uri, "/"))


def _content_hashes(data: pa.Array) -> pa.Array:
    hashes = ["sha256:" + hashlib.sha256(item.as_buffer()).hexdigest() if item.is_valid else None for item in data]
    return pa.array(hashes, STRING)


def picture(table: Table, name: str) -> Picture:
    """A column that holds paths, URIs, or bytes; beside names in `image`, `bytes` may hold the pictures themselves.

    What tars name are samples, and no paths.
    """
    if holds_bytes(table.types[name]):
        return Picture(data=name)
    data = "bytes" if name == "image" and holds_bytes(table.types.get("bytes", pa.null())) else None
    return Picture(name, None if table.plain_format == "webdataset" else name, data)


def pick_a_pic_picture(table: Table, side: int) -> Picture:
    names = (f"image_{side}_uid", f"image_{side}_url", f"jpg_{side}")
    return Picture(*(name if name in table.types else None for name in names))


def pictures(table: Table, sides: Sequence[Picture]) -> Reading:
    def batches(rows: pa.RecordBatch, start: int) -> Iterator[pa.RecordBatch]:
        for side in sides:
            batch = side.batch(rows)
            nameless = empty(batch["key"])
            if side.may_lack:
                batch = batch.filter(pa.array(~nameless))
            else:
                refuse(table, nameless, "a picture without a name", start)
            yield batch

    types = {name: type for side in sides for name, type in side.types(table).items()}
    return Reading(types, batches, None if any(side.may_lack for side in sides) else len(sides))


def source_picture(table: Table) -> Picture | None:
    """The picture that a row's were made from, such as an edit's input; None where the table has no such column."""
    names = ("image_source_uid", "image_source_url", "jpg_source")
    if any(name in table.types for name in names[1:]):
        return Picture(*(name if name in table.types else None for name in names), may_lack=True)
    return replace(picture(table, "source_path"), may_lack=True) if "source_path" in table.types else None


def with_source(table: Table, reading: Reading) -> Reading:
    """The pictures that a reading finds, then those that they were made from, where the table has such."""
    source = source_picture(table)
    if source is None:
        return reading
    more = pictures(table, [source])

    def batches(rows: pa.RecordBatch, start: int) -> Iterator[pa.RecordBatch]:
        yield from reading.batches(rows, start)
        yield from more.batches(rows, start)

    return Reading({**reading.types, **more.types}, batches)


def listed_pictures(table: Table, name: str) -> Reading:
    def batches(rows: pa.RecordBatch, start: int) -> Iterator[pa.RecordBatch]:
        key = pc.list_flatten(rows[name])
        refuse(table, any_in_list(empty(key), lengths(rows[name])), "a picture without a name", start)
        yield pa.RecordBatch.from_arrays([key, key, pa.nulls(len(key), pa.binary())], schema=IMAGES)

    return Reading({name: STRINGS}, batches)


def prompts(table: Table, name: str, required: bool) -> Reading:
    """The texts of a column, each once a batch; nothing where the table has no such column."""

    def batches(rows: pa.RecordBatch, start: int) -> Iterator[pa.RecordBatch]:
        if required:
            refuse(table, rows[name].is_null(), "no prompt", start)
        yield pa.RecordBatch.from_arrays([pc.unique(rows[name].drop_null())], schema=PROMPTS)

    return Reading({name: STRING} if name in table.types else {}, batches)


def refuse(table: Table, bad: Bools | Column, what: str, start: int = 0, ids: Column | None = None) -> None:
    """InputError that says `what` is wrong with the rows where `bad`, if any; the first is the table's row `start`."""
    rows = np.flatnonzero(np.asarray(bad))
    if len(rows) == 0:
        return
    some = rows[:5]
    names = [f"row {row}" for row in some + start] if ids is None else [repr(ids[int(row)].as_py()) for row in some]
    more = f" and {len(rows) - len(some):,} more" if len(rows) > len(some) else ""
    counted = " (counted from 0)" if ids is None else ""
    raise InputError(f"{table.path}: {what}: {', '.join(names)}{more}{counted}")


def valid(column: Column) -> Bools:
    return np.asarray(column.is_valid())


def empty(column: Column) -> Bools:
    """(n,) whether a text is null or empty."""
    return np.asarray(pc.fill_null(pc.equal(column, ""), True))


def lengths(column: Column) -> Ints:
    """(n,) the length of each list, -1 for null."""
    return np.asarray(pc.fill_null(pc.list_value_length(column), -1))


def any_in_list(bad: Bools, lengths: Ints) -> Bools:
    """(n,) whether a list, of n joined end to end, has an entry that is bad."""
    parents = np.repeat(np.arange(len(lengths)), np.maximum(lengths, 0))
    return np.bincount(parents, weights=bad, minlength=len(lengths)) > 0
