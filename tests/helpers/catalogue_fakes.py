"""Caches and counts small enough to check by brute force."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embed.cache.store import Cache, CacheWriter
from embed.spec import Identity, Preprocess, Source
from runtime.catalogue.reader import Catalogue
from runtime.catalogue.writer import build
from runtime.config import IndexConfig, PopularityConfig


def identity(dim: int, weights: str = "w") -> Identity:
    preprocess = Preprocess((8, 8), "squash", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Identity("fake", weights, preprocess, "gelu", "words", 8, dim)


def unit_vectors(n: int, dim: int, seed: int = 0, clusters: int = 0) -> np.ndarray:
    """(n, dim) float32 unit vectors, spread evenly or around so many centres."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim))
    if clusters:
        x = 0.6 * x / np.sqrt(dim) * 3 + rng.standard_normal((clusters, dim))[rng.integers(clusters, size=n)]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def between(vectors: np.ndarray, n: int, seed: int = 5) -> np.ndarray:
    """(n, d) float32 unit vectors, each somewhere near one of `vectors`."""
    rng = np.random.default_rng(seed)
    near, far = vectors[rng.choice(len(vectors), (2, n))].astype(np.float32)
    mixed = near + 0.4 * far
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def make_cache(
    path: Path,
    vectors: np.ndarray,
    weights: str = "w",
    of: Identity | None = None,
    ids: Sequence[str] | None = None,
    uris: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
) -> Cache:
    """A cache whose pictures, p0.png and so on, have these vectors; names, ids, and where they lay, may be given."""
    n, dim = vectors.shape
    names, ids = names or [f"p{i}.png" for i in range(n)], ids or [f"{i:032x}" for i in range(n)]
    sides = pa.array([8] * n, pa.int32())
    with CacheWriter(path, of or identity(dim, weights), Source("fake")) as writer:
        writer.append(
            "images",
            pa.table({"image_path": names, "image_id": ids, "width": sides, "height": sides}),
            img_emb=vectors.astype(np.float16),
        )
        nulls = pa.nulls(n, pa.int64())
        keys = {"image_path": names, "image_id": ids, "size_bytes": nulls, "mtime_ns": nulls}
        writer.append_keys(pa.table(keys | ({} if uris is None else {"uri": pa.array(uris, pa.string())})))
        writer.commit()
    return Cache.open(path)


def make_labels(n: int, seed: int = 0) -> pa.Table:
    """Heavy-tailed counts with many ties, and columns to filter by."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "image": [f"p{i}.png" for i in range(n)],
            "count": np.floor(rng.pareto(1.0, n) * 3),
            "kind": [("animals", "objects", "it's")[i % 3] for i in range(n)],
            "year": rng.integers(2000, 2030, n),
            "creator": [f"c{i % 7}" for i in range(n)],
        }
    )


def make_catalogue(path: Path, vectors: np.ndarray, labels: pa.Table, **options: Any) -> Catalogue:
    index = IndexConfig(options.pop("index", "exact"), options.pop("min_recall", 0.9))
    config = PopularityConfig(**options)
    return build(path / "catalogue", make_cache(path / "cache", vectors), labels, config, index)[0]


def brute_force(
    catalogue: Catalogue, queries: np.ndarray, weight: float, allowed: np.ndarray | None = None
) -> np.ndarray:
    """(m, n) float64 blended scores of every row, -inf where not allowed."""
    scores = queries.astype(np.float64) @ catalogue.vectors.astype(np.float64).T
    scores += weight * catalogue.popularity.astype(np.float64)
    return scores if allowed is None else np.where(allowed, scores, -np.inf)


def assert_best(found: tuple[np.ndarray, np.ndarray, np.ndarray], scores: np.ndarray, k: int) -> None:
    """The rows found are the k best of `scores` (m, n), rows of equal score being interchangeable."""
    rows, _, blended = found
    expected = -np.sort(-scores, axis=1)[:, :k]
    there = np.isfinite(expected)
    assert ((rows >= 0) == there).all()
    for row, wanted in zip(rows, there, strict=True):
        assert len(set(row[wanted])) == wanted.sum()
    taken = np.take_along_axis(scores, np.maximum(rows, 0), axis=1)
    # The k-th best of two computations in float64 differ by rounding alone.
    np.testing.assert_allclose(taken[there], expected[there], rtol=0, atol=1e-12)
    np.testing.assert_allclose(blended[there], expected[there], rtol=0, atol=1e-12)
