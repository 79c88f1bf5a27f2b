"""What tests ask of another process, in a module that imports nothing heavy."""

import os
import signal
import time

from embed.process.child import call_apart
from embed.spec import InputError


def reject(what: str) -> None:
    raise InputError(f"no {what}")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work_on() -> None:
    print(os.getpid(), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    call_apart(work_on)
