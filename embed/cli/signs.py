"""Signs of life: what a command is at, said on stderr once nothing else was said there for a while.

Bars and stages (see embed.progress) enter what is being done; what says or draws anything is heard. A terminal gets a
line that is written over, a file or a pipe gets lines.
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
    """Something that is being done, since when, and what draws it, if it is not only named."""

    what: str
    start_s: float
    draw: Callable[[], object] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)  # of drawing: what has ended is drawn no more


class Signs:
    """What is being done, and how long nothing was said of it. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._works: list[Work] = []
        self._heard_s = clock()
        self.has_spoken = False  # anything was heard since watching began
        self._status = False  # the terminal's last line is ours, and to be written over
        self._paused = 0

    def heard(self) -> None:
        """Note that something is about to be said. What was only for the time being goes from the terminal."""
        with self._lock:
            self._heard_s, self.has_spoken = self._clock(), True
            if self._status:
                self._status = False
                sys.stderr.write(ERASE)

    def begin(self, what: str, draw: Callable[[], object] | None = None) -> Work:
        """Enter what begins. If it goes on for long, it is drawn, or named with the seconds that it has taken."""
        work = Work(what, self._clock(), draw)
        with self._lock:
            self._works.append(work)
        return work

    def end(self, what: Work | str) -> None:
        """Take out what has ended, the latest of that name."""
        with self._lock:
            found = next((one for one in reversed(self._works) if what in (one, one.what)), None)
        if found is not None:
            with found.lock:
                self._works.remove(found)

    @property
    def is_paused(self) -> bool:
        """Whether nothing is said at present."""
        return self._paused > 0

    @property
    def in_a_bar(self) -> bool:
        """Whether the cursor of a terminal stands in what was drawn."""
        return sys.stderr.isatty() and any(work.draw is not None for work in self._works)

    @property
    def due_s(self) -> float:
        """The seconds after which `beat` would say something if nothing else does."""
        later = REWRITTEN_S if sys.stderr.isatty() else AGAIN_S
        return self._heard_s + (later if self.has_spoken else FIRST_S) - self._clock()

    def beat(self) -> None:
        """Say what is being done if that is due."""
        with self._lock:
            if self._paused or not self._works or self.due_s > 0:
                return
            work, library = self._works[-1], _imported()
            if work.draw is None or library:
                self._name(work, library)
                return
        with work.lock:  # alone: who draws waits for locks of others, whose holders may wait to be heard
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
        """While the block runs, say nothing: others speak, or waiting is all there is to do."""
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
        """While the block runs, which does `what`, say in time what is being done."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(max(self.due_s, 0.25)):
                self.beat()

        thread = threading.Thread(target=watch, name=WATCHER, daemon=True)
        if self.has_spoken:  # a command before this one; the first has been silent since Python began
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
    """The library of others that the main thread is importing: to load torch takes seconds."""
    frame, outer = sys._current_frames().get(threading.main_thread().ident or 0), []
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load":
            outer.append(str(frame.f_locals.get("name")).partition(".")[0])
        frame = frame.f_back
    return next((name for name in reversed(outer) if name not in OURS), None)
