"""Towers in a process of their own, for what is done once: its memory, torch's most of all, ends with it.

What the process learns is in the machine's cache, where the towers it stands for find it.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from operator import attrgetter, methodcaller
from typing import Any

import numpy as np

from embed.engines import Trial, Wanted
from embed.spec import InputError
from embed.towers import Towers


class TowersApart:
    """Stands for towers in a process that a method starts when it is first called, or first after `close`.

    Methods raise what is raised there, and InputError where the process ends unasked.
    """

    def __init__(self, towers: Towers) -> None:
        self._settings = towers.settings
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def learn_identity(self) -> None:
        """See Towers.identity."""
        self._ask(attrgetter("identity"))

    def measure(
        self,
        side: str,
        inputs: np.ndarray | Sequence[str],
        wanted: Wanted,
        device: str,
        batch_size: int,
        count: int | None = None,
    ) -> Trial:
        """See Towers.measure."""
        trial = self._ask(methodcaller("measure", side, inputs, wanted, device, batch_size, count))
        assert isinstance(trial, Trial)
        return trial

    def close(self) -> None:
        """End the process, if there is one, whatever it is at."""
        if self._process is not None and self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None

    def _ask(self, what: Callable[[Towers], Any]) -> Any:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._settings), daemon=True)
            self._process.start()
            theirs.close()
        assert self._connection is not None
        try:
            self._connection.send(what)
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise InputError(
                f"the process that tries engines ended with exit code {self._process.exitcode}, perhaps for lack of"
                " memory; --engine torch --precision fp32 needs no trial"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(connection: Connection, settings: tuple[Any, ...]) -> None:
    """The process: questions in, answers and errors out, until the parent goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    towers = Towers(*settings)
    while True:
        try:
            what: Callable[[Towers], Any] = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(what(towers))
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))
            connection.send(error)


def _end_with_parent() -> None:
    """A parent that is killed does not say so, and a trial would go on for minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
