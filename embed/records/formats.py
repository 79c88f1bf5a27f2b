"""Records: a table of any of the papers' formats as pictures, prompts and labels in Arrow.

    pictures  key (as the data names it), uri (absolute, or null), bytes (or null)
    prompts   text
    labels    comparisons  image_a, image_b, prompt_a, prompt_b, target (1: a preferred, 0: b, 0.5: tie), weight
              groups       image, prompt, group, rank (lower is better; 1 is the best)
              ratings      image, prompt, rating
              counts       image, prompt, count, exposures, group
              each followed by the table's other columns of scalars

`labels` has a worked example of each format. Knows no picture's content and no vector.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from embed.console import unknown_name
from embed.records import labels
from embed.records.columns import (
    IMAGES,
    listed_pictures,
    pick_a_pic_picture,
    picture,
    picture_type,
    pictures,
    prompts,
)
from embed.records.labels import Kind
from embed.records.samples import FolderTable, JsonArrayTable, TarTable
from embed.records.tables import CsvTable, JsonLinesTable, ParquetTable, Table, holds_bytes
from embed.spec import InputError

Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Format:
    """`needs` lists columns; of each entry the table has at least one. A format without labels has no `kind`.

    `per_row` is how many pictures a row has, None where it has a list of them.
    """

    kind: Kind | None
    per_row: int | None
    needs: tuple[tuple[str, ...], ...]
    images: Callable[[Table], Batches]
    prompts: Callable[[Table], Batches]
    labels: Callable[[Table], pa.Table] | None

    def missing(self, table: Table) -> list[str]:
        """What the table lacks, one text a need."""
        return [" or ".join(need) for need in self.needs if not table.types.keys() & set(need)]


def _sides(*names: str) -> Callable[[Table], Batches]:
    return lambda table: pictures(table, [picture(table, name) for name in names])


def _hpd(kind: Kind, preference: str, read: Callable[[Table], pa.Table]) -> Format:
    return Format(
        kind,
        None,
        (("prompt",), ("image_path", "file_path"), (preference,)),
        lambda table: listed_pictures(table, labels.hpd_paths(table)),
        prompts("prompt", required=True),
        read,
    )


_PLAIN = Format(None, 1, (("image",),), _sides("image"), prompts("prompt", required=False), None)

# HPD has two shapes; a table has the first whose needs it meets.
FORMATS: dict[str, tuple[Format, ...]] = {
    "social-reward": (
        Format(
            "comparisons",
            2,
            (("prompt",), ("pos_path",), ("neg_path",)),
            _sides("pos_path", "neg_path"),
            prompts("prompt", required=True),
            labels.social_reward,
        ),
    ),
    "pick-a-pic": (
        Format(
            "comparisons",
            2,
            (("caption",), ("jpg_0", "image_0_url"), ("jpg_1", "image_1_url"), ("label_0",), ("label_1",)),
            lambda table: pictures(table, [pick_a_pic_picture(table, side) for side in (0, 1)]),
            prompts("caption", required=True),
            labels.pick_a_pic,
        ),
    ),
    "imagereward": (
        Format(
            "groups",
            None,
            (("prompt",), ("generations",), ("ranking",)),
            lambda table: listed_pictures(table, "generations"),
            prompts("prompt", required=True),
            labels.imagereward,
        ),
    ),
    "hpd": (
        _hpd("groups", "rank", labels.hpd_ranks),
        _hpd("comparisons", "human_preference", labels.hpd_preferences),
    ),
    "ratings": (
        Format(
            "ratings",
            1,
            (("image",), ("rating",)),
            _sides("image"),
            prompts("prompt", required=False),
            labels.ratings,
        ),
    ),
    "popularity": (
        Format(
            "counts",
            1,
            (("image",), ("count",)),
            _sides("image"),
            prompts("prompt", required=False),
            labels.popularity,
        ),
    ),
    "images": (_PLAIN,),
    "folder": (_PLAIN,),
    "webdataset": (_PLAIN,),
}


@dataclass(frozen=True)
class Records:
    """A table, known by its format; it is read anew by every method."""

    path: str
    format: str
    kind: Kind | None  # of its labels; None where it has none
    images_root: str
    columns: Mapping[str, str] = field(default_factory=dict)

    def images(self) -> Batches:
        """The pictures as batches of IMAGES, in the table's order; a picture may come more than once.

        A relative uri is joined to `images_root`. A picture has bytes, or else a uri; with neither it is missing from
        a table that names it.
        """
        table, format = self._open()
        for batch in format.images(table):
            yield pa.RecordBatch.from_arrays(
                [batch["key"], _absolute(batch["uri"], self.images_root), batch["bytes"]], schema=IMAGES
            )

    def prompts(self) -> Batches:
        """The prompts as batches of PROMPTS, each once a batch."""
        table, format = self._open()
        yield from format.prompts(table)

    def count(self, side: str) -> int | None:
        """How many rows `images` or `prompts` will give, None where only reading the pictures would tell."""
        table, format = self._open()
        has_bytes = isinstance(table, TarTable) or any(map(holds_bytes, table.types.values()))
        if side == "images" and has_bytes:
            return table.rows * format.per_row if table.rows is not None and format.per_row else None
        if isinstance(table, TarTable):
            return None
        return sum(map(len, self.images() if side == "images" else self.prompts()))

    def labels(self) -> pa.Table:
        """The labels, with the columns of `labels.LABELS[kind]` first; InputError for those nobody can mean."""
        table, format = self._open()
        if format.labels is None:
            raise InputError(f"{self.path} has no labels; it has the columns {', '.join(table.types)}")
        return format.labels(table)

    def _open(self) -> tuple[Table, Format]:
        table = open_table(self.path, self.columns)
        return table, _shape(self.format, table)


def read_records(
    path: str | Path,
    format: str | None = None,
    images_root: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> Records:
    """The records of a file, a folder of pictures or webdataset tars; the format is recognised by the columns.

    `columns` gives a table's column a further name, {ours: theirs}. `images_root`, a folder or a URI, is where
    relative paths start: the table's own folder, or the folder of pictures itself, unless given. InputError for a file
    that is missing, unreadable, empty, of no format or of several.
    """
    path = str(path)
    table = open_table(path, columns or {})
    if not table.types:
        raise InputError(f"{path} has no rows")
    name = format or _recognise(table)
    shape = _shape(name, table)
    first = shape.needs[0][0]
    if not any(len(batch) for batch in table.stream({first: picture_type(table, first)})):
        raise InputError(f"{path} has no rows" if name != "folder" else f"{path} has no pictures")
    return Records(path, name, shape.kind, _root(path, images_root), dict(columns or {}))


def parse_columns(text: str | None) -> dict[str, str]:
    """{ours: theirs} from `ours=theirs,...`, as the command line's `--columns` has it."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if bad := [ours for ours, equals, theirs in pairs if not (ours.strip() and equals and theirs.strip())]:
        raise InputError(f"--columns {text!r}: {bad[0]!r} is not of the form name=your_name")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def open_table(path: str, columns: Mapping[str, str]) -> Table:
    """The reader for a file, a folder or tars, chosen by the name; `columns` is {ours: theirs}."""
    name = re.sub(r"\.(gz|bz2|zst)$", "", path.lower())
    if name.endswith(".tar"):
        return TarTable(path, columns)
    if os.path.isdir(path):
        return FolderTable(path, columns)
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist")
    if name.endswith(".parquet"):
        return ParquetTable(path, columns)
    if name.endswith((".csv", ".tsv")):
        return CsvTable(path, columns)
    if name.endswith((".json", ".jsonl", ".ndjson")):
        with pa.input_stream(path, compression="detect") as file:
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        return (JsonArrayTable if start.startswith(b"[") else JsonLinesTable)(path, columns)
    raise InputError(
        f"cannot tell what {path} is by its name; wanted .parquet, .csv, .tsv, .json, .jsonl, .tar or a folder"
    )


