"""Votes as a table that is read like any other, and what they say of themselves, compared with counting by hand."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from votes_made import show, vote

from embed.records.formats import read_records
from embed.spec import InputError
from runtime.cli.main import main
from runtime.collect.choose import cell_of
from runtime.collect.database import Database
from runtime.collect.export import Reliability, votes_table
from runtime.collect.ledger import TOO_FAST, undo_vote
from runtime.collect.summary import share, summarise
from runtime.config import VotesExportConfig


def fill(database: Database) -> None:
    """Votes of every kind."""
    show(database, "won", left="a", right="b")
    vote(database, "won", "right", seconds=3.0)
    show(database, "tie", left="c", right="d", drawn="active", prompt="a dog")
    vote(database, "tie", "both_bad")
    show(database, "skipped", left="e", right="f")
    vote(database, "skipped", "skip")
    show(database, "undone", left="g", right="h")
    vote(database, "undone", "left")
    database.write(lambda connection: undo_vote(connection, "undone", 1.0, None))
    show(database, "again", left="b", right="a", drawn="repeat", original="won")
    vote(database, "again", "left")
    show(database, "gold", left="x", right="y", drawn="gold", expected="left")
    vote(database, "gold", "left")
    show(database, "other", voter="ben", left="b", right="a")
    vote(database, "other", "left", flags=TOO_FAST, seconds=0.1)
    for i in range(4):
        show(database, f"gold {i}", voter="ben", left=f"x{i}", right="y", drawn="gold", expected="left")
        vote(database, f"gold {i}", "right")


def exported(database: Database, **options: object) -> list[tuple[str, str, str]]:
    with database.reading() as connection:
        table = votes_table(connection, VotesExportConfig(**options))  # type: ignore[arg-type]
    return [(row["showing"], row["user_id"], row["choice"]) for row in table.to_pylist()]


def test_the_table_is_read_like_pick_a_pics_with_what_teaches_nothing_left_out(
    database: Database, tmp_path: Path
) -> None:
    fill(database)
    with database.reading() as connection:
        table = votes_table(connection, VotesExportConfig())
    pq.write_table(table, tmp_path / "votes.parquet")
    records = read_records(tmp_path / "votes.parquet")
    rows = records.labels().to_pylist()
    assert records.format == "pick-a-pic"
    keys = ("image_a", "image_b", "target", "weight", "prompt_a", "side", "random", "seconds", "user_id")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("a.png", "b.png", 0.0, 1.0, "a cat", "right", True, 3.0, "ann"),
        ("c.png", "d.png", 0.5, 1.0, "a dog", None, False, 2.0, "ann"),
        ("b.png", "a.png", 1.0, 1.0, "a cat", "left", True, 0.1, "ben"),
    ]
    pictures = [row for batch in records.images() for row in batch.to_pylist()]
    assert pictures[0] == {"key": "a.png", "uri": "/data/a.png", "bytes": None}


def test_parts_and_people_are_chosen(database: Database) -> None:
    fill(database)
    won, tie, other = ("won", "ann", "right"), ("tie", "ann", "both_bad"), ("other", "ben", "left")
    assert exported(database, part="measuring") == [won, other]
    assert exported(database, part="teaching") == [tie]
    assert exported(database, people="trusted") == [won, tie]
    assert exported(database, people="trusted", least_gold=0.0) == [won, tie, other]
    assert exported(database, without_fast=True) == [won, tie]
    assert exported(database, people="weighted") == [won, tie]  # ben answers gold pairs worse than by chance
    with database.reading() as connection:
        table = votes_table(connection, VotesExportConfig(people="weighted"))
    assert table["num_example_per_prompt"][0].as_py() == pytest.approx(1 / (2 * 5 / 6 - 1))
    assert Reliability(0, 0).weight == pytest.approx(0.6) and Reliability(9, 9).weight > Reliability(2, 2).weight


def test_the_summary_counts_what_is_in_force(database: Database) -> None:
    fill(database)
    with database.reading() as connection:
        found = summarise(connection)
    assert (found.votes, found.undone, found.too_fast) == (10, 1, 1)
    assert found.choices == {"both_bad": 1, "left": 3, "right": 5, "skip": 1}
    assert (found.oneself.of, found.oneself.value) == (1, 1.0)
    assert (found.between_people.of, found.between_people.value) == (1, 1.0)  # ann and ben both chose b
    assert (found.gold.of, found.gold.value) == (5, 0.2)
    assert (found.left.of, found.left.value) == (8, 3 / 8)
    assert [(one.voter, one.votes) for one in found.people] == [("ann", 5), ("ben", 5)]
    # Wilson's interval of 8 of 10, from the tables of Newcombe 1998.
    eight = share([True] * 8 + [False] * 2)
    assert eight.low == pytest.approx(0.4901, abs=1e-3) and eight.high == pytest.approx(0.9433, abs=1e-3)


def test_the_commands_print_and_write_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from runtime.collect.database import open_database

    where, out = str(tmp_path / "votes.db"), tmp_path / "votes.parquet"
    database = open_database(where)
    fill(database)
    database.close()
    assert main(["votes", where]) == 0
    said = capsys.readouterr().out
    assert "10 votes of 2 people; 1 were taken back" in said and "two people say the same" in said
    assert main(["votes", "export", where, "--out", str(out)]) == 0
    assert "3 votes of 2 people" in capsys.readouterr().out and len(pq.read_table(out)) == 3
    assert main(["votes", "export", where, "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["votes", "export", where, "--out", str(tmp_path / "votes.csv")]) == 2
    assert main(["votes", str(tmp_path / "nothing.db")]) == 2 and "is not a file" in capsys.readouterr().err


def test_one_prompt_of_all_is_none(database: Database, tmp_path: Path) -> None:
    show(database, "won")
    vote(database, "won", "right")
    with database.reading() as connection:
        pq.write_table(votes_table(connection, VotesExportConfig()), tmp_path / "votes.parquet")
    (row,) = read_records(tmp_path / "votes.parquet").labels().to_pylist()
    assert row["prompt_a"] is row["prompt_b"] is None and row["shown_prompt"] == "a cat"
    assert {row["cell"]} <= {"-".join(sorted({str(cell_of("a.png")), str(cell_of("b.png"))}))}


def test_nothing_to_export_is_said(database: Database) -> None:
    with database.reading() as connection, pytest.raises(InputError, match="no votes to export"):
        votes_table(connection, VotesExportConfig())
