"""Series for a person's own prompt: two pictures of it, of which the rejected one is replaced after each choice.

All functions take a connection. The caller gets the pictures from a generator. Knows no HTTP.
"""

import secrets
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from runtime.collect import tables as t
from runtime.collect.ledger import Picture


@dataclass(frozen=True)
class Series:
    """A person's series, with the pictures for the next pair: the one that stays, and those not shown yet."""

    id: str
    prompt: str
    stays: list[Picture]
    spare: list[Picture]

    @property
    def lacking(self) -> int:
        """The number of pictures that must be made before the next pair."""
        return max(0, 2 - len(self.stays) - len(self.spare))

    @property
    def next_pair(self) -> tuple[Picture, Picture]:
        """The pictures of the next pair. None may be lacking."""
        first, second = [*self.stays, *self.spare][:2]
        return first, second


def begin(connection: Connection, voter: str, prompt: str, at: float) -> str:
    """Store that a person begins a series, or with an empty prompt ends the last one. Return its id."""
    made = secrets.token_urlsafe(12)
    connection.execute(sa.insert(t.series).values(id=made, voter=voter, prompt=prompt, begun_at=at))
    return made


def current(connection: Connection, voter: str) -> Series | None:
    """The person's current series, or None."""
    mine = sa.select(t.series.c.id, t.series.c.prompt).where(t.series.c.voter == voter)
    found = connection.execute(mine.order_by(t.series.c.begun_at.desc()).limit(1)).one_or_none()
    if found is None or not found.prompt:
        return None
    last = connection.execute(
        sa.select(t.showings.c.left, t.showings.c.right, t.in_force.c.choice)
        .outerjoin(t.in_force, t.in_force.c.showing == t.showings.c.id)
        .where(t.showings.c.series == found.id)
        .order_by(t.showings.c.shown_at.desc())
        .limit(1)
    ).one_or_none()
    sides = (sa.select(side).where(t.showings.c.series == found.id) for side in (t.showings.c.left, t.showings.c.right))
    shown = sa.union(*sides)
    made = sa.select(t.pictures).where(t.pictures.c.series == found.id).order_by(t.pictures.c.key)
    pictures = {row.id: Picture(**row._mapping) for row in connection.execute(made)}
    gone = set(connection.scalars(shown))
    stays = [pictures[getattr(last, last.choice)]] if last is not None and last.choice in ("left", "right") else []
    return Series(found.id, found.prompt, stays, [one for id, one in pictures.items() if id not in gone])
