"""Conventions of every command: exit codes, one JSON document on stdout, progress and log messages on stderr.

Exit codes: 0 done; 1 a bug in plaudit, with its traceback; 2 wrong input, explained in one line; 130 interrupted.
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

    from embed.config import TableConfig

# Modules that the base install lacks, and the extra that installs each.
EXTRAS = dict.fromkeys(
    ("torch", "torchvision", "open_clip", "timm", "transformers", "safetensors", "sklearn", "scipy", "onnx"), "train"
) | dict.fromkeys(("diffusers", "peft", "accelerate"), "generators")
EXTRAS |= {"sqlalchemy": "votes", "psycopg": "postgres"}

DELAY_S = 2.0  # work that is shorter shows no bar
SIGNS = Signs()  # of the command that runs
_LOUDNESS: ContextVar[int] = ContextVar("loudness", default=0)  # 1 is verbose, -1 quiet
PACKAGES = ("embed", "heads", "export", "runtime")  # the commands show the logs of these


def print_json(document: object) -> None:
    """Print one JSON document on stdout, in one line."""
    json.dump(document, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")


def exit_code(program: str, run: Callable[[], None]) -> int:
    """Run a command and return its exit code. An error that the user can mend is printed in one line with `program`."""
    # At exit Python would search all objects of torch for garbage, which takes over a second and prints nothing.
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
    """While the block runs, print more on stderr (verbose), or only errors (quiet)."""
    before = _LOUDNESS.set(1 if verbose else -1 if quiet else 0)
    try:
        yield
    finally:
        _LOUDNESS.reset(before)


def loudness_words() -> list[str]:
    """Return the options that make another command as verbose or quiet as this one."""
    return {1: ["--verbose"], -1: ["--quiet"]}.get(_LOUDNESS.get(), [])


@contextmanager
def signs_of_life(what: str) -> Iterator[None]:
    """While the block runs, print on stderr what is being done once that takes long.

    Nothing is printed with --quiet, or if tqdm's own environment variable TQDM_DISABLE is set.
    """
    silent = _LOUDNESS.get() < 0 or os.environ.get("TQDM_DISABLE")
    with nullcontext() if silent else SIGNS.watched(what):
        yield


def waiting() -> AbstractContextManager[None]:
    """While the block runs, print no signs of life: a child prints its own, or a service waits for requests."""
    return SIGNS.paused()


def for_people(quiet: bool) -> TextIO:
    """Return the stream that text for people is written to under --json."""
    return io.StringIO() if quiet else sys.stderr


def reading_words(reading: "TableConfig") -> list[str]:
    """The options by which another command reads a table as this one did."""
    columns = ",".join(f"{ours}={theirs}" for ours, theirs in reading.columns.items())
    given = {"--images-root": reading.images_root, "--columns": columns, "--format": reading.format}
    return [word for name, value in given.items() if value for word in (name, value)]


def suggest(*commands: Sequence[object]) -> None:
    """Print next steps on stderr, each command given by its words after `plaudit`; print nothing under --json."""
    if sys.stdout is not sys.stderr and _LOUDNESS.get() >= 0:
        lines = (f"  plaudit {shlex.join(map(str, words))}" for words in commands)
        print("next:", *lines, sep="\n", file=sys.stderr)


def warn(text: str) -> None:
    """Print a warning in one line on stderr, unless --quiet was given."""
    if _LOUDNESS.get() >= 0:
        _print_line(f"warning: {text}")


def _print_line(text: str) -> None:
    """Print a line on stderr, in place of a progress bar that may be drawn there."""
    print(f"{ERASE if SIGNS.in_a_bar else ''}{text}", file=sys.stderr)


class _Lines(logging.Handler):
    """Prints each log record as a line on stderr; a warning begins with that word."""

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
    """Show the logs of our packages while the block runs. The root logger stays free for the service's own log."""
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
    """Return a bar that draws itself in a terminal, and prints lines elsewhere."""
    from tqdm import tqdm

    class Lines(tqdm):  # type: ignore[misc]
        said: int | None = None

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            if not (self.disable and self.n == self.said):  # when it is closed, the last line may have said so already
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
    """Show a tqdm bar on stderr, as a `Progress`. Work that takes less than two seconds shows no bar.

    While a step takes long, the bar is drawn again.
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
