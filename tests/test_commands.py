"""Commands, options and defaults are what people's scripts rest on: tests/commands.json holds those of all packages.

Where it names no default there is none, or it depends on something else, such as the machine.
"""

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from doc_pages import commands_in
from paths import ROOT

import plaudit
from embed.cli import page
from embed.cli.app import load, read
from embed.cli.arguments import REQUIRED, arguments_of, example_of, help_of

COMMANDS = json.loads((ROOT / "tests" / "commands.json").read_text())
UNSAID = {"default": None, "required": False, "choices": None}

Arguments = dict[str, dict[str, Any]]  # by option, or by the name of a positional argument


def of_package(package: str) -> dict[str, Arguments]:
    """What the commands of a package take, of which several may be names of one."""
    names = {path: name for name, path in reversed(commands_of(package).items())}
    return {name: of_function(load(path)) for path, name in names.items()}


def commands_of(package: str) -> dict[str, str]:
    commands: dict[str, str] = importlib.import_module(f"{package}.cli.main").COMMANDS
    return commands


def of_function(command: Callable[..., Any]) -> Arguments:
    found: Arguments = {}
    for argument in arguments_of(command):
        required, default = argument.default is REQUIRED, argument.default
        if isinstance(default, (int, float)) and argument.type is not bool:
            default /= argument.option.unit
        if argument.type is bool:
            takes, default = "nothing", False
        elif argument.positional:
            several = "one or more" if required else "any number"
            takes = several if argument.is_list else "one" if required else "at most one"
        else:
            takes = "one or more" if argument.option.many else "one, again and again" if argument.is_list else "one"
        found[argument.name.lower()] = {
            "takes": takes,
            "default": None if required else plain(default),
            "required": required and not argument.positional,
            "choices": plain(choices(argument.type)),
        }
    return found


def choices(hint: Any) -> tuple[Any, ...] | None:
    return get_args(hint) if get_origin(hint) is Literal else None


def plain(value: Any) -> Any:
    """A default as JSON has it; None where there are no values."""
    if isinstance(value, (list, tuple)):
        return list(value) or None
    return str(value) if isinstance(value, Path) else value


@pytest.mark.parametrize("package", sorted(COMMANDS))
def test_commands_and_options_are_those_of_before(package: str) -> None:
    found, expected = of_package(package), COMMANDS[package]
    assert sorted(found) == sorted(expected)
    for command, arguments in expected.items():
        assert found[command] == {name: UNSAID | argument for name, argument in arguments.items()}, command


# Each command's function once, with the words that call it.
CALLS = {
    path: words
    for package in ("plaudit", *sorted(COMMANDS, reverse=True))
    for name, path in reversed((plaudit.COMMANDS if package == "plaudit" else commands_of(package)).items())
    for words in [[*([] if package == "plaudit" else [package]), *name.split()]]
}


@pytest.mark.parametrize("path", sorted(CALLS))
def test_help_is_whole_sentences_in_80_columns(path: str) -> None:
    command = load(path)
    known = arguments_of(command)
    description, help = help_of(command)
    for text in [description, *(help.get(argument.place, "") for argument in known)]:
        assert text[:1].isupper() and text.endswith("."), (path, text)
    names = [argument.name for argument in known]
    assert len(names) == len(set(names))
    assert max(map(len, page.of_command(f"python -m {path}", command, known).splitlines())) <= 80


@pytest.mark.parametrize("path", sorted(CALLS))
def test_help_ends_with_an_example_that_the_command_takes(path: str) -> None:
    command = load(path)
    example = example_of(command)
    assert example, "write a command line under Example: in the docstring"
    for words in commands_in(example):
        program, *rest = words[: words.index(">")] if ">" in words else words
        assert [program, *rest[: len(CALLS[path])]] == ["plaudit", *CALLS[path]]
        read(arguments_of(command), rest[len(CALLS[path]) :], "PLAUDIT_TEST_")
    assert f"example:\n  {example.splitlines()[0]}" in page.of_command("plaudit", command, arguments_of(command))


@pytest.mark.parametrize("package", sorted(COMMANDS))
def test_the_overview_has_80_columns(package: str) -> None:
    main = importlib.import_module(f"{package}.cli.main")
    text = page.overview(f"python -m {package}", main.ABOUT, main.COMMANDS)
    assert max(map(len, text.splitlines())) <= 80
    for path in main.COMMANDS.values():
        first = (inspect.getdoc(load(path)) or "").partition("\n\n")[0]
        assert page.summary(path) == " ".join(first.split()) != ""
