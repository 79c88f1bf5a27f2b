"""Run items of many requests in batches: all items that wait when the session becomes free go into its next run.

It never waits for a batch to fill: a single item runs at once, and under load batches grow by themselves. Knows no
model and no network: `run` is a function of a list.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

Observe = Callable[[int, float, float], None]  # (items in a batch, seconds that the oldest waited, seconds of the run)


class Batcher(Generic[Item, Answer]):
    """Run `run` on up to `max_batch` items at a time, first come first served, in `streams` threads at the same time.

    It is used from one event loop. Items whose caller is gone when their turn comes are not run.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Answer]],
        max_batch: int,
        observe: Observe | None = None,
        streams: int = 1,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._observe = observe
        self._waiting: deque[tuple[Item, asyncio.Future[Answer], float]] = deque()
        self._streams = streams
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="session")
        self._workers: set[asyncio.Task[None]] = set()
        self.dropped = 0  # number of items whose caller was gone before their turn

    def __len__(self) -> int:
        """The number of waiting items."""
        return len(self._waiting)

    @property
    def lone(self) -> bool:
        """Whether nothing waits, and at most one run is under way."""
        return not self._waiting and len(self._workers) <= 1

    async def submit(self, item: Item) -> Answer:
        """The answer for an item. Raises the exception of `run` for this item."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future, time.monotonic()))
        if len(self._workers) < self._streams:
            self._workers.add(asyncio.create_task(self._work()))
        return await future

    async def run_alone(self, items: Sequence[Item]) -> Sequence[Answer]:
        """The answers for a batch of exactly these items, run by one of the same threads between other batches."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, items)

    async def close(self) -> None:
        """Finish waiting items, then end the threads."""
        while self._workers:
            await asyncio.wait(self._workers)
        self._threads.shutdown(wait=False)

    async def _work(self) -> None:
        try:
            while batch := self._next_batch():
                waited_s = time.monotonic() - batch[0][2]
                start = time.monotonic()
                await self._answer(batch)
                if self._observe:
                    self._observe(len(batch), waited_s, time.monotonic() - start)
        finally:
            # Remove it now and not in a callback: an item that arrives in between would otherwise wait for the next
            # one.
            self._workers.discard(asyncio.current_task())

    def _next_batch(self) -> list[tuple[Item, "asyncio.Future[Answer]", float]]:
        batch: list[tuple[Item, asyncio.Future[Answer], float]] = []
        while self._waiting and len(batch) < self._max_batch:
            entry = self._waiting.popleft()
            if entry[1].done():
                self.dropped += 1
            else:
                batch.append(entry)
        return batch

    async def _answer(self, batch: list[tuple[Item, "asyncio.Future[Answer]", float]]) -> None:
        try:
            answers = await self.run_alone([item for item, _, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0][1], error)
                return
            for entry in batch:  # a bad item must not make the others fail
                await self._answer([entry])
            return
        for (_, future, _), answer in zip(batch, answers, strict=True):
            _settle(future, answer)


def _settle(future: "asyncio.Future[Answer]", outcome: Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
