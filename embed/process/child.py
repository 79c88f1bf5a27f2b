"""A call in a process of its own, for what is done once: its memory, torch's most of all, ends with it."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar, TypeVarTuple

from embed.spec import InputError

Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")


def call_apart(function: Callable[[*Arguments], Answer], *arguments: *Arguments) -> Answer:
    """What `function` returns or raises there; InputError where the process ends unasked.

    Function, arguments and answer are pickled. The process is spawned, leaves Ctrl-C to this one, and ends with it.
    """
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        connection.send((function, arguments))
        answer: Answer | Exception = connection.recv()
    except (EOFError, OSError):
        process.join()
        raise InputError(
            f"the process that tries engines ended with exit code {process.exitcode}, perhaps for lack of memory;"
            " --engine torch --precision fp32 needs no trial"
        ) from None
    finally:
        connection.close()
        process.kill()
        process.join()
        process.close()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(connection: Connection) -> None:
    """The process: one call in, its answer or error out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function, arguments = connection.recv()
        connection.send(function(*arguments))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        connection.send(error)


def _end_with_parent() -> None:
    """A parent that is killed does not say so, and a trial would go on for minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
