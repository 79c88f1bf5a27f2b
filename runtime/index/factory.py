"""Make and read indexes by the name of their kind, and tell their size."""

from pathlib import Path
from typing import get_args

from embed.arrays import Float16s, Float32s
from embed.progress import Step, no_step
from runtime.index import hnsw, ivf
from runtime.index.base import Index, IndexKind, let_threads_sleep
from runtime.index.hnsw import GraphIndex
from runtime.index.ivf import IvfIndex

KINDS: tuple[IndexKind, ...] = get_args(IndexKind)


def build_index(kind: IndexKind, vectors: Float16s, popularity: Float32s, step: Step = no_step) -> Index:
    """Make an index of (n, d) float16 vectors and (n,) popularities."""
    let_threads_sleep()
    if kind == "hnsw":
        return GraphIndex.build(vectors, popularity, step)
    return IvfIndex.build(kind, vectors, popularity, step)


def read_index(folder: Path, kind: IndexKind, mapped: bool = True) -> Index:
    """Read the index in a folder. With `mapped` it is memory-mapped; otherwise it is loaded and can be refilled."""
    let_threads_sleep()
    return GraphIndex.read(folder, mapped) if kind == "hnsw" else IvfIndex.read(folder, kind, mapped)


def bytes_per_vector(kind: IndexKind, dim: int) -> int:
    """The bytes of an index for each vector. An IVF's trained parameters, about one percent of the vectors, are not
    counted."""

    return hnsw.bytes_per_vector(dim) if kind == "hnsw" else ivf.bytes_per_vector(kind, dim)
