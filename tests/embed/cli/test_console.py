"""Exit codes, and where each kind of output goes."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tqdm
from paths import ROOT

import plaudit
from embed.cli import console
from embed.config import TableConfig
from embed.spec import InputError


def run(command: Callable[[], None]) -> int:
    return console.exit_code("python -m thing", command)


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


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


def test_what_the_library_logs_is_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    ours, others = logging.getLogger("heads.training.folds"), logging.getLogger("headstrong")

    def command() -> None:
        for logger in (ours, others):
            logger.debug("for us")
            logger.info("fold 1 of %d", 3)
            logger.warning("2 rows left out")

    for _ in range(2):  # the handlers of one run are gone at the next
        assert run(command) == 0
        assert capsys.readouterr() == ("", "fold 1 of 3\nwarning: 2 rows left out\n")
    package = logging.getLogger("heads")
    assert (package.handlers, package.level, package.propagate) == ([], logging.NOTSET, True)


def test_the_service_keeps_its_own_log() -> None:
    """As one JSON object a line, in which no line of the library appears again."""
    code = """
import logging
import re
import plaudit
from embed.cli import console
from runtime.cli.serve import log_json_lines

def serve():
    log_json_lines()
    logging.getLogger("plaudit.service").info("reloaded")
    logging.getLogger("embed.engines.sessions").warning("CUDA did not start")

console.exit_code("python -m runtime", serve)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    service, library = done.stderr.splitlines()
    assert json.loads(service)["event"] == "reloaded" and library == "warning: CUDA did not start"


class Eager(tqdm.tqdm):
    """A bar that shows itself at once, at every step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "disable": False, "delay": 0, "mininterval": 0})


def merge() -> None:
    with console.progress(7, "rows", "merging") as step:
        step(2)
        step(5, "failures=3")


def test_long_work_draws_a_bar_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    merge()
    assert capsys.readouterr() == ("", ""), "short work has none"
    monkeypatch.setattr("tqdm.tqdm", Eager)
    merge()
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("\rmerging") and "| 2/7 " in err
    assert "| 7/7 " in err and err.rstrip().endswith("failures=3]")


def test_long_work_is_lines_in_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    merge()
    assert capsys.readouterr() == ("", ""), "short work has none"
    monkeypatch.setattr("tqdm.tqdm", Eager)
    merge()
    lines = capsys.readouterr().err.splitlines()
    assert [re.findall(r"^merging: .*\| (\d)/7 \[.*\]$", line) for line in lines] == [["0"], ["2"], ["7"]]


def test_what_is_next_reads_the_table_as_before() -> None:
    assert console.reading_words(TableConfig()) == []
    read = TableConfig(columns={"image": "file", "count": "likes"}, images_root="my pictures")
    assert console.reading_words(read) == ["--images-root", "my pictures", "--columns", "image=file,count=likes"]


def test_what_one_could_do_next_is_said_to_people_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console.suggest(["embed", "inspect", Path("my cache")], ["embed", "backbones"])
    assert capsys.readouterr() == ("", "next:\n  plaudit embed inspect 'my cache'\n  plaudit embed backbones\n")
    monkeypatch.setattr("sys.stdout", sys.stderr)  # as it is under --json
    console.suggest(["embed", "backbones"])
    assert capsys.readouterr() == ("", "")


def test_quiet_says_only_errors_and_verbose_says_when_and_who(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        logging.getLogger("heads.training").debug("details")
        logging.getLogger("heads.training").info("fold 1")
        console.warn("rows left out")
        console.suggest(["embed", "backbones"])
        with console.progress(1, "rows", "merging"):
            pass
        print("the result")

    said = {}
    for verbose, quiet in ((False, True), (False, False), (True, False)):
        with console.loudness(verbose, quiet):
            assert run(command) == 0
            words = console.loudness_words()
        out, said[verbose, quiet] = capsys.readouterr()
        assert out == "the result\n"
        assert words == ["--verbose"] * verbose + ["--quiet"] * quiet
    assert said[False, True] == ""
    assert said[False, False].splitlines() == ["fold 1", "warning: rows left out", "next:", "  plaudit embed backbones"]
    clock = r"\d\d:\d\d:\d\d "
    assert [re.sub(r"[\d.]+ s", "X s", re.sub(clock, "", line)) for line in said[True, False].splitlines()] == [
        *("heads.training: details", "heads.training: fold 1", "warning: rows left out"),
        *("next:", "  plaudit embed backbones", "begins: merging", "done in X s: merging"),
    ]


def test_every_command_can_be_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plaudit.main(["embed", "backbones", "-q", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) and err == ""
    assert plaudit.main(["embed", "inspect", str(tmp_path), "--quiet"]) == 2
    assert "is not a cache" in capsys.readouterr().err
    assert plaudit.main(["embed", "backbones", "-q", "-v"]) == 2
    assert "--verbose and --quiet were both given" in capsys.readouterr().err
