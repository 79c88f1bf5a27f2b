"""Run the commands of `python -m PACKAGE`. Commands are functions; embed.cli.arguments reads their arguments.

A command's function returns the document that `--json` prints, and itself prints text for people, which goes to stderr
under `--json`. Its docstring is its help. To keep help quick, a command's module is imported only when the command is
run, and cyclopts, which reads the command line, is not imported for help.
"""

import importlib
import inspect
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from embed.cli import page
from embed.cli.arguments import OF_ALL, REQUIRED, Argument, Command, Place, arguments_of, call, help_of
from embed.cli.console import exit_code, for_people, loudness, print_json, signs_of_life
from embed.options import OptionsFile, metadata, near_literals, wanted
from embed.spec import InputError
from embed.wording import near_names, unknown_name

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection, CycloptsError, Token

HELP = ("-h", "--help")
TYPES = {int: "a whole number", float: "a number", bool: "true or false"}


Commands = Mapping[str, str]  # from the name of each to "module:function"


def run(
    package: str,
    about: str,
    commands: Commands,
    argv: Sequence[str] | None,
    groups: Mapping[str, Commands] | None = None,
) -> int:
    """Run one of a package's commands and return its exit code (see embed.cli.console).

    A command may have several names, and a name may have several words, such as `index refresh`. `groups` are the
    commands of other packages, which only the help shows.
    """
    typed = "plaudit" if Path(sys.argv[0]).stem == "plaudit" else "python -m"
    program = package if package == "plaudit" else f"{typed} {package}"
    words = sys.argv[1:] if argv is None else list(argv)
    return exit_code(program, lambda: _run(program, about, commands, words, groups or {}))


def _run(program: str, about: str, commands: Commands, words: list[str], groups: Mapping[str, Commands]) -> None:
    if not words or words[0] in HELP:
        overview = page.overview(program, about, commands, groups)
        print(overview, file=sys.stdout if words else sys.stderr)
        if not words:
            raise InputError("no command was given; wanted one of those above")
        return
    names = [name for name in commands if words[: len(name.split())] == name.split()]
    if not names:
        if elsewhere := [f"`{program} {group} {words[0]}`" for group, others in groups.items() if words[0] in others]:
            raise InputError(f"unknown command {words[0]!r}; wanted {' or '.join(elsewhere)}")
        raise unknown_name("command", words[0], commands)
    name = max(names, key=len)
    command, words = load(commands[name]), words[len(name.split()) :]
    known = arguments_of(command)
    if set(HELP) & set(words[: words.index("--")] if "--" in words else words):
        print(page.of_command(f"{program} {name}", command, known))
        return
    given = read(known, words, f"PLAUDIT_{_in_capitals(name)}_")
    verbose, quiet, as_json = (bool(given.pop(one.place, False)) for one in OF_ALL)
    if verbose and quiet:
        raise InputError("--verbose and --quiet were both given; leave one of them out")
    shown = redirect_stdout(for_people(quiet)) if as_json else nullcontext()
    with loudness(verbose, quiet), signs_of_life(f"{program.split()[-1]} {name} is at work"), shown:
        document = call(command, given)
    if as_json:
        print_json(document)


def load(path: str) -> Command:
    """Import and return the function at "module:function"."""
    module, _, function = path.partition(":")
    command: Command = getattr(importlib.import_module(module), function)
    return command


