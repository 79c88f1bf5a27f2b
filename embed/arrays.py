"""Types of numpy arrays, which say what the numbers are (docstrings say the shape), and the cosine of two."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]  # what is measured: credits, probabilities, intervals
Float32s = NDArray[np.float32]  # what models compute: vectors and scores
Ints = NDArray[np.int64]  # rows, groups and other numbers that count or name
UInt8s = NDArray[np.uint8]  # pixels


def cosines(first: np.ndarray, second: np.ndarray) -> Floats:
    """(n,) cosine of each row of `first` (n, d) and the same row of `second`, in float64 whatever theirs is."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