def _recognise(table: Table) -> str:
    fitting = [
        name for name, shapes in FORMATS.items() if any(shape.kind and not shape.missing(table) for shape in shapes)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(f"{table.path} fits the formats {' and '.join(fitting)}; choose one with --format")
    if "image" in table.types:
        return table.plain_format
    needs = (
        f"{name} ({', '.join(' or '.join(need) for need in shape.needs)})"
        for name, shapes in FORMATS.items()
        for shape in shapes
        if name not in ("folder", "webdataset")
    )
    raise InputError(
        f"{table.path} has the columns {', '.join(table.types)}, which no format has; wanted one of {'; '.join(needs)}."
        " Where yours have other names, say --columns image=YOURS,..."
    )


def _shape(format: str, table: Table) -> Format:
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    for shape in FORMATS[format]:
        if not shape.missing(table):
            return shape
    lacking = "; or ".join(", ".join(shape.missing(table)) for shape in FORMATS[format])
    raise InputError(f"{table.path} lacks what format {format} needs: {lacking}; it has {', '.join(table.types)}")


def _root(path: str, images_root: str | Path | None) -> str:
    if images_root is None:
        return os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path))
    root = str(images_root)
    if "://" in root:
        return root.rstrip("/")
    if not os.path.isdir(root):
        raise InputError(f"{root}, where the pictures should be, is no folder")
    return os.path.abspath(root)


def _absolute(uri: pa.Array, root: str) -> pa.Array:
    whole = pc.match_substring_regex(uri, r"^(/|[A-Za-z][A-Za-z0-9+.-]*://)")
    return pc.if_else(whole, uri, pc.binary_join_element_wise(root, uri, "/"))
