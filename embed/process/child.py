"""A call in a process of its own, for what is done once: its memory, torch's most of all, ends with it.

And the stderr of a process that is fed with strangers' files.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar, TypeVarTuple

from embed.spec import InputError

Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")


class _Logged(NamedTuple):
    """What the process logs, on its way to the loggers here."""

    logger: str
    level: int
    message: str


def call_apart(function: Callable[[*Arguments], Answer], *arguments: *Arguments) -> Answer:
    """What `function` returns or raises there; InputError where the process ends unasked.

    Function, arguments and answer are pickled. The process is spawned, leaves Ctrl-C to this one, and ends with it;
    its warnings are logged here.
    """
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        connection.send((function, arguments))
        answer: Answer | Exception | _Logged
        while isinstance(answer := connection.recv(), _Logged):
            logging.getLogger(answer.logger).log(answer.level, answer.message)
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


class _ToParent(logging.Handler):
    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send(_Logged(record.name, record.levelno, record.getMessage()))


def _serve(connection: Connection) -> None:
    """The process: one call in, its log and then its answer or error out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger().addHandler(_ToParent(connection))
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


def silence_libraries() -> None:
    """Leave this process's stderr to us: C libraries and Pillow write a line there for every damaged TIFF."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
