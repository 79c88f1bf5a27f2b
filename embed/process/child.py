"""Processes that this one starts: they leave signals of the terminal to it, and end with it.

They are plain Python processes. Those of `multiprocessing` would run the user's script again, which does harm where it
has no `if __name__ == "__main__"`, and would hand every environment variable on.

`call_apart` is for what is done once: its memory, torch's most of all, ends with the process.
"""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeVar, TypeVarTuple

from embed.process.confinement import Reach, confine
from embed.spec import InputError

Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")

_OURS = logging.getLogger(__name__.partition(".")[0])
EXIT_S = 10.0  # for a process that has closed its pipe to be gone


# What Python and its libraries need of this process's variables: where things are and how file names are encoded.
HARMLESS = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONUTF8", "TMPDIR")

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from embed.process.child import run; run(int(sys.argv[2]))"
)


def bare_environment() -> dict[str, str]:
    """The environment of a process that may fall into strangers' hands: nothing that could be a secret.

    Nor does it need threads for numpy's algebra, one a core in each process.
    """
    return {name: os.environ[name] for name in HARMLESS if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"}


class Child:
    """A process that runs `work(its end of a pipe, *arguments)`, and this side's end, `connection`.

    Work, a function of a module, and arguments are pickled. The process has the `environment`, this one's by default,
    and the open files `descriptors` under the same numbers. It is confined to `reach` once it has read its work.
    """

    def __init__(
        self,
        work: Callable[[Connection, *Arguments], None],
        *arguments: *Arguments,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
        reach: Reach = "all",
    ) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(theirs.fileno())]
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[theirs.fileno(), *descriptors]
            )
        with contextlib.suppress(OSError):  # it has ended already, which whoever reads its answers will see
            self.connection.send((reach, work, arguments))

    def exit_code(self) -> int | None:
        """The exit code of a process whose pipe has closed; None where it lives on."""
        try:
            return self.process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            return None

    @property
    def is_stopped(self) -> bool:
        """Whether the process is stopped by a signal, as by a debugger; False where that cannot be known."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] in "Tt"  # behind the name, which may be anything

    def stop(self) -> None:
        """End the process at once, before it could see that its pipe is closed and end by itself."""
        self.process.kill()
        self.connection.close()
        self.process.wait()


class _Logged(NamedTuple):
    """What the process logs, on its way to the loggers here."""

    logger: str
    level: int
    message: str
    stage: object  # an embed.progress.Stage, or None


def call_apart(function: Callable[[*Arguments], Answer], *arguments: *Arguments) -> Answer:
    """Return what `function` returns in a process of its own, or raise what it raises there.

    Raise InputError if the process ends unasked. Function, arguments and answer are pickled; what is logged there is
    logged here.
    """
    child = Child(_answer)
    try:
        child.connection.send((_OURS.getEffectiveLevel(), function, arguments))
        answer: Answer | Exception | _Logged
        while isinstance(answer := child.connection.recv(), _Logged):
            logging.getLogger(answer.logger).log(answer.level, answer.message, extra={"stage": answer.stage})
    except (EOFError, OSError):
        raise InputError(
            f"the child process that tries engines exited with code {child.exit_code()}, probably out of memory;"
            " --engine torch --precision fp32 needs no trial"
        ) from None
    finally:
        child.stop()
    if isinstance(answer, Exception):
        raise answer
    result: Answer = answer
    return result


class _ToParent(logging.Handler):
    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send(_Logged(record.name, record.levelno, record.getMessage(), getattr(record, "stage", None)))


def _answer(connection: Connection) -> None:
    """One call in, its log and then its answer or error out."""
    logging.getLogger().addHandler(_ToParent(connection))
    try:
        level, function, arguments = connection.recv()
        _OURS.setLevel(level)
        connection.send(function(*arguments))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        connection.send(error)


def run(descriptor: int) -> None:
    """What a new process does with its end of the pipe."""
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to every process of its group
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone
        reach, work, arguments = connection.recv()
        confine(reach)  # before there is another thread, which it would not tie
        threading.Thread(target=_end_with_parent, args=(descriptor,), daemon=True).start()
        work(connection, *arguments)


def _end_with_parent(descriptor: int) -> None:
    """A parent that is killed does not say so, and what runs here may go on for minutes, or for ever."""
    hung_up = select.poll()
    hung_up.register(descriptor, 0)  # an end that is closed shows whatever is asked for
    hung_up.poll()
    os._exit(1)


def silence_libraries() -> None:
    """Leave this process's stderr to us: C libraries and Pillow write a line there for every damaged TIFF."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
