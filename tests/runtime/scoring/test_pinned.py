"""Locked memory: asked for once, given back when the last view goes, and plain memory where it cannot be had."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.scoring import pinned


class Runtime:
    """Counts what is locked, as CUDA's runtime library would be asked to."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.locked: dict[int, int] = {}
        self.forgotten = 0

    def cudaHostRegister(self, address: Any, size: Any, flags: Any) -> int:
        assert flags.value == 1
        if not self.status:
            self.locked[address.value] = size.value
        return self.status

    def cudaHostUnregister(self, address: Any) -> int:
        del self.locked[address.value]
        return 0

    def cudaGetLastError(self) -> int:
        self.forgotten += 1
        return self.status


def test_pages_are_locked_until_the_last_view_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    monkeypatch.setattr(pinned, "cuda_runtime", lambda: runtime)
    array = pinned.locked_array((3, 4, 5))
    assert runtime.locked == {array.ctypes.data: 60}
    view = array[:2]
    del array
    gc.collect()
    view[:] = 7
    assert len(runtime.locked) == 1 and view.sum() == 7 * 40
    del view
    gc.collect()
    assert runtime.locked == {} and runtime.forgotten == 0


def test_memory_is_plain_where_nothing_can_be_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(status=2)
    monkeypatch.setattr(pinned, "cuda_runtime", lambda: runtime)
    array = pinned.locked_array((2, 3))
    assert array.shape == (2, 3) and array.dtype == np.uint8
    assert runtime.forgotten == 1 and runtime.locked == {}
    monkeypatch.setattr(pinned, "cuda_runtime", lambda: None)
    assert pinned.locked_array((2, 3)).shape == (2, 3)


def test_the_runtime_is_found_among_the_loaded_libraries(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f0-7f1 r-xp 0 fe:00 1  /usr/lib/libc.so.6\n7f2-7f3 rw-p 0 00:00 0\n")
    assert pinned.cuda_runtime(maps) is None
    assert pinned.cuda_runtime(tmp_path / "absent") is None
    maps.write_text(maps.read_text() + "7f4-7f5 r-xp 0 fe:00 2  /opt/x/libcudart-1a2b.so.12.4\n")
    with pytest.raises(OSError, match=r"/opt/x/libcudart-1a2b\.so\.12\.4"):  # it is this one that is opened
        pinned.cuda_runtime(maps)
