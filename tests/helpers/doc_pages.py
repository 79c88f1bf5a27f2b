"""The pages that users read, the code in them, and whether a command that they show could work."""

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

import plaudit
from embed.cli.app import load, read
from embed.cli.arguments import Argument, arguments_of

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
SHELL = {"git", "cd", "python3", ".", "export", "open"}  # what is there without us
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROUTES = "".join(path.read_text() for path in (ROOT / "runtime" / "service").rglob("*.py"))
# A fence, with the comment before it that says why its block is not run.
_FENCED = re.compile(
    r"^(?:<!-- not run: (?P<why>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_INDENTED = re.compile(r"(?<=\n\n)((?: {4}.*\n|\n(?= {4}))+)")


@dataclass(frozen=True)
class Block:
    """One block of code; an indented one has no language."""

    page: str
    language: str
    text: str
    why_not_run: str | None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks() -> Iterator[Block]:
    """Every block of every page, in order, fenced ones first."""
    for page in PAGES:
        text = page.read_text()
        for found in _FENCED.finditer(text):
            yield Block(name_of(page), found["language"], found["text"], found["why"])
        for indented in _INDENTED.findall(_FENCED.sub("", text)):
            yield Block(name_of(page), "", indented, None)


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of each command of a block: lines that a backslash or an open quotation joins are one."""
    line = ""
    for part in text.replace("\\\n", " ").splitlines():
        line = f"{line}\n{part}" if line else part
        try:
            words = shlex.split(re.sub(r"(^|\s)# .*", "", line))  # shlex would end bundle#output at its #
        except ValueError:
            continue  # the quotation goes on
        line = ""
        command: list[str] = []
        for word in [*words, "&&"]:
            if word != "&&":
                command.append(word)
            elif command:
                yield command[1:] if command[0] == "$" else command
                command = []
    assert not line, f"a quotation is not closed: {line}"


def commands_of(package: str) -> dict[str, str]:
    commands: dict[str, str] = (
        plaudit.COMMANDS if package == "plaudit" else importlib.import_module(f"{package}.cli.main").COMMANDS
    )
    return commands


def arguments(words: list[str]) -> tuple[list[Argument], list[str]]:
    """What a command takes, and the words after its name. Fails if there is no such command."""
    package, words = (words[0], words[1:]) if words[0] in plaudit.PACKAGES else ("plaudit", words)
    commands = commands_of(package)
    names = [name for name in commands if words[: len(name.split())] == name.split()]
    assert names, f"{package} has no command {' '.join(words[:1])}"
    name = max(names, key=len)
    return arguments_of(load(commands[name])), words[len(name.split()) :]


def check_command(words: list[str]) -> None:
    """Fails if a line of a shell could not work."""
    words = words[: words.index(">")] if ">" in words else words
    if words[0] == "plaudit" or words[:2] == ["python", "-m"] or words[:3] == ["accelerate", "launch", "-m"]:
        if words[1:] == ["--version"]:
            return
        known, rest = arguments(words[1:] if words[0] == "plaudit" else words[words.index("-m") + 1 :])
        if rest != ["--help"]:
            read(known, rest, "PLAUDIT_TEST_")
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    elif words[:2] == ["pip", "install"]:
        for extra in re.findall(r"\w+", " ".join(re.findall(r"\[(.*?)\]", " ".join(words)))):
            assert extra in PYPROJECT["project"]["optional-dependencies"], f"there is no extra {extra}"
    elif words[0] == "make":
        assert f"\n{words[1]}:" in MAKEFILE, f"there is no make {words[1]}"
    elif words[0] == "curl":
        (route,) = re.findall(r"localhost:8000(/[\w/]+)", " ".join(words))
        assert f'"{route}"' in ROUTES, f"there is no route {route}"
    else:
        assert words[0] in SHELL, f"unknown command {words[0]}"
