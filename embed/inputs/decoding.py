"""Pictures read, hashed and decoded in worker processes that may die without taking the job along.

A decoder is C code fed with strangers' files: it may crash, eat all memory or never return. Each worker notes which
picture it is at; when it dies or stalls, a new worker takes the rest of its chunk, and the picture that did it twice
becomes a ledger row. Chunks come out in the order they went in. Knows no cache and no model.
"""

import contextlib
import mmap
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import DupFd
from typing import Any, BinaryIO

import numpy as np

from embed.files import content_id
from embed.inputs.fetch import read_bytes
from embed.inputs.images import ImageError, Limits, load_pixels
from embed.process.child import silence_libraries
from embed.spec import InputError, Preprocess
from embed.wording import one_line

CHUNK = 32  # pictures that travel together between processes: large against the cost of a message
STALL_S = 120.0  # no picture within the limits takes this long; a worker that does is stuck
POSITION_BYTES = 8
CULPRIT_DEATHS = 2  # a process may die of its neighbours' memory: a picture is blamed the second time


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a picture gets no vector."""

    stage: str  # "read", "limits" or "decode"
    reason: str  # one of few phrases
    detail: str = ""


@dataclass(slots=True)
class Picture:
    """A picture on its way: its name in the data, and either where it lies or its bytes; then what became of it."""

    key: str
    uri: str | None
    data: bytes | None = None
    size_bytes: int | None = None  # None of bytes in a table
    mtime_ns: int | None = None  # None of what is no local file
    id: str | None = None  # hash of its content, once read
    known: bool = False  # its content has a vector already: nothing to decode
    width: int = 0
    height: int = 0
    failure: Failure | None = None
    pixels: np.ndarray | None = None  # uint8 (h, w, 3)


@dataclass
class Chunk:
    """Up to CHUNK pictures, and how many records in front of them needed no look."""

    pictures: list[Picture]
    skipped: int = 0
    ready: bool = False
    deaths: Counter[int] = field(default_factory=Counter)  # how often each of `work` ended its process

    def work(self) -> list[Picture]:
        return [picture for picture in self.pictures if not picture.known]


def decode(picture: Picture, preprocess: Preprocess, limits: Limits) -> Picture:
    """The same picture with its pixels or its failure, and without its bytes.

    InputError where the fault is not the picture's, such as a file system whose library is missing.
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
        picture.pixels, (picture.width, picture.height) = load_pixels(data, preprocess, limits)
    except ImageError as error:
        # Addresses in messages differ from run to run, and the ledger must not.
        detail = re.sub(r" at 0x[0-9a-f]+", "", error.detail)
        picture.failure = Failure(error.stage, error.reason, detail)
    except FileNotFoundError as error:
        picture.failure = Failure("read", "no such file", one_line(error))
    except OSError as error:
        picture.failure = Failure("read", "unreadable", one_line(error))
    return picture


