"""POST /v1/embeddings and GET /v1/models: what OpenAI's clients send and read, with the vectors of /v1/embed."""

import base64
import time
from typing import Any

import httpx
import numpy as np
import pytest
from service_server import Running, base64_of
from tokenizers import Tokenizer

from runtime.scoring.scorer import Scorer

TEXTS = ["a cat", "a dog with a hat", "a cat"]


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    return {"max_items": 8, "max_prompt_chars": 100}


@pytest.fixture
def client(running: Running) -> httpx.Client:
    return running.client


def ask(client: httpx.Client, **asked: Any) -> dict[str, Any]:
    answer = client.post("/v1/embeddings", json=asked)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    assert document["object"] == "list" and document["model"] == "bundle"
    assert [(one["object"], one["index"]) for one in document["data"]] == [
        ("embedding", i) for i in range(len(document["data"]))
    ]
    return document


def vectors(document: dict[str, Any]) -> np.ndarray:
    return np.array([one["embedding"] for one in document["data"]])


def test_texts_as_numbers_and_as_base64(client: httpx.Client, scorer: Scorer) -> None:
    expected = scorer.embed_prompts(TEXTS)
    found = ask(client, input=TEXTS, model="bundle", user="someone", dimensions=32)
    np.testing.assert_allclose(vectors(found), expected, atol=1e-5)
    coded = ask(client, input=TEXTS, encoding_format="base64")
    raw = [base64.b64decode(one["embedding"]) for one in coded["data"]]
    assert {len(data) for data in raw} == {4 * 32}
    np.testing.assert_allclose([np.frombuffer(data, "<f4") for data in raw], expected, atol=1e-5)
    alone = ask(client, input=TEXTS[1])
    np.testing.assert_allclose(vectors(alone), expected[1:2], atol=1e-5)


def test_usage_counts_the_tokens_that_are_read(client: httpx.Client, scorer: Scorer) -> None:
    encoder = Tokenizer.from_file(str(scorer.bundle.path / "tokenizer.json"))
    encoder.no_padding()
    tokens = sum(len(encoder.encode(text).ids) for text in TEXTS)
    assert ask(client, input=TEXTS)["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    context = scorer.identity.context_length
    assert ask(client, input="cat " * 25)["usage"]["prompt_tokens"] <= context


def test_pictures_as_data_addresses(client: httpx.Client, scorer: Scorer, pictures: list[bytes]) -> None:
    given = [f"data:image/png;base64,{base64_of(data)}" for data in pictures]
    found = ask(client, input=given, modality="image")
    np.testing.assert_allclose(vectors(found), scorer.embed_images(pictures), atol=1e-5)
    assert found["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    bare = ask(client, input=base64_of(pictures[0]), modality="image")
    np.testing.assert_allclose(vectors(bare)[0], vectors(found)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({}, 422, "input: Field required"),
        ({"input": []}, 422, "input"),
        ({"input": [[1, 2]]}, 422, "input"),
        ({"input": "a", "dimensions": 16}, 422, "got 16; wanted 32"),
        ({"input": "a", "model": "text-embedding-3-small"}, 404, "this service has 'bundle'"),
        ({"input": "a", "modality": "audio"}, 422, "modality"),
        ({"input": "a", "encoding_format": "hex"}, 422, "encoding_format"),
        ({"input": ["a"] * 9}, 413, "got 9, at most 8"),
        ({"input": ["a", "a" * 101]}, 422, "prompt 1: 101 characters"),
        ({"input": ["!"], "modality": "image"}, 422, "input 0: no base64"),
        ({"input": "http://localhost/a.png", "modality": "image"}, 422, "input 0: host not allowed"),
        ({"input": "https://a/" + "a" * 2040, "modality": "image"}, 422, "input 0: bad url: 2050 characters"),
    ],
)
def test_requests_that_cannot_be_answered(
    client: httpx.Client, asked: dict[str, Any], status: int, message: str
) -> None:
    answer = client.post("/v1/embeddings", json=asked)
    assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text


def test_a_bad_picture_is_counted(running: Running, pictures: list[bytes]) -> None:
    given = [base64_of(pictures[0]), base64_of(b"junk")]
    answer = running.client.post("/v1/embeddings", json={"input": given, "modality": "image"})
    assert answer.status_code == 422 and "input 1: unknown format" in answer.json()["error"]["message"]
    labels = {"stage": "decode", "reason": "unknown format"}
    assert running.service.metrics.registry.get_sample_value("plaudit_decode_errors_total", labels) == 1


def test_the_one_model_is_named(client: httpx.Client) -> None:
    document = client.get("/v1/models").json()
    (model,) = document["data"]
    assert document["object"] == "list"
    assert (model["id"], model["object"], model["owned_by"]) == ("bundle", "model", "plaudit")
    assert 0 <= time.time() - model["created"] < 3600
