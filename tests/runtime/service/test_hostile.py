"""Requests that nobody means well with: generated ones of every shape, and files that break decoders."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from paths import DATA, ROOT
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection
from service_server import TOKEN, Running, small_picture

from embed.inputs.images import ImageError, Limits, load_pixels
from runtime.catalogue.reader import Catalogue
from runtime.config import RequestLimits, SessionConfig
from runtime.scoring.scorer import Scorer
from runtime.service.answering.requests import MULTIPART

ROBUSTNESS = DATA / "robustness"
CASES = 10  # of each operation and mode; CONTRIBUTING.md has the command for thousands


@pytest.fixture(scope="module")
def options(catalogue: Catalogue) -> dict[str, Any]:
    return {"tokens": (TOKEN,), "catalogue": catalogue.path, "dialects": ("flow-factory", "unirl")}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_generated_requests_are_answered_as_the_description_says(running: Running, mode: GenerationMode) -> None:
    client = running.client
    config = schemathesis.Config.from_path(ROOT / "schemathesis.toml")
    document = client.get("/openapi.json").json()
    for by_method in document["paths"].values():
        for described in by_method.values():
            described.pop("security", None)  # every request has the token
    schema = schemathesis.openapi.from_dict(document, config=config)
    schema.config.update(base_url=str(client.base_url))
    operations = [result.ok() for result in schema.get_all_operations()]
    known = {"/v1/score", "/v1/rank", "/v1/embed", "/v1/embeddings", "/v1/models", "/v1/similar", "/v1/thumbnails/{id}"}
    of_dialects = {"/compute", "/score", "/rewards", "/health"}
    assert {operation.path for operation in operations} >= known | of_dialects | {"/health/ready"}
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue

        @settings(
            max_examples=CASES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: Case) -> None:
            # A form holds text and files: most of what breaks its schema is one of these once it is sent.
            excluded = [negative_data_rejection] if case.media_type == MULTIPART else []
            case.call_and_validate(headers=dict(client.headers), excluded_checks=excluded)

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
