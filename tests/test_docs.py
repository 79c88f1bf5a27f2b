"""The README says what there is: every command it shows has a --help, every option it shows is known."""

import re
import shlex
import subprocess
import sys

import pytest
from paths import ROOT

README = (ROOT / "README.md").read_text()


def commands() -> dict[str, set[str]]:
    """{"embed cache": {"--model", ...}} of the lines that a user is told to type."""
    shown: dict[str, set[str]] = {}
    for line in re.findall(r"^    \$ python -m ((?:.*\\\n)*.*)", README, re.MULTILINE):
        package, command, *rest = shlex.split(line.replace("\\\n", " "))
        shown.setdefault(f"{package} {command}", set()).update(word for word in rest if word.startswith("-"))
    for row in re.findall(r"^\| (`(?:embed|heads|export|runtime) .*?) \|", README, re.MULTILINE):
        package = ""
        for quoted in re.findall(r"`([^`]*)`", row):
            first, *rest = quoted.split()
            package, command = (
                (first, rest[0]) if first in ("embed", "heads", "export", "runtime") else (package, first)
            )
            shown.setdefault(f"{package} {command}", set()).update(re.findall(r"(?<!\S)--?[a-z][a-z-]*", quoted))
    return shown


def test_the_readme_shows_the_whole_path() -> None:
    path = {"embed cache", "heads train", "export onnx", "export check", "runtime score", "runtime index"}
    assert path | {"runtime similar"} <= set(commands())


@pytest.mark.parametrize("name", sorted(commands()))
def test_shown_commands_have_help_with_the_shown_options(name: str) -> None:
    package, command = name.split()
    done = subprocess.run(
        [sys.executable, "-m", package, command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for option in commands()[name]:
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", done.stdout), f"{name} has no {option}"
