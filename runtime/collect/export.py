"""Export votes as a table with Pick-a-Pic's columns, for training and measuring heads.

Picture 0 was on the left. Left out are votes that were taken back or skipped, repeats, which would count one opinion
twice, and gold pairs, whose answers were known.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from embed.spec import InputError
from runtime.collect import tables as t
from runtime.collect.choose import cell_of
from runtime.collect.ledger import TOO_FAST
from runtime.config import VotesExportConfig

PRIOR_RIGHT, PRIOR_OF = 4.0, 5.0  # prior of a person's gold answers: 4 of 5 are right
LEAST_GOLD = 3  # with fewer gold answers nobody is left out
BATCH = 1000
OF_NO_USE = ("repeat", "gold")

SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        *((f"image_{side}_{name}", pa.string()) for side in (0, 1) for name in ("uid", "url")),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("has_label", pa.bool_()),
        ("num_example_per_prompt", pa.float64()),  # 1 / the vote's weight
        ("shown_prompt", pa.string()),
        ("user_id", pa.string()),
        ("choice", pa.string()),
        ("side", pa.string()),  # side of the chosen picture
        ("seconds", pa.float64()),
        ("flags", pa.string()),
        ("random", pa.bool_()),  # whether the pair was drawn at random from those kept apart for measuring
        ("drawn", pa.string()),
        ("pair", pa.string()),  # the same for all people and for both orders of the pictures
        ("cell", pa.string()),  # cell of the pictures; with many pictures under one prompt, pairs stay within a cell
        ("showing", pa.string()),
        ("voted_at", pa.timestamp("us", "UTC")),
    ]
)


@dataclass(frozen=True)
class Reliability:
    """A person's answers to pairs whose answers are known."""

    right: int
    of: int

    @property
    def weight(self) -> float:
        """How much better than chance this person probably answers, 0 to 1 (Youden's J of the posterior mean)."""
        return max(0.0, 2 * (self.right + PRIOR_RIGHT) / (self.of + PRIOR_OF) - 1)


def votes_table(connection: Connection, config: VotesExportConfig) -> pa.Table:
    """The votes that the config selects, in the order in which they were given. Raise InputError if there are none.

    The caption is empty if all votes have the same prompt, because then only the pictures matter.
    """
    weights = voter_weights(connection, config)
    batches = [pa.RecordBatch.from_pylist(rows, SCHEMA) for rows in _rows(connection, config, weights)]
    table = pa.Table.from_batches(batches, SCHEMA)
    if not len(table):
        raise InputError(f"there are no votes to export ({config.part}); wanted at least one vote that is not skipped")
    asked = t.showings.c.drawn.not_in(OF_NO_USE)
    prompts = connection.scalar(sa.select(sa.func.count(sa.distinct(t.showings.c.prompt))).where(asked))
    if prompts == 1:  # the prompt does not distinguish pairs
        table = table.set_column(0, "caption", pa.repeat("", len(table)))
    # An empty column would be read as missing pictures.
    empty = [name for name in table.column_names if name.startswith(("jpg_", "image_")) and _all_null(table, name)]
    return table.drop_columns(empty)


def voter_weights(connection: Connection, config: VotesExportConfig) -> dict[str, float]:
    """The weight of each person's votes, 0 for people who are left out."""
    found = reliabilities(connection)
    if config.people == "weighted":
        return {voter: one.weight for voter, one in found.items()}
    if config.people == "trusted":
        return {
            voter: float(one.of < LEAST_GOLD or one.right >= config.least_gold * one.of) for voter, one in found.items()
        }
    return dict.fromkeys(found, 1.0)


def reliabilities(connection: Connection) -> dict[str, Reliability]:
    """The reliability of each person who has voted."""
    force, showings = t.in_force, t.showings
    is_gold = sa.and_(showings.c.expected.is_not(None), force.c.choice != "skip")
    query = (
        sa.select(
            force.c.voter,
            sa.func.sum(sa.case((sa.and_(is_gold, force.c.choice == showings.c.expected), 1), else_=0)),
            sa.func.sum(sa.case((is_gold, 1), else_=0)),
        )
        .join_from(force, showings, force.c.showing == showings.c.id)
        .group_by(force.c.voter)
    )
    return {voter: Reliability(int(right), int(of)) for voter, right, of in connection.execute(query)}


def _rows(
    connection: Connection, config: VotesExportConfig, weights: dict[str, float]
) -> Iterator[list[dict[str, object]]]:
    left, right, force = t.pictures.alias("a"), t.pictures.alias("b"), t.in_force
    sides = enumerate((left, right))
    pictures = [side.c[name].label(f"{name}_{i}") for i, side in sides for name in ("key", "uri", "data")]
    showings = [t.showings.c[name] for name in ("prompt", "drawn", "pair")]
    votes = [force.c[name] for name in ("showing", "voter", "choice", "seconds", "flags", "voted_at")]
    query = (
        sa.select(*showings, *votes, *pictures)
        .join_from(force, t.showings, force.c.showing == t.showings.c.id)
        .join(left, left.c.id == t.showings.c.left)
        .join(right, right.c.id == t.showings.c.right)
        .where(t.showings.c.drawn.not_in(OF_NO_USE), force.c.choice != "skip")
        .order_by(force.c.id)
    )
    if config.part != "all":
        is_random = t.showings.c.drawn == "random"
        query = query.where(is_random if config.part == "measuring" else sa.not_(is_random))
    if config.without_fast:
        query = query.where(force.c.flags.not_like(f"%{TOO_FAST}%"))
    for rows in connection.execute(query).partitions(BATCH):
        yield [_row(row._mapping, weights[row.voter]) for row in rows if weights[row.voter] > 0]


def _row(row: sa.RowMapping, weight: float) -> dict[str, object]:
    choice = row["choice"]
    first = {"left": 1.0, "right": 0.0}.get(choice, 0.5)
    pictures: dict[str, object] = {}
    for side in (0, 1):
        pictures |= {f"image_{side}_uid": row[f"key_{side}"], f"image_{side}_url": row[f"uri_{side}"]}
        pictures[f"jpg_{side}"] = row[f"data_{side}"]
    return pictures | {
        "caption": row["prompt"],
        "shown_prompt": row["prompt"],
        "label_0": first,
        "label_1": 1 - first,
        "has_label": choice in ("left", "right"),
        "num_example_per_prompt": 1 / weight,
        "user_id": row["voter"],
        "choice": choice,
        "side": choice if choice in ("left", "right") else None,
        "seconds": row["seconds"],
        "flags": row["flags"],
        "random": row["drawn"] == "random",
        "drawn": row["drawn"],
        "pair": row["pair"],
        "cell": "-".join(sorted({str(cell_of(row[f"key_{side}"])) for side in (0, 1)})),
        "showing": row["showing"],
        "voted_at": int(row["voted_at"] * 1e6),
    }


def _all_null(table: pa.Table, name: str) -> bool:
    return bool(table[name].null_count == len(table))
