"""Turns in a circle, and leave to come in by time: held to slow statements of both, in time that is made up."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from runtime.service.network.errors import Problem
from runtime.service.network.turns import FIRST_PACE, FULL, REFUSING_S, STANDING, Caller, Job, Pace, Turns

DEADLINE_S = 10.0
STEPS = 80


class Machine:
    """Works off what has its turn, first come first served, `pace` of cost a second, in time that only it moves."""

    def __init__(
        self,
        pace: float = 1.0,
        believed: float = 1.0,
        decoding: int = 1,
        least: int = 1,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.now = 0.0
        self.pace = pace
        self.deadline_s = deadline_s
        self.turns = Turns(decoding, least, 4 * least, deadline_s, lambda: self.now)
        known = self.turns._pace
        known._seconds = known._memory_s / 10
        known._cost = believed * known._seconds
        self.begun: list[str] = []  # names of items in the order of their turns
        self.ended: dict[str, tuple[float, float]] = {}  # when a request was done, and its deadline
        self.late: list[str] = []  # refused after they were let in
        self.worked_s = 0.0
        self._under_way: deque[tuple[float, asyncio.Event]] = deque()
        self._tasks: list[asyncio.Task[None]] = []

    async def ask(self, name: str, client: str, items: int = 1, cost_s: float = 1.0) -> int:
        """0 where a request of so many items, of so much cost each, is let in; otherwise its Retry-After."""
        refused = 0
        inside = asyncio.Event()

        async def request() -> None:
            nonlocal refused
            caller = Caller(client, self.now + self.deadline_s)
            try:
                with self.turns.admit(caller, items, items * cost_s) as job:
                    inside.set()
                    await asyncio.gather(*(item(job) for _ in range(items)))
                    self.ended[name] = self.now, caller.deadline
            except Problem as problem:
                if inside.is_set():
                    self.late.append(name)
                refused = int(problem.headers["Retry-After"])
                inside.set()

        async def item(job: object) -> None:
            async with self.turns.turn(job) as decoded:  # type: ignore[arg-type]
                self.begun.append(name)
                decoded()
                done = asyncio.Event()
                self._under_way.append((cost_s, done))
                await done.wait()

        self._tasks.append(asyncio.create_task(request()))
        await inside.wait()
        await settled()
        return refused

    async def work(self) -> bool:
        """Do one item; whether there was one."""
        if not self._under_way:
            return False
        cost_s, done = self._under_way.popleft()
        self.now += cost_s / self.pace
        self.worked_s += cost_s / self.pace
        done.set()
        await settled()
        return True

    async def work_until(self, time: float) -> None:
        while self.now < time and await self.work():
            pass
        self.now = max(self.now, time)


async def settled() -> None:
    """Let every task go as far as it can."""
    for _ in range(12):
        await asyncio.sleep(0)


def run(scenario: Callable[[Machine], Awaitable[None]], machine: Machine | None = None) -> Machine:
    machine = machine or Machine()

    async def whole() -> None:
        await scenario(machine)

    # The turns of a machine belong to its loop, and nothing is awaited before it runs.
    asyncio.run(asyncio.wait_for(whole(), 60))
    return machine


@dataclass
class Waiting:
    name: str
    client: str
    left: int
    since: tuple[int, int]  # it came, or had its last turn


def circle(asked: list[tuple[int, str, str, int]]) -> list[str]:
    """Of (step of arrival, name, client, items): who has the turns, each as soon as the one before is done.

    The client that had none for longest, and its request that had none for longest.
    """
    waiting: list[Waiting] = []
    clients: dict[str, tuple[int, int]] = {}
    order: list[str] = []
    busy = True

    def take(step: int) -> None:
        client = min({one.client for one in waiting}, key=lambda name: clients[name])
        one = min((one for one in waiting if one.client == client), key=lambda one: one.since)
        order.append(one.name)
        one.left -= 1
        one.since = clients[client] = (step, len(asked))
        if not one.left:
            waiting.remove(one)

    for step in range(STEPS):
        for number, (at, name, client, items) in enumerate(asked):
            if at == step:
                if client not in {one.client for one in waiting}:
                    clients[client] = (step, number)
                waiting.append(Waiting(name, client, items, (step, number)))
                if not busy:
                    take(step)
                    busy = True
        busy = bool(waiting)
        if waiting:
            take(step)
    return order


@pytest.mark.parametrize("seed", range(20))
def test_turns_go_around_clients_and_their_requests(seed: int) -> None:
    chance = random.Random(seed)
    asked = [
        (step, f"{step}", chance.choice("abc"), chance.choice([1, 1, 2, 5]))
        for step in sorted(chance.sample(range(30), 12))
    ]

    async def scenario(machine: Machine) -> None:
        await machine.ask("first", "x")  # is at work when the others come
        for step in range(STEPS):
            for at, name, client, items in asked:
                if at == step:
                    assert not await machine.ask(name, client, items)
            await machine.work()

    machine = run(scenario, Machine(deadline_s=1000))
    assert machine.begun[1:] == circle(asked)


@pytest.mark.parametrize(("pace", "believed", "seed"), [(1.0, 1.0, 0), (1.0, 1.0, 1), (4.0, 1.0, 2), (0.4, 8.0, 3)])
def test_who_is_let_in_is_done_in_time_and_the_machine_never_waits(pace: float, believed: float, seed: int) -> None:
    """Twice what it can do for a minute, from clients with one item and with many, of any size.

    Its pace is as is believed in the beginning, more, or much less: then some are refused after they were let in.
    """
    chance = random.Random(seed)
    offered = []
    at = 0.0
    while at < 60:
        client, items = chance.choice([("a", 1), ("b", 1), ("b", 12), ("c", 1), (f"{at}", 2)])
        cost_s = chance.choice([0.02, 0.05, 0.2])
        offered.append((at, client, items, cost_s))
        at += chance.expovariate(2 * pace / (items * cost_s))
    refused: list[int] = []

    async def scenario(machine: Machine) -> None:
        for number, (at, client, items, cost_s) in enumerate(offered):
            await machine.work_until(at)
            refused.append(await machine.ask(f"{number}", client, items, cost_s))
        while await machine.work():
            pass

    machine = run(scenario, Machine(pace, believed, decoding=3, least=5))
    assert len(machine.late) < 0.1 * len(machine.ended) if pace < believed else not machine.late
    assert len(machine.ended) + len(machine.late) == refused.count(0) > 50
    assert all(end <= deadline for end, deadline in machine.ended.values())
    assert machine.worked_s > 0.9 * machine.now
    assert 0.3 < refused.count(0) / len(refused) < 0.9


def test_one_request_of_many_items_is_not_starved_by_ever_new_ones() -> None:
    async def scenario(machine: Machine) -> None:
        assert not await machine.ask("many", "a", 30, 0.1)
        for number in range(200):
            await machine.ask(f"{number}", "a" if number % 2 else f"{number}", 1, 0.1)
            await machine.ask(f"and {number}", f"{number}", 1, 0.1)
            await machine.work()

    machine = run(scenario)
    end, deadline = machine.ended["many"]
    assert end <= deadline and machine.late == []
    assert len(set(machine.begun[:20])) > 5, "nor do they wait until it is done"


@pytest.mark.parametrize(("items", "cost_s"), [(1, 0.1), (1, 0.5), (10, 0.1), (10, 0.3)])
def test_who_comes_back_when_told_is_let_in(items: int, cost_s: float) -> None:
    async def scenario(machine: Machine) -> None:
        refused = 0
        for number in range(100):
            refused = refused or await machine.ask(f"{number}", f"{number % 4}", items, cost_s)
        rest_s = machine.turns.wait_s
        assert 1 <= refused <= rest_s + 1.0
        many = [await machine.ask("much", "new", 60, 0.1), await machine.ask("more", "new", 80, 0.1)]
        assert 1 < many[0] <= many[1]
        await machine.work_until(machine.now + many[1])
        assert not await machine.ask("more", "new", 80, 0.1)

    assert run(scenario).late == []


def test_a_wait_that_stands_is_short_and_a_burst_may_take_the_whole_deadline() -> None:
    async def scenario(machine: Machine) -> None:
        burst = [await machine.ask(f"burst {number}", "a", 1, 0.1) for number in range(150)]
        assert burst.index(burst[-1]) == pytest.approx(FULL * DEADLINE_S / 0.1, abs=2)
        for step in range(600):  # twice what it can do, for a minute
            await machine.ask(f"{step}", "a", 1, 0.1)
            await machine.ask(f"and {step}", "a", 1, 0.1)
            await machine.work()
        lately = [end - (deadline - DEADLINE_S) for end, deadline in list(machine.ended.values())[-200:]]
        assert max(lately) < STANDING * DEADLINE_S + 1.0
        while await machine.work():
            pass
        machine.now += REFUSING_S
        assert [await machine.ask(f"again {number}", "a", 1, 0.1) for number in range(50)] == [0] * 50

    run(scenario)


def test_nobody_who_comes_to_an_idle_service_is_refused_for_being_much() -> None:
    async def scenario(machine: Machine) -> None:
        assert not await machine.ask("much", "a", 30, 0.5)
        assert await machine.ask("more", "b", 30, 0.5)

    run(scenario)


def test_what_has_become_hopeless_is_not_begun() -> None:
    async def scenario(machine: Machine) -> None:
        for number in range(8):
            assert not await machine.ask(f"{number}", "a")
        machine.now += 7.0  # it stood still
        while await machine.work():
            pass

    machine = run(scenario)
    assert machine.begun == list(machine.ended) and machine.late
    assert len(machine.begun) + len(machine.late) == 8
    assert all(end <= deadline for end, deadline in machine.ended.values())


def test_who_goes_away_takes_no_turn() -> None:
    async def scenario() -> None:
        turns = Turns(1, 1, 1, DEADLINE_S, lambda: 0.0)
        order: list[str] = []
        go = asyncio.Event()

        async def take(name: str, wait: asyncio.Event) -> None:
            with turns.admit(Caller(name, DEADLINE_S), 1, 1.0) as job:
                async with turns.turn(job):
                    order.append(name)
                    await wait.wait()

        tasks = {name: asyncio.create_task(take(name, go)) for name in "abcd"}
        await settled()
        assert order == ["a"] and len(turns) == 3
        tasks["b"].cancel()
        await settled()
        assert len(turns) == 2
        go.set()
        tasks["c"].cancel()  # whose turn comes before it could take itself out
        await asyncio.wait(tasks.values())
        assert tasks["a"].exception() is None
        assert order == ["a", "d"] and turns.idle and len(turns) == 0

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_items_that_outlive_their_request_hold_up_nobody() -> None:
    async def scenario() -> None:
        turns = Turns(1, 1, 1, DEADLINE_S, lambda: 0.0)
        begun: list[str] = []

        async def item(name: str, job: Job) -> None:
            async with turns.turn(job):
                begun.append(name)
                await settled()

        async def fails(job: Job) -> None:
            raise ValueError

        with pytest.raises(ValueError), turns.admit(Caller("a", DEADLINE_S), 4, 4.0) as job:
            items = [asyncio.create_task(item("failed", job)) for _ in range(3)]
            await asyncio.gather(fails(job), *items)
        assert len(turns) == 0
        with pytest.raises(Problem):
            await item("too late", job)
        with turns.admit(Caller("b", DEADLINE_S), 2, 2.0) as job:
            await asyncio.gather(item("next", job), item("next", job))
        assert begun[-2:] == ["next", "next"] and "too late" not in begun and turns.idle
        assert all(isinstance(task.exception(), Problem) for task in items[1:])

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_the_pace_is_what_is_done_while_there_is_more_to_do() -> None:
    pace, now = Pace(3.0), 0.0

    def work(seconds: float, per_s: float, more: bool = True) -> None:
        nonlocal now
        for _ in range(int(10 * seconds)):
            now += 0.1
            pace.note(per_s / 10, now - 0.1, now, more)

    assert pace.per_s == FIRST_PACE
    work(1, 10)
    assert pace.per_s == pytest.approx(10, rel=0.05)
    work(15, 4)
    assert pace.per_s == pytest.approx(4, rel=0.1)
    pace.note(0.4, now, now, more=False)
    now += 1000  # nothing to do
    work(1, 3, more=False)
    assert pace.per_s == pytest.approx(4, rel=0.1)
    work(0.5, 7, more=False)  # what passes alone so quickly
    assert pace.per_s == pytest.approx(7, rel=0.1)
