"""What a cache already contains, in 10 bytes an entry: sets of ids and of fingerprints of names.

Ten million Python strings in a set take over a gigabyte, and a job of ten million pictures needs two such sets.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from embed.arrays import Array, Bools, UInt64s
from embed.cache.store import Cache

NAMED = ("image_path", "image_id", "size_bytes", "mtime_ns")  # those columns of a cache's keys that identify a name
LONGEST_RUN = 1 << 17  # a limit, because merging takes some 40 bytes of memory an id


class IdSet:
    """A growing set of ids. Each is given as two uint64 words of a cryptographic hash, and 80 of these bits are kept.

    The chance that any two of ten million ids look equal is 4e-11. Ids are kept in sorted runs in two plain arrays, and
    only short runs are merged, so that a large set takes no more memory than its ids, even while it grows.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[UInt64s, Array]] = []  # uint64 and uint16, sorted by the first, then the second

    def __len__(self) -> int:
        return sum(len(high) for high, _ in self._runs)

    def contains(self, ids: UInt64s) -> Bools:
        """Return (n,) bool: which of the ids (n, 2) uint64 are in the set."""
        return self._has(ids[:, 0], ids[:, 1].astype(np.uint16))

    def add(self, ids: UInt64s) -> Bools:
        """Add ids (n, 2) uint64. Return (n,) bool: which were new; of equal ids only the first is new."""
        high, low = ids[:, 0], ids[:, 1].astype(np.uint16)
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        first = np.ones(len(ids), bool)
        first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        first &= ~self._has(high, low)
        if first.any():
            self._runs.append((high[first], low[first]))
            self._merge()
        new = np.zeros(len(ids), bool)
        new[order[first]] = True
        return new

    def _has(self, high: UInt64s, low: Array) -> Bools:
        found = np.zeros(len(high), bool)
        for run_high, run_low in self._runs:
            at = np.searchsorted(run_high, high)
            near = np.flatnonzero(at < len(run_high))
            near = near[run_high[at[near]] == high[near]]
            while len(near):  # repeats only if 64 bits are equal and the other 16 are not
                found[near] |= run_low[at[near]] == low[near]
                at[near] += 1
                near = near[at[near] < len(run_high)]
                near = near[run_high[at[near]] == high[near]]
        return found

    def _merge(self) -> None:
        while len(self._runs) > 1:
            (high_a, low_a), (high_b, low_b) = self._runs[-2:]
            if len(high_a) > 2 * len(high_b) or len(high_a) + len(high_b) > LONGEST_RUN:
                return
            high, low = np.concatenate([high_a, high_b]), np.concatenate([low_a, low_b])
            order = np.lexsort((low, high))
            self._runs[-2:] = [(high[order], low[order])]


def words(ids: pa.ChunkedArray | Sequence[str]) -> UInt64s:
    """Return (n, 2) uint64 for n ids of 32 hexadecimal digits."""
    texts = ids.to_pylist() if isinstance(ids, pa.ChunkedArray) else ids
    return np.frombuffer(bytes.fromhex("".join(texts)), np.uint64).reshape(-1, 2)


def fingerprint(key: str, *state: object) -> bytes:
    """Return 16 bytes that identify a name in a state, such as the size and modification time of its picture."""
    return hashlib.blake2b("\0".join([key, *map(str, state)]).encode(), digest_size=16).digest()


def stack(fingerprints: list[bytes]) -> UInt64s:
    """Return (n, 2) uint64 for n fingerprints."""
    return np.frombuffer(b"".join(fingerprints), np.uint64).reshape(-1, 2)


def name_fingerprint(key: str, id: str | None, size_bytes: int | None, mtime_ns: int | None) -> bytes:
    """Return the fingerprint by which a name is recognised without reading its picture.

    A local file is recognised by its name, size and modification time; bytes in a table, which have no `size_bytes`, by
    name and hash; a remote file, which has no `mtime_ns`, by name alone.
    """
    if mtime_ns is not None:
        return fingerprint(key, size_bytes, mtime_ns)
    return fingerprint(key) if id is None or size_bytes is not None else fingerprint(key, id)


class Known:
    """The contents and the names that a cache has. They grow while a job runs."""

    def __init__(self, cache: Cache, rehash: bool) -> None:
        self.contents = IdSet()
        self.names = IdSet()  # of `name_fingerprint`
        self._noted = IdSet() if rehash else None  # of fingerprints of whole rows
        for file in cache.files("images", "metadata"):
            self.contents.add(words(cache.column(file, "image_id")))
        for rows in _latest_names(cache):
            if self._noted is not None:
                self._noted.add(stack([fingerprint(*row) for row in rows]))
            else:
                self.names.add(stack([name_fingerprint(*row) for row in rows]))
        if not rehash:
            # A file that could not be decoded is read again only after it has changed; a missing file is always tried.
            failures = cache.failures().select(["key", "size_bytes", "mtime_ns"]).to_pylist()
            local = [row for row in failures if row["mtime_ns"] is not None]
            marks = [name_fingerprint(row["key"], None, row["size_bytes"], row["mtime_ns"]) for row in local]
            self.names.add(stack(marks))

    def has(self, ids: Sequence[str]) -> Bools:
        """Return (n,) bool: which of the contents the cache has."""
        return self.contents.contains(words(ids))

    def note(self, rows: Sequence[tuple[str, str | None, int | None, int | None]]) -> Bools:
        """Return (n,) bool: whether the cache lacks each row. The rows were just read and have its key columns."""
        if self._noted is None:
            return np.ones(len(rows), bool)  # rows that the cache has were skipped before they were read
        return self._noted.add(stack([fingerprint(*row) for row in rows]))


def _latest_names(cache: Cache) -> Iterator[list[tuple[str, str, int | None, int | None]]]:
    """Yield the rows of a cache's keys, part by part. Of a local file that was replaced, only the last row is given."""
    met = IdSet()
    for file in reversed(cache.files("images", "keys")):
        columns = [cache.column(file, name).to_pylist() for name in NAMED]
        rows = list(zip(*columns, strict=True))[::-1]
        last = met.add(stack([fingerprint(key) for key, *_ in rows]))
        yield [row for row, is_last in zip(rows, last, strict=True) if is_last or row[3] is None]
