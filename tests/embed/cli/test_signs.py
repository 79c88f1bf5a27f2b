"""What a command says of itself while it is silent: by a clock of the test's, so that nothing waits."""

import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apart_calls
import pytest
import tqdm

import plaudit
from embed.cli import console, signs
from embed.cli.signs import AGAIN_S, ERASE, FIRST_S, REWRITTEN_S, Signs
from embed.cli.streams import lasting_streams
from embed.process.child import call_apart
from embed.progress import stage


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Enabled(tqdm.tqdm):
    """A bar that tests' own variable does not disable."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "disable": False})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Signs:
    """The signs of a command that nobody but the test looks at, on the test's clock."""
    found = Signs(clock)
    monkeypatch.setattr(console, "SIGNS", found)
    found.begin("train is at work")
    return found


def seconds(silent: Signs, clock: Clock, until_s: int, read: Callable[[], str]) -> list[tuple[int, str]]:
    """What is said in each of the next seconds."""
    found = []
    for second in range(1, until_s + 1):
        clock.now_s += 1
        silent.beat()
        if text := read():
            found.append((second, text))
    return found


def test_a_file_gets_a_line_within_three_seconds_and_then_at_least_every_ten(
    said: Signs, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert FIRST_S + 1 < 3 and AGAIN_S + 1 < 10
    lines = seconds(said, clock, 20, lambda: capsys.readouterr().err)
    assert lines == [(s, f"train is at work: {s} s\n") for s in (2, 10, 18)]


def test_who_speaks_is_not_interrupted(said: Signs, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def read() -> str:
        text = capsys.readouterr().err
        print("epoch", file=sys.stderr)
        capsys.readouterr()
        return text

    with lasting_streams(said.heard):
        assert seconds(said, clock, 60, read) == []
    with said.paused():
        assert seconds(said, clock, 60, lambda: capsys.readouterr().err) == []
    assert [second for second, _ in seconds(said, clock, 10, lambda: capsys.readouterr().err)] == [8]


def test_a_terminal_has_one_line_that_is_written_over(
    said: Signs, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    assert REWRITTEN_S == 2
    with lasting_streams(said.heard):
        lines = seconds(said, clock, 6, lambda: capsys.readouterr().err.rpartition(ERASE)[2])
        assert lines == [(s, f"train is at work: {s} s"[:19]) for s in (2, 4, 6)]
        print("the result", file=sys.stderr)
    assert capsys.readouterr().err == f"{ERASE}the result\n"


def test_what_is_said_is_the_innermost_work_and_from_its_beginning(
    said: Signs, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.shown_logs():
        clock.now_s += 5
        with stage("exporting the towers"):
            clock.now_s += 9
            with pytest.raises(ZeroDivisionError), stage("loading the backbone"):
                clock.now_s += 9
                said.beat()
                raise ZeroDivisionError
            clock.now_s += 9
            said.beat()
        clock.now_s += 9
        said.beat()
    assert capsys.readouterr().err.splitlines() == [
        "loading the backbone: 9 s",
        "exporting the towers: 27 s",
        "train is at work: 41 s",
    ]


def test_a_step_of_a_bar_that_takes_long_draws_the_bar_again(
    said: Signs, clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqdm.tqdm", Enabled)
    with lasting_streams(said.heard), console.progress(7, "rows", "merging") as step:
        clock.now_s += 9
        said.beat()
        step(3)
        clock.now_s += 9
        said.beat()
    said.beat()
    lines = capsys.readouterr().err.splitlines()
    assert [re.findall(r"^merging: .*\| (\d)/7 \[.*\]$", line) for line in lines] == [["0"], ["3"]], lines


def test_a_library_that_is_loaded_is_named(
    said: Signs, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow_library.py").write_text("from embed.cli import console\nconsole.SIGNS.beat()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("tqdm.tqdm", Enabled)
    clock.now_s += 9
    with console.progress(7, "rows", "merging"):  # which cannot begin before that is loaded
        clock.now_s += 9
        __import__("slow_library")
    said.beat()
    assert capsys.readouterr().err == "merging: 9 s (loading slow_library)\n"


def test_stages_of_a_child_are_known_here(said: Signs, capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[str] = []
    said.begin = lambda what, draw=None: begun.append(what)  # type: ignore[method-assign, assignment, return-value]
    with console.shown_logs():
        call_apart(apart_calls.work_in_a_stage)
    assert begun == ["trying engines"] and capsys.readouterr().err == "found one\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_every_command_is_watched_unless_it_is_to_be_quiet(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signs, "FIRST_S", 0.0)
    monkeypatch.delenv("TQDM_DISABLE")  # of all tests
    monkeypatch.setattr(plaudit, "COMMANDS", {"slow": "command_fakes:threads"})
    assert plaudit.main(["slow", "--json", *["-q"] * quiet]) == 0
    out, err = capsys.readouterr()
    assert (signs.WATCHER in json.loads(out)["threads"]) is not quiet
    assert err == "" if quiet else re.fullmatch(r"(plaudit slow is at work: 0 s\n)+the result\n", err)
    assert signs.WATCHER not in [one.name for one in threading.enumerate()]
