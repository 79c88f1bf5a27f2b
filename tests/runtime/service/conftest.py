"""What tests of the service share: pictures, what a scorer says of them, and the service that runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_server import Running, serving, small_picture

from runtime.config import SessionConfig
from runtime.scoring.scorer import Scorer


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    return [small_picture(seed) for seed in range(6)]


@pytest.fixture(scope="session")
def scorer(bundle: Path) -> Scorer:
    return Scorer.load(bundle, SessionConfig(threads=1))


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    """What `running` is started with; a module that wants more has a fixture of this name."""
    return {}


@pytest.fixture(scope="module")
def running(bundle: Path, options: dict[str, Any]) -> Iterator[Running]:
    """The service with the smallest bundle, for all tests of a module."""
    with serving(bundle, **options) as running:
        yield running
