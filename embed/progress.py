"""How far long work is, told to whoever wants to know.

A function whose work is long takes a `Progress`, opens it when the work begins, and calls the `Step` that it gets as
parts are done. `embed.cli.console.progress` draws a bar; without one nothing is shown.

Work that may take long and has no parts to count, such as loading a backbone, is a `stage`: a log record when it begins
and one when it ends. A command shows a stage once it has taken long, and each with --verbose (see embed.cli.signs).
"""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Stage:
    """The attribute `stage` of a log record that says that work begins or has ended."""

    what: str
    ended: bool = False


@contextmanager
def stage(what: str, /) -> Iterator[None]:
    """Log what is being done while the block runs, in words such as "loading the backbone ViT-B-32"."""
    start, how = time.monotonic(), "failed after"
    logger.debug(f"begins: {what}", extra={"stage": Stage(what)})
    try:
        yield
        how = "done in"
    finally:
        logger.debug(f"{how} {time.monotonic() - start:.1f} s: {what}", extra={"stage": Stage(what, ended=True)})
