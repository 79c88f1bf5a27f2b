"""What tests have the processes of a WorkerPool do, in a module that imports nothing heavy."""

import os
import signal
import time
from pathlib import Path

from embed.process.workers import WorkerPool


def square(item: tuple[int, int], memory: memoryview) -> bytes:
    """The square of a number as text, and as an integer at its place in memory; some numbers are fatal."""
    place, number = item
    if number < 0:
        os.kill(os.getpid(), -number)
    memory.cast("q")[place] = number**2
    return str(number**2).encode()


def wait(folder: Path, _: memoryview) -> bytes:
    """The process, once there is a file `go` in the folder; there is one called `begun` from the beginning."""
    (folder / "begun").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return str(os.getpid()).encode()


def doze(seconds: float, _: memoryview) -> bytes:
    time.sleep(seconds)
    return b"awake"


def shout(length: int, _: memoryview) -> bytes:
    return b"!" * length


def hoard(size: int, _: memoryview) -> bytes:
    """Whether there is room for so many bytes."""
    try:
        return str(len(bytearray(size))).encode()
    except MemoryError:
        return b"no room"


def environment(_: None, __: memoryview) -> bytes:
    """What the process was given, whatever it did to it since."""
    return Path("/proc/self/environ").read_bytes()


class Unloadable:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (7,)

    def __call__(self, item: object, memory: memoryview) -> bytes:
        raise AssertionError


def print_and_wait(_: None, __: memoryview) -> bytes:
    print(os.getpid(), flush=True)
    signal.pause()
    return b""


if __name__ == "__main__":
    import worker_calls  # by a name that the process can import too

    WorkerPool(worker_calls.print_and_wait, 1, 60.0).submit([None], lambda answers, memory: None).result()
