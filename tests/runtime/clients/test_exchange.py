"""When a request is sent again: by the rules, with a clock and a die of the test."""

from collections.abc import Sequence
from email.utils import formatdate

import httpx
import pytest

from runtime.clients.answers import ServiceError
from runtime.clients.exchange import Reply, tried

BROKEN = httpx.ConnectError("refused")


def answer(status: int, after: str | None = None) -> httpx.Response:
    return httpx.Response(status, headers={} if after is None else {"Retry-After": after})


def waits(
    replies: Sequence[Reply], retries: int = 5, timeout_s: float = 100.0, jitter: float = 0.5, divisible: bool = False
) -> list[float]:
    """The seconds waited between the tries, all of which are asked for; each try takes a second of its own."""
    now = 0.0
    request = httpx.Request("POST", "http://service/v1/score", headers={"X-Request-Id": "mine"})
    steps = tried(request, retries, timeout_s, divisible, lambda: now, lambda: jitter)
    waited = []
    assert steps.send(None) is request
    for reply in replies[:-1]:
        now += 1
        wait_s = steps.send(reply)
        assert isinstance(wait_s, float)
        waited.append(wait_s)
        now += wait_s
        assert steps.send(None) is request
    now += 1
    try:
        steps.send(replies[-1])
    except StopIteration as done:
        assert done.value is replies[-1]
    except ServiceError as error:
        assert isinstance(replies[-1], httpx.RequestError) and error.status is None and error.request_id == "mine"
    else:
        pytest.fail("it was not content")
    return waited


def test_what_is_no_fault_of_the_moment_is_asked_once() -> None:
    for status in (200, 301, 400, 401, 404, 413, 422, 500, 504):
        assert waits([answer(status, "1")]) == []
    for error in (httpx.ReadTimeout("slow"), httpx.WriteTimeout("slow"), httpx.UnsupportedProtocol("ftp")):
        assert waits([error]) == []


def test_it_waits_as_long_as_it_is_told_and_a_random_part_of_a_doubling_time() -> None:
    assert waits([answer(429, "3"), answer(503, "0"), answer(429), answer(200)]) == [3.25, 0.5, 1.0]
    assert waits([answer(429, "3")] * 2 + [answer(200)], jitter=0.0) == [3, 3]
    assert waits([BROKEN] * 8, retries=7, jitter=1.0) == [0.5, 1, 2, 4, 8, 8, 8]
    assert waits([httpx.ReadError(""), httpx.RemoteProtocolError(""), httpx.ConnectTimeout(""), answer(422)]) == [
        0.25,
        0.5,
        1.0,
    ]
    for odd in (formatdate(usegmt=True), "-5", "soon", "1.5e3"):
        assert waits([answer(429, odd), answer(200)]) == [0.25]


def test_it_ends_after_so_many_tries_or_seconds() -> None:
    assert len(waits([answer(429)] * 6)) == 5
    assert waits([BROKEN], retries=0) == []
    assert waits([answer(429, "30")] * 3, timeout_s=70.0, jitter=0.0) == [30, 30]
    assert waits([answer(429, "30")], timeout_s=30.0) == []
    assert waits([answer(429, "9" * 5000)]) == []
    assert waits([answer(429, "3"), answer(429, "3")], divisible=True) == [3.25]
    assert len(waits([answer(503)] * 3 + [answer(429)], divisible=True)) == len(waits([BROKEN] * 4, 3, divisible=True))
