"""glibc's allocator, told to keep large blocks, or to hand back what is free."""

import ctypes
import gc
import sys
from typing import Any

# From <malloc.h>. Blocks below the threshold come from the heap, and its top is not handed back below the other.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Keep blocks of up to 1 GiB for reuse when they are freed; whether the C library is one that can.

    glibc maps every block above 32 MB anew and gives it back at once. A convolution's output is as large, and the page
    faults of its first use then cost as much as the arithmetic: the starter on two cores embeds 1.5 to 2 times as
    many pictures a second with this, at the same peak memory.
    """
    mallopt = _function("mallopt")
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> bool:
    """Hand the pages of all freed blocks back, after work that is done once; whether there were any."""
    malloc_trim = _function("malloc_trim")
    gc.collect()  # the graphs of exporters refer to themselves
    return malloc_trim is not None and bool(malloc_trim(0))


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
