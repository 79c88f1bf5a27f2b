"""Conventions of every command: exit codes, one JSON document on stdout, progress and log messages on stderr.

Exit codes: 0 done; 1 a bug in plaudit, with its traceback; 2 wrong input, explained in one line; 130 interrupted.
"""

import io
import json
import logging
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NoReturn, TextIO

from embed.cli.streams import lasting_streams
from embed.progress import Step
from embed.spec import InputError
from embed.wording import one_line
from embed.wording import table as table

if TYPE_CHECKING:
    from tqdm import tqdm

# Modules that the base install lacks, and the extra that installs each.
EXTRAS = dict.fromkeys(
    ("torch", "torchvision", "open_clip", "timm", "transformers", "safetensors", "sklearn", "scipy", "onnx"), "train"
) | dict.fromkeys(("diffusers", "peft", "accelerate"), "generators")
EXTRAS |= {"sqlalchemy": "votes", "psycopg": "postgres"}

FIRST_DRAWN_S, REDRAWN_S = 2.5, 5.0  # a bar is first drawn after this time and then this often, even without progress
_LOUDNESS: ContextVar[int] = ContextVar("loudness", default=0)  # 1 is verbose, -1 quiet
PACKAGES = ("embed", "heads", "export", "runtime")  # the commands show the logs of these


def print_json(document: object) -> None:
    """Print one JSON document on stdout, in one line."""
    json.dump(document, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")


def exit_code(program: str, run: Callable[[], None]) -> int:
    """Run a command and return its exit code. An error that the user can mend is printed in one line with `program`."""
    with lasting_streams():
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


def for_people(quiet: bool) -> TextIO:
    """Return the stream that text for people is written to under --json."""
    return io.StringIO() if quiet else sys.stderr


def suggest(*commands: Sequence[object]) -> None:
    """Print next steps on stderr, each command given by its words after `plaudit`; print nothing under --json."""
    if sys.stdout is not sys.stderr and _LOUDNESS.get() >= 0:
        lines = (f"  plaudit {shlex.join(map(str, words))}" for words in commands)
        print("next:", *lines, sep="\n", file=sys.stderr)


def warn(text: str) -> None:
    """Print a warning in one line on stderr, unless --quiet was given."""
    if _LOUDNESS.get() >= 0:
        print(f"warning: {text}", file=sys.stderr)


class _Lines(logging.Handler):
    """Prints each log record as a line on stderr; a warning begins with that word."""

    def emit(self, record: logging.LogRecord) -> None:
        loud, text = _LOUDNESS.get(), record.getMessage()
        if loud > 0:
            text = f"{_clock(record.created)} {record.name}: {text}"
        if record.levelno >= logging.WARNING:
            warn(text)
        elif loud > 0 or (loud == 0 and record.levelno >= logging.INFO):
            print(text, file=sys.stderr)


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


@contextmanager
def _redrawn(bar: "tqdm[NoReturn]") -> Iterator[None]:
    """While the block runs, redraw the bar now and then, so that a long step is not silent."""
    ended = threading.Event()

    def redraw() -> None:
        pause_s = FIRST_DRAWN_S
        while not ended.wait(pause_s):
            if time.time() - bar.last_print_t >= pause_s:
                bar.refresh()
            pause_s = REDRAWN_S

    thread = threading.Thread(target=redraw, name="progress", daemon=True)
    if not bar.disable:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if not bar.disable:
            thread.join()  # otherwise it might draw a bar that is already closed


@contextmanager
def progress(total: int | None, unit: str, description: str, /) -> Iterator[Step]:
    """Show a tqdm bar on stderr, as a `Progress`. Work that takes less than two seconds shows no bar."""
    from tqdm import tqdm

    loud, start = _LOUDNESS.get(), time.time()
    bar = tqdm(
        total=total,
        unit=f" {unit}",
        desc=description,
        delay=2,
        file=sys.stderr,
        dynamic_ncols=True,
        **({"disable": True} if loud < 0 else {}),
    )

    def step(done: int = 1, note: str = "", /) -> None:
        bar.set_postfix_str(note, refresh=False)
        bar.update(done)

    if loud > 0:
        print(f"{_clock(start)} begins: {description}", file=sys.stderr)
    with bar, _redrawn(bar):
        yield step
    if loud > 0:
        print(f"{_clock(time.time())} done in {time.time() - start:.1f} s: {description}", file=sys.stderr)
