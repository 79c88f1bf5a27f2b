"""Decode pictures in worker processes. If a picture kills its process, only that picture is lost.

`DecodePool` reads, hashes and decodes the chunks of a job; `Decoders` decodes single pictures for a service. They
know nothing of caches, models or HTTP.
"""

import json
import math
import os
import re
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from embed.files import content_id
from embed.inputs.errors import BLAMED, Reason, Stage, read_object, require_failure
from embed.inputs.fetch import local_path, read_bytes
from embed.inputs.images import STALL_S, ImageError, Limits, growth_bytes, load_image, load_scaled
from embed.inputs.thumbnails import shrunk, webp
from embed.process.workers import ANSWER_BYTES, Answers, WorkerPool
from embed.spec import InputError, Preprocess
from embed.wording import one_line

CHUNK = 32  # pictures that are sent to a process together, so that the cost of a message is small
MAX_DETAIL = 4000  # characters, because an address may have any length


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a picture got no vector."""

    stage: Stage
    reason: Reason
    detail: str = ""


@dataclass(slots=True)
class Picture:
    """A picture to decode: its name in the data and its place or its bytes; later also the result."""

    key: str
    uri: str | None
    data: bytes | None = None
    size_bytes: int | None = None  # None for bytes in a table
    mtime_ns: int | None = None  # None unless it is a local file
    id: str | None = None  # hash of its content, once it was read
    known: bool = False  # a vector of its content exists already, so it need not be decoded
    width: int = 0
    height: int = 0
    scaled: bool = False  # decoded at a reduced size or on a device, and so not exactly
    failure: Failure | None = None
    pixels: np.ndarray | None = None  # uint8 (h, w, 3)

    def outcome(self) -> dict[str, Any]:
        """Return the result without the pixels, in plain values. If decoding failed, the stage is among them."""
        found = {name: getattr(self, name) for name in ("size_bytes", "id", "width", "height", "scaled")}
        return found if self.failure is None else found | asdict(self.failure)

    def settle(self, outcome: dict[str, Any], pixels: np.ndarray | None) -> None:
        """Take the outcome from another process, and the pixels if the picture did not fail."""
        self.data = None
        self.size_bytes, self.id = outcome["size_bytes"], outcome["id"]
        self.width, self.height, self.scaled = outcome["width"], outcome["height"], outcome["scaled"]
        if outcome.get("stage") is None:
            self.pixels = pixels
        else:
            self.failure = Failure(outcome["stage"], outcome["reason"], outcome["detail"])


@dataclass
class Chunk:
    """Up to CHUNK pictures, and how many records before them were skipped."""

    pictures: list[Picture]
    skipped: int = 0

    def work(self) -> list[Picture]:
        """Return the pictures that have not been decoded yet and need to be."""
        return [picture for picture in self.pictures if not picture.known and picture.pixels is None]


def decode(picture: Picture, preprocess: Preprocess, limits: Limits, scale: int | None = None) -> Picture:
    """Decode a picture: set its pixels or its failure, and drop its bytes. `scale` is that of embed.inputs.scaled.

    Raise InputError if something other than the picture is wrong, such as a missing library for a file system.
    """
    data, picture.data = picture.data, None
    try:
        if data is None and picture.uri is None:
            raise ImageError("read", "no picture", "the row has neither a path nor bytes")
        if data is None:
            data = read_bytes(str(picture.uri), limits.max_bytes)
            if picture.mtime_ns is None:
                picture.size_bytes = len(data)
        picture.id = picture.id or content_id(data)
        picture.pixels, size, picture.scaled = load_scaled(data, preprocess, limits, scale)
        picture.width, picture.height = size
    except ImageError as error:
        # Memory addresses in messages differ from run to run, and the ledger must not.
        detail = re.sub(r" at 0x[0-9a-f]+", "", error.detail)
        picture.failure = Failure(error.stage, error.reason, detail)
    except FileNotFoundError as error:
        picture.failure = Failure("read", "no such file", one_line(error)[:MAX_DETAIL])
    except OSError as error:
        picture.failure = Failure("read", "unreadable", one_line(error)[:MAX_DETAIL])
    except MemoryError as error:
        picture.failure = Failure("read", "out of memory", one_line(error))
    return picture


class DecodePool:
    """Decodes chunks of pictures in up to `workers` processes, which start when there is work and end at `close`.

    Processes that fetch pictures have the network and this process's environment, with its credentials and proxies.
    Other processes have neither and can only read files.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        limits: Limits,
        workers: int,
        stall_s: float = STALL_S,
        scale: int | None = None,
    ) -> None:
        self.scale = scale  # the scale of embed.inputs.scaled for chunks that are started from now on
        self._shape = (CHUNK, *preprocess.size, 3)
        handle = partial(_decode_into, preprocess=preprocess, limits=limits)
        make = partial(WorkerPool, handle, workers, stall_s, math.prod(self._shape), growth_bytes=growth_bytes(limits))
        self._pool: WorkerPool[tuple[int, Picture, int | None]] = make(reach="files")
        self._fetching: WorkerPool[tuple[int, Picture, int | None]] = make(environment=os.environ.copy())
        self._most = 2 * workers

    @property
    def started(self) -> int:
        """How many processes were started so far."""
        return self._pool.started + self._fetching.started

    def close(self) -> None:
        """End the processes. A `run` in another thread then ends at its next chunk."""
        self._pool.close()
        self._fetching.close()

    def run(self, chunks: Iterable[Chunk]) -> Generator[Chunk, None, None]:
        """Yield the chunks in order, with the outcomes of their pictures. At most two for each worker are in work."""
        source = iter(chunks)
        window: deque[tuple[Chunk, Future[None]]] = deque()
        try:
            while True:
                while len(window) < self._most and (chunk := next(source, None)) is not None:
                    window.append((chunk, self._submit(chunk)))
                if not window:
                    return
                window[0][1].result()
                yield window.popleft()[0]
        except CancelledError:
            return  # the pool was closed
        finally:
            for _, future in window:
                future.cancel()

    def _submit(self, chunk: Chunk) -> "Future[None]":
        """Return a future that is done when the outcomes of the chunk's pictures are set."""
        work = chunk.work()
        remote = any(one.data is None and one.uri and local_path(one.uri) is None for one in work)
        read = partial(_read_outcome, may_fault=remote)

        def collect(answers: Answers, memory: memoryview) -> None:
            # Copy once, because the memory is used again for the next chunk.
            pixels = np.frombuffer(memory, np.uint8).reshape(self._shape)[: len(work)].copy()
            for picture, answer, rows in zip(work, answers, pixels, strict=True):
                if answer is None:
                    picture.data, picture.failure = None, Failure("decode", BLAMED)
                    continue
                outcome = read(answer)
                if "fault" in outcome:
                    raise InputError(outcome["fault"])
                picture.settle(outcome, rows)

        if work:
            items = [(place, picture, self.scale) for place, picture in enumerate(work)]
            return (self._fetching if remote else self._pool).submit(items, collect, check=read)
        nothing: Future[None] = Future()
        nothing.set_result(None)
        return nothing


