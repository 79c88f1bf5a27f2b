"""Invite voters by one-time links: an invitation is exchanged once for a key, which the browser stores.

The database stores only hashes of both.
"""

import hashlib
import secrets
import time

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from runtime.collect import tables as t
from runtime.collect.database import insert


def invite(connection: Connection, voter: str) -> str:
    """Store an invitation for a person, and return its token."""
    token = secrets.token_urlsafe(24)
    row = {"token_hash": _hashed(token), "voter": voter, "made_at": time.time()}
    connection.execute(sa.insert(t.invites).values(**row))
    return token


def redeem(connection: Connection, token: str) -> tuple[str, str] | None:
    """The invited person and a new key, for a token. None for a token that is wrong or was used before."""
    hashed = _hashed(token)
    voter = connection.scalar(sa.select(t.invites.c.voter).where(t.invites.c.token_hash == hashed))
    if voter is None:
        return None
    key = secrets.token_urlsafe(24)
    row = {"invite": hashed, "key_hash": _hashed(key), "made_at": time.time()}
    statement = insert(connection, t.keys).values(**row).on_conflict_do_nothing()
    return (str(voter), key) if connection.scalar(statement.returning(t.keys.c.invite)) else None


def voter_of_key(connection: Connection, key: str) -> str | None:
    """The person that a key belongs to, or None for a wrong key."""
    joined = sa.select(t.invites.c.voter).join(t.keys, t.keys.c.invite == t.invites.c.token_hash)
    return connection.scalar(joined.where(t.keys.c.key_hash == _hashed(key)))


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
