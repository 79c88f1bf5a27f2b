"""Compute a cache's vectors again after its backbone was tuned, from its boundary, without reading pictures.

The new cache has the rows, names and ledger of the old one, and the identity of the tuned backbone. Vectors of a tower
that was not tuned are copied. If the job is killed, running it again goes on after the last shard.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from embed.arrays import Float16s
from embed.backbones.delta import read_tuned, tuned_source
from embed.backbones.load import load_backbone
from embed.cache.store import EMBEDDINGS, Cache, CacheWriter, ManifestFields
from embed.files import require_out
from embed.jobs.run import FEATURE_FOLDERS
from embed.modes import parse_mode
from embed.progress import Progress, silent
from embed.spec import SIDES, Identity, require_same_identity
from embed.unfreeze.top_blocks import release_frozen, sides_of

BATCH = 256


def refresh_cache(
    path: Path, tuned: Path, out: Path, device: str = "cpu", progress: Progress = silent
) -> dict[str, object]:
    """Write to `out` the cache that the backbone in the folder `tuned` would have made instead of that at `path`.

    Raise InputError if it was not tuned from the cache's backbone, or if the cache has no boundary that is deep enough.
    """
    require_out(out, "cache", overwrite=True)
    cache, manifest = Cache.open(path), read_tuned(tuned)
    base = Identity.from_json(manifest["base"]["identity"])
    ignore_exif = cache.identity.preprocess.ignore_exif
    base = replace(base, preparation=replace(base.preprocess, ignore_exif=ignore_exif))
    require_same_identity(base, f"the base of {tuned}", cache.identity, f"the cache {path}")
    if (out / "manifest.json").exists():
        new = Identity.from_json(manifest["identity"])
        new = replace(new, preparation=replace(new.preprocess, ignore_exif=ignore_exif))
        require_same_identity(Cache.open(out).identity, f"the cache {out}", new, f"the backbone {tuned}")
    backbone = load_backbone(tuned_source(tuned), device)
    sides = sides_of(cache, backbone, parse_mode(manifest["mode"]))
    release_frozen(backbone.model, sides)
    preprocess = replace(backbone.identity.preprocess, ignore_exif=ignore_exif)
    total = sum(cache.count(side) for side in SIDES)
    with (
        CacheWriter(out, replace(backbone.identity, preparation=preprocess), backbone.source) as writer,
        progress(total, "rows", "refreshing") as step,
    ):
        for side in SIDES:
            done, start = len(writer.cache().files(side, "metadata")), 0
            pooled = side == "images" and bool(cache.files(side, FEATURE_FOLDERS["pooled"]))
            for shard, file in enumerate(cache.files(side, "metadata")):
                metadata = pq.read_table(file)
                rows = np.arange(start, start + len(metadata))
                start += len(metadata)
                if shard < done:
                    step(len(rows))
                    continue
                arrays: dict[str, list[Float16s]] = {}
                for at in range(0, len(rows), BATCH):
                    with torch.inference_mode():
                        before, after = sides[side].vectors(rows[at : at + BATCH], device)
                    arrays.setdefault(EMBEDDINGS[side], []).append(after.half().cpu().numpy())
                    if pooled and before is not None:
                        arrays.setdefault(FEATURE_FOLDERS["pooled"], []).append(before.half().cpu().numpy())
                    step(len(after))
                joined = {folder: np.concatenate(parts) for folder, parts in arrays.items()}
                writer.append(side, metadata, **joined)
                writer.commit()
        for file in cache.files("images", "keys")[len(writer.cache().files("images", "keys")) :]:
            writer.append_keys(pq.read_table(file))
        writer.replace_failures(cache.failures())
        fields: ManifestFields = {"refreshed_from": str(path)}
        if cache.decoding:
            fields["decoding"] = cache.decoding
        writer.commit(**fields)
        result = writer.cache()
    return {"cache": str(out), **{side: result.count(side) for side in SIDES}}
