"""A cache with known vectors, written without a backbone."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from embed.cache.store import KEYS, METADATA, Cache, CacheWriter
from embed.files import content_id
from embed.spec import Identity, Preprocess, Source

DIM = 8


def identity(weights: str = "a" * 64) -> Identity:
    """A backbone that exists only in name."""
    half = (0.5, 0.5, 0.5)
    return Identity("tiny", weights, Preprocess((8, 8), "squash", "bicubic", half, half), "gelu", "words", 4, DIM)


def unit(rows: int, seed: int) -> np.ndarray:
    """(rows, DIM) float16 random directions."""
    x = np.random.default_rng(seed).normal(size=(rows, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def make_cache(
    path: Path, images: list[str], prompts: list[str], of: Identity | None = None, source: Source | None = None,
    places: list[str] | None = None, vectors: np.ndarray | None = None,
) -> Cache:  # fmt: skip
    """Row i is the i-th name; the content of a picture is its name. `places` are where the pictures were read."""
    with CacheWriter(path, of or identity(), source or Source("tiny")) as writer:
        ids = [content_id(name.encode()) for name in images]
        sizes = [8] * len(images)
        images_of = unit(len(ids), 1) if vectors is None else vectors.astype(np.float16)
        writer.append("images", pa.table([images, ids, sizes, sizes], METADATA["images"].names), img_emb=images_of)
        unknown = pa.nulls(len(ids), pa.int64())
        columns = [
            pa.array(images),
            pa.array(ids),
            unknown,
            unknown,
            pa.array(places or [None] * len(ids), pa.string()),
        ]
        writer.append_keys(pa.table(columns, KEYS.names))
        texts = [content_id(text.encode()) for text in prompts]
        writer.append("prompts", pa.table([prompts, texts], METADATA["prompts"].names), text_emb=unit(len(texts), 2))
        writer.commit()
        return writer.cache()
