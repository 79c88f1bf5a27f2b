"""What stands on the pages of reports, and the pages: templates of this folder filled in."""

from dataclasses import dataclass
from pathlib import Path

from embed.showing.pages import page

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """One picture, as the source of an <img>, with what is shown beneath it: a name, and a line of figures.

    Without a source it is one that could not be read. `full` is the same picture, larger, for when it is clicked.
    """

    source: str
    name: str
    detail: str
    full: str = ""


def fill(template: str, **values: object) -> bytes:
    """The file of a page, by the name of its template."""
    return page(HERE / template, **values).encode()
