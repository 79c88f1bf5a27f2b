"""Exit codes, and where each kind of output goes."""

import argparse
import json
from collections.abc import Callable
from typing import Any

import pytest

from embed import console
from embed.spec import InputError


def run(command: Callable[[argparse.Namespace], Any], *argv: str) -> int:
    parser = argparse.ArgumentParser(prog="python -m thing")
    console.command(parser.add_subparsers(required=True), "go", command, "go there")
    return console.main(parser, ["go", *argv])


def raising(error: BaseException) -> Callable[[argparse.Namespace], Any]:
    def command(args: argparse.Namespace) -> Any:
        raise error

    return command


def test_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    def command(args: argparse.Namespace) -> Any:
        console.say(args, "for people")
        return {"n": 1}

    assert run(command, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"n": 1} and captured.err == "for people\n"
    assert run(command) == 0
    assert capsys.readouterr().out == "for people\n"


@pytest.mark.parametrize(
    "error, code, line",
    [
        (InputError("no such\n  thing"), 2, "python -m thing: no such thing\n"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), 2,
         "python -m thing: a.csv: No such file or directory\n"),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), 2,
         "python -m thing: needs torch; run: pip install 'plaudit[train]'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)  # fmt: skip
def test_what_is_not_our_fault_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), ModuleNotFoundError("ours", name="embed.nothing")])
def test_our_faults_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="ours"):
        run(raising(error))


def test_a_table_is_aligned() -> None:
    assert console.table(["a", "b"], [["long", 1], ["x", 1000]]) == ["a        b", "long     1", "x     1000"]


def test_unknown_names_list_near_ones() -> None:
    assert str(console.unknown_name("model", "startr", ["starter", "other"])) == (
        "unknown model 'startr'; near names: starter"
    )
