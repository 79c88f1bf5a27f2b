"""The meaning of filters, the same for rows of a local catalogue and for a collection in Milvus.

Logic has three values, as in SQL. A comparison with a null is unknown, and so is `not` of an unknown. `and` is false if
one side is false, `or` is true if one side is true, and otherwise both are unknown if one side is unknown. A row is
kept if the whole filter is true. `x != 1` is `not x = 1`, and `x in (1, 2)` is `x = 1 or x = 2`.

Whole numbers and times are compared exactly with any number. Floats and decimals are compared as doubles with the
nearest double, and texts by code points; false is less than true. A time without a zone is in UTC, and a date is its
midnight. A number that is not finite counts as null, and is shown as null.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import cache, reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.arrays import Bools
from embed.spec import InputError
from runtime.catalogue.filters import Node, Value, parse
from runtime.catalogue.times import is_text, is_time, nanoseconds, per_second, units

LARGEST = sys.float_info.max
# Keywords of Milvus's own language.
RESERVED = ("and", "or", "not", "in", "like", "is", "null", "exists", "iso", "interval", "true", "false")

# A value converted to the type in which its column is compared; exact numbers need not be whole.
Literal = str | bool | float | Decimal | Fraction


def matching(where: str, table: pa.Table) -> Bools:
    """(n,) bool: the rows of `table` that the filter keeps. Raise InputError if the filter does not fit the columns."""
    columns = cache(lambda name: compared(table[name]))
    return np.asarray(pc.fill_null(_mask(resolved(where, table.schema), columns), False))


def compared(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """(n,) the values of a column in the type that is compared: whole numbers (also for times, see times), doubles,
    texts or booleans."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if is_time(column.type):
        return units(column)
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        column = pc.add(column.cast(pa.float64()), 0.0)  # -0 becomes 0
        return pc.if_else(pc.is_finite(column), column, None)
    return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column


def resolved(where: str, schema: pa.Schema) -> Node:
    """The filter reduced to five comparisons, with values in the types that are compared.

    They are `in` with at least one value, `<`, `<=`, `is null`, and `known`, which is true for every value and unknown
    for null. So a condition that no value of the column meets becomes `not known`. Raise InputError for an unknown
    column, or one that cannot be compared with its value.
    """
    node = parse(where)
    if unknown := [name for name in node.columns() if name not in schema.names]:
        raise InputError(
            f"the filter names an unknown column {unknown[0]!r}; there are {', '.join(sorted(schema.names))}"
        )
    return _resolved(node, schema)


def milvus_expression(node: Node, names: Mapping[str, str], negated: bool = False) -> str:
    """A resolved filter, or its negation, in Milvus's own language, which knows only true and false.

    So every `not` is moved down to the comparisons, where it becomes another comparison that a null does not meet
    either. `names` maps columns to fields; a column that is not in it has a field of the same name.
    """
    if node.kind == "not":
        return milvus_expression(node.nodes[0], names, not negated)
    if node.kind in ("and", "or"):
        word = " and " if (node.kind == "and") != negated else " or "
        return "(" + word.join(milvus_expression(child, names, negated) for child in node.nodes) + ")"
    field = names.get(node.column, node.column)
    if not field.isidentifier() or field.lower() in RESERVED:
        raise InputError(
            f"Milvus cannot filter by the column {node.column!r}; rename it to another word, without spaces"
        )
    if node.kind == "is null":
        return f"{field} is {'not ' * negated}null"
    if node.kind == "known":
        return f"({field} is null and {field} is not null)" if negated else f"{field} is not null"
    values = [_milvus_value(value, node.column) for value in node.values]
    if node.kind != "in":
        sign = {"<": ">=", "<=": ">"}[node.kind] if negated else node.kind
        return f"{field} {sign} {values[0]}"
    if len(values) == 1:
        found = f"{field} {'!=' if negated else '=='} {values[0]}"
    else:
        found = f"{field} {'not ' * negated}in [{', '.join(values)}]"
    return f"({field} is not null and {found})" if negated else found


