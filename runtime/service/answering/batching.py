"""Items of many requests run together: whatever waits when the session is free goes into its next run.

There is no waiting for a batch to fill: alone, an item runs at once; under load, batches grow by themselves. Knows no
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

Observe = Callable[[int, float, float], None]  # items of a batch, seconds the oldest waited, seconds of the run


class Batcher(Generic[Item, Answer]):
    """Runs `run` on up to `max_batch` items at a time, first come first served, in `streams` threads side by side.

    Used from one event loop. What is no longer waited for when its turn comes is not run.
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
        self.dropped = 0  # items whose caller had gone before their turn

    def __len__(self) -> int:
        """Items that wait for their turn."""
        return len(self._waiting)

    @property
    def lone(self) -> bool:
        """Whether nothing waits, and no more than one run is under way."""
        return not self._waiting and len(self._workers) <= 1

    async def submit(self, item: Item) -> Answer:
        """The item's answer; or the exception of `run` on this item."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future, time.monotonic()))
        if len(self._workers) < self._streams:
            self._workers.add(asyncio.create_task(self._work()))
        return await future

    async def run_alone(self, items: Sequence[Item]) -> Sequence[Answer]:
        """Answers of one batch of exactly these items, run in one of the same threads between two others."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, items)

    async def close(self) -> None:
        """Finish what waits, then end the threads."""
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
            # Now, and not when the task is seen to have ended: an item that comes in between would wait for the next.
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
            for entry in batch:  # one bad item must not cost the others their answer
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
