"""Batches form by themselves, keep every caller's answer apart, and forget whoever has gone."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from runtime.service.answering.batching import Batcher


class Doubler:
    """Doubles numbers once it is allowed to, and remembers what was run together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.allowed = threading.Event()
        self.allowed.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        assert self.allowed.wait(60)
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


async def started(batcher: Batcher[int, int], *items: int, waiting: int) -> list["asyncio.Task[int]"]:
    """Submitted, and so far that only so many items wait for their turn."""
    tasks = [asyncio.create_task(batcher.submit(item)) for item in items]
    await asyncio.sleep(0)  # each has its first turn: it waits
    async with asyncio.timeout(60):
        while len(batcher) > waiting:
            await asyncio.sleep(0)
    assert len(batcher) == waiting
    return tasks


def test_what_waits_runs_together_in_order_up_to_the_limit() -> None:
    run = Doubler()

    async def scenario() -> list[int]:
        batcher = Batcher(run, max_batch=3)
        run.allowed.clear()
        tasks = await started(batcher, 1, waiting=0)
        tasks += await started(batcher, 2, 3, 4, 5, waiting=4)
        run.allowed.set()
        return [await task for task in tasks]

    assert asyncio.run(scenario()) == [2, 4, 6, 8, 10]
    assert run.batches == [[1], [2, 3, 4], [5]]


def test_a_bad_item_costs_only_its_own_answer() -> None:
    run = Doubler()

    async def scenario() -> list[int | BaseException]:
        batcher = Batcher(run, max_batch=8)
        run.allowed.clear()
        tasks = await started(batcher, 1, waiting=0)
        tasks += await started(batcher, 2, 13, 4, waiting=3)
        run.allowed.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(scenario())
    assert answers[:2] == [2, 4] and answers[3] == 8
    assert isinstance(answers[2], ValueError)


def test_items_whose_caller_has_gone_are_not_run() -> None:
    run = Doubler()

    async def scenario() -> int:
        batcher = Batcher(run, max_batch=8)
        run.allowed.clear()
        tasks = await started(batcher, 1, waiting=0)
        tasks += await started(batcher, 2, 3, waiting=2)
        tasks[1].cancel()
        run.allowed.set()
        assert await tasks[2] == 6
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        return batcher.dropped

    assert asyncio.run(scenario()) == 1
    assert run.batches == [[1], [3]]


def test_close_answers_what_waits() -> None:
    run = Doubler()

    async def scenario() -> list[int]:
        batcher = Batcher(run, max_batch=1)
        run.allowed.clear()
        tasks = await started(batcher, 1, 2, 3, waiting=2)
        run.allowed.set()
        await batcher.close()
        assert all(task.done() or len(batcher) == 0 for task in tasks)
        return [await task for task in tasks]

    assert asyncio.run(scenario()) == [2, 4, 6]


def test_each_batch_is_observed() -> None:
    seen: list[tuple[int, float, float]] = []

    async def scenario() -> None:
        batcher = Batcher(Doubler(), 4, lambda *what: seen.append(what))
        await batcher.submit(1)
        await batcher.close()

    asyncio.run(scenario())
    assert [size for size, _, _ in seen] == [1] and all(s >= 0 for one in seen for s in one[1:])


def test_streams_run_side_by_side_and_no_more_than_there_are() -> None:
    run = Doubler()

    async def scenario() -> list[int]:
        batcher = Batcher(run, max_batch=1, streams=2)
        run.allowed.clear()
        tasks = await started(batcher, 1, 2, 3, 4, waiting=2)  # two are being run
        run.allowed.set()
        return [await task for task in tasks]

    assert asyncio.run(scenario()) == [2, 4, 6, 8]


def test_an_item_that_comes_as_the_last_run_ends_is_run() -> None:
    async def scenario() -> list[int]:
        batcher = Batcher(Doubler(), max_batch=1)
        # Whoever waited goes on before anyone learns that the run's task has ended.
        return [await batcher.submit(item) for item in range(9)]

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == [2 * item for item in range(9)]


def test_a_run_is_lone_with_nothing_beside_or_behind_it() -> None:
    run, lone = Doubler(), []

    async def scenario() -> None:
        batcher = Batcher(lambda items: lone.append((*items, batcher.lone)) or run(items), max_batch=1, streams=2)
        assert await batcher.submit(1) == 2
        run.allowed.clear()
        tasks = await started(batcher, 2, waiting=0)
        async with asyncio.timeout(60):
            while len(lone) < 2:
                await asyncio.sleep(0)
        tasks += await started(batcher, 3, waiting=0)
        run.allowed.set()
        await asyncio.gather(*tasks)
        assert await batcher.submit(5) == 10

    asyncio.run(scenario())
    assert dict(lone) == {1: True, 2: True, 3: False, 5: True}
