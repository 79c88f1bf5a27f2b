"""Clients of Flow-Factory and UniRL, as they are written, get the scores of /v1/score; what fails is never a 0.0."""

import inspect
import io
import math
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from service_server import TOKEN, Running, base64_of, serving

from runtime.client import ServiceError
from runtime.scoring.scorer import Scorer

PROMPTS = ["a cat", "a dog with a hat", "a cat"]


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    return {"dialects": ("flow-factory", "unirl"), "max_items": 8, "max_prompt_chars": 100}


def expected(scorer: Scorer, pictures: list[bytes], output: str = "score") -> list[float]:
    """Of the first three pictures, each under its prompt."""
    found = [scorer.score_items(prompt, [data]) for prompt, data in zip(PROMPTS, pictures, strict=False)]
    return [float(one.outputs[output][0]) for one in found]


class RemoteRewardClient:
    """Flow-Factory's: what it sends, and what it makes of the answer."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def health_check(self) -> bool:
        return self.http.get("/health").is_success

    def compute(self, prompt: list[str], image: list[bytes], **kwargs: Any) -> list[float]:
        payload = {"prompt": prompt, "image": [base64_of(one) for one in image], "video": None}
        payload |= {"condition_images": None, "condition_videos": None, "kwargs": kwargs or None}
        answer = self.http.post("/compute", json=payload)
        answer.raise_for_status()
        data = answer.json()
        if data.get("error"):
            raise RuntimeError(f"Server error: {data['error']}")
        rewards: list[float] = data["rewards"]
        return rewards


def test_flow_factory(running: Running, scorer: Scorer, pictures: list[bytes]) -> None:
    client = RemoteRewardClient(running.client)
    assert client.health_check()
    np.testing.assert_allclose(client.compute(PROMPTS, pictures[:3]), expected(scorer, pictures), atol=1e-5)
    percentiles = client.compute(PROMPTS, pictures[:3], reward="percentile", metadata="{}")
    np.testing.assert_allclose(percentiles, expected(scorer, pictures, "percentile"), atol=1e-4)


def test_a_picture_that_fails_ends_flow_factory_and_costs_the_others_nothing(
    running: Running, scorer: Scorer, pictures: list[bytes]
) -> None:
    given = [pictures[0], b"no picture", pictures[2]]
    with pytest.raises(RuntimeError, match="picture 1: unknown format"):
        RemoteRewardClient(running.client).compute(PROMPTS, given)
    payload = {"prompt": PROMPTS, "image": [base64_of(given[0]), "?", base64_of(given[2])]}
    answer = running.client.post("/compute", json=payload).json()
    right = expected(scorer, pictures)
    np.testing.assert_allclose([answer["rewards"][0], answer["rewards"][2]], [right[0], right[2]], atol=1e-5)
    assert answer["rewards"][1] is None and answer["errors"][::2] == [None, None] and "base64" in answer["errors"][1]


def reduced(body: dict[str, Any], names: list[str], i: int) -> dict[str, float]:
    """What UniRL's client makes of a sample: an error is one, and of several numbers it takes the first."""
    found = {}
    for name in names:
        if failure := body["errors"][i].get(name):
            raise RuntimeError(failure)
        values = [float(value) for value in body["results"][i][name].values()]
        assert len(values) == 1 and math.isfinite(values[0])
        found[name] = values[0]
    return found


def sample(text: str, picture: bytes | None, *names: str) -> dict[str, Any]:
    """A sample with an earlier turn, which is not scored."""
    encoded = None if picture is None else base64_of(picture)
    history = [{"text": "earlier", "image_b64": "aa=="}, {"text": text, "image_b64": encoded, "video_b64": None}]
    return {"history": history, "required_rewards": list(names), "metadata": None, "sample_id": "7"}


def test_unirl(running: Running, scorer: Scorer, pictures: list[bytes]) -> None:
    names = running.client.get("/rewards").json()["rewards"]
    assert names == list(scorer.outputs) and names[0] == "score" and "percentile" in names
    health = running.client.get("/health").json()
    assert health["status"] == "ok" and list(health["rewards"]) == names
    asked = [sample(text, data, "score", "percentile") for text, data in zip(PROMPTS, pictures, strict=False)]
    answer = running.client.post("/score", json={"protocol_version": "1", "requests": asked})
    assert answer.status_code == 200, answer.text
    for output in ("score", "percentile"):
        found = [reduced(answer.json(), ["score", "percentile"], i)[output] for i in range(3)]
        np.testing.assert_allclose(found, expected(scorer, pictures, output), atol=1e-4)


