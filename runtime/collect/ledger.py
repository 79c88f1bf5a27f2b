"""Store showings and votes, and read those of a person. All functions take a connection. Knows no HTTP."""

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
    """There is no such showing for this person."""


class Conflict(Exception):
    """The showing already has another vote, or has no vote to undo."""


@dataclass(frozen=True)
class Picture:
    """A picture in the database. `data` holds its bytes if it has no address."""

    id: str
    key: str
    uri: str | None
    data: bytes | None
    width: int
    height: int
    series: str | None = None


@dataclass(frozen=True)
class Showing:
    """Two pictures from which one person is asked to choose."""

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
    """A vote to store."""

    showing: str
    choice: Choice
    reason: str | None
    seconds: float
    flags: str
    voted_at: float


@dataclass(frozen=True)
class Standing:
    """A person's progress: the number of votes in force, and how many repeated pairs were answered as before."""

    votes: int
    repeats: int
    agreed: int


def pair_of(prompt: str, one: str, other: str) -> str:
    """The name of a pair of pictures with a prompt. It is the same for both orders."""
    return content_id("\0".join([*sorted((one, other)), prompt]).encode("utf-8", "surrogatepass"))


def add_pictures(connection: Connection, found: Sequence[Picture]) -> None:
    """Store pictures that are not yet in the database."""
    known = set(connection.scalars(sa.select(t.pictures.c.id).where(t.pictures.c.id.in_([one.id for one in found]))))
    # Sorted, otherwise two writers that add the same pictures could wait for each other.
    rows = [asdict(one) for one in sorted(found, key=lambda one: one.id) if one.id not in known]
    if rows:
        connection.execute(insert(connection, t.pictures).on_conflict_do_nothing(), rows)


def add_showing(connection: Connection, showing: Showing) -> bool:
    """Store that a pair is shown. Return False if this person was already shown it."""
    statement = insert(connection, t.showings).values(**asdict(showing)).on_conflict_do_nothing()
    return connection.scalar(statement.returning(t.showings.c.id)) is not None


def cast_vote(connection: Connection, vote: Vote, voter: str | None) -> tuple[int, str, bool]:
    """Store a vote. Return its number, its person, and whether it is new; repeating the same vote is not new.

    Raise UnknownShowing if the showing does not exist or belongs to another person than `voter`, and Conflict if it has
    another vote.
    """
    owner, turn = _owner_and_turn(connection, vote.showing, voter)
    number = connection.scalar(_insert_vote(connection.dialect.name), {**vars(vote), "turn": turn, "voter": owner})
    if number is not None:
        return int(number), owner, True
    here = sa.and_(t.votes.c.showing == vote.showing, t.votes.c.turn == turn)
    number, choice = connection.execute(sa.select(t.votes.c.id, t.votes.c.choice).where(here)).one()
    if choice != vote.choice:
        raise Conflict(f"this showing already has the answer {choice}; undo it first")
    return number, owner, False


def undo_vote(connection: Connection, showing: str, at: float, voter: str | None) -> str:
    """Undo a showing's vote, and return its person. Undoing again has no effect. Raise UnknownShowing or Conflict."""
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
    """The person of a showing, and how many of its votes were undone."""
    found = connection.execute(OWNER_AND_TURN, {"showing": showing}).one_or_none()
    if found is None or voter not in (None, found[0]):
        raise UnknownShowing("you have no such showing; ask for a new pair")
    return found[0], found[1]


def pending(connection: Connection, voter: str) -> list[Showing]:
    """This person's showings without a vote, the oldest first."""
    voted = t.in_force
    query = (
        sa.select(t.showings)
        .outerjoin(voted, voted.c.showing == t.showings.c.id)
        .where(t.showings.c.voter == voter, voted.c.id.is_(None))
        .order_by(t.showings.c.shown_at, t.showings.c.id)
    )
    return [showing_of(row) for row in connection.execute(query)]


def showing_of(row: Row[tuple[object, ...]]) -> Showing:
    """The showing in a row of the table."""
    return Showing(**row._mapping)


def pairs_seen(connection: Connection, voter: str) -> set[str]:
    """The names of the pairs that this person was shown."""
    return set(connection.scalars(sa.select(t.showings.c.pair).where(t.showings.c.voter == voter)))


def repeatable(connection: Connection, voter: str, apart: int) -> list[Showing]:
    """This person's answered showings that may be repeated: all but the newest `apart`, and each only once."""
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
    """The number of votes that this person has given since then, with those that were undone."""
    count = sa.select(sa.func.count()).select_from(t.votes)
    return int(connection.scalar(count.where(t.votes.c.voter == voter, t.votes.c.voted_at >= since)) or 0)


def standing(connection: Connection, voter: str) -> Standing:
    """The progress of this person."""
    force, first = t.in_force, t.in_force.alias("first")
    count = sa.select(sa.func.count()).select_from(force).where(force.c.voter == voter)
    again, before = t.showings, t.showings.alias("before")
    # The sides of a repeat are swapped.
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
    """The stored pictures with these ids, by id."""
    query = sa.select(t.pictures).where(t.pictures.c.id.in_(ids))
    return {row.id: Picture(**row._mapping) for row in connection.execute(query)}


def newest_vote(connection: Connection) -> tuple[int, int]:
    """The numbers of votes and of undos, which change with every event."""
    counts = [connection.scalar(sa.select(sa.func.count()).select_from(table)) for table in (t.votes, t.undos)]
    return int(counts[0] or 0), int(counts[1] or 0)


def note_promotion(connection: Connection, at: float, promoted: bool, document: Mapping[str, object]) -> None:
    """Store the result of an update of the head."""
    row = {"at": at, "promoted": promoted, "document": json.dumps(document, allow_nan=False)}
    connection.execute(sa.insert(t.promotions).values(**row))
