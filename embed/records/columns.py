"""The meaning of a table's columns: pictures by path, URI or bytes, and prompts. Wrong rows are refused.

All computations use Arrow columns, batch by batch.
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
    """What to read from a table: the columns (empty if it has none of the kind), and a function of each batch."""

    types: Types
    batches: Callable[[pa.RecordBatch, int], Iterator[pa.RecordBatch]]  # takes rows, and the number of the first row
    per_row: int | None = None  # how many rows these give for each row of the table, if that is constant


def stream(table: Table, readings: Mapping[Side, Reading]) -> Iterator[tuple[Side, pa.RecordBatch]]:
    """Yield the results of several readings, each with the name of its reading, in one pass over the table."""
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
    """The columns that describe one picture of a row: its name, where to read it, its bytes."""

    key: str | None = None
    uri: str | None = None
    data: str | None = None
    _: KW_ONLY
    may_lack: bool = False  # whether a row may have no such picture

    def types(self, table: Table) -> dict[str, pa.DataType]:
        types = {name: STRING for name in (self.key, self.uri) if name}
        if self.data:
            types[self.data] = table.types[self.data]
        return types

    def batch(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return rows of IMAGES. Without a name, bytes are named by their hash and other pictures by their URI."""
        uri = rows[self.uri] if self.uri else pa.nulls(len(rows), STRING)
        data = rows[self.data] if self.data else pa.nulls(len(rows), pa.binary())
        if data.type == PICTURE:  # it holds bytes, or a path
            uri = pc.coalesce(uri, pc.struct_field(data, "path"))
            data = pc.struct_field(data, "bytes")
        uri = pc.if_else(data.is_valid(), None, uri)
        key = rows[self.key] if self.key else pc.coalesce(_content_hashes(data), uri)
        return pa.RecordBatch.from_arrays([key, uri, data], schema=IMAGES)

    def keys(self, table: Table, rows: pa.Table) -> Column:
        """Return the pictures' names. `rows` is the table read with `key_types`."""
        name = self.key or self.uri
        if name in rows.column_names:
            return rows[name]
        return pa.chunked_array([self.batch(batch)["key"] for batch in table.stream(self.types(table))], STRING)

    def key_types(self) -> dict[str, pa.DataType]:
        name = self.key or (None if self.data else self.uri)
        return {name: STRING} if name else {}


def absolute(uri: pa.Array, root: str) -> pa.Array:
    """Return paths and URIs; relative ones are joined to `root`."""
    if "://" in root:
        return pa.array([None if name is None else join(root, name) for name in uri.to_pylist()], STRING)
    return pc.if_else(pc.match_substring_regex(uri, WHOLE), uri, pc.binary_join_element_wise(root, uri, "/"))


def _content_hashes(data: pa.Array) -> pa.Array:
    hashes = ["sha256:" + hashlib.sha256(item.as_buffer()).hexdigest() if item.is_valid else None for item in data]
    return pa.array(hashes, STRING)


def picture(table: Table, name: str) -> Picture:
    """Return the picture in a column of paths, URIs or bytes. Beside names in `image`, `bytes` may hold the pictures.

    The names in a tar are those of samples and cannot be read as paths.
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
    """Return the picture that a row's pictures were made from, such as the input of an edit, or None without one."""
    names = ("image_source_uid", "image_source_url", "jpg_source")
    if any(name in table.types for name in names[1:]):
        return Picture(*(name if name in table.types else None for name in names), may_lack=True)
    return replace(picture(table, "source_path"), may_lack=True) if "source_path" in table.types else None


def with_source(table: Table, reading: Reading) -> Reading:
    """Extend a reading of pictures by the pictures that they were made from, if the table has such columns."""
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
    """Return a reading of a column's texts, each once in a batch. It reads nothing if the table lacks the column."""

    def batches(rows: pa.RecordBatch, start: int) -> Iterator[pa.RecordBatch]:
        if required:
            refuse(table, rows[name].is_null(), "no prompt", start)
        yield pa.RecordBatch.from_arrays([pc.unique(rows[name].drop_null())], schema=PROMPTS)

    return Reading({name: STRING} if name in table.types else {}, batches)


def refuse(table: Table, bad: Bools | Column, what: str, start: int = 0, ids: Column | None = None) -> None:
    """Raise InputError that says `what` is wrong in the rows where `bad` is set. `start` is the number of the first."""
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
    """Return (n,) bool: whether a text is null or empty."""
    return np.asarray(pc.fill_null(pc.equal(column, ""), True))


def lengths(column: Column) -> Ints:
    """Return (n,) lengths of the lists, with -1 for null."""
    return np.asarray(pc.fill_null(pc.list_value_length(column), -1))


def any_in_list(bad: Bools, lengths: Ints) -> Bools:
    """Return (n,) bool: whether a list has a bad entry. `bad` holds the entries of all n lists one after another."""
    parents = np.repeat(np.arange(len(lengths)), np.maximum(lengths, 0))
    return np.bincount(parents, weights=bad, minlength=len(lengths)) > 0