class DecodePool:
    """Up to `workers` processes, started when there is work for them, until `close`."""

    def __init__(self, preprocess: Preprocess, limits: Limits, workers: int, stall_s: float = STALL_S) -> None:
        self._settings = (preprocess, limits)
        self._shape = (CHUNK, *preprocess.size, 3)
        self._most = workers
        self._stall_s = stall_s
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._closed = False
        self._running = False
        self._lock = threading.Lock()
        self.started = 0  # processes so far

    def close(self) -> None:
        """End the processes, and within a second or so `run`, which may be at work in another thread."""
        self._closed = True
        if not self._running:
            self._stop()

    def run(self, chunks: Iterable[Chunk]) -> Generator[Chunk, None, None]:
        """The chunks in their order, their outcomes set. Holds at most two a worker at a time."""
        self._running = True
        try:
            yield from self._run(chunks)
        finally:
            self._running = False
            if self._closed:
                self._stop()

    def _run(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        source = iter(chunks)
        window: deque[Chunk] = deque()  # handed out or waiting for their turn to be given back
        again: deque[Chunk] = deque()  # whose worker died
        exhausted = False
        while not self._closed:
            while self._has_room() and (again or (not exhausted and len(window) < 2 * self._most)):
                if again:
                    chunk = again.popleft()
                elif (fresh := next(source, None)) is not None:
                    chunk = fresh
                    window.append(chunk)
                else:
                    exhausted = True
                    break
                chunk.ready = not chunk.work()
                if not chunk.ready:
                    self._free_worker().start(chunk)
            while window and window[0].ready:
                yield window.popleft()
            if not window and exhausted:
                return
            if any(worker.chunk for worker in self._workers):
                again.extend(self._collect())

    def _stop(self) -> None:
        with self._lock:
            while self._workers:
                self._workers.pop().stop()

    def _has_room(self) -> bool:
        return len(self._workers) < self._most or any(worker.chunk is None for worker in self._workers)

    def _free_worker(self) -> "_Worker":
        free = next((worker for worker in self._workers if worker.chunk is None), None)
        if free is None:
            free = _Worker(self._settings, self._shape)
            self._workers.append(free)
            self.started += 1
        return free

    def _collect(self) -> list[Chunk]:
        """Take what busy workers have finished, waiting for one; gives the chunks whose worker died or stalled."""
        lost = []
        busy = [worker for worker in self._workers if worker.chunk is not None]
        wait([worker.connection for worker in busy], timeout=1.0)
        for worker in busy:
            if worker.finish():
                self._failed_starts = 0
            elif worker.dead() or worker.stalled(self._stall_s):
                lost.append(self._bury(worker))
        return lost

    def _bury(self, worker: "_Worker") -> Chunk:
        chunk, position = worker.chunk, int(worker.position[0])
        assert chunk is not None
        reason = worker.stop()
        self._workers.remove(worker)
        if position < 0:
            self._failed_starts += 1
            if self._failed_starts > 3:
                raise RuntimeError(f"decoder processes cannot start: {reason}")
            return chunk
        chunk.deaths[position] += 1
        return chunk


class _Worker:
    """The parent's side of one process."""

    def __init__(self, settings: tuple[Preprocess, Limits], shape: tuple[int, ...]) -> None:
        # Spawned, not forked: the parent has threads and perhaps a GPU context.
        context = multiprocessing.get_context("spawn")
        with _memory_file() as file:
            file.truncate(POSITION_BYTES + int(np.prod(shape)))
            self.position, self.pixels = _shared(file.fileno(), shape)
            self.position[0] = -1
            self.connection, theirs = context.Pipe()
            arguments = (theirs, DupFd(file.fileno()), shape, *settings)
            self.process = context.Process(target=_serve, args=arguments, daemon=True)
            self.process.start()
        theirs.close()
        self.chunk: Chunk | None = None
        self._seen = (-1, 0.0)

    def start(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self._seen = (int(self.position[0]), time.monotonic())
        work = chunk.work()
        for i, deaths in chunk.deaths.items():
            if deaths >= CULPRIT_DEATHS:
                work[i].failure = Failure("decode", "the decoder crashed or stalled")
        # A worker that has died meanwhile is found out by `dead`.
        with contextlib.suppress(OSError):
            self.connection.send(work)

    def finish(self) -> bool:
        """Whether the chunk came back; then its pictures are filled in, and this worker is free."""
        try:
            if not self.connection.poll():
                return False
            answer: list[Picture] | InputError = self.connection.recv()
        except (EOFError, OSError):
            return False
        if isinstance(answer, InputError):
            raise answer
        assert self.chunk is not None
        pixels = self.pixels[: len(answer)].copy()
        done = iter(zip(answer, pixels, strict=True))
        for i, picture in enumerate(self.chunk.pictures):
            if not picture.known:
                self.chunk.pictures[i], rows = next(done)
                if self.chunk.pictures[i].failure is None:
                    self.chunk.pictures[i].pixels = rows
        self.chunk.ready = True
        self.chunk = None
        return True

    def dead(self) -> bool:
        return not self.process.is_alive()

    def stalled(self, stall_s: float) -> bool:
        """Whether this worker has been at one picture for longer; to start, it may take its time."""
        if int(self.position[0]) != self._seen[0]:
            self._seen = (int(self.position[0]), time.monotonic())
        return time.monotonic() - self._seen[1] > (stall_s if self._seen[0] >= 0 else STALL_S)

    def stop(self) -> str:
        """End the process; says how it had ended if it had."""
        code = self.process.exitcode
        self.connection.close()
        self.process.kill()
        self.process.join()
        self.process.close()
        return "it stalled" if code is None else f"exit code {code}"


def _memory_file() -> BinaryIO:
    """A nameless file, of memory where the system has that: /dev/shm is often small in containers."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("plaudit"), "r+b")
    return tempfile.TemporaryFile()


def _shared(descriptor: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The (1,) int64 position of a worker in its chunk, and the pixels of that chunk, in memory of both processes."""
    memory = mmap.mmap(descriptor, 0)
    pixels = np.frombuffer(memory, np.uint8, offset=POSITION_BYTES).reshape(shape)
    return np.frombuffer(memory, np.int64, count=1), pixels


def _serve(connection: Connection, memory: Any, shape: tuple[int, ...], preprocess: Preprocess, limits: Limits) -> None:
    """The worker: chunks in, outcomes out, pixels in the shared memory, until the parent goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    silence_libraries()
    try:
        descriptor = memory.detach()
    except OSError:
        return  # the parent was killed meanwhile
    position, pixels = _shared(descriptor, shape)
    os.close(descriptor)
    while True:
        try:
            pictures: list[Picture] = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            for i, picture in enumerate(pictures):
                if picture.failure is None:
                    position[0] = i
                    decode(picture, preprocess, limits)
                    if picture.pixels is not None:
                        pixels[i], picture.pixels = picture.pixels, None
            connection.send(pictures)
        except InputError as error:
            connection.send(error)
        except BrokenPipeError:
            return  # the parent was killed
