"""What tests ask of another process, in a module that imports nothing heavy."""

import logging
import os
import signal
import time

from embed.process.child import call_apart
from embed.progress import stage
from embed.spec import InputError


def reject(what: str) -> None:
    raise InputError(f"no {what}")


def warn(text: str) -> int:
    logging.getLogger(f"{__name__}.there").warning("%s, told by %s", text, object)
    return len(text)


def work_in_a_stage() -> None:
    with stage("trying engines"):
        logging.getLogger("embed.engines").info("found one")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work_on() -> None:
    print(os.getpid(), flush=True)
    time.sleep(600)  # until it is ended


def press_ctrl_c() -> None:
    """As a user does while this process is at work."""
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(600)


if __name__ == "__main__":
    import apart_calls  # by a name that the process can import too

    call_apart(apart_calls.work_on)
