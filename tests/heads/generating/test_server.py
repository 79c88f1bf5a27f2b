"""The served generator answers with the pictures of its seeds, and refuses what is too much or not allowed."""

import base64
import io
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice

import pytest
from httpx import Response
from PIL import Image
from starlette.testclient import TestClient

from heads.generating.server import SourceLimits, create_app

LIMITS = SourceLimits(max_pictures=3, max_prompt=20, max_waiting=1)


def make(texts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    """A picture that tells its seed and the length of its text."""
    return [Image.new("RGB", (2, 2), (seed % 256, len(text), 0)) for text, seed in zip(texts, seeds, strict=True)]


@pytest.fixture
def client() -> TestClient:
    return TestClient(create_app(make, LIMITS))


def test_pictures_are_those_of_the_seeds(client: TestClient) -> None:
    answer = client.post("/generate", json={"prompt": "plum", "seed": 7, "n": 3})
    assert answer.status_code == 200 and answer.json()["seeds"] == [7, 8, 9]
    found = [Image.open(io.BytesIO(base64.b64decode(one))) for one in answer.json()["pictures"]]
    assert [image.format for image in found] == ["PNG"] * 3
    assert [image.getpixel((0, 0)) for image in found] == [(7, 4, 0), (8, 4, 0), (9, 4, 0)]
    assert client.post("/generate", json={"prompt": "plum"}).json()["seeds"] == [0]
    assert client.get("/health/live").json() == {"live": True}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 422, "not JSON"),
        ("[" * 5000, 422, "not JSON"),
        ("[]", 422, "an object with prompt, seed, n"),
        ('{"prompt": "a", "size": 9}', 422, "nothing else"),
        ('{"prompt": " "}', 422, "1 to 20 characters"),
        ('{"prompt": 3}', 422, "1 to 20 characters"),
        (json.dumps({"prompt": "a" * 21}), 422, "1 to 20 characters"),
        ('{"prompt": "a", "n": 4}', 422, "n must be a whole number from 1 to 3"),
        ('{"prompt": "a", "n": true}', 422, "n must be"),
        ('{"prompt": "a", "seed": -1}', 422, "seed must be"),
        ('{"prompt": "a", "seed": 4294967295, "n": 2}', 422, "0 to 4294967294"),
        ('{"prompt": "a", "seed": 1.5}', 422, "seed must be"),
        (" " * (1 << 17), 413, "bytes"),
    ],
)
def test_what_is_wrong_is_said(client: TestClient, body: str, status: int, message: str) -> None:
    answer = client.post("/generate", content=body)
    assert answer.status_code == status and message in answer.json()["error"]["message"]


def test_a_token_is_asked_for() -> None:
    client = TestClient(create_app(make, LIMITS, ("first", "second")))
    for wrong in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Basic first"}):
        answer = client.post("/generate", json={"prompt": "plum"}, headers=wrong)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    good = {"Authorization": "bearer second"}
    assert client.post("/generate", json={"prompt": "plum"}, headers=good).status_code == 200


def test_one_generates_at_a_time_few_wait_and_the_rest_is_told_to_come_again() -> None:
    started, release = threading.Semaphore(0), threading.Semaphore(0)
    at_once, most = [0], [0]

    def slow(texts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        started.release()
        assert release.acquire(timeout=60)
        at_once[0] -= 1
        return make(texts, seeds)

    with TestClient(create_app(slow, LIMITS)) as client, ThreadPoolExecutor(4) as pool:

        def ask() -> Response:
            return client.post("/generate", json={"prompt": "plum"})

        asked = [pool.submit(ask)]
        assert started.acquire(timeout=60)
        asked += [pool.submit(ask) for _ in range(3)]  # one of which may wait
        refused = list(islice(as_completed(asked, timeout=60), 2))
        assert [one.result().status_code for one in refused] == [429, 429]
        assert refused[0].result().headers["retry-after"] == "1"
        release.release(2)
        assert sorted(one.result(timeout=60).status_code for one in asked) == [200, 200, 429, 429] and most == [1]
