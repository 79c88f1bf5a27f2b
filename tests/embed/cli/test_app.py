"""Commands from functions: what is given reaches the function, what is wrong is one line, help is plain text."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embed.cli.app import run

COMMANDS = {
    "search": "command_fakes:search",
    "find": "command_fakes:search",
    "search again": "command_fakes:search",
    "train": "command_fakes:train",
}
DEFAULTS = {
    "k": 10,
    "kind": "auto",
    "max_bytes": None,
    "secret": "no option",
    "images": [],
    "like": [],
    "hosts": [],
    "features": ["a"],
    "weight": 0.5,
    "port": 8,
}


def go(line: str) -> int:
    return run("thing", "Do things.", COMMANDS, line.split())


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("", {}),
        ("-k 3 --kind exact", {"k": 3, "kind": "exact"}),
        ("-k3 --kind=exact", {"k": 3, "kind": "exact"}),
        ("-k 3 -k 4", {"k": 4}),
        ("--max-mb 1.5", {"max_bytes": 3 << 19}),
        ("--like a b c --weight -1e-3", {"like": ["a", "b", "c"], "weight": -0.001}),
        ("--like a --weight 1 --like b", {"like": ["a", "b"], "weight": 1.0}),
        ("--host a x.png --host b y.png", {"hosts": ["a", "b"], "images": ["x.png", "y.png"]}),
        ("x.png -k 4 y.png z.png", {"k": 4, "images": ["x.png", "y.png", "z.png"]}),
        ("--features b,c", {"features": ["b", "c"]}),
        ("-- --kind", {"images": ["--kind"]}),
    ],
)
@pytest.mark.parametrize("with_pydantic", [False, True])
def test_what_is_given_reaches_the_function(
    line: str, changed: dict[str, Any], with_pydantic: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if with_pydantic:
        import pydantic  # noqa: F401  cyclopts validates with it where it is imported, as the service does
    assert go(f"search none --json {line}") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == DEFAULTS | changed
    assert captured.err == "for people: none\n"


def test_a_command_may_have_several_names(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("search", "find", "search again"):
        assert go(f"{name} cat") == 0
        assert capsys.readouterr().out == "for people: cat\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("serch", "unknown command 'serch'; near names: search, search again"),
        ("search cat --featres 4", "unknown option --featres; near names: --features"),
        ("search cat --por 4", "unknown option --por; near names: --port"),
        ("search cat --xyzzy", "unknown option --xyzzy; see --help"),
        ("search cat --no-json", "unknown option --no-json; near names: --json"),
        ("search cat --empty-like", "unknown option --empty-like; near names: --like"),
        ("search", "CATALOGUE is missing; see --help"),
        ("train", "--out is missing; see --help"),
        ("train --out a b", "b is one argument too many; see --help"),
        ("search cat -k", "-k needs a value"),
        ("search cat --like --weight 1", "--like needs a value"),
        ("search cat -k 3.7", "-k is '3.7'; wanted a whole number, at least 1"),
        ("search cat -k none", "-k is 'none'; wanted a whole number, at least 1"),
        ("search cat -k 0", "-k is 0; wanted at least 1"),
        ("search cat --weight x", "--weight is 'x'; wanted a number"),
        ("search cat --weight nan", "--weight is nan; wanted a finite number"),
        ("search cat --port 10", "--port is 10; wanted 0 to 9"),
        ("search cat --kind exactly", "--kind is 'exactly'; wanted auto or exact (near names: exact)"),
        ("search cat --max-mb inf", "--max-mb is inf; wanted more than 0 and less than 8,796,093,022,208"),
        ("train --out a --mix 2", "--mix is 2.0; wanted auto or 0 to 1"),
        ("train --out a --mix none", "--mix is 'none'; wanted auto or 0 to 1"),
        ("train --out a --activations", "unknown option --activations; near names: --no-activations"),
    ],
)
@pytest.mark.parametrize("with_pydantic", [False, True])
def test_what_is_wrong_is_one_line_and_exit_code_2(
    line: str, message: str, with_pydantic: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if with_pydantic:
        import pydantic  # noqa: F401
    assert go(line) == 2
    assert capsys.readouterr().err == f"python -m thing: {message}\n"


def test_a_partial_knows_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert go("train --out a --json") == 0
    whole = {"dim": 3, "hidden": 128, "mix": 1.0, "activations": True}
    assert json.loads(capsys.readouterr().out) == {"given": {}, "whole": whole}
    assert go("train --out a --json --hidden 128 --mix auto --no-activations") == 0
    given = {"hidden": 128, "mix": "auto", "activations": False}
    assert json.loads(capsys.readouterr().out) == {"given": given, "whole": whole | given}


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert go("search cat --help") == 0
    assert (
        capsys.readouterr().out
        == """\
usage: python -m thing search CATALOGUE [IMAGES...] [OPTIONS]

Find what is similar.

It prints the catalogue.

arguments:
  CATALOGUE             The folder of a catalogue.
  [IMAGES...]           Pictures.

