"""Report the progress of long work to any caller that wants to show it.

A function with long work takes a `Progress`, opens it when the work begins, and calls the `Step` that it yields as
parts are done. `embed.cli.console.progress` draws a bar; by default nothing is shown.

Long work that has no parts to count, such as loading a backbone, is a `stage`: a log record when it begins and one when
it ends. A command shows a stage once it has taken long, and every stage with --verbose (see embed.cli.signs).
"""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Stage:
    """The attribute `stage` of a log record: some work begins or has ended."""

    what: str
    ended: bool = False


@contextmanager
def stage(what: str, /) -> Iterator[None]:
    """Log when the block begins and ends. `what` names its work, such as "loading the backbone ViT-B-32"."""
    start, how = time.monotonic(), "failed after"
    logger.debug(f"begins: {what}", extra={"stage": Stage(what)})
    try:
        yield
        how = "done in"
    finally:
        logger.debug(f"{how} {time.monotonic() - start:.1f} s: {what}", extra={"stage": Stage(what, ended=True)})
