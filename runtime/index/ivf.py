"""An index of inverted lists with short codes. For a query and a weight only a few lists are read.

Vectors are assigned to the cell of their nearest centroid, and each cell is split by popularity into tiers. So one
number estimates the score of a list's best pictures: it is computed from the centroid's product with the query, the
tier's mean popularity, and the spread of the cell. Residuals (vector minus centroid) are rotated to their principal
axes, which are distributed so that all codes carry equally much (Ge et al. 2013, Optimized Product Quantization,
eigenvalue allocation).

    index.faiss    the lists: ids, and codes of the rotated residuals and of the popularity
    lists.npz      the trained parameters (see Lists)
    cells.npy      (n,) int32: the cell of each row
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Bools, Float16s, Float32s, Int32s, Ints
from embed.files import write_with
from embed.progress import Step, no_step
from runtime.index.base import ADD_ROWS, Effort, Index, IvfKind, read_faiss, selector, write_faiss
from runtime.index.blend import to_float32

if TYPE_CHECKING:
    import faiss

# Popularities at which a cell is split: with a higher weight, the hits are among fewer and more popular pictures.
# Popularities are evenly distributed, so a tier's mean is its middle. More tiers would make short lists, and starting a
# list takes as long as reading about 200 codes.
TIERS = np.array([0.5, 0.8])
TIER_STARTS = np.append(0, TIERS).astype(np.float32)
TIER_MEANS = ((TIER_STARTS + np.append(TIERS, 1)) / 2).astype(np.float32)

# Popularity above its tier's start is coded by two numbers of 16 values: whole steps, and parts of a step.
STEP = np.float32(1 / 32)

# A list's best score is estimated as its centroid's plus this many standard deviations. For a recall of 99.2 % of the
# true ten best among a million synthetic vectors at weight 0.3, 9.7 % of the codes must be read with a value of 0, 6.6
# with 3, 6.0 with 4, 5.7 with 5.
REACH = 4.0

SUBVECTOR = 4  # number of coordinates that product quantisation codes in 4 bits
TRAIN_PER_CELL = 64
TRAIN_ITERATIONS = 8
TRAIN_CODES = 65_536


@dataclass(frozen=True)
class Lists:
    """The trained parameters of an IVF. Inner products do not change if both vectors are rotated by `axes`."""

    centroids: Float32s  # (cells, d)
    spreads: Float32s  # (cells,): root mean square distance from the centroid, relative to that of all cells
    axes: Float32s  # (d, w) orthonormal rows, some columns zero: rotates a residual or a query
    variances: Float32s  # (w,): variances of rotated residuals

    @classmethod
    def learn(cls, vectors: Float16s, rng: np.random.Generator) -> "Lists":
        """Train on a sample of (n, d) float16 unit vectors."""
        import faiss

        n, dim = vectors.shape
        cells = max(1, min(int(2 * np.sqrt(n)), n // TRAIN_PER_CELL))
        sample = plain(vectors[_sample(n, cells * TRAIN_PER_CELL, rng)])
        seed = int(rng.integers(2**31))
        kmeans = faiss.Kmeans(dim, cells, niter=TRAIN_ITERATIONS, seed=seed, min_points_per_centroid=1)
        kmeans.train(sample)
        distances, nearest = (found[:, 0] for found in kmeans.index.search(sample, 1))
        # Add the overall mean as a few extra vectors, for cells with hardly any vectors.
        few, mean = 8, distances.mean() + 1e-12
        squares = np.bincount(nearest, distances, cells) + few * mean
        spreads = np.sqrt(squares / (np.bincount(nearest, minlength=cells) + few) / mean)
        residuals = sample - kmeans.centroids[nearest]
        axes = principal_axes(residuals.T @ residuals)
        variances = np.square(residuals @ axes).mean(axis=0)
        return cls(kmeans.centroids, spreads.astype(np.float32), axes, variances)

    def cells_of(self, vectors: Float16s) -> Int32s:
        """(n,) int32: the cell of each vector, which has the nearest centroid."""
        import faiss

        nearest = faiss.IndexFlatL2(vectors.shape[1])
        nearest.add(self.centroids)
        cells = np.empty(len(vectors), np.int32)
        for start in range(0, len(vectors), ADD_ROWS):
            some = slice(start, start + ADD_ROWS)
            cells[some] = nearest.search(plain(vectors[some]), 1)[1][:, 0]
        return cells

    def codable(self, vectors: Float16s, popularity: Float32s, cells: Int32s) -> Float32s:
        """(n, width) float32 to be coded: rotated residuals, and in two further subvectors the popularity above its
        tier's start."""
        beyond = popularity - TIER_STARTS[tiers_of(popularity)]
        whole = np.floor(beyond / STEP) * STEP
        return self._turned(plain(vectors) - self.centroids[cells], whole, beyond - whole)

    def askable(self, queries: Float32s, weights: Float32s) -> Float32s:
        """(m, width) float32: queries and weights in the same coordinates as the codes."""
        return self._turned(queries, weights, weights)

    @property
    def width(self) -> int:
        """The number of coded coordinates."""
        return int(self.axes.shape[1]) + 2 * SUBVECTOR

    def _turned(self, vectors: Float32s, whole: Float32s, left: Float32s) -> Float32s:
        rows = np.zeros((len(vectors), self.width), np.float32)
        np.matmul(vectors, self.axes, out=rows[:, : -2 * SUBVECTOR])
        rows[:, -2 * SUBVECTOR], rows[:, -SUBVECTOR] = whole, left
        return rows

    def best(self, asked: Float32s, queries: Float32s, weights: Float32s, probes: int) -> tuple[Ints, Float32s]:
        """The lists (m, probes) int64 whose best pictures probably score highest, and their base scores (m, probes)
        float32, to which the codes add. `asked` is the result of `askable` for the same queries and weights."""
        count = len(queries)
        products = queries @ self.centroids.T
        starts = products[:, :, None] + weights[:, None, None] * TIER_STARTS
        deviations = np.sqrt(np.square(asked[:, : -2 * SUBVECTOR]) @ self.variances)
        hopes = products + REACH * deviations[:, None] * self.spreads
        hopes = hopes[:, :, None] + weights[:, None, None] * TIER_MEANS
        first = hopes[0].size - probes
        lists = np.argpartition(hopes.reshape(count, -1), first, axis=1)[:, first:]
        return np.ascontiguousarray(lists), np.take_along_axis(starts.reshape(count, -1), lists, axis=1)


