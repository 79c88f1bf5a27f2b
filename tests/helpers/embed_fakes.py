"""A backbone whose vectors can be computed by hand, tables in memory, and small pictures, for tests of the job."""

import io
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from embed.cache.store import CacheWriter
from embed.inputs.decoding import Chunk, decode
from embed.inputs.images import Limits
from embed.spec import Identity, Preprocess, Source

IMAGES = pa.schema([("key", pa.string()), ("uri", pa.string()), ("bytes", pa.binary())])
SOURCE = Source("fake")
PREPROCESS = Preprocess((8, 8), "squash", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IDENTITY = Identity("fake", "0" * 64, PREPROCESS, "none", "letters", 16, 4)


@contextmanager
def interrupted_at_commit() -> Iterator[None]:
    """While the block lasts, a job is interrupted as soon as it has written a part of its cache."""
    commit = CacheWriter.commit

    def killed(self: CacheWriter, **fields: Any) -> None:
        commit(self, **fields)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CacheWriter, "commit", killed)
        yield


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class FakeEncoder:
    """A picture becomes (1, mean red, green, blue), a prompt (1, its length, a's, b's), of unit length."""

    def __init__(self, features: tuple[str, ...] = ("projected",), batch_size: int = 4) -> None:
        self.features = features
        self.batch_size = batch_size
        self.batches: list[int] = []

    def images(self, pixels: np.ndarray) -> list[np.ndarray]:
        self.batches.append(len(pixels))
        means = pixels.astype(np.float64).mean(axis=(1, 2)) / 255
        vectors = np.concatenate([np.ones((len(pixels), 1)), means], axis=1)
        by_name = {"projected": unit(vectors), "pooled": unit(np.concatenate([vectors, vectors**2], axis=1))}
        return [by_name[name] for name in self.features]

    def prompts(self, prompts: Sequence[str]) -> tuple[np.ndarray, int]:
        rows = [[1, len(prompt), prompt.count("a"), prompt.count("b")] for prompt in prompts]
        return unit(np.array(rows, np.float64)), sum(len(prompt) > 16 for prompt in prompts)


class InlinePool:
    """Decodes in this process, as DecodePool does in others."""

    def run(self, chunks: Iterable[Chunk]) -> Generator[Chunk, None, None]:
        for chunk in chunks:
            for one in chunk.work():
                decode(one, PREPROCESS, Limits())
            yield chunk

    def close(self) -> None:
        pass


class Table:
    """Records from lists; a picture is (key, path or bytes)."""

    def __init__(self, images: Sequence[tuple[str, Path | bytes | None]] = (), prompts: Sequence[str] = ()) -> None:
        self._images = images
        self._prompts = prompts

    def images(self) -> Iterator[pa.RecordBatch]:
        rows = [
            {
                "key": key,
                "uri": str(picture) if isinstance(picture, Path) else None,
                "bytes": picture if isinstance(picture, bytes) else None,
            }
            for key, picture in self._images
        ]
        for start in range(0, len(rows), 100):
            yield pa.RecordBatch.from_pylist(rows[start : start + 100], IMAGES)

    def prompts(self) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"text": pa.array(self._prompts, pa.string())})


def picture(color: tuple[int, int, int], size: tuple[int, int] = (12, 9)) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def colors(n: int) -> list[tuple[int, int, int]]:
    return [(i % 256, i // 256 % 256, 7 * i % 256) for i in range(n)]


def folder_bytes(path: Path) -> dict[str, bytes]:
    """Every file of a cache but its lock, by name."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }
