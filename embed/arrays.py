"""Types of numpy arrays, which say what the numbers are (docstrings say the shape), and what is done with any."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

    Column: TypeAlias = pa.Array | pa.ChunkedArray

Floats = NDArray[np.float64]  # what is measured: credits, probabilities, intervals
Float32s = NDArray[np.float32]  # what models compute: vectors and scores
Float16s = NDArray[np.float16]  # vectors as a cache keeps them
Ints = NDArray[np.int64]  # rows, groups and other numbers that count or name
Int32s = NDArray[np.int32]  # tokens
UInt64s = NDArray[np.uint64]  # hashes
UInt8s = NDArray[np.uint8]  # pixels
Bools = NDArray[np.bool_]
Array = NDArray[np.generic]  # of numbers of whatever kind


def cosines(first: Array, second: Array) -> Floats:
    """(n,) cosine of each row of `first` (n, d) and the same row of `second`, in float64 whatever theirs is."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    found: Floats = np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return found


def positions(values: "Column | Sequence[str]", among: "Column | Sequence[str]") -> Ints:
    """(m,) int64: where each value first stands in `among`, -1 where it does not."""
    import pyarrow.compute as pc

    found = pc.index_in(strings(values), value_set=strings(among))
    return np.asarray(pc.fill_null(found, -1)).astype(np.int64)


def floats(values: "Column") -> Floats:
    """(n,) of an Arrow column of numbers, NaN for null; whole numbers beyond 2**53 are rounded."""
    import pyarrow as pa

    return np.asarray(values.cast(pa.float64(), safe=False).fill_null(np.nan))


def strings(values: "Column | Sequence[str]") -> "Column":
    """Texts as an Arrow column of the type string."""
    import pyarrow as pa

    return values.cast(pa.string()) if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, pa.string())


def softmax(scores: Array) -> Floats:
    """Positive numbers of sum 1 that keep the order of the scores (n,), float64."""
    logits: Floats = np.asarray(scores, np.float64)
    weights = np.exp(logits - logits.max(initial=-np.inf))
    shares: Floats = weights / weights.sum()
    return shares
