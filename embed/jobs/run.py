"""The embedding job: plan, decode, find what is new, encode, and commit shard by shard.

All steps before the encoder run in a separate thread, decode in processes, and keep a few chunks of pictures ready. The
content of a shard depends only on the order of the data: it is closed after `SHARD_ROWS` new pictures or `SHARD_NAMES`
names. A job that was killed skips what it had committed when it runs again, and cuts the rest into the same shards and
batches, so its cache has the same bytes as one without interruption. Memory does not grow with the number of pictures,
except for 10 bytes for each name and each content. Models are not known here: see embed.engines.encoders.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, astuple, dataclass
from itertools import chain, compress, islice
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from embed.addresses import place_of
from embed.arrays import Bools, Float16s, Float32s, UInt8s
from embed.cache.known import IdSet, Known, name_fingerprint, stack, words
from embed.cache.ledger import Ledger
from embed.cache.store import EMBEDDINGS, KEYS, METADATA, Cache, CacheWriter, ManifestFields
from embed.files import content_id
from embed.inputs.decoding import CHUNK, Chunk, Picture
from embed.inputs.fetch import local_stat
from embed.process.background import ahead
from embed.progress import Step, no_step
from embed.spec import Feature, InputError

Row = TypeVar("Row")

SHARD_ROWS = 8192
SHARD_NAMES = 65536
PLAN_ROWS = 256  # how many records are turned into Python objects at once
AHEAD_CHUNKS = 6  # how many decoded chunks wait for the encoder

# The folder of a cache's images that holds each kind of feature.
FEATURE_FOLDERS: dict[Feature, str] = {"projected": EMBEDDINGS["images"], "pooled": "pooled_emb"}


class Encoder(Protocol):
    """Turns pixels and prompts into unit vectors. The model is loaded at the first call."""

    batch_size: int
    features: tuple[Feature, ...]

    def images(self, pixels: UInt8s) -> list[Float32s]:
        """Return (n, d) float32 unit vectors for each of `features`, from uint8 (n, h, w, 3), n <= `batch_size`."""
        ...

    def prompts(self, prompts: Sequence[str]) -> tuple[Float32s, int]:
        """Return (n, d) float32 unit vectors, and how many prompts were cut to the context length."""
        ...


class Records(Protocol):
    """One table of data, as embed.records.formats reads it."""

    def images(self) -> Iterator[pa.RecordBatch]:
        """Yield batches with the columns key, uri and bytes."""
        ...

    def prompts(self) -> Iterator[pa.RecordBatch]:
        """Yield batches with the column text."""
        ...


class Decoder(Protocol):
    """Decodes the pictures of chunks and yields the chunks in order, such as embed.inputs.decoding.DecodePool."""

    def run(self, chunks: Iterable[Chunk]) -> Generator[Chunk, None, None]: ...

    def close(self) -> None: ...


@dataclass
class Counts:
    """What one run did for one side of a cache."""

    embedded: int = 0
    known: int = 0  # records that needed no vector: known names and prompts, and pictures equal to another
    failed: int = 0
    truncated: int = 0
    elapsed_s: float = 0.0

    def to_json(self) -> dict[str, float]:
        return {**asdict(self), "per_s": self.embedded / self.elapsed_s if self.elapsed_s else 0.0}


def embed_images(
    tables: Iterable[Records],
    writer: CacheWriter,
    encoder: Encoder,
    decoder: Decoder,
    *,
    rehash: bool = False,
    step: Step = no_step,
    fields: ManifestFields | None = None,
) -> Counts:
    """Add all pictures of the tables that the cache lacks. `fields` go into its manifest with the first commit.

    A local file whose size and modification time are those in the cache is not read, unless `rehash` is set. `step` is
    called with the number of records that are done.
    """
    counts, start = Counts(), time.monotonic()
    ledger = Ledger(writer.cache().failures())
    shard = _ImageShard(writer, encoder, ledger, fields or {})
    known = Known(writer.cache(), rehash)
    with ahead(_settled(tables, known, decoder), AHEAD_CHUNKS) as stream, closing(decoder):
        for chunk, new, named in stream:
            for picture, is_new, is_named in zip(chunk.pictures, new, named, strict=True):
                shard.add(picture, is_new, is_named)
            failed = sum(picture.failure is not None for picture in chunk.pictures)
            records = chunk.skipped + len(chunk.pictures)
            counts.embedded += sum(new)
            counts.failed += failed
            counts.known += records - sum(new) - failed
            step(records, f"failures={counts.failed}")
    shard.commit()
    counts.elapsed_s = time.monotonic() - start
    return counts


def embed_prompts(
    tables: Iterable[Records],
    writer: CacheWriter,
    encoder: Encoder,
    *,
    step: Step = no_step,
    fields: ManifestFields | None = None,
) -> Counts:
    """Add all prompts of the tables that the cache lacks. `fields` and `step` are as in `embed_images`."""
    counts, start = Counts(), time.monotonic()
    cache = writer.cache()

    def encode(prompts: list[str]) -> list[Float32s]:
        vectors, truncated = encoder.prompts(prompts)
        counts.truncated += truncated
        return [vectors]

    batches = _Batches(encode, encoder.batch_size)
    rows: list[tuple[str, str]] = []

    def commit() -> None:
        if rows:
            (vectors,) = batches.take()
            writer.append("prompts", _table(rows, METADATA["prompts"]), text_emb=vectors)
            writer.commit(**(fields or {}))
            rows.clear()

    for texts, ids, new in _new_prompts(tables, cache):
        for text, id, is_new in zip(texts, ids, new, strict=True):
            if is_new:
                batches.add(text)
                rows.append((text, id))
                if len(rows) == SHARD_ROWS:
                    commit()
        counts.embedded += int(new.sum())
        counts.known += len(new) - int(new.sum())
        step(len(new))
    commit()
    counts.elapsed_s = time.monotonic() - start
    return counts


def new_pictures(tables: Iterable[Records], cache: Cache) -> Generator[Chunk, None, None]:
    """Yield the pictures that the cache lacks, not yet read, in chunks."""
    yield from _plan(tables, Known(cache, rehash=False))


def sample_pixels(tables: Iterable[Records], cache: Cache, decoder: Decoder, count: int) -> UInt8s | None:
    """Return the pixels of the first pictures that the cache lacks: uint8 (n, h, w, 3), n at most `count`, or None."""
    pixels: list[UInt8s] = []
    with closing(decoder), closing(decoder.run(new_pictures(tables, cache))) as chunks:
        for chunk in chunks:
            pixels += [picture.pixels for picture in chunk.pictures if picture.pixels is not None]
            if len(pixels) >= count:
                break
    return np.stack(pixels[:count]) if pixels else None


def sample_prompts(tables: Iterable[Records], cache: Cache, count: int) -> list[str]:
    """Return the first prompts that the cache lacks, at most `count`."""
    found = (compress(texts, new) for texts, _, new in _new_prompts(tables, cache))
    return list(islice(chain.from_iterable(found), count))


def _new_prompts(tables: Iterable[Records], cache: Cache) -> Iterator[tuple[list[str], list[str], Bools]]:
    """Yield prompts, their ids, and which of them neither the cache nor this iterator has met before."""
    known = IdSet()
    for file in cache.files("prompts", "metadata"):
        known.add(words(cache.column(file, "prompt_id")))
    for records in tables:
        for batch in records.prompts():
            for part in _parts(batch):
                ids = [content_id(text.encode()) for text in part["text"]]
                yield part["text"], ids, known.add(words(ids))


def _settled(
    tables: Iterable[Records], known: Known, decoder: Decoder
) -> Generator[tuple[Chunk, list[bool], list[bool]], None, None]:
    """Yield decoded chunks in the order of the data, and which of their pictures and which of their names are new."""
    for chunk in decoder.run(_plan(tables, known)):
        for picture in chunk.pictures:
            picture.data = None
        read = [picture for picture in chunk.pictures if picture.failure is None]
        new = iter(known.contents.add(words([str(picture.id) for picture in read])))
        named = iter(known.note([_name(picture) for picture in read]))
        sound = [picture.failure is None for picture in chunk.pictures]
        yield chunk, [ok and bool(next(new)) for ok in sound], [ok and bool(next(named)) for ok in sound]


def _plan(tables: Iterable[Records], known: Known) -> Iterator[Chunk]:
    """Yield chunks of the pictures that must be looked at."""
    chunk = Chunk([])
    for records in tables:
        for batch in records.images():
            for part in _parts(batch):
                for picture in _unmet(part, known):
                    if picture is None:
                        chunk.skipped += 1
                    else:
                        chunk.pictures.append(picture)
                    if len(chunk.pictures) == CHUNK or chunk.skipped == SHARD_ROWS:
                        yield chunk
                        chunk = Chunk([])
    yield chunk


def _unmet(part: dict[str, list[Any]], known: Known) -> Iterator[Picture | None]:
    """Yield for each record its picture, or None if its name was met before, in this run or an earlier one."""
    pictures = [_picture(*row) for row in zip(part["key"], part["uri"], part["bytes"], strict=True)]
    unmet = known.names.add(stack([name_fingerprint(*_name(picture)) for picture in pictures]))
    in_table = [picture for picture in pictures if picture.id is not None]
    for picture, has in zip(in_table, known.has([str(picture.id) for picture in in_table]), strict=True):
        picture.known = bool(has)
    return (picture if is_unmet else None for picture, is_unmet in zip(pictures, unmet, strict=True))


def _parts(batch: pa.RecordBatch) -> Iterator[dict[str, list[Any]]]:
    for start in range(0, len(batch), PLAN_ROWS):
        yield batch.slice(start, PLAN_ROWS).to_pydict()


def _picture(key: str, uri: str | None, data: bytes | None) -> Picture:
    if data is not None:
        return Picture(key, None, data, id=content_id(data))
    size_bytes, mtime_ns = (local_stat(uri) if uri is not None else None) or (None, None)
    return Picture(key, uri, None, size_bytes, mtime_ns)


def _name(picture: Picture) -> tuple[str, str | None, int | None, int | None]:
    """Return the picture's row in the columns NAMED of a cache's keys."""
    return picture.key, picture.id, picture.size_bytes, picture.mtime_ns


class _ImageShard:
    """New pictures, new names and new failures, until the next commit."""

    def __init__(self, writer: CacheWriter, encoder: Encoder, ledger: Ledger, fields: ManifestFields) -> None:
        self._writer = writer
        self._ledger = ledger
        self._fields = fields
        self._folders = [FEATURE_FOLDERS[name] for name in encoder.features]
        self._batches: _Batches[UInt8s] = _Batches(lambda rows: encoder.images(np.stack(rows)), encoder.batch_size)
        self._rows: list[tuple[str, str, int, int]] = []
        self._names: list[tuple[str, str | None, int | None, int | None, str | None]] = []
        self._scaled = 0

    def add(self, picture: Picture, new: bool, named: bool) -> None:
        """Add a picture. `new` means that it needs a row of its own, `named` that its name is new."""
        if picture.failure is not None:
            self._ledger.add(picture.key, *astuple(picture.failure), picture.size_bytes, picture.mtime_ns)
        if new:
            # A copy, because a view would keep the pixels of the whole chunk in memory.
            self._batches.add(np.array(picture.pixels))
            self._rows.append((picture.key, str(picture.id), picture.width, picture.height))
            self._scaled += picture.scaled
        if named:
            self._names.append((*_name(picture), place_of(picture.key, picture.uri)))
        if len(self._rows) == SHARD_ROWS or len(self._names) == SHARD_NAMES:
            self.commit()
        elif self._ledger.pending() >= SHARD_NAMES:
            self._write_ledger()
            self._writer.commit(**self._fields)

    def commit(self) -> None:
        if self._scaled:
            *others, latest = self._fields["decoding"]
            latest = {**latest, "pictures": latest["pictures"] + self._scaled}
            self._fields = {**self._fields, "decoding": [*others, latest]}
        if self._rows:
            arrays = dict(zip(self._folders, self._batches.take(), strict=True))
            self._writer.append("images", _table(self._rows, METADATA["images"]), **arrays)
        if self._names:
            self._writer.append_keys(_table(self._names, KEYS))
            self._ledger.mend([name for name, *_ in self._names])
        if self._write_ledger() or self._rows or self._names:
            self._writer.commit(**self._fields)
        self._rows, self._names, self._scaled = [], [], 0

    def _write_ledger(self) -> bool:
        changed = self._ledger.settle()
        if changed:
            self._writer.replace_failures(self._ledger.table)
        return changed


class _Batches(Generic[Row]):
    """Runs rows through the encoder in batches. Every shard begins a new batch."""

    def __init__(self, encode: Callable[[list[Row]], list[Float32s]], size: int) -> None:
        self._encode = encode
        self._size = size
        self._rows: list[Row] = []
        self._vectors: list[list[Float16s]] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == self._size:
            self._flush()

    def take(self) -> list[Float16s]:
        """Return (n, d) float16 of every feature, for the rows that were added since the last call."""
        self._flush()
        vectors, self._vectors = self._vectors, []
        return [np.concatenate(arrays) for arrays in zip(*vectors, strict=True)]

    def _flush(self) -> None:
        if not self._rows:
            return
        vectors = [array.astype(np.float16) for array in self._encode(self._rows)]
        self._rows = []
        if not all(np.isfinite(array).all() for array in vectors):
            raise InputError("the backbone gave vectors that are not finite; try --precision fp32")
        self._vectors.append(vectors)


def _table(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    columns = zip(zip(*rows, strict=True), schema, strict=True)
    return pa.table([pa.array(values, field.type) for values, field in columns], schema)
