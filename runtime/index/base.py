"""The interface of every index of a catalogue: it finds candidates for blended search, whose exact scores the caller
computes.

The kinds are runtime.index.ivf and runtime.index.hnsw; runtime.index.factory chooses one. Knows no metadata and no
recall.
"""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from embed.arrays import Bools, Float16s, Float32s, Ints
from embed.progress import Step, no_step

if TYPE_CHECKING:
    import faiss

IvfKind = Literal["ivf-pq", "ivf-sq"]
IndexKind = Literal[IvfKind, "hnsw"]

ADD_ROWS = 65_536  # number of rows that are added at a time


@dataclass(frozen=True)
class Effort:
    """The effort of a search: the number of lists to probe (or the breadth in a graph), and of candidates to score
    exactly."""

    probes: int
    candidates: int


class Index(ABC):
    """An index of the rows of a catalogue by vector and popularity."""

    kind: IndexKind
    lists: int  # number of lists; 0 for a graph

    @abstractmethod
    def candidates(self, queries: Float32s, weights: Float32s, effort: Effort, rows: int | Bools | None = None) -> Ints:
        """(m, effort.candidates) int64 rows by approximate score, -1 for none.

        `rows` restricts them to the first so many rows, or to a mask (n,) bool. queries (m, d), weights (m,).
        """

    @abstractmethod
    def refilled(self, known: Ints, vectors: Float16s, popularity: Float32s, step: Step = no_step) -> "Index":
        """An index of other rows, without training again. This index must not be used afterwards.

        known (n,) int64: the row of each in this index, -1 for new ones. vectors (n, d), popularity (n,).
        """

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write all files that `runtime.index.factory.read_index` reads."""


def read_faiss(path: Path, mapped: bool) -> "faiss.Index":
    """Read a FAISS index from a file."""
    import faiss

    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)


def write_faiss(index: "faiss.Index", path: Path) -> None:
    """Write a FAISS index to a file, durably."""
    import faiss

    faiss.write_index(index, str(path))
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def let_threads_sleep() -> None:
    """Let FAISS's threads sleep between searches, unless the environment sets another policy or FAISS is already
    loaded.

    By default they wait busily, which slows down the scoring of candidates. With a million vectors on two cores, 700
    queries per second become 880.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def selector(rows: int | Bools | None) -> "faiss.IDSelector | None":
    """FAISS's selector for the ids below a number, or for those of a mask. None selects all."""
    import faiss

    if rows is None:
        return None
    if isinstance(rows, int):
        return faiss.IDSelectorRange(0, rows)
    return faiss.IDSelectorBitmap(np.packbits(rows, bitorder="little"))
