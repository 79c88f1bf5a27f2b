"""What every index of a catalogue is: candidates for blended search, which whoever asks scores anew; made, kept, grown.

How each kind finds them is its own matter: see runtime.ivf and runtime.hnsw. Knows no metadata and no recall.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("ivf-pq", "ivf-sq", "hnsw")

ADD_ROWS = 65_536  # at a time

Step = Callable[[int], object]  # told how many rows were added


@dataclass(frozen=True)
class Effort:
    """How hard a search tries: lists probed (or the graph's breadth), and candidates to score anew."""

    probes: int
    candidates: int


class Index(ABC):
    """Of the rows of a catalogue by vector and popularity."""

    kind: str  # one of KINDS
    lists: int  # that there are to probe; 0 for a graph

    @abstractmethod
    def candidates(
        self, queries: np.ndarray, weights: np.ndarray, effort: Effort, rows: int | np.ndarray | None = None
    ) -> np.ndarray:
        """(m, effort.candidates) int64 rows by approximate score, -1 for none.

        `rows` confines them to the first so many, or to those of a mask (n,) bool. queries (m, d), weights (m,).
        """

    @abstractmethod
    def refilled(
        self, known: np.ndarray, vectors: np.ndarray, popularity: np.ndarray, step: Step = lambda rows: None
    ) -> "Index":
        """An index of other rows, which learns nothing anew; this one is of no more use.

        known (n,) int64: which row of this index each is, -1 for new ones. vectors (n, d), popularity (n,).
        """

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write everything that `read_index` wants."""


def build_index(kind: str, vectors: np.ndarray, popularity: np.ndarray, step: Step = lambda rows: None) -> Index:
    """An index of (n, d) float16 vectors and (n,) percentiles."""
    let_threads_sleep()
    from runtime.hnsw import GraphIndex
    from runtime.ivf import IvfIndex

    if kind == "hnsw":
        return GraphIndex.build(vectors, popularity, step)
    return IvfIndex.build(kind, vectors, popularity, step)


def read_index(folder: Path, kind: str, mapped: bool = True) -> Index:
    """The index that was written to a folder, `mapped` into memory, or else in memory and fit to be refilled."""
    let_threads_sleep()
    from runtime.hnsw import GraphIndex
    from runtime.ivf import IvfIndex

    return GraphIndex.read(folder, mapped) if kind == "hnsw" else IvfIndex.read(folder, kind, mapped)


def read_faiss(path: Path, mapped: bool) -> Any:
    """A FAISS index in a file."""
    import faiss

    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)


def write_faiss(index: Any, path: Path) -> None:
    """Write a FAISS index to a file, which is on disk then."""
    import faiss

    faiss.write_index(index, str(path))
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def let_threads_sleep() -> None:
    """Have FAISS's threads sleep between searches, unless the environment says otherwise or FAISS is loaded already.

    They wait busily by default, which slows down whoever scores their candidates: of a million vectors on two cores,
    700 queries a second become 880.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def bytes_per_vector(kind: str, dim: int) -> int:
    """What an index takes for each vector; what an IVF learns, a percent of the vectors, comes on top."""
    from runtime import hnsw, ivf

    return hnsw.bytes_per_vector(dim) if kind == "hnsw" else ivf.bytes_per_vector(kind, dim)


def selector(rows: int | np.ndarray | None) -> Any:
    """FAISS's form of: the ids below a number, or those of a mask; None for all."""
    import faiss

    if rows is None:
        return None
    if isinstance(rows, int):
        return faiss.IDSelectorRange(0, rows)
    return faiss.IDSelectorBitmap(np.packbits(rows, bitorder="little"))
