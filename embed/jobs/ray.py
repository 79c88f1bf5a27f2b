"""The embedding job on a Ray cluster: Ray Data decodes and encodes, with the same plan, functions and files.

    plan (driver) -> decode and encode (a pool of actors, on all nodes) -> settle, shard, commit (driver)

Only the driver writes, in the order of the data. So a cache that was begun on one machine can be finished on a cluster
and the other way round; what exists already is recognised by its content, as in embed.jobs.run. The actors read the
pictures, so a path must mean the same on every node. Batches are not the same as on one machine, so the last bits of
vectors may differ. Prompts take little time compared with pictures and are encoded by the driver.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embed.arrays import Float32s
from embed.cache.store import INT32, INT64, STRING
from embed.engines.choice import Engine
from embed.engines.encoders import TowerEncoder
from embed.engines.towers import Towers
from embed.inputs.decoding import CHUNK, Chunk, DecodePool, Picture
from embed.inputs.images import Limits
from embed.spec import InputError

# How many pictures are sent to the cluster at once, and how many bytes of pictures; the object store keeps them.
WINDOW_PICTURES = 65_536
WINDOW_BYTES = 1 << 30

TASK = pa.schema(
    {"key": STRING, "uri": STRING, "data": pa.binary(), "size_bytes": INT64, "mtime_ns": INT64, "id": STRING}
)
# If there is a vector (float32, all features in one row), stage, reason and detail are null.
RESULT = pa.schema(
    {"size_bytes": INT64, "id": STRING, "width": INT32, "height": INT32, "scaled": pa.bool_(), "vector": pa.binary()}
    | dict.fromkeys(("stage", "reason", "detail"), STRING)
)


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or start one on this machine. Raise InputError if that fails."""
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs the extra `ray`: pip install 'plaudit[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False)
        except ConnectionError as error:
            raise InputError(f"no Ray cluster at {address}: {error}") from None


class RayEncoder(TowerEncoder):
    """Takes the place of a TowerEncoder for pictures that a RayDecoder has already encoded."""

    def images(self, pixels: NDArray[Any]) -> list[Float32s]:
        """Return the vectors of each feature from (n, the sum of their dimensions)."""
        dim = self._towers.identity.dim
        parts = {"projected": pixels[:, :dim], "pooled": pixels[:, dim:]}
        return [parts[name] for name in self.features]


class RayDecoder:
    """Takes the place of a DecodePool. Pictures come back with their vectors in the place of pixels.

    `actors` work at the same time, each with `num_gpus` GPUs and `workers` decoding processes of its own.
    """

    def __init__(
        self,
        towers: Towers,
        engine: Engine,
        limits: Limits,
        *,
        batch_size: int = 32,
        actors: int = 2,
        workers: int = 1,
        num_gpus: float = 0,
        scale: int | None = None,
    ) -> None:
        self._actor = (towers, engine, limits, workers, scale)
        self._batch_size = batch_size
        self._actors = actors
        self._num_gpus = num_gpus
        self._closed = False

    def close(self) -> None:
        """Make `run` end at its next chunk."""
        self._closed = True

    def run(self, chunks: Iterable[Chunk]) -> Generator[Chunk, None, None]:
        """Yield the chunks in order, with vectors."""
        for window in _windows(chunks):
            results = self._results([picture for chunk in window for picture in chunk.work()])
            for chunk in window:
                if self._closed:
                    return
                for picture in chunk.work():
                    row = next(results)
                    picture.settle(row, None if row["vector"] is None else np.frombuffer(row["vector"], np.float32))
                yield chunk

    def _results(self, pictures: Sequence[Picture]) -> Iterator[dict[str, Any]]:
        """Yield one RESULT row for each picture, in order."""
        if not pictures:
            return
        import ray

        ray.data.DataContext.get_current().execution_options.preserve_order = True
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{name: getattr(picture, name) for name in TASK.names} for picture in pictures]
        size = self._batch_size
        blocks = [pa.Table.from_pylist(rows[i : i + size], TASK) for i in range(0, len(rows), size)]
        vectors = ray.data.from_arrow(blocks).map_batches(
            _Actor,
            batch_size=self._batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self._actors),
            fn_constructor_args=self._actor,
            num_gpus=self._num_gpus,
        )
        for batch in vectors.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from pa.table(batch).to_pylist()


class _Actor:
    """An actor of the pool: the towers, loaded once, and processes that decode."""

    def __init__(self, towers: Towers, engine: Engine, limits: Limits, workers: int, scale: int | None) -> None:
        self._encode = towers.runner("images", engine)
        self._decoder = DecodePool(towers.identity.preprocess, limits, workers, scale=scale)

    def __call__(self, batch: pa.Table) -> pa.Table:
        pictures = [Picture(**row) for row in batch.to_pylist()]
        chunks = [Chunk(pictures[i : i + CHUNK]) for i in range(0, len(pictures), CHUNK)]
        done = [picture for chunk in self._decoder.run(chunks) for picture in chunk.pictures]
        sound = [picture.pixels for picture in done if picture.pixels is not None]
        vectors = iter(np.concatenate(self._encode(np.stack(sound)), axis=1) if sound else ())
        rows = [p.outcome() | {"vector": None if p.failure else next(vectors).tobytes()} for p in done]
        return pa.Table.from_pylist(rows, RESULT)


def _windows(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    window: list[Chunk] = []
    pictures = size_bytes = 0
    for chunk in chunks:
        window.append(chunk)
        pictures += len(chunk.pictures)
        size_bytes += sum(len(picture.data or b"") for picture in chunk.pictures)
        if pictures >= WINDOW_PICTURES or size_bytes >= WINDOW_BYTES:
            yield window
            window, pictures, size_bytes = [], 0, 0
    if window:
        yield window
