"""What strangers open and never end costs nobody else anything."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from service_server import TOKEN, Running, base64_of, form, serving, small_picture
from waiting import wait_until

from runtime.config import ServiceConfig
from runtime.service.network import connections
from runtime.service.network.connections import MAX_HEAD_BYTES, MAX_HEADERS, bounded, most_connections
from runtime.service.network.front import AGAIN_S
from runtime.service.network.listening import Server

MOST, MOST_OF_ONE = 12, 8


@pytest.fixture(scope="module")
def running(bundle: Path) -> Iterator[Running]:
    with serving(bundle, tokens=(TOKEN,), max_connections=MOST, max_per_address=MOST_OF_ONE) as running:
        yield running


def opened(running: Running) -> socket.socket:
    url = running.client.base_url
    return socket.create_connection((url.host, url.port), timeout=60)


def answer(stranger: socket.socket) -> bytes:
    """What the service says until it ends the connection, in whatever way."""
    said = b""
    try:
        while piece := stranger.recv(65_536):
            said += piece
    except ConnectionError:
        pass
    return said


def test_an_endless_head_is_refused_at_its_bound(running: Running) -> None:
    with opened(running) as stranger:
        sent = 0
        try:
            stranger.sendall(b"GET /health/live HTTP/1.1\r\nx: ")
            while sent < 64 * MAX_HEAD_BYTES:
                stranger.sendall(b"a" * 16_384)
                sent += 16_384
        except ConnectionError:
            pass
        assert answer(stranger)[:12] in (b"HTTP/1.1 431", b"")
    assert sent < 64 * MAX_HEAD_BYTES
    assert running.client.get("/health/live").status_code == 200


def test_a_head_of_many_short_headers_is_refused(running: Running) -> None:
    with opened(running) as stranger:
        stranger.sendall(b"GET /health/live HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n")
        assert answer(stranger).startswith(b"HTTP/1.1 431 ")


def test_a_head_up_to_the_bounds_is_read_with_its_body(running: Running) -> None:
    request = running.client.build_request("POST", "/v1/score", files=form([small_picture(0)]), data={"prompt": "a"})
    body = request.read()
    lines = ["POST /v1/score HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Connection: close",
             f"Content-Type: {request.headers['content-type']}", f"Authorization: Bearer {TOKEN}"]  # fmt: skip
    head = "\r\n".join(lines) + "\r\nx-filler: "
    head += "a" * (MAX_HEAD_BYTES - len(head) - 4) + "\r\n\r\n"
    with opened(running) as client:
        client.sendall(head.encode() + body)
        assert answer(client).startswith(b"HTTP/1.1 200 ")


def test_who_does_not_wait_as_told_is_made_to_wait(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    service, statuses = running.service, list[int]()
    asked = {"prompt": "a", "images": [base64_of(small_picture(0))]}
    monkeypatch.setattr(service.gate, "max_items", 0)
    start = time.monotonic()
    for _ in range(3):
        statuses.append(running.client.post("/v1/score", json=asked).status_code)
    assert statuses == [429] * 3 and time.monotonic() - start > 2 * AGAIN_S
    assert running.client.get("/health/live").status_code == 200, "and was not asked to wait"
    monkeypatch.undo()
    assert running.client.post("/v1/score", json=asked).status_code == 200


def test_a_trusted_proxy_may_have_as_many_connections_as_all(bundle: Path) -> None:
    ask = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    for proxies, status in (("127.0.0.0/8",), b"200"), (("10.0.0.0/8", "::1"), b"503"):
        with serving(bundle, max_per_address=1, trusted_proxies=proxies) as running, ExitStack() as stack:
            many = [stack.enter_context(opened(running)) for _ in range(3)]
            many[-1].sendall(ask)
            assert many[-1].recv(12) == b"HTTP/1.1 " + status


def test_too_few_open_files_are_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(connections, "most_connections", lambda wanted: min(wanted, 20))
    config = ServiceConfig(Path("bundle"), max_connections=64)
    Server(FastAPI(), config, drain=list)
    (record,) = caplog.records
    assert "ulimit -n" in record.getMessage() and record.fields == {"connections": 20, "wanted": 64}  # type: ignore[attr-defined]
    Server(FastAPI(), replace(config, max_connections=20), drain=list)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("most", "of_one"), [(4096, 1024), (960, 240), (32, 8), (8, 4)])
def test_with_few_open_files_an_address_gets_its_share(monkeypatch: pytest.MonkeyPatch, most: int, of_one: int) -> None:
    monkeypatch.setattr(connections, "most_connections", lambda wanted: most)
    assert bounded(4096, 1024).max_per_address == of_one
    assert bounded(4096, 2).max_per_address == 2, "what was asked for is never raised"


def test_the_silent_are_bounded_by_address_and_ended(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.5)
    running.client.close()  # its connection counts too
    with ExitStack() as stack:
        silent = [stack.enter_context(opened(running)) for _ in range(MOST_OF_ONE)]
        with opened(running) as one_more:
            said = answer(one_more)
        assert said.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") and b"retry-after: 1\r\n" in said.lower()
        document = json.loads(said.partition(b"\r\n\r\n")[2])  # in the shape that every error has
        assert document.keys() == {"error", "request_id"}
        assert "connections from your address" in document["error"]["message"]
        slow = silent[0]
        slow.sendall(b"GET /health/live HTTP/1.1\r\n")  # and no more
        assert all(answer(stranger) == b"" for stranger in silent), "their time is over"
    with opened(running) as later:
        later.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer(later).startswith(b"HTTP/1.1 200 ")


def test_bodies_that_are_announced_and_never_sent_take_no_room(bundle: Path) -> None:
    with serving(bundle, max_pending_bytes=1 << 20, max_body_bytes=1 << 20) as running, ExitStack() as stack:
        for _ in range(8):
            stranger = stack.enter_context(opened(running))
            stranger.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(3):
            data = {"prompt": "a"}
            assert running.client.post("/v1/score", files=form([small_picture(0)]), data=data).status_code == 200
        unknown = stack.enter_context(opened(running))
        unknown.sendall(b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        unknown.settimeout(60)
        assert unknown.recv(12) == b"HTTP/1.1 404", "before its body came"


def test_the_rest_of_a_body_that_is_refused_is_read_for_a_while(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REST_TIMEOUT_S", 0.5)
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    ask = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with opened(running) as patient:  # says all of it before it listens
        patient.sendall(head % (4 << 20) + bytes(4 << 20) + ask)
        said = answer(patient)
        assert said.startswith(b"HTTP/1.1 404 ") and b"HTTP/1.1 200 " in said
    with opened(running) as slow:
        slow.sendall(head % 1000 + b"and no more")
        assert answer(slow).startswith(b"HTTP/1.1 404 "), "and the connection has ended"


def test_a_body_without_end_does_not_hold_the_end_of_the_service(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LAST_TIMEOUT_S", 0.3)
    with ExitStack() as stack:
        with serving(bundle) as running:
            stranger = stack.enter_context(opened(running))
            stranger.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
            wait_until(lambda: running.service.gate.bytes == 3)
            start = time.monotonic()
        assert time.monotonic() - start < running.service.config.deadline_s, "what a request may take at most"
        assert answer(stranger) == b""


def test_connections_leave_room_for_other_files() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert most_connections(50) == 50
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 300), hard))
        assert most_connections(100) == 100, "the limit that is soft is raised"
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(356, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
