"""Who is let in, and who is next: what cannot be done in time is refused at once, and nobody waits for a crowd.

The items of a request, its pictures and prompts, wait here for their turn. Turns go around: from client to client, and
at each client from request to request, one item a time. So one picture waits for one of each other request, and not
for the sixty of each. What has had its turn cannot be overtaken, so it is little: what keeps decoders and session busy.

An item's cost is about the seconds that one core takes for it; the pace is how much cost is worked off a second. A
request is let in if, at the present pace and in the order of turns, it will be done well before its deadline and none
that was let in before will miss its own for it. Knows no HTTP but its 429.
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

BYTE_S = 40e-9  # of a core, to decode a byte of a photograph
FULL = 0.9  # of its time until the deadline a newcomer may be expected to take: the pace is an estimate
STANDING = 0.1  # of its deadline a newcomer may be expected to wait for a first turn, once others have been refused
REFUSING_S = 2.0  # how long a refusal counts
SPARE = 0.1  # of the deadline, by which nobody's last item should come sooner
AHEAD_S = 0.3  # of work that may be under way
PACE = 0.2  # of the deadline: what was worked off longer ago than this counts little
FIRST_PACE = 8.0
MOST_RETRY_AFTER_S = 30


@dataclass(frozen=True)
class Caller:
    """Who wants something, and the time of the monotonic clock by which it is wanted."""

    client: Hashable
    deadline: float


@dataclass(eq=False)
class Job:
    """The items of one request, which are taken to cost the same."""

    caller: Caller
    item_s: float
    left: int  # items that have not had their turn
    waiting: "deque[Turn]" = field(default_factory=deque)  # of them, those that could take it now
    over: bool = False  # nothing more is done for it


@dataclass(eq=False)
class Turn:
    """One item's."""

    job: Job
    granted: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Pace:
    """How much cost is worked off a second while there is always more to do, of late.

    Much until that is known: what is let in too easily is refused a little later, but what is refused too easily shows
    nobody how quick the machine is. Where there is not more to do, no less than what an item shows that passes alone.
    """

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._cost = self._seconds = 0.0
        self._since: float | None = None  # when something was done last, if there was more to do

    @property
    def per_s(self) -> float:
        known = self._cost > 0 and self._seconds >= self._memory_s / 10
        return self._cost / self._seconds if known else FIRST_PACE

    def note(self, cost: float, began: float, now: float, more: bool) -> None:
        """An item of so much cost, begun at a time, is done now; whether there is `more` that could not begin yet."""
        if self._since is not None:
            elapsed = now - self._since
            kept = math.exp(-elapsed / self._memory_s)
            self._cost, self._seconds = kept * self._cost + cost, kept * self._seconds + elapsed
        elif now > began:
            self._cost = max(self._cost, cost / (now - began) * self._seconds)
        self._since = now if more else None


class Turns:
    """The order of items, of which up to `decoding` are being decoded.

    From `least` to `most` are under way, by how long they take. Used from one event loop.
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
        # The first client has the next turn, and of its jobs the first.
        self._clients: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._decoding: set[Turn] = set()
        self._running: set[Turn] = set()
        self._refused_at = self._shed_at = -math.inf

    def __len__(self) -> int:
        """Items that wait for their turn."""
        return sum(len(job.waiting) for jobs in self._clients.values() for job in jobs)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not (self._clients or self._decoding or self._running)

    @property
    def wait_s(self) -> float:
        """Seconds until all that there is now is done, at the present pace."""
        waiting = sum(job.left * job.item_s for jobs in self._clients.values() for job in jobs)
        return (self._under_way_s + waiting) / self._pace.per_s

    def check(self, caller: Caller, size_bytes: int) -> None:
        """Raise Problem 429 where a request that announces so many bytes is likely not done in time."""
        # Of what has been read more may wait: it is not thrown away as lightly.
        self._check(Job(caller, BYTE_S * size_bytes, 1), self._standing_s / 2)

    @contextmanager
    def admit(self, caller: Caller, items: int, cost_s: float) -> Iterator[Job]:
        """Turns for so many items, of so much cost in all, until the block ends.

        Raise Problem 429 where they cannot be done in time.
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
        """One item's turn: wait for it, then be under way until the block ends. Call what this gives once decoded.

        Raise Problem 429 where the job can no longer be done in time, or is over: its other items may have failed it.
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
            raise self.busy(min(too_soon_s, self.wait_s))  # once all is done that there is now, anyone is let in

    def busy(self, wait_s: float | None = None) -> Problem:
        """The problem of who comes too soon by so much, by default by all that there is to do."""
        seconds = max(1, min(MOST_RETRY_AFTER_S, math.ceil(self.wait_s if wait_s is None else wait_s)))
        message = f"too much is waiting already; try again in {seconds} s"
        return Problem(429, "too busy", message, {"Retry-After": str(seconds)})

    def _too_soon_s(self, newcomer: Job, standing_s: float) -> float:
        """How much later this job could be done in time; 0 or less where it can be now, or where nobody waits."""
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
                too_soon_s = max(too_soon_s, end_s)  # nobody else can be let in before that is over
        return too_soon_s

    def _order(self, newcomer: Job | None = None) -> Iterator[tuple[Job, bool]]:
        """Each item's job in the order of turns, if a newcomer joined now, and whether it is the job's last item."""
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
        """Give turns while there is room for what is under way."""
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
        if not turn.granted.done():  # or who waits for it was cancelled a moment ago
            self._decoding.add(turn)
            turn.granted.set_result(None)

    def _late(self) -> Iterator[Job]:
        """The jobs that will be late in the order of turns; one alone only if it will at twice the pace too."""
        alone = sum(map(len, self._clients.values())) == 1
        pace, now = self._pace.per_s * (2 if alone else 1), self._clock()
        end_s = self._under_way_s / pace
        for job, last in self._order():
            end_s += job.item_s / pace
            if last and now + end_s + self._spare_s / 2 > job.caller.deadline:
                yield job

    def _forget(self, job: Job) -> None:
        """Have nothing more done for a job: it is done, has failed, or would be late. Refuse what waits of it."""
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
