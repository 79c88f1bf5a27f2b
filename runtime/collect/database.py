"""Open and write a database of votes: SQLite in a file, or PostgreSQL by its URL.

One thread writes, or a few if the database allows several writers. Waiting writes are put together in one transaction,
so that many people who vote at once share one wait for the disk. Each is answered when its write is durable. Other
processes may write to the same database.
"""

import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from embed.spec import InputError
from embed.wording import one_line
from runtime.collect.tables import METADATA, about

FORMAT = "1"
MOST_TOGETHER = 256  # the most writes in one transaction
WRITERS = 4  # number of writing threads for PostgreSQL
BUSY_S = 30.0  # longest wait for another process that writes

Value = TypeVar("Value")
Work = Callable[[Connection], Value]


class Database:
    """A database that can be read from any thread, and is written in its own threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = engine.execution_options(writes=True)
        self._waiting: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        count = WRITERS if engine.dialect.name == "postgresql" else 1
        self._threads = [threading.Thread(target=self._write_all, name="votes", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reading durable data, closed at the end of the block."""
        with self._engine.connect() as connection:
            yield connection

    def submit(self, work: Work[Value]) -> "Future[Value]":
        """A future with the result of `work`, which is set when its writes are durable. If `work` raises, its writes
        are undone.

        `work` may be called a second time, if another write in the same transaction failed.
        """
        future: Future[Value] = Future()
        self._waiting.put((work, future))
        return future

    def write(self, work: Work[Value]) -> Value:
        """Submit `work`, and wait for its result."""
        return self.submit(work).result()

    def close(self) -> None:
        """Finish waiting writes, and close the database."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._engine.dispose()

    def _write_all(self) -> None:
        while (one := self._waiting.get()) is not None:
            together, ended = [one], False
            while len(together) < MOST_TOGETHER and not ended:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                ended = more is None
                together += [more] if more else []
            together = [one for one in together if one[1].set_running_or_notify_cancel()]
            if len(together) < 2 or not self._committed(together):
                for each in together:
                    self._commit(*each)
            if ended:
                return

    def _committed(self, together: list[tuple[Work[Any], Future[Any]]]) -> bool:
        """Write all of these in one transaction and answer them. Return False if that failed and none was written."""
        try:
            with self._writing.begin() as connection:
                values = [work(connection) for work, _ in together]
        except Exception:  # one of them failed; the caller tries each alone to find out which
            return False
        for (_, future), value in zip(together, values, strict=True):
            future.set_result(value)
        return True

    def _commit(self, work: Work[Any], future: Future[Any]) -> None:
        try:
            with self._writing.begin() as connection:
                value = work(connection)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(value)


def open_database(where: str, new: bool = True) -> Database:
    """Open the database in a file, or at a URL such as postgresql+psycopg://user@host/name. With `new` it is created if
    it does not exist.

    Raise InputError if there is none, or if it is not a database of votes.
    """
    if "://" in where:
        engine = sa.create_engine(_url(where), pool_pre_ping=True)
    else:
        path = Path(where)
        if not new and not path.is_file():
            raise InputError(
                f"{where} is not a file; wanted the database of votes that was given to `runtime serve --votes`"
            )
        if not path.parent.is_dir():
            raise InputError(f"{where} cannot be created: there is no folder {path.parent}; create it first")
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_S})
        sa.event.listen(engine, "connect", _prepare)
        sa.event.listen(engine, "begin", _begin)
    try:
        _make_tables(engine, new)
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise InputError(f"{_shown(where)} cannot be opened: {one_line(error.orig or error)}") from None
    except BaseException:
        engine.dispose()
        raise
    return Database(engine)


def insert(connection: Connection, table: sa.Table) -> "sqlite.Insert | postgresql.Insert":
    """An INSERT in the connection's own dialect, which has ON CONFLICT for existing rows."""
    return insert_of(connection.dialect.name, table)


def insert_of(dialect: str, table: sa.Table) -> "sqlite.Insert | postgresql.Insert":
    """The same for a dialect by name."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def _url(where: str) -> sa.URL:
    try:
        url = sa.make_url(where)
    except sa.exc.ArgumentError:
        raise InputError("--votes is not a URL of a database; wanted postgresql+psycopg://USER@HOST/NAME") from None
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise InputError(f"--votes is a {url.drivername} URL; wanted a file, or postgresql+psycopg://USER@HOST/NAME")
    return url.set(drivername="postgresql+psycopg")


def _shown(where: str) -> str:
    """The database's name without its password."""
    return sa.make_url(where).render_as_string() if "://" in where else where


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # `_begin` begins transactions
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}")


def _begin(connection: Connection) -> None:
    # A transaction that reads first and then writes would be refused if another has written in between.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_tables(engine: Engine, new: bool) -> None:
    with engine.execution_options(writes=True).begin() as connection:
        if connection.dialect.name == "postgresql":  # otherwise two processes could create a table at the same time
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(0x706C6175)))
        there = sa.inspect(connection).get_table_names()
        if "about" not in there and (there or not new):
            raise InputError(f"{_shown(str(engine.url))} is not a database of votes; name another")
        METADATA.create_all(connection)
        connection.execute(insert(connection, about).values(name="format", value=FORMAT).on_conflict_do_nothing())
        found = connection.scalar(sa.select(about.c.value).where(about.c.name == "format"))
        if found != FORMAT:
            raise InputError(f"the database of votes has format {found}; this version of plaudit reads {FORMAT}")
