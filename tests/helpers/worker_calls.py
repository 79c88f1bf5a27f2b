"""What tests have the processes of a WorkerPool do, in a module that imports nothing heavy."""

import gc
import importlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from embed.process.workers import WorkerPool, _Memory


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


def measure(data: bytes, _: memoryview) -> bytes:
    return str(len(data)).encode()


def mumble(whole: bool, _: memoryview) -> bytes:
    """An answer, or the beginning of one that never ends."""
    if not whole:
        connection = next(one for one in gc.get_objects() if isinstance(one, Connection) and not one.closed)
        os.write(connection.fileno(), struct.pack("!i", 1000) + b"and")
        signal.pause()
    return b"said"


def hoard(size: int, _: memoryview) -> bytes:
    """Whether there is room for so many bytes."""
    try:
        return str(len(bytearray(size))).encode()
    except MemoryError:
        return b"no room"


def environment(_: None, __: memoryview) -> bytes:
    """What the process was given, whatever it did to it since."""
    return Path("/proc/self/environ").read_bytes()


def babble(item: tuple[str, int], memory: memoryview) -> bytes:
    """What it is told to say; nonsense comes with the claim to be at another item."""
    said, position = item
    if said != "sense":
        mapped = next(one for one in gc.get_objects() if isinstance(one, _Memory))
        mapped.position[0] = position
    return said.encode()


def reach_out(item: tuple[str, int], _: memoryview) -> bytes:
    """What becomes of each thing that a decoder has no business with, and of importing a part of Python."""
    secret, port = item

    def run(command: list[str]) -> None:
        if subprocess.run(command, check=False).returncode:
            raise PermissionError

    tries: dict[str, Callable[[], object]] = {
        "read": lambda: Path(secret).read_text(),
        "write": lambda: Path(secret).with_name("other").write_text("x"),
        "connect": lambda: socket.create_connection(("127.0.0.1", port), timeout=10).close(),
        "signal": lambda: os.kill(os.getppid(), 0),
        "look": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "execute": lambda: run(["/bin/true"]),
        "import": lambda: importlib.import_module("wave"),
    }
    found: dict[str, object] = {}
    for name, reach in tries.items():
        try:
            reach()
            found[name] = "done"
        except OSError as error:
            found[name] = str(error)
    said = re.search(r"NoNewPrivs:\s*(\d)", Path("/proc/self/status").read_text())
    return json.dumps({**found, "no_new_privs": int(said[1]) if said else None}).encode()


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