def _decode_into(
    item: tuple[int, Picture, int | None], memory: memoryview, preprocess: Preprocess, limits: Limits
) -> bytes:
    """Run in the process: write pixels to the picture's place in memory; return its outcome, or a fault that is not
    its own."""
    place, picture, scale = item
    try:
        decode(picture, preprocess, limits, scale)
    except InputError as error:
        return json.dumps({"fault": str(error)}).encode()
    if picture.pixels is not None:
        np.frombuffer(memory, np.uint8).reshape(-1, *picture.pixels.shape)[place] = picture.pixels
        picture.pixels = None  # kept for a whole chunk, they would need new memory pages each time
    return json.dumps(picture.outcome()).encode()


def _read_outcome(answer: bytes, may_fault: bool) -> dict[str, Any]:
    """Read the answer of `_decode_into`. Raise ValueError if it is not a valid one."""
    said: dict[str, Any] = read_object(answer)
    if may_fault and isinstance(said.get("fault"), str):
        return said
    most = {"size_bytes": 2**63, "width": 2**31, "height": 2**31}
    failure = {name: value for name, value in said.items() if name not in ("id", "scaled", *most)}
    if failure:
        require_failure(failure)
        # The ledger cannot store half of a surrogate pair, which a file name may contain.
        said["detail"] = said["detail"].encode("utf-8", "backslashreplace").decode()
    for name, limit in most.items():
        number = said.get(name, -1)
        unknown = number is None and name == "size_bytes"
        if not unknown and not (type(number) is int and 0 <= number < limit):
            raise ValueError(f"{name} is {str(number)[:50]}")
    if type(said.get("scaled")) is not bool:
        raise ValueError(f"scaled is {str(said.get('scaled'))[:50]}")
    if not re.fullmatch("[0-9a-f]{32}", str(said.get("id"))) and not (failure and said.get("id") is None):
        raise ValueError(f"{str(said.get('id'))[:50]} is not an id of a content")
    return said


