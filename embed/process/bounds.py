"""How much memory this process may come to hold: beyond it is MemoryError here, instead of trouble for the machine."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

CAN_BOUND = sys.platform.startswith("linux")  # elsewhere the system does not hold a process to RLIMIT_AS

_bounded = False


def is_bounded() -> bool:
    """Whether this runs within `bounded_memory`."""
    return _bounded


@contextmanager
def bounded_memory(growth_bytes: int) -> Iterator[None]:
    """Within the block the address space of this process, all its threads, grows by `growth_bytes` at most.

    Does nothing where CAN_BOUND is false.
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
    """The file that says how large a process is, kept open: to open it takes twenty times as long as to read it."""
    return os.open(f"/proc/{process}/statm", os.O_RDONLY)
