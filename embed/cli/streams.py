"""Keep commands running if standard streams are closed, lose their reader, or cannot encode a character."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO, cast


class Lasting:
    """A text stream that ignores `errors` on writing: after such an error the text is dropped and the work goes on."""

    def __init__(self, stream: TextIO, errors: type[OSError]) -> None:
        self._stream = stream
        self._errors = errors

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it if the stream is broken."""
        with self._surviving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what is buffered, or drop it if the stream is broken."""
        with self._surviving():
            self._stream.flush()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except self._errors:
            # What is still buffered cannot be written either: Python would complain about it again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def lasting_streams() -> Iterator[None]:
    """While the block runs, printing never fails because a stream is closed, its reader left or a character is unknown.

    Only an error when stdout is written to a file, such as a full disk, is still raised: the result would be lost.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The null device takes this number. Otherwise the next opened file would, and prints would go into it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    stdout, stderr = Lasting(sys.stdout, BrokenPipeError), Lasting(sys.stderr, OSError)
    with redirect_stdout(cast(TextIO, stdout)), redirect_stderr(cast(TextIO, stderr)):
        yield
