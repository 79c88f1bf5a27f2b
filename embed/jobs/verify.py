"""Describe what a cache holds, and check that its content has not changed."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.arrays import Floats, Ints, UInt8s, cosines
from embed.cache.store import Cache
from embed.engines.choice import Engine
from embed.engines.towers import Towers
from embed.files import sha256_file
from embed.inputs.decoding import Picture, decode
from embed.inputs.images import Limits
from embed.jobs.run import Records
from embed.progress import Progress, silent
from embed.spec import InputError, Side, known_fields, require_same_identity


def inspect_cache(cache: Cache) -> dict[str, Any]:
    """Return identity, engines, counts, and the failures by reason, the most frequent first."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in cache.failures().select(["stage", "reason", "key"]).to_pylist():
        grouped.setdefault((row["stage"], row["reason"]), []).append(row["key"])
    reasons = [
        {"stage": stage, "reason": reason, "count": len(keys), "example": keys[0]}
        for (stage, reason), keys in sorted(grouped.items(), key=lambda item: -len(item[1]))
    ]
    return {
        "cache": str(cache.path),
        "identity": cache.identity.to_json(),
        "source": {"model": cache.source.model, "pretrained": cache.source.pretrained},
        "engines": engines_of(cache),
        "decoding": cache.decoding,
        "images": cache.count("images"),
        "names": len(cache.keys()),
        "prompts": cache.count("prompts"),
        "failures": len(cache.failures()),
        "adopted": cache.adopted,
        "boundary": cache.boundaries,
        "reasons": reasons,
    }


def engines_of(cache: Cache) -> list[tuple[Side, str]]:
    """Return (side, engine) for all engines that made vectors of the cache."""
    return [
        (side, str(Engine(**known_fields(Engine, entry))))
        for side, entries in cache.manifest.get("engines", {}).items()
        for entry in entries
    ]


def damaged_files(cache: Cache, progress: Progress = silent) -> list[str]:
    """Return the committed files that are missing or whose bytes have changed."""
    damaged = []
    with progress(len(cache.manifest["files"]), "files", "hashes") as step:
        for name, entry in cache.manifest["files"].items():
            path = cache.path / name
            if not path.is_file() or sha256_file(path) != entry["sha256"]:
                damaged.append(name)
            step()
    return damaged


def sample_rows(count: int, size: int) -> Ints:
    """Return up to `size` row numbers, evenly spread over `count` rows."""
    return np.unique(np.linspace(0, count - 1, min(size, count)).astype(np.int64)) if count else np.empty(0, np.int64)


def compare_prompts(cache: Cache, towers: Towers, size: int) -> Floats:
    """Return (m,) cosines between stored vectors and those that torch in fp32 computes for the same prompts now."""
    rows = sample_rows(cache.count("prompts"), size)
    if not len(rows):
        return np.empty(0)
    prompts = cache.metadata("prompts", ["caption"])["caption"].take(pa.array(rows)).to_pylist()
    run = towers.runner("prompts", Engine("torch", "fp32", "cpu"))
    return cosines(cache.text_embeddings()[rows], run(towers.tokenize(prompts)[0])[0])


def compare_images(cache: Cache, tables: Iterable[Records], towers: Towers, limits: Limits, size: int) -> Floats:
    """Return (m,) cosines between stored vectors and those that torch in fp32 computes for the same pictures now.

    The tables say where pictures are. Pictures whose content has changed are left out; for adopted vectors, whose
    content is not known, the name decides. Pictures are decoded as the cache's latest ones were.
    """
    ids = cache.metadata("images", ["image_id"])["image_id"]
    wanted = set(ids.take(pa.array(sample_rows(len(ids), size))).to_pylist())
    names = cache.keys()
    names = names.filter(pc.is_in(names["image_id"], value_set=pa.array(wanted, pa.string())))
    keys = names["image_path"].combine_chunks()
    by_name = dict(zip(keys.to_pylist(), names["image_id"].to_pylist(), strict=True)) if cache.adopted else {}
    found: dict[str, UInt8s] = {}
    for records in tables:
        for batch in records.images():
            here = batch.filter(pc.is_in(batch["key"], value_set=keys))
            for row in here.to_pylist():
                picture = Picture(row["key"], row["uri"], row["bytes"])
                picture = decode(picture, cache.identity.preprocess, limits, cache.scale)
                id = by_name.get(picture.key, picture.id)
                if picture.pixels is not None and id in wanted:
                    found[str(id)] = picture.pixels
    if not found:
        return np.empty(0)
    rows = np.asarray(pc.index_in(pa.array(found, pa.string()), value_set=ids)).astype(np.int64)
    run = towers.runner("images", Engine("torch", "fp32", "cpu"))
    pixels = list(found.values())
    now = np.concatenate([run(np.stack(pixels[i : i + 32]))[0] for i in range(0, len(pixels), 32)])
    return cosines(cache.image_embeddings()[rows], now)


def verify_cache(
    cache: Cache,
    tables: Sequence[Records],
    towers: Towers | None,
    limits: Limits,
    *,
    size: int,
    min_cosine: float,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Check the hashes of all files and, if towers are given, embed a sample again.

    Raise InputError if something has changed.

    Raise IdentityMismatch if the cache's source now loads another backbone.
    """
    if damaged := damaged_files(cache, progress):
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise InputError(
            f"{cache.path} is damaged: {', '.join(damaged[:5])}{more} changed or missing; make the cache again,"
            " or copy these files from a backup"
        )
    result: dict[str, Any] = {"cache": str(cache.path), "files": len(cache.manifest["files"])}
    found = {"images": np.empty(0), "prompts": np.empty(0)}
    if towers is not None:
        require_same_identity(cache.identity, f"the cache {cache.path}", towers.identity, "what its source loads now")
        found["images"] = compare_images(cache, tables, towers, limits, size)
        found["prompts"] = compare_prompts(cache, towers, size)
    for side, values in found.items():
        least = float(values.min()) if len(values) else None
        result[side] = {"compared": len(values), "cosine_min": least}
        if least is not None and least < min_cosine:
            raise InputError(
                f"{cache.path}: of {len(values)} {side} embedded again, one has a cosine of {least:.6f} to its stored"
                f" vector; wanted {min_cosine}. It was made by {', '.join(name for _, name in engines_of(cache))}"
            )
    return result
