"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable


def wait_until(true: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Return once it is true; AssertionError where that takes longer than anything should on a busy machine."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)
