"""Encode rows in batches, one after another or a few at the same time."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from embed.arrays import Float16s, Float32s
from embed.spec import InputError

Row = TypeVar("Row")


class Batches(Generic[Row]):
    """Encodes rows with `encode` in batches of `size`, of which up to `at_once` are encoded at the same time. A batch
    never spans two calls of `take`."""

    def __init__(self, encode: Callable[[list[Row]], list[Float32s]], size: int, at_once: int = 1) -> None:
        self._encode = encode
        self._size = size
        self._at_once = at_once
        self._threads = ThreadPoolExecutor(at_once, "encoder") if at_once > 1 else None
        self._under_way: deque[Future[list[Float16s]]] = deque()
        self._rows: list[Row] = []
        self._vectors: list[list[Float16s]] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == self._size:
            self._flush()

    def take(self) -> list[Float16s]:
        """Return (n, d) float16 of every feature, for the rows added since the last call."""
        self._flush()
        self._await(0)
        vectors, self._vectors = self._vectors, []
        return [np.concatenate(arrays) for arrays in zip(*vectors, strict=True)]

    def _flush(self) -> None:
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        if self._threads is None:
            self._vectors.append(self._encoded(rows))
        else:
            self._under_way.append(self._threads.submit(self._encoded, rows))
            self._await(self._at_once)

    def close(self) -> None:
        """Wait for the batches under way."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _await(self, most: int) -> None:
        """Until so many batches are under way."""
        while len(self._under_way) > most:
            self._vectors.append(self._under_way.popleft().result())

    def _encoded(self, rows: list[Row]) -> list[Float16s]:
        vectors = [array.astype(np.float16) for array in self._encode(rows)]
        if not all(np.isfinite(array).all() for array in vectors):
            raise InputError("the backbone gave vectors that are not finite; try --precision fp32")
        return vectors
