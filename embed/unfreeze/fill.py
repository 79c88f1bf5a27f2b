"""`embed cache --boundary`: compute the activations at a mode's cut for the pictures and prompts of a cache.

It works for old and new caches. It finds the rows without activations, says how large these will be, decodes the
pictures and runs the frozen part below the cut. If it is killed, running it again goes on after the last part.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch

from embed.arrays import Float32s, Int32s, Ints, UInt8s
from embed.backbones.backbone import Backbone, unit
from embed.backbones.load import load_backbone
from embed.cache.boundary import Boundary, PartWriter, decode, encode, row_bytes
from embed.cache.ledger import Ledger
from embed.cache.store import ID_COLUMN, CacheWriter, StoredDtype
from embed.config import BoundaryConfig
from embed.devices import resolve_device
from embed.graphs.trace import certificate
from embed.inputs.decoding import CHUNK, Chunk, DecodePool, Picture
from embed.jobs.build import BuildConfig
from embed.jobs.run import Decoder, Records
from embed.modes import WHOLE
from embed.progress import Progress, Step, silent
from embed.spec import InputError, Side
from embed.unfreeze.cut import Cut
from embed.unfreeze.families import block_counts, cut_pictures, cut_prompts
from embed.wording import NOUN

logger = logging.getLogger(__name__)

CERTIFIED = 64  # how many inputs the error of the stored type is measured on
GB = 10**9


class Added(TypedDict):
    """What was done for one side. The certificate says how storing changes the vectors; None if it was not measured."""

    rows: int
    missing: int  # rows whose picture was not found or could not be read; the ledger lists these
    size_bytes: int
    boundary: str
    certificate: dict[str, Any] | None


def extend_cache(config: BuildConfig, boundary: BoundaryConfig, progress: Progress = silent) -> dict[Side, Added]:
    """Add the activations of a mode, from the tables of `config`, to its cache; see `add_boundary`.

    The size is logged before the work begins. Raise InputError if it is too large.
    """
    device = resolve_device(config.wanted.device)
    boundary = replace(boundary, device=device, batch_size=config.batch_size or (32 if device == "cpu" else 256))
    backbone = load_backbone(config.source)
    preprocess = replace(backbone.identity.preprocess, ignore_exif=config.ignore_exif)
    tables = config.records
    with CacheWriter(config.out, replace(backbone.identity, preparation=preprocess), config.source) as writer:
        work = plan_boundary(writer, backbone, boundary)
        for todo in work:
            logger.info(f"{todo.side}: {len(todo.rows):,} rows to add, {todo.size_bytes / GB:,.3f} GB of {todo.dtype}")
        workers = config.workers or os.cpu_count() or 1
        decoder = DecodePool(preprocess, config.limits, workers, scale=writer.cache().scale)
        return add_boundary(writer, tables, work, decoder, boundary, progress)


@dataclass
class Todo:
    """The work for one side: a cut, and the rows of the cache that lack its activations."""

    side: Side
    cut: Cut
    dtype: StoredDtype
    rows: Ints
    size_bytes: int
    tokens: Int32s | None = None  # (len(rows), c) int32 for prompts


def plan_boundary(writer: CacheWriter, backbone: Backbone, config: BoundaryConfig) -> list[Todo]:
    """Return what must be done for a mode, with its exact size.

    Raise InputError if it is larger than `max_bytes` or than the free space on the disk.
    """
    model, preprocess = backbone.model, backbone.identity.preprocess
    visual, text = config.mode.depths(*block_counts(model, preprocess))
    cache = writer.cache()
    work = []
    if visual:
        cut = cut_pictures(model.visual, visual, preprocess)
        dtype: StoredDtype = "uint8" if visual == WHOLE else config.dtype
        shape: tuple[int, ...] = (*preprocess.size, 3)
        if visual != WHOLE:
            with torch.inference_mode():
                shape = tuple(cut.below(torch.zeros((1, *preprocess.size, 3), dtype=torch.uint8))[0].shape[1:])
        rows = _lacking(Boundary(cache, "images", visual, dtype), cache.count("images"))
        work.append(Todo("images", cut, dtype, rows, len(rows) * row_bytes(shape, dtype)))
    if text not in (0, WHOLE):  # tokens are made from the prompts themselves
        cut = cut_prompts(model.text, text)
        rows = _lacking(Boundary(cache, "prompts", text, config.dtype), cache.count("prompts"))
        prompts = cache.metadata("prompts", ["caption"])["caption"].take(rows).to_pylist()
        tokens = backbone.tokenize(prompts)
        lengths = cut.lengths(torch.from_numpy(tokens))
        count = tokens.size if lengths is None else int(lengths.sum())
        with torch.inference_mode():
            width = cut.below(torch.from_numpy(backbone.tokenize(["a"])))[0].shape[-1]
        work.append(Todo("prompts", cut, config.dtype, rows, count * row_bytes((1, width), config.dtype), tokens))
    size_bytes, free = sum(todo.size_bytes for todo in work), shutil.disk_usage(cache.path).free
    if size_bytes > config.max_bytes:
        raise InputError(
            f"the boundary of {config.mode.name} would take {size_bytes / GB:.2f} GB, but --max-gb is"
            f" {config.max_bytes / GB:g}; raise it, or choose --boundary-dtype int8 or another mode"
        )
    if size_bytes > free:
        raise InputError(f"the boundary would take {size_bytes / GB:.2f} GB; {cache.path} has {free / GB:.2f} GB free")
    return work


def add_boundary(
    writer: CacheWriter,
    tables: Iterable[Records],
    work: Iterable[Todo],
    decoder: Decoder,
    config: BoundaryConfig,
    progress: Progress = silent,
) -> dict[Side, Added]:
    """Do the work that `plan_boundary` returned, and return for each side what was done."""
    done: dict[Side, Added] = {}
    for todo in work:
        parts = PartWriter(writer, todo.side, todo.cut.depth, todo.dtype)
        below = _Below(todo, parts, config)
        with progress(len(todo.rows), NOUN[todo.side], NOUN[todo.side]) as step:
            if todo.side == "images":
                _pictures(writer, tables, todo, decoder, below, config.batch_size, step)
            else:
                assert todo.tokens is not None
                for start in range(0, len(todo.rows), config.batch_size):
                    part = slice(start, start + config.batch_size)
                    below.add(todo.rows[part], todo.tokens[part])
                    step(len(todo.rows[part]))
            below.finish()
        entry = writer.cache().boundaries[parts.name]
        done[todo.side] = {
            "rows": below.rows,
            "missing": len(todo.rows) - below.rows,
            "size_bytes": todo.size_bytes,
            "boundary": parts.name,
            "certificate": entry.get("certificate"),
        }
    return done


class _Below:
    """Runs inputs through the frozen part and stores the results. The first ones measure the error of storing."""

    def __init__(self, todo: Todo, parts: PartWriter, config: BoundaryConfig) -> None:
        self._cut = todo.cut.to(config.device).eval()
        self._dtype, self._device = todo.dtype, config.device
        self._parts = parts
        self._exact: list[Float32s] = []
        self._kept: list[Float32s] = []
        self.rows = 0

    @torch.inference_mode()
    def add(self, rows: Ints, inputs: UInt8s | Int32s) -> None:
        values, lengths = self._cut.below(torch.from_numpy(inputs).to(self._device))
        if self._dtype != "uint8" and sum(map(len, self._exact)) < CERTIFIED:
            self._measure(values, lengths)
        self._parts.add(rows, values.cpu(), None if lengths is None else lengths.cpu())
        self.rows += len(rows)

    def _measure(self, values: torch.Tensor, lengths: torch.Tensor | None) -> None:
        kept = decode(*encode(values.cpu(), self._dtype), self._dtype).to(self._device)
        for found, given in ((self._exact, values), (self._kept, kept)):
            found.append(unit(self._cut.above(given, lengths)[1]).cpu().numpy())

    def finish(self) -> None:
        measured = None
        if self._exact:
            measured = certificate(self._dtype, np.concatenate(self._exact), np.concatenate(self._kept)).to_json()
        self._parts.commit(measured)


def _lacking(boundary: Boundary, count: int) -> Ints:
    return np.flatnonzero(~boundary.has(np.arange(count)))


def _pictures(
    writer: CacheWriter,
    tables: Iterable[Records],
    todo: Todo,
    decoder: Decoder,
    below: _Below,
    batch_size: int,
    step: Step,
) -> None:
    cache = writer.cache()
    ids = cache.metadata("images", [ID_COLUMN["images"]])[ID_COLUMN["images"]].take(todo.rows).to_pylist()
    row_of = dict(zip(ids, todo.rows.tolist(), strict=True))
    keys = cache.keys()
    names = zip(keys["image_path"].to_pylist(), keys["image_id"].to_pylist(), strict=True)
    wanted = {key: id for key, id in names if id in row_of}
    ledger = Ledger(cache.failures())
    batch: list[tuple[int, UInt8s]] = []

    def flush() -> None:
        if batch:
            rows, pixels = zip(*batch, strict=True)
            below.add(np.array(rows), np.stack(pixels))
            step(len(batch), f"failures={ledger.added}")
            batch.clear()

    with closing(decoder), closing(decoder.run(_chunks(tables, wanted))) as chunks:
        for chunk in chunks:
            for picture in chunk.pictures:
                row = None if picture.id is None else row_of.pop(picture.id, None)
                if picture.failure is not None:
                    ledger.add(picture.key, *astuple(picture.failure), picture.size_bytes, picture.mtime_ns)
                elif row is not None:
                    batch.append((row, np.array(picture.pixels)))
                    if len(batch) == batch_size:
                        flush()
    flush()
    if ledger.settle():
        writer.replace_failures(ledger.table)
        writer.commit()


def _chunks(tables: Iterable[Records], wanted: dict[str, str]) -> Iterator[Chunk]:
    """Yield the pictures to decode: each content once, under its first name in the tables.

    Reading stops when all were found.
    """
    left = set(wanted.values())
    chunk = Chunk([])
    for batch in (batch for records in tables if left for batch in records.images()):
        columns = batch.to_pydict()
        for key, uri, data in zip(columns["key"], columns["uri"], columns["bytes"], strict=True):
            id = wanted.get(key)
            if id in left:
                left.discard(id)
                chunk.pictures.append(Picture(key, uri, data))
            if len(chunk.pictures) == CHUNK:
                yield chunk
                chunk = Chunk([])
        if not left:
            break
    yield chunk
