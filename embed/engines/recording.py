"""Who may use a CUDA device while one of its runs is recorded: nobody else in this process.

onnxruntime records in CUDA's mode "global": what another thread asks of CUDA meanwhile, memory or a copy, fails with
"operation not permitted when stream is capturing", and the recording with it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Recordings:
    """Any number of threads use the device, or one records. One that waits to record goes before those that come after
    it. A thread that has either must not ask for another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._recorders = 0  # the one at work and those that wait
        self._recording = False

    @contextmanager
    def using(self) -> Iterator[None]:
        """Inside the block nothing is recorded."""
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
        """Inside the block no other thread uses the device."""
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