def tiers_of(popularity: Float32s) -> Ints:
    """(n,) int64: the tier of each popularity."""
    return np.searchsorted(TIERS, popularity, side="right")


def principal_axes(covariance: Float32s) -> Float32s:
    """(d, w) float32: the eigenvectors of a (d, d) covariance, distributed over subvectors of SUBVECTOR columns.

    The largest variances go to different subvectors, and each next one to the subvector with the smallest product so
    far. If d is not a multiple of SUBVECTOR, zeros fill up.
    """
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    dim = len(values)
    parts = -(-dim // SUBVECTOR)
    logs = np.log(np.maximum(values, values[-1] * 1e-9 + 1e-30))
    logs -= logs.min() - 1e-6  # makes all numbers greater than 1, so that products grow
    axes = np.zeros((dim, parts * SUBVECTOR), np.float32)
    totals, taken = np.zeros(parts), np.zeros(parts, np.int64)
    for i in np.argsort(-logs, kind="stable"):
        part = int(np.argmin(np.where(taken < SUBVECTOR, totals, np.inf)))
        axes[:, part * SUBVECTOR + taken[part]] = vectors[:, i]
        totals[part] += logs[i]
        taken[part] += 1
    return axes


class IvfIndex(Index):
    """Lists of codes in FAISS, which scans the lists that we choose."""

    kind: IvfKind

    def __init__(self, kind: IvfKind, index: "faiss.IndexIVF", learned: Lists, cells: Int32s) -> None:
        self.kind = kind
        self.lists = int(index.nlist)
        self._index = index
        self._learned = learned
        self._cells = cells

    @classmethod
    def build(cls, kind: IvfKind, vectors: Float16s, popularity: Float32s, step: Step) -> "IvfIndex":
        rng = np.random.default_rng(0)
        learned = Lists.learn(vectors, rng)
        cells = learned.cells_of(vectors)
        index = _empty(kind, learned)
        rows = _sample(len(vectors), TRAIN_CODES, rng)
        codes = index.pq if kind == "ivf-pq" else index.sq
        codes.train(learned.codable(vectors[rows], popularity[rows], cells[rows]))
        index.is_trained = True
        return cls(kind, _filled(index, kind, learned, vectors, popularity, cells, step), learned, cells)

    @classmethod
    def read(cls, folder: Path, kind: IvfKind, mapped: bool) -> "IvfIndex":
        with np.load(folder / "lists.npz", allow_pickle=False) as file:
            learned = Lists(**file)
        index = read_faiss(folder / "index.faiss", mapped)
        return cls(kind, index, learned, np.load(folder / "cells.npy", mmap_mode="r", allow_pickle=False))

    def candidates(self, queries: Float32s, weights: Float32s, effort: Effort, rows: int | Bools | None = None) -> Ints:
        import faiss

        asked = self._learned.askable(queries, weights)
        lists, starts = self._learned.best(asked, queries, weights, min(effort.probes, self.lists))
        parameters = faiss.SearchParametersIVF(nprobe=lists.shape[1], sel=selector(rows))
        scores = np.empty((len(queries), effort.candidates), np.float32)
        found = np.empty(scores.shape, np.int64)
        # FAISS's Python wrapper of this call lacks the parameters, so it is called directly.
        arrays = map(faiss.swig_ptr, (lists, starts, scores, found))
        self._index.search_preassigned_c(
            len(queries), faiss.swig_ptr(asked), effort.candidates, *arrays, False, parameters
        )
        return found

    def refilled(self, known: Ints, vectors: Float16s, popularity: Float32s, step: Step = no_step) -> "IvfIndex":
        cells = np.empty(len(vectors), np.int32)
        cells[known >= 0] = self._cells[known[known >= 0]]
        cells[known < 0] = self._learned.cells_of(vectors[known < 0])
        index = _empty(self.kind, self._learned)
        if self.kind == "ivf-pq":
            index.pq = self._index.pq
        else:
            index.sq = self._index.sq
        index.is_trained = True
        filled = _filled(index, self.kind, self._learned, vectors, popularity, cells, step)
        return IvfIndex(self.kind, filled, self._learned, cells)

    def write(self, folder: Path) -> None:
        write_faiss(self._index, folder / "index.faiss")
        write_with(folder / "cells.npy", lambda file: np.save(file, self._cells, allow_pickle=False))
        write_with(folder / "lists.npz", lambda file: np.savez(file, allow_pickle=False, **asdict(self._learned)))


def bytes_per_vector(kind: IvfKind, dim: int) -> int:
    """The bytes of a code and an id."""
    parts = -(-dim // SUBVECTOR) + 2
    return 8 + (-(-parts // 2) if kind == "ivf-pq" else parts * SUBVECTOR // 2)


def plain(half: Float16s) -> Float32s:
    """The same numbers (n, d) as float32."""
    return to_float32(half, np.empty(half.shape, np.float32))


def _sample(n: int, count: int, rng: np.random.Generator) -> Ints:
    """Up to `count` of n row numbers, ascending."""
    return np.sort(rng.choice(n, min(count, n), replace=False))


def _empty(kind: IvfKind, learned: Lists) -> "faiss.IndexIVF":
    """Lists without codes. The lists to search are always passed in, so FAISS gets no centroids."""
    import faiss

    width, lists = learned.width, len(learned.centroids) * len(TIER_MEANS)
    none = faiss.IndexFlatIP(width)
    if kind == "ivf-pq":
        index = faiss.IndexIVFPQ(none, width, lists, width // SUBVECTOR, 4, faiss.METRIC_INNER_PRODUCT)
    else:
        code = faiss.ScalarQuantizer.QT_4bit
        index = faiss.IndexIVFScalarQuantizer(none, width, lists, code, faiss.METRIC_INNER_PRODUCT)
    index.own_fields = True
    none.this.disown()
    return index


def _filled(
    index: "faiss.IndexIVF",
    kind: IvfKind,
    learned: Lists,
    vectors: Float16s,
    popularity: Float32s,
    cells: Int32s,
    step: Step,
) -> "faiss.IndexIVF":
    """Add these rows to a trained and empty index."""
    import faiss

    index.by_residual = False  # the vectors added here are already residuals
    lists = cells.astype(np.int64) * len(TIER_MEANS) + tiers_of(popularity)
    for start in range(0, len(vectors), ADD_ROWS):
        some = slice(start, start + ADD_ROWS)
        rows = learned.codable(vectors[some], popularity[some], cells[some])
        ids = np.arange(start, start + len(rows))
        index.add_core(len(rows), *map(faiss.swig_ptr, (rows, ids, np.ascontiguousarray(lists[some]))))
        step(len(rows))
    index.by_residual = True  # a score is the base score of its list plus that of the code
    if kind == "ivf-sq":
        return index
    quick = faiss.IndexIVFPQFastScan(index)
    quick.referenced_objects = [index]  # it owns the quantizer
    return quick
