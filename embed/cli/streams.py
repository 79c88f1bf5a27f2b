"""Standard streams that cannot stop a command: closed ones, readers that leave, and consoles that lack our letters."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO, cast


def _unheard() -> None:
    """Take no note of what is written."""


class Lasting:
    """A text stream that drops what is written once that raises one of `errors`: the work goes on without a reader.

    `heard` is called before anything is written.
    """

    def __init__(self, stream: TextIO, errors: type[OSError], heard: Callable[[], None] = _unheard) -> None:
        self._stream = stream
        self._errors = errors
        self._heard = heard

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        self._heard()
        with self._surviving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what is buffered, or drop it."""
        with self._surviving():
            self._stream.flush()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except self._errors:
            # What is still buffered leads nowhere too: Python would complain of it again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def lasting_streams(heard: Callable[[], None] = _unheard) -> Iterator[None]:
    """While the block runs, no print fails because a stream is closed, its reader gone, or a letter not in its code.

    `heard` is called before anything is written that a person at a terminal, or a reader of stderr, sees.

    Only an error of writing stdout to a file, such as a full disk, is still raised: it would lose what was asked for.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It gets this number, also in processes of ours; otherwise the next file would, and our prints with it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    seen = heard if sys.stdout.isatty() else _unheard
    stdout, stderr = Lasting(sys.stdout, BrokenPipeError, seen), Lasting(sys.stderr, OSError, heard)
    with redirect_stdout(cast(TextIO, stdout)), redirect_stderr(cast(TextIO, stderr)):
        yield
