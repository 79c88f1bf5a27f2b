"""How a job decodes JPEGs: exactly, on a device, or at the smallest scale whose vectors are close enough to exact ones.

Like the precision of an engine, this is not part of a cache's identity. It is measured on the first such pictures of
the job and recorded in the manifest. The measurement shows only the effect of decoding, because the job's own engine
makes both vectors. A cache keeps the way of its latest pictures unless another one is asked for.
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
from embed.jobs.on_device import DeviceDecoder
from embed.jobs.run import Decoder, Encoder, Records, new_pictures
from embed.progress import stage
from embed.spec import InputError

CERTIFIED = 32  # how many pictures a way is measured on, of those that it changes
LOOKED_AT = 256  # how many pictures are looked through to find these
GIVEN_UP = 64  # if none of this many pictures is changed, `auto` stops looking
TOGETHER = 8  # how many pictures one process decodes in the trial

Decode = Callable[[Sequence[Picture]], list[Picture]]  # gives decoded copies of pictures

EXACT: DecodingEntry = {"scale": None, "rows": 0, "cosine_mean": 1.0, "cosine_min": 1.0, "pictures": 0}


def with_decoding(cache: Cache, entry: DecodingEntry) -> list[DecodingEntry]:
    """Return the cache's entries with `entry` as the latest; an exact first one needs no entry."""
    notes = cache.decoding
    latest = notes[-1] if notes else EXACT
    return notes if entry == latest else [*notes, entry]


def kept_decoding(cache: Cache, policy: str, min_cosine: float) -> DecodingEntry | None:
    """Return how pictures are decoded if that needs no measuring, else None.

    That is so if exact decoding is asked for, or if the cache's own way is close enough.
    """
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
    """Return the smallest scale that keeps a cosine of `min_cosine` on the first large pictures that the cache lacks.

    Return EXACT if there is no such scale or no large picture.

    Raise InputError if scaling is `required` and no scale is close enough.
    """
    first = list(islice(_changed(new_pictures(tables, cache), _at(pool, SCALES[0]), required), CERTIFIED))
    large = [unread for unread, _ in first]
    exact = _at(pool, None)(large)
    found: list[DecodingEntry] = []
    for scale in SCALES:
        scaled = [done for _, done in first] if scale == SCALES[0] else _at(pool, scale)(large)
        entry = _measured(exact, scaled, encoder)
        if entry is None:
            break  # from this scale on, all are decoded at full size
        found.append({**entry, "scale": scale})
        if entry["cosine_min"] >= min_cosine:
            return found[-1]
    if required and found:
        measured = ", ".join(f"at {entry['scale']}: {entry['cosine_min']:.6f}" for entry in found)
        raise InputError(
            f"at no scale do large pictures keep a cosine of {min_cosine} to exact decoding (measured {measured});"
            " ask for --decoding exact, or lower --min-cosine"
        )
    return EXACT


@stage("trying to decode on the device")
def choose_device(
    tables: Sequence[Records],
    cache: Cache,
    pool: DecodePool,
    device: DeviceDecoder,
    encoder: Encoder,
    min_cosine: float,
) -> DecodingEntry:
    """Return the device's way if it can decode any of the first pictures that the cache lacks, else EXACT.

    Raise InputError if its vectors do not keep a cosine of `min_cosine`.
    """
    first = list(islice(_changed(new_pictures(tables, cache), lambda some: _run(some, device), True), CERTIFIED))
    entry = _measured(_at(pool, None)([unread for unread, _ in first]), [done for _, done in first], encoder)
    if entry is None:
        return EXACT
    if entry["cosine_min"] < min_cosine:
        raise InputError(
            f"decoded on the device, pictures do not keep a cosine of {min_cosine} to exact decoding (measured"
            f" {entry['cosine_min']:.6f} on {entry['rows']}); ask for --decoding exact, or lower --min-cosine"
        )
    return {**entry, "decoder": "device", "library": device.library}


def _measured(exact: Sequence[Picture], others: Sequence[Picture], encoder: Encoder) -> DecodingEntry | None:
    """Measure how close the vectors of `others` are to exact ones. Return None if all of them were decoded exactly."""
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
    """Yield, as (not yet read, decoded), those of the first pictures that this way does not decode exactly."""
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
    """Return a function that decodes pictures with the pool at a scale; None is exact."""

    def decode(unread: Sequence[Picture]) -> list[Picture]:
        pool.scale = scale
        return _run(unread, pool)

    return decode


def _run(unread: Iterable[Picture], decoder: Decoder) -> list[Picture]:
    """Return decoded copies of the pictures."""
    copies = [replace(picture) for picture in unread]
    parts = [Chunk(copies[i : i + TOGETHER]) for i in range(0, len(copies), TOGETHER)]
    return [picture for part in decoder.run(parts) for picture in part.pictures]


def _vectors(pixels: UInt8s, encoder: Encoder) -> list[Float32s]:
    """Return (n, d) vectors of each feature."""
    size = encoder.batch_size
    batches = [encoder.images(pixels[i : i + size]) for i in range(0, len(pixels), size)]
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]
