"""Make a cache of vectors that other tools made. Each vector is checked; files are linked, not copied, if possible.

A .npy file of float16 unit vectors is linked into the cache. Everything else is written to it, one block of rows a
shard. A row that cannot be used is left out and recorded in the ledger. If the job is killed, running it again goes on.
A picture's id is the hash of its vector, because its bytes are not known: pictures with equal vectors count as one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embed.arrays import Bools, Float16s, Floats
from embed.cache.ledger import Ledger
from embed.cache.linked import Adopted
from embed.cache.store import EMBEDDINGS, KEYS, METADATA, Cache, CacheWriter
from embed.config import AdoptConfig
from embed.files import content_id
from embed.jobs.vectors import Block, Part, open_vectors
from embed.progress import Progress, silent
from embed.spec import ADOPTED, Identity, InputError, Side, Source, known_fields

LENGTH_OFF = 2e-3  # how far the length of a unit vector may be from 1 after rounding its numbers to 16 bits
NOT_FINITE, ZERO, NAMELESS = "the vector is missing or not finite", "the vector is zero", "the vector has no name"


@dataclass
class Counts:
    """What one run did for one side of a cache."""

    linked: int = 0
    written: int = 0
    known: int = 0  # vectors in parts that an earlier run has already added
    failed: int = 0


def read_identity(file: Path) -> tuple[Identity, Source]:
    """Read the identity of vectors from a JSON file, and the source that can make more of them.

    The file has the fields of `Identity.declared`, in which case no source can make more; or it is the manifest of a
    cache, head or bundle whose vectors can be compared with these. Raise InputError for any other file.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read as an identity ({error}); wanted JSON such as"
            ' {"model": "acme-clip", "weights": "2024-05", "dim": 512}'
        ) from None
    try:
        if isinstance(data.get("identity"), Mapping) and isinstance(data.get("source"), Mapping):
            return Identity.from_json(data["identity"]), Source(**known_fields(Source, data["source"]))
        identity = Identity.declared(data)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return identity, Source(identity.model, ADOPTED)


def adopt_vectors(
    source: str, identity: Identity, origin: Source, out: Path, config: AdoptConfig, progress: Progress = silent
) -> dict[Side, Counts]:
    """Add the vectors of a folder or table (see embed.jobs.vectors) to the cache `out`, which may be new.

    Raise InputError for vectors of another dimension, and for vectors of another length than 1 unless they are to be
    normalised; what was added before remains. Raise IdentityMismatch if the cache has another identity.
    """
    counts: dict[Side, Counts] = {"images": Counts(), "prompts": Counts()}
    parts = open_vectors(source, config.columns, identity.dim)
    with CacheWriter(out, identity, origin) as writer, progress(None, "vectors", "adopting") as step:
        ledger = Ledger(writer.cache().failures())
        for part in parts:
            names, before = part.names(), counts[part.side]
            if _is_known(part, writer.cache()):
                before.known += len(names)
            else:
                _add(part, names, writer, ledger, config, before)
            step(len(names))
        if ledger.settle():
            writer.replace_failures(ledger.table)
        writer.commit()
    return counts


def _is_known(part: Part, cache: Cache) -> bool:
    state = _state(part, linked=False)
    return any(
        name.startswith(f"{part.side}/") and {**entry, "linked": False} == state
        for name, entry in cache.adopted.items()
    )


def _state(part: Part, linked: bool) -> Adopted:
    stat = part.path.stat()
    return {
        "path": str(part.path.resolve()),
        "size_bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "start": part.start,
        "linked": linked,
    }


def _add(part: Part, names: pa.Table, writer: CacheWriter, ledger: Ledger, config: AdoptConfig, counts: Counts) -> None:
    """Check the vectors of a part, then link or write them, and commit."""
    lengths = _lengths(part)
    good = np.isfinite(lengths) & (lengths > 0) & np.asarray(names["name"].is_valid())
    off = good & (np.abs(lengths - 1) > LENGTH_OFF)
    if off.any() and not config.normalize:
        row = int(np.argmax(off))
        raise InputError(
            f"{part.path}: {off.sum():,} vectors have another length than 1, the first {lengths[row]:.6g} in row"
            f" {part.start + row} (counted from 0), {names['name'][row]}; say --normalize to scale them to length 1"
        )
    entries = dict(writer.cache().adopted)
    fits = part.fits and bool(good.all()) and not off.any()
    state, shard = _state(part, linked=fits and not config.copy), len(writer.cache().files(part.side, "metadata"))
    if state["linked"]:
        ids = [id for block in part.blocks() for id in _ids(block)]
        _append(part.side, names, ids, part.path, writer)
        counts.linked += len(ids)
    else:
        start = 0
        for block in part.blocks():
            rows = slice(start, start + len(block))
            scale = lengths[rows] if off.any() else np.ones(len(block))
            vectors = _stored(block, scale, good[rows])
            if len(vectors):
                _append(part.side, names.slice(start, len(block)).filter(good[rows]), _ids(vectors), vectors, writer)
            start += len(block)
        counts.written += int(good.sum())
    _note_refused(part, names, lengths, good, ledger)
    counts.failed += int((~good).sum())
    if ledger.settle():
        writer.replace_failures(ledger.table)
    if good.any():
        entries[f"{part.side}/{EMBEDDINGS[part.side]}/{EMBEDDINGS[part.side]}_{shard:04d}.npy"] = state
    writer.commit(adopted=entries)


def _lengths(part: Part) -> Floats:
    """Return (n,) lengths of the vectors. A length is not finite if a number of the vector is not."""
    found = [np.sqrt(np.square(block, dtype=np.float64).sum(axis=1)) for block in part.blocks()]
    return np.concatenate([np.empty(0), *found])


def _stored(block: Block, lengths: Floats, good: Bools) -> Float16s:
    """Return the good vectors, scaled to length 1, as float16."""
    return (block[good] / lengths[good, None]).astype(np.float16)


def _ids(vectors: Block) -> list[str]:
    return [content_id(row) for row in np.ascontiguousarray(vectors).view(np.uint8)]


def _append(side: Side, names: pa.Table, ids: list[str], vectors: Float16s | Path, writer: CacheWriter) -> None:
    if side == "prompts":
        texts = [content_id(text.encode()) for text in names["name"].to_pylist()]
        writer.append(side, pa.table([names["name"], texts], METADATA[side].names), text_emb=vectors)
        return
    columns = [names["name"], pa.array(ids, pa.string()), names["width"], names["height"]]
    writer.append(side, pa.table(columns, METADATA[side].names), img_emb=vectors)
    unknown = pa.nulls(len(ids), pa.int64())
    writer.append_keys(pa.table([names["name"], columns[1], unknown, unknown, names["uri"]], KEYS.names))


def _note_refused(part: Part, names: pa.Table, lengths: Floats, good: Bools, ledger: Ledger) -> None:
    """Record rows that are left out in the ledger, under their name or their place, and remove those that are now
    good."""
    if len(ledger.table):
        ledger.mend(names["name"].filter(pa.array(good)).to_pylist())
    for row in np.flatnonzero(~good).tolist():
        name, place = names["name"][row].as_py(), f"{part.path} row {part.start + row}"
        reason = NAMELESS if name is None else ZERO if lengths[row] == 0 else NOT_FINITE
        ledger.add(place if name is None else name, "adopt", reason, place, None, None)
