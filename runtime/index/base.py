"""What every index of a catalogue is: candidates for blended search, which whoever asks scores anew; made, kept, grown.

How each kind finds them is its own matter: see runtime.index.ivf and runtime.index.hnsw; runtime.index.factory chooses
one. Knows no metadata and no recall.
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

ADD_ROWS = 65_536  # at a time


@dataclass(frozen=True)
class Effort:
    """How hard a search tries: lists probed (or the graph's breadth), and candidates to score anew."""

    probes: int
    candidates: int


class Index(ABC):
    """Of the rows of a catalogue by vector and popularity."""

    kind: IndexKind
    lists: int  # that there are to probe; 0 for a graph

    @abstractmethod
    def candidates(self, queries: Float32s, weights: Float32s, effort: Effort, rows: int | Bools | None = None) -> Ints:
        """(m, effort.candidates) int64 rows by approximate score, -1 for none.

        `rows` confines them to the first so many, or to those of a mask (n,) bool. queries (m, d), weights (m,).
        """

    @abstractmethod
    def refilled(self, known: Ints, vectors: Float16s, popularity: Float32s, step: Step = no_step) -> "Index":
        """An index of other rows, which learns nothing anew; this one is of no more use.

        known (n,) int64: which row of this index each is, -1 for new ones. vectors (n, d), popularity (n,).
        """

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write everything that `runtime.index.factory.read_index` wants."""


def read_faiss(path: Path, mapped: bool) -> "faiss.Index":
    """A FAISS index in a file."""
    import faiss

    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)


def write_faiss(index: "faiss.Index", path: Path) -> None:
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


def selector(rows: int | Bools | None) -> "faiss.IDSelector | None":
    """FAISS's form of: the ids below a number, or those of a mask; None for all."""
    import faiss

    if rows is None:
        return None
    if isinstance(rows, int):
        return faiss.IDSelectorRange(0, rows)
    return faiss.IDSelectorBitmap(np.packbits(rows, bitorder="little"))
