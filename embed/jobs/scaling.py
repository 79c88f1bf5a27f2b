"""How JPEGs are decoded in a job: exactly, or in another way whose vectors are near enough to the exact ones, which is
on a device, or at the least scale that passes.

Like the precision of an engine that is no part of a cache's identity: it is certified, on the first such pictures of
the job itself, and noted in the manifest. What is measured is the decoding alone: both vectors come from the job's
engine. A cache keeps the way of its latest pictures unless another one is asked for.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from embed.arrays import Float32s, UInt8s, cosines
from embed.cache.store import Cache, DecodingEntry
from embed.inputs.decoding import Chunk, DecodePool, Picture
from embed.inputs.scaled import SCALES
from embed.jobs.run import Decoder, Encoder, Records, new_pictures
from embed.progress import stage
from embed.spec import InputError

CERTIFIED = 32  # pictures on which a way is measured, of those that it changes
LOOKED_AT = 256  # pictures among which they are looked for
GIVEN_UP = 64  # where none of so many is changed, `auto` does not look further
TOGETHER = 8  # pictures that one process decodes for the trial

Decode = Callable[[Sequence[Picture]], list[Picture]]  # copies of pictures, decoded in a way

EXACT: DecodingEntry = {"scale": None, "rows": 0, "cosine_mean": 1.0, "cosine_min": 1.0, "pictures": 0}


def with_decoding(cache: Cache, entry: DecodingEntry) -> list[DecodingEntry]:
    """The cache's notes with `entry` as the latest; none where all its pictures are exact."""
    notes = cache.decoding
    latest = notes[-1] if notes else EXACT
    return notes if entry == latest else [*notes, entry]


def kept_decoding(cache: Cache, policy: str, min_cosine: float) -> DecodingEntry | None:
    """How pictures are decoded, where that needs no measuring: it is exact, or the cache's own way is good enough."""
    if policy == "exact":
        return EXACT
    latest = cache.decoding[-1] if cache.decoding else EXACT if cache.count("images") else None
    if latest is None or (policy == "scaled" and latest["scale"] is None):
        return None
    if policy == "device" and "decoder" not in latest:
        return None
    return latest if latest["cosine_min"] >= min_cosine else None


@stage("trying how to decode large JPEGs")
def choose_decoding(
    tables: Sequence[Records], cache: Cache, pool: DecodePool, encoder: Encoder, required: bool, min_cosine: float
) -> DecodingEntry:
    """The least scale that keeps a cosine of `min_cosine` on the first large pictures that the cache lacks, and exact
    where there is none such or no large picture.

    Raise InputError if scaling is `required` and no scale passes.
    """
    first = list(islice(_changed(new_pictures(tables, cache), _at(pool, SCALES[0]), required), CERTIFIED))
    large = [unread for unread, _ in first]
    exact = _at(pool, None)(large)
    found: list[DecodingEntry] = []
    for scale in SCALES:
        scaled = [done for _, done in first] if scale == SCALES[0] else _at(pool, scale)(large)
        entry = _measured(exact, scaled, encoder)
        if entry is None:
            break  # at this scale and beyond, all are decoded as they are
        found.append({**entry, "scale": scale})
        if entry["cosine_min"] >= min_cosine:
            return found[-1]
    if required and found:
        measured = ", ".join(f"at {entry['scale']}: {entry['cosine_min']:.6f}" for entry in found)
        raise InputError(
            f"at no scale do large pictures keep a cosine of {min_cosine} to exact ones (measured {measured});"
            " ask for --decoding exact, or lower --min-cosine"
        )
    return EXACT


@stage("trying to decode on the device")
def choose_device(
    tables: Sequence[Records],
    cache: Cache,
    pool: DecodePool,
    device: Decoder,
    encoder: Encoder,
    min_cosine: float,
) -> DecodingEntry:
    """The `device`, if it takes any of the first pictures that the cache lacks; exact if not.

    Raise InputError if its vectors do not keep a cosine of `min_cosine`.
    """
    first = list(islice(_changed(new_pictures(tables, cache), lambda some: _run(some, device), True), CERTIFIED))
    entry = _measured(_at(pool, None)([unread for unread, _ in first]), [done for _, done in first], encoder)
    if entry is None:
        return EXACT
    if entry["cosine_min"] < min_cosine:
        raise InputError(
            f"decoded on the device, pictures do not keep a cosine of {min_cosine} to exact ones (measured"
            f" {entry['cosine_min']:.6f} on {entry['rows']}); ask for --decoding exact, or lower --min-cosine"
        )
    return {**entry, "decoder": "device"}


def _measured(exact: Sequence[Picture], others: Sequence[Picture], encoder: Encoder) -> DecodingEntry | None:
    """How near the vectors of the other pictures are, as far as these were decoded otherwise; None if none was."""
    pairs = [
        (one.pixels, other.pixels)
        for one, other in zip(exact, others, strict=True)
        if other.scaled and one.pixels is not None and other.pixels is not None
    ]
    if not pairs:
        return None
    ours, theirs = (_vectors(np.stack(pixels), encoder) for pixels in zip(*pairs, strict=True))
    cosine = np.concatenate([cosines(*features) for features in zip(ours, theirs, strict=True)])
    mean, least = (math.floor(1e6 * float(value)) / 1e6 for value in (cosine.mean(), cosine.min()))
    return {"scale": None, "rows": len(pairs), "cosine_mean": mean, "cosine_min": least, "pictures": 0}


def _changed(chunks: Iterator[Chunk], decode: Decode, required: bool) -> Iterator[tuple[Picture, Picture]]:
    """Those of the first pictures that are not decoded exactly: not yet read, and decoded."""
    seen = found = 0
    for chunk in chunks:
        unread = [replace(picture) for picture in chunk.work()]
        for before, after in zip(unread, decode(unread), strict=True):
            seen += 1
            if after.scaled:
                found += 1
                yield before, after
        if seen >= LOOKED_AT or (seen >= GIVEN_UP and not found and not required):
            return


def _at(pool: DecodePool, scale: int | None) -> Decode:
    """The pool's way at a scale."""

    def decode(unread: Sequence[Picture]) -> list[Picture]:
        pool.scale = scale
        return _run(unread, pool)

    return decode


def _run(unread: Iterable[Picture], decoder: Decoder) -> list[Picture]:
    """Copies of the pictures, decoded."""
    copies = [replace(picture) for picture in unread]
    parts = [Chunk(copies[i : i + TOGETHER]) for i in range(0, len(copies), TOGETHER)]
    return [picture for part in decoder.run(parts) for picture in part.pictures]


def _vectors(pixels: UInt8s, encoder: Encoder) -> list[Float32s]:
    """(n, d) of each feature."""
    size = encoder.batch_size
    batches = [encoder.images(pixels[i : i + size]) for i in range(0, len(pixels), size)]
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]
