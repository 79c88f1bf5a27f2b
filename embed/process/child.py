"""Child processes: they ignore signals from the terminal, which this process handles, and they end with it.

They are plain Python processes. Those of `multiprocessing` would run the user's script again, which does harm if it has
no `if __name__ == "__main__"`, and would inherit every environment variable.

`call_apart` runs a function once in a child process, so that its memory, mostly torch's, is freed when it ends.
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

EXIT_S = 10.0  # how long a process may take to end after it has closed its pipe


# Those environment variables that Python and its libraries need: where things are, and the encoding of file names.
HARMLESS = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONUTF8", "TMPDIR")

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from embed.process.child import run; run(int(sys.argv[2]))"
)


def bare_environment() -> dict[str, str]:
    """Return the environment for a process that an attacker may take over: it contains nothing secret.

    It also turns off numpy's threads, which would be one a core in every process and are not needed.
    """
    return {name: os.environ[name] for name in HARMLESS if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"}


class Child:
    """A process that runs `work(its end of a pipe, *arguments)`. `connection` is this side's end of the pipe.

    `work`, which must be a function of a module, and the arguments are pickled. The process has the `environment` (by
    default this one's) and the open files `descriptors` under the same numbers. It is confined to `reach` as soon as it
    has read what to do.
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
        with contextlib.suppress(OSError):  # it has ended already, and reading from it will show that
            self.connection.send((reach, work, arguments))

    def exit_code(self) -> int | None:
        """Return the exit code of a process whose pipe has closed, or None if it still runs."""
        try:
            return self.process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            return None

    @property
    def is_stopped(self) -> bool:
        """Whether the process is stopped by a signal, for example by a debugger; False if that cannot be known."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] in "Tt"  # after the name, which may contain anything

    def stop(self) -> None:
        """End the process at once, before it notices that its pipe is closed."""
        self.process.kill()
        self.connection.close()
        self.process.wait()


class _Logged(NamedTuple):
    """A log record of the process, which is sent to the loggers of this one."""

    logger: str
    level: int
    message: str


def call_apart(function: Callable[[*Arguments], Answer], *arguments: *Arguments) -> Answer:
    """Run `function` in a short-lived child process. Return what it returns, or raise what it raises.

    Raise InputError if the process dies. Function, arguments and answer are pickled. Logs of the child are logged here.
    """
    child = Child(_answer)
    try:
        child.connection.send((function, arguments))
        answer: Answer | Exception | _Logged
        while isinstance(answer := child.connection.recv(), _Logged):
            logging.getLogger(answer.logger).log(answer.level, answer.message)
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
        self._connection.send(_Logged(record.name, record.levelno, record.getMessage()))


def _answer(connection: Connection) -> None:
    """Run one call: read it from the pipe, send its logs, then its answer or error."""
    logging.getLogger().addHandler(_ToParent(connection))
    try:
        function, arguments = connection.recv()
        connection.send(function(*arguments))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        connection.send(error)


def run(descriptor: int) -> None:
    """Run in a new process: read from the pipe what to do, and do it."""
    for number in (signal.SIGINT, signal.SIGHUP):  # the terminal sends these to every process of its group
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone
        reach, work, arguments = connection.recv()
        confine(reach)  # before other threads start, because it would not bind those
        threading.Thread(target=_end_with_parent, args=(descriptor,), daemon=True).start()
        work(connection, *arguments)


def _end_with_parent(descriptor: int) -> None:
    """End this process when its parent has gone. A killed parent cannot tell, and the work here may take minutes."""
    hung_up = select.poll()
    hung_up.register(descriptor, 0)  # a closed end is reported without being asked for
    hung_up.poll()
    os._exit(1)


def silence_libraries() -> None:
    """Hide what C libraries and Pillow write to stderr: a line for every damaged TIFF. Our own messages remain."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
