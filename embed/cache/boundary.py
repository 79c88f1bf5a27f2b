"""Activations at a cut, kept in a cache beside the vectors. The blocks above the cut are trained from them.

    images/boundary_3_float16/values_00000.npy    (n, tokens, width) or (n, channels, h, w), for n inputs
    images/boundary_3_float16/rows_00000.npy      (n, 2) int64: the row in the cache, and the number of tokens
    images/boundary_3_int8/scales_00000.npy       (n, tokens or channels) float32: the factors of the int8 values
    prompts/boundary_2_float16/values_00000.npy   (all tokens, width): the needed tokens of all texts, one after another
    images/boundary_whole_uint8/...               pixels (n, h, w, 3), for training the whole tower

bfloat16 is stored as its bits, in uint16. A part holds its rows in the order in which a job met them; `rows` says which
they are. This module does not run any tower.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embed.arrays import Array, Bools, Float32s, Ints
from embed.cache.store import BoundaryEntry, Cache, CacheWriter, StoredDtype
from embed.modes import WHOLE
from embed.spec import InputError, Side

_STORED = {"float16": np.float16, "bfloat16": np.uint16, "int8": np.int8, "float32": np.float32, "uint8": np.uint8}


def folder_name(depth: int, dtype: StoredDtype) -> str:
    """Return the name of the folder of the activations at `depth`; it lies in the folder of its side."""
    return f"boundary_{'whole' if depth == WHOLE else depth}_{dtype}"


def encode(values: Tensor, dtype: StoredDtype) -> tuple[Array, Float32s | None]:
    """Return activations (n, t, ...) as they are stored, and their (n, t) scales for int8, else None.

    Raise InputError if a value is too large for float16.
    """
    if dtype == "int8":
        largest = values.float().flatten(2).abs().amax(dim=2)
        scales = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
        steps = (values.float() / scales.view(*scales.shape, *[1] * (values.ndim - 2))).round()
        return steps.to(torch.int8).numpy(), scales.numpy()
    if dtype == "bfloat16":
        return values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16), None
    stored = values.to(getattr(torch, dtype))
    if dtype == "float16" and not torch.isfinite(stored).all():
        raise InputError("activations at this cut are too large for float16; choose --boundary-dtype bfloat16")
    return stored.numpy(), None


def decode(stored: Array, scales: Float32s | None, dtype: StoredDtype) -> Tensor:
    """Undo `encode`: return float32 activations, or uint8 if they are pixels."""
    if dtype == "bfloat16":
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).float()
    if dtype == "int8":
        assert scales is not None
        return torch.from_numpy(stored).float() * torch.from_numpy(scales).view(
            *scales.shape, *[1] * (stored.ndim - scales.ndim)
        )
    values = torch.from_numpy(stored)
    return values if dtype == "uint8" else values.float()


def row_bytes(shape: Sequence[int], dtype: StoredDtype) -> int:
    """Return how many bytes one input of that shape takes on disk."""
    scales = 4 * shape[0] if dtype == "int8" else 0
    return int(np.prod(shape)) * np.dtype(_STORED[dtype]).itemsize + scales


class Boundary:
    """The activations that a cache has for one side at one depth, memory-mapped."""

    def __init__(self, cache: Cache, side: Side, depth: int, dtype: StoredDtype) -> None:
        self.depth = depth
        self.dtype = dtype
        self.name = f"{side}/{folder_name(depth, dtype)}"
        files = cache.files(side, folder_name(depth, dtype))
        self._values = _maps(files, "values")
        self._scales = _maps(files, "scales")
        self._rows = [np.load(file) for file in files if file.name.startswith("rows_")]
        self._part = np.full(cache.count(side), -1, np.int32)
        self._place = np.zeros(cache.count(side), np.int64)  # the input, or its first token, counted within the part
        self._tokens = np.zeros(cache.count(side), np.int64)
        self.ragged = side == "prompts"
        for part, rows in enumerate(self._rows):
            self._part[rows[:, 0]] = part
            self._tokens[rows[:, 0]] = rows[:, 1]
            before = np.cumsum(rows[:, 1]) - rows[:, 1]
            self._place[rows[:, 0]] = before if self.ragged else np.arange(len(rows))

    @property
    def parts(self) -> int:
        return len(self._rows)

    def stored(self) -> Iterator[tuple[Ints, Array, Float32s | None]]:
        """Yield each part as it is on disk: (k, 2) rows and tokens, the values, and the scales for int8, else None."""
        for i, rows in enumerate(self._rows):
            yield rows, self._values[i], self._scales[i] if self._scales else None

    def has(self, rows: Ints) -> Bools:
        """Return (m,) bool: which of the rows of the cache have activations here."""
        found: Bools = self._part[rows] >= 0
        return found

    def take(self, rows: Ints) -> tuple[Tensor, Tensor | None]:
        """Return the activations of the rows (m, ...), float32 or uint8 pixels, and the (m,) lengths of texts, or None.

        Shorter texts are padded with zeros. Raise InputError if a row has no activations.
        """
        if not self.has(rows).all():
            lacking = int((~self.has(rows)).sum())
            raise InputError(f"{lacking} of the rows asked for have no activations in {self.name}; extend the boundary")
        if self.ragged:
            return self._take_texts(rows)
        stored = np.empty((len(rows), *self._values[0].shape[1:]), self._values[0].dtype)
        scales = np.empty((len(rows), *self._scales[0].shape[1:]), np.float32) if self._scales else None
        parts = self._part[rows]
        for part in np.unique(parts):
            mine = parts == part
            place = self._place[rows[mine]]
            stored[mine] = self._values[part][place]
            if scales is not None:
                scales[mine] = self._scales[part][place]
        return decode(stored, scales, self.dtype), None

    def _take_texts(self, rows: Ints) -> tuple[Tensor, Tensor]:
        lengths = self._tokens[rows]
        shape = (len(rows), int(lengths.max(initial=1)))
        stored = np.zeros((*shape, self._values[0].shape[1]), self._values[0].dtype)
        scales = np.zeros(shape, np.float32) if self._scales else None
        for i, (part, place, length) in enumerate(zip(self._part[rows], self._place[rows], lengths, strict=True)):
            stored[i, :length] = self._values[part][place : place + length]
            if scales is not None:
                scales[i, :length] = self._scales[part][place : place + length]
        return decode(stored, scales, self.dtype), torch.from_numpy(lengths)


def find_boundary(cache: Cache, side: Side, depth: int) -> Boundary | None:
    """Return the cache's boundary for training `depth` blocks: the shallowest one that is deep enough, fp32 first.

    Return None if no boundary is deep enough.
    """
    wanted = depth if depth != WHOLE else 10**6
    found = []
    for name, entry in cache.boundaries.items():
        deep = entry["depth"] if entry["depth"] != WHOLE else 10**6
        if name.startswith(f"{side}/") and deep >= wanted:
            found.append((deep, [*("float32", "float16", "bfloat16", "int8"), "uint8"].index(entry["dtype"]), entry))
    if not found:
        return None
    *_, entry = min(found, key=lambda one: one[:2])
    return Boundary(cache, side, entry["depth"], entry["dtype"])


class PartWriter:
    """Collects activations and writes them in parts of about `PART_BYTES`; each part is committed once written."""

    PART_BYTES = 128 * 2**20
    PART_ROWS = 8192

    def __init__(self, writer: CacheWriter, side: Side, depth: int, dtype: StoredDtype) -> None:
        self._writer = writer
        self._dtype = dtype
        self._entry: BoundaryEntry = {"depth": depth, "dtype": dtype}
        self._existing = Boundary(writer.cache(), side, depth, dtype)
        self._ragged, self.name, self._part = self._existing.ragged, self._existing.name, self._existing.parts
        self._clear()

    def _clear(self) -> None:
        self._arrays: dict[str, list[Array]] = {"values": [], "scales": [], "rows": []}
        self._bytes = self._count = 0

    def add(self, rows: Ints, values: Tensor, lengths: Tensor | None) -> bool:
        """Add activations. Return whether a part became full and was written."""
        tokens = np.full(len(rows), values.shape[1]) if lengths is None else lengths.numpy()
        stored, scales = encode(values, self._dtype)
        if self._ragged:
            kept = np.arange(values.shape[1]) < tokens[:, None]
            stored, scales = stored[kept], None if scales is None else scales[kept]
        return self._add(np.stack([rows, tokens], axis=1).astype(np.int64), stored, scales)

    def copy(self, other: Boundary, row_of: Ints) -> None:
        """Copy the activations that another cache's boundary has and this one lacks.

        `row_of` (n,) gives, for each row of the other cache, the row in this cache.
        """
        for rows, values, scales in other.stored():
            ours, tokens = row_of[rows[:, 0]], rows[:, 1]
            new = ~self._existing.has(ours)
            if new.any():
                kept = np.repeat(new, tokens) if self._ragged else new
                self._add(np.stack([ours, tokens], axis=1)[new], values[kept], None if scales is None else scales[kept])

    def _add(self, rows: Ints, values: Array, scales: Float32s | None) -> bool:
        for name, array in (("values", values), ("scales", scales)):
            if array is not None:
                self._arrays[name].append(array)
                self._bytes += array.nbytes
        self._arrays["rows"].append(rows)
        self._count += len(rows)
        full = self._bytes >= self.PART_BYTES or self._count >= self.PART_ROWS
        if full:
            self.commit()
        return full

    def commit(self, certificate: dict[str, object] | None = None) -> None:
        """Write what was added as a part. The certificate goes into the manifest's entry of this boundary."""
        cache = self._writer.cache()
        entries = cache.boundaries
        for name, arrays in self._arrays.items():
            if arrays:
                self._writer.write_array(f"{self.name}/{name}_{self._part:05d}.npy", np.concatenate(arrays))
        self._part += bool(self._count)
        entry = entries.get(self.name, self._entry)
        if certificate is not None:
            entry = {**entry, "certificate": certificate}
        self._writer.commit(boundary={**entries, self.name: entry})
        self._clear()


def _maps(files: Sequence[Path], kind: str) -> list[NDArray[Any]]:
    return [np.load(file, mmap_mode="r", allow_pickle=False) for file in files if file.name.startswith(f"{kind}_")]
