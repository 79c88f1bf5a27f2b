"""Commands, options and defaults are what people's scripts rest on: tests/commands.json holds those of all packages.

A default of null there stands for none, or for one that depends on something else, such as the machine.
"""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from embed import console

COMMANDS = json.loads((ROOT / "tests" / "commands.json").read_text())
UNSAID = {"default": None, "required": False, "choices": None}
TAKES = {None: "one", "?": "at most one", "*": "any number", "+": "one or more", 0: "nothing"}

Arguments = dict[str, dict[str, Any]]  # by option, or by the name of a positional argument


def of_parser(package: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Arguments]:
    """The commands of a package's argparse parser, which its `main` hands to `console.main`."""
    parsers: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(console, "main", lambda parser, argv: parsers.append(parser))
    importlib.import_module(f"{package}.cli" if package == "export" else f"{package}.cli.main").main([])
    (commands,) = (action for action in parsers[0]._actions if isinstance(action, argparse._SubParsersAction))
    return {name: of_command(package, name, parser) for name, parser in commands.choices.items()}


def of_command(package: str, command: str, parser: argparse.ArgumentParser) -> Arguments:
    found: Arguments = {}
    for action in parser._actions[1:]:  # the first is --help
        (name,) = action.option_strings or [action.dest]
        repeated = isinstance(action, argparse._AppendAction)
        default = plain(False if action.nargs == 0 else action.default)
        if default is None:  # then the library may have one
            default = COMMANDS[package][command][name].get("default")
        found[name] = {
            "takes": "one, again and again" if repeated else TAKES[action.nargs],  # type: ignore[index]
            "default": default,
            "required": action.required and name.startswith("-"),
            "choices": plain(action.choices),
        }
    return found


def plain(value: Any) -> Any:
    """A default as JSON has it; None where there are no values."""
    if isinstance(value, (list, tuple)):
        return list(value) or None
    return str(value) if isinstance(value, Path) else value


@pytest.mark.parametrize("package", sorted(COMMANDS))
def test_commands_and_options_are_those_of_before(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, expected = of_parser(package, monkeypatch), COMMANDS[package]
    assert sorted(found) == sorted(expected)
    for command, arguments in expected.items():
        assert found[command] == {name: UNSAID | argument for name, argument in arguments.items()}, command
