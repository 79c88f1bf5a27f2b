"""The pages that users read, and the code in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
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
            words = shlex.split(line, comments=True)
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
