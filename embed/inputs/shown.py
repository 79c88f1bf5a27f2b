"""Show results in a notebook: tables and pictures as HTML, with all text escaped."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed.inputs.thumbnails import data_uri, grey_square, thumbnail_at
from embed.spec import InputError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CELL = "padding:.2em .8em .2em 0;text-align:{}"


def lines_html(lines: Iterable[str]) -> str:
    """Return lines of text as HTML that looks as in the terminal."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def table_html(header: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> str:
    """Return a table as HTML with the first column aligned left and the others right, as in the terminal."""

    def row(cells: Sequence[object], tag: str) -> str:
        shown = (
            f'<{tag} style="{CELL.format("right" if i else "left")}">{escape(str(cell))}</{tag}>'
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(shown)}</tr>"

    above = f"<p><strong>{escape(title)}</strong></p>" if title else ""
    return f"{above}<table>{row(header, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


def picture_at(addresses: Iterable[str]) -> str:
    """Return the first picture that can be read as a small data URI for an <img>, or a grey square if none can."""
    return data_uri(thumbnail_at(addresses) or grey_square())


def pictures_html(pictures: Iterable[tuple[str, str, str]], title: str = "") -> str:
    """Return HTML with pictures side by side. Each is given as the source of its <img>, its name and a caption."""
    above = f"<p><strong>{escape(title)}</strong></p>" if title else ""
    shown = "".join(
        f'<figure style="margin:0;width:10em;overflow-wrap:anywhere"><img src="{escape(source)}" alt="{escape(name)}"'
        f' title="{escape(name)}" style="max-width:100%"><figcaption>{escape(name)}<br>{escape(said)}'
        "</figcaption></figure>"
        for source, name, said in pictures
    )
    return f'{above}<div style="display:flex;flex-wrap:wrap;gap:1em">{shown}</div>'


@dataclass(frozen=True, repr=False)
class Artifact:
    """What a step wrote to a folder. It shows what the command prints, and can be used as the path of the folder."""

    path: Path
    lines: tuple[str, ...]  # the lines that the command prints
    document: dict[str, Any] = field(compare=False)  # the document that the command prints with --json

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        return lines_html(self.lines)


class Tabular(ABC):
    """A result that can be converted to a table."""

    @abstractmethod
    def to_arrow(self) -> "pa.Table":
        """Return the rows as an Arrow table, which polars reads too."""

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a pandas DataFrame. Raise InputError if pandas is not installed."""
        try:
            return self.to_arrow().to_pandas()
        except ModuleNotFoundError:
            raise InputError("pandas is not installed; run: pip install pandas, or use to_arrow()") from None
