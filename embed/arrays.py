"""Names for the types of numpy arrays, which say what the numbers are; docstrings say the shape, as in (n, d)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]  # what is measured: credits, probabilities, intervals
Float32s = NDArray[np.float32]  # what models compute: vectors and scores
Ints = NDArray[np.int64]  # rows, groups and other numbers that count or name
UInt8s = NDArray[np.uint8]  # pixels
