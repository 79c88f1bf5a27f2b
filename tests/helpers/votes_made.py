"""Showings and votes written down without a service."""

from functools import partial

from runtime.collect.database import Database
from runtime.collect.ledger import Choice, Drawn, Picture, Showing, Vote, add_pictures, add_showing, cast_vote, pair_of


def show(
    database: Database,
    id: str,
    voter: str = "ann",
    left: str = "a",
    right: str = "b",
    drawn: Drawn = "random",
    original: str = "",
    expected: str | None = None,
    prompt: str = "a cat",
    at: float = 0.0,
) -> Showing:
    """A showing that is written down, of pictures that are too."""
    found = [Picture(one, f"{one}.png", f"/data/{one}.png", None, 4, 3) for one in (left, right)]
    pair = pair_of(prompt, left, right)
    showing = Showing(id, voter, prompt, left, right, pair, drawn, at, original, expected)
    database.write(partial(add_pictures, found=found))
    assert database.write(partial(add_showing, showing=showing))
    return showing


def vote(
    database: Database, showing: str, choice: Choice, at: float = 0.0, flags: str = "", seconds: float = 2.0
) -> int:
    """A vote that is written down; its number."""
    wanted = Vote(showing, choice, None, seconds, flags, at)
    return database.write(partial(cast_vote, vote=wanted, voter=None))[0]
