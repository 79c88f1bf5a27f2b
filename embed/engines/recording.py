"""Keep other threads of this process from using a CUDA device while one of its runs is recorded.

onnxruntime records in CUDA's mode "global". If another thread allocates memory or copies meanwhile, its call fails with
"operation not permitted when stream is capturing", and the recording fails too.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Recordings:
    """A lock: either any number of threads use the device, or one thread records.

    A thread that waits to record goes before those that come later. A thread that holds the lock must not ask for it
    again.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._recorders = 0  # the one at work and those that wait
        self._recording = False

    @contextmanager
    def using(self) -> Iterator[None]:
        """While the block runs, nothing is recorded."""
        with self._changed:
            self._changed.wait_for(lambda: not self._recorders)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While the block runs, no other thread uses the device."""
        with self._changed:
            self._recorders += 1
            self._changed.wait_for(lambda: not self._users and not self._recording)
            self._recording = True
        try:
            yield
        finally:
            with self._changed:
                self._recorders -= 1
                self._recording = False
                self._changed.notify_all()


recordings = Recordings()  # of this process
