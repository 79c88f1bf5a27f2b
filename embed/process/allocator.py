"""Tell glibc's memory allocator to keep large blocks, or to return free memory to the system."""

import ctypes
import gc
import sys
from typing import Any

# From <malloc.h>. Blocks below the second threshold come from the heap, whose free top is kept up to the first.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Keep freed blocks of up to 1 GiB for reuse. Return whether the C library can do that.

    glibc maps every block above 32 MB separately and returns it at once. The output of a convolution can be as large,
    and the page faults of its first use then take as long as the arithmetic. With this, the starter on two cores embeds
    1.5 to 2 times as many pictures a second, at the same peak memory.
    """
    mallopt = _function("mallopt")
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> bool:
    """Return all freed memory to the system, after work that is done once. Return whether there was any."""
    malloc_trim = _function("malloc_trim")
    gc.collect()  # because the graphs of exporters refer to themselves
    return malloc_trim is not None and bool(malloc_trim(0))


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