def test_each_sample_of_unirl_has_its_own_errors(running: Running, scorer: Scorer, pictures: list[bytes]) -> None:
    asked = [
        sample(PROMPTS[0], pictures[0], "score", "hpsv3"),
        sample(PROMPTS[1], b"no picture", "score"),
        sample(PROMPTS[2], None, "score", "percentile"),
    ]
    body = running.client.post("/score", json={"requests": asked}).json()
    assert body["results"][0] == {"score": {"score": pytest.approx(expected(scorer, pictures)[0], abs=1e-5)}}
    assert body["errors"][0] == {"hpsv3": f"unknown reward 'hpsv3'; this service has {', '.join(scorer.outputs)}"}
    assert body["results"][1:] == [{}, {}]
    assert "unknown format" in body["errors"][1]["score"] and set(body["errors"][2]) == {"score", "percentile"}
    assert "no image_b64" in body["errors"][2]["score"]


@pytest.mark.parametrize(
    ("path", "asked", "status", "message"),
    [
        ("/compute", {"prompt": ["a"], "image": ["aa=="] * 2}, 422, "1 prompts for 2 pictures"),
        ("/compute", {"prompt": ["a"] * 9, "image": ["aa=="] * 9}, 413, "got 9, at most 8"),
        ("/compute", {"prompt": ["a"], "image": ["aa=="], "video": [["aa=="]]}, 422, "video"),
        ("/compute", {"prompt": ["a"], "image": ["aa=="], "condition_images": [["aa=="]]}, 422, "condition_images"),
        ("/compute", {"prompt": ["a"], "image": ["aa=="], "kwargs": {"reward": "x"}}, 422, "unknown reward 'x'"),
        ("/compute", {"prompt": ["a" * 101], "image": ["aa=="]}, 422, "at most 100"),
        ("/score", {"requests": []}, 422, "requests"),
        ("/score", {"requests": [{"history": [], "required_rewards": ["score"]}]}, 422, "history"),
        ("/score", {"requests": [sample("a", b"x")]}, 422, "required_rewards"),
        ("/score", {"requests": [sample("a", b"x", "score")] * 9}, 413, "got 9, at most 8"),
    ],
)
def test_what_is_refused(running: Running, path: str, asked: dict[str, Any], status: int, message: str) -> None:
    answer = running.client.post(path, json=asked)
    assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text


def test_the_remote_reward_of_the_examples(running: Running, scorer: Scorer, pictures: list[bytes]) -> None:
    """flow_grpo's, by /v1/score: arrays or floats in, scores out, and an error where there is none."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "examples/rewards/README.md").read_text(), re.S | re.M)
    (code,) = (one for one in blocks if "plaudit_score_remote" in one)
    defined: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:8000", str(running.client.base_url)), defined)
    score = defined["plaudit_score_remote"]("cpu")
    arrays = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures[:3]])
    for images in (arrays, torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255):
        scores, details = score(images, tuple(PROMPTS), [{}] * 3)
        np.testing.assert_allclose(scores, expected(scorer, pictures), atol=1e-5)
        assert details == {}
    with pytest.raises(ServiceError, match="at most 100"):
        score(arrays, ["a" * 101] * 3, None)
    inspect.getclosurevars(score).nonlocals["client"].close()


def test_a_pickle_is_none_of_its_bodies(running: Running) -> None:
    answer = running.client.post(
        "/score", content=b"\x80\x04]\x94.", headers={"content-type": "application/octet-stream"}
    )
    assert answer.status_code == 415


def test_dialects_are_spoken_only_where_chosen_and_behind_the_token(bundle: Path, pictures: list[bytes]) -> None:
    asked = {"prompt": PROMPTS[:1], "image": [base64_of(pictures[0])]}
    with serving(bundle, dialects=("flow-factory",), tokens=(TOKEN,)) as running:
        assert running.client.post("/compute", json=asked).status_code == 200
        assert running.client.post("/compute", json=asked, headers={"Authorization": "Bearer no"}).status_code == 401
        assert running.client.get("/health", headers={"Authorization": "Bearer no"}).status_code == 200
        assert running.client.post("/score", json={}).status_code == running.client.get("/rewards").status_code == 404
        description = running.client.get("/openapi.json").json()
        assert description["paths"]["/compute"]["post"]["security"]
    with serving(bundle) as running:
        assert running.client.post("/compute", json=asked).status_code == 404
        assert running.client.get("/health").status_code == 404
