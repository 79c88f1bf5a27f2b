"""The running service in trouble: strangers, overload, slow bodies, dead decoders, faults."""

import errno
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import worker_calls
from service_server import PATIENCE_S, TOKEN, Running, base64_of, decoder_processes, form, serving, small_picture
from waiting import wait_until

from runtime.service.answering.state import READY_S, Service


def test_only_the_token_opens(bundle: Path, pictures: list[bytes]) -> None:
    with serving(bundle, tokens=(TOKEN,)) as (client, _):
        asked = {"prompt": "a cat", "images": [base64_of(pictures[0])]}
        assert client.post("/v1/score", json=asked).status_code == 200
        for wrong in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"):
            headers = {"Authorization": wrong.encode("latin-1")}
            refused = client.post("/v1/score", json=asked, headers=headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            given = wrong.startswith("Bearer ")
            assert ("not one of" if given else "is missing") in refused.json()["error"]["message"]
            assert client.post("/admin/reload", headers=headers).status_code == 401
        admin = "another token"
        with serving(bundle, tokens=("new", TOKEN), admin_tokens=(admin,)) as (rotating, _):
            for token, scores, reloads in (("new", 200, 401), (TOKEN, 200, 401), (admin, 401, 200)):
                headers = {"Authorization": f"Bearer {token}"}
                assert rotating.post("/v1/score", json=asked, headers=headers).status_code == scores
                assert rotating.post("/admin/reload", headers=headers).status_code == reloads
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert client.get(path, headers={"Authorization": ""}).status_code == 200
        secured = client.get("/openapi.json").json()["paths"]["/v1/score"]["post"]["security"]
        assert secured == [{"token": []}]


class Brake:
    """Holds the session while a block lasts, and notes its runs."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[int] = []
        self._go = threading.Event()
        self._go.set()
        batcher = service.room.engine.batcher
        run = batcher._run

        def held(works: Any) -> Any:
            self.runs.append(len(works))
            assert self._go.wait(PATIENCE_S)
            return run(works)

        monkeypatch.setattr(batcher, "_run", held)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._go.clear()
        try:
            yield
        finally:
            self._go.set()


def test_full_and_gone(bundle: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"prompt": "a cat", "images": [base64_of(pictures[0])]}
    with serving(bundle, max_queue=8, max_items=8, max_batch=1, streams=1) as (client, service):
        brake, batcher, turns = Brake(service, monkeypatch), service.room.engine.batcher, service.turns
        with ThreadPoolExecutor(8) as threads:
            with brake.held():
                admitted = [threads.submit(client.post, "/v1/score", json=asked) for _ in range(8)]
                wait_until(lambda: len(brake.runs) == 1 and len(batcher) + len(turns) == 7)
                refused = [client.post("/v1/score", json=asked) for _ in range(8)]
            assert {answer.status_code for answer in refused} == {429}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
            assert {future.result().status_code for future in admitted} == {200}
        wait_until(lambda: service.gate.items == service.gate.requests == service.gate.bytes == 0)

        # Three whose clients go away while they wait behind another: nothing is run for them.
        with ThreadPoolExecutor(1) as threads, brake.held():
            first = threads.submit(client.post, "/v1/score", json=asked)
            wait_until(lambda: len(brake.runs) == 9)
            gone = [HTTPConnection(client.base_url.host, client.base_url.port) for _ in range(3)]
            for connection in gone:
                connection.request("POST", "/v1/score", json.dumps(asked), {"Content-Type": "application/json"})
            wait_until(lambda: len(batcher) + len(turns) == 3)
            for connection in gone:
                connection.close()
            wait_until(lambda: service.gate.requests == 1)
        assert first.result().status_code == 200
        assert client.post("/v1/score", json=asked).status_code == 200
        assert len(brake.runs) == 10 and turns.idle
        wait_until(lambda: 'route="/v1/score",status="499"} 3.0' in client.get("/metrics").text)
        metrics = client.get("/metrics").text
        assert 'plaudit_refusals_total{reason="too busy",route="/v1/score",status="429"} 8.0' in metrics
        assert 'plaudit_requests_total{route="/v1/score",status="499"} 3.0' in metrics


def test_late(bundle: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(bundle, deadline_s=0.5) as (client, service), Brake(service, monkeypatch).held():
        answer = client.post("/v1/score", data={"prompt": "a cat"}, files=form(pictures[:1]))
        assert answer.status_code == 504 and answer.json()["error"]["reason"] == "too late"
        wait_until(lambda: service.gate.items == service.gate.requests == service.gate.bytes == 0)
        labels = {"route": "/v1/score", "status": "504"}
        assert service.metrics.registry.get_sample_value("plaudit_requests_total", labels) == 1


def test_a_body_that_dawdles_is_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.service.network.front.BODY_TIMEOUT_S", 0.3)
    gate = running.service.gate

    def slow() -> Iterator[bytes]:
        yield b"{"
        wait_until(lambda: gate.bytes == 1)
        wait_until(lambda: gate.bytes == 0)
        yield b"}"

    assert running.client.post("/v1/score", content=slow()).status_code == 408


def test_decoders_that_die_cost_nothing(running: Running, pictures: list[bytes]) -> None:
    client, service = running
    asked = {"prompt": "a cat", "images": [base64_of(data) for data in pictures]}
    before = client.post("/v1/score", json=asked).json()
    for process in decoder_processes(service):
        process.kill()
        process.wait()
    assert client.post("/v1/score", json=asked).json() == before
    assert (service.metrics.registry.get_sample_value("plaudit_decoders_replaced_total") or 0) >= 1
    assert client.get("/health/ready").status_code == 200


def test_decoders_that_do_not_start_are_their_pictures_error(
    bundle: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(bundle, decoders=1) as (client, service):
        pool = service.decoders._pool
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_handle", worker_calls.Unloadable())
            for process in decoder_processes(service):
                process.kill()
                process.wait()
            answer = client.post("/v1/score", data={"prompt": "a"}, files=form(pictures[:1]))
            assert answer.status_code == 200
            assert "do not start" in answer.json()["items"][0]["error"]["message"]
        assert client.post("/v1/score", data={"prompt": "a"}, files=form(pictures[:1])).json()["items"][0]["ok"]


def test_ready_means_that_the_reference_scores_right(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, service = running
    monkeypatch.setattr("runtime.service.answering.state.READY_S", 0.0)
    assert client.get("/health/ready").json()["status"] == "ready"
    engine = service.room.engine
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_reference_scores", engine._reference_scores + 0.1)
        refused = client.get("/health/ready")
        assert refused.status_code == 503 and "off by 1.00e-01" in refused.json()["error"]["message"]
    with monkeypatch.context() as patch:
        patch.setattr(engine.batcher, "_run", lambda works: 1 / 0)
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 200


def test_a_fault_of_ours_is_500_with_a_traceback_in_the_log_only(
    running: Running, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, service = running
    monkeypatch.setattr(service.room.engine.batcher, "_run", lambda works: 1 / 0)
    answer = client.post("/v1/score", data={"prompt": "a"}, files=form(pictures[:1]))
    assert answer.status_code == 500 and answer.json()["error"]["reason"] == "fault"
    assert "ZeroDivision" not in answer.text
    assert any(record.exc_info for record in caplog.records)


def test_a_service_that_drains_is_not_ready_and_serves(bundle: Path, pictures: list[bytes]) -> None:
    with serving(bundle) as (client, service):
        assert client.get("/health/ready").status_code == 200
        service.drain()
        refused = client.get("/health/ready")
        assert refused.status_code == 503 and "shutting down" in refused.json()["error"]["message"]
        assert client.get("/health/live").status_code == 200
        assert client.post("/v1/score", data={"prompt": "a"}, files=form(pictures[:1])).status_code == 200


def test_a_full_queue_does_not_hold_up_readiness(
    bundle: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(bundle, max_batch=1, streams=1) as (client, service):
        assert client.get("/health/ready").status_code == 200
        service._proven_at -= READY_S + 1
        brake, asked = Brake(service, monkeypatch), {"prompt": "a", "images": [base64_of(pictures[0])]}
        with ThreadPoolExecutor(3) as threads, brake.held():
            waiting = [threads.submit(client.post, "/v1/score", json=asked) for _ in range(3)]
            wait_until(lambda: len(service.room.engine.batcher) + len(service.turns) == 2)
            assert client.get("/health/ready").status_code == 200, "answered while nothing else can be"
        assert {future.result().status_code for future in waiting} == {200}


@pytest.mark.parametrize("body, status", [
    (b'{"prompt":"a","images":[' + b"1," * 500_000 + b"1]}", 422),
    (b'{"prompt":"a","images":[' + b"1," * 100_000 + b"1]}", 422),
    (b"{" + b",".join(b'"k%d":1' % i for i in range(50_000)) + b"}", 422),
    (b'{"images":' + b"[" * 500_000, 422),
])  # fmt: skip
def test_bodies_of_many_values_are_refused_with_few_words(running: Running, body: bytes, status: int) -> None:
    answer = running.client.post("/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and len(answer.content) < 2000


def test_a_form_that_cannot_be_read_says_why(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"}
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n'
    answer = running.client.post("/v1/score", content=body, headers=kind)
    assert answer.status_code == 422 and "undefined encoding" in answer.json()["error"]["message"]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", full)
    answer = running.client.post("/v1/score", data={"prompt": "a"}, files=form([small_picture(0)]))
    assert answer.status_code == 507 and "No space left" in answer.json()["error"]["message"]
