"""Refreshed caches against the tuned backbone on the pictures themselves."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import unfreeze_tiny as tiny
from progress_told import Told

from embed.backbones.backbone import Backbone
from embed.backbones.delta import save_delta, tuned_source
from embed.backbones.load import load_backbone
from embed.cache.boundary import PartWriter
from embed.cache.store import METADATA, Cache, CacheWriter
from embed.spec import IdentityMismatch, InputError
from embed.unfreeze.families import cut_pictures
from embed.unfreeze.refresh import refresh_cache

MOVED = "visual.ln_post.weight"


def fill(path: Path, backbone: Backbone, boundary: bool = True) -> None:
    """Two shards of pictures, and prompts that no picture tower touches."""
    with CacheWriter(path, backbone.identity, backbone.source) as writer:
        with torch.no_grad():
            tower = backbone.image_tower(("projected", "pooled"))
            projected, pooled = (part.numpy().astype(np.float16) for part in tower(tiny.pixels()))
        for rows in (np.arange(16), np.arange(16, tiny.PICTURES)):
            names = [f"{row}.png" for row in rows]
            table = pa.table([names, [f"{row:032x}" for row in rows + 1], [32] * len(rows), [32] * len(rows)],
                             METADATA["images"].names)  # fmt: skip
            writer.append("images", table, img_emb=projected[rows], pooled_emb=pooled[rows])
            unknown = pa.nulls(len(rows), pa.int64())
            writer.append_keys(table.select(["image_path", "image_id"]).append_column("size_bytes", unknown)
                               .append_column("mtime_ns", unknown))  # fmt: skip
        texts = pa.table([["a", "b"], ["1" * 32, "2" * 32]], METADATA["prompts"].names)
        writer.append("prompts", texts, text_emb=np.eye(16, dtype=np.float16)[:2])
        writer.commit()
        if boundary:
            parts = PartWriter(writer, "images", 1, "float32")
            cut = cut_pictures(backbone.model.visual, 1, backbone.identity.preprocess)
            with torch.no_grad():
                parts.add(np.arange(tiny.PICTURES), *cut.below(tiny.pixels()))
            parts.commit()


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    tiny.make_folder(tmp_path / "clip")
    base = tiny.load(tmp_path / "clip")
    weight = torch.linspace(0.5, 2, 32)
    save_delta(tmp_path / "tuned", {MOVED: weight}, base, {"mode": "visual_last_layer"})
    fill(tmp_path / "cache", base)
    return tmp_path / "tuned"


def test_vectors_are_the_tuned_backbones_and_the_rest_is_kept(tuned: Path, tmp_path: Path) -> None:
    told = Told()
    assert refresh_cache(tmp_path / "cache", tuned, tmp_path / "new", progress=told) == {
        "cache": str(tmp_path / "new"), "images": tiny.PICTURES, "prompts": 2}  # fmt: skip
    old, new = Cache.open(tmp_path / "cache"), Cache.open(tmp_path / "new")
    backbone = load_backbone(tuned_source(tuned))
    with torch.no_grad():
        projected, pooled = (part.numpy() for part in backbone.image_tower(("projected", "pooled"))(tiny.pixels()))
    np.testing.assert_allclose(new.image_embeddings(), projected, atol=1e-3)
    np.testing.assert_allclose(np.concatenate(new.arrays("images", "pooled_emb")), pooled, atol=1e-3)
    assert np.abs(old.image_embeddings() - projected).max() > 0.05
    assert np.array_equal(new.text_embeddings(), old.text_embeddings())
    for mine, theirs in ((new.metadata("images"), old.metadata("images")), (new.keys(), old.keys())):
        assert mine.equals(theirs)
    assert new.identity == backbone.identity and new.source == tuned_source(tuned)
    assert told.works["refreshing"].total == tiny.PICTURES + 2 and told.works["refreshing"].whole()
    # Again, or after a kill, there is nothing left to do.
    before = (tmp_path / "new" / "images" / "img_emb" / "img_emb_0001.npy").stat().st_mtime_ns
    refresh_cache(tmp_path / "cache", tuned, tmp_path / "new", progress=told)
    assert told.works["refreshing"].whole()
    assert (tmp_path / "new" / "images" / "img_emb" / "img_emb_0001.npy").stat().st_mtime_ns == before


def test_a_cache_without_the_boundary_or_of_another_base_is_refused(tuned: Path, tmp_path: Path) -> None:
    fill(tmp_path / "bare", tiny.load(tmp_path / "clip"), boundary=False)
    with pytest.raises(InputError, match="has no activations of its images to train visual_last_layer from"):
        refresh_cache(tmp_path / "bare", tuned, tmp_path / "new")
    fill(tmp_path / "other", tiny.load(tiny.make_folder(tmp_path / "clip2", seed=1)))
    with pytest.raises(IdentityMismatch):
        refresh_cache(tmp_path / "other", tuned, tmp_path / "new")
