"""State that the routes for comparing share: the database, the candidates, the voters, and the head's scores of
candidates.

Waiting for the database or the disk is done in threads. Knows no route.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from http.cookies import SimpleCookie
from typing import TypeVar

import numpy as np
from sqlalchemy.engine import Connection
from starlette.requests import Request

from embed.inputs.images import ImageError
from runtime.collect import ledger, series
from runtime.collect.candidates import Candidate, Candidates, gathered, gold_pairs, read_candidates
from runtime.collect.collector import Collector, Known, Proposal
from runtime.collect.database import open_database
from runtime.collect.generators import GeneratorError, open_generator
from runtime.collect.invites import voter_of_key
from runtime.collect.ledger import Picture, Showing
from runtime.service.answering.state import Service
from runtime.service.network.errors import Problem, invalid
from runtime.service.network.front import log
from runtime.service.network.turns import Caller
from runtime.service.routes.views import Size, Views

COOKIE = "plaudit_voter"
ANYONE = "anonymous"  # the name of people who give none
ATTEMPTS = 5  # attempts to find pairs whose pictures can be shown
SCORED_TOGETHER = 8
MOST_SCORED = 20_000  # of more candidates, so many are drawn at random
PAUSE_S = 0.05  # time between checks whether the service is idle and can score candidates
Value = TypeVar("Value")

MADE_AHEAD = 2  # number of pictures that a generator makes at a time, or more if more are lacking


class Comparing:
    """The state of votes, which exists as long as the service."""

    def __init__(self, service: Service) -> None:
        config = service.config.voting
        assert config.votes is not None
        self.config = config
        self.service = service
        self.views = Views(service)
        self.instructions = config.instructions and config.instructions.read_text(encoding="utf-8")
        where = config.candidates or service.config.catalogue
        candidates = read_candidates(where) if where else gathered({}, [])
        known, gold = gold_pairs(config.gold) if config.gold else ({}, [])
        pairs = [(prompt, known[good], known[bad]) for prompt, good, bad in gold if good in known and bad in known]
        self._gold = {one.id: one for one in known.values()}
        self.generator = open_generator(config.generator, service.config.limits.max_bytes) if config.generator else None
        self.database = open_database(config.votes)
        service.closers.append(self.database.close)
        self.collector = Collector(self.database, candidates, pairs, config)
        self._scored_for = ""  # the digest of the bundle that scored the candidates
        self._scoring: asyncio.Task[None] | None = None

    async def voter(self, request: Request, given: str | None) -> str:
        """The person who sends a request: named by the sign-in, by the key of an invitation, or otherwise by
        themselves."""
        if (named := getattr(request.state, "voter", None)) is not None:
            return str(named)
        if self.config.voters == "free":
            return given or ANYONE
        cookies: SimpleCookie = SimpleCookie(request.headers.get("cookie", ""))
        if COOKIE in cookies:
            voter = await self.read(partial(voter_of_key, key=cookies[COOKIE].value))
            if voter is not None:
                return voter
        raise Problem(403, "not invited", "voting here needs an invitation; open the link that you were given")

    async def owner(self, request: Request) -> str | None:
        """The person whose showings a request may answer. None means anyone's, if it knows their ids."""
        if self.config.voters == "free" and getattr(request.state, "voter", None) is None:
            return None
        return await self.voter(request, None)

    async def read(self, query: Callable[[Connection], Value]) -> Value:
        """The result of a query of the database."""

        def reading() -> Value:
            with self.database.reading() as connection:
                return query(connection)

        return await asyncio.to_thread(reading)

    async def next(self, request: Request, voter: str, count: int, holding: Collection[str] = ()) -> list[Showing]:
        """This person's next showings: first those without a vote, except those in `holding`, then new ones. There are
        fewer if there are no more pairs."""
        pending = await self.read(partial(ledger.pending, voter=voter))
        waiting = [showing for showing in pending if showing.id not in holding]
        begun = await self.read(partial(series.current, voter=voter))
        if begun is not None:
            own = [showing for showing in waiting if showing.series == begun.id]
            held = any(showing.series == begun.id for showing in pending)
            return own[:1] if held else await self._next_of(request, voter, begun)
        found = [showing for showing in waiting if showing.series is None][:count]
        for _ in range(ATTEMPTS):
            if len(found) == count:
                break
            proposals = await asyncio.to_thread(self.collector.propose, voter, count - len(found))
            if not proposals:
                break
            found += await self._shown(request, voter, proposals)
        self._score_candidates()
        return found

    async def begin(self, request: Request, voter: str, prompt: str) -> list[Showing]:
        """Begin a series for this prompt, or with an empty prompt end the last one, and return the next showings."""
        work = partial(series.begin, voter=voter, prompt=prompt, at=time.time())
        await asyncio.wrap_future(self.database.submit(work))
        return await self.next(request, voter, 1)

    async def _shown(self, request: Request, voter: str, proposals: list[Proposal]) -> list[Showing]:
        """Show those proposals whose pictures can be shown. The others are never drawn again."""
        sizes = await self.views.sizes(request, [one for each in proposals for one in (each.first, each.second)])
        good: list[tuple[Proposal, Picture, Picture]] = []
        for each in proposals:
            first, second = sizes[each.first.id], sizes[each.second.id]
            if isinstance(first, Size) and isinstance(second, Size):
                good.append((each, _picture(each.first, first), _picture(each.second, second)))
                continue
            errors = {id: sizes[id] for id in (each.first.id, each.second.id) if isinstance(sizes[id], ImageError)}
            log.warning("a candidate cannot be shown", extra={"fields": {"errors": list(map(str, errors.values()))}})
            self.collector.broken(each, set(errors))
        return await asyncio.to_thread(self.collector.show, voter, good)

    async def _next_of(self, request: Request, voter: str, begun: series.Series) -> list[Showing]:
        """The next showing for a person's own prompt. Lacking pictures are made."""
        if begun.lacking:
            begun = replace(begun, spare=[*begun.spare, *await self._made(request, begun)])
        first, second = (_candidate(picture) for picture in begun.next_pair)
        proposal = Proposal(begun.prompt, first, second, "series", series=begun.id)
        return await self._shown(request, voter, [proposal])

    async def _made(self, request: Request, begun: series.Series) -> list[Picture]:
        """New pictures of a series, which are stored."""
        assert self.generator is not None
        seed = int(np.random.default_rng().integers(2**31))
        try:
            files = await self.generator.pictures(begun.prompt, seed, max(MADE_AHEAD, begun.lacking))
        except GeneratorError as error:
            raise Problem(502, "no picture", str(error)) from None
        made = [Candidate(f"{begun.id}-{time.time_ns()}-{seed}-{i}", (), data) for i, data in enumerate(files)]
        sizes = await self.views.sizes(request, made)
        good = [(one, size) for one in made if isinstance(size := sizes[one.id], Size)]
        pictures = [replace(_picture(one, size), series=begun.id) for one, size in good]
        if len(pictures) < begun.lacking:
            raise Problem(
                502, "no picture", "the generator gave pictures that cannot be read; try again, or use another prompt"
            )
        await asyncio.wrap_future(self.database.submit(partial(ledger.add_pictures, found=pictures)))
        return pictures

    async def candidate(self, id: str) -> Candidate | None:
        """The picture with this id, if it may be shown, or None."""
        one = self.collector.candidates.of_id.get(id) or self._gold.get(id)
        if one is None:
            found = await self.read(partial(ledger.pictures_of, ids=[id]))
            one = _candidate(found[id]) if id in found else None
        return one

    def _score_candidates(self) -> None:
        """Let the served head score the candidates while the service is idle."""
        if self.service.room.engine.scorer.bundle.digest == self._scored_for:
            return
        if self._scoring is None or self._scoring.done():
            self._scoring = asyncio.create_task(self._score_all())

    async def _score_all(self) -> None:
        candidates = self.collector.candidates
        digest = self.service.room.engine.scorer.bundle.digest
        known: Known | None = None
        learnt, count = 1, 0
        order = np.random.default_rng().permutation(len(candidates.picture))[:MOST_SCORED]
        for start in range(0, len(order), SCORED_TOGETHER):
            while not self.service.turns.idle:
                await asyncio.sleep(PAUSE_S)
            if self.service.room.engine.scorer.bundle.digest != digest:
                return  # the next request starts again
            with contextlib.suppress(Problem):  # the service is too busy: these stay without scores
                known = await self._score(candidates, order[start : start + SCORED_TOGETHER].tolist(), known)
                count += SCORED_TOGETHER
            if known is not None and (count >= 2 * learnt or start + SCORED_TOGETHER >= len(order)):
                learnt = count
                await asyncio.to_thread(self.collector.learn, known)
        self._scored_for = digest

    async def _score(self, candidates: Candidates, items: list[int], known: Known | None) -> Known | None:
        """The known scores, with those of some items added."""
        pictures: list[bytes | ImageError] = []
        for item in items:
            try:
                pictures.append(await self.views.read(candidates.of_item(item)))
            except ImageError as error:
                pictures.append(error)
        caller = Caller(("candidates",), time.monotonic() + self.service.config.deadline_s)
        prompts = [candidates.prompt_of(item) for item in items]
        async with self.service.room.use() as engine:
            with self.service.turns.admit(caller, len(items), len(items) * engine.item_s) as job:
                outcomes = await engine.describe(job, prompts, pictures)
            if known is None:
                nothing = np.full(len(candidates.picture), np.nan)
                vectors = np.full((len(nothing), engine.scorer.identity.dim), np.nan)
                known = Known(nothing, vectors, nothing.copy() if "uncertainty" in engine.scorer.outputs else None)
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, ImageError):
                continue
            known.score[item] = outcome.get("calibrated_score", outcome["score"])
            known.vectors[item] = outcome["image_embedding"]
            if known.uncertainty is not None:
                gain = known.score[item] / outcome["score"] if outcome["score"] else 1.0
                known.uncertainty[item] = abs(gain) * outcome["uncertainty"]
        return known


def _picture(one: Candidate, size: Size) -> Picture:
    return Picture(one.id, one.key, one.addresses[0] if one.addresses else None, one.data, *size)


def _candidate(picture: Picture) -> Candidate:
    return Candidate(picture.key, (picture.uri,) if picture.uri else (), picture.data)


def checked_name(given: str | None) -> str | None:
    """A name that a person gives, without white space around it. Raise Problem unless it is one line."""
    if given is None:
        return None
    name = given.strip()
    if not name.isprintable() or not name:
        raise invalid("voter: the name has line breaks or is empty; wanted a name in one line")
    return name
