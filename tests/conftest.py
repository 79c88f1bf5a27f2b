"""What tests of many modules begin with."""

import gc
import os
import socket
from pathlib import Path
from typing import Any

import pytest

# A bar shows itself after two seconds: on a slow machine it would stand among the lines that tests read.
os.environ["TQDM_DISABLE"] = "1"
# As many processes run tests as there are cores: threads of each would wait for those of the others at every product.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

resolve = socket.getaddrinfo


def resolve_here(host: str | bytes | None, *args: Any, **kwargs: Any) -> list[Any]:
    """In the place of socket.getaddrinfo: a test that asks for a name beyond this machine fails."""
    if host and host not in ("localhost", b"localhost", socket.gethostname()):
        try:
            resolve(host, None, flags=socket.AI_NUMERICHOST)
        except OSError:
            pytest.fail(f"a test asked the network for {host!r}; put a fake in its place, or an address of 127.0.0.1")
    return resolve(host, *args, **kwargs)


socket.getaddrinfo = resolve_here


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest bundle at every precision, for all worker processes; a test that changes it changes a copy."""
    from export_tiny import make_bundle  # imports torch, which most tests do without

    return make_bundle(tmp_path_factory)


def pytest_collection_finish() -> None:
    """Let no collection of garbage, of which every export makes some, look through all that tests import."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail if a test is skipped")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """An environment that was made for some tests must run them."""
    skipped = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped")
    if session.config.getoption("no_skips") and skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