def read(known: Sequence[Argument], words: Sequence[str], prefix: str) -> dict[Place, object]:
    """Return the values of the arguments that the words give. Raise InputError if a word is wrong.

    If the command takes a file of options, an option that the words do not give is looked up in an environment
    variable that begins with the prefix, and then in the file.
    """
    import cyclopts

    command = _stand_in(known)
    file = next((one for one in known if metadata(one.hint, OptionsFile)), None)
    sources: list[Any] = []
    if file is not None:
        _require_known_variables(known, prefix)
        sources = [cyclopts.config.Env(prefix, command=False), partial(_read_file, known, file)]
    app = cyclopts.App(name="", help_flags=(), version_flags=(), default_command=command, config=sources)
    try:
        _, bound, _ = app.parse_args(list(words), exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise _input_error(error, known) from None
    found = ((known[int(name.removeprefix("a"))], value) for name, value in bound.arguments.items())
    return {argument.place: argument.value_of(value) for argument, value in found}


def completion_script(commands: Commands, about: Mapping[str, str], shell: Literal["zsh", "fish"]) -> str:
    """Return the script that completes `plaudit` in a shell. `commands` are named by the words after `plaudit`.

    `about` describes the packages.
    """
    import cyclopts

    app = cyclopts.App(name="plaudit", help_flags=HELP, version_flags=("--version",))
    apps = {"": app}
    for name, path in commands.items():
        above, _, last = name.rpartition(" ")
        if above not in apps:  # a package, or a command that others begin with
            apps[above] = cyclopts.App(name=above, help=about.get(above, ""))
            app.command(apps[above])
        command, known = load(path), arguments_of(load(path))
        _, help = help_of(command)
        stand_in = _stand_in(known, [help.get(one.place, "").partition(". ")[0] for one in known])
        stand_in.__doc__ = page.summary(path)
        apps[name] = cyclopts.App(name=last, default_command=stand_in, help=page.summary(path))
        apps[above].command(apps[name])
    return str(app.generate_completion(shell=shell))


def _stand_in(known: Sequence[Argument], help: Sequence[str] = ()) -> Command:
    """Return a function with these arguments in its signature, which cyclopts can read instead of the command."""

    def command(*args: Any, **kwargs: Any) -> None: ...

    said = help or [""] * len(known)
    parameters = [_parameter(i, one, text) for i, (one, text) in enumerate(zip(known, said, strict=True))]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _in_capitals(name: str) -> str:
    return name.lstrip("-").replace("-", "_").replace(" ", "_").upper()


def _require_known_variables(known: Sequence[Argument], prefix: str) -> None:
    """Raise InputError for a variable with that prefix that names no option and would have no effect."""
    names = [prefix + _in_capitals(one.name) for one in known if not one.positional]
    for variable in sorted(os.environ):
        if variable.startswith(prefix) and variable not in names:
            raise _unknown(f"variable ${variable}", variable, names)


def _read_file(
    known: Sequence[Argument], file: Argument, app: Any, commands: tuple[str, ...], arguments: "ArgumentCollection"
) -> None:
    """A source for cyclopts: read the file of options, if there is one, for options that are not given elsewhere."""
    from cyclopts.config import Toml

    if tokens := arguments[file.name].tokens:
        _require_options(Path(tokens[-1].value), known)
        Toml(tokens[-1].value, must_exist=True, use_commands_as_keys=False)(app, commands, arguments)


def _require_options(path: Path, known: Sequence[Argument]) -> None:
    """Raise InputError if the file is not TOML, or contains a table or a positional argument."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # TOML's or UTF-8's
        raise InputError(f"{path} is not TOML: {error}") from None
    tables = [name for name, value in given.items() if isinstance(value, dict)]
    if tables:
        raise InputError(f"{path} has a table [{tables[0]}]; write the options at its top, in no table")
    for one in known:
        if one.positional and one.name.lower() in given:
            raise InputError(f"{path} has {one.name.lower()!r}, which is not an option; give it on the command line")


def _unknown(what: str, name: str, names: Sequence[str]) -> InputError:
    return InputError(f"unknown {what}; {near_names(name, names) or 'see --help'}")


def _from(token: "Token | None") -> str:
    """Return where a value was given, if not on the command line, in words that can end a message."""
    if token is None or token.source == "cli":
        return ""
    return f" in ${token.keyword}" if token.source == "env" else f" in {token.source}"


def _parameter(number: int, argument: Argument, help: str = "") -> inspect.Parameter:
    from cyclopts import Parameter

    required = argument.default is REQUIRED
    how = Parameter(
        name=argument.names,
        help=help,
        negative=(),
        converter=None if argument.is_list or argument.type is bool else _convert,
        consume_multiple=(1, None) if argument.option.many else None,
        allow_repeating=None if argument.is_list else True,
        required=required,
    )
    kind: Any = inspect.Parameter.POSITIONAL_ONLY if argument.positional else inspect.Parameter.KEYWORD_ONLY
    default: Any
    hint, default = (argument.type, REQUIRED) if required else (argument.type | None, None)
    if argument.type is bool:
        hint, default = bool, False  # what takes no value
    if argument.positional and argument.is_list:  # options may stand between its values only if it is *args
        kind, hint, default = inspect.Parameter.VAR_POSITIONAL, get_args(argument.type)[0], REQUIRED
    return inspect.Parameter(f"a{number}", kind, default=default, annotation=Annotated[hint, how])


def _convert(kind: Any, tokens: Sequence[Any]) -> Any:
    """Convert the last token. cyclopts itself would make 4 of `3.7`, and None of `none`."""
    import cyclopts

    return int(tokens[-1].value) if kind is int else cyclopts.convert(kind, tokens[-1:])


def _input_error(error: "CycloptsError", known: Sequence[Argument]) -> InputError:
    """Return an error of cyclopts as an InputError in the style of our own messages."""
    import cyclopts

    name = error.argument.name if error.argument else ""
    text = str(error)
    if isinstance(error, cyclopts.UnknownOptionError):
        name = error.token.keyword or error.token.value
        if name[:1] == "[":  # this is how cyclopts spells the keys of a file
            name = f"--{name.strip('[]').replace('][', '.')}"
        return _unknown(f"option {name}{_from(error.token)}", name, [one.name for one in known if not one.positional])
    if isinstance(error, cyclopts.UnusedCliTokensError) and error.unused_tokens:
        text = f"{error.unused_tokens[0]} is one argument too many; see --help"
    elif isinstance(error, cyclopts.MissingArgumentError):
        text = f"{name} needs a value" if error.keyword else f"{name} is missing; see --help"
    elif isinstance(error, cyclopts.CoercionError) and error.token:
        (argument,) = (one for one in known if one.name == name)
        expected = filter(None, [TYPES.get(argument.type), wanted(argument.hint, argument.option.unit)])
        value = error.token.value
        where, near = _from(error.token), near_literals(value, argument.hint)
        text = f"{name} is {value!r}{where}; wanted {', '.join(expected)}{near}"
    return InputError(text)
