"""The running service over loopback: right answers, errors one by one, and what it says of itself."""

import base64
import io
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from embed_image_files import encoded
from PIL import Image
from service_server import TOKEN, Running, base64_of, form, serving
from waiting import wait_until

from embed.arrays import softmax
from embed.inputs.images import Limits
from runtime.scoring.scorer import Scorer
from runtime.service.answering import engine
from runtime.service.network import fetching


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    limits = Limits(max_bytes=100_000, max_pixels=1_000_000)
    return {"limits": limits, "max_items": 8, "max_body_bytes": 400_000, "max_prompt_chars": 100}


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


def test_base64_as_clients_send_it_and_avif(running: Running, scorer: Scorer, pictures: list[bytes]) -> None:
    client, _ = running
    with Image.open(io.BytesIO(pictures[1])) as image:
        avif = encoded(image.convert("RGB"), "AVIF")
    lines = base64.encodebytes(pictures[0]).decode()
    forms = [f"data:image/png;base64,{base64_of(pictures[0])}", lines, base64_of(avif)]
    answer = client.post("/v1/score", json={"prompt": "a cat", "images": forms}).json()
    expected = scorer.score("a cat", [pictures[0], pictures[0], avif])
    np.testing.assert_allclose([item["score"] for item in answer["items"]], expected, atol=1e-5)


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
    done = threading.Event()

    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/hangs":
                done.wait()
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
        with serving(bundle, url_hosts=(host,)) as (client, service):
            monkeypatch.setattr(fetching, "resolve_host", loopback)
            urls = [f"http://{host}/{i}" for i in range(6)]
            asked = {"prompt": "a", "images": [{"url": url} for url in urls]}
            refused = client.post("/v1/score", json=asked)
            assert [item["error"]["reason"] for item in refused.json()["items"]] == ["host not allowed"] * 6
            monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
            by_json = client.post("/v1/score", json=asked)
            by_form = client.post("/v1/score", data={"prompt": "a", "url": urls}, files=form(pictures[:1]))
            monkeypatch.setattr(service.fetcher, "_timeout_s", 0.2)
            hangs = {"prompt": "a", "images": [base64_of(pictures[0]), {"url": f"http://{host}/hangs"}]}
            beside, late = client.post("/v1/score", json=hangs).json()["items"]
    finally:
        done.set()
        server.shutdown()
        thread.join()
        server.server_close()
    expected = scorer.score("a", [*pictures, pictures[0]])
    np.testing.assert_allclose([item["score"] for item in by_json.json()["items"]], expected[:6], atol=1e-5)
    assert beside["ok"] and late["error"]["reason"] == "fetch failed"
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
        ("/v1/score", {"files": {"prompt": b"x"}}, 422, "prompt: wanted text"),
        ("/v1/score", {"files": [("images", b"x")] * 10}, 413, "Too many files"),
        ("/v1/score", {"content": bytes(400_001)}, 413, "400001 bytes, at most 400000"),
        ("/v1/embed", {"json": {}}, 422, "the request has no items"),
        ("/v1/embed", {"json": {"prompts": ["\ud800"]}}, 422, "Invalid JSON"),
        ("/v1/similar", {"json": {}}, 404, "Not Found: /docs shows the routes that this service has"),
        ("/admin/reload", {}, 404, "Not Found"),
    ],
)
def test_requests_that_cannot_be_answered(
    running: Running, path: str, request_: dict[str, Any], status: int, message: str
) -> None:
    if "json" in request_:  # httpx would not send half a surrogate pair
        request_ = {"content": json.dumps(request_["json"]), "headers": {"content-type": "application/json"}}
    answer = running.client.post(path, **request_)
    assert answer.status_code == status
    document = answer.json()
    assert message in document["error"]["message"]
    assert document["request_id"] == answer.headers["x-request-id"]


def test_a_body_without_length_is_cut_off_at_the_limit(running: Running) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(10_000)

    try:
        status = running.client.post("/v1/score", content=endless()).status_code
    except httpx.WriteError:  # the connection was closed before all was sent
        status = 413
    assert status == 413
    wait_until(lambda: running.service.gate.bytes == 0)


def test_the_examples_of_the_documentation_work(running: Running) -> None:
    client, _ = running
    document = client.get("/openapi.json").json()
    for items in ("ScoreItem", "RankItem"):
        assert "standard error" in document["components"]["schemas"][items]["properties"]["uncertainty"]["description"]
    tried = 0
    for path, operations in document["paths"].items():
        for content in operations.get("post", {}).get("requestBody", {}).get("content", {}).values():
            if "$ref" in content["schema"]:
                schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
                for example in schema["examples"]:
                    assert client.post(path, json=example).status_code == 200
                    tried += 1
    assert tried == 4
    assert client.get("/docs").status_code == 200


def test_every_get_route_answers_head_with_the_same_headers_and_no_body(running: Running) -> None:
    client, _ = running
    described = client.get("/openapi.json").json()["paths"]
    paths = [path for path, by_method in described.items() if "get" in by_method]
    assert {"/health/live", "/health/ready", "/metrics", "/v1/models"} <= set(paths)
    for path in (*paths, "/docs", "/docs/docs.js", "/openapi.json"):
        whole, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert "content-length" in head.headers
    assert not any("head" in by_method for by_method in described.values())


def test_pages_of_named_origins_may_ask_and_read_also_what_is_refused(
    bundle: Path, pictures: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    ours, others = {"Origin": "https://a.example"}, {"Origin": "https://b.example"}
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    options = {"tokens": (TOKEN,), "origins": ("https://a.example", "http://localhost:3000"), "max_body_bytes": 50_000}
    with serving(bundle, **options) as (client, service), caplog.at_level("DEBUG", "plaudit.service"):
        token = client.headers.pop("Authorization")
        asked = client.options("/v1/score", headers=ours | preflight)
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == ours["Origin"]
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        refused = client.options("/v1/score", headers=others | preflight)
        assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
        assert not caplog.records and service.metrics.requests.collect()[0].samples == []  # no work

        question = {"data": {"prompt": "a"}, "files": form(pictures[:1])}
        late = client.post("/v1/score", headers=ours, content=bytes(60_000))
        answers = [client.post("/v1/score", headers=ours, **question), late]  # 401 both: the token comes first
        client.headers["Authorization"] = token
        answers.append(client.post("/v1/score", headers=ours, content=bytes(60_000)))
        with service.gate.admit(items=service.gate.max_items):
            answers.append(client.post("/v1/score", headers=ours, **question))
        answers.append(client.post("/v1/score", headers=ours, **question))
        assert [answer.status_code for answer in answers] == [401, 401, 413, 429, 200]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == ours["Origin"]
            assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
            assert "Origin" in answer.headers["vary"] and "access-control-allow-credentials" not in answer.headers
        stranger = client.post("/v1/score", headers=others, **question)
        assert stranger.status_code == 200 and "access-control-allow-origin" not in stranger.headers


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


def test_a_lone_request_has_all_cores(bundle: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    seen, run_batch = [], engine.run_batch

    def noted(scorer: Scorer, works: Any, threads: int | None = None) -> Any:
        seen.append(threads)
        return run_batch(scorer, works, threads)

    monkeypatch.setattr(engine, "run_batch", noted)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    with serving(bundle, streams=2, threads=None) as (client, service):
        sessions = service.room.engine.scorer._sessions._open
        assert {threads for part, threads in sessions if part == "image"} == {2, 4}
        del seen[:]
        assert client.post("/v1/score", data={"prompt": "a cat"}, files=form(pictures[:1])).status_code == 200
        assert seen == [4]
