"""Draw a person's next pairs, store them as showings, and give them again until they are answered.

Knows no HTTP and no pixels. `propose` draws pairs, the caller checks that both pictures can be shown, and `show` stores
them. All functions may block, and may be called from several threads.
"""

import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from embed.arrays import Floats, Ints
from runtime.collect import tables as t
from runtime.collect.candidates import Candidate, Candidates
from runtime.collect.choose import LIST_ALL, Pool, contrast, freshness, split_pools, telling
from runtime.collect.database import Database
from runtime.collect.ledger import (
    Drawn,
    Picture,
    Showing,
    add_pictures,
    add_showing,
    pair_of,
    pairs_seen,
    repeatable,
)
from runtime.config import VotingConfig

TRIES = 512  # number of pairs that are drawn to choose one of them
REPEAT_APART = 5  # least number of answers between a pair and its repeat


@dataclass(frozen=True)
class Proposal:
    """A pair to show to a person. `first` and `second` are not yet left and right."""

    prompt: str
    first: Candidate
    second: Candidate
    drawn: Drawn
    items: tuple[int, int] | None = None  # the numbers of the candidates, if it is a pair of candidates
    original: Showing | None = None
    series: str | None = None


@dataclass(frozen=True)
class Known:
    """The served head's output for every item: scores (n,), vectors (n, d), and the uncertainties (n,) of scores if the
    head has them. NaN for items that were not computed yet."""

    score: Floats
    vectors: Floats
    uncertainty: Floats | None = None


