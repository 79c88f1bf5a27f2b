"""Join several caches of one backbone into one."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embed.cache.known import NAMED, IdSet, Known, words
from embed.cache.store import EMBEDDINGS, FAILURES, ID_COLUMN, Cache, CacheWriter, DecodingEntry, Engines
from embed.jobs.run import FEATURE_FOLDERS
from embed.progress import Progress, Step, silent
from embed.spec import SIDES, InputError, Side, require_same_identity

logger = logging.getLogger(__name__)


def merge_caches(paths: Sequence[Path], out: Path, progress: Progress = silent) -> dict[str, object]:
    """Add what the caches hold to `out`, which may be new: each content once, under all its names.

    If two caches give the same name different contents, the later one counts. A boundary that all of them have is kept;
    any other is left out with a warning. If the job is killed, running it again goes on.
    Raise IdentityMismatch if two come from different backbones, and InputError if they hold different features.
    """
    caches = [Cache.open(path) for path in paths]
    for cache in caches[1:]:
        require_same_identity(caches[0].identity, str(caches[0].path), cache.identity, str(cache.path))
    with CacheWriter(out, caches[0].identity, caches[0].source) as writer:
        held = {str(cache.path): folders for cache in [writer.cache(), *caches] if (folders := _folders(cache))}
        if len(set(held.values())) > 1:
            raise InputError(f"the caches hold different features: {held}; merge only caches that hold the same")
        known = Known(writer.cache(), rehash=True)
        prompts = IdSet()
        for file in writer.cache().files("prompts", "metadata"):
            prompts.add(words(writer.cache().column(file, "prompt_id")))
        with progress(sum(cache.count(side) for cache in caches for side in SIDES), "rows", "merging") as step:
            for cache in caches:
                _copy(cache, writer, "images", known.contents, step)
                _copy(cache, writer, "prompts", prompts, step)
                _copy_keys(cache, writer, known)
        failures = _failures([writer.cache(), *caches], writer.cache().keys()["image_path"])
        if not failures.equals(writer.cache().failures()):
            writer.replace_failures(failures)
            writer.commit()
        if notes := _decoding([*caches, writer.cache()]):
            writer.commit(decoding=notes)
        _copy_boundaries(caches, writer)
        merged = writer.cache()
    return {"cache": str(out), **{side: merged.count(side) for side in SIDES}, "failures": len(failures)}


def _folders(cache: Cache) -> tuple[str, ...]:
    return tuple(folder for folder in FEATURE_FOLDERS.values() if cache.files("images", folder))


def _copy(cache: Cache, writer: CacheWriter, side: Side, known: IdSet, step: Step) -> None:
    """Append the rows whose content is new, shard by shard."""
    folders = _folders(cache) if side == "images" else (EMBEDDINGS[side],)
    arrays = {folder: cache.arrays(side, folder) for folder in folders}
    for i, file in enumerate(cache.files(side, "metadata")):
        metadata = pq.read_table(file)
        new = known.add(words(metadata[ID_COLUMN[side]]))
        if new.any():
            shard = {folder: arrays[folder][i][new] for folder in folders}
            writer.append(side, metadata.filter(pa.array(new)), **shard)
            writer.commit(engines=_engines(writer.cache(), cache, side))
        step(len(metadata))


def _engines(ours: Cache, theirs: Cache, side: Side) -> Engines:
    """Return the manifest's entry, extended by the engines that made the other cache's vectors."""
    engines = ours.manifest.get("engines", {})
    used = engines.get(side, [])
    return {**engines, side: [*used, *(e for e in theirs.manifest.get("engines", {}).get(side, []) if e not in used)]}


def _decoding(caches: Sequence[Cache]) -> list[DecodingEntry]:
    """Return what the manifests say about decoding, each entry once. The last cache is the merged one.

    A picture that two caches hold counts twice, because how a single row was decoded is not recorded.
    """
    *parts, whole = caches
    found: dict[str, DecodingEntry] = {}
    for entry in (entry for cache in parts for entry in cache.decoding):
        name = str({**entry, "pictures": 0})
        before = found[name]["pictures"] if name in found else 0
        found[name] = {**entry, "pictures": before + entry["pictures"]}
    held = {str({**entry, "pictures": 0}): entry for entry in whole.decoding}
    return list((held | found).values())


def _copy_keys(cache: Cache, writer: CacheWriter, known: Known) -> None:
    for file in cache.files("images", "keys"):
        keys = pq.read_table(file)
        lacking = known.note(list(zip(*(keys[name].to_pylist() for name in NAMED), strict=True)))
        if lacking.any():
            writer.append_keys(keys.filter(pa.array(lacking)))
            writer.commit()


def _copy_boundaries(caches: Sequence[Cache], writer: CacheWriter) -> None:
    """Append the activations that all caches have, because unfreezing refuses a boundary that lacks rows."""
    for name in sorted({name for cache in caches for name in cache.boundaries}):
        side: Side = "images" if name.startswith("images/") else "prompts"
        if lacking := [str(cache.path) for cache in caches if cache.count(side) and name not in cache.boundaries]:
            logger.warning(f"{name} is left out, because it is not in {', '.join(lacking)}")
            continue
        from embed.cache.boundary import Boundary, PartWriter  # here because it needs torch, and merging does not

        ours = _ids(writer.cache(), side)
        for cache in caches:
            if entry := cache.boundaries.get(name):
                row_of = np.asarray(pc.index_in(_ids(cache, side), value_set=ours), np.int64)
                parts = PartWriter(writer, side, entry["depth"], entry["dtype"])
                parts.copy(Boundary(cache, side, entry["depth"], entry["dtype"]), row_of)
                parts.commit()
        held = [cache.boundaries[name] for cache in [writer.cache(), *caches] if name in cache.boundaries]
        if certificates := [entry["certificate"] for entry in held if entry.get("certificate")]:
            parts.commit(certificate=min(certificates, key=lambda certificate: certificate["cosine_min"]))


def _ids(cache: Cache, side: Side) -> pa.ChunkedArray:
    return cache.metadata(side, [ID_COLUMN[side]])[ID_COLUMN[side]]


def _failures(caches: Sequence[Cache], embedded: pa.ChunkedArray) -> pa.Table:
    """Return the ledgers of all caches, one row a key, without keys that one of them has embedded."""
    failures = pa.concat_tables([cache.failures().cast(FAILURES) for cache in caches])
    failures = failures.filter(pc.invert(pc.is_in(failures["key"], value_set=embedded)))
    first = {key: i for i, key in reversed(list(enumerate(failures["key"].to_pylist())))}
    return failures.take(pa.array(sorted(first.values()), pa.int64())).combine_chunks()
