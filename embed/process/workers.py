"""Work in processes that may crash, hang or be killed: it costs one item, and neither this process nor another item.

Decoders are C code fed with strangers' files. What such a file can do to its process must end there, so this is the
one place that starts, feeds, watches and replaces these processes. They have little memory to grow into, no secret in
their environment and no more in reach than their work needs; their answers are plain bytes of a bounded length, which
nothing here unpickles. Knows no pictures.
"""

import mmap
import os
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import copy_context
from itertools import accumulate, pairwise
from multiprocessing.connection import Connection
from typing import BinaryIO, Generic, TypeAlias, TypeVar

from embed.process.bounds import bounded_memory
from embed.process.child import Child, bare_environment, silence_libraries
from embed.process.confinement import Reach

Item = TypeVar("Item")
Result = TypeVar("Result")
Handle: TypeAlias = Callable[[Item, memoryview], bytes]
Check: TypeAlias = Callable[[bytes], object]
Answers: TypeAlias = Sequence[bytes | None]  # one an item; None for an item that no process survives
Doing: TypeAlias = tuple[Child, int, int | str]  # a process, the number of its task, and the item that it is at

DEATHS = 2  # a process may die of its neighbours' memory: an item is blamed the second time
START_S = 120.0  # for a process to start on a machine that is busy
FAILED_STARTS = 4  # one after another, before something else than an item must be at fault
LOOK_S = 1.0  # between two looks at how far a process is
POSITION_BYTES = 8
ANSWER_BYTES = 1 << 20  # an answer is no longer, unless it is said to be


class NoProcess(RuntimeError):
    """Processes end before they get as far as asking for work, one after another."""


class WorkerPool(Generic[Item]):
    """Up to `count` processes that run `handle(item, memory)`, started when there is work for them, until `close`.

    `handle`, a function of a module, and the items are pickled; `memory` is `memory_bytes` that this process sees too.
    Each process has a thread here that hands it the items of one task and takes their answers. Where the process dies,
    or is at one item for more than `stall_s`, `lost` is called and a new one does the task again, without an item that
    has cost two processes. While it is at an item its address space grows by `growth_bytes` at most. Its `environment`
    is `bare_environment()` unless given, and it is confined to `reach`.
    """

    def __init__(
        self,
        handle: Handle[Item],
        count: int,
        stall_s: float,
        memory_bytes: int = 0,
        lost: Callable[[], None] = lambda: None,
        growth_bytes: int = 1 << 30,
        environment: Mapping[str, str] | None = None,
        reach: Reach = "all",
    ) -> None:
        self._handle = handle
        self._reach = reach
        self._stall_s = stall_s
        self._growth_bytes = growth_bytes
        self._environment = bare_environment() if environment is None else environment
        self._lost = lost
        self._workers = [_Worker(memory_bytes) for _ in range(count)]
        self._idle = self._workers.copy()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._lock = threading.Lock()  # around starts and ends of processes
        self._closed = threading.Event()
        self.started = 0  # processes so far

    def start(self) -> None:
        """Start all processes now, side by side, without waiting for them."""
        for worker in self._workers:
            self._ensure_process(worker)

    def submit(
        self,
        items: Sequence[Item],
        collect: Callable[[Answers, memoryview], Result],
        answer_bytes: int = ANSWER_BYTES,
        check: Check = bytes,
    ) -> "Future[Result]":
        """`collect(answers, memory)` once there is an answer for each item, called in a thread of the pool.

        A process counts as one that died if it answers with more than `answer_bytes` an item, or with something for
        which `check` raises ValueError. A future that is cancelled before its turn costs nothing. CancelledError here
        or in the future where the pool is closed meanwhile, RuntimeError in it where processes do not even start.
        """
        with self._lock:
            if self._closed.is_set():
                raise CancelledError
            # `lost` is called in the context of the caller, and may ask there for whom the work was.
            return self._threads.submit(copy_context().run, self._do, items, collect, answer_bytes, check)

    def close(self) -> None:
        """End the processes, whatever they are at, and wait for the threads."""
        with self._lock:
            self._closed.set()
            for worker in self._workers:
                if worker.child is not None:
                    worker.child.process.kill()
        self._threads.shutdown()
        for worker in self._workers:
            worker.stop()
            worker.memory.file.close()
        self._workers, self._idle = [], []

    def _do(
        self, items: Sequence[Item], collect: Callable[[Answers, memoryview], Result], answer_bytes: int, check: Check
    ) -> Result:
        worker = self._idle.pop()  # as many workers as threads: there is one
        try:
            return collect(self._answers(worker, items, answer_bytes, check), worker.memory.of_tasks)
        finally:
            self._idle.append(worker)

    def _answers(self, worker: "_Worker", items: Sequence[Item], answer_bytes: int, check: Check) -> Answers:
        deaths: Counter[int] = Counter()
        unexplained = 0  # deaths one after another at no item
        answers: list[bytes | None] = [None] * len(items)
        while left := [(i, item) for i, item in enumerate(items) if deaths[i] < DEATHS]:
            child = self._ensure_process(worker)
            found = worker.answers(child, left, answer_bytes, check)
            if found is not None:
                for (i, _), answer in zip(left, found, strict=True):
                    answers[i] = answer
                break
            at = worker.memory.position[0]  # as the process says, and it may be in a stranger's hands
            deaths[at] += 1
            unexplained = 0 if at in dict(left) else unexplained + 1
            code = child.exit_code() if unexplained == FAILED_STARTS and not worker.began else None
            with self._lock:
                worker.stop()
            self._lost()
            if unexplained == FAILED_STARTS:
                if not worker.began:
                    raise NoProcess(f"worker processes do not start; the exit code of the last one is {code}")
                deaths[left[0][0]], unexplained = DEATHS, 0  # some item must be to blame, and the next may fare better
        return answers

    def _ensure_process(self, worker: "_Worker") -> Child:
        with self._lock:
            if self._closed.is_set():
                raise CancelledError
            if worker.child is None:
                worker.memory.position[0] = -1
                file, given = worker.memory.file.fileno(), (self._handle, self._growth_bytes)
                worker.child = Child(
                    _serve, file, *given, environment=self._environment, descriptors=[file], reach=self._reach
                )
                worker.began = False
                if not self.started:
                    threading.Thread(target=self._watch, name="watch", daemon=True).start()
                self.started += 1
            return worker.child

    def _watch(self) -> None:
        """Kill processes that are at one thing too long; whoever waits for one, even to send, sees that it ended."""
        since: dict[Doing, float] = {}
        while not self._closed.wait(min(LOOK_S, self._stall_s / 8)):
            now, before, since = time.monotonic(), since, {}
            for doing, limit_s in filter(None, (worker.doing(self._stall_s) for worker in self._workers)):
                since[doing] = before.get(doing, now)
                if now - since[doing] > limit_s:
                    doing[0].process.kill()


