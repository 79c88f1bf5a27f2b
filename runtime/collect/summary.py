"""Summarise votes: their number, how far people agree, how fast they are, and whether they prefer a side."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from runtime.collect import tables as t
from runtime.collect.ledger import TOO_FAST


@dataclass(frozen=True)
class Share:
    """A share of some cases with the ends of its 95 % interval (Wilson 1927). All are None if there are no cases."""

    of: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Person:
    """The summary of one person's votes."""

    voter: str
    votes: int
    oneself: Share
    gold: Share
    left: Share
    median_s: float
    too_fast: int


@dataclass(frozen=True)
class Summary:
    """The summary of all votes in force."""

    votes: int
    choices: dict[str, int]
    drawn: dict[str, int]
    undone: int
    people: list[Person]
    between_people: Share
    oneself: Share
    gold: Share
    left: Share
    seconds: dict[str, float]
    too_fast: int
    promotions: list[dict[str, object]]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Row:
    """A vote in force and its showing."""

    showing: str
    voter: str
    pair: str
    drawn: str
    original: str
    expected: str | None
    left: str
    right: str
    choice: str
    seconds: float
    flags: str

    @property
    def chosen(self) -> str:
        """The id of the chosen picture, or the answer about both."""
        return {"left": self.left, "right": self.right}.get(self.choice, self.choice)


def summarise(connection: Connection) -> Summary:
    """The summary of a database."""
    force = t.in_force
    names = [t.showings.c[name] for name in ("pair", "drawn", "original", "expected", "left", "right")]
    query = sa.select(force.c.showing, force.c.voter, *names, force.c.choice, force.c.seconds, force.c.flags).join_from(
        force, t.showings, force.c.showing == t.showings.c.id
    )
    rows = [Row(**row._mapping) for row in connection.execute(query)]
    of_person: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_person[row.voter].append(row)
    seconds = np.array([row.seconds for row in rows])
    quantiles = {f"p{q}": float(np.percentile(seconds, q)) for q in (5, 50, 95)} if rows else {}
    undone = connection.scalar(sa.select(sa.func.count()).select_from(t.undos)) or 0
    return Summary(
        len(rows),
        _counted(row.choice for row in rows),
        _counted(row.drawn for row in rows),
        undone,
        [_person(voter, of_person[voter]) for voter in sorted(of_person)],
        share(agreements(rows)),
        share(repeated(rows)),
        share(gold_answers(rows)),
        share(row.choice == "left" for row in rows if row.choice in ("left", "right")),
        quantiles,
        sum(TOO_FAST in row.flags for row in rows),
        history(connection),
    )


def _person(voter: str, rows: list[Row]) -> Person:
    return Person(
        voter,
        len(rows),
        share(repeated(rows)),
        share(gold_answers(rows)),
        share(row.choice == "left" for row in rows if row.choice in ("left", "right")),
        float(np.median([row.seconds for row in rows])),
        sum(TOO_FAST in row.flags for row in rows),
    )


def history(connection: Connection) -> list[dict[str, object]]:
    """Every update of the head, the newest first: its time, whether the head was promoted, and the reason."""
    rows = connection.execute(sa.select(t.promotions).order_by(t.promotions.c.id.desc()))
    return [{"at": row.at, "promoted": row.promoted, **json.loads(row.document)} for row in rows]


def agreements(rows: Iterable[Row]) -> list[bool]:
    """For every two people who were shown the same pair, whether they gave the same answer."""
    said: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.drawn != "repeat" and row.choice != "skip":
            said[row.pair].append(row)
    return [one.chosen == other.chosen for same in said.values() for one, other in combinations(same, 2)]


def repeated(rows: Iterable[Row]) -> list[bool]:
    """For every pair that a person was shown twice, whether both answers were the same."""
    rows = list(rows)
    first = {row.showing: row for row in rows}
    again = [row for row in rows if row.original in first and row.choice != "skip"]
    return [row.chosen == first[row.original].chosen for row in again]


def gold_answers(rows: Iterable[Row]) -> list[bool]:
    """For every pair with a known answer, whether the right answer was given."""
    return [row.choice == row.expected for row in rows if row.expected is not None and row.choice != "skip"]


def share(cases: Iterable[bool]) -> Share:
    """The share of the cases that are true."""
    found = list(cases)
    n, z = len(found), 1.959964
    if not n:
        return Share(0, None, None, None)
    p = sum(found) / n
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return Share(n, p, max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n)))


def _counted(values: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for value in values:
        found[value] += 1
    return dict(sorted(found.items()))
