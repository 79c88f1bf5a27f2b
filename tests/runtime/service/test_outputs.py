"""The service gives the first head's score as ever, and other outputs of a bundle where they are asked for."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from many_heads import make_many
from service_server import Running, base64_of, form, serving

from embed.arrays import softmax
from runtime.client import Client, Score
from runtime.scoring.scorer import Scorer

VALUES = ("score", "uncertainty", "calibrated_score", "percentile")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(make_many(tmp_path_factory), dialects=("unirl",)) as running:
        yield running


@pytest.fixture(scope="module")
def expected(running: Running, pictures: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Scorer.load(make_many(tmp_path_factory)).score_items("a cat", pictures).outputs


def close(found: object, wanted: object) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_without_names_the_first_head_answers_alone(
    running: Running, pictures: list[bytes], expected: dict[str, Any]
) -> None:
    for body in ({}, {"prompt": "a cat"}):
        items = running.client.post("/v1/score", data=body, files=form(pictures)).json()["items"]
        assert [set(item) for item in items] == [{"ok", "score"}] * len(pictures)
        close([item["score"] for item in items], expected["score"])


def test_outputs_come_by_name_in_json_and_in_forms(
    running: Running, pictures: list[bytes], expected: dict[str, Any]
) -> None:
    asked = {"prompt": "a cat", "outputs": ["liked", "aesthetic", "odd"]}
    by_json = running.client.post("/v1/score", json={**asked, "images": [*map(base64_of, pictures), "none"]}).json()
    by_form = running.client.post("/v1/score", data=asked, files=[*form(pictures), ("images", b"none")]).json()
    for answer in (by_json, by_form):
        *items, bad = answer["items"]
        assert not bad["ok"] and "outputs" not in bad
        for i, item in enumerate(items):
            assert list(item["outputs"]) == asked["outputs"]
            assert item["outputs"]["aesthetic"] == {"score": pytest.approx(expected["score"][i], abs=1e-5)}
            assert item["outputs"]["odd"] == {"score": pytest.approx(expected["odd"][i], abs=1e-4)}
            liked = item["outputs"]["liked"]
            close(
                [liked[value] for value in VALUES],
                [expected["liked"][i], *(expected[f"liked_{v}"][i] for v in VALUES[1:])],
            )
            assert {value: item[value] for value in VALUES} == liked


def test_ranks_are_by_the_first_output_asked_for(
    running: Running, pictures: list[bytes], expected: dict[str, Any]
) -> None:
    for output, by in (("relu", "relu_calibrated_score"), ("odd", "odd")):
        body = {"prompt": "a cat", "outputs": [output, "liked"]}
        answer = running.client.post("/v1/rank", data=body, files=form(pictures)).json()
        assert answer["order"] == np.argsort(-expected[by], kind="stable").tolist()
        close([item["probability"] for item in answer["items"]], softmax(expected[by]))


def test_what_cannot_be_asked_for_is_refused(running: Running, pictures: list[bytes]) -> None:
    for body, message in (
        ({"outputs": ["likd"]}, "outputs: unknown output 'likd'; near names: liked"),
        ({"outputs": ["liked"]}, "scores pictures under a prompt; give one"),
        ({"outputs": []}, "outputs: the list of outputs is empty"),
        ({"outputs": ["liked"] * 101}, "outputs"),
    ):
        answer = running.client.post("/v1/score", json={**body, "images": [base64_of(pictures[0])]})
        assert answer.status_code == 422
        assert message in answer.json()["error"]["message"]
    answer = running.client.post("/v1/embed", data={"outputs": "liked"}, files=form(pictures[:1]))
    assert answer.status_code == 422 and "unknown field" in answer.json()["error"]["message"]


def test_the_client_gives_outputs_by_name(running: Running, pictures: list[bytes], expected: dict[str, Any]) -> None:
    with Client(str(running.client.base_url), batch=2) as client:
        found = client.score(pictures, "a cat", ["odd", "liked"])
        first = client.score(pictures[:1])[0]
    for i, one in enumerate(found):
        assert isinstance(one, Score) and one.outputs is not None
        close([one.score, one.outputs["liked"].percentile], [expected["odd"][i], expected["liked_percentile"][i]])
    assert isinstance(first, Score) and first.outputs is None


def test_every_output_is_a_reward(running: Running, pictures: list[bytes], expected: dict[str, Any]) -> None:
    names = running.client.get("/rewards").json()["rewards"]
    assert {"score", "aesthetic", "liked", "liked_percentile", "clip_similarity", "blend", "odd"} <= set(names)
    turn = {"text": "a cat", "image_b64": base64_of(pictures[0])}
    asked = [{"history": [turn], "required_rewards": names}]
    (result,) = running.client.post("/score", json={"requests": asked}).json()["results"]
    for name in names:
        close(result[name][name], expected["score" if name == "aesthetic" else name][0])