class _Worker:
    """One place in the pool: its memory, and the process that is there now."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory = _new_memory(memory_bytes)
        self.child: Child | None = None
        self.began = False  # whether that process has got as far as asking for work
        self.tasks = 0  # handed to processes so far
        self.busy = False  # whether the last of these is under way

    def answers(
        self, child: Child, items: Sequence[tuple[int, object]], answer_bytes: int, check: Check
    ) -> list[bytes] | None:
        """An answer for each of the items, which are numbered; None where the process dies, is killed by the pool's
        watch, or says nonsense."""
        self.tasks, self.busy = self.tasks + 1, True
        try:
            if not self.began:
                child.connection.recv_bytes(0)
                self.began = True
            self.memory.position[0] = -1
            child.connection.send(items)
            found = _parted(child.connection.recv_bytes(len(items) * (8 + answer_bytes)), len(items))
            for answer in found:
                check(answer)
            return found
        except (EOFError, OSError, ValueError):  # it died, says more than it may, or nonsense
            return None
        finally:
            self.busy = False

    def doing(self, stall_s: float) -> tuple[Doing, float] | None:
        """What the process is at, and for how many seconds it may be; None where it has nothing to do."""
        child = self.child
        if child is None or not self.busy:
            return None
        if self.began:
            return (child, self.tasks, self.memory.position[0]), stall_s
        if child.is_stopped:
            return (child, self.tasks, "stopped"), stall_s
        return (child, self.tasks, "starting"), START_S

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.child is not None:
            self.child.stop()
            self.child = None


class _Memory:
    """Memory that two processes see through the same file: where one of them is in its task, then the task's."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        view = memoryview(mmap.mmap(file.fileno(), 0))
        self.position = view[:POSITION_BYTES].cast("q")  # number of the item that is being handled; -1 before the first
        self.of_tasks = view[POSITION_BYTES:]


def _new_memory(size_bytes: int) -> _Memory:
    file = _memory_file()
    file.truncate(POSITION_BYTES + size_bytes)
    return _Memory(file)


def _memory_file() -> BinaryIO:
    """A nameless file, of memory where the system has that: /dev/shm is often small in containers."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("plaudit"), "r+b")
    return tempfile.TemporaryFile()


def _serve(connection: Connection, file: int, handle: Handle[Item], growth_bytes: int) -> None:
    """The process: items in, answers out, until the parent goes away."""
    silence_libraries()
    memory = _Memory(os.fdopen(file, "r+b"))
    connection.send_bytes(b"")  # it has begun
    while True:
        answers = []
        for i, item in connection.recv():
            memory.position[0] = i
            with bounded_memory(growth_bytes):
                answers.append(handle(item, memory.of_tasks))
        connection.send_bytes(_joined(answers))


def _joined(parts: Sequence[bytes]) -> bytes:
    """One message: the length of each part, then the parts."""
    return struct.pack(f"={len(parts)}q", *map(len, parts)) + b"".join(parts)


def _parted(message: bytes, count: int) -> list[bytes]:
    """The parts of a message of `_joined`; raise ValueError if it is none."""
    if len(message) < 8 * count:
        raise ValueError("the message is too short")
    lengths = struct.unpack_from(f"={count}q", message)
    if min(lengths) < 0 or 8 * count + sum(lengths) != len(message):
        raise ValueError("the message is not as long as it says")
    ends = list(accumulate(lengths, initial=8 * count))
    return [message[start:end] for start, end in pairwise(ends)]