def _milvus_value(value: Value, column: str) -> str:
    if isinstance(value, str):
        for char, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
            value = value.replace(char, escaped)
        return f'"{value}"'
    if isinstance(value, int) and value >= 2**63:
        raise InputError(f"Milvus cannot compare the column {column!r} with {value}, which is beyond 64 bits")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _mask(node: Node, columns: Callable[[str], pa.ChunkedArray]) -> pa.ChunkedArray:
    if node.kind == "and":
        return reduce(pc.and_kleene, (_mask(child, columns) for child in node.nodes))
    if node.kind == "or":
        return reduce(pc.or_kleene, (_mask(child, columns) for child in node.nodes))
    if node.kind == "not":
        return pc.invert(_mask(node.nodes[0], columns))
    column = columns(node.column)
    if node.kind == "is null":
        return column.is_null()
    if len(node.values) == 1:
        compare = {"in": pc.equal, "<": pc.less, "<=": pc.less_equal}[node.kind]
        return compare(column, pa.scalar(node.values[0], column.type))
    met = pc.is_in(column, value_set=pa.array(node.values, column.type)) if node.kind == "in" else True
    return pc.if_else(column.is_valid(), met, pa.scalar(None, pa.bool_()))


def _resolved(node: Node, schema: pa.Schema) -> Node:
    if node.nodes:
        return Node(node.kind, nodes=tuple(_resolved(child, schema) for child in node.nodes))
    if node.kind == "is null":
        return node
    name, type = node.column, schema.field(node.column).type
    if pa.types.is_dictionary(type):
        type = type.value_type
    if pa.types.is_null(type):
        return _never(name)
    values = [_literal(value, name, type) for value in node.values]
    if node.kind in ("=", "in"):
        return _among(name, values, type)
    if node.kind == "!=":
        return _not(_among(name, values, type))
    if node.kind in (">", ">="):
        return _not(_below(name, values[0], type, equal=node.kind == ">"))
    return _below(name, values[0], type, equal=node.kind == "<=")


def _literal(value: Value, name: str, type: pa.DataType) -> Literal:
    if isinstance(value, Decimal):
        if pa.types.is_integer(type):
            return value
        if pa.types.is_floating(type) or pa.types.is_decimal(type):
            return float(value) + 0.0  # -0 becomes 0
    elif isinstance(value, bool):
        if pa.types.is_boolean(type):
            return value
    elif is_text(type):
        return str(value)
    elif is_time(type):
        try:
            return Fraction(nanoseconds(str(value)), 10**9) * per_second(type)
        except pa.ArrowInvalid:
            pass
    shown = repr(value) if isinstance(value, str) else value
    raise InputError(f"the filter compares column {name!r}, which holds {type}, with {shown}")


def _among(name: str, values: Sequence[Literal], type: pa.DataType) -> Node:
    """The condition that the column has one of the values."""
    low, high = _range(type)
    kept: list[Value] = []
    for value in values:
        if isinstance(value, str | bool):
            kept.append(value)
        elif low <= value <= high and (isinstance(value, float) or value == math.floor(value)):
            kept.append(value if isinstance(value, float) else math.floor(value))
    if pa.types.is_boolean(type) and len(set(kept)) == 2:
        return Node("known", name)
    return Node("in", name, tuple(kept)) if kept else _never(name)


def _below(name: str, value: Literal, type: pa.DataType, equal: bool) -> Node:
    """The condition that the column is less than the value or, with `equal`, equal to it."""
    if isinstance(value, bool):
        return _among(name, [False] * value + [value] * equal, type)
    if isinstance(value, str):
        return Node("<=" if equal else "<", name, (value,))
    low, high = _range(type)
    if value > high:
        return Node("known", name)
    if value < low:
        return _never(name)
    bound = value if isinstance(value, float) else math.floor(value)
    return Node("<=" if equal or bound != value else "<", name, (bound,))


def _range(type: pa.DataType) -> tuple[float, float]:
    """The least and the greatest number that the column can hold."""
    if is_time(type):
        type = pa.int64()
    if not pa.types.is_integer(type):
        return -LARGEST, LARGEST
    bits = type.bit_width
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if pa.types.is_signed_integer(type) else (0, 2**bits - 1)


def _not(node: Node) -> Node:
    return Node("not", nodes=(node,))


def _never(name: str) -> Node:
    return _not(Node("known", name))
