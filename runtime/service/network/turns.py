"""Decide which requests are admitted, and the order of their items. Requests that cannot be done in time are refused at
once.

The items of a request, its pictures and prompts, wait here for their turn. Turns go round robin from client to client,
and for each client from request to request, one item at a time. So a single picture waits for one item of each other
request, and not for all of their sixty. Items that had their turn cannot be overtaken, so only as many are under way as
keep decoders and session busy.

An item's cost is about the seconds that one core needs for it, and the pace is the cost that is done per second. A
request is admitted if, at the present pace and in the order of turns, it will be done well before its deadline, and no
admitted request will miss its own deadline because of it. Knows no HTTP except the status 429.
"""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import chain

from runtime.service.network.errors import Problem

BYTE_S = 40e-9  # time of a core to decode one byte of a photograph
FULL = 0.9  # largest expected share of a new request's time until its deadline; the pace is an estimate
STANDING = 0.1  # largest expected share of it before a new request's first turn, after others were refused
REFUSING_S = 2.0  # how long a refusal has this effect
SPARE = 0.1  # share of the deadline by which last items should be early
AHEAD_S = 0.3  # seconds of work that may be under way
PACE = 0.2  # share of the deadline: older measurements of the pace count little
FIRST_PACE = 8.0
MOST_RETRY_AFTER_S = 30


@dataclass(frozen=True)
class Caller:
    """The sender of a request, and its deadline by the monotonic clock."""

    client: Hashable
    deadline: float


@dataclass(eq=False)
class Job:
    """The items of one request, which are assumed to have equal cost."""

    caller: Caller
    item_s: float
    left: int  # number of items that have not had their turn
    waiting: "deque[Turn]" = field(default_factory=deque)  # those of them that could start now
    over: bool = False  # no more work is done for it


@dataclass(eq=False)
class Turn:
    """The turn of one item."""

    job: Job
    granted: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Pace:
    """The recent pace: the cost that is done per second while there is always more work.

    Until it is known it is high: a request that is admitted too easily is refused a little later, but refusing too
    easily would never show how fast the machine is. While there is not always more work, the pace is at least that of a
    single item.
    """

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._cost = self._seconds = 0.0
        self._since: float | None = None  # when an item was last done, if more work was waiting

    @property
    def per_s(self) -> float:
        known = self._cost > 0 and self._seconds >= self._memory_s / 10
        return self._cost / self._seconds if known else FIRST_PACE

    def note(self, cost: float, began: float, now: float, more: bool) -> None:
        """Note that an item of this cost, started at `began`, is done `now`. `more` says whether other items were
        waiting to start."""
        if self._since is not None:
            elapsed = now - self._since
            kept = math.exp(-elapsed / self._memory_s)
            self._cost, self._seconds = kept * self._cost + cost, kept * self._seconds + elapsed
        elif now > began:
            self._cost = max(self._cost, cost / (now - began) * self._seconds)
        self._since = now if more else None