class Collector:
    """Draw pairs of candidates for many people."""

    def __init__(
        self,
        database: Database,
        candidates: Candidates,
        gold: list[tuple[str, Candidate, Candidate]],
        config: VotingConfig,
        seed: int | None = None,
    ) -> None:
        """`gold` holds for each pair with a known answer its prompt, the right picture, and the other."""
        self.candidates = candidates
        self._known: Known | None = None
        self._database = database
        self._gold = gold
        self._config = config
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        names = [candidates.of_item(item).key for item in range(len(candidates.picture))]
        pools = split_pools(candidates.groups, names, candidates.prompts, config.random_share)
        self._measuring, self._teaching = pools
        self._broken: set[int] = set()
        self._shown = np.zeros(len(candidates.picture), np.int64)
        self._shown_groups = np.zeros(len(candidates.prompts), np.int64)
        self._count_shown()

    def learn(self, known: Known) -> None:
        """Use the output of the current head for the candidates from now on."""
        with self._lock:
            self._known = known

    def propose(self, voter: str, count: int) -> list[Proposal]:
        """Up to `count` pairs that this person has not seen, or fewer if there are no more."""
        with self._database.reading() as connection:
            seen = pairs_seen(connection, voter)
            old = repeatable(connection, voter, REPEAT_APART)
        found: list[Proposal] = []
        with self._lock:
            while len(found) < count and (one := self._propose(seen, old)) is not None:
                seen.add(pair_of(one.prompt, one.first.id, one.second.id))
                old = [showing for showing in old if one.original is None or showing.id != one.original.id]
                found.append(one)
        return found

    def show(self, voter: str, proposals: list[tuple[Proposal, Picture, Picture]]) -> list[Showing]:
        """Store showings, with random sides for each, and return them without those that another request has shown
        meanwhile."""
        drawn = [self._sided(voter, proposal) for proposal, _, _ in proposals]

        def work(connection: sa.Connection) -> list[Showing]:
            add_pictures(connection, [picture for _, *both in proposals for picture in both])
            return [showing for showing in drawn if add_showing(connection, showing)]

        shown = self._database.write(work)
        with self._lock:
            for proposal, _, _ in proposals:
                if proposal.items:
                    self._count(*proposal.items)
        return shown

    def broken(self, proposal: Proposal, ids: set[str]) -> None:
        """Never draw these pictures of a proposal again, because they cannot be shown."""
        with self._lock:
            self._broken.update(item for item in proposal.items or () if self.candidates.of_item(item).id in ids)
            self._gold = [one for one in self._gold if not ids & {one[1].id, one[2].id}]

    def _propose(self, seen: set[str], old: list[Showing]) -> Proposal | None:
        chance = self._rng.random()
        if chance < self._config.repeat_share:
            if old:
                return self._repeat(old[int(self._rng.integers(len(old)))])
        elif chance < self._config.repeat_share + self._config.gold_share and (one := self._gold_pair(seen)):
            return one
        first, second = (self._random, self._active)
        if self._rng.random() >= self._config.random_share:
            first, second = second, first
        return first(seen) or second(seen)

    def _repeat(self, original: Showing) -> Proposal | None:
        pictures = [self.candidates.of_id.get(id) for id in (original.right, original.left)]
        if pictures[0] is None or pictures[1] is None:
            return None
        return Proposal(original.prompt, pictures[0], pictures[1], "repeat", original=original)

    def _gold_pair(self, seen: set[str]) -> Proposal | None:
        left = [one for one in self._gold if pair_of(one[0], one[1].id, one[2].id) not in seen]
        if not left:
            return None
        return Proposal(*left[int(self._rng.integers(len(left)))], "gold")

    def _random(self, seen: set[str]) -> Proposal | None:
        return next(self._unseen(self._measuring, self._measuring.draw(TRIES, self._rng), seen, "random"), None)

    def _active(self, seen: set[str]) -> Proposal | None:
        pairs = self._teaching.draw(TRIES, self._rng)
        if len(pairs):
            fresh = freshness(pairs, self._shown, self.candidates.group, self._shown_groups)
            pairs = pairs[np.argsort(-fresh * self._telling(pairs), kind="stable")]
        return next(self._unseen(self._teaching, pairs, seen, "active"), None)

    def _telling(self, pairs: Ints) -> Floats:
        """(n,) how much a vote on each pair would tell. Pairs without scores get 1, a high value."""
        found = np.ones(len(pairs))
        if self._known is None:
            return found
        score, unsure = self._known.score, self._known.uncertainty
        apart = contrast(self._known.vectors, pairs)
        both = np.isfinite(score[pairs]).all(axis=1) & np.isfinite(apart)
        a, b = pairs[both].T
        of_pairs = None if unsure is None else np.hypot(unsure[a], unsure[b])
        found[both] = apart[both] * telling(score[a] - score[b], of_pairs)
        return found

    def _count(self, a: int, b: int) -> None:
        """Count that a pair is shown."""
        self._shown[[a, b]] += 1
        self._shown_groups[self.candidates.group[a]] += 2

    def _unseen(self, pool: Pool, pairs: Ints, seen: set[str], drawn: Drawn) -> Iterator[Proposal]:
        """Yield those of the pairs that this person has not seen, and then other unseen pairs of the pool."""
        rest = pool.all() if pool.pairs <= LIST_ALL else pairs[:0]
        for some in (pairs, self._rng.permutation(rest) if len(rest) else rest):
            for a, b in some.tolist():
                first, second = self.candidates.of_item(a), self.candidates.of_item(b)
                prompt = self.candidates.prompt_of(a)
                if not {a, b} & self._broken and pair_of(prompt, first.id, second.id) not in seen:
                    yield Proposal(prompt, first, second, drawn, (a, b))

    def _sided(self, voter: str, proposal: Proposal) -> Showing:
        """The showing of a proposal with random sides. For a repeat the sides are already decided."""
        left, right = proposal.first.id, proposal.second.id
        if proposal.original is None and secrets.randbelow(2):
            left, right = right, left
        good = "left" if left == proposal.first.id else "right"
        return Showing(
            secrets.token_urlsafe(12),
            voter,
            proposal.prompt,
            left,
            right,
            pair_of(proposal.prompt, left, right),
            proposal.drawn,
            time.time(),
            proposal.original.id if proposal.original else "",
            good if proposal.drawn == "gold" else None,
            proposal.series,
        )

    def _count_shown(self) -> None:
        """Count from the database how often each candidate was shown before."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(t.showings.c.prompt, t.showings.c.left, t.showings.c.right)).all()
        items = range(len(self._shown))
        place = {(self.candidates.prompt_of(item), self.candidates.of_item(item).id): item for item in items}
        for prompt, *both in rows:
            a, b = (place.get((prompt, id)) for id in both)
            if a is not None and b is not None:
                self._count(a, b)
