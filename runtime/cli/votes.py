"""`python -m runtime votes`, `votes export` and `votes invite`."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from embed.cli.console import suggest, table
from embed.config import Overwriting
from embed.files import require_out_file, write_with
from embed.spec import InputError
from runtime.config import VotesExportConfig

if TYPE_CHECKING:
    from runtime.collect.summary import Share


def votes(database: str, /) -> dict[str, object]:
    """Summarise people's votes: counts, agreement, position bias and speed.

    Example:
        plaudit runtime votes votes.db

    Args:
        database: The database that `python -m runtime serve --votes` writes: a file or a URL of PostgreSQL.
    """
    from runtime.collect.database import open_database
    from runtime.collect.summary import summarise

    opened = open_database(database, new=False)
    try:
        with opened.reading() as connection:
            found = summarise(connection)
    finally:
        opened.close()
    print(f"{found.votes} votes of {len(found.people)} people; {found.undone} were taken back")
    print(f"chosen: {_counts(found.choices)}; pairs drawn: {_counts(found.drawn)}")
    measured = {
        "two people say the same": found.between_people,
        "one person says the same again": found.oneself,
        "gold pairs are answered right": found.gold,
        "the left one is chosen": found.left,
    }
    rows = [(name, *_cells(one), one.of) for name, one in measured.items()]
    print("", *table(("", "share", "95 % interval", "of"), rows), sep="\n")
    if found.seconds:
        speed = ", ".join(f"{value:.1f} s ({name})" for name, value in found.seconds.items())
        print(f"speed: {speed}; {found.too_fast} votes are marked as too fast")
    header = ("person", "votes", "same again", "gold right", "left", "median s", "too fast")
    people = [
        (p.voter, p.votes, *(_cells(one)[0] for one in (p.oneself, p.gold, p.left)), f"{p.median_s:.1f}", p.too_fast)
        for p in found.people
    ]
    print("", *table(header, people), sep="\n")
    for one in found.promotions:
        at = datetime.fromtimestamp(float(str(one["at"])), UTC)
        print(f"{at:%Y-%m-%d %H:%M} UTC: {'promoted' if one['promoted'] else 'not promoted'}: {one['why']}")
    return found.to_json()


def export(database: str, /, *, out: Path, overwriting: Overwriting, config: VotesExportConfig) -> dict[str, object]:
    """Write votes as a table that `python -m heads train --data` reads.

    Example:
        plaudit runtime votes export votes.db --out votes.parquet

    Args:
        database: The database that `python -m runtime serve --votes` writes: a file or a URL of PostgreSQL.
        out: The file to write, .parquet.
    """
    require_out_file(out, "--out", overwriting.overwrite)
    if out.suffix != ".parquet":
        raise InputError(f"--out is {out}; wanted a name that ends in .parquet")
    import pyarrow.parquet as pq

    from runtime.collect.database import open_database
    from runtime.collect.export import votes_table

    opened = open_database(database, new=False)
    try:
        with opened.reading() as connection:
            found = votes_table(connection, config)
    finally:
        opened.close()
    write_with(out, lambda file: pq.write_table(found, file))
    people = len(found["user_id"].unique())
    print(f"{len(found)} votes of {people} people written to {out}")
    suggest(["heads", "train", "CACHE", "--data", out, "--out", "head"])
    return {"out": str(out), "votes": len(found), "people": people}


def invite(database: str, names: tuple[str, ...], /, *, url: str = "http://127.0.0.1:8000") -> dict[str, object]:
    """Print a link for each person, with which they can vote under that name. A link works once.

    Example:
        plaudit runtime votes invite votes.db ann ben --url https://votes.example

    Args:
        database: The database that `python -m runtime serve --votes DATABASE --voters invited` writes.
        names: The names of the people.
        url: The address at which people reach the service.
    """
    from runtime.collect.database import open_database
    from runtime.collect.invites import invite as make

    if wrong := [name for name in names if not name.strip() or not name.isprintable() or len(name) > 60]:
        raise InputError(f"the name {wrong[0]!r} cannot be used; wanted one line of 1 to 60 letters")
    opened = open_database(database)
    try:
        tokens = [opened.write(partial(make, voter=name.strip())) for name in names]
    finally:
        opened.close()
    links = {name: f"{url.rstrip('/')}/compare#invite={token}" for name, token in zip(names, tokens, strict=True)}
    print(*table(("person", "link, for one use"), list(links.items())), sep="\n")
    return {"links": links}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) or "nothing"


def _cells(share: "Share") -> tuple[str, str]:
    if share.value is None:
        return "", ""
    return f"{share.value:.3f}", f"{share.low:.3f} to {share.high:.3f}"
