"""Read the arguments of a command from its function: its parameters, and the fields of configs among them.

    def search(catalogue: Path, /, *, query: SearchConfig, serving: partial[ServingConfig], sheet: Path | None = None):

A parameter before `/` is a positional argument; every other is an option. A config is replaced by its fields, except
those marked Internal. A `partial` of a config is completed by the command: its `keywords` are what the user gave.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from embed.options import LARGEST, Internal, Option, Range, metadata, require_valid, require_value

Command = Callable[..., Any]
Place = tuple[str, str | None]  # a parameter of the command, and the field if that parameter is a config
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Argument:
    """One option or positional argument of a command."""

    place: Place
    hint: object
    default: object  # REQUIRED if there is none
    positional: bool = False

    @property
    def option(self) -> Option:
        return metadata(self.hint, Option) or Option()

    @property
    def name(self) -> str:
        """The name to type, or for a positional argument the name in help. An option that is on is `--no-NAME`."""
        name = self.place[1] or self.place[0]
        if self.positional:
            return name.upper()
        return self.option.name or f"--{'no-' * (self.default is True)}{name.replace('_', '-')}"

    @property
    def names(self) -> tuple[str, ...]:
        """The name, and the short name if there is one."""
        return (self.name, self.option.short) if self.option.short else (self.name,)

    @property
    def type(self) -> Any:
        """The type to read from the command line: the annotation without metadata and without None."""
        if self.option.parse or self.option.unit != 1:
            return str if self.option.parse else float
        hint = _bare(self.hint)
        if get_origin(hint) not in (Union, UnionType):
            return hint
        return Union[tuple(_bare(one) for one in get_args(hint) if one is not NoneType)]  # noqa: UP007

    @property
    def is_list(self) -> bool:
        return get_origin(self.type) is tuple

    def value_of(self, read: object) -> object:
        """Convert what was read as `type` to the value of the parameter. Raise InputError if it is out of range."""
        if self.option.parse:
            return self.option.parse(str(read))
        if self.option.unit == 1:
            if isinstance(read, (int, float)):
                require_value(self.name, read, self.hint)
            return not read if self.default is True else read
        numbers = metadata(self.hint, Range) or Range()
        assert isinstance(read, float)
        if numbers.high is None and read * self.option.unit >= LARGEST:
            numbers = Range(numbers.low, above=numbers.above, below=LARGEST)
        require_value(self.name, read, Annotated[float, numbers / self.option.unit])
        value = read * self.option.unit
        return value if _bare(self.hint) in (float, float | None) else int(value)


JSON = Argument(("json", None), bool, False)
VERBOSE = Argument(("verbose", None), Annotated[bool, Option(short="-v")], False)
QUIET = Argument(("quiet", None), Annotated[bool, Option(short="-q")], False)
OF_ALL = {  # the options of every command, with their help
    VERBOSE: "Print more on stderr: each line with the time and the name of the module.",
    QUIET: "Print only errors on stderr: no progress, no warnings and no next steps.",
    JSON: "Print one JSON document on stdout, and everything else on stderr.",
}


def arguments_of(command: Command) -> list[Argument]:
    """Return all arguments of a command, in the order of its parameters and of the fields of its configs."""
    found = []
    for parameter, hint, config in _parameters(command):
        if config is None:
            positional = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            found.append(Argument((parameter.name, None), hint, parameter.default, positional))
            continue
        hints = get_type_hints(config, include_extras=True)
        for field in fields(config):
            if not metadata(hints[field.name], Internal):
                default = None if field.default_factory is not MISSING else field.default
                default = REQUIRED if default is MISSING else default
                found.append(Argument((parameter.name, field.name), hints[field.name], default))
    return [*found, *OF_ALL]


def call(command: Command, given: dict[Place, object]) -> object:
    """Call a command with the given values. Everything else has the default of its parameter or config.

    Raise InputError for a value outside the range of its parameter, as configs do for their fields.
    """
    positional, keywords = [], {}
    for parameter, hint, config in _parameters(command):
        if config is None:
            value = given.get((parameter.name, None), parameter.default)
            require_value(parameter.name, value, hint)
        else:
            of_config = {field: one for (name, field), one in given.items() if name == parameter.name and field}
            value = partial(config, **of_config)
            if get_origin(hint) is not partial:
                require_valid(value := value())
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            positional.append(value)
        else:
            keywords[parameter.name] = value
    return command(*positional, **keywords)


def help_of(command: Command) -> tuple[str, dict[Place, str]]:
    """Return a command's description and the help of its arguments, which comes from `Args:` and field docstrings."""
    from docstring_parser import DocstringStyle, parse_from_object

    whole = parse_from_object(command, DocstringStyle.GOOGLE)
    found = {one.place: help for one, help in OF_ALL.items()}
    for one in whole.params:
        found[one.arg_name, None] = one.description or ""
    for parameter, _, config in _parameters(command):
        for base in reversed(config.__mro__[:-1] if config else ()):
            for one in parse_from_object(base, DocstringStyle.GOOGLE).params:
                found[parameter.name, one.arg_name] = one.description or ""
    return (whole.description or "").strip(), found


def example_of(command: Command) -> str:
    """Return the command line under `Example:` in a command's docstring, or an empty string."""
    from docstring_parser import DocstringStyle, parse_from_object

    return "\n".join(one.description or "" for one in parse_from_object(command, DocstringStyle.GOOGLE).examples)


def _parameters(command: Command) -> list[tuple[inspect.Parameter, Any, type | None]]:
    """Return a command's parameters, their annotations, and the dataclass of each that is a config or its partial."""
    hints = get_type_hints(command, include_extras=True)
    found = []
    for name, parameter in inspect.signature(command).parameters.items():
        config = get_args(hints[name])[0] if get_origin(hints[name]) is partial else hints[name]
        is_config = isinstance(config, type) and is_dataclass(config)
        found.append((parameter, hints[name], config if is_config else None))
    return found


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint
