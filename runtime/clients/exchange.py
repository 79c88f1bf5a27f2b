"""When a request is sent and repeated, and how its answer is read, for both clients.

The logic is in generators. They yield a request and are sent its answer or the error of its connection, or they yield
the seconds to wait. Each client runs them in its own way, by blocking or by awaiting. Knows no question.
"""

import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

import httpx

from runtime.clients.answers import ServiceError

BUSY = (429, 503)
FIRST_BACKOFF_S, MOST_BACKOFF_S = 0.5, 8.0
# Errors of the connection, without an answer. Every request may be sent twice, since none changes anything.
BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)

Result = TypeVar("Result")
Reply = httpx.Response | httpx.RequestError | None
Steps = Generator[httpx.Request | float, Reply, Result]


def tried(
    request: httpx.Request,
    retries: int,
    timeout_s: float,
    divisible: bool = False,
    clock: Callable[[], float] = time.monotonic,
    jitter: Callable[[], float] = random.random,
) -> Steps[httpx.Response]:
    """Send a request, again while the service is too busy or the connection breaks, and return its answer.

    Before each new try it waits for the time in Retry-After plus a random part of a time that doubles. There are at
    most `retries` new tries, and none later than `timeout_s` after the first. If a `divisible` request gets 429 twice,
    this is its answer, since it may always be too much while its parts are not. Raise ServiceError if there is no
    answer.
    """
    until = clock() + timeout_s
    for tries in count():
        reply = yield request
        again = isinstance(reply, BROKEN)
        wait_s = jitter() * min(MOST_BACKOFF_S, FIRST_BACKOFF_S * 2**tries)
        if isinstance(reply, httpx.Response):
            again = reply.status_code in BUSY and not (divisible and tries and reply.status_code == 429)
            after = reply.headers.get("retry-after", "")
            wait_s += float(after) if after.isdecimal() else 0
        if not again or tries == retries or clock() + wait_s > until:
            break
        yield wait_s
    if isinstance(reply, httpx.Response):
        return reply
    message = f"{request.url}: {type(reply).__name__}: {reply}"
    raise ServiceError(None, "no answer", message, request.headers["x-request-id"])


def document_of(response: httpx.Response) -> dict[str, Any]:
    """The answer's JSON. Raise ServiceError if it is an error, or cannot be an answer of the service."""
    request_id = response.request.headers["x-request-id"]
    with expected(response):
        if response.status_code == 200:
            return dict(response.json())
        error = response.json()["error"]
        raise ServiceError(response.status_code, error["reason"], error["message"], request_id)


@contextmanager
def expected(response: httpx.Response) -> Iterator[None]:
    """Raise ServiceError if the block finds that the answer is not the service's, but for example that of a proxy."""
    try:
        yield
    except (KeyError, TypeError, ValueError):
        request_id = response.request.headers["x-request-id"]
        message = f"{response.request.url} answered, but not as plaudit's service does: {response.text[:200]!r}"
        raise ServiceError(response.status_code, "unexpected answer", message, request_id) from None
