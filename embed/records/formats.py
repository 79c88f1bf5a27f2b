"""Records: read a table in the format of any of the papers as pictures, prompts and labels in Arrow.

    pictures  key (as the data names it), uri (absolute, or null), bytes (or null)
    prompts   text
    labels    comparisons  image_a, image_b, prompt_a, prompt_b, target (1: a preferred, 0: b, 0.5: tie), weight
              groups       image, prompt, group, rank (lower is better; 1 is the best)
              ratings      image, prompt, rating
              counts       image, prompt, count, exposures, group
              each followed by `source` if a column says which picture a row's pictures were made from (`source_path`,
              or Pick-a-Pic's image_source_uid, image_source_url, jpg_source), null in rows without one, and by the
              table's other scalar columns

`labels` has an example of each format. This module does not look into pictures and does not know vectors.
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
    source_picture,
    stream,
    with_source,
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
    """A format. A table must have one column of each entry of `needs`. `kind` is that of its labels, None without."""

    kind: Kind | None
    needs: tuple[tuple[str, ...], ...]
    pictures: Callable[[Table], Reading]
    labels: Callable[[Table], pa.Table] | None = None
    prompt: str = "prompt"  # the column of prompts; if it is among the needs, every row must have one

    def all_pictures(self, table: Table) -> Reading:
        """Return a reading of `pictures` and of the pictures that they were made from."""
        return with_source(table, self.pictures(table))

    def prompts(self, table: Table) -> Reading:
        return prompts(table, self.prompt, required=(self.prompt,) in self.needs)

    def missing(self, table: Table) -> list[str]:
        """Return what the table lacks, with one text for each need."""
        return [" or ".join(need) for need in self.needs if not table.types.keys() & set(need)]


def _sides(*names: str) -> Callable[[Table], Reading]:
    return lambda table: pictures(table, [picture(table, name) for name in names])


def _hpd(kind: Kind, preference: str, read: Callable[[Table], pa.Table]) -> Format:
    needs = (("prompt",), ("image_path", "file_path"), (preference,))
    return Format(kind, needs, lambda table: listed_pictures(table, labels.hpd_paths(table)), read)


_PLAIN = Format(None, (("image",),), _sides("image"))

# HPD has two shapes; the first one whose needs a table meets is used.
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
    """An open table and its format. Each method makes one pass over the rows."""

    table: Table
    format: RecordFormat
    shape: Format
    images_root: str

    @property
    def path(self) -> str:
        return self.table.path

    @property
    def has_sources(self) -> bool:
        """Whether rows may say what their pictures were made from. Labels then have the column `source`."""
        return source_picture(self.table) is not None

    @property
    def kind(self) -> Kind | None:
        """The kind of the table's labels, or None if it has none."""
        return self.shape.kind

    def place(self, key: str) -> str | None:
        """Return where the picture is that a label names (see embed.addresses)."""
        return place_of(key, join(self.images_root, key))

    def images(self) -> Batches:
        """Yield the pictures as batches of IMAGES, in the table's order. A picture may occur more than once.

        A relative uri is joined to `images_root`. A picture has either bytes or a uri; if it has neither, the table
        names a picture that is missing.
        """
        for _, batch in stream(self.table, {"images": self.shape.all_pictures(self.table)}):
            yield pa.RecordBatch.from_arrays(
                [batch["key"], absolute(batch["uri"], self.images_root), batch["bytes"]], schema=IMAGES
            )

    def prompts(self) -> Batches:
        """Yield the prompts as batches of PROMPTS, each once in a batch."""
        for _, batch in stream(self.table, {"prompts": self.shape.prompts(self.table)}):
            yield batch

    def counts(self) -> dict[Side, int | None]:
        """Return how many rows `images` and `prompts` will give, from one pass for both.

        A number is None if only reading the pictures would tell it. Raise InputError for a row that they would refuse,
        if that can be seen without reading pictures.
        """
        readings: dict[Side, Reading] = {
            "images": self.shape.all_pictures(self.table),
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
        """Return the labels, beginning with the columns of `labels.LABELS[kind]`. Raise InputError for wrong rows."""
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
    """Open a file, shards, a folder or a table in memory. By default the format is recognised by its columns.

    `columns` gives columns of the table a second name, as {ours: theirs}. `images_root` is the folder or URI that
    relative paths start from; by default it is the table's own folder, or the folder of pictures itself. Raise
    InputError if the table is missing, unreadable or empty, or if no format or several formats fit.
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
        f"{table.path} has the columns {', '.join(table.types)}, which fit no format; wanted one of {'; '.join(needs)}."
        " If your columns have other names, say --columns image=YOURS,..."
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
