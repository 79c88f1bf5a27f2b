"""Waiting for what another thread or process does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from paths import ROOT


def wait_until(true: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Return once it is true; AssertionError where that takes longer than anything should on a busy machine."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def wait_for_orphan(script: str) -> None:
    """Run a script that prints the id of a process of its own, kill it, and wait until that process has ended."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        process = Path("/proc", parent.stdout.readline().strip())
    assert process.exists()
    parent.kill()
    parent.wait()
    wait_until(lambda: not process.exists())
