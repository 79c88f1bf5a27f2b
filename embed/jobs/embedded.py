"""From tables to a cache that says what was done: what `embed cache` and `plaudit.embed` do."""

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

SHOWN = 12  # pictures in a notebook

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Embedded(Artifact, Tabular):
    """A cache on disk, and what was added to it. It can be given wherever the path of a cache can."""

    def _repr_html_(self) -> str:
        cache = self.open()
        names = cache.metadata("images", ["image_path"])["image_path"].slice(0, SHOWN).to_pylist()
        places = cache.places().slice(0, SHOWN).to_pylist()
        shown = [(picture_at([place] if place else []), name, "") for name, place in zip(names, places, strict=True)]
        return lines_html(self.lines) + pictures_html(shown, "The first pictures")

    def open(self) -> Cache:
        """The cache, to read vectors and metadata from."""
        return Cache.open(self.path)

    def to_arrow(self, side: Side = "images") -> pa.Table:
        """A row for each picture of the cache, or for each prompt: its name, its id, its size."""
        return self.open().metadata(side)

    def failures(self) -> pa.Table:
        """What got no vector, and why: key, stage, reason and detail."""
        return self.open().failures()


class EmbeddingOptions(TypedDict, total=False):
    """Options of embedding: the fields of embed.config.EmbeddingConfig, where each is described."""

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
    """Embed the pictures and prompts of tables, each once, into a new cache or one to add to.

    Args:
        tables: A table or several: a path, a folder of pictures, a frame of pandas or polars, or a table of Arrow.
        out: The folder of the cache.
        model: The backbone, a name that `plaudit embed backbones` lists. The starter is for trying things out.
        pretrained: The backbone's weights: a tag of open_clip's, or a checkpoint file.
        images_root: The folder or URL where relative paths of pictures start. By default the table's own folder, or the
            current one for tables in memory.
        format: The format of the tables. By default it is recognised by their columns.
        columns: What the tables call the columns, {ours: theirs}.
        features: The features of pictures that are kept: projected, or these and pooled.
        engine: What computes the vectors. With auto it is the faster of torch and onnx.
        precision: The precision to compute with. With auto it is the fastest that keeps the vectors.
        device: What computes: cpu, cuda, cuda:1 or mps. With auto it is the best one that is there.
        limits: The largest picture that is decoded.
        progress: What is told how far the work is.
        options: More options, such as `batch_size=64` or `workers=4`.

    Raise InputError for tables or options that cannot be used, and where not one picture can be read.
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
    """`build_cache`, with what it did as a result that shows itself."""
    result = build_cache(config, progress)
    keys = ("embedded", "per_s", "known", "failed", "truncated", "in_cache")
    header = ["", "embedded", "per second", "known", "failed", "cut short", "in the cache"]
    rows = [[NOUN[side], *(f"{result[side][key]:,.0f}" for key in keys)] for side in NOUN]
    if failed := result["images"]["failed"]:
        logger.warning(f"{failed:,} pictures failed; python -m embed inspect {config.out} says which and why")
    return Embedded(config.out, tuple(table(header, rows)), result)
