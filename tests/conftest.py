"""What tests of many modules begin with."""

import gc
import os
from pathlib import Path

import pytest

# A bar shows itself after two seconds: on a slow machine it would stand among the lines that tests read.
os.environ["TQDM_DISABLE"] = "1"
# As many processes run tests as there are cores: threads of each would wait for those of the others at every product.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


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