Decoded: TypeAlias = NDArray[np.uint8] | ImageError
Wanted: TypeAlias = tuple[Preprocess, int | None] | int  # pixels at a scale, or the size of a thumbnail
Made = TypeVar("Made")

SIZE = struct.Struct("<II")  # the width and height of the original, before the data of its smaller picture


class View(NamedTuple):
    """A picture made small enough to show, as WebP, and the size of the upright original."""

    data: bytes
    width: int
    height: int


class Decoders:
    """Decodes single pictures in `count` processes, which all start at once and run until `close`."""

    def __init__(self, count: int, limits: Limits, stall_s: float, lost: Callable[[], None] = lambda: None) -> None:
        """`lost` is called for each process that dies, or that takes longer than `stall_s` for a picture."""
        self._limits = limits
        handle = partial(_decode_bytes, limits=limits)
        self._pool = WorkerPool(handle, count, stall_s, lost=lost, growth_bytes=growth_bytes(limits), reach="bytes")
        self._pool.start()

    def submit(self, data: bytes, spec: Preprocess, scale: int | None = None) -> "Future[Decoded]":
        """Return a future of pixels (h, w, 3) for the backbone, or of what is wrong with the picture.

        If the future is cancelled in time, the picture is not decoded. `scale` is that of embed.inputs.scaled.
        """

        def pixels(answer: bytes) -> NDArray[np.uint8]:
            return np.frombuffer(answer, np.uint8, offset=1).reshape(*spec.size, 3)

        return self._submit(data, (spec, scale), pixels, max(ANSWER_BYTES, 1 + 3 * math.prod(spec.size)))

    def thumbnail(self, data: bytes, size: int) -> "Future[bytes | ImageError]":
        """Return a future of the picture as WebP, at most `size` pixels a side, or of what is wrong with it."""
        return self._submit(data, size, lambda answer: answer[1 + SIZE.size :], ANSWER_BYTES)

    def view(self, data: bytes, size: int) -> "Future[View | ImageError]":
        """Do the same with the original's width and height, for sizes that thumbnails do not have."""

        def view(answer: bytes) -> View:
            return View(answer[1 + SIZE.size :], *SIZE.unpack_from(answer, 1))

        return self._submit(data, size, view, max(ANSWER_BYTES, 1 + SIZE.size + size * size))

    def _submit(
        self, data: bytes, wanted: Wanted, made: Callable[[bytes], Made], answer_bytes: int
    ) -> "Future[Made | ImageError]":
        def read(answer: bytes | None) -> Made | ImageError:
            """Read the answer of `_decode_bytes`. Raise ValueError if it is not a valid one."""
            if answer is None:
                return ImageError("decode", BLAMED)
            return ImageError.from_json(answer) if answer[:1] == b"{" else made(answer)

        if len(data) <= self._limits.max_bytes:
            return self._pool.submit([(data, wanted)], lambda answers, _: read(answers[0]), answer_bytes, read)
        refused: Future[Made | ImageError] = Future()  # too large, so it is not sent
        refused.set_result(
            ImageError("limits", "too many bytes", f"{len(data)}, at most {self._limits.max_bytes} allowed")
        )
        return refused

    def close(self) -> None:
        """Drop pictures that wait or are being decoded, and end the processes."""
        self._pool.close()


def _decode_bytes(item: tuple[bytes, Wanted], _: memoryview, limits: Limits) -> bytes:
    """Run in the process: return `=` and pixels or a thumbnail, or JSON that says what is wrong."""
    data, wanted = item
    try:
        if isinstance(wanted, int):
            image = load_image(data, limits)
            size = SIZE.pack(*image.size)
            return b"=" + size + webp(shrunk(image, wanted))
        spec, scale = wanted
        return b"=" + load_scaled(data, spec, limits, scale)[0].tobytes()
    except ImageError as error:
        return error.to_json()
    except MemoryError as error:
        return ImageError("decode", "out of memory", one_line(error)).to_json()
