"""How far long work is, told to whoever wants to know.

A function whose work is long takes a `Progress`, opens it when the work begins, and calls the `Step` that it gets as
parts are done. `embed.cli.console.progress` draws a bar; without one nothing is shown.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    """Called when `done` more units are; `note` says what else there is to know now, such as a count of failures."""

    def __call__(self, done: int = 1, note: str = "", /) -> object: ...


class Progress(Protocol):
    """Called when work begins, of `total` units where that is known; left when the work ends, in whatever way."""

    def __call__(self, total: int | None, unit: str, description: str, /) -> AbstractContextManager[Step]: ...


def no_step(done: int = 1, note: str = "", /) -> None:
    """The step of work that nobody follows."""


@contextmanager
def silent(total: int | None, unit: str, description: str, /) -> Iterator[Step]:
    """The progress that nobody follows."""
    yield no_step
