"""Convert every Arrow type that a table may have to one plain type, and columns to the type that is wanted.

    text of any layout, UUIDs             string
    binary of any layout and length       binary
    an image as `datasets` stores it      PICTURE: {bytes, path}, each of which may be null
    lists of any layout                   list of the plain type
    decimals                              int64 without decimals, else double; half floats are float
    dictionaries, runs, extensions        the plain type of their values

All other types stay as they are. The rest of the program meets no other types than these.
"""

from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.spec import InputError

Column: TypeAlias = pa.Array | pa.ChunkedArray

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
WANTED = {
    pa.string(): "text",
    pa.float64(): "a number such as 1234.5",
    pa.bool_(): "true or false",
    pa.list_(pa.string()): "a list of texts",
    pa.list_(pa.float64()): "a list of numbers",
}


def plain_type(type: pa.DataType) -> pa.DataType:
    """Return the plain type that a column of this type is read as."""
    is_ = pa.types
    if isinstance(type, pa.UuidType) or is_.is_large_string(type) or is_.is_string_view(type):
        return pa.string()
    if is_.is_large_binary(type) or is_.is_binary_view(type) or is_.is_fixed_size_binary(type):
        return pa.binary()
    if isinstance(type, pa.BaseExtensionType):
        return pa.bool_() if isinstance(type, pa.Bool8Type) else plain_type(type.storage_type)
    if is_.is_dictionary(type) or is_.is_run_end_encoded(type):
        return plain_type(type.value_type)
    if is_.is_float16(type):
        return pa.float32()
    if is_.is_decimal(type):
        return pa.int64() if type.scale <= 0 else pa.float64()
    if _is_list(type):
        return pa.list_(plain_type(type.value_type))
    return PICTURE if _is_picture(type) else type


def plain(column: Column) -> Column:
    """Convert a column to its plain type.

    Raise ArrowInvalid if a value, such as a decimal of 30 digits, does not fit.
    """
    type, wanted = column.type, plain_type(column.type)
    if type == wanted:
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([plain(chunk) for chunk in column.chunks], wanted)
    if isinstance(type, pa.UuidType):
        return pa.array([None if value is None else str(value) for value in column.to_pylist()], wanted)
    if isinstance(type, pa.BaseExtensionType):
        return plain(column.storage).cast(wanted)
    if pa.types.is_run_end_encoded(type):
        return plain(pc.run_end_decode(column))
    if pa.types.is_dictionary(type):
        return plain(column.dictionary).take(column.indices)
    if _is_list(type):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, plain(column.flatten()), mask=column.is_null())
    if _is_picture(type):
        children = [
            plain(pc.struct_field(column, field.name)).cast(field.type)
            if type.get_field_index(field.name) >= 0
            else pa.nulls(len(column), field.type)
            for field in PICTURE
        ]
        return pa.StructArray.from_arrays(children, fields=list(PICTURE), mask=column.is_null())
    return column.cast(wanted)


def holds_bytes(type: pa.DataType) -> bool:
    """Whether a column of this plain type may hold pictures."""
    return bool(type == pa.binary() or type == PICTURE)


def is_scalar(type: pa.DataType) -> bool:
    """Whether a column of this plain type can be kept beside the labels: numbers, booleans, dates, texts."""
    return bool(type == pa.string() or pa.types.is_primitive(type))


def is_light(type: pa.DataType) -> bool:
    """Whether a column of this plain type can be kept beside scores: scalars and lists of them."""
    return is_scalar(type) or bool(pa.types.is_list(type) and is_scalar(type.value_type))


def convert(column: Column, type: pa.DataType, name: str, start: int = 0) -> Column:
    """Convert a column to `type`. Text is read as numbers or booleans if these are wanted, and blank text is null.

    Raise InputError that begins with `name` if the type cannot be converted, or else for the first row, counted from
    `start`, whose value cannot be.
    """
    try:
        return _cast(column, type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    wanted = WANTED.get(type, str(type))
    if len(column) == 0 or not _castable(column.slice(0, 0), type):
        raise InputError(f"{name} holds {column.type}; wanted {wanted}: cast it, or name another with --columns")
    first, rows = 0, len(column)
    while rows > 1:  # these include the first bad row
        half = rows // 2
        bad = not _castable(column.slice(first, half), type)
        first, rows = (first, half) if bad else (first + half, rows - half)
    value = column[first]
    shown = repr(value.as_py())
    raise InputError(
        f"{name} has {shown if len(shown) <= 60 else shown[:57] + '...'} in row {start + first} (counted from 0);"
        f" wanted {wanted}"
    )


def _castable(column: Column, type: pa.DataType) -> bool:
    try:
        _cast(column, type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _cast(column: Column, type: pa.DataType) -> Column:
    number = pa.types.is_integer(column.type) or pa.types.is_decimal(column.type)
    if number and pa.types.is_floating(type):
        return column.cast(type, safe=False)  # integers above 2^53 are rounded
    column = plain(column)
    if pa.types.is_string(column.type) and pa.types.is_primitive(type):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(column, ""), None, column)
        if pa.types.is_boolean(type):  # pandas writes booleans as 1.0 and 0.0 if some are missing
            column = pc.replace_substring_regex(column, r"^([01])\.0$", r"\1")
    return column.cast(type)


def _is_list(type: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return any(is_kind(type) for is_kind in (*kinds, *views))


def _is_picture(type: pa.DataType) -> bool:
    if not pa.types.is_struct(type):
        return False
    return bool(type.get_field_index("bytes") >= 0 or [field.name for field in type] == ["path"])
