"""Make vectors, counts and queries for the benchmark of catalogues, and measure how hard they are to search.

The generated vectors resemble CLIP embeddings. Topics lie within themes and pictures within topics; each level is a
Gaussian whose variances fall as 1/rank (a low effective dimension without a sharp end). All are shifted into one cone,
so that two random pictures have a cosine near 0.5, and the sizes of topics follow a power law. Picture queries are
drawn like the catalogue; text queries lie in another cone, at a cosine of 0.3 to 0.4 from the nearest pictures. Counts
are log-normal with a mean that depends on the topic, and about a third are 0. The report has the local intrinsic
dimension (maximum likelihood, Levina and Bickel 2004, over 100 neighbours), which tells how hard the search is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.spec import Identity, Preprocess


@dataclass(frozen=True)
class Data:
    vectors: np.ndarray  # (n, d) float16
    counts: np.ndarray  # (n,)
    queries: np.ndarray  # (m, d) float32, half pictures, half texts
    tuning: np.ndarray  # (t, d) float32, more queries of these kinds, to tune indexes on
    images: list[str]


class ArrayPictures:
    """Vectors in memory, in the form that `build` needs."""

    def __init__(self, data: Data) -> None:
        self.data = data
        half = (0.5, 0.5, 0.5)
        preprocess = Preprocess((224, 224), "shortest", "bicubic", half, half)
        self.identity = Identity("made", "none", preprocess, "none", "none", 77, data.vectors.shape[1])

    def image_embeddings(self) -> np.ndarray:
        return self.data.vectors

    def metadata(self, side: str) -> pa.Table:
        n = len(self.data.vectors)
        sides = pa.array(np.full(n, 224, np.int32))
        return pa.table({"image_path": self.data.images, "image_id": self.data.images, "width": sides, "height": sides})

    def image_rows(self, keys: pa.ChunkedArray) -> np.ndarray:
        return np.asarray(pc.index_in(keys, value_set=pa.array(self.data.images))).astype(np.int64)


def made_data(n: int, dim: int, queries: int, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    topics, themes = max(50, n // 50), max(10, n // 2000)
    scale = np.arange(1, dim + 1) ** -0.5
    scale = (scale / np.linalg.norm(scale)).astype(np.float32)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)

    def gaussian(rows: int) -> np.ndarray:
        return rng.standard_normal((rows, dim)).astype(np.float32) * scale

    def cone() -> np.ndarray:
        direction = rng.standard_normal(dim)
        return (1.3 * direction / np.linalg.norm(direction)).astype(np.float32)

    centres = 0.7 * gaussian(themes)[rng.integers(themes, size=topics)] + 0.7 * gaussian(topics)
    share = np.arange(1, topics + 1) ** -0.8
    share /= share.sum()
    warmth = rng.standard_normal(topics)
    pictures, texts = cone(), cone()

    def draw(rows: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        topic = rng.choice(topics, rows, p=share)
        spread = 0.9 * rng.lognormal(0, 0.25, (rows, 1)).astype(np.float32)
        drawn = (centres[topic] + spread * gaussian(rows)) @ basis + place
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True), topic

    vectors, topic = np.empty((n, dim), np.float16), np.empty(n, np.int64)
    for start in range(0, n, 50_000):
        some = slice(start, min(start + 50_000, n))
        vectors[some], topic[some] = draw(some.stop - start, pictures)
    counts = np.floor(2 * np.exp(1.7 * rng.standard_normal(n) + 0.8 * warmth[topic]))

    def ask(count: int) -> np.ndarray:
        return rng.permutation(np.concatenate([draw(count // 2, pictures)[0], draw(count - count // 2, texts)[0]]))

    return Data(vectors, counts, ask(queries), ask(400), [f"{i}.jpg" for i in range(n)])


def real_data(cache_path: Path, table: Path, queries: int) -> Data:
    """Return a cache's pictures with their counts. Queries are its prompts, and points between its pictures."""
    from embed.cache.store import Cache
    from embed.records.formats import read_records
    from runtime.catalogue.writer import tuning_queries

    cache = Cache.open(cache_path)
    labels = read_records(table, "popularity").labels()
    rows = cache.image_rows(labels["image"])
    vectors = cache.image_embeddings()[rows[rows >= 0]]
    counts, images = (np.asarray(labels[name])[rows >= 0] for name in ("count", "image"))
    asked = tuning_queries(vectors, cache.text_embeddings(), queries + 400)
    return Data(vectors, counts, asked[:queries], asked[queries:], images.tolist())


def hardness(data: Data) -> dict[str, float]:
    rng = np.random.default_rng(0)
    some = data.queries[:100]
    nearest = np.empty((len(some), 0), np.float32)
    for start in range(0, len(data.vectors), 50_000):
        block = some @ data.vectors[start : start + 50_000].astype(np.float32).T
        nearest = np.sort(np.concatenate([nearest, block], axis=1), axis=1)[:, -100:]
    distances = np.sqrt(np.maximum(2 - 2 * nearest[:, ::-1], 1e-12))
    dimension = 1 / np.log(distances[:, -1:] / distances[:, :-1]).mean(axis=1)
    pairs = data.vectors[rng.integers(len(data.vectors), size=(2, 1000))].astype(np.float32)
    return {
        "local_intrinsic_dimension": round(float(np.median(dimension)), 1),
        "cosine_of_random_pairs": round(float((pairs[0] * pairs[1]).sum(axis=1).mean()), 3),
        "zero_counts": round(float((data.counts == 0).mean()), 3),
    }


def labels(data: Data, seed: int | None = None) -> pa.Table:
    """Return the counts. With a seed, each is changed as much as in a day."""
    counts = data.counts
    if seed is not None:
        counts = np.floor(counts * np.random.default_rng(seed).lognormal(0.1, 0.3, len(counts)))
    return pa.table({"image": data.images, "count": counts})
