"""How the service is set up: configurations that cannot serve, and cores shared among runs."""

from pathlib import Path
from typing import Any

import pytest

from embed.spec import InputError
from runtime.config import ServiceConfig
from runtime.service.answering.state import sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_queue": 3, "max_items": 4}, "max_queue is 3; wanted at least max_items"),
        ({"max_pending_bytes": 10}, "max_pending_bytes is 10"),
        ({"deadline_s": 0}, "deadline_s is 0"),
        ({"tokens": ("",)}, "a token is empty"),
        ({"origins": ("*",)}, r"--allow-origin is '\*'; wanted one origin"),
        ({"origins": ("https://a.example/",)}, "without a path"),
        ({"origins": ("a.example",)}, "wanted one origin"),
    ],
)
def test_a_configuration_that_cannot_serve(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ServiceConfig(Path("bundle"), **options)


@pytest.mark.parametrize(
    ("options", "cores", "expected"),
    [
        ({}, 1, (8, 1, 1, 1)),
        ({}, 2, (8, 2, 1, 2)),
        ({}, 4, (8, 2, 2, 4)),
        ({}, 16, (8, 4, 4, 16)),
        ({"threads": 2}, 2, (8, 1, 2, 2)),
        ({"streams": 3}, 12, (8, 3, 4, 12)),
        ({"streams": 1, "threads": 1, "max_batch": 5}, 8, (5, 1, 1, 1)),
    ],
)
def test_runs_side_by_side_share_the_cores(options: dict[str, int], cores: int, expected: tuple[int, ...]) -> None:
    use = sizes(ServiceConfig(Path("bundle"), providers=("cpu",), **options), cores)
    assert (use.max_batch, use.streams, use.threads, use.lone_threads) == expected
