"""Read vectors that other tools made, part by part, in the layouts of these tools.

    img_emb/img_emb_0.npy, text_emb/text_emb_0.npy, metadata/metadata_0.parquet    as clip-retrieval writes them
    a table with a column of lists of numbers, or of text such as [0.1,0.2]        as vector databases export them

A part is read at once: it is a .npy file or some rows of a table. This module does not know caches.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.arrays import Array, Float16s, Float32s
from embed.records.plain import convert
from embed.records.sources import open_table
from embed.records.tables import Table
from embed.spec import SIDES, InputError, Side

if TYPE_CHECKING:
    from embed.arrays import Column

Block: TypeAlias = Float16s | Float32s

BLOCK_ROWS = 32_768
FOLDERS: dict[Side, str] = {"images": "img_emb", "prompts": "text_emb"}
# Our names of the columns, and other names they may have. A column of vectors may have any name if it is the only one.
GENERAL = ("vector", "embedding")
VECTORS: dict[Side, str] = {"images": "image_embedding", "prompts": "text_embedding"}
NAMES: dict[Side, str] = {"images": "image", "prompts": "prompt"}
CALLED = {
    "image": ("image_path",),
    "prompt": ("caption",),
    "image_embedding": (),
    "text_embedding": (),
    "uri": ("url",),
    "width": (),
    "height": (),
}
BESIDE = {"uri": pa.string(), "width": pa.int32(), "height": pa.int32()}


@dataclass(frozen=True)
class Part:
    """Vectors of one side, and the names of what they belong to."""

    side: Side
    path: Path  # the file that holds the vectors
    start: int  # the number of its first row in that file
    names: Callable[[], pa.Table]  # name, uri, width and height of each row, null if unknown
    blocks: Callable[[], Iterator[Block]]  # (n, d) arrays of BLOCK_ROWS rows, the last one shorter
    fits: bool  # whether the file holds only these vectors, in the type that a cache stores


def open_vectors(source: str, columns: Mapping[str, str], dim: int) -> Iterator[Part]:
    """Yield the parts of a folder of clip-retrieval, or of a table or pattern of tables. `columns` is {ours: theirs}.

    Raise InputError before the first part if a file is missing, or if a .npy file has vectors that are not of `dim`
    numbers. Vectors in tables are checked when their part is read.
    """
    if unknown := sorted(set(columns) - CALLED.keys()):
        raise InputError(f"--columns names {unknown[0]!r}; wanted some of {', '.join(CALLED)}")
    if any((Path(source) / folder).is_dir() for folder in FOLDERS.values()):
        return iter(_in_folder(Path(source), columns, dim))
    return _in_tables([_open(file, columns) for file in open_table(source, columns).files], dim)


def _open(file: str, columns: Mapping[str, str]) -> tuple[Table, dict[str, str]]:
    """Open a table. Return it and its names of those of our columns that it has."""
    table = open_table(file, columns)
    table.complete()
    found = {
        ours: next((name for name in (ours, *others) if name in table.types), "") for ours, others in CALLED.items()
    }
    return table, {ours: name for ours, name in found.items() if name}


def _in_folder(folder: Path, columns: Mapping[str, str], dim: int) -> list[Part]:
    """Return the parts of a folder. Each .npy file must have as many rows as the metadata file of the same number."""
    parts = []
    names = {_number(file): file for file in (folder / "metadata").glob("metadata_*.parquet")}
    for side in SIDES:
        vectors = {_number(file): file for file in (folder / FOLDERS[side]).glob(f"{FOLDERS[side]}_*.npy")}
        if not vectors:
            continue
        for have, lack, what in ((vectors, names, "metadata"), (names, vectors, FOLDERS[side])):
            if alone := sorted(have.keys() - lack.keys()):
                raise InputError(f"{have[alone[0]]} has no counterpart in {folder / what}; put it there, or remove it")
        for number in sorted(vectors, key=lambda number: (len(number), number)):
            file, (table, called) = vectors[number], _open(str(names[number]), columns)
            array = _mapped(file)
            if array.shape[1] != dim:
                raise InputError(f"{file} has vectors of {array.shape[1]} numbers; the identity's dim is {dim}")
            if table.rows != len(array):
                raise InputError(f"{file} has {len(array)} rows and {table.path} has {table.rows}; wanted the same")
            if NAMES[side] not in called:
                raise _lacking(table, NAMES[side])
            parts.append(_npy(side, file, table, called, array.dtype == np.float16 and array.flags.c_contiguous))
    if not parts:
        raise InputError(f"{folder} holds no img_emb_*.npy and no text_emb_*.npy")
    return parts


def _number(file: Path) -> str:
    return file.stem.rpartition("_")[2]


def _mapped(file: Path) -> Array:
    try:
        array: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{file} is damaged or not a .npy file of numbers: {error}") from None
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{file} holds {array.dtype}{array.shape}; wanted vectors, (n, d) of floats")
    return array


def _npy(side: Side, file: Path, table: Table, called: Mapping[str, str], fits: bool) -> Part:
    def names() -> pa.Table:
        wanted = {one: name for one, name in called.items() if one == NAMES[side] or one in BESIDE}
        batches = list(table.stream({name: table.types[name] for name in wanted.values()}))
        return pa.concat_tables([_names(side, batch, called) for batch in batches] or [_no_names()])

    def blocks() -> Iterator[Block]:
        for start in range(0, len(_mapped(file)), BLOCK_ROWS):
            rows = _mapped(file)[start : start + BLOCK_ROWS]  # mapped again, so that earlier rows leave memory
            with np.errstate(over="ignore"):  # a number that is too large for float32 is later refused as infinite
                yield rows.astype(np.float16) if rows.dtype == np.float16 else rows.astype(np.float32)

    return Part(side, file, 0, names, blocks, fits)


def _in_tables(opened: list[tuple[Table, dict[str, str]]], dim: int) -> Iterator[Part]:
    for table, called in opened:
        found = {side: _vectors(table, called, side) for side in SIDES}
        if not any(found.values()):
            raise InputError(
                f"{table.path} has no column of vectors beside one of names; it has {', '.join(table.types)}. Name them"
                " as --columns image=YOURS,image_embedding=YOURS, or prompt and text_embedding"
            )
        wanted = {*filter(None, found.values()), *(called[one] for one in (*NAMES.values(), *BESIDE) if one in called)}
        start = 0
        for batch in table.stream({name: table.types[name] for name in wanted}):
            for offset in range(0, len(batch), BLOCK_ROWS):
                rows = batch.slice(offset, BLOCK_ROWS)
                for side, name in found.items():
                    if name:
                        yield _of_table(side, table, start + offset, rows, called, name, dim)
            start += len(batch)


def _vectors(table: Table, called: Mapping[str, str], side: Side) -> str:
    """Return the column with a side's vectors, or an empty string if there is none.

    A single column that may hold vectors belongs to pictures, or to prompts if the table does not name pictures.
    """
    name = called.get(VECTORS[side], "")
    if not any(one in called for one in VECTORS.values()):
        may = [one for one, type in table.types.items() if pa.types.is_list(type) or one in GENERAL]
        named = [one for one in SIDES if NAMES[one] in called]
        name = may[0] if len(may) == 1 and named[:1] == [side] else ""
    if name and NAMES[side] not in called:
        raise _lacking(table, NAMES[side])
    if name and not (pa.types.is_list(table.types[name]) or pa.types.is_string(table.types[name])):
        raise InputError(
            f"{table.path}: column {name!r} holds {table.types[name]}; wanted lists of numbers, as in Parquet and Arrow"
        )
    return name


def _lacking(table: Table, name: str) -> InputError:
    return InputError(
        f"{table.path} has no column {name!r}, which names its vectors; it has {', '.join(table.types)}."
        f" If yours has another name, say --columns {name}=YOURS"
    )


def _of_table(
    side: Side, table: Table, start: int, rows: pa.RecordBatch, called: Mapping[str, str], vectors: str, dim: int
) -> Part:
    def blocks() -> Iterator[Block]:
        yield _matrix(rows[vectors], dim, f"{table.path}: column {vectors!r}", start)

    return Part(side, Path(table.path), start, lambda: _names(side, rows, called), blocks, False)


def _matrix(column: "Column", dim: int, name: str, start: int) -> Float32s:
    """Return (n, d) float32 from a column of lists, or of their text, with NaN for null.

    Raise InputError if a list does not have `dim` numbers.
    """
    if pa.types.is_string(column.type):
        column = pc.split_pattern(pc.utf8_trim(column, " []"), ",")
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), -1))
    known = lengths >= 0
    if (wrong := known & (lengths != dim)).any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{name} has {lengths[row]} numbers in row {start + row} (counted from 0); the identity's dim is {dim}"
        )
    numbers = convert(pc.list_flatten(column), pa.float32(), f"{name}, taken as one list of numbers,", start * dim)
    found = np.full((len(column), dim), np.nan, np.float32)
    found[known] = numbers.to_numpy(zero_copy_only=False).reshape(-1, dim)
    return found


def _names(side: Side, rows: pa.RecordBatch, called: Mapping[str, str]) -> pa.Table:
    columns = {"name": rows[called[NAMES[side]]].cast(pa.string())}
    for name, type in BESIDE.items():
        own = rows[called[name]] if name in called else None
        if own is None or not (type == pa.string() or pa.types.is_integer(own.type)):
            own = pa.nulls(len(rows), type)
        elif type == pa.int32():
            own = pc.if_else(pc.less(own, 1 << 31), own, None)
        columns[name] = own.cast(type)
    return pa.table(columns)


def _no_names() -> pa.Table:
    return pa.schema([("name", pa.string()), *BESIDE.items()]).empty_table()
