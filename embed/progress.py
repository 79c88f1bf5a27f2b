"""Report the progress of long work to any caller that wants to show it.

A function with long work takes a `Progress`, opens it when the work begins, and calls the `Step` that it yields as
parts are done. `embed.cli.console.progress` draws a bar; by default nothing is shown.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    """Called when `done` more units are done. `note` is extra text to show, such as the number of failures."""

    def __call__(self, done: int = 1, note: str = "", /) -> object: ...


class Progress(Protocol):
    """Called when work begins, with the `total` number of units or None. It is left when the work ends or fails."""

    def __call__(self, total: int | None, unit: str, description: str, /) -> AbstractContextManager[Step]: ...


def no_step(done: int = 1, note: str = "", /) -> None:
    """A Step that does nothing."""


@contextmanager
def silent(total: int | None, unit: str, description: str, /) -> Iterator[Step]:
    """A Progress that shows nothing."""
    yield no_step
