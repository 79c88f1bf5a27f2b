"""Limit the memory of this process: too large a request raises MemoryError here and does not harm the machine."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

CAN_BOUND = sys.platform.startswith("linux")  # other systems do not enforce RLIMIT_AS

_bounded = False


def is_bounded() -> bool:
    """Whether this code runs inside `bounded_memory`."""
    return _bounded


@contextmanager
def bounded_memory(growth_bytes: int) -> Iterator[None]:
    """Let the address space of this process, with all its threads, grow by at most `growth_bytes` in the block.

    It does nothing if CAN_BOUND is false.
    """
    global _bounded
    if not CAN_BOUND:
        yield
        return
    import resource

    pages = int(os.pread(_statm(os.getpid()), 100, 0).split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + growth_bytes
    lowest = min([wanted, *(limit for limit in before if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (lowest, before[1]))
    _bounded = True
    try:
        yield
    finally:
        _bounded = False
        resource.setrlimit(resource.RLIMIT_AS, before)


@cache
def _statm(process: int) -> int:
    """Open the file with the size of a process. It stays open, as opening takes twenty times as long as reading."""
    return os.open(f"/proc/{process}/statm", os.O_RDONLY)
