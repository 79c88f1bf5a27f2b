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

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embed.addresses import join, place_of
from embed.records import labels
from embed.records.columns import (
    IMAGES,
    Reading,
    absolute,
    listed_pictures,
    pick_a_pic_picture,
    picture,
    pictures,
    prompts,
    stream,
)
from embed.records.labels import Kind
from embed.records.plain import holds_bytes
from embed.records.samples import FolderTable
from embed.records.sources import TableSource, open_table, pictures_root
from embed.records.tables import RecordFormat, Table
from embed.records.tars import TarTable
from embed.spec import InputError, Side
from embed.wording import unknown_name

Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Format:
    """`needs` lists columns; of each entry the table has at least one. A format without labels has no `kind`."""

    kind: Kind | None
    needs: tuple[tuple[str, ...], ...]
    pictures: Callable[[Table], Reading]
    labels: Callable[[Table], pa.Table] | None = None
    prompt: str = "prompt"  # the column; no row may lack one where it is among the needs

    def prompts(self, table: Table) -> Reading:
        return prompts(table, self.prompt, required=(self.prompt,) in self.needs)

    def missing(self, table: Table) -> list[str]:
        """What the table lacks, one text a need."""
        return [" or ".join(need) for need in self.needs if not table.types.keys() & set(need)]


def _sides(*names: str) -> Callable[[Table], Reading]:
    return lambda table: pictures(table, [picture(table, name) for name in names])


def _hpd(kind: Kind, preference: str, read: Callable[[Table], pa.Table]) -> Format:
    needs = (("prompt",), ("image_path", "file_path"), (preference,))
    return Format(kind, needs, lambda table: listed_pictures(table, labels.hpd_paths(table)), read)


_PLAIN = Format(None, (("image",),), _sides("image"))

# HPD has two shapes; a table has the first whose needs it meets.
FORMATS: dict[RecordFormat, tuple[Format, ...]] = {
    "social-reward": (
        Format(
            "comparisons",
            (("prompt",), ("pos_path",), ("neg_path",)),
            _sides("pos_path", "neg_path"),
            labels.social_reward,
        ),
    ),
    "pick-a-pic": (
        Format(
            "comparisons",
            (("caption",), ("jpg_0", "image_0_url"), ("jpg_1", "image_1_url"), ("label_0",), ("label_1",)),
            lambda table: pictures(table, [pick_a_pic_picture(table, side) for side in (0, 1)]),
            labels.pick_a_pic,
            prompt="caption",
        ),
    ),
    "imagereward": (
        Format(
            "groups",
            (("prompt",), ("generations",), ("ranking",)),
            lambda table: listed_pictures(table, "generations"),
            labels.imagereward,
        ),
    ),
    "hpd": (
        _hpd("groups", "rank", labels.hpd_ranks),
        _hpd("comparisons", "human_preference", labels.hpd_preferences),
    ),
    "ratings": (Format("ratings", (("image",), ("rating",)), _sides("image"), labels.ratings),),
    "popularity": (Format("counts", (("image",), ("count",)), _sides("image"), labels.popularity),),
    "images": (_PLAIN,),
    "folder": (_PLAIN,),
    "webdataset": (_PLAIN,),
}


@dataclass(frozen=True)
class Records:
    """A table that is open, and its format. Each method is one pass over the rows."""

    table: Table
    format: RecordFormat
    shape: Format
    images_root: str

    @property
    def path(self) -> str:
        return self.table.path

    @property
    def kind(self) -> Kind | None:
        """Of its labels; None where it has none."""
        return self.shape.kind

    def place(self, key: str) -> str | None:
        """Where the picture that a label names lies (see embed.addresses)."""
        return place_of(key, join(self.images_root, key))

    def images(self) -> Batches:
        """The pictures as batches of IMAGES, in the table's order; a picture may come more than once.

        A relative uri is joined to `images_root`. A picture has bytes, or else a uri; with neither it is missing from
        a table that names it.
        """
        for _, batch in stream(self.table, {"images": self.shape.pictures(self.table)}):
            yield pa.RecordBatch.from_arrays(
                [batch["key"], absolute(batch["uri"], self.images_root), batch["bytes"]], schema=IMAGES
            )

    def prompts(self) -> Batches:
        """The prompts as batches of PROMPTS, each once a batch."""
        for _, batch in stream(self.table, {"prompts": self.shape.prompts(self.table)}):
            yield batch

    def counts(self) -> dict[Side, int | None]:
        """How many rows `images` and `prompts` will give, from one pass for both; None where only reading the pictures
        would tell. InputError for a row that they would refuse, where no pictures have to be read to see it."""
        readings: dict[Side, Reading] = {
            "images": self.shape.pictures(self.table),
            "prompts": self.shape.prompts(self.table),
        }
        if isinstance(self.table, TarTable):
            return dict.fromkeys(readings)
        known: dict[Side, int | None] = {}
        if any(map(holds_bytes, readings["images"].types.values())):
            rows, per_row = self.table.rows, readings.pop("images").per_row
            known["images"] = rows * per_row if rows and per_row else None
        counted = dict.fromkeys(readings, 0)
        for side, batch in stream(self.table, readings):
            counted[side] += len(batch)
        return known | counted

    def labels(self) -> pa.Table:
        """The labels, with the columns of `labels.LABELS[kind]` first. Raise InputError for those nobody can mean."""
        self.table.complete()
        if self.shape.labels is None:
            raise InputError(f"{self.path} has no labels; it has the columns {', '.join(self.table.types)}")
        return self.shape.labels(self.table)


def read_records(
    source: TableSource,
    format: str | None = None,
    images_root: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> Records:
    """The records of a file, shards, a folder or a table in memory; the format is recognised by the columns.

    `columns` gives a table's column a further name, {ours: theirs}. `images_root`, a folder or a URI, is where
    relative paths start: the table's own folder, or the folder of pictures itself, unless given. Raise InputError for
    a table that is missing, unreadable, empty, of no format or of several.
    """
    table = open_table(source, columns or {})
    if not (table.types and table.has_rows):
        raise InputError(f"{table.path} has no {'pictures' if isinstance(table, FolderTable) else 'rows'}")
    name = _named(format) if format else _recognise(table)
    return Records(table, name, _shape(name, table), pictures_root(table, images_root))


def _recognise(table: Table) -> RecordFormat:
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


def _named(format: str) -> RecordFormat:
    for name in FORMATS:
        if name == format:
            return name
    raise unknown_name("format", format, FORMATS)


def _shape(format: RecordFormat, table: Table) -> Format:
    for shape in FORMATS[format]:
        if not shape.missing(table):
            return shape
    lacking = "; or ".join(", ".join(shape.missing(table)) for shape in FORMATS[format])
    raise InputError(f"{table.path} lacks what format {format} needs: {lacking}; it has {', '.join(table.types)}")
