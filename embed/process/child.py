"""Processes that this one starts: they leave signals of the terminal to it, and end with it.

`call_apart` is for what is done once: its memory, torch's most of all, ends with the process.
"""

import contextlib
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

EXIT_S = 10.0  # for a process that has closed its pipe to be gone


class Child:
    """A process that runs `work(its end of a pipe, *arguments)`, and this side's end, `connection`.

    Work and arguments are pickled. The process is spawned, not forked: this one has threads and perhaps a GPU context.
    """

    def __init__(self, work: Callable[[Connection, *Arguments], None], *arguments: *Arguments) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(work, theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def exit_code(self) -> int | None:
        """The exit code of a process whose pipe has closed; None where it lives on."""
        self.process.join(EXIT_S)
        return self.process.exitcode

    def stop(self) -> None:
        """End the process at once."""
        self.connection.close()
        self.process.kill()
        self.process.join()
        self.process.close()


class _Logged(NamedTuple):
    """What the process logs, on its way to the loggers here."""

    logger: str
    level: int
    message: str


def call_apart(function: Callable[[*Arguments], Answer], *arguments: *Arguments) -> Answer:
    """Return what `function` returns in a process of its own, or raise what it raises there.

    Raise InputError if the process ends unasked. Function, arguments and answer are pickled; what is logged there is
    logged here.
    """
    child = Child(_answer)
    try:
        child.connection.send((function, arguments))
        answer: Answer | Exception | _Logged
        while isinstance(answer := child.connection.recv(), _Logged):
            logging.getLogger(answer.logger).log(answer.level, answer.message)
    except (EOFError, OSError):
        raise InputError(
            f"the process that tries engines ended with exit code {child.exit_code()}, perhaps for lack of memory;"
            " --engine torch --precision fp32 needs no trial"
        ) from None
    finally:
        child.stop()
    if isinstance(answer, Exception):
        raise answer
    result: Answer = answer
    return result


class _ToParent(logging.Handler):
    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send(_Logged(record.name, record.levelno, record.getMessage()))


def _answer(connection: Connection) -> None:
    """One call in, its log and then its answer or error out."""
    logging.getLogger().addHandler(_ToParent(connection))
    try:
        function, arguments = connection.recv()
        connection.send(function(*arguments))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        connection.send(error)


def _run(work: Callable[[Connection, *Arguments], None], connection: Connection, *arguments: *Arguments) -> None:
    """What a new process does."""
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to every process of its group
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone
        work(connection, *arguments)


def _end_with_parent() -> None:
    """A parent that is killed does not say so, and what runs here may go on for minutes, or for ever."""
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