class Turns:
    """The order of items. Up to `decoding` of them are being decoded.

    Between `least` and `most` are under way, depending on how long they take. It is used from one event loop.
    """

    def __init__(
        self, decoding: int, least: int, most: int, deadline_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_decoding = decoding
        self._least = least
        self._most = most
        self._standing_s = STANDING * deadline_s
        self._spare_s = SPARE * deadline_s
        self._clock = clock
        self._pace = Pace(PACE * deadline_s)
        # The next turn goes to the first job of the first client.
        self._clients: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._decoding: set[Turn] = set()
        self._running: set[Turn] = set()
        self._refused_at = self._shed_at = -math.inf

    def __len__(self) -> int:
        """The number of items that wait for their turn."""
        return sum(len(job.waiting) for jobs in self._clients.values() for job in jobs)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not (self._clients or self._decoding or self._running)

    @property
    def wait_s(self) -> float:
        """The seconds until all present work is done, at the present pace."""
        waiting = sum(job.left * job.item_s for jobs in self._clients.values() for job in jobs)
        return (self._under_way_s + waiting) / self._pace.per_s

    def check(self, caller: Caller, size_bytes: int) -> None:
        """Raise Problem 429 if a request that announces so many bytes will probably not be done in time."""
        # Requests whose body was read may wait longer, since reading it would be wasted.
        self._check(Job(caller, BYTE_S * size_bytes, 1), self._standing_s / 2)

    @contextmanager
    def admit(self, caller: Caller, items: int, cost_s: float) -> Iterator[Job]:
        """Admit a job of so many items, with `cost_s` in total, until the block ends.

        Raise Problem 429 if they cannot be done in time.
        """
        job = Job(caller, cost_s / max(1, items), items)
        if items:
            self._check(job, self._standing_s)
            self._clients.setdefault(caller.client, deque()).append(job)
        try:
            yield job
        finally:
            self._forget(job)

    @asynccontextmanager
    async def turn(self, job: Job) -> AsyncIterator[Callable[[], None]]:
        """Wait for the turn of one item, which is then under way until the block ends. Call the yielded function once
        it is decoded.

        Raise Problem 429 if the job can no longer be done in time, or is over because another of its items failed.
        """
        if job.over:
            raise self.busy()
        turn = Turn(job)
        job.waiting.append(turn)

        def decoded() -> None:
            self._decoding.discard(turn)
            self._running.add(turn)
            self._grant()

        try:
            self._grant()
            await turn.granted
            began = self._clock()
            yield decoded
            if turn in self._running:
                self._pace.note(job.item_s, began, self._clock(), more=len(self) > 0)
        finally:
            self._decoding.discard(turn)
            self._running.discard(turn)
            if turn in job.waiting:
                job.waiting.remove(turn)
            self._grant()

    @property
    def _under_way_s(self) -> float:
        return sum(turn.job.item_s for turn in chain(self._decoding, self._running))

    def _check(self, newcomer: Job, standing_s: float) -> None:
        too_soon_s = self._too_soon_s(newcomer, standing_s)
        if too_soon_s > 0:
            self._refused_at = self._clock()
            raise self.busy(min(too_soon_s, self.wait_s))  # after all present work is done, any request is admitted

    def busy(self, wait_s: float | None = None) -> Problem:
        """The problem for a request that comes `wait_s` too early, by default the time for all present work."""
        seconds = max(1, min(MOST_RETRY_AFTER_S, math.ceil(self.wait_s if wait_s is None else wait_s)))
        message = f"too many requests are waiting; try again in {seconds} s"
        return Problem(429, "too busy", message, {"Retry-After": str(seconds)})

    def _too_soon_s(self, newcomer: Job, standing_s: float) -> float:
        """How many seconds later this job could be done in time. It is 0 or less if it can be now, or if nothing
        waits."""
        if not self._clients:
            return 0.0
        now, pace = self._clock(), self._pace.per_s
        standing_s = standing_s if now - self._refused_at < REFUSING_S else math.inf
        begin_s = end_s = self._under_way_s / pace
        begun, too_soon_s = False, 0.0
        for job, last in self._order(newcomer):
            if job is newcomer and not begun:
                begun, too_soon_s = True, end_s - begin_s - standing_s
            end_s += job.item_s / pace
            if job is newcomer:
                if last:
                    too_soon_s = max(too_soon_s, end_s - FULL * (job.caller.deadline - now))
            elif begun and last and now + end_s + self._spare_s > job.caller.deadline:
                too_soon_s = max(too_soon_s, end_s)  # no request can be admitted before that job is over
        return too_soon_s

    def _order(self, newcomer: Job | None = None) -> Iterator[tuple[Job, bool]]:
        """Yield each item's job in the order of turns as if `newcomer` joined now, and whether it is the job's last
        item."""
        queues = {client: deque((job, job.left) for job in jobs) for client, jobs in self._clients.items()}
        if newcomer is not None:
            queues.setdefault(newcomer.caller.client, deque()).append((newcomer, newcomer.left))
        clients = deque(queues.values())
        while clients:
            jobs = clients.popleft()
            job, left = jobs.popleft()
            yield job, left == 1
            if left > 1:
                jobs.append((job, left - 1))
            if jobs:
                clients.append(jobs)

    def _grant(self) -> None:
        """Give turns while more items may be under way."""
        if len(self) and self._clock() > self._shed_at + self._spare_s / 2:
            self._shed_at = self._clock()
            while late := list(self._late()):
                self._forget(max(late, key=lambda job: job.left * job.item_s))
        while len(self) and self._has_room:
            client, jobs = self._clients.popitem(last=False)
            job = jobs.popleft()
            if job.waiting:
                self._begin(job.waiting.popleft())
            if job.left or job.waiting:
                jobs.append(job)
            if jobs:
                self._clients[client] = jobs

    @property
    def _has_room(self) -> bool:
        under_way = len(self._decoding) + len(self._running)
        return (
            len(self._decoding) < self._most_decoding
            and under_way < self._most
            and (under_way < self._least or self._under_way_s < AHEAD_S * self._pace.per_s)
        )

    def _begin(self, turn: Turn) -> None:
        turn.job.left -= 1
        if not turn.granted.done():  # otherwise its waiting task was just cancelled
            self._decoding.add(turn)
            turn.granted.set_result(None)

    def _late(self) -> Iterator[Job]:
        """Yield the jobs that will be late in the order of turns. A single job is late only if it also is at twice the
        pace."""
        alone = sum(map(len, self._clients.values())) == 1
        pace, now = self._pace.per_s * (2 if alone else 1), self._clock()
        end_s = self._under_way_s / pace
        for job, last in self._order():
            end_s += job.item_s / pace
            if last and now + end_s + self._spare_s / 2 > job.caller.deadline:
                yield job

    def _forget(self, job: Job) -> None:
        """Stop work for a job that is done, has failed, or would be late. Its waiting items are refused."""
        for turn in job.waiting:
            if not turn.granted.done():
                turn.granted.set_exception(self.busy())
        job.waiting.clear()
        job.left, job.over = 0, True
        jobs = self._clients.get(job.caller.client)
        if jobs and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._clients[job.caller.client]
