"""Run work in processes that may crash, hang or be killed. Only the item that causes it is lost.

Decoders are C code that reads strangers' files. Whatever such a file does to its process must not go further, so this
is the one place that starts, feeds, watches and replaces these processes. Their memory is limited, their environment
holds no secret, and they can reach only what their work needs. Their answers are plain bytes of limited length and are
never unpickled here. This module does not know pictures."""

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
Answers: TypeAlias = Sequence[bytes | None]  # one for each item; None if the item killed its process every time
Doing: TypeAlias = tuple[Child, int, int | str]  # a process, the number of its task, and the item that it works on

DEATHS = 2  # an item is blamed only for the second death, because other processes may have used up the memory
START_S = 120.0  # how long a process may take to start on a busy machine
FAILED_STARTS = 4  # after so many failures in a row, the fault cannot be an item's
LOOK_S = 1.0  # how often the progress of processes is looked at
POSITION_BYTES = 8
ANSWER_BYTES = 1 << 20  # the longest answer, unless the caller gives another limit


class NoProcess(RuntimeError):
    """Raised when several processes in a row end before they ask for work."""


class WorkerPool(Generic[Item]):
    """Up to `count` processes that run `handle(item, memory)`. They start when there is work and run until `close`.

    `handle`, which must be a function of a module, and the items are pickled. `memory` has `memory_bytes` and is shared
    with this process. A thread here gives each process the items of one task and reads its answers. If the process
    dies, or works on one item for more than `stall_s`, `lost` is called, and a new process does the task again, without
    any item that has killed two processes. While it works on an item, its address space may grow by `growth_bytes`.
    Its `environment` is `bare_environment()` by default, and it is confined to `reach`.
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
        self._lock = threading.Lock()  # held while processes start or end
        self._closed = threading.Event()
        self.started = 0  # how many processes were started

    def start(self) -> None:
        """Start all processes at the same time, without waiting for them."""
        for worker in self._workers:
            self._ensure_process(worker)

    def submit(
        self,
        items: Sequence[Item],
        collect: Callable[[Answers, memoryview], Result],
        answer_bytes: int = ANSWER_BYTES,
        check: Check = bytes,
    ) -> "Future[Result]":
        """Return a future of `collect(answers, memory)`, which a thread of the pool calls with an answer for each item.

        If a process answers with more than `answer_bytes` an item, or with something for which `check` raises
        ValueError, it is treated as one that died. Cancelling a future before its turn costs nothing. If the pool is
        closed, CancelledError is raised here or in the future. If processes cannot start, the future raises NoProcess.
        """
        with self._lock:
            if self._closed.is_set():
                raise CancelledError
            # `lost` is called in the context of the caller, where it can find out whose work this was.
            return self._threads.submit(copy_context().run, self._do, items, collect, answer_bytes, check)

    def close(self) -> None:
        """End the processes, even while they work, and wait for the threads."""
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
        worker = self._idle.pop()  # never empty, because there are as many workers as threads
        try:
            return collect(self._answers(worker, items, answer_bytes, check), worker.memory.of_tasks)
        finally:
            self._idle.append(worker)

    def _answers(self, worker: "_Worker", items: Sequence[Item], answer_bytes: int, check: Check) -> Answers:
        deaths: Counter[int] = Counter()
        unexplained = 0  # how many processes in a row died without working on an item
        answers: list[bytes | None] = [None] * len(items)
        while left := [(i, item) for i, item in enumerate(items) if deaths[i] < DEATHS]:
            child = self._ensure_process(worker)
            found = worker.answers(child, left, answer_bytes, check)
            if found is not None:
                for (i, _), answer in zip(left, found, strict=True):
                    answers[i] = answer
                break
            at = worker.memory.position[0]  # the process writes this, so it cannot be trusted
            deaths[at] += 1
            unexplained = 0 if at in dict(left) else unexplained + 1
            code = child.exit_code() if unexplained == FAILED_STARTS and not worker.began else None
            with self._lock:
                worker.stop()
            self._lost()
            if unexplained == FAILED_STARTS:
                if not worker.began:
                    raise NoProcess(f"worker processes do not start; the exit code of the last one is {code}")
                deaths[left[0][0]], unexplained = DEATHS, 0  # blame one item, and perhaps the rest goes better
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
        """Kill processes that take too long for one thing. Whoever waits for such a process then sees that it ended."""
        since: dict[Doing, float] = {}
        while not self._closed.wait(min(LOOK_S, self._stall_s / 8)):
            now, before, since = time.monotonic(), since, {}
            for doing, limit_s in filter(None, (worker.doing(self._stall_s) for worker in self._workers)):
                since[doing] = before.get(doing, now)
                if now - since[doing] > limit_s:
                    doing[0].process.kill()


class _Worker:
    """One place in the pool: its memory, and its current process."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory = _new_memory(memory_bytes)
        self.child: Child | None = None
        self.began = False  # whether that process has asked for work
        self.tasks = 0  # how many tasks were given to processes
        self.busy = False  # whether the last of these is running

    def answers(
        self, child: Child, items: Sequence[tuple[int, object]], answer_bytes: int, check: Check
    ) -> list[bytes] | None:
        """Return an answer for each of the numbered items, or None if the process dies, is killed or gives a wrong
        answer."""
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
        except (EOFError, OSError, ValueError):  # it died, or its answer is too long or wrong
            return None
        finally:
            self.busy = False

    def doing(self, stall_s: float) -> tuple[Doing, float] | None:
        """Return what the process is doing, and how many seconds it may take. Return None if it has nothing to do."""
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
    """Memory that two processes share through a file: the position in the current task, then the task's own memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        view = memoryview(mmap.mmap(file.fileno(), 0))
        self.position = view[:POSITION_BYTES].cast("q")  # number of the item being handled; -1 before the first
        self.of_tasks = view[POSITION_BYTES:]


def _new_memory(size_bytes: int) -> _Memory:
    file = _memory_file()
    file.truncate(POSITION_BYTES + size_bytes)
    return _Memory(file)


def _memory_file() -> BinaryIO:
    """Open a file without a name, in memory if the system can: /dev/shm is often small in containers."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("plaudit"), "r+b")
    return tempfile.TemporaryFile()


def _serve(connection: Connection, file: int, handle: Handle[Item], growth_bytes: int) -> None:
    """Run in the process: read items and send answers until the parent goes away."""
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
    """Return one message of the length of each part, followed by the parts."""
    return struct.pack(f"={len(parts)}q", *map(len, parts)) + b"".join(parts)


def _parted(message: bytes, count: int) -> list[bytes]:
    """Return the parts of a message that `_joined` made. Raise ValueError for any other message."""
    if len(message) < 8 * count:
        raise ValueError("the message is too short")
    lengths = struct.unpack_from(f"={count}q", message)
    if min(lengths) < 0 or 8 * count + sum(lengths) != len(message):
        raise ValueError("the message has another length than it states")
    ends = list(accumulate(lengths, initial=8 * count))
    return [message[start:end] for start, end in pairwise(ends)]
