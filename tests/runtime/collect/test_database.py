"""Votes are durable when they are acknowledged, and one a showing, whoever writes too and whatever is killed."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from paths import ROOT
from votes_made import show, vote

from embed.spec import InputError
from runtime.collect import tables as t
from runtime.collect.database import Database, open_database
from runtime.collect.ledger import (
    Conflict,
    Standing,
    UnknownShowing,
    Vote,
    cast_vote,
    pending,
    repeatable,
    standing,
    undo_vote,
    votes_since,
)


def rows(database: Database, table: sa.Table) -> list[sa.Row[tuple[object, ...]]]:
    with database.reading() as connection:
        return list(connection.execute(sa.select(table)))


def undo(database: Database, showing: str, voter: str | None = None) -> str:
    return database.write(partial(undo_vote, showing=showing, at=1.0, voter=voter))


def test_a_showing_has_one_vote_until_that_is_taken_back(database: Database) -> None:
    show(database, "s")
    number = vote(database, "s", "left")
    assert vote(database, "s", "left") == number
    with pytest.raises(Conflict, match="already has the answer left"):
        vote(database, "s", "right")
    assert undo(database, "s") == undo(database, "s") == "ann"
    assert vote(database, "s", "right") > number
    assert [row.choice for row in rows(database, t.votes)] == ["left", "right"]
    assert [row.choice for row in rows(database, t.in_force)] == ["right"]
    show(database, "other", left="c")
    with pytest.raises(Conflict, match="no vote to undo"):
        undo(database, "other")
    for wrong in (partial(undo, database, "nothing"), partial(undo, database, "s", "ben")):
        with pytest.raises(UnknownShowing):
            wrong()


def test_many_who_write_at_once_are_all_answered_and_who_fails_harms_nobody(database: Database) -> None:
    for i in range(40):
        show(database, f"s{i}", voter=f"v{i}")
    seen: list[int] = []

    def work(connection: sa.Connection, i: int) -> int:
        number = cast_vote(connection, Vote(f"s{i}", "tie", None, 1.0, "", 0.0), None)[0]
        if i % 3 == 0:
            raise ValueError("a fault of one")
        return number

    with ThreadPoolExecutor(16) as pool:
        futures = list(pool.map(lambda i: database.submit(partial(work, i=i)), range(40)))
    for i, future in enumerate(futures):
        if i % 3:
            seen.append(future.result())
        else:
            with pytest.raises(ValueError, match="a fault of one"):
                future.result()
    assert len(set(seen)) == len(rows(database, t.votes)) == 26


def test_two_who_answer_the_same_showing_at_once_have_one_vote(where: str) -> None:
    """Through two connections, as of two processes."""
    first, second = open_database(where), open_database(where)
    try:
        for i in range(20):
            show(first, f"s{i}", voter=f"v{i}")
            start, outcomes = threading.Barrier(2), list[object]()

            def answer(database: Database, choice: str, i: int = i, start: threading.Barrier = start) -> object:
                start.wait()
                try:
                    return vote(database, f"s{i}", choice)  # type: ignore[arg-type]
                except Conflict:
                    return "refused"

            with ThreadPoolExecutor(2) as pool:
                outcomes += pool.map(answer, (first, second), ("left", "right"))
            assert outcomes.count("refused") == 1
        assert len(rows(first, t.votes)) == 20
    finally:
        first.close()
        second.close()


def test_nothing_acknowledged_is_lost_by_kills(where: str) -> None:
    database = open_database(where)
    ids = [f"s{i}" for i in range(3000)]
    show(database, "first")  # and its pictures, which those of all others are
    made = [show_row(one) for one in ids]
    database.write(lambda connection: connection.execute(sa.insert(t.showings), made))
    acknowledged: set[str] = set()
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "votes_writer.py"), where, "8"]
    for kill_after in (20, 150, 400):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n".join(ids))  # those of before too: whoever was cut off votes again
        process.stdin.close()
        for _ in range(kill_after):
            acknowledged.add(process.stdout.readline().strip())
        process.kill()
        acknowledged.update(line.strip() for line in process.stdout if line.endswith("\n"))
        process.stdout.close()
        process.wait()
        found = [row.showing for row in rows(database, t.votes)]
        assert acknowledged <= set(found) and len(found) == len(set(found))
    assert 400 <= len(acknowledged) < len(ids)
    database.close()


def show_row(id: str) -> dict[str, object]:
    row = {"id": id, "voter": id, "prompt": "", "left": "a", "right": "b", "pair": "p", "drawn": "random"}
    return {**row, "original": "", "shown_at": 0.0}


def test_repeats_say_how_far_a_person_agrees_with_themselves(database: Database) -> None:
    for i, (first, again) in enumerate((("left", "right"), ("right", "right"), ("tie", "tie"), ("left", "skip"))):
        show(database, f"s{i}", left=f"a{i}", right=f"b{i}", at=i)
        vote(database, f"s{i}", first, at=i)  # type: ignore[arg-type]
        with database.reading() as connection:
            assert [one.id for one in repeatable(connection, "ann", 0)] == [f"s{i}"]
        show(database, f"r{i}", left=f"b{i}", right=f"a{i}", drawn="repeat", original=f"s{i}", at=i)
        vote(database, f"r{i}", again, at=i)  # type: ignore[arg-type]
    show(database, "open", left="x")
    with database.reading() as connection:
        assert standing(connection, "ann") == Standing(8, 3, 2)
        assert standing(connection, "ben") == Standing(0, 0, 0)
        assert [one.id for one in pending(connection, "ann")] == ["open"]
        assert votes_since(connection, "ann", 2.0) == 4 and repeatable(connection, "ann", 0) == []


def test_what_is_no_database_of_votes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, whatever its name says; " * 50)
    with pytest.raises(InputError, match="cannot be opened"):
        open_database(str(tmp_path / "text.db"))
    with pytest.raises(InputError, match="is not a file"):
        open_database(str(tmp_path / "nothing.db"), new=False)
    with pytest.raises(InputError, match="there is no folder"):
        open_database(str(tmp_path / "nothing" / "votes.db"))
    with pytest.raises(InputError, match="mysql URL"):
        open_database("mysql://a:secret@b/c")
    import sqlite3

    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("create table about_cats (name text)")
    with pytest.raises(InputError, match="not a database of votes"):
        open_database(str(tmp_path / "other.db"))
