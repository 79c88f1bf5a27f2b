"""What Prometheus and the log are told: refusals with route and reason, stages, builds, and whose request it was."""

import logging
from pathlib import Path
from typing import Any

import pytest
from service_server import TOKEN, Running, decoder_processes, form, serving
from waiting import wait_until

from embed.spec import InputError
from runtime.config import ServiceConfig

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    return {"tokens": (TOKEN,), "max_body_bytes": 1 << 20, "decoders": 1}


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "plaudit.service")


def said(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """The fields of what is logged under that name; a request's come once its answer is sent."""

    def found() -> list[dict[str, Any]]:
        return [vars(record)["fields"] for record in caplog.records if record.getMessage() == event]

    wait_until(lambda: bool(found()))
    return found()


def value(running: Running, name: str, **labels: str) -> float:
    return running.service.metrics.registry.get_sample_value(f"plaudit_{name}", labels) or 0


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "route", "status", "reason"),
    [
        ("POST", "/v1/score", {"Authorization": "Bearer x"}, b"{}", "/v1/score", 401, "no valid token"),
        ("POST", "/v1/score", JSON, bytes(2 << 20), "/v1/score", 413, "body too long"),
        ("POST", "/v1/rank", {"Content-Type": "text/x"}, b"x", "/v1/rank", 415, "wrong type"),
        ("POST", "/v1/embed", JSON, b"{", "/v1/embed", 422, "invalid request"),
        ("GET", "/v1/embed", {}, b"", "/v1/embed", 405, "bad request"),
        ("GET", "/v1/strange/path", {}, b"", "other", 404, "bad request"),
    ],
)
def test_refusals_have_their_route_and_reason(
    running: Running,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
    route: str,
    status: int,
    reason: str,
) -> None:
    labels = {"route": route, "status": str(status), "reason": reason}
    before = value(running, "refusals_total", **labels)
    assert running.client.request(method, path, headers=headers, content=body).status_code == status
    assert [line.get("reason") for line in said(caplog, "request")] == [reason]
    assert value(running, "refusals_total", **labels) == before + 1


def test_what_the_metrics_tell_of_this_process(running: Running, pictures: list[bytes]) -> None:
    running.client.post("/v1/score", data={"prompt": "a"}, files=form(pictures))
    text = running.client.get("/metrics").text
    digest = running.service.room.engine.scorer.bundle.digest
    assert f'plaudit_bundle_info{{bundle="{digest}",precision="fp32"}} 1.0' in text
    assert "plaudit_build_info{" in text and "python_info{" in text and "process_resident_memory_bytes" in text
    for stage in ("decode", "batch"):
        assert value(running, "stage_seconds_count", stage=stage) >= len(pictures)


def test_the_log_names_client_and_agent_in_bounds(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    agent = 'an "agent"\t\xe9' + "x" * 1000
    headers = {"User-Agent": agent.encode("latin-1"), "X-Forwarded-For": "203.0.113.9"}
    running.client.post("/v1/nothing", headers=headers)
    (line,) = said(caplog, "request")
    assert line["client"] == "127.0.0.1", "nobody said that it could be trusted to name another"
    assert line["agent"] == agent[:200]


def test_a_trusted_proxy_names_the_client(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(bundle, trusted_proxies=("127.0.0.0/8",)) as (client, _):
        client.post("/v1/nothing", headers={"X-Forwarded-For": "203.0.113.9"})
    assert [line["client"] for line in said(caplog, "request")] == ["203.0.113.9"]
    with pytest.raises(InputError, match=r"--trusted-proxy somewhere: .* wanted such as"):
        ServiceConfig(bundle, trusted_proxies=("somewhere",))


def test_a_lost_decoder_is_logged_with_the_request_that_it_worked_for(
    running: Running, pictures: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for process in decoder_processes(running.service):
        process.kill()
        process.wait()
    headers = {"X-Request-Id": "who-asked"}
    answer = running.client.post("/v1/score", headers=headers, data={"prompt": "a"}, files=form(pictures[:1]))
    assert answer.status_code == 200 and answer.headers["x-request-id"] == "who-asked"
    assert [line["request_id"] for line in said(caplog, "a decoder died or stalled")] == ["who-asked"]
