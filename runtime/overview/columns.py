"""Describe the columns of a catalogue for filters: the values or the range of each."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from runtime.catalogue.conditions import compared
from runtime.catalogue.hits import jsonable
from runtime.catalogue.times import is_text, is_time

Kind = Literal["text", "number", "time", "boolean", "other"]

MOST_VALUES = 200  # number of values that are listed for a column, the most frequent first
UNFILTERED = ("image", "image_id", "popularity")  # names, and a column with an option of its own


@dataclass(frozen=True)
class Column:
    """One column. Texts and booleans have their most frequent values with counts, and other types have a range.

    If there are many values and all differ, as for prompts, none is listed.
    """

    name: str
    kind: Kind
    nulls: int
    distinct: int | None  # only for texts and booleans
    values: tuple[tuple[str | bool, int], ...] = ()
    low: float | str | None = None
    high: float | str | None = None


def columns_of(table: pa.Table) -> list[Column]:
    """The columns that can be filtered by, in the table's order."""
    return [_column(name, table[name]) for name in table.column_names if name not in UNFILTERED]


def is_number(type: pa.DataType) -> bool:
    """Whether a column of this type holds numbers: integers, floats or decimals."""
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type))


def _column(name: str, column: pa.ChunkedArray) -> Column:
    type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if is_text(type) or pa.types.is_boolean(type):
        return _of_values(name, "boolean" if pa.types.is_boolean(type) else "text", compared(column))
    if is_number(type):
        values = compared(column)
        ends = pc.min_max(values).as_py()
        return Column(name, "number", values.null_count, None, low=ends["min"], high=ends["max"])
    if is_time(type):
        ends = jsonable(pc.min_max(column).as_py())
        low, high = (None if end is None else str(end) for end in (ends["min"], ends["max"]))
        return Column(name, "time", column.null_count, None, low=low, high=high)
    return Column(name, "other", column.null_count, None)


def _of_values(name: str, kind: Kind, column: pa.ChunkedArray) -> Column:
    counted = pc.value_counts(column.drop_null())
    counts = np.asarray(counted.field("counts"))
    order = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    if len(counts) > MOST_VALUES and counts[order[0]] == 1:
        return Column(name, kind, column.null_count, len(counts))
    values = counted.field("values").take(pa.array(order)).to_pylist()
    pairs = tuple(zip(values, counts[order].tolist(), strict=True))
    return Column(name, kind, column.null_count, len(counts), pairs)
