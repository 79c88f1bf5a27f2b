"""What is written down of showings and votes, and read of one person's: functions of a connection. Knows no HTTP."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from embed.files import content_id
from runtime.collect import tables as t
from runtime.collect.database import insert, insert_of

Choice = Literal["left", "right", "tie", "both_bad", "skip"]
Drawn = Literal["random", "active", "series", "repeat", "gold"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
TOO_FAST = "too fast"


_undone = sa.select(sa.func.count()).select_from(t.undos).where(t.undos.c.showing == sa.bindparam("showing"))
OWNER_AND_TURN = sa.select(t.showings.c.voter, _undone.scalar_subquery()).where(
    t.showings.c.id == sa.bindparam("showing")
)


class UnknownShowing(Exception):
    """There is no such showing, or none of this person's."""


class Conflict(Exception):
    """The showing has another vote already, or none that could be undone."""


@dataclass(frozen=True)
class Picture:
    """A picture as the database names it; `data` where there is no address to read it at."""

    id: str
    key: str
    uri: str | None
    data: bytes | None
    width: int
    height: int
    series: str | None = None


@dataclass(frozen=True)
class Showing:
    """Two pictures that one person is asked to choose from."""

    id: str
    voter: str
    prompt: str
    left: str
    right: str
    pair: str
    drawn: Drawn
    shown_at: float
    original: str = ""
    expected: str | None = None
    series: str | None = None


@dataclass(frozen=True)
class Vote:
    """A vote to write down."""

    showing: str
    choice: Choice
    reason: str | None
    seconds: float
    flags: str
    voted_at: float


@dataclass(frozen=True)
class Standing:
    """How far a person is: votes in force, and how many repeated pairs were answered as before."""

    votes: int
    repeats: int
    agreed: int


def pair_of(prompt: str, one: str, other: str) -> str:
    """The name of a pair of pictures under a prompt, the same in either order."""
    return content_id("\0".join([*sorted((one, other)), prompt]).encode("utf-8", "surrogatepass"))


def add_pictures(connection: Connection, found: Sequence[Picture]) -> None:
    """Write down pictures that are not there yet."""
    known = set(connection.scalars(sa.select(t.pictures.c.id).where(t.pictures.c.id.in_([one.id for one in found]))))
    # In their order, or two who add the same ones may wait for each other.
    rows = [asdict(one) for one in sorted(found, key=lambda one: one.id) if one.id not in known]
    if rows:
        connection.execute(insert(connection, t.pictures).on_conflict_do_nothing(), rows)


def add_showing(connection: Connection, showing: Showing) -> bool:
    """Write down that a pair is shown; False where this person has it already."""
    statement = insert(connection, t.showings).values(**asdict(showing)).on_conflict_do_nothing()
    return connection.scalar(statement.returning(t.showings.c.id)) is not None


def cast_vote(connection: Connection, vote: Vote, voter: str | None) -> tuple[int, str, bool]:
    """Write a vote down: its number, whose it is, and whether it is new, which the same vote again is not.

    Raise UnknownShowing, also where the showing is another person's than `voter`, or Conflict.
    """
    owner, turn = _owner_and_turn(connection, vote.showing, voter)
    number = connection.scalar(_insert_vote(connection.dialect.name), {**vars(vote), "turn": turn, "voter": owner})
    if number is not None:
        return int(number), owner, True
    here = sa.and_(t.votes.c.showing == vote.showing, t.votes.c.turn == turn)
    number, choice = connection.execute(sa.select(t.votes.c.id, t.votes.c.choice).where(here)).one()
    if choice != vote.choice:
        raise Conflict(f"this showing was answered with {choice}; undo that first")
    return number, owner, False


def undo_vote(connection: Connection, showing: str, at: float, voter: str | None) -> str:
    """Take back a showing's vote, and give whose it is; once is enough. Raise UnknownShowing or Conflict."""
    owner, turn = _owner_and_turn(connection, showing, voter)
    here = sa.and_(t.votes.c.showing == showing, t.votes.c.turn == turn)
    if connection.scalar(sa.select(t.votes.c.id).where(here)) is None:
        if turn == 0:
            raise Conflict("this showing has no vote to undo")
        return owner
    row = {"showing": showing, "turn": turn, "undone_at": at}
    connection.execute(insert(connection, t.undos).values(**row).on_conflict_do_nothing())
    return owner


@cache
def _insert_vote(dialect: str) -> sa.Insert:
    return insert_of(dialect, t.votes).on_conflict_do_nothing().returning(t.votes.c.id)


