"""Decode a job's pictures on a device if it can; the processes of a pool decode all others.

Files are read in threads, before the device needs them. A picture that the device cannot decode is read again by the
pool, which says what is wrong with it. Unlike in the pool's processes, a file that crashes the decoder ends the job.
"""

import logging
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

from embed.engines.jpegs import decode_jpegs
from embed.engines.nvjpeg import installed_library
from embed.engines.plain import PlainJpeg, plain_jpeg
from embed.files import content_id
from embed.inputs.decoding import Chunk, DecodePool, Picture
from embed.inputs.errors import ImageError
from embed.inputs.fetch import local_path, read_bytes
from embed.inputs.images import Limits
from embed.spec import InputError, Preprocess

AHEAD = 4  # how many chunks are read while one is decoded
KINDS = ("cuda",)  # the kinds of devices that can decode

logger = logging.getLogger(__name__)


class _File(NamedTuple):
    """A picture that the device takes."""

    picture: Picture
    data: bytes
    jpeg: PlainJpeg


class DeviceDecoder:
    """Takes the place of a DecodePool. It uses that pool and closes it.

    `library` decodes on the device.
    """

    def __init__(self, pool: DecodePool, preprocess: Preprocess, limits: Limits, device: str, readers: int) -> None:
        self._pool = pool
        self._preprocess = preprocess
        self._limits = limits
        self._device = device
        self._readers = readers
        self.library = installed_library()
        self._closed = False

    def close(self) -> None:
        """Make `run` end at its next chunk."""
        self._closed = True
        self._pool.close()

    def run(self, chunks: Iterable[Chunk]) -> Generator[Chunk, None, None]:
        """Yield the chunks in order, with the outcomes of their pictures."""
        with closing(self._through_device(chunks)) as rest:
            yield from self._pool.run(rest)

    def _through_device(self, chunks: Iterable[Chunk]) -> Generator[Chunk, None, None]:
        """Yield the chunks; the pictures that the device could decode are done."""
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
        """Read a picture that the device can decode. Return None if the pool must decode it."""
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
        """Give the pictures their pixels, or leave all of them to the pool if one fails."""
        if not files:
            return
        _, data, found = zip(*files, strict=True)
        try:
            pixels, sizes = decode_jpegs(data, found, self._preprocess, self._device, self.library)
        except RuntimeError as error:  # torch and nvImageCodec raise this for all errors, including those of memory
            logger.info(f"{len(files)} pictures are decoded by processes, because the device failed: {error}")
            return
        for (picture, content, _), rows, (width, height) in zip(files, pixels, sizes, strict=True):
            if picture.data is None and picture.mtime_ns is None:
                picture.size_bytes = len(content)
            picture.id = picture.id or content_id(content)
            picture.data, picture.pixels = None, rows
            picture.width, picture.height, picture.scaled = width, height, True
