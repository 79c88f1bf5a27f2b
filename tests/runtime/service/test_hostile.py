"""Requests that nobody means well with: generated ones of every shape, and files that break decoders."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from paths import DATA
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from service_server import TOKEN, Running, small_picture

from embed.inputs.images import ImageError, Limits, load_pixels
from runtime.config import RequestLimits, SessionConfig
from runtime.scoring.scorer import Scorer

ROBUSTNESS = DATA / "robustness"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
CASES = 10  # of each operation and mode; CONTRIBUTING.md has the command for thousands


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    return {"token": TOKEN}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_generated_request_gets_500_or_an_answer_that_is_not_documented(
    running: Running, mode: GenerationMode
) -> None:
    client = running.client
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.config.update(base_url=str(client.base_url))
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/score", "/v1/rank", "/v1/embed", "/health/ready"}
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue

        @settings(
            max_examples=CASES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: Case) -> None:
            case.call_and_validate(checks=CHECKS, headers=dict(client.headers))

        holds()


def test_every_file_of_the_robustness_folder_is_scored_or_refused_with_its_reason(
    running: Running, bundle: Path
) -> None:
    if not ROBUSTNESS.is_dir():
        pytest.skip(f"{ROBUSTNESS} is not there")
    client, service = running
    files = [path for path in sorted(ROBUSTNESS.rglob("*")) if path.is_file()]
    assert len(files) > 100
    scorer = Scorer.load(bundle, SessionConfig(threads=1), RequestLimits())
    good = small_picture(0)
    score = float(scorer.score("a cat", [good])[0])
    outcomes = {"ok": 0, "error": 0}
    for path in files:
        data = path.read_bytes()
        # Alone and beside a good one, which must not suffer.
        alone = client.post("/v1/score", data={"prompt": "a cat"}, files=[("images", ("a", data))])
        mixed = client.post(
            "/v1/score",
            data={"prompt": "a cat"},
            files=[("images", (name, d)) for name, d in (("g", good), ("b", data))],
        )
        assert alone.status_code == mixed.status_code == 200, path
        (item,), (first, second) = alone.json()["items"], mixed.json()["items"]
        assert first["score"] == pytest.approx(score, abs=1e-5), path
        assert item["ok"] == second["ok"], path
        expected = scorer.score_items("a cat", [data])
        if item["ok"]:
            assert item["score"] == pytest.approx(float(expected.scores[0]), abs=1e-4), path
        else:
            assert (item["error"]["stage"], item["error"]["reason"]) == (
                expected.errors[0].stage,
                expected.errors[0].reason,
            ), path
        outcomes["ok" if item["ok"] else "error"] += 1
    assert min(outcomes.values()) > 20
    assert service.metrics.registry.get_sample_value("plaudit_decoders_replaced_total") == 0
    assert client.get("/health/ready").status_code == 200


def test_pictures_that_grow_when_decoded_are_refused_before(running: Running) -> None:
    bomb = b"P6 60000 60000 255\n"
    with pytest.raises(ImageError, match="too many pixels"):
        load_pixels(bomb, running.service.room.engine.scorer.identity.preprocess, Limits())
    answer = running.client.post("/v1/embed", files=[("images", ("bomb", bomb))])
    assert answer.json()["images"][0]["error"]["reason"] == "too many pixels"
