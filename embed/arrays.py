"""Types of numpy arrays (the type says what the numbers are, docstrings say the shape), and helpers for any array."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

    Column: TypeAlias = pa.Array | pa.ChunkedArray

Floats = NDArray[np.float64]  # measurements: credits, probabilities, intervals
Float32s = NDArray[np.float32]  # what models compute: vectors and scores
Float16s = NDArray[np.float16]  # vectors as a cache keeps them
Ints = NDArray[np.int64]  # row numbers, group numbers and counts
Int32s = NDArray[np.int32]  # tokens
UInt64s = NDArray[np.uint64]  # hashes
UInt8s = NDArray[np.uint8]  # pixels
Bools = NDArray[np.bool_]
Array = NDArray[np.generic]  # numbers of any type


def cosines(first: Array, second: Array) -> Floats:
    """Return (n,) float64: the cosine between each row of `first` (n, d) and the same row of `second` (n, d)."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    found: Floats = np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return found


def positions(values: "Column | Sequence[str]", among: "Column | Sequence[str]") -> Ints:
    """Return (m,) int64: the index at which each value first occurs in `among`, or -1 if it does not occur."""
    import pyarrow.compute as pc

    found = pc.index_in(strings(values), value_set=strings(among))
    return np.asarray(pc.fill_null(found, -1)).astype(np.int64)


def floats(values: "Column") -> Floats:
    """Return an Arrow column of numbers as (n,) float64, with NaN for null. Integers above 2**53 are rounded."""
    import pyarrow as pa

    return np.asarray(values.cast(pa.float64(), safe=False).fill_null(np.nan))


def strings(values: "Column | Sequence[str]") -> "Column":
    """Return the texts as an Arrow column of type string."""
    import pyarrow as pa

    return values.cast(pa.string()) if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, pa.string())


def softmax(scores: Array) -> Floats:
    """Return (n,) float64: positive numbers that sum to 1 and keep the order of the scores (n,)."""
    logits: Floats = np.asarray(scores, np.float64)
    weights = np.exp(logits - logits.max(initial=-np.inf))
    shares: Floats = weights / weights.sum()
    return shares
