"""A command does its work whatever becomes of the streams that it prints to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

WORK = """
import sys
from embed.cli.console import exit_code, progress

def work():
    with open("notes.txt", "w") as file, progress(3, "rows", "working") as step:
        for i in range(20_000):
            print("a line on stdout", "\\u65e5\\u672c")
            print("a line on stderr", file=sys.stderr)
        step(3)
        file.write("done")

sys.exit(exit_code("python -m thing", work))
"""


def run(folder: Path, redirections: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        f'exec "$PYTHON" -c "$WORK" {redirections}', shell=True, executable="/bin/bash", cwd=folder, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "WORK": WORK, **environment},
        capture_output=True,
    )  # fmt: skip


@pytest.mark.parametrize("redirections", [">&-", "2>&-", "<&- >&- 2>&-", "> /dev/null 2> /dev/full"])
def test_a_stream_that_is_closed_or_full_stops_no_work(tmp_path: Path, redirections: str) -> None:
    done = run(tmp_path, redirections)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "done", "no file gets the number of a closed stream"


def test_stdout_on_a_full_disk_is_an_error_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "> /dev/full")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "python -m thing: No space left on device"


@pytest.mark.parametrize("redirections", ["| head -1", "2>&1 >/dev/null | head -1"])
def test_work_goes_on_when_the_reader_has_left(tmp_path: Path, redirections: str) -> None:
    done = run(tmp_path, redirections)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "done"


def test_letters_that_a_console_lacks_are_escaped(tmp_path: Path) -> None:
    done = run(tmp_path, "2> /dev/null", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and done.stdout.startswith("a line on stdout \\u65e5\\u672c\n")
