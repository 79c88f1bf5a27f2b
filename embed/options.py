"""What a config's field states besides its type and default: the numbers it accepts, and the option that sets it.

    @dataclass(frozen=True)
    class SearchConfig:
        k: Annotated[int, Range(1), Option("-k")] = 10
        '''How many hits to give.'''

        def __post_init__(self) -> None:
            require_valid(self)

The docstring under a field is the help of its option. embed.cli.app turns such configs into commands; this module
describes the fields and checks their values. It imports only the standard library.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from embed.spec import InputError
from embed.wording import near_names

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

LARGEST = 2**63  # what a 64-bit integer can hold, and far below the largest 32-bit float


@dataclass(frozen=True)
class Range:
    """The numbers that a field accepts: from `low` to `high` including both, or `above` and `below` excluding them.

    NaN is in no range, and neither is a number beyond LARGEST.
    """

    low: float | None = None
    high: float | None = None
    _: KW_ONLY
    above: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            abs(number) < LARGEST
            and (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{_text(self.low)} to {_text(self.high)}"
        bounds = {"at least": self.low, "more than": self.above, "at most": self.high, "less than": self.below}
        said = [f"{words} {_text(bound)}" for words, bound in bounds.items() if bound is not None]
        return " and ".join(said) or "a finite number"

    def __truediv__(self, unit: float) -> "Range":
        return Range(**{name: None if bound is None else bound / unit for name, bound in asdict(self).items()})


def _text(bound: float) -> str:
    return f"{bound:,.0f}" if bound == round(bound) else f"{bound:,.9g}"


@dataclass(frozen=True)
class Option:
    """How an option sets a field, if that is more than `--name-of-the-field VALUE`."""

    name: str | None = None
    """The option's own name, such as `-k`."""
    _: KW_ONLY
    unit: float = 1
    """The field's value is the option's number times this, such as 2**20 for an option in MiB and a field in bytes."""
    parse: Callable[[str], Any] | None = None
    """A function from the option's text to the field's value, such as `comma_separated`."""
    short: str | None = None
    """A short name besides the long one, such as `-q`."""
    many: bool = False
    """Whether several values may follow the option, as in `--like A B`. If not, a list needs the option for each."""


@dataclass(frozen=True)
class Only:
    """The values of another option for which a field is used. Help says so, and with other values it is refused."""

    option: str
    """The name of the other option, such as head."""
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"only with --{self.option} {_either(self.values)}"


class Internal:
    """Marks a field, in its annotation, that the command or the library sets and for which there is no option."""


class OptionsFile:
    """Marks a command's parameter that is a TOML file in which the other options may be given.

    They may also be given in environment variables, $PLAUDIT_COMMAND_OPTION.
    """


def comma_separated(text: str) -> tuple[str, ...]:
    """Return the parts between commas."""
    return tuple(text.split(","))


def require_valid(config: "DataclassInstance") -> None:
    """Raise InputError if a field of a dataclass is outside its Range, or not one of its Literal's values."""
    for name, hint in hints_of(type(config)).items():
        require_value(name, getattr(config, name), hint)


def require_value(name: str, value: object, hint: object) -> None:
    """Raise InputError with name, value and what is wanted, if the value does not fit its annotation.

    Only ranges and literals are checked. None is always accepted, and every item of a tuple is checked.
    """
    if isinstance(value, tuple):
        for item in value:
            require_value(name, item, hint)
        return
    allowed, words = _admitted(hint)
    if isinstance(value, (int, float)):
        right = value in (allowed or Range())
    else:
        right = value is None or (value in words if words else allowed is None)
    if not right:
        unlimited = allowed is None or (allowed.high is None and allowed.below is None)
        large = unlimited and isinstance(value, (int, float)) and LARGEST <= abs(value) < math.inf
        limit = f" and less than {LARGEST:,}" * large
        raise InputError(f"{name} is {value!r}; wanted {wanted(hint) or Range()}{limit}{near_literals(value, hint)}")


def wanted(hint: object, unit: float = 1) -> str:
    """Describe in words what an annotation's range, in this unit, or its literals allow; empty if it has neither."""
    allowed, literals = _admitted(hint)
    words = [*map(str, literals), *([str(allowed / unit)] if allowed else [])]
    return _either(words)


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def near_literals(value: object, hint: object) -> str:
    """Return, for the end of an error message, those values of an annotation's literals that resemble this value."""
    near = near_names(str(value), _admitted(hint)[1])
    return f" ({near})" if near else ""


def metadata(hint: object, kind: type[T]) -> T | None:
    """Return the first object of this class in an annotation, or None."""
    found = (one for one in getattr(hint, "__metadata__", ()) if isinstance(one, kind))
    return next(found, None) or next((one for part in _parts(hint) if (one := metadata(part, kind))), None)


@cache
def _admitted(hint: object) -> tuple[Range | None, tuple[Any, ...]]:
    """Return the range in an annotation, and the values of its Literals."""
    return metadata(hint, Range), literals_of(hint)


def literals_of(hint: object) -> tuple[Any, ...]:
    """Return the values of an annotation's Literals."""
    parts = _parts(hint)
    return parts if get_origin(hint) is Literal else tuple(value for part in parts for value in literals_of(part))


def types_of(hint: object) -> set[type]:
    """Return the plain types of an annotation's values, including that of None if None is allowed."""
    parts = _parts(hint)
    if get_origin(hint) is Literal:
        return {type(value) for value in parts}
    return set().union(*map(types_of, parts)) if parts else {hint if isinstance(hint, type) else object}


def _parts(hint: object) -> tuple[Any, ...]:
    return get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)


@cache
def hints_of(config: "type[DataclassInstance]") -> dict[str, object]:
    """Return the annotations of a dataclass's fields, including their metadata."""
    hints = get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in fields(config)}
