"""Cosines against a loop."""

import numpy as np

from embed.arrays import cosines


def test_cosines_of_rows_are_taken_in_double_precision() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 7, 300)).astype(np.float16)
    wide = [(a.astype(float), b.astype(float)) for a, b in zip(first, second, strict=True)]
    expected = [sum(a * b) / (sum(a * a) * sum(b * b)) ** 0.5 for a, b in wide]
    np.testing.assert_allclose(cosines(first, second), expected, rtol=1e-12)
    assert cosines(300 * first, 300 * first).dtype == np.float64  # whose squares float16 could not hold
    np.testing.assert_allclose(cosines(300 * first, 300 * first), 1, rtol=1e-12)
