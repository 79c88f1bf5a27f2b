"""The running service over loopback: right answers, errors one by one, limits, overload, reload, readiness."""

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from export_tiny import changed_manifest, make_bundle
from service_server import TOKEN, base64_of, serving, small_picture

from embed.images import Limits
from embed.spec import InputError
from runtime.scorer import Scorer, softmax
from runtime.service_state import Service, ServiceConfig, sizes

Running = tuple[httpx.Client, Service]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [small_picture(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def running(bundle: Path) -> Iterator[Running]:
    limits = Limits(max_bytes=100_000, max_pixels=1_000_000)
    with serving(bundle, limits=limits, max_items=8, max_body_bytes=400_000, max_prompt_chars=100) as running:
        yield running


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> Scorer:
    return Scorer.load(bundle, threads=1)


def form(pictures: list[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{i}.png", data)) for i, data in enumerate(pictures)]


def test_scores_are_the_scorers(running: Running, scorer: Scorer, pictures: list[bytes]) -> None:
    client, service = running
    expected = scorer.score_items("a cat", pictures)
    by_json = client.post("/v1/score", json={"prompt": "a cat", "images": [base64_of(data) for data in pictures]})
    by_form = client.post("/v1/score", data={"prompt": "a cat"}, files=form(pictures))
    assert by_json.status_code == by_form.status_code == 200
    for answer in (by_json.json(), by_form.json()):
        assert answer["bundle"] == service.room.engine.scorer.bundle.digest and answer["precision"] == "fp32"
        for name, values in expected.outputs.items():
            np.testing.assert_allclose([item[name] for item in answer["items"]], values, atol=1e-5)
        assert all(item["ok"] for item in answer["items"])


def test_each_picture_under_its_own_prompt_from_many_clients_at_once(
    running: Running, scorer: Scorer, pictures: list[bytes]
) -> None:
    client, service = running
    prompts = [f"prompt number {i}" for i in range(24)]
    expected = scorer.score(prompts, [pictures[i % 6] for i in range(24)])

    def ask(i: int) -> float:
        answer = client.post("/v1/score", data={"prompt": prompts[i]}, files=form([pictures[i % 6]]))
        return float(answer.json()["items"][0]["score"])

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(24)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    several = client.post("/v1/score", data={"prompts": prompts[:6]}, files=form(pictures))
    np.testing.assert_allclose([item["score"] for item in several.json()["items"]], expected[:6], atol=1e-5)
    sizes = service.metrics.registry.get_sample_value("plaudit_batch_size_sum")
    runs = service.metrics.registry.get_sample_value("plaudit_batch_size_count")
    assert sizes and runs and sizes > runs  # some ran together


def test_a_bad_picture_is_an_error_of_its_own(running: Running, scorer: Scorer, pictures: list[bytes]) -> None:
    client, _ = running
    good = base64_of(pictures[0])
    bad = [
        ("no base64!", "read", "no base64"),
        (base64_of(b"junk"), "decode", "unknown format"),
        (base64_of(pictures[0][:-50]), "decode", "truncated"),
        (base64_of(b"P6 2000 2000 255\n"), "limits", "too many pixels"),
        (base64_of(bytes(100_001)), "limits", "too many bytes"),
        ({"url": "http://169.254.169.254/latest"}, "read", "host not allowed"),
        ("", "read", "empty file"),
    ]
    images = [good, *(picture for picture, _, _ in bad)]
    answer = client.post("/v1/score", json={"prompt": "a cat", "images": images})
    assert answer.status_code == 200
    first, *others = answer.json()["items"]
    assert first["score"] == pytest.approx(float(scorer.score("a cat", pictures[:1])[0]), abs=1e-5)
    assert [item["ok"] for item in others] == [False] * len(bad)
    found = [(item["error"]["stage"], item["error"]["reason"]) for item in others]
    assert found == [(stage, reason) for _, stage, reason in bad]
    metrics = client.get("/metrics").text
    assert 'plaudit_decode_errors_total{reason="truncated",stage="decode"}' in metrics


def test_pictures_by_url(bundle: Path, scorer: Scorer, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/hangs":
                time.sleep(1.5)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pictures[int(self.path[1:])])

        def log_message(self, *_: object) -> None:
            pass

    async def loopback(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host = f"pictures.example:{server.server_port}"
    try:
        with serving(bundle, url_hosts=(host,), deadline_s=2.0) as (client, service):
            monkeypatch.setattr(service.fetcher, "_resolve", loopback)
            urls = [f"http://{host}/{path}" for path in (*range(6), "hangs")]
            refused = client.post("/v1/score", json={"prompt": "a", "images": [{"url": url} for url in urls]})
            assert [item["error"]["reason"] for item in refused.json()["items"]] == ["host not allowed"] * 7
            monkeypatch.setattr(service.fetcher, "_is_allowed", lambda address: address == "127.0.0.1")
            by_json = client.post("/v1/score", json={"prompt": "a", "images": [{"url": url} for url in urls]})
            by_form = client.post("/v1/score", data={"prompt": "a", "url": urls[:6]}, files=form(pictures[:1]))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    expected = scorer.score("a", [*pictures, pictures[0]])
    *items, hangs = by_json.json()["items"]
    np.testing.assert_allclose([item["score"] for item in items], expected[:6], atol=1e-5)
    assert hangs["error"]["reason"] == "fetch failed"
    found = [item["score"] for item in by_form.json()["items"]]
    np.testing.assert_allclose(found, [expected[0], *expected[:6]], atol=1e-5)


def test_rank_and_probabilities(running: Running, scorer: Scorer, pictures: list[bytes]) -> None:
    client, _ = running
    expected = scorer.score_items("a dog", pictures)
    images = [base64_of(data) for data in pictures]
    answer = client.post("/v1/rank", json={"prompt": "a dog", "images": [*images[:3], "?", *images[3:]]}).json()
    order = [i + (i >= 3) for i in np.argsort(-expected.scores, kind="stable").tolist()]
    assert answer["order"] == order
    items = [item for item in answer["items"] if item["ok"]]
    assert len(items) == 6 and "rank" not in answer["items"][3]
    assert [answer["items"][i]["rank"] for i in order] == [1, 2, 3, 4, 5, 6]
    wanted = softmax(expected.outputs["calibrated_score"])
    np.testing.assert_allclose([item["probability"] for item in items], wanted, atol=1e-4)


def test_vectors_are_the_scorers(running: Running, scorer: Scorer, pictures: list[bytes]) -> None:
    client, _ = running
    asked = {"images": [base64_of(pictures[0]), "?", base64_of(pictures[1])], "prompts": ["a cat", "a dog"]}
    answer = client.post("/v1/embed", json=asked).json()
    assert [item["ok"] for item in answer["images"]] == [True, False, True]
    images = [item["embedding"] for item in answer["images"] if item["ok"]]
    np.testing.assert_allclose(images, scorer.embed_images(pictures[:2]), atol=1e-5)
    prompts = [item["embedding"] for item in answer["prompts"]]
    np.testing.assert_allclose(prompts, scorer.embed_prompts(["a cat", "a dog"]), atol=1e-5)
    by_form = client.post("/v1/embed", data={"prompt": "a cat"}, files=form(pictures[:1])).json()
    np.testing.assert_allclose(by_form["images"][0]["embedding"], images[0], atol=1e-5)
    alone = client.post("/v1/embed", json={"prompts": ["a dog"]})
    assert alone.status_code == 200 and alone.json()["images"] == []
    np.testing.assert_allclose(alone.json()["prompts"][0]["embedding"], prompts[1], atol=1e-5)


@pytest.mark.parametrize(
    ("path", "request_", "status", "message"),
    [
        ("/v1/score", {"json": {"images": ["aa=="]}}, 422, "scores pictures under a prompt"),
        ("/v1/score", {"json": {"prompt": "x", "images": []}}, 422, "images"),
        ("/v1/score", {"json": {"prompt": "x" * 101, "images": ["aa=="]}}, 422, "101 characters, at most 100"),
        ("/v1/score", {"json": {"prompt": "x", "images": ["aa=="] * 9}}, 413, "got 9, at most 8"),
        ("/v1/score", {"json": {"prompt": ["a", "b"], "images": ["aa=="] * 3}}, 422, "2 prompts for 3 pictures"),
        ("/v1/rank", {"json": {"prompt": ["a", "b"], "images": ["aa=="] * 2}}, 422, "wanted one to rank under"),
        ("/v1/score", {"json": {"prompt": "x", "images": ["aa=="], "more": 1}}, 422, "more: Extra inputs"),
        ("/v1/score", {"json": {"prompt": "x", "images": [7]}}, 422, "images.0"),
        ("/v1/score", {"content": b"{", "headers": {"content-type": "application/json"}}, 422, "Invalid JSON"),
        ("/v1/score", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "text/plain"),
        ("/v1/score", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ("/v1/score", {"data": {"prompt": "x"}, "files": {"picture": b"x"}}, 422, "picture: unknown field"),
        ("/v1/score", {"files": {"prompt": b"x"}}, 422, "prompts: wanted text"),
        ("/v1/score", {"content": bytes(400_001)}, 413, "400001 bytes, at most 400000"),
        ("/v1/embed", {"json": {}}, 422, "nothing to do"),
        ("/v1/embed", {"json": {"prompts": ["\ud800"]}}, 422, "Invalid JSON"),
        ("/v1/similar", {"json": {}}, 404, "Not Found"),
        ("/admin/reload", {}, 404, "Not Found"),
    ],
)
def test_requests_that_cannot_be_answered(
    running: Running, path: str, request_: dict[str, Any], status: int, message: str
) -> None:
    if "json" in request_:  # httpx would not send half a surrogate pair
        request_ = {"content": json.dumps(request_["json"]), "headers": {"content-type": "application/json"}}
    answer = running[0].post(path, **request_)
    assert answer.status_code == status
    document = answer.json()
    assert message in document["error"]["message"]
    assert document["request_id"] == answer.headers["x-request-id"]


def test_a_body_without_length_is_cut_off_at_the_limit(running: Running) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(10_000)

    try:
        status = running[0].post("/v1/score", content=endless()).status_code
    except httpx.WriteError:  # the connection was closed before all was sent
        status = 413
    assert status == 413
    assert running[1].gate.bytes == 0


def test_the_examples_of_the_documentation_work(running: Running) -> None:
    client, _ = running
    document = client.get("/openapi.json").json()
    tried = 0
    for path, operations in document["paths"].items():
        for content in operations.get("post", {}).get("requestBody", {}).get("content", {}).values():
            if "$ref" in content["schema"]:
                schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
                for example in schema["examples"]:
                    assert client.post(path, json=example).status_code == 200
                    tried += 1
    assert tried == 3
    assert client.get("/docs").status_code == 200


def test_log_lines_name_requests_but_never_what_they_hold(
    running: Running, pictures: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = running
    picture = base64_of(pictures[0])
    with caplog.at_level(logging.DEBUG, "plaudit"):
        answer = client.post(
            "/v1/score", json={"prompt": "a secret cat", "images": [picture]}, headers={"X-Request-Id": "mine-7"}
        )
        odd = client.get("/health/live", headers={"X-Request-Id": "in valid"})
        wait_until(lambda: len(caplog.records) >= 2)
    assert answer.headers["x-request-id"] == "mine-7" and odd.headers["x-request-id"] != "in valid"
    fields = [record.fields for record in caplog.records if getattr(record, "fields", {}).get("path") == "/v1/score"]  # type: ignore[attr-defined]
    assert [(line["request_id"], line["status"], line["items"], line["errors"]) for line in fields] == [
        ("mine-7", 200, 1, 0)
    ]
    text = " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "secret" not in text and picture[:40] not in text


def wait_until(true: Any, timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def test_only_the_token_opens(bundle: Path, pictures: list[bytes]) -> None:
    with serving(bundle, token=TOKEN) as (client, _):
        asked = {"prompt": "a cat", "images": [base64_of(pictures[0])]}
        assert client.post("/v1/score", json=asked).status_code == 200
        for wrong in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"):
            headers = {"Authorization": wrong.encode("latin-1")}
            refused = client.post("/v1/score", json=asked, headers=headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert client.post("/admin/reload", headers=headers).status_code == 401
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert client.get(path, headers={"Authorization": ""}).status_code == 200
        secured = client.get("/openapi.json").json()["paths"]["/v1/score"]["post"]["security"]
        assert secured == [{"token": []}]


class Brake:
    """Holds the session until it is let go."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.runs: list[int] = []
        batcher = service.room.engine.batcher
        run = batcher._run

        def held(works: Any) -> Any:
            self.runs.append(len(works))
            assert self.go.wait(30)
            return run(works)

        monkeypatch.setattr(batcher, "_run", held)


def test_full_late_and_gone(bundle: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(bundle, max_queue=8, max_items=8, max_batch=1, streams=1, deadline_s=1.5) as (client, service):
        asked = {"prompt": "a cat", "images": [base64_of(pictures[0])]}
        assert client.post("/v1/score", json=asked).status_code == 200
        brake = Brake(service, monkeypatch)
        with ThreadPoolExecutor(16) as pool:
            started = time.monotonic()
            answers = list(pool.map(lambda _: client.post("/v1/score", json=asked), range(16)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [429] * 8 + [504] * 8 and time.monotonic() - started < 10
        assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)
        assert service.gate.items == service.gate.requests == service.gate.bytes == 0

        # Its own timeout makes this client go away; nothing is run for it.
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/score", json=asked, timeout=0.3)
        wait_until(lambda: service.gate.items == 0)
        ran = len(brake.runs)
        brake.go.set()
        assert client.post("/v1/score", json=asked).status_code == 200
        # One run was under way all the time; those of the seven that came too late, and of the one gone, never began.
        assert len(brake.runs) == ran + 1
        assert service.room.engine.batcher.dropped == 8
        metrics = client.get("/metrics").text
        assert 'plaudit_requests_total{route="/v1/score",status="504"} 8.0' in metrics
        assert 'plaudit_requests_total{route="/v1/score",status="499"} 1.0' in metrics


def test_a_body_that_dawdles_is_refused(bundle: Path, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.service_front.BODY_TIMEOUT_S", 0.3)

    def slow() -> Iterator[bytes]:
        yield b"{"
        time.sleep(0.8)
        yield b"}"

    assert running[0].post("/v1/score", content=slow()).status_code == 408


def test_decoders_that_die_cost_nothing(running: Running, pictures: list[bytes]) -> None:
    client, service = running
    asked = {"prompt": "a cat", "images": [base64_of(data) for data in pictures]}
    before = client.post("/v1/score", json=asked).json()
    pids = [worker.process.pid for worker in service.decoders._idle]
    for pid in pids:
        assert pid
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert client.post("/v1/score", json=asked).json() == before
    assert (service.metrics.registry.get_sample_value("plaudit_decoders_replaced_total") or 0) >= 1
    assert client.get("/health/ready").status_code == 200


def test_ready_means_that_the_reference_scores_right(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client, service = running
    monkeypatch.setattr("runtime.service_state.READY_S", 0.0)
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


@pytest.fixture
def two_bundles(bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two that differ in their manifests only."""
    folders = (tmp_path / "one", tmp_path / "two")
    for folder in folders:
        shutil.copytree(bundle, folder)
        changed_manifest(folder, lambda manifest, name=folder.name: manifest["provenance"].update(training=name))
    return folders


def test_reload_drops_no_request(two_bundles: tuple[Path, Path], tmp_path: Path, pictures: list[bytes]) -> None:
    current = tmp_path / "current"
    current.symlink_to(two_bundles[0])
    with serving(current, token=TOKEN) as (client, service):
        stop = threading.Event()
        statuses: list[int] = []
        digests: list[str] = []

        def ask() -> None:
            while not stop.is_set():
                answer = client.post("/v1/score", data={"prompt": "a"}, files=form(pictures[:2]))
                statuses.append(answer.status_code)
                digests.append(answer.json()["bundle"])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(statuses) > 5)
        first = service.room.engine
        current.unlink()
        current.symlink_to(two_bundles[1])
        shutil.rmtree(two_bundles[0])  # nothing of the old one is read any more
        new = client.post("/admin/reload").json()["bundle"]
        after = len(statuses)
        wait_until(lambda: len(statuses) > after + 8)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200} and set(digests) == {first.scorer.bundle.digest, new}
        assert digests[-1] == new != first.scorer.bundle.digest
        assert first.batcher._threads._shutdown and first.users == 0

        (two_bundles[1] / "head.onnx").write_bytes(b"damaged")
        refused = client.post("/admin/reload")
        assert refused.status_code == 422 and "is damaged" in refused.json()["error"]["message"]
        assert client.post("/v1/score", data={"prompt": "a"}, files=form(pictures[:1])).json()["bundle"] == new
        assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_queue": 3, "max_items": 4}, "max_queue is 3; wanted at least max_items"),
        ({"max_pending_bytes": 10}, "max_pending_bytes is 10"),
        ({"deadline_s": 0}, "deadline_s is 0"),
        ({"token": ""}, "the token is empty"),
    ],
)
def test_a_configuration_that_cannot_serve(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ServiceConfig(Path("bundle"), **options)


@pytest.mark.parametrize(
    ("options", "cores", "expected"),
    [
        ({}, 1, (8, 1, 1)),
        ({}, 2, (8, 2, 1)),
        ({}, 4, (8, 2, 2)),
        ({}, 16, (8, 4, 4)),
        ({"threads": 2}, 2, (8, 1, 2)),
        ({"streams": 3}, 12, (8, 3, 4)),
        ({"streams": 1, "threads": 1, "max_batch": 5}, 8, (5, 1, 1)),
    ],
)
def test_runs_side_by_side_share_the_cores(options: dict[str, int], cores: int, expected: tuple[int, int, int]) -> None:
    use = sizes(ServiceConfig(Path("bundle"), providers=("cpu",), **options), cores)
    assert (use.max_batch, use.streams, use.threads) == expected
