"""Indexes that find candidates for blended search among many vectors; whoever asks scores the candidates anew.

Each holds [x, popularity] and is searched with [q, weight]. The IVF kinds split every cell of similar pictures by
popularity: a list's centroid then knows how popular its pictures are, so that one inner product tells which lists are
worth a look for a query and a weight. The graph (HNSW) joins pictures near in both. Knows no metadata and no recall.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.search import to_float32

KINDS = ("ivf-pq", "ivf-sq", "hnsw")

# Percentiles at which a cell is split: the higher the weight, the fewer and more popular the pictures among which the
# answers lie. Percentiles are spread evenly, so a tier's mean is its middle.
TIERS = np.array([0.5, 0.75, 0.875, 0.9375])
TIER_MEANS = ((np.append(0, TIERS) + np.append(TIERS, 1)) / 2).astype(np.float32)

SUBVECTOR = 2  # numbers that product quantisation turns into 4 bits
TRAIN_PER_CELL = 40
TRAIN_ITERATIONS = 8
TRAIN_CODES = 65_536
ADD_ROWS = 65_536
LINKS = 32  # of a picture in the graph
BUILD_EFFORT = 100

# A graph sees popularity this many times as far apart, and weights as much smaller, so that its links also lead from a
# picture to more popular ones. On 30,000 made vectors recall@10 at breadth 128 for weights 0, 0.3, 1 and 3 is .98 .99
# .97 .91 at a stretch of 1; .97 .99 .99 .98 at 2; .68 .99 1.00 .99 at 3.
STRETCH = 2.0

Step = Callable[[int], object]  # told how many rows were added


@dataclass(frozen=True)
class Effort:
    """How hard a search tries: lists probed (or the graph's breadth), and candidates to score anew."""

    probes: int
    candidates: int


@dataclass(frozen=True)
class Layout:
    """The row that an index holds: a vector, at `popularity` the extra dimension times `stretch`, zeros to `width`."""

    popularity: int
    width: int
    stretch: float = 1.0

    @classmethod
    def of(cls, kind: str, dim: int) -> "Layout":
        """The extra dimension in a subvector of its own; for the other kinds, whole SIMD registers."""
        if kind == "ivf-pq":
            start = -(-dim // SUBVECTOR) * SUBVECTOR
            return cls(start, start + SUBVECTOR)
        return cls(dim, -(-(dim + 1) // 16) * 16, STRETCH if kind == "hnsw" else 1.0)

    def pictures(self, vectors: np.ndarray, popularity: np.ndarray) -> np.ndarray:
        """(n, width) float32 of (n, d) vectors, float16 or float32, and (n,) percentiles."""
        return self._rows(vectors, popularity * self.stretch)

    def queries(self, vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(m, width) float32 of (m, d) vectors and (m,) weights."""
        return self._rows(vectors, weights / self.stretch)

    def _rows(self, vectors: np.ndarray, last: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(vectors), self.width), np.float32)
        if vectors.dtype == np.float16:
            vectors = to_float32(vectors, np.empty(vectors.shape, np.float32))
        rows[:, : vectors.shape[1]] = vectors
        rows[:, self.popularity] = last
        return rows


class Index:
    """A FAISS index over [x, popularity]. Its ids are rows, unless `nodes` (nodes,) gives their rows, -1 for none."""

    def __init__(self, kind: str, dim: int, index: Any, nodes: np.ndarray | None = None) -> None:
        self.kind = kind
        self.layout = Layout.of(kind, dim)
        self.index = index
        self.nodes = nodes
        self._centroids = np.empty((0, dim), np.float32) if kind == "hnsw" else cell_centroids(index, dim)

    @classmethod
    def read(cls, path: str, kind: str, dim: int, nodes: np.ndarray | None = None) -> "Index":
        """The index in a file, memory-mapped where its kind allows it."""
        import faiss

        return cls(kind, dim, faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC), nodes)

    @property
    def lists(self) -> int:
        """How many lists there are to probe; 0 for a graph."""
        return 0 if self.kind == "hnsw" else int(self.index.nlist)

    def candidates(
        self, queries: np.ndarray, weights: np.ndarray, effort: Effort, rows: int | np.ndarray | None = None
    ) -> np.ndarray:
        """(m, effort.candidates) int64 rows by approximate score, -1 for none.

        `rows` confines them to the first so many, or to those of a mask (n,) bool. queries (m, d), weights (m,).
        """
        import faiss

        if rows is not None and self.nodes is not None:
            rows = self.nodes < rows if isinstance(rows, int) else rows[self.nodes]
        if self.nodes is not None and (gone := self.nodes < 0).any():
            rows = ~gone if rows is None else rows & ~gone
        if rows is None:
            selector = None
        elif isinstance(rows, int):
            selector = faiss.IDSelectorRange(0, rows)
        else:
            selector = faiss.IDSelectorBitmap(np.packbits(rows, bitorder="little"))
        blended = self.layout.queries(queries, weights)
        if self.kind != "hnsw":
            lists, products = self._best_lists(queries, weights, min(effort.probes, self.lists))
            parameters = faiss.SearchParametersIVF(nprobe=lists.shape[1], sel=selector)
            scores = np.empty((len(queries), effort.candidates), np.float32)
            found = np.empty(scores.shape, np.int64)
            # The wrapper of this call leaves the parameters out.
            arrays = map(faiss.swig_ptr, (lists, products, scores, found))
            self.index.search_preassigned_c(
                len(queries), faiss.swig_ptr(blended), effort.candidates, *arrays, False, parameters
            )
            return found
        parameters = faiss.SearchParametersHNSW(efSearch=max(effort.probes, effort.candidates), sel=selector)
        found = self.index.search(blended, effort.candidates, params=parameters)[1]
        return found if self.nodes is None else np.where(found >= 0, self.nodes[found], -1)

    def _best_lists(self, queries: np.ndarray, weights: np.ndarray, probes: int) -> tuple[np.ndarray, np.ndarray]:
        """The lists (m, probes) int64 with the largest [q, weight]·[centroid, tier's mean], and these products.

        FAISS would multiply with every list's centroid; the tiers of a cell differ in the last term only.
        """
        products = (queries @ self._centroids.T)[:, :, None] + weights[:, None, None] * TIER_MEANS
        products = products.reshape(len(queries), -1)
        lists = np.ascontiguousarray(np.argpartition(-products, probes - 1, axis=1)[:, :probes])
        return lists, np.take_along_axis(products, lists, axis=1)


def bytes_per_vector(kind: str, dim: int) -> int:
    """What an index takes for each vector; an IVF's centroids, a few percent of the vectors, come on top."""
    width = Layout.of(kind, dim).width
    return {"ivf-pq": width // SUBVECTOR // 2 + 8, "ivf-sq": width // 2 + 8, "hnsw": 2 * width + 8 * LINKS + 12}[kind]


def build_index(
    kind: str, vectors: np.ndarray, popularity: np.ndarray, seed: int = 0, step: Step = lambda rows: None
) -> tuple[Any, np.ndarray | None]:
    """A FAISS index of (n, d) float16 vectors and (n,) percentiles; for an IVF also the cell of each row (n,) int32."""
    if kind == "hnsw":
        return _build_graph(vectors, popularity, step), None
    index = _train_ivf(kind, vectors, popularity, np.random.default_rng(seed))
    cells = assign_cells(index, vectors)
    return fill_ivf(index, kind, vectors, popularity, cells, step), cells


def cell_centroids(index: Any, dim: int) -> np.ndarray:
    """(cells, dim) float32: the centroids of an IVF, without their tiers."""
    return np.ascontiguousarray(index.quantizer.reconstruct_n(0, index.nlist)[:: len(TIER_MEANS), :dim])


def assign_cells(index: Any, vectors: np.ndarray) -> np.ndarray:
    """(n,) int32: the cell whose centroid is nearest to each vector."""
    import faiss

    nearest = faiss.IndexFlatL2(vectors.shape[1])
    nearest.add(cell_centroids(index, vectors.shape[1]))
    cells = np.empty(len(vectors), np.int32)
    for start in range(0, len(vectors), ADD_ROWS):
        block = vectors[start : start + ADD_ROWS]
        plain = to_float32(block, np.empty(block.shape, np.float32))
        cells[start : start + ADD_ROWS] = nearest.search(plain, 1)[1][:, 0]
    return cells


def fill_ivf(
    index: Any,
    kind: str,
    vectors: np.ndarray,
    popularity: np.ndarray,
    cells: np.ndarray,
    step: Step = lambda rows: None,
) -> Any:
    """An index like `index`, trained, that holds these rows only. Quick: no cell is searched."""
    import faiss

    dim = vectors.shape[1]
    layout = Layout.of(kind, dim)
    if kind == "ivf-pq":
        parts = layout.width // SUBVECTOR
        filled = faiss.IndexIVFPQ(index.quantizer, layout.width, index.nlist, parts, 4, faiss.METRIC_INNER_PRODUCT)
        filled.pq = index.pq
        filled.is_trained = True
    else:
        filled = index
        filled.reset()
    lists = _lists(cells, popularity)
    for start in range(0, len(vectors), ADD_ROWS):
        some = slice(start, start + ADD_ROWS)
        rows = layout.pictures(vectors[some], popularity[some])
        ids = np.arange(start, start + len(rows))
        chosen = np.ascontiguousarray(lists[some])
        filled.add_core(len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(ids), faiss.swig_ptr(chosen))
        step(len(rows))
    if kind == "ivf-pq":
        plain = filled
        filled = faiss.IndexIVFPQFastScan(plain)
        filled.referenced_objects = [plain, index]  # they own the centroids
    return filled


def _lists(cells: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """(n,) int64: the list of each row, cell by cell and tier by tier."""
    return cells.astype(np.int64) * len(TIER_MEANS) + np.searchsorted(TIERS, popularity, side="right")


def _train_ivf(kind: str, vectors: np.ndarray, popularity: np.ndarray, rng: np.random.Generator) -> Any:
    import faiss

    n, dim = vectors.shape
    layout = Layout.of(kind, dim)
    cells = max(1, min(int(4 * np.sqrt(n)), n // TRAIN_PER_CELL))
    sample = _sample(vectors, cells * TRAIN_PER_CELL, rng)[1]
    kmeans = faiss.Kmeans(dim, cells, niter=TRAIN_ITERATIONS, seed=int(rng.integers(2**31)), min_points_per_centroid=1)
    kmeans.train(sample)
    centroids = layout.pictures(np.repeat(kmeans.centroids, len(TIER_MEANS), axis=0), np.tile(TIER_MEANS, cells))
    quantizer = faiss.IndexFlatIP(layout.width)
    quantizer.add(centroids)
    if kind == "ivf-pq":
        parts = layout.width // SUBVECTOR
        index = faiss.IndexIVFPQ(quantizer, layout.width, len(centroids), parts, 4, faiss.METRIC_INNER_PRODUCT)
    else:
        code = faiss.ScalarQuantizer.QT_4bit
        index = faiss.IndexIVFScalarQuantizer(quantizer, layout.width, len(centroids), code, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = True
    index.own_fields = True
    quantizer.this.disown()

    rows, sample = _sample(vectors, TRAIN_CODES, rng)
    nearest = kmeans.index.search(sample, 1)[1][:, 0]
    residuals = layout.pictures(sample, popularity[rows]) - centroids[_lists(nearest, popularity[rows])]
    (index.pq if kind == "ivf-pq" else index.sq).train(residuals)
    index.is_trained = True
    return index


def _sample(vectors: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` rows, ascending, and their vectors as float32."""
    rows = np.sort(rng.choice(len(vectors), min(count, len(vectors)), replace=False))
    sample = vectors[rows]
    return rows, to_float32(sample, np.empty(sample.shape, np.float32))


def _build_graph(vectors: np.ndarray, popularity: np.ndarray, step: Step) -> Any:
    import faiss

    layout = Layout.of("hnsw", vectors.shape[1])
    index = faiss.IndexHNSWSQ(layout.width, faiss.ScalarQuantizer.QT_fp16, LINKS)
    index.hnsw.efConstruction = BUILD_EFFORT
    index.train(np.zeros((1, layout.width), np.float32))  # half precision has nothing to learn
    _grow_graph(index, vectors, popularity, np.arange(len(vectors)), step)
    return index


def refill_graph(index: Any, nodes: np.ndarray, vectors: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """Give a graph's nodes (their rows, -1 away) these popularities, and add nodes for the rows that have none.

    The new nodes' rows, (nodes,) int32. The links stay: they join similar pictures, whatever is popular by now.
    """
    import faiss

    added = np.setdiff1d(np.arange(len(vectors), dtype=np.int32), nodes)
    _grow_graph(index, vectors, popularity, added)
    nodes = np.concatenate([nodes, added]).astype(np.int32)
    codes = faiss.downcast_index(index.storage).codes
    stored = faiss.rev_swig_ptr(codes.data(), codes.size()).view(np.float16).reshape(len(nodes), index.d)
    layout = Layout.of("hnsw", vectors.shape[1])
    stored[:, layout.popularity] = np.where(nodes >= 0, popularity[nodes] * layout.stretch, 0)
    return nodes


def _grow_graph(
    index: Any, vectors: np.ndarray, popularity: np.ndarray, rows: np.ndarray, step: Step = lambda rows: None
) -> None:
    import faiss

    # Links join what is near by distance, which inner products of vectors of unequal length are not; the finished graph
    # is walked by the inner product.
    layout = Layout.of("hnsw", vectors.shape[1])
    _walk_by(index, faiss.METRIC_L2)
    for start in range(0, len(rows), ADD_ROWS):
        some = rows[start : start + ADD_ROWS]
        index.add(layout.pictures(vectors[some], popularity[some]))
        step(len(some))
    _walk_by(index, faiss.METRIC_INNER_PRODUCT)


def _walk_by(graph: Any, metric: int) -> None:
    import faiss

    graph.metric_type = graph.storage.metric_type = metric
    graph.hnsw.is_similarity = metric == faiss.METRIC_INNER_PRODUCT
