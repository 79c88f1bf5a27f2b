"""The conventions of every command: exit codes, one JSON document, progress and what the library logs on stderr.

0 done; 1 a fault of ours, with its traceback; 2 the user's input, in one line; 130 interrupted.
"""

import atexit
import gc
import io
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, NoReturn, TextIO

from embed.cli.signs import AGAIN_S, ERASE, Signs
from embed.cli.streams import lasting_streams
from embed.progress import Stage, Step, stage
from embed.spec import InputError
from embed.wording import one_line
from embed.wording import table as table

if TYPE_CHECKING:
    from tqdm import tqdm

# What the base install does without, by the extra that brings it.
EXTRAS = dict.fromkeys(
    ("torch", "torchvision", "open_clip", "timm", "transformers", "safetensors", "sklearn", "scipy", "onnx"), "train"
) | dict.fromkeys(("diffusers", "peft", "accelerate"), "generators")
EXTRAS |= {"sqlalchemy": "votes", "psycopg": "postgres"}

DELAY_S = 2.0  # shorter work has no bar
SIGNS = Signs()  # of the command that runs
_LOUDNESS: ContextVar[int] = ContextVar("loudness", default=0)  # 1 is verbose, -1 quiet
PACKAGES = ("embed", "heads", "export", "runtime")  # whose logs the commands show


def print_json(document: object) -> None:
    """Print one JSON document, in one line, on stdout."""
    json.dump(document, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")


def exit_code(program: str, run: Callable[[], None]) -> int:
    """Run a command and give its exit code; what is the user's to mend is printed in one line that begins `program`."""
    # At its end Python would look for garbage among all of torch's objects, which takes a second and is silent.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    with lasting_streams(SIGNS.heard):
        return _exit_code(program, run)


def _exit_code(program: str, run: Callable[[], None]) -> int:
    try:
        with shown_logs():
            run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        print(f"{program}: needs {module}; run: pip install 'plaudit[{EXTRAS[module]}]'", file=sys.stderr)
        return 2
    except (InputError, OSError) as error:
        print(f"{program}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def loudness(verbose: bool, quiet: bool) -> Iterator[None]:
    """While the block runs, say more on stderr than elsewhere, or nothing but errors."""
    before = _LOUDNESS.set(1 if verbose else -1 if quiet else 0)
    try:
        yield
    finally:
        _LOUDNESS.reset(before)


def loudness_words() -> list[str]:
    """The options that make another command as loud as this one."""
    return {1: ["--verbose"], -1: ["--quiet"]}.get(_LOUDNESS.get(), [])


@contextmanager
def signs_of_life(what: str) -> Iterator[None]:
    """While the block runs, say on stderr what is being done once that takes long.

    Nothing is said if the command is to be quiet, or where tqdm's own variable $TQDM_DISABLE wants no bars.
    """
    silent = _LOUDNESS.get() < 0 or os.environ.get("TQDM_DISABLE")
    with nullcontext() if silent else SIGNS.watched(what):
        yield


def waiting() -> AbstractContextManager[None]:
    """While the block runs, say nothing of one's own accord: others speak, or wait to be asked."""
    return SIGNS.paused()


def for_people(quiet: bool) -> TextIO:
    """Where that goes under --json which is printed for people."""
    return io.StringIO() if quiet else sys.stderr


def suggest(*commands: Sequence[object]) -> None:
    """Say on stderr what one could do next, each command by its words after `plaudit`. Under --json nothing is said."""
    if sys.stdout is not sys.stderr and _LOUDNESS.get() >= 0:
        lines = (f"  plaudit {shlex.join(map(str, words))}" for words in commands)
        print("next:", *lines, sep="\n", file=sys.stderr)


def warn(text: str) -> None:
    """One line on stderr that a person should not miss."""
    if _LOUDNESS.get() >= 0:
        _print_line(f"warning: {text}")


def _print_line(text: str) -> None:
    """A line on stderr, in place of a bar that stands there."""
    print(f"{ERASE if SIGNS.in_a_bar else ''}{text}", file=sys.stderr)


class _Lines(logging.Handler):
    """A line on stderr for each record, what warns with that word in front."""

    def emit(self, record: logging.LogRecord) -> None:
        loud, text = _LOUDNESS.get(), record.getMessage()
        found = getattr(record, "stage", None)
        if isinstance(found, Stage):
            SIGNS.end(found.what) if found.ended else SIGNS.begin(found.what)
        if loud > 0 and found is not None:
            text = f"{_clock(record.created)} {text}"
        elif loud > 0:
            text = f"{_clock(record.created)} {record.name}: {text}"
        if record.levelno >= logging.WARNING:
            warn(text)
        elif loud > 0 or (loud == 0 and record.levelno >= logging.INFO):
            _print_line(text)


def _clock(time_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time_s))


@contextmanager
def shown_logs() -> Iterator[None]:
    """Show what our packages log while the block runs. The root logger is left to the service's own log."""
    handler, loggers = _Lines(), [logging.getLogger(name) for name in PACKAGES]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def _bar(total: int | None, unit: str, description: str) -> "tqdm[NoReturn]":
    """A bar in a terminal; elsewhere lines, now and then."""
    from tqdm import tqdm

    class Lines(tqdm):  # type: ignore[misc]
        said: int | None = None

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            if not (self.disable and self.n == self.said):  # closed, and its end is told
                print(str(self).strip(), file=sys.stderr, flush=True)
            self.said = self.n
            return True

    drawn = sys.stderr.isatty()
    return (tqdm if drawn else Lines)(
        total=total,
        unit=f" {unit}",
        desc=description,
        delay=DELAY_S,
        file=sys.stderr if drawn else io.StringIO(),
        **({"dynamic_ncols": True} if drawn else {"mininterval": AGAIN_S, "ncols": 80}),
        **({"disable": True} if _LOUDNESS.get() < 0 else {}),
    )


@contextmanager
def progress(total: int | None, unit: str, description: str, /) -> Iterator[Step]:
    """A tqdm bar on stderr, as a `Progress`, that stays out of the way of short work (under two seconds).

    A step that takes long is not silent: the bar is drawn again.
    """
    bar = _bar(total, unit, description)

    def step(done: int = 1, note: str = "", /) -> None:
        bar.set_postfix_str(note, refresh=False)
        bar.update(done)

    def draw() -> None:
        bar.last_print_t = time.time()
        bar.refresh()

    with stage(description), bar:
        work = SIGNS.begin(description, None if bar.disable else draw)
        try:
            yield step
        finally:
            SIGNS.end(work)
