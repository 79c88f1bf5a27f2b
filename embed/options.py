"""What a field of a config says beside its type and default: the numbers it takes, and the option that sets it.

    @dataclass(frozen=True)
    class SearchConfig:
        k: Annotated[int, Range(1), Option("-k")] = 10
        '''How many hits to give.'''

        def __post_init__(self) -> None:
            require_valid(self)

The docstring under a field is its option's help. embed.cli.app makes commands of such configs; this module only says
what they need and checks it. Standard library only.
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

LARGEST = 2**63  # what 64 bits hold as a whole number, and far from where the floats of 32 bits end


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes: from `low` to `high`, both included, or `above` and `below`, which are not.

    NaN is in no range, and nothing beyond LARGEST.
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
    """How an option sets a field, where `--name-of-the-field VALUE` does not say it all."""

    name: str | None = None
    """The option's own name, such as `-k`."""
    _: KW_ONLY
    unit: float = 1
    """The field's value is the option's number times this: 2**20 for an option in MiB and a field in bytes."""
    parse: Callable[[str], Any] | None = None
    """The field's value from the option's text, such as `comma_separated`."""
    short: str | None = None
    """A short name beside the long one, such as `-q`."""
    many: bool = False
    """Several values may follow the option, as in `--like A B`; otherwise a list takes it again for each."""


@dataclass(frozen=True)
class Only:
    """With which values of another option a field is read: help says so, and others refuse it."""

    option: str
    """The other option, such as head."""
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"only with --{self.option} {_either(self.values)}"


class Internal:
    """In the annotation of a field: the command or the library sets it, and no option does."""


class OptionsFile:
    """In the annotation of a command's parameter: a TOML file in which the other options may stand too.

    They may also stand in variables of the environment, $PLAUDIT_COMMAND_OPTION.
    """


def comma_separated(text: str) -> tuple[str, ...]:
    """The parts between commas."""
    return tuple(text.split(","))


def require_valid(config: "DataclassInstance") -> None:
    """Raise InputError if a field of a dataclass is outside its Range, or none of its Literal's values."""
    for name, hint in hints_of(type(config)).items():
        require_value(name, getattr(config, name), hint)


def require_value(name: str, value: object, hint: object) -> None:
    """Raise InputError with name, value and what is wanted if a value is not one that its annotation describes.

    Only ranges and literals are looked at. None passes, and of a tuple every item must be right.
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
    """What an annotation's range, in this unit, and its literals admit, in words; empty where it has neither."""
    allowed, literals = _admitted(hint)
    words = [*map(str, literals), *([str(allowed / unit)] if allowed else [])]
    return _either(words)


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def near_literals(value: object, hint: object) -> str:
    """The values of an annotation's literals that are like this one, in words to end an error with."""
    near = near_names(str(value), _admitted(hint)[1])
    return f" ({near})" if near else ""


def metadata(hint: object, kind: type[T]) -> T | None:
    """The first object of this class that an annotation carries, or None."""
    found = (one for one in getattr(hint, "__metadata__", ()) if isinstance(one, kind))
    return next(found, None) or next((one for part in _parts(hint) if (one := metadata(part, kind))), None)


@cache
def _admitted(hint: object) -> tuple[Range | None, tuple[Any, ...]]:
    """The range in an annotation, and the values of its Literals."""
    return metadata(hint, Range), literals_of(hint)


def literals_of(hint: object) -> tuple[Any, ...]:
    """The values of an annotation's Literals."""
    parts = _parts(hint)
    return parts if get_origin(hint) is Literal else tuple(value for part in parts for value in literals_of(part))


def types_of(hint: object) -> set[type]:
    """The plain types of an annotation's values; None's own where it may be None."""
    parts = _parts(hint)
    if get_origin(hint) is Literal:
        return {type(value) for value in parts}
    return set().union(*map(types_of, parts)) if parts else {hint if isinstance(hint, type) else object}


def _parts(hint: object) -> tuple[Any, ...]:
    return get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)


@cache
def hints_of(config: "type[DataclassInstance]") -> dict[str, object]:
    """The annotations of a dataclass's fields, with all that they carry."""
    hints = get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in fields(config)}
