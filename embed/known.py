"""What a cache already has, in 16 bytes an entry: sets of 128-bit ids, and the fingerprints of names.

Ten million Python strings in a set cost over a gigabyte, and a job of ten million pictures needs two such sets.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from embed.cache import KEYS, Cache


class IdSet:
    """A growing set of 128-bit ids, each given as two uint64 words.

    An open hash table in one numpy array, at most 60 % full. The id of all zero bits marks a free slot; ids are
    parts of cryptographic hashes, so it does not occur.
    """

    def __init__(self) -> None:
        self._slots = np.zeros((1 << 12, 2), np.uint64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def contains(self, ids: np.ndarray) -> np.ndarray:
        """(n,) bool for ids (n, 2) uint64."""
        return self._slots[self._find(ids)].any(axis=1)

    def add(self, ids: np.ndarray) -> np.ndarray:
        """(n,) bool: which of the ids (n, 2) were new, the first one where some are equal."""
        self._grow(self._count + len(ids))
        new = np.zeros(len(ids), bool)
        pending = np.arange(len(ids))
        while len(pending):
            slot = self._find(ids[pending])
            absent = ~self._slots[slot].any(axis=1)
            pending, slot = pending[absent], slot[absent]
            # Several may want one free slot: the first takes it, the others look again.
            _, first = np.unique(slot, return_index=True)
            self._slots[slot[first]] = ids[pending[first]]
            new[pending[first]] = True
            pending = np.delete(pending, first)
        self._count += int(new.sum())
        return new

    def _find(self, ids: np.ndarray) -> np.ndarray:
        """For each id the slot that holds it, or the free one where it belongs."""
        last = np.uint64(len(self._slots) - 1)
        slot = (ids[:, 0] & last).astype(np.int64)
        active = np.arange(len(ids))
        while len(active):
            held = self._slots[slot[active]]
            settled = (held == ids[active]).all(axis=1) | ~held.any(axis=1)
            active = active[~settled]
            slot[active] = (slot[active] + 1) & int(last)
        return slot

    def _grow(self, count: int) -> None:
        capacity = len(self._slots)
        while count > 0.6 * capacity:
            capacity *= 2
        if capacity > len(self._slots):
            old, self._slots, self._count = self._slots, np.zeros((capacity, 2), np.uint64), 0
            for start in range(0, len(old), 1 << 16):
                part = old[start : start + (1 << 16)]
                self.add(part[part.any(axis=1)])


def words(ids: pa.ChunkedArray | Sequence[str]) -> np.ndarray:
    """(n, 2) uint64 for n ids of 32 hexadecimal digits."""
    texts = ids.to_pylist() if isinstance(ids, pa.ChunkedArray) else ids
    return np.frombuffer(bytes.fromhex("".join(texts)), np.uint64).reshape(-1, 2)


def fingerprint(key: str, *state: object) -> bytes:
    """16 bytes for a name in a state, such as its picture's size and modification time."""
    return hashlib.blake2b("\0".join([key, *map(str, state)]).encode(), digest_size=16).digest()


def stack(fingerprints: list[bytes]) -> np.ndarray:
    """(n, 2) uint64 for n fingerprints."""
    return np.frombuffer(b"".join(fingerprints), np.uint64).reshape(-1, 2)


def name_fingerprint(key: str, id: str | None, size_bytes: int | None, mtime_ns: int | None) -> bytes:
    """By what a name is met again without reading its picture.

    A local file by its size and modification time, bytes in a table (no size) by their hash, a remote file (no time)
    by its name alone.
    """
    if mtime_ns is not None:
        return fingerprint(key, size_bytes, mtime_ns)
    return fingerprint(key) if id is None or size_bytes is not None else fingerprint(key, id)


class Known:
    """The contents and the names that a cache has, growing as a job goes on."""

    def __init__(self, cache: Cache, rehash: bool) -> None:
        self.contents = IdSet()
        self.names = IdSet()  # in `name_fingerprint`s
        self._noted = IdSet() if rehash else None  # in fingerprints of whole rows
        for file in cache.files("images", "metadata"):
            self.contents.add(words(cache.column(file, "image_id")))
        for rows in _latest_names(cache):
            if self._noted is not None:
                self._noted.add(stack([fingerprint(*row) for row in rows]))
            else:
                self.names.add(stack([name_fingerprint(*row) for row in rows]))
        if not rehash:
            # A file that could not be decoded is read again once it has changed; one that was missing, at once.
            failures = cache.failures().select(["key", "size_bytes", "mtime_ns"]).to_pylist()
            local = [row for row in failures if row["mtime_ns"] is not None]
            marks = [name_fingerprint(row["key"], None, row["size_bytes"], row["mtime_ns"]) for row in local]
            self.names.add(stack(marks))

    def has(self, ids: Sequence[str]) -> np.ndarray:
        """(n,) bool: which contents the cache has."""
        return self.contents.contains(words(ids))

    def note(self, rows: Sequence[tuple[str, str | None, int | None, int | None]]) -> np.ndarray:
        """(n,) bool: which of the rows, in the columns of a cache's keys and just read, the cache lacks."""
        if self._noted is None:
            return np.ones(len(rows), bool)  # the others were skipped before they were read
        return self._noted.add(stack([fingerprint(*row) for row in rows]))


def _latest_names(cache: Cache) -> Iterator[list[tuple[str, str, int | None, int | None]]]:
    """The rows of a cache's keys, part by part; of a local file that was replaced only the last one."""
    met = IdSet()
    for file in reversed(cache.files("images", "keys")):
        columns = [cache.column(file, name).to_pylist() for name in KEYS.names]
        rows = list(zip(*columns, strict=True))[::-1]
        last = met.add(stack([fingerprint(key) for key, *_ in rows]))
        yield [row for row, is_last in zip(rows, last, strict=True) if is_last or row[3] is None]
