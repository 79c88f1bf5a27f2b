"""The pages that `--help` prints: plain text in 80 columns."""

import importlib.util
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from embed.cli.arguments import REQUIRED, Argument, Command, example_of, help_of
from embed.options import Only, metadata, wanted

WIDTH = 80
COLUMN = 24  # where the text beside a name begins
PLACEHOLDERS = {bool: "", int: " N", float: " X", str: " TEXT", Path: " PATH"}


def overview(
    program: str, about: str, commands: Mapping[str, str], groups: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """Return the help of a package: what each of its commands does, and the names of the commands of `groups`.

    Commands are given as "module:function". If a command has several names, the first one is shown.
    """
    rows = [(name, summary(commands[name])) for name in first_names(commands)]
    last = f"`{program} COMMAND --help` describes the arguments of a command."
    lines = [f"usage: {program} COMMAND ...", "", textwrap.fill(about, WIDTH), "", "commands:", *_rows(rows)]
    for group, others in (groups or {}).items():
        lines += [
            "",
            f"{program} {group}:",
            textwrap.fill(", ".join(first_names(others)), WIDTH, initial_indent="  ", subsequent_indent="  "),
        ]
    return "\n".join([*lines, "", last])


def first_names(commands: Mapping[str, str]) -> list[str]:
    """Return the names of commands in order; a command with several names is listed once, under the first."""
    names = {path: name for name, path in reversed(list(commands.items()))}
    return [name for name, path in commands.items() if names[path] == name]


def summary(path: str) -> str:
    """Return the first sentence of the docstring of "module:function" without importing the module.

    Importing the modules of all commands would double the time that the help takes.

    To import those of all commands of a package takes as long as all the rest of showing what they do.
    """
    module, _, function = path.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    found = re.search(rf'^def {function}\(.*?"""(.*?)(?:\n\n|""")', source, re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def of_command(program: str, command: Command, known: Sequence[Argument]) -> str:
    """Return the help of a command: what it does, and each argument with its range and default."""
    description, help = help_of(command)
    rows = [(shown(one), said(one, help.get(one.place, ""))) for one in known]
    count = sum(one.positional for one in known)
    usage = " ".join(["usage:", program, *(name for name, _ in rows[:count]), "[OPTIONS]"])
    lines = [*textwrap.wrap(usage, WIDTH, subsequent_indent=" " * 7), ""]
    for paragraph in description.split("\n\n"):
        lines += [*textwrap.wrap(paragraph, WIDTH), ""]
    if example := example_of(command):
        lines += ["example:", *textwrap.indent(example, "  ").splitlines(), ""]
    if count:
        lines += ["arguments:", *_rows(rows[:count]), ""]
    return "\n".join([*lines, "options:", *_rows([*rows[count:], ("--help, -h", "Print this page.")])])


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines with each text beside its name, or below it if the name is long."""
    lines = []
    for name, text in rows:
        first, *others = textwrap.wrap(text, WIDTH - COLUMN) or [""]
        short = len(name) <= COLUMN - 4
        lines += [f"  {name:{COLUMN - 2}}{first}"] if short else [f"  {name}", " " * COLUMN + first]
        lines += [" " * COLUMN + line for line in others]
    return lines


def shown(argument: Argument) -> str:
    """Return an argument's name and the kind of value that it takes."""
    if not argument.positional:
        return ", ".join(argument.names) + _placeholder(argument.type) + "..." * argument.option.many
    name = argument.name + "..." * argument.is_list
    return name if argument.default is REQUIRED else f"[{name}]"


def _placeholder(type: Any) -> str:
    if get_origin(type) is Literal:
        return " NAME"
    return PLACEHOLDERS[type] if type in PLACEHOLDERS else _placeholder(get_args(type)[0])


def said(argument: Argument, help: str) -> str:
    """Return an argument's help, with its range and default."""
    default, option = argument.default, argument.option
    notes = [str(metadata(argument.hint, Only) or ""), wanted(argument.hint, option.unit)]
    if default is REQUIRED and not argument.positional:
        notes.append("required")
    elif default not in (REQUIRED, None, "", ()) and argument.type is not bool:
        values = default if isinstance(default, tuple) else (default,)
        notes.append("default " + ",".join(_said(value, option.unit) for value in values))
    if argument.is_list and not (option.many or argument.positional):
        notes.append("may be given again")
    said, help = "; ".join(filter(None, notes)), " ".join(help.split())
    return f"{help} ({said})" if said else help


def _said(value: Any, unit: float) -> str:
    return f"{value / unit:.9g}" if isinstance(value, (int, float)) else str(value)
