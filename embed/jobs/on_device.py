"""A job's pictures decoded on a device, as far as it takes them; every other one in the processes of a pool.

Files are read in threads, ahead of the device. What the device does not take, or fails at, the pool reads anew, and
says what is wrong with it. Unlike in the pool's processes, a file that breaks the decoder breaks the job.
"""

import logging
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

from embed.engines.jpegs import decode_jpegs
from embed.engines.plain import PlainJpeg, plain_jpeg
from embed.files import content_id
from embed.inputs.decoding import Chunk, DecodePool, Picture
from embed.inputs.errors import ImageError
from embed.inputs.fetch import local_path, read_bytes
from embed.inputs.images import Limits
from embed.spec import InputError, Preprocess

AHEAD = 4  # chunks that are read while one is decoded
KINDS = ("cuda",)  # of devices that decode

logger = logging.getLogger(__name__)


class _File(NamedTuple):
    """A picture that the device takes."""

    picture: Picture
    data: bytes
    jpeg: PlainJpeg


class DeviceDecoder:
    """In the place of a DecodePool, which it uses and closes."""

    def __init__(self, pool: DecodePool, preprocess: Preprocess, limits: Limits, device: str, readers: int) -> None:
        self._pool = pool
        self._preprocess = preprocess
        self._limits = limits
        self._device = device
        self._readers = readers
        self._closed = False

    def close(self) -> None:
        """Make `run` end at its next chunk."""
        self._closed = True
        self._pool.close()

    def run(self, chunks: Iterable[Chunk]) -> Generator[Chunk, None, None]:
        """The chunks in their order, their outcomes set."""
        with closing(self._through_device(chunks)) as rest:
            yield from self._pool.run(rest)

    def _through_device(self, chunks: Iterable[Chunk]) -> Generator[Chunk, None, None]:
        """The chunks, of whose pictures those that the device took are done."""
        source = iter(chunks)
        waiting: deque[tuple[Chunk, list[Future[_File | None]]]] = deque()
        with ThreadPoolExecutor(self._readers, "reader") as readers:
            while not self._closed:
                while len(waiting) <= AHEAD and (chunk := next(source, None)) is not None:
                    waiting.append((chunk, [readers.submit(self._read, picture) for picture in chunk.work()]))
                if not waiting:
                    return
                chunk, reading = waiting.popleft()
                self._decode([file for one in reading if (file := one.result()) is not None])
                yield chunk

    def _read(self, picture: Picture) -> _File | None:
        """A picture that the device takes; None where it is the pool's."""
        data = picture.data
        if data is None:
            if picture.uri is None or local_path(picture.uri) is None:
                return None
            try:
                data = read_bytes(picture.uri, self._limits.max_bytes)
            except (OSError, ImageError, InputError):
                return None
        jpeg = plain_jpeg(data, self._limits)
        return None if jpeg is None else _File(picture, data, jpeg)

    def _decode(self, files: Sequence[_File]) -> None:
        """Give the pictures their pixels, or leave all of them to the pool."""
        if not files:
            return
        _, data, found = zip(*files, strict=True)
        try:
            pixels, sizes = decode_jpegs(data, found, self._preprocess, self._device)
        except RuntimeError as error:  # all that torch raises, memory included
            logger.info(f"{len(files)} pictures are decoded by processes, the device having failed at one: {error}")
            return
        for (picture, content, _), rows, (width, height) in zip(files, pixels, sizes, strict=True):
            if picture.data is None and picture.mtime_ns is None:
                picture.size_bytes = len(content)
            picture.id = picture.id or content_id(content)
            picture.data, picture.pixels = None, rows
            picture.width, picture.height, picture.scaled = width, height, True
