"""glibc's allocator, told to keep large blocks."""

import ctypes
import sys

# From <malloc.h>. Blocks below the threshold come from the heap, and its top is not handed back below the other.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Keep blocks of up to 1 GiB for reuse when they are freed; whether the C library is one that can.

    glibc maps every block above 32 MB anew and gives it back at once. A convolution's output is as large, and the page
    faults of its first use then cost as much as the arithmetic: the starter on two cores embeds 1.5 to 2 times as
    many pictures a second with this, at the same peak memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
