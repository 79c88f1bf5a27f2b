"""What every request meets first: room or none, whole bodies in pieces, a deadline, and word when the client goes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from runtime.config import ServiceConfig
from runtime.service.network.errors import Problem
from runtime.service.network.front import CLIENT_GONE, HEAD_BYTES, Front, Gate, JsonLines
from runtime.service.network.metrics import Metrics
from runtime.service.network.tracing import Tracing
from runtime.service.network.turns import Caller, Turns


def gate_of(items: int, bytes: int, requests: int = 0) -> Gate:
    return Gate(items, bytes, lambda: Problem(429, "too busy", "", {"Retry-After": "7"}), requests=requests)


def test_gate_lets_in_what_fits_and_forgets_it_afterwards() -> None:
    gate = gate_of(4, 100)
    with gate.admit(items=3, bytes=60, requests=1):
        for more in ({"items": 2}, {"bytes": 41}, {"requests": 4}):
            with pytest.raises(Problem) as refused, gate.admit(**more):
                raise AssertionError("let in")
            assert refused.value.status == 429 and refused.value.headers["Retry-After"] == "7"
        with gate.admit(items=1, bytes=40, requests=3):
            assert (gate.items, gate.bytes, gate.requests) == (4, 100, 4)
    assert (gate.items, gate.bytes, gate.requests) == (0, 0, 0)


class App:
    """An application that reads its body and answers, or never does."""

    def __init__(self, answers: bool = True) -> None:
        self.answers = answers
        self.pieces: list[bytes] = []
        self.outcome = "not called"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.outcome = "called"
        try:
            while True:
                message = await receive()
                self.pieces.append(message["body"])
                if not message["more_body"]:
                    break
            if not self.answers:
                await asyncio.Event().wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})
            self.outcome = "answered"
            self.outcome = (await receive())["type"]
        except asyncio.CancelledError:
            self.outcome += ", cancelled"
            raise


def post(
    app: App,
    body: list[bytes],
    gate: Gate,
    gone: bool = False,
    deadline_s: float = 60.0,
    path: str = "/v1/score",
    turns: Turns | None = None,
    **headers: str,
) -> tuple[list[Any], int]:
    """What a Front around the app sends, and how many messages it took of the body."""
    config = ServiceConfig(Path("bundle"), max_body_bytes=4 << 20, deadline_s=deadline_s)
    turns = Turns(1, 1, 1, deadline_s) if turns is None else turns
    front = Front(app, gate, turns, Metrics(), Tracing(None), config, [Route("/v1/score", app, methods=["POST"])])
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    taken = 0
    sent: list[Any] = []
    answered = asyncio.Event()

    async def receive() -> Any:
        nonlocal taken
        taken += 1
        if taken <= len(body):
            return {"type": "http.request", "body": body[taken - 1], "more_body": taken < len(body)}
        if not gone:
            await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            answered.set()

    asyncio.run(front(scope, receive, send))
    return sent, taken


@pytest.mark.parametrize("size", [0, 1, 70_000, 70_001, 3 << 20])
def test_the_body_arrives_whole(size: int) -> None:
    data = bytes(i % 251 for i in range(256)) * (size // 256 + 1)
    app = App()
    sent, _ = post(app, [data[:size][i : i + 70_000] for i in range(0, size, 70_000)] or [b""], gate_of(8, 1 << 30))
    assert b"".join(app.pieces) == data[:size] and max(map(len, app.pieces)) <= 70_000
    assert sent[0]["status"] == 200 and dict(sent[0]["headers"])[b"x-request-id"]


@pytest.mark.parametrize(
    ("body", "gate", "headers", "status", "read"),
    [
        ([b"abc"], gate_of(8, 1 << 30), {"content_length": str((4 << 20) + 1)}, 413, 0),
        ([b"a" * 60, b"b" * 60, b"c"], gate_of(8, 100), {"content_length": "3"}, 429, 2),  # what arrives counts
        ([b"a" * 60, b"b" * 60, b"c"], gate_of(8, 100), {}, 429, 2),
        ([b"a" * (3 << 20), b"b" * (2 << 20), b"c"], gate_of(8, 1 << 30), {}, 413, 2),
        ([b"abc"], gate_of(8, 1 << 30, requests=8), {"content_length": "3"}, 429, 1),
    ],
)
def test_a_body_is_read_no_further_than_it_takes_to_refuse_it(
    body: list[bytes], gate: Gate, headers: dict[str, str], status: int, read: int
) -> None:
    app, before = App(), (gate.bytes, gate.requests)
    sent, taken = post(app, body, gate, **headers)
    assert sent[0]["status"] == status and taken == read and app.outcome == "not called"
    assert (gate.bytes, gate.requests) == before


def test_what_is_announced_takes_no_room() -> None:
    app = App()
    sent, _ = post(app, [b"abc"], gate_of(8, 100), content_length="1000")
    assert sent[0]["status"] == 200 and app.pieces == [b"abc"]


class Crowded(Turns):
    """Turns that are all taken."""

    def check(self, caller: Caller, size_bytes: int) -> None:
        raise self.busy(3)


@pytest.mark.parametrize(("announced", "status", "read"), [(HEAD_BYTES + 1, 429, 0), (HEAD_BYTES, 200, 2)])
def test_what_would_be_late_is_refused_before_its_body_is_read(announced: int, status: int, read: int) -> None:
    app, turns = App(), Crowded(1, 1, 1, 60)
    sent, taken = post(app, [b"abc"], gate_of(8, 100), turns=turns, content_length=str(announced))
    assert sent[0]["status"] == status and taken == read


def test_a_path_that_nobody_serves_is_answered_before_its_body_is_read() -> None:
    app = App()
    post(app, [b"abc"], gate_of(8, 100), path="/v1/nothing")
    assert app.pieces == [b""], "the application is asked without it"


def test_beyond_the_deadline_the_work_is_cancelled_before_504_is_sent() -> None:
    app, gate = App(answers=False), gate_of(8, 1 << 30)
    sent, _ = post(app, [b"abc"], gate, deadline_s=0.2, content_length="3")
    assert sent[0]["status"] == 504 and json.loads(sent[1]["body"])["error"]["reason"] == "too late"
    assert app.outcome == "called, cancelled" and gate.requests == 0


def test_who_goes_away_is_not_worked_for(caplog: pytest.LogCaptureFixture) -> None:
    app = App(answers=False)
    with caplog.at_level("INFO", "plaudit"):
        sent, _ = post(app, [b"abc"], gate_of(8, 1 << 30), gone=True, content_length="3")
    assert sent == [] and app.outcome == "called, cancelled"
    assert [record.fields["status"] for record in caplog.records] == [CLIENT_GONE]  # type: ignore[attr-defined]


def test_log_lines_are_json() -> None:
    import logging

    record = logging.LogRecord("plaudit", logging.INFO, "file", 1, 'a "quoted"\nline', (), None)
    record.fields = {"status": 200}
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line) | {"time": ""} == {"time": "", "level": "info", "event": 'a "quoted"\nline', "status": 200}
