"""The ledger in memory: all pictures without a vector, with the stage and the reason, in the order of the data."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.cache.store import FAILURES


class Ledger:
    """Failures of earlier runs and of this one, one row a key.

    They are kept in Arrow because a wrong --images-root makes millions of pictures fail.
    """

    def __init__(self, failures: pa.Table) -> None:
        self.table = failures
        self._new: list[dict[str, object]] = []
        self._mended: list[str] = []
        self.added = 0

    def add(self, *row: object) -> None:
        """Record a failure, in the columns of FAILURES. It replaces an earlier failure of the same key."""
        self._new.append(dict(zip(FAILURES.names, row, strict=True)))
        self.added += 1

    def mend(self, keys: Sequence[str]) -> None:
        """Remove earlier failures of these keys, which now have a vector."""
        if len(self.table):
            self._mended.extend(keys)

    def pending(self) -> int:
        """Return how many changes `settle` would make."""
        return len(self._new) + len(self._mended)

    def settle(self) -> bool:
        """Apply the changes to `table`. Return whether that changed it."""
        before = self.table
        if self._mended:
            mended = pc.is_in(before["key"], value_set=pa.array(self._mended, pa.string()))
            self.table = self.table.filter(pc.invert(mended))
        if self._new:
            new = pa.Table.from_pylist(self._new, FAILURES)
            place = np.asarray(pc.fill_null(pc.index_in(new["key"], value_set=self.table["key"]), -1))
            again = np.flatnonzero(place >= 0)
            rows = np.arange(len(self.table))
            rows[place[again]] = len(rows) + again
            order = np.concatenate([rows, len(rows) + np.flatnonzero(place < 0)])
            self.table = pa.concat_tables([self.table, new]).take(pa.array(order)).combine_chunks()
        self._new, self._mended = [], []
        return not self.table.equals(before)