options:
  -k N                  How many hits to give. (at least 1; default 10)
  --kind NAME           The kind of index. (auto or exact; default auto)
  --max-mb X            The memory to take, in MiB. (more than 0)
  --like TEXT...        What is liked.
  --host TEXT           A host. (may be given again)
  --features TEXT       The features. (default a)
  --weight X            The weight of popularity. (default 0.5)
  --port N              The port. (0 to 9; default 8)
  --verbose, -v         Print more on stderr: each line with the time and the
                        name of the module.
  --quiet, -q           Print only errors on stderr: no progress, no warnings
                        and no next steps.
  --json                Print one JSON document on stdout, and everything else
                        on stderr.
  --help, -h            Print this page.
"""
    )


def test_help_of_a_package_and_no_command_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert go("--help") == 0
    page = capsys.readouterr().out
    assert (
        page
        == """\
usage: python -m thing COMMAND ...

Do things.

commands:
  search                Find what is similar.
  train                 Train a head.

`python -m thing COMMAND --help` describes the arguments of a command.
"""
    )
    assert go("") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == page + "python -m thing: no command was given; wanted one of those above\n"


def test_help_needs_no_cyclopts_and_a_command_no_rich() -> None:
    code = """
import sys
from embed.cli.app import run
commands = {"search": "command_fakes:search"}
assert run("thing", "", commands, ["search", "--help"]) == 0 and "cyclopts" not in sys.modules
assert run("thing", "", commands, ["search", "cat", "-k", "3"]) == 0
assert "cyclopts" in sys.modules and "rich" not in sys.modules
"""
    helpers = str(Path(__file__).parents[2] / "helpers")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({helpers!r}){code}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def listen(line: str) -> int:
    return run("thing", "Do things.", {"listen": "command_fakes:listen"}, ["listen", "bundle", *line.split()])


FILE = 'port = 1\nallow-host = ["a", "b"]\nmax_mb = 1.5\nhushed = true\n'
FROM_FILE = {"port": 1, "hosts": ["a", "b"], "max_bytes": 3 << 19, "hushed": True, "token_file": None}


@pytest.mark.parametrize(
    ("line", "variables", "changed"),
    [
        ("", {}, {}),
        ("", {"PORT": "2", "HUSHED": "false"}, {"port": 2, "hushed": False}),
        ("--port 3", {"PORT": "2", "MAX_MB": "1"}, {"port": 3, "max_bytes": 1 << 20}),
        ("--allow-host c", {"ALLOW_HOST": "d"}, {"hosts": ["c"]}),
        ("", {"ALLOW_HOST": "d  e"}, {"hosts": ["d", "e"]}),
        ("--max-mb 2", {}, {"max_bytes": 2 << 20}),
    ],
)
@pytest.mark.parametrize("named_by", ["option", "variable"])
def test_the_command_line_is_before_variables_and_these_before_the_file(
    line: str,
    variables: dict[str, str],
    changed: dict[str, Any],
    named_by: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "options.toml"
    file.write_text(FILE)
    # What belongs to somebody else: a token, a cache, another command.
    for name in ("PLAUDIT_TOKEN", "PLAUDIT_CACHE", "PLAUDIT_PORT", "PLAUDIT_SEARCH_PORT"):
        monkeypatch.setenv(name, "7")
    for name, value in variables.items():
        monkeypatch.setenv(f"PLAUDIT_LISTEN_{name}", value)
    if named_by == "variable":
        monkeypatch.setenv("PLAUDIT_LISTEN_CONFIG", str(file))
    else:
        line += f" --config {file}"
    assert listen(f"--json {line}") == 0
    assert json.loads(capsys.readouterr().out) == FROM_FILE | changed


@pytest.mark.parametrize(
    ("text", "variables", "message"),
    [
        ("prot = 1", {}, "unknown option --prot in FILE; near names: --port"),
        ('token = "secret"', {}, "unknown option --token in FILE; near names: --token-file"),
        ("[listen]\nport = 1", {}, "FILE has a table [listen]; write the options at its top, in no table"),
        ('bundle = "x"', {}, "FILE has 'bundle', which is not an option; give it on the command line"),
        ('port = "many"', {}, "--port is 'many' in FILE; wanted a whole number, 0 to 9"),
        ("port = 10", {}, "--port is 10; wanted 0 to 9"),
        ("hushed = 3", {}, "--hushed is '3' in FILE; wanted true or false"),
        ("port =", {}, "FILE is not TOML: Invalid value (at end of document)"),
        ("", {"PORT": "x"}, "--port is 'x' in $PLAUDIT_LISTEN_PORT; wanted a whole number, 0 to 9"),
        ("", {"TOKEN": "x"}, "unknown variable $PLAUDIT_LISTEN_TOKEN; near names: PLAUDIT_LISTEN_TOKEN_FILE"),
    ],
)
def test_what_is_wrong_in_file_or_variables_is_one_line(
    text: str,
    variables: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "options.toml"
    file.write_text(text)
    for name, value in variables.items():
        monkeypatch.setenv(f"PLAUDIT_LISTEN_{name}", value)
    assert listen(f"--config {file}") == 2
    error = capsys.readouterr().err.replace(str(file), "FILE")
    assert error.startswith(f"python -m thing: {message}") and error.count("\n") == 1
    assert "secret" not in error


def test_a_file_of_options_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listen(f"--config {tmp_path / 'none'}") == 2
    assert "No such file" in capsys.readouterr().err
