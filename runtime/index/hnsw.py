"""A graph index, which links pictures that are near in both vector and popularity and is searched along its links.

index.faiss    the graph, with [x, popularity] in float16 at its nodes
nodes.npy      (nodes,) int32: the row of each node, -1 for deleted pictures
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Bools, Float16s, Float32s, Int32s, Ints
from embed.files import write_with
from embed.progress import Step, no_step
from runtime.index.base import ADD_ROWS, Effort, Index, read_faiss, selector, write_faiss

if TYPE_CHECKING:
    import faiss

LINKS = 32  # number of links of a picture
BUILD_EFFORT = 100

# In the graph popularity is multiplied by this and weights are divided by it, so that links also lead from a picture to
# more popular ones. On 30,000 synthetic vectors recall@10 at breadth 128 for weights 0, 0.3, 1 and 3 is .98 .99 .97 .91
# at a stretch of 1; .97 .99 .99 .98 at 2; .68 .99 1.00 .99 at 3.
STRETCH = 2.0


def bytes_per_vector(dim: int) -> int:
    """The bytes of a node's vector and its links."""
    return 2 * _width(dim) + 8 * LINKS + 12


class GraphIndex(Index):
    """FAISS's HNSW over [x, popularity]."""

    kind = "hnsw"
    lists = 0

    def __init__(self, index: "faiss.IndexHNSWSQ", nodes: Int32s) -> None:
        self._index = index
        self._nodes = nodes

    @classmethod
    def build(cls, vectors: Float16s, popularity: Float32s, step: Step) -> "GraphIndex":
        import faiss

        width = _width(vectors.shape[1])
        index = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_fp16, LINKS)
        index.hnsw.efConstruction = BUILD_EFFORT
        index.train(np.zeros((1, width), np.float32))  # half precision needs no training, but FAISS requires the call
        rows = np.arange(len(vectors), dtype=np.int32)
        _grow(index, vectors, popularity, rows, step)
        return cls(index, rows)

    @classmethod
    def read(cls, folder: Path, mapped: bool) -> "GraphIndex":
        index = read_faiss(folder / "index.faiss", mapped)
        return cls(index, np.load(folder / "nodes.npy", allow_pickle=False))

    def candidates(self, queries: Float32s, weights: Float32s, effort: Effort, rows: int | Bools | None = None) -> Ints:
        import faiss

        if rows is not None:
            rows = self._nodes < rows if isinstance(rows, int) else rows[self._nodes]
        if (gone := self._nodes < 0).any():
            rows = ~gone if rows is None else rows & ~gone
        breadth = max(effort.probes, effort.candidates)
        parameters = faiss.SearchParametersHNSW(efSearch=breadth, sel=selector(rows))
        asked = _rows(queries, weights / STRETCH, self._index.d)
        found = self._index.search(asked, effort.candidates, params=parameters)[1]
        return np.where(found >= 0, self._nodes[found], -1)

    def refilled(self, known: Ints, vectors: Float16s, popularity: Float32s, step: Step = no_step) -> "GraphIndex":
        """The same nodes with new popularities, and new nodes for new rows. The links stay, since they still join
        similar pictures."""
        import faiss

        row_now = np.full(max(self._nodes.max(initial=-1), known.max(initial=-1)) + 2, -1, np.int32)
        row_now[known[known >= 0]] = np.flatnonzero(known >= 0)  # the last entry is for nodes of deleted pictures
        nodes = row_now[self._nodes]
        added = np.setdiff1d(np.arange(len(vectors), dtype=np.int32), nodes)
        _grow(self._index, vectors, popularity, added, step)
        nodes = np.concatenate([nodes, added]).astype(np.int32)
        codes = faiss.downcast_index(self._index.storage).codes
        stored = faiss.rev_swig_ptr(codes.data(), codes.size()).view(np.float16).reshape(len(nodes), self._index.d)
        stored[:, vectors.shape[1]] = np.where(nodes >= 0, popularity[nodes] * STRETCH, 0)
        return GraphIndex(self._index, nodes)

    def write(self, folder: Path) -> None:
        write_faiss(self._index, folder / "index.faiss")
        write_with(folder / "nodes.npy", lambda file: np.save(file, self._nodes, allow_pickle=False))


def _width(dim: int) -> int:
    """The width of [x, popularity], rounded up to whole SIMD registers."""
    return -(-(dim + 1) // 16) * 16


def _rows(vectors: Float16s | Float32s, last: Float32s, width: int) -> Float32s:
    """(n, width) float32: [x, last, zeros]."""
    rows = np.zeros((len(vectors), width), np.float32)
    rows[:, : vectors.shape[1]] = vectors
    rows[:, vectors.shape[1]] = last
    return rows


def _grow(index: "faiss.IndexHNSWSQ", vectors: Float16s, popularity: Float32s, rows: Int32s, step: Step) -> None:
    import faiss

    # Links are made by distance, since the inner product of vectors of unequal length is not a measure of nearness.
    # Searches of the finished graph use the inner product.
    _walk_by(index, faiss.METRIC_L2)
    for start in range(0, len(rows), ADD_ROWS):
        some = rows[start : start + ADD_ROWS]
        index.add(_rows(vectors[some], popularity[some] * STRETCH, index.d))
        step(len(some))
    _walk_by(index, faiss.METRIC_INNER_PRODUCT)


def _walk_by(graph: "faiss.IndexHNSWSQ", metric: int) -> None:
    import faiss

    graph.metric_type = graph.storage.metric_type = metric
    graph.hnsw.is_similarity = metric == faiss.METRIC_INNER_PRODUCT
