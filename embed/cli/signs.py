"""Signs of life: print on stderr what a command is doing, when nothing else was printed for a while.

Progress bars and stages (see embed.progress) register the work that is being done. Every write to a standard stream
counts as a sign of life. A terminal shows one line that is overwritten; a file or a pipe gets a new line each time.
"""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

OURS = ("plaudit", "embed", "heads", "export", "runtime")
FIRST_S = 1.5  # of silence at the beginning: with what starting took, three seconds at most
AGAIN_S, REWRITTEN_S = 8.0, 2.0  # of silence later, in a file and in a terminal
WATCHER = "signs of life"  # the name of the thread
ERASE = "\r\x1b[K"  # the line that the cursor is in


@dataclass(eq=False)
class Work:
    """Work that is being done, since when, and the function that draws it if it has a progress bar."""

    what: str
    start_s: float
    draw: Callable[[], object] | None = None
    lock: threading.Lock = field(
        default_factory=threading.Lock
    )  # held while drawing, so that work that has ended is not drawn


class Signs:
    """The work of this process, and the time since something was last printed. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._works: list[Work] = []
        self._heard_s = clock()
        self.has_spoken = False  # whether anything was printed since watching began
        self._status = False  # the terminal's last line is ours and must be erased
        self._paused = 0

    def heard(self) -> None:
        """Note that something is about to be printed, and erase our line from the terminal."""
        with self._lock:
            self._heard_s, self.has_spoken = self._clock(), True
            if self._status:
                self._status = False
                sys.stderr.write(ERASE)

    def begin(self, what: str, draw: Callable[[], object] | None = None) -> Work:
        """Register work that begins. If it takes long, it is drawn, or named with the seconds that it has taken."""
        work = Work(what, self._clock(), draw)
        with self._lock:
            self._works.append(work)
        return work

    def end(self, what: Work | str) -> None:
        """Remove work that has ended: the latest one of that name."""
        with self._lock:
            found = next((one for one in reversed(self._works) if what in (one, one.what)), None)
        if found is not None:
            with found.lock:
                self._works.remove(found)

    @property
    def is_paused(self) -> bool:
        """Whether no signs of life are printed at present."""
        return self._paused > 0

    @property
    def in_a_bar(self) -> bool:
        """Whether the cursor of a terminal may stand in a progress bar."""
        return sys.stderr.isatty() and any(work.draw is not None for work in self._works)

    @property
    def due_s(self) -> float:
        """The seconds until `beat` prints something, unless something else is printed before."""
        later = REWRITTEN_S if sys.stderr.isatty() else AGAIN_S
        return self._heard_s + (later if self.has_spoken else FIRST_S) - self._clock()

    def beat(self) -> None:
        """Print what is being done, if that is due."""
        with self._lock:
            if self._paused or not self._works or self.due_s > 0:
                return
            work, library = self._works[-1], _imported()
            if work.draw is None or library:
                self._name(work, library)
                return
        with work.lock:  # not with self._lock: drawing waits for tqdm's lock, whose holder may wait for self._lock
            if work in self._works:
                work.draw()
                self.heard()

    def _name(self, work: Work, library: str | None) -> None:
        text = f"{work.what}: {self._clock() - work.start_s:.0f} s{f' (loading {library})' if library else ''}"
        if sys.stderr.isatty():
            sys.stderr.write(ERASE + text[: shutil.get_terminal_size().columns - 1])
            self._status = True
        else:
            print(text, file=sys.stderr)
        sys.stderr.flush()
        self._heard_s, self.has_spoken = self._clock(), True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the block runs, print no signs of life."""
        with self._lock:
            self.heard()
            self._paused += 1
        try:
            yield
        finally:
            with self._lock:
                self._paused -= 1
                self._heard_s = self._clock()

    @contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """While the block runs, print signs of life from a thread. `what` names the work as a whole."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(max(self.due_s, 0.25)):
                self.beat()

        thread = threading.Thread(target=watch, name=WATCHER, daemon=True)
        if self.has_spoken:  # by an earlier command; the first command counts from the start of Python
            self._heard_s, self.has_spoken = self._clock(), False
        work = self.begin(what)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.end(work)
            self.heard()


def _imported() -> str | None:
    """Return the name of the library that the main thread is importing, or None. Importing torch takes seconds."""
    frame, outer = sys._current_frames().get(threading.main_thread().ident or 0), []
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load":
            outer.append(str(frame.f_locals.get("name")).partition(".")[0])
        frame = frame.f_back
    return next((name for name in reversed(outer) if name not in OURS), None)
