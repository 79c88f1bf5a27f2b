"""Types of numpy arrays, which say what the numbers are (docstrings say the shape), and the cosine of two."""

import numpy as np
from numpy.typing import NDArray

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
