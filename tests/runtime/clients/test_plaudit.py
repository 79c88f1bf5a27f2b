"""The client in JavaScript, run by Node.js against the service that runs, or against replies of the test."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from service_server import TOKEN, Running, base64_of

from runtime.catalogue.reader import Catalogue
from runtime.scoring.scorer import Scorer

NODE = shutil.which("node")
HERE = ROOT / "tests/runtime/clients"
MAX_BODY_BYTES = 300_000

pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")


@pytest.fixture(scope="module")
def options(catalogue: Catalogue) -> dict[str, Any]:
    bounds = {"max_items": 8, "max_queue": 64, "max_body_bytes": MAX_BODY_BYTES}
    return {"catalogue": catalogue.path, "tokens": (TOKEN,), **bounds}


def run(
    url: object, *calls: tuple[Any, ...], replies: Any = None, token: str = TOKEN, **options: Any
) -> dict[str, Any]:
    asked = {"url": str(url), "options": {"token": token, **options}, "calls": calls, "replies": replies}
    command = [str(NODE), HERE / "calls.mjs"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def ask(url: object, *calls: tuple[Any, ...], **more: Any) -> list[Any]:
    """What was found by each call, all of which must succeed."""
    done = run(url, *calls, **more)["done"]
    assert all("found" in one for one in done), done
    return [one["found"] for one in done]


def picture(data: bytes) -> dict[str, str]:
    return {"base64": base64_of(data)}


def scores(items: list[dict[str, Any]]) -> list[float]:
    return [item["score"] for item in items if item["ok"]]


def reasons(items: list[dict[str, Any]]) -> list[str | None]:
    return [None if item["ok"] else item["error"]["reason"] for item in items]


def answer(*scores: float, bundle: str = "b") -> dict[str, Any]:
    items = [{"ok": True, "score": score} for score in scores]
    return {"status": 200, "json": {"items": items, "bundle": bundle, "precision": "fp32"}}


def test_it_gives_what_the_service_gives(running: Running, scorer: Scorer, pictures: list[bytes]) -> None:
    url, client = running.client.base_url, running.client
    given = [*pictures[:2], b"junk", *pictures[2:], pictures[1]]
    sent = [picture(data) for data in given]
    read = [data for data in given if data != b"junk"]
    elsewhere = "http://elsewhere.example/a.png"
    asked = {"prompt": "a dog", "images": [base64_of(data) for data in given]}
    expected = client.post("/v1/rank", json=asked).json()["items"]
    scored, each, ranked, mixed, embedded, ready = ask(
        url,
        ("score", sent, "a dog"),
        ("score", [elsewhere, sent[0], elsewhere, sent[1]], ["a", "b", "c", "d"]),
        ("rank", sent, "a dog"),
        ("score", [sent[0], picture(bytes(MAX_BODY_BYTES)), sent[1]], "a dog"),
        ("embed", {"images": [elsewhere, sent[3]], "prompts": ["a dog", "a dog", "a cat"]}),
        ("ready",),
        batch=3,
    )
    assert reasons(scored) == [None, None, "unknown format", None, None, None, None, None]
    np.testing.assert_allclose(scores(scored), scorer.score("a dog", read), atol=1e-5)
    assert reasons(each) == ["host not allowed", None, "host not allowed", None]
    np.testing.assert_allclose(scores(each), scorer.score(["b", "d"], given[:2]), atol=1e-5)
    assert [item.get("rank") for item in ranked] == [item.get("rank") for item in expected]
    for item, wanted in zip(ranked, expected, strict=True):
        assert item.get("probability") == pytest.approx(wanted.get("probability"), abs=1e-5)
    assert reasons(mixed) == [None, "body too long", None]
    assert reasons(embedded["images"]) == ["host not allowed", None]
    np.testing.assert_allclose(embedded["images"][1]["embedding"], scorer.embed_images([given[3]])[0], atol=1e-5)
    prompts = [item["embedding"] for item in embedded["prompts"]]
    np.testing.assert_allclose(prompts, scorer.embed_prompts(["a dog", "a dog", "a cat"]), atol=1e-5)
    assert ready is True
    (many,) = ask(url, ("score", [picture(data) for data in pictures * 5], "a cat"), batch=100)  # are halved
    np.testing.assert_allclose(scores(many), np.tile(scorer.score("a cat", pictures), 5), atol=1e-5)


def test_similar_and_where_hits_are_shown(running: Running, pictures: list[bytes]) -> None:
    client = running.client
    wishes = {"k": 4, "popularity_weight": 0.3, "where": "year >= 2005"}
    likes = [{"image": base64_of(pictures[3])}, {"text": "a cat"}, {"id": "p5.png"}]
    asked = {"likes": likes, "dislikes": [{"image": base64_of(pictures[0])}], **wishes}
    expected = client.post("/v1/similar", json=asked).json()["hits"]
    given = [picture(pictures[3]), {"text": "a cat"}, {"id": "p5.png"}]
    url = f"{client.base_url}/"
    found, shown = ask(
        url,
        ("similar", given, {"dislikes": [picture(pictures[0])], "dedup": None, **wishes}),
        ("thumbnailUrl", expected[0], 64),
    )
    assert found == expected and len(found) == 4
    assert shown == f"{client.base_url}{expected[0]['thumbnail']}?size=64"


def test_the_example_of_the_docs_works(running: Running, pictures: list[bytes], tmp_path: Path) -> None:
    page = (ROOT / "docs/clients.md").read_text().replace("images/1f436.webp", "p4.png")
    (example,) = re.findall(r"^```js\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    example = example.replace("./plaudit.mjs", (ROOT / "runtime/clients/plaudit.mjs").as_uri())
    sent = json.dumps([base64_of(data) for data in pictures[:2]])
    given = [
        f"const token = {json.dumps(TOKEN)};",
        f"const files = {sent}.map((text) => new Blob([Buffer.from(text, 'base64')]));",
        example.replace("http://localhost:8000", str(running.client.base_url)),
        "console.log(ranks.length, images.length, prompts[0].embedding.length);",
    ]
    script = tmp_path / "example.mjs"
    script.write_text("\n".join(given))
    done = subprocess.run([str(NODE), script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"(-?[\d.]+\n){2}\[\n( +'http://\S+/v1/thumbnails/\w+\?size=256',?\n){5}\]\n2 2 \d+\n", done.stdout
    )


def test_errors_of_whole_requests_say_which(running: Running) -> None:
    url = running.client.base_url
    calls = [("similar", [{"text": "a cat"}], {"k": 0}), ("score", ["a.png"], "a"), ("score", ["http://a"], ["a", "b"])]
    wrong, no_picture, prompts = run(url, *calls)["done"]
    assert (wrong["name"], wrong["status"]) == ("ServiceError", 422) and "k: Input should be" in wrong["message"]
    assert (no_picture["name"], prompts["name"]) == ("TypeError", "RangeError")
    (refused,) = run(url, ("score", ["http://a"], "a"), token="another")["done"]
    assert refused["status"] == 401 and re.fullmatch("[0-9a-f]{16,32}", refused["requestId"])
    assert run("http://127.0.0.1:9", ("ready",))["done"] == [{"found": False}]
    two = [answer(1), answer(2, bundle="c"), answer(3), answer(4)]
    (changed,) = run("http://s", ("score", ["http://a"] * 4, "a"), replies=two, batch=1)["done"]
    assert "another bundle" in changed["message"]
    for reply in ({"status": 502, "json": {}}, {"status": 200, "json": None}, answer(1, 2)):
        (odd,) = run("http://s", ("score", ["http://a"], "a"), replies=[reply])["done"]
        assert odd["status"] == reply["status"] and "unexpected answer" in odd["message"]


BUSY, BROKEN = {"status": 429, "after": "3", "json": {}}, {"error": "TypeError"}


@pytest.mark.parametrize(
    ("replies", "waits"),
    [
        ([BUSY, {"status": 503, "json": {}}, answer(1)], [3.25, 0.5]),
        ([BROKEN, BROKEN, answer(1)], [0.25, 0.5]),
        ([BROKEN] * 6, [0.25, 0.5, 1, 2, 4]),
        ([{**BUSY, "after": "soon"}, answer(1)], [0.25]),
        ([{**BUSY, "after": "121"}], []),
        ([{"error": "TimeoutError"}], []),
        *(([{"status": status, "after": "1", "json": {}}], []) for status in (400, 422, 500, 504)),
    ],
)
def test_it_is_sent_again_by_the_rules_of_the_other_clients(replies: list[Any], waits: list[float]) -> None:
    told = run("http://s", ("score", [picture(b"1")], "a"), replies=replies)
    assert told["waits"] == waits and len(told["bodies"]) == len(replies)
    assert ("found" in told["done"][0]) == (replies[-1].get("status") == 200)


def test_how_much_is_too_much_is_learned() -> None:
    said = {"error": {"reason": "too busy", "message": "later"}}
    late = {"status": 504, "json": said}
    replies = [{**BUSY, "json": said}, {**BUSY, "json": said}, late, *map(answer, range(4))]
    told = run("http://s", ("score", [picture(b"1")] * 4, "a"), replies=replies)
    assert scores(told["done"][0]["found"]) == [0, 1, 2, 3]
    pictures = [sum(field.startswith("images") for field in body) for body in told["bodies"]]
    assert pictures == [4, 4, 2, 1, 1, 1, 1] and told["waits"] == [3.25]


def test_batches_are_bounded_by_number_and_bytes() -> None:
    sizes = [40, 40, 40, 400, 1, 1, 1, 1]
    replies = [answer(1, 1), answer(1), answer(1), answer(1, 1, 1), answer(1)]
    told = run("http://s", ("score", [picture(bytes(n)) for n in sizes], "a"), replies=replies, batch=3, batchBytes=100)
    assert told["bodies"] == [
        ["images: 40", "images: 40", "prompts=a"],
        ["images: 40", "prompts=a"],
        ["images: 400", "prompts=a"],
        ["images: 1", "images: 1", "images: 1", "prompts=a"],
        ["images: 1", "prompts=a"],
    ]


def test_types_name_every_method() -> None:
    text = (ROOT / "runtime/clients/plaudit.d.mts").read_text()
    declared = re.findall(r"^  (\w+)\(", text[text.index("export class Plaudit") :], re.MULTILINE)
    assert sorted(declared) == sorted(run("http://s")["methods"])
