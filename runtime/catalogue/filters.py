"""Filters on metadata, written as in SQL: `category = 'Animals & Nature' and year >= 2024`.

    condition   = conjunction ("or" conjunction)*
    conjunction = negation ("and" negation)*
    negation    = "not" negation | "(" condition ")" | comparison
    comparison  = column ("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
                | column ["not"] "in" "(" value ("," value)* ")" | column "is" ["not"] "null"
    column      = name | "name in double quotes"
    value       = 'text, a quote doubled' | number | true | false

Parsed by hand and never evaluated as code. A null compares to nothing, as in SQL. Knows rows, no vectors.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.arrays import Bools
from embed.spec import InputError

Sign = Literal["=", "!=", "<", "<=", ">", ">="]
Kind = Literal[Sign, "in", "is null", "not", "and", "or"]
Value = str | int | float | bool

TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<quoted>"[^"]+")|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<word>\w+)|(?P<sign><=|>=|<>|!=|[=<>(),]))"""
)
COMPARE: dict[Sign, Callable[[pa.ChunkedArray, pa.Scalar], pa.ChunkedArray]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


@dataclass(frozen=True)
class Node:
    """One step of a filter."""

    kind: Kind
    column: str = ""
    values: tuple[Value, ...] = ()
    nodes: tuple["Node", ...] = ()

    def columns(self) -> list[str]:
        """Every column named, in order."""
        return [self.column] * bool(self.column) + [name for node in self.nodes for name in node.columns()]


def matching(where: str, table: pa.Table) -> Bools:
    """(n,) bool: the rows of `table` that the filter keeps; raise InputError for what it cannot mean."""
    node = parse(where)
    check_columns(node, table.column_names)
    return np.asarray(pc.fill_null(_mask(node, table), False))


def check_columns(node: Node, known: list[str]) -> None:
    """Raise InputError, which names the columns there are, if the filter names another."""
    if unknown := [name for name in node.columns() if name not in known]:
        raise InputError(f"the filter names a column {unknown[0]!r}; there are {', '.join(sorted(known))}")


def parse(where: str) -> Node:
    """The filter as a tree; raise InputError, which points at what cannot be read."""
    return _Parser(where).whole()


def milvus_expression(node: Node, names: Mapping[str, str]) -> str:
    """The filter in Milvus's own language; a column is the field that `names` gives it, or the one of its own name."""
    if node.kind in ("and", "or"):
        return "(" + f" {node.kind} ".join(milvus_expression(child, names) for child in node.nodes) + ")"
    if node.kind == "not":
        # Nulls are left out on both sides, as in SQL.
        known = [f"{names.get(column, column)} is not null" for column in dict.fromkeys(node.columns())]
        inner = node.nodes[0]
        bare = [] if inner.kind == "is null" else known
        return "(" + " and ".join([*bare, f"not ({milvus_expression(inner, names)})"]) + ")"
    column = names.get(node.column, node.column)
    if not column.isidentifier():
        raise InputError(f"Milvus cannot filter by the column {column!r}; rename it to one word")
    if node.kind == "is null":
        return f"{column} is null"
    if node.kind == "in":
        return f"{column} in [{', '.join(map(_milvus_value, node.values))}]"
    return f"{column} {'==' if node.kind == '=' else node.kind} {_milvus_value(node.values[0])}"


def _milvus_value(value: Value) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _mask(node: Node, table: pa.Table) -> pa.ChunkedArray:
    if node.kind == "and":
        return reduce(pc.and_kleene, (_mask(child, table) for child in node.nodes))
    if node.kind == "or":
        return reduce(pc.or_kleene, (_mask(child, table) for child in node.nodes))
    if node.kind == "not":
        return pc.invert(_mask(node.nodes[0], table))
    column = table[node.column]
    if node.kind == "is null":
        return column.is_null()
    compare = COMPARE["=" if node.kind == "in" else node.kind]
    masks = (compare(column, _scalar(value, node.column, column.type)) for value in node.values)
    return reduce(pc.or_kleene, masks)


def _scalar(value: Value, name: str, type: pa.DataType) -> pa.Scalar:
    """A literal in the column's own type; numbers stay what they are, so that 2.5 is not cut to fit whole numbers."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    numeric = pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type)
    if number and numeric:
        return pa.scalar(value)
    try:
        if number or (isinstance(value, str) and (numeric or pa.types.is_boolean(type))):
            raise pa.ArrowInvalid("of another kind")
        return pa.scalar(value).cast(type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"the filter compares column {name!r}, which holds {type}, with {value!r}") from None


class _Parser:
    def __init__(self, where: str) -> None:
        self.where = where
        self.tokens: list[tuple[str, str]] = []
        position = 0
        while where[position:].strip():
            match = TOKEN.match(where, position)
            if not match:
                raise InputError(f"cannot read the filter {where!r} from {where[position:].strip()!r} on")
            self.tokens.append((str(match.lastgroup), match.group().strip()))
            position = match.end()

    def whole(self) -> Node:
        node = self.condition()
        if self.tokens:
            raise self.error("the end, 'and' or 'or'")
        return node

    def condition(self) -> Node:
        return self.chain("or", lambda: self.chain("and", self.negation))

    def chain(self, word: Literal["and", "or"], part: Callable[[], Node]) -> Node:
        nodes = [part()]
        while self.take(word):
            nodes.append(part())
        return nodes[0] if len(nodes) == 1 else Node(word, nodes=tuple(nodes))

    def negation(self) -> Node:
        if self.take("not"):
            return Node("not", nodes=(self.negation(),))
        if self.take("("):
            node = self.condition()
            self.expect(")")
            return node
        return self.comparison()

    def comparison(self) -> Node:
        kind, text = self.next("a column")
        if kind not in ("word", "quoted"):
            raise self.error("a column", (kind, text))
        column = text.strip('"')
        null, negated = self.take("is"), self.take("not")
        if null:
            self.expect("null")
            node = Node("is null", column)
        elif self.take("in"):
            self.expect("(")
            values = [self.value()]
            while self.take(","):
                values.append(self.value())
            self.expect(")")
            node = Node("in", column, tuple(values))
        elif negated:
            raise self.error("'in'")
        else:
            kind, sign = self.next("a comparison")
            sign = "!=" if sign == "<>" else sign
            if sign not in COMPARE:
                raise self.error("a comparison such as =", (kind, sign))
            node = Node(sign, column, (self.value(),))
        return Node("not", nodes=(node,)) if negated else node

    def value(self) -> Value:
        kind, text = self.next("a value")
        if kind == "text":
            return text[1:-1].replace("''", "'")
        if kind == "number":
            return float(text) if re.search(r"[.eE]", text) else int(text)
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise self.error("a value: 'text', a number, true or false", (kind, text))

    def take(self, text: str) -> bool:
        if self.tokens and self.tokens[0][0] in ("word", "sign") and self.tokens[0][1].lower() == text:
            self.tokens.pop(0)
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise self.error(repr(text))

    def next(self, wanted: str) -> tuple[str, str]:
        if not self.tokens:
            raise self.error(wanted)
        return self.tokens.pop(0)

    def error(self, wanted: str, got: tuple[str, str] | None = None) -> InputError:
        token = got or (self.tokens[0] if self.tokens else None)
        return InputError(
            f"the filter {self.where!r}: wanted {wanted}, got {token[1]!r}"
            if token
            else f"the filter {self.where!r} ends where {wanted} was wanted"
        )
