"""Run an iterator in a thread, a limited number of items ahead."""

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def ahead(items: Generator[T], depth: int) -> Iterator[Iterator[T]]:
    """Run `items` in a thread that keeps up to `depth` of them ready. Its exception is raised here.

    Leaving the block closes `items` when its current item is done, and waits for that.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> bool:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def run() -> None:
        try:
            with closing(items):
                for item in items:
                    if not put(item):
                        return
            put(None)
        except BaseException as error:
            put(None, error)

    def results() -> Iterator[T]:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        stop.set()
        thread.join()
