"""Embed tables into a cache, and return a result that describes it: for `embed cache` and `plaudit.embed`."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, Unpack, cast

import pyarrow as pa

from embed.cache.store import Cache
from embed.config import JobDecoding, Limits, Runner, Wanted
from embed.inputs.shown import Artifact, Tabular, lines_html, picture_at, pictures_html
from embed.jobs.build import BuildConfig, build_cache
from embed.progress import Progress, silent
from embed.records.sources import TableSource
from embed.spec import STARTER, Feature, Precision, Side, Source
from embed.wording import NOUN, table

SHOWN = 12  # how many pictures a notebook shows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Embedded(Artifact, Tabular):
    """A cache on disk, and what was added to it. It can be used wherever the path of a cache can."""

    def _repr_html_(self) -> str:
        cache = self.open()
        names = cache.metadata("images", ["image_path"])["image_path"].slice(0, SHOWN).to_pylist()
        places = cache.places().slice(0, SHOWN).to_pylist()
        shown = [(picture_at([place] if place else []), name, "") for name, place in zip(names, places, strict=True)]
        return lines_html(self.lines) + pictures_html(shown, "The first pictures")

    def open(self) -> Cache:
        """Open the cache, to read vectors and metadata from it."""
        return Cache.open(self.path)

    def to_arrow(self, side: Side = "images") -> pa.Table:
        """Return a row for each picture, or each prompt, of the cache: its name, its id, and the size of a picture."""
        return self.open().metadata(side)

    def failures(self) -> pa.Table:
        """Return the inputs that got no vector, and why: key, stage, reason and detail."""
        return self.open().failures()


class EmbeddingOptions(TypedDict, total=False):
    """Options of embedding: fields of embed.config.EmbeddingConfig, which describes each."""

    machine_cache: Path | None
    decoding: JobDecoding
    ignore_exif: bool
    rehash: bool
    batch_size: int | None
    workers: int | None


def embed(
    tables: TableSource | Sequence[TableSource],
    out: str | os.PathLike[str],
    *,
    model: str = STARTER,
    pretrained: str | None = None,
    images_root: str | os.PathLike[str] | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    features: Sequence[Feature] = ("projected",),
    engine: Literal["auto", Runner] = "auto",
    precision: Literal["auto", Precision] = "auto",
    device: str = "auto",
    limits: Limits | None = None,
    progress: Progress = silent,
    **options: Unpack[EmbeddingOptions],
) -> Embedded:
    """Embed the pictures and prompts of tables, each different one once, into a new or existing cache.

    Args:
        tables: One table or several: a path, a folder of pictures, a pandas or polars DataFrame, or an Arrow table.
        out: The folder of the cache.
        model: The backbone, a name that `plaudit embed backbones` lists. The starter is only for trials.
        pretrained: The backbone's weights: a tag of open_clip, or a checkpoint file.
        images_root: The folder or URL that relative paths of pictures start from. By default the table's own folder, or
            the current folder for tables in memory.
        format: The format of the tables. By default it is recognised by their columns.
        columns: The names of your columns, {ours: yours}.
        features: The features of pictures to keep: projected, or projected and pooled.
        engine: The library that computes the vectors. With auto it is the faster of torch and onnx.
        precision: The precision to compute with. With auto it is the fastest that changes the vectors little enough.
        device: The device to compute on: cpu, cuda, cuda:1 or mps. With auto it is the best of this machine.
        limits: The largest picture that is decoded.
        progress: It is called with the progress of the work. By default nothing is shown.
        options: More options, such as `batch_size=64` or `workers=4`.

    Raise InputError if tables or options cannot be used, or if not one picture can be read.
    """
    several = list(tables) if isinstance(tables, list | tuple) else [cast(TableSource, tables)]
    config = BuildConfig(
        tuple(several),
        Path(out),
        Source(model, pretrained),
        Wanted(engine, precision, device),
        limits or Limits(),
        images_root=None if images_root is None else os.fspath(images_root),
        format=format,
        columns=dict(columns or {}),
        features=tuple(features),
        **options,
    )
    return embed_tables(config, progress)


def embed_tables(config: BuildConfig, progress: Progress = silent) -> Embedded:
    """Do the same as `build_cache`, and return a result that shows itself."""
    result = build_cache(config, progress)
    keys = ("embedded", "per_s", "known", "failed", "truncated", "in_cache")
    header = ["", "embedded", "per second", "known", "failed", "cut short", "in the cache"]
    rows = [[NOUN[side], *(f"{result[side][key]:,.0f}" for key in keys)] for side in NOUN]
    if failed := result["images"]["failed"]:
        logger.warning(f"{failed:,} pictures failed; run `plaudit embed inspect {config.out}` to see which and why")
    return Embedded(config.out, tuple(table(header, rows)), result)
