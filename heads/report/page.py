"""Fill in the templates of this folder, and the pictures that their pages show."""

from dataclasses import dataclass
from pathlib import Path

from embed.showing.pages import page

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """One picture as the source of an <img>, with the texts shown beneath it: a name, and a line of figures.

    Without a source it is a picture that could not be read. `full` is a larger version to show after a click.
    """

    source: str
    name: str
    detail: str
    full: str = ""


def fill(template: str, **values: object) -> bytes:
    """The HTML of a page, from the template of that name."""
    return page(HERE / template, **values).encode()
