"""Filters on metadata, written as in SQL: `category = 'Animals & Nature' and year >= 2024`.

    condition   = conjunction ("or" conjunction)*
    conjunction = negation ("and" negation)*
    negation    = "not" negation | "(" condition ")" | comparison
    comparison  = column ("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
                | column ["not"] "in" "(" value ("," value)* ")" | column "is" ["not"] "null"
    column      = name | "name in double quotes"
    value       = 'text, a quote doubled' | number | date such as 2024-05-01 | true | false

Filters are parsed by hand and never evaluated as code. `conditions` defines their meaning. Knows no rows.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from embed.spec import InputError

MAX_CHARS = 10_000
MAX_DEPTH = 50
SHOWN_CHARS = 200  # the most characters of a filter in an error

Sign = Literal["=", "!=", "<", "<=", ">", ">="]
Kind = Literal[Sign, "in", "is null", "known", "not", "and", "or"]
Value = str | bool | int | float | Decimal

SIGNS: dict[str, Sign] = {"=": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<quoted>"[^"]+")|(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2}\b)"""
    r"""|(?P<number>-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)|(?P<word>\w+)|(?P<sign><=|>=|<>|!=|[=<>(),]))"""
)


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


def parse(where: str) -> Node:
    """Parse a filter into a tree with exact numbers. Raise InputError, which shows the part that cannot be read."""
    if len(where) > MAX_CHARS:
        raise InputError(f"the filter has {len(where)} characters; wanted {MAX_CHARS} at most")
    if where != where.encode(errors="replace").decode():
        raise InputError(f"the filter {_shown(where)} is not valid text: it has half of a surrogate pair")
    return _Parser(where).whole()


def _shown(where: str) -> str:
    return repr(where if len(where) <= SHOWN_CHARS else where[:SHOWN_CHARS] + " ...")


class _Parser:
    def __init__(self, where: str) -> None:
        self.where = where
        self.depth = 0
        self.tokens: list[tuple[str, str]] = []  # in reverse order: the next token is the last
        position, end = 0, len(where.rstrip())
        while position < end:
            match = TOKEN.match(where, position)
            if not match:
                raise InputError(
                    f"the filter {_shown(where)} cannot be read from {_shown(where[position:].strip())} on"
                )
            kind = str(match.lastgroup)
            self.tokens.append((kind, match[kind]))
            position = match.end()
        self.tokens.reverse()

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
        negated = self.take("not")
        if not negated and not self.take("("):
            return self.comparison()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise InputError(f"the filter {_shown(self.where)} is nested deeper than {MAX_DEPTH} levels")
        if negated:
            node = Node("not", nodes=(self.negation(),))
        else:
            node = self.condition()
            self.expect(")")
        self.depth -= 1
        return node

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
            if sign not in SIGNS:
                raise self.error("a comparison such as =", (kind, sign))
            node = Node(SIGNS[sign], column, (self.value(),))
        return Node("not", nodes=(node,)) if negated else node

    def value(self) -> Value:
        kind, text = self.next("a value")
        if kind == "text":
            return text[1:-1].replace("''", "'")
        if kind == "date":
            return text
        if kind == "number":
            try:
                return Decimal(text)
            except InvalidOperation:  # such as an exponent of twenty digits
                raise self.error("a smaller number", (kind, text)) from None
        if kind == "word" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise self.error("a value: 'text', a number, a date, true or false", (kind, text))

    def take(self, text: str) -> bool:
        if self.tokens and self.tokens[-1][0] in ("word", "sign") and self.tokens[-1][1].lower() == text:
            self.tokens.pop()
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise self.error(repr(text))

    def next(self, wanted: str) -> tuple[str, str]:
        if not self.tokens:
            raise self.error(wanted)
        return self.tokens.pop()

    def error(self, wanted: str, got: tuple[str, str] | None = None) -> InputError:
        token = got or (self.tokens[-1] if self.tokens else None)
        shown = _shown(self.where)
        if token is None:
            return InputError(f"the filter {shown} ends where {wanted} was wanted")
        return InputError(f"the filter {shown}: wanted {wanted}, got {_shown(token[1])}")
