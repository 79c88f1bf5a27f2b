"""Memory with locked pages, which a CUDA device can read directly, without an extra copy by the driver.

Uses only numpy and the standard library. The CUDA runtime is the one that onnxruntime has loaded. Without one, or if
locking fails, the memory is ordinary. No machine with such a device has run this yet.
"""

import ctypes
import re
import weakref
from pathlib import Path

import numpy as np

from embed.arrays import UInt8s

PORTABLE = 1  # cudaHostRegisterPortable: locked for every device and thread of the process
MAPS = Path("/proc/self/maps")


def locked_array(shape: tuple[int, ...]) -> UInt8s:
    """An uninitialised uint8 array. If possible, its pages are locked as long as it or a view of it exists.

    Locking takes longer than copying as much, so reuse the array.
    """
    array = np.empty(shape, np.uint8)
    runtime = cuda_runtime()
    if runtime is None or not array.size:
        return array
    address = ctypes.c_void_p(array.ctypes.data)
    if runtime.cudaHostRegister(address, ctypes.c_size_t(array.nbytes), ctypes.c_uint(PORTABLE)):
        runtime.cudaGetLastError()  # clears the error, which onnxruntime's next call would otherwise report
    else:
        weakref.finalize(array, runtime.cudaHostUnregister, address).atexit = False  # CUDA may be gone by then
    return array


def cuda_runtime(maps: Path = MAPS) -> ctypes.CDLL | None:
    """The CUDA runtime library that this process has loaded, or None."""
    try:
        found = re.search(r"/\S*libcudart[-.\w]*\.so[.\d]*$", maps.read_text(), re.MULTILINE)
    except OSError:  # not on Linux
        return None
    return ctypes.CDLL(found[0]) if found else None
