"""The tables of a database of votes: rows are added and never changed.

A vote is in force unless there is an undo of its showing with the same `turn`: a showing's first vote has turn 0, and
the one after an undo has the next. So each person has at most one vote for a showing, even if several processes write
at the same time.
"""

import sqlalchemy as sa

METADATA = sa.MetaData()
Text, Id = sa.Text, sa.String(64)

about = sa.Table("about", METADATA, sa.Column("name", Id, primary_key=True), sa.Column("value", Text, nullable=False))

pictures = sa.Table(
    "pictures",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    sa.Column("key", Text, nullable=False),  # its name in the owner's data
    sa.Column("uri", Text),  # its address, unless its bytes are stored
    sa.Column("data", sa.LargeBinary),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("series", Id, index=True),  # the series, for pictures that a generator made
)

series = sa.Table(
    "series",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    sa.Column("voter", Text, nullable=False, index=True),
    sa.Column("prompt", Text, nullable=False),
    sa.Column("begun_at", sa.Double, nullable=False),
)

showings = sa.Table(
    "showings",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    sa.Column("voter", Text, nullable=False),
    sa.Column("prompt", Text, nullable=False),
    sa.Column("left", sa.ForeignKey("pictures.id"), nullable=False),
    sa.Column("right", sa.ForeignKey("pictures.id"), nullable=False),
    sa.Column("pair", Id, nullable=False, index=True),  # the same for both orders of the pictures
    sa.Column("drawn", Id, nullable=False),  # random, active, series, repeat or gold
    sa.Column("original", Id, nullable=False),  # the showing that this one repeats, or empty
    sa.Column("expected", Id),  # the right side of a gold pair
    sa.Column("series", Id),
    sa.Column("shown_at", sa.Double, nullable=False),
    sa.UniqueConstraint("voter", "pair", "original"),
)

votes = sa.Table(
    "votes",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("showing", sa.ForeignKey("showings.id"), nullable=False),
    sa.Column("turn", sa.Integer, nullable=False),
    sa.Column("voter", Text, nullable=False),
    sa.Column("choice", Id, nullable=False),
    sa.Column("reason", Text),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("flags", Text, nullable=False),
    sa.Column("voted_at", sa.Double, nullable=False),
    sa.UniqueConstraint("showing", "turn"),
    sa.Index("votes_of_voter", "voter", "voted_at"),
)

undos = sa.Table(
    "undos",
    METADATA,
    sa.Column("showing", sa.ForeignKey("showings.id"), primary_key=True),
    sa.Column("turn", sa.Integer, primary_key=True),
    sa.Column("undone_at", sa.Double, nullable=False),
)

invites = sa.Table(
    "invites",
    METADATA,
    sa.Column("token_hash", Id, primary_key=True),
    sa.Column("voter", Text, nullable=False),
    sa.Column("made_at", sa.Double, nullable=False),
)

# The keys that invitations were exchanged for, each only once.
keys = sa.Table(
    "keys",
    METADATA,
    sa.Column("invite", sa.ForeignKey("invites.token_hash"), primary_key=True),
    sa.Column("key_hash", Id, nullable=False, unique=True),
    sa.Column("made_at", sa.Double, nullable=False),
)

promotions = sa.Table(
    "promotions",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("promoted", sa.Boolean, nullable=False),
    sa.Column("document", Text, nullable=False),  # JSON: the comparison, and the reason of the decision
)

in_force = (
    sa.select(votes)
    .outerjoin(undos, sa.and_(undos.c.showing == votes.c.showing, undos.c.turn == votes.c.turn))
    .where(undos.c.showing.is_(None))
    .subquery("in_force")
)