def _owner_and_turn(connection: Connection, showing: str, voter: str | None) -> tuple[str, int]:
    """Whose showing it is, and how many of its votes were taken back."""
    found = connection.execute(OWNER_AND_TURN, {"showing": showing}).one_or_none()
    if found is None or voter not in (None, found[0]):
        raise UnknownShowing("there is no such showing of yours")
    return found[0], found[1]


def pending(connection: Connection, voter: str) -> list[Showing]:
    """This person's showings that have no vote, the oldest first."""
    voted = t.in_force
    query = (
        sa.select(t.showings)
        .outerjoin(voted, voted.c.showing == t.showings.c.id)
        .where(t.showings.c.voter == voter, voted.c.id.is_(None))
        .order_by(t.showings.c.shown_at, t.showings.c.id)
    )
    return [showing_of(row) for row in connection.execute(query)]


def showing_of(row: Row[tuple[object, ...]]) -> Showing:
    """A row of the table as what it says."""
    return Showing(**row._mapping)


def pairs_seen(connection: Connection, voter: str) -> set[str]:
    """The pairs that this person was shown."""
    return set(connection.scalars(sa.select(t.showings.c.pair).where(t.showings.c.voter == voter)))


def pairs_done(connection: Connection, votes: int) -> set[str]:
    """The pairs that so many people have given a vote, but for those that were shown for another reason."""
    force = t.in_force
    query = (
        sa.select(t.showings.c.pair)
        .join(force, force.c.showing == t.showings.c.id)
        .where(t.showings.c.drawn.in_(("random", "active")), force.c.choice != "skip")
        .group_by(t.showings.c.pair)
        .having(sa.func.count() >= votes)
    )
    return set(connection.scalars(query))


def repeatable(connection: Connection, voter: str, apart: int) -> list[Showing]:
    """This person's answered showings that may be shown once more: all but the newest `apart`, and none twice."""
    voted, again = t.in_force, t.showings.alias("again")
    query = (
        sa.select(t.showings)
        .join(voted, voted.c.showing == t.showings.c.id)
        .outerjoin(again, again.c.original == t.showings.c.id)
        .where(t.showings.c.voter == voter, again.c.id.is_(None), voted.c.choice != "skip")
        .where(t.showings.c.drawn.in_(("random", "active")))
        .order_by(voted.c.voted_at.desc())
        .offset(apart)
    )
    return [showing_of(row) for row in connection.execute(query)]


def votes_since(connection: Connection, voter: str, since: float) -> int:
    """How many votes this person has given since then, those taken back included."""
    count = sa.select(sa.func.count()).select_from(t.votes)
    return int(connection.scalar(count.where(t.votes.c.voter == voter, t.votes.c.voted_at >= since)) or 0)


def standing(connection: Connection, voter: str) -> Standing:
    """How far this person is."""
    force, first = t.in_force, t.in_force.alias("first")
    count = sa.select(sa.func.count()).select_from(force).where(force.c.voter == voter)
    again, before = t.showings, t.showings.alias("before")
    # A repeat has the sides swapped.
    swapped = sa.case({"left": "right", "right": "left"}, value=force.c.choice, else_=force.c.choice)
    query = (
        sa.select(sa.func.count(), sa.func.sum(sa.case((swapped == first.c.choice, 1), else_=0)))
        .select_from(again)
        .join(force, force.c.showing == again.c.id)
        .join(before, before.c.id == again.c.original)
        .join(first, first.c.showing == before.c.id)
        .where(again.c.voter == voter, again.c.drawn == "repeat", force.c.choice != "skip")
    )
    repeats, agreed = connection.execute(query).one()
    return Standing(int(connection.scalar(count) or 0), int(repeats), int(agreed or 0))


def pictures_of(connection: Connection, ids: Sequence[str]) -> dict[str, Picture]:
    """What is written down of pictures, by id."""
    query = sa.select(t.pictures).where(t.pictures.c.id.in_(ids))
    return {row.id: Picture(**row._mapping) for row in connection.execute(query)}


def newest_vote(connection: Connection) -> tuple[int, int]:
    """How many votes and how many undos there are: what says whether anything has happened since."""
    counts = [connection.scalar(sa.select(sa.func.count()).select_from(table)) for table in (t.votes, t.undos)]
    return int(counts[0] or 0), int(counts[1] or 0)


def note_promotion(connection: Connection, at: float, promoted: bool, document: Mapping[str, object]) -> None:
    """Write down what an update of the head has come to."""
    row = {"at": at, "promoted": promoted, "document": json.dumps(document, allow_nan=False)}
    connection.execute(sa.insert(t.promotions).values(**row))
