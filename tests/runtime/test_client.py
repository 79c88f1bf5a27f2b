"""Both clients in Python, against the service that runs, or a transport that says what a service seldom says."""

import asyncio
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from paths import ROOT
from service_server import TOKEN, Running, base64_of

from embed.spec import InputError
from runtime import client as module
from runtime.catalogue.reader import Catalogue
from runtime.client import AsyncClient, Client, Hit, Id, ItemError, Ranked, Score, ServiceError, Text
from runtime.clients import exchange
from runtime.scoring.scorer import Scorer

Ask = Callable[..., Any]
MAX_ITEMS, MAX_BODY_BYTES = 8, 300_000
BUSY = {"error": {"reason": "too busy", "message": "later"}, "request_id": "7"}


@pytest.fixture(scope="module")
def options(catalogue: Catalogue) -> dict[str, Any]:
    bounds = {"max_items": MAX_ITEMS, "max_queue": 64, "max_body_bytes": MAX_BODY_BYTES}
    return {"catalogue": catalogue.path, "tokens": (TOKEN,), **bounds}


@pytest.fixture(params=[Client, AsyncClient])
def ask(request: pytest.FixtureRequest, running: Running, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Calls a method of either client of the service, or of one that `handler` stands for."""
    monkeypatch.setenv("PLAUDIT_TOKEN", f"{TOKEN}\nanother one")
    url = str(running.client.base_url)

    def ask(method: str, *given: Any, handler: Any = None, made: dict[str, Any] | None = None, **more: Any) -> Any:
        transport = {} if handler is None else {"transport": httpx.MockTransport(handler)}
        if request.param is Client:
            with Client(url, http=httpx.Client(trust_env=False, **transport), **made or {}) as client:
                return getattr(client, method)(*given, **more)

        async def wait() -> Any:
            async with AsyncClient(url, http=httpx.AsyncClient(trust_env=False, **transport), **made or {}) as client:
                return await getattr(client, method)(*given, **more)

        return asyncio.run(wait())

    return ask


def scores(found: list[Score | ItemError]) -> list[float]:
    return [one.score for one in found if isinstance(one, Score)]


def reasons(found: list[Any]) -> list[str | None]:
    return [one.reason if isinstance(one, ItemError) else None for one in found]


def scored(request: httpx.Request, bundle: str = "b") -> httpx.Response:
    """What a service answers that gives each picture as its score what its file holds."""
    held = request.content.split(b"application/octet-stream\r\n\r\n")[1:]
    items = [{"ok": True, "score": float(part.split(b"\r\n")[0]), "of_later": 1} for part in held]
    return httpx.Response(200, json={"items": items, "bundle": bundle, "precision": "fp32"})


def test_scores_in_batches_are_the_scorers(ask: Ask, scorer: Scorer, pictures: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(pictures[1])
    given = [pictures[0], str(path), b"junk", path, tmp_path / "none.png", *pictures[2:]]
    read = [pictures[i] for i in (0, 1, 1, 2, 3, 4, 5)]
    expected = scorer.score_items("a cat", read)
    found = ask("score", given, "a cat", made={"batch": 3})
    assert reasons(found) == [None, None, "unknown format", None, "no such file", None, None, None, None]
    np.testing.assert_allclose(scores(found), expected.scores, atol=1e-5)
    for name in expected.outputs:
        values = [getattr(one, name) for one in found if isinstance(one, Score)]
        np.testing.assert_allclose(values, expected.outputs[name], atol=1e-5)
    prompts = [f"prompt {i}" for i in range(9)]
    found = ask("score", given, prompts, made={"batch": 3})
    np.testing.assert_allclose(
        scores(found), scorer.score([prompts[i] for i in (0, 1, 3, 5, 6, 7, 8)], read), atol=1e-5
    )
    assert ask("score", [tmp_path / "none.png"], "a cat")[0].stage == "read"  # and nothing was asked
    assert ask("score", [], "a cat") == []


def test_each_outcome_stands_where_its_picture_stood(ask: Ask, scorer: Scorer, pictures: list[bytes]) -> None:
    """The service answers files before addresses, which it does not fetch here."""
    url = "http://elsewhere.example/a.png"
    given = [url, pictures[0], "HTTPS://elsewhere.example/b", pictures[1]]
    found = ask("score", given, ["a", "b", "c", "d"])
    assert reasons(found) == ["host not allowed", None, "host not allowed", None]
    np.testing.assert_allclose(scores(found), scorer.score(["b", "d"], pictures[:2]), atol=1e-5)
    images, prompts = ask("embed", [url, pictures[3]], ["a dog", "a dog", "a cat"])
    assert reasons(images) == ["host not allowed", None]
    np.testing.assert_allclose(images[1], scorer.embed_images([pictures[3]])[0], atol=1e-5)
    np.testing.assert_allclose(prompts, scorer.embed_prompts(["a dog", "a dog", "a cat"]), atol=1e-5)
    assert images[1].dtype == prompts[0].dtype == np.float32
    assert len(ask("embed", prompts=["a dog"] * 9, made={"batch": 4}).prompts) == 9


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_ranks_over_batches_are_those_of_one_request(
    ask: Ask, running: Running, pictures: list[bytes], batch: int
) -> None:
    given = [*pictures[:2], b"junk", *pictures[2:], pictures[1]]  # one twice: a tie
    asked = {"prompt": "a dog", "images": [base64_of(data) for data in given]}
    expected = running.client.post("/v1/rank", json=asked).json()["items"]
    found = ask("rank", given, "a dog", made={"batch": batch})
    assert isinstance(found[2], ItemError)
    for one, item in zip(found, expected, strict=True):
        if isinstance(one, Ranked):
            assert one.probability == pytest.approx(item["probability"], abs=1e-5)
            assert one.score == pytest.approx(item["score"], abs=1e-5)
    by_rank = sorted((one for one in found if isinstance(one, Ranked)), key=lambda one: one.rank)
    assert [one.rank for one in by_rank] == [1, 2, 3, 4, 5, 6, 7]
    assert scores(by_rank) == sorted(scores(found), reverse=True)
    assert reasons(ask("rank", [b"junk"], "a dog")) == ["unknown format"]


def test_ties_keep_their_order(ask: Ask) -> None:
    found = ask("rank", [b"1", b"2", b"1", b"2"], handler=scored, made={"batch": 3})
    assert [one.rank for one in found] == [3, 1, 4, 2]
    weights = np.exp([1, 2, 1, 2])
    np.testing.assert_allclose([one.probability for one in found], weights / weights.sum())


def test_similar_is_what_the_service_finds(
    ask: Ask, running: Running, scorer: Scorer, pictures: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(pictures[3])
    vector = scorer.embed_images([pictures[5]])[0]
    wishes: dict[str, Any] = {"k": 4, "popularity_weight": 0.3, "where": "year >= 2005"}
    likes = [{"image": base64_of(pictures[3])}, {"text": "a cat"}, {"id": "p5.png"}, {"vector": vector.tolist()}]
    asked = {"likes": likes, "dislikes": [{"image": base64_of(pictures[0])}], **wishes}
    expected = running.client.post("/v1/similar", json=asked).json()["hits"]
    found = ask("similar", [path, Text("a cat"), Id("p5.png"), vector], [pictures[0]], **wishes)
    assert found == [Hit(**hit) for hit in expected] and len(found) == 4
    with pytest.raises(ServiceError, match="host not allowed"):
        ask("similar", ["http://elsewhere.example/a.png"])
    with pytest.raises(OSError, match=r"none\.png"):
        ask("similar", [tmp_path / "none.png"])


def test_what_is_too_much_for_the_service_is_halved(ask: Ask, scorer: Scorer, pictures: list[bytes]) -> None:
    large = bytes(MAX_BODY_BYTES + 1)
    given = [*pictures, large, *pictures, *pictures]
    found = ask("score", given, "a cat", made={"batch": 100})
    assert reasons(found) == [None] * 6 + ["body too long"] + [None] * 12 and found[6].stage == "limits"
    np.testing.assert_allclose(scores(found), np.tile(scorer.score("a cat", pictures), 3), atol=1e-5)


@pytest.mark.parametrize(("status", "tries"), [(413, 1), (429, 2), (504, 1)])
def test_how_much_is_too_much_is_learned(ask: Ask, monkeypatch: pytest.MonkeyPatch, status: int, tries: int) -> None:
    monkeypatch.setattr(exchange, "FIRST_BACKOFF_S", 0.0)
    monkeypatch.setattr(module, "SIDE_BY_SIDE", 1)
    sizes = []

    def two_at_most(request: httpx.Request) -> httpx.Response:
        answer = scored(request)
        sizes.append(len(answer.json()["items"]))
        return answer if sizes[-1] <= 2 else httpx.Response(status, json=BUSY)

    found = ask("score", [b"%d" % i for i in range(13)], handler=two_at_most, made={"batch": 8})
    assert scores(found) == list(range(13))
    assert sizes == [8] * tries + [4] * tries + [2] * 4 + [2, 1, 2]
    with pytest.raises(ServiceError, match="504"):  # it is no picture's error
        ask("score", [b"1", b"2"], handler=lambda _: httpx.Response(504, json=BUSY))


def test_batches_are_bounded_by_bytes(ask: Ask) -> None:
    sizes = []

    def noted(request: httpx.Request) -> httpx.Response:
        answer = scored(request)
        sizes.append(len(answer.json()["items"]))
        return answer

    given = [b"%040d" % i for i in range(7)] + [b"%0400d" % 7, b"8", b"9"]
    found = ask("score", given, handler=noted, made={"batch_bytes": 100})
    assert scores(found) == list(range(10))
    assert sorted(sizes) == [1, 1, 2, 2, 2, 2]


def test_the_examples_of_the_docs_work(
    running: Running, pictures: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAUDIT_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    for name, data in {"a.webp": pictures[0], "b.webp": pictures[1]}.items():
        Path(name).write_bytes(data)
    page = (ROOT / "docs/clients.md").read_text().replace("images/1f436.webp", "p4.png")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    found: dict[str, Any] = {"print": lambda score: scores.append(score), "scores": (scores := [])}
    exec(example.replace("http://localhost:8000", str(running.client.base_url)), found)
    assert len(scores) == len(found["ranks"]) == 2 and len(found["hits"]) == 5
    assert np.linalg.norm(found["images"][0]) == pytest.approx(1) == pytest.approx(np.linalg.norm(found["prompts"][0]))
    (body,) = re.findall(r"/v1/similar -d '\n(.*?)'", page, re.DOTALL)
    answer = running.client.post("/v1/similar", json=json.loads(body)).json()
    shown = set(re.findall(r'"(\w+)":', page[page.index(body) + len(body) :]))
    assert {*answer, *answer["hits"][0]} == shown


def test_a_busy_service_is_asked_again(
    running: Running, scorer: Scorer, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = running.service.gate
    slept = []
    with ExitStack() as held, Client(str(running.client.base_url), TOKEN) as client:
        held.enter_context(gate.admit(items=gate.max_items))

        def sleep(wait_s: float) -> None:
            slept.append(wait_s)
            held.close()

        monkeypatch.setattr(module.time, "sleep", sleep)
        found = client.score(pictures, "a cat")
    np.testing.assert_allclose(scores(found), scorer.score("a cat", pictures), atol=1e-5)
    (wait_s,) = slept
    assert wait_s >= 1  # what Retry-After said


def test_what_broke_on_its_way_is_sent_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "FIRST_BACKOFF_S", 0.0)
    seen = list[httpx.Request]()

    def broken(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) == 1:
            raise httpx.ReadError("reset by peer")
        return httpx.Response(503) if len(seen) == 2 else scored(request)

    assert scores(ask("score", [b"5", b"7"], "a cat", handler=broken)) == [5, 7]
    bodies = {(request.content, request.headers["x-request-id"]) for request in seen}
    assert len(seen) == 3 and len(bodies) == 1
    del seen[:]
    with pytest.raises(ServiceError) as caught:
        ask("score", [b"5"], handler=lambda request: httpx.Response(429, json=BUSY), made={"retries": 0})
    assert (caught.value.status, caught.value.reason, caught.value.message) == (429, "too busy", "later")


def test_errors_of_whole_requests_say_which(ask: Ask, running: Running, pictures: list[bytes]) -> None:
    with pytest.raises(ServiceError, match=r"401 no valid token: this token is not one of") as caught:
        ask("score", pictures[:1], "a cat", made={"token": "another"})
    assert caught.value.status == 401
    with pytest.raises(ServiceError, match=r"422 invalid request: .*k: Input should be"):
        ask("similar", [Text("a cat")], k=0)
    with pytest.raises(ServiceError, match="200 another bundle"):
        ask("score", [b"1", b"2"], handler=lambda r: scored(r, str(b"1\r\n--" in r.content)), made={"batch": 1})
    for body in (b"<html>", b"[]", b'{"items": []}', b'{"items": [{}], "bundle": "", "precision": ""}'):
        for status in (200, 502):
            with pytest.raises(ServiceError, match=f"{status} unexpected answer: .*not as plaudit"):
                ask("score", [b"1"], handler=lambda _: httpx.Response(status, content=body))  # noqa: B023
    with pytest.raises(ServiceError, match=r"^no answer: .*ReadTimeout: slow") as caught:
        ask("score", [b"1"], handler=fails(httpx.ReadTimeout("slow")))
    assert caught.value.status is None and len(caught.value.request_id) == 32


def fails(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    return fail


def test_ready_is_asked_once(ask: Ask) -> None:
    assert ask("ready") is True
    assert ask("ready", handler=lambda _: httpx.Response(503)) is False
    assert ask("ready", handler=fails(httpx.ConnectError("refused"))) is False


def test_what_makes_no_sense_is_not_asked(ask: Ask, pictures: list[bytes]) -> None:
    for method, given in {"score": ["a.png"], "embed": [pictures[0]], "similar": ["a.png"]}.items():
        with pytest.raises(InputError, match="wanted a list"):
            ask(method, *given)
    with pytest.raises(InputError, match="wanted a list"):
        ask("embed", prompts="a cat")
    with pytest.raises(InputError, match="got 2 prompts for 3 pictures"):
        ask("score", pictures[:3], ["a", "b"])
    with pytest.raises(InputError, match="batch is 0"):
        ask("score", pictures, "a", made={"batch": 0})


def test_batches_go_side_by_side_and_end_together() -> None:
    under_way = most = 0

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await asyncio.sleep(0 if b"\r\n\r\n13\r\n" in request.content else 0.01)
        finally:
            under_way -= 1
        return httpx.Response(422, json=BUSY) if b"\r\n\r\n13\r\n" in request.content else scored(request)

    async def ask(count: int) -> list[Score | ItemError]:
        http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
        async with AsyncClient("http://service", batch=1, http=http) as client:
            return await client.score([b"%d" % i for i in range(count)])

    assert scores(asyncio.run(ask(12))) == list(range(12))
    assert most == module.SIDE_BY_SIDE

    async def fail() -> int:
        with pytest.raises(ServiceError, match="422"):
            await ask(100)
        return len(asyncio.all_tasks())

    assert asyncio.run(fail()) == 1 and under_way == 0


def test_it_needs_nothing_of_the_service() -> None:
    code = "import sys, json, runtime.client; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "onnxruntime", "faiss", "fastapi", "pydantic", "pyarrow", "PIL"} & set(json.loads(done.stdout))


def test_without_httpx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "runtime.client")
    with pytest.raises(ModuleNotFoundError, match=r"run: pip install 'plaudit\[client\]'"):
        importlib.import_module("runtime.client")
