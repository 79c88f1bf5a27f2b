"""POST /v1/similar: the hits of the catalogue's own search, for every way to ask."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from catalogue_fakes import make_cache, make_labels
from paths import ROOT
from service_server import Running, base64_of, serving, small_picture

from embed.spec import IdentityMismatch
from runtime.catalogue.queries import find, mixed_query
from runtime.catalogue.reader import Catalogue
from runtime.catalogue.writer import build
from runtime.config import IndexConfig, PopularityConfig, Wish
from runtime.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def options(catalogue: Catalogue) -> dict[str, Any]:
    return {"catalogue": catalogue.path}


@pytest.fixture
def client(running: Running) -> httpx.Client:
    return running.client


@pytest.fixture(scope="module")
def pictures_alone(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service with a head that reads no text."""
    from export_tiny import ImageOnly, head_manifest, tiny_backbone

    from export.bundle_writer import export_bundle
    from export.config import ExportConfig

    bundle, backbone = tmp_path_factory.mktemp("alone") / "bundle", tiny_backbone()
    export_bundle(bundle, backbone, ImageOnly().eval(), head_manifest(backbone), ExportConfig())
    with serving(bundle, catalogue=catalogue.path) as running:
        yield running


def ask(client: httpx.Client, **asked: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/similar", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["catalogue"] == "v000001"
    return answer.json()["hits"]  # type: ignore[no-any-return]


def test_the_log_says_which_catalogue_is_served(running: Running, catalogue: Catalogue) -> None:
    started = running.service.started
    assert (started["catalogue"], started["pictures"]) == ("v000001", len(catalogue))


def test_by_picture_text_id_and_vector(client: httpx.Client, catalogue: Catalogue, scorer: Scorer) -> None:
    picture, other = small_picture(3), small_picture(100)
    vector = scorer.embed_images([picture])[0]
    by_vector = ask(client, likes=[{"vector": (7 * vector).tolist()}], k=6, popularity_weight=0)
    assert by_vector[0]["key"] == "p3.png" and by_vector[0]["similarity"] == pytest.approx(1, abs=1e-3)
    similar = [hit["key"] for hit in by_vector]
    for like in ({"image": base64_of(picture)}, {"id": "p3.png"}):
        others = ask(client, likes=[like], k=5, popularity_weight=0)
        assert [hit["key"] for hit in others] == similar[1:]  # itself is no hit
        whole = ask(client, likes=[like], k=6, popularity_weight=0, include_query=True)
        assert [hit["key"] for hit in whole] == similar
    by_picture = ask(client, likes=[{"image": base64_of(picture)}], k=5)
    blended = find(catalogue, vector, Wish(5, popularity_weight=0.3, exclude=[catalogue.id_of("p3.png")]))
    assert [hit["key"] for hit in by_picture] == [hit.key for hit in blended]
    mixed = ask(client, likes=[{"text": "a cat"}, {"image": base64_of(other)}], dislikes=[{"id": "p4.png"}], k=7)
    query = mixed_query(
        np.array([scorer.embed_prompts(["a cat"])[0], scorer.embed_images([other])[0]]),
        catalogue.vectors[[catalogue.row_of("p4.png")]].astype(np.float32),
    )
    expected = find(catalogue, query, Wish(7, exclude=[catalogue.id_of("p4.png")]))
    assert [hit["key"] for hit in mixed] == [hit.key for hit in expected]
    np.testing.assert_allclose(
        [hit["blended_score"] for hit in mixed], [hit.blended_score for hit in expected], atol=1e-5
    )


def test_a_link_to_a_picture_of_the_catalogue_does_not_find_it(
    running: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetched(url: str) -> bytes:
        return small_picture(int(url[-1]))

    monkeypatch.setattr(running.service.fetcher, "fetch", fetched)
    linked = [{"url": f"https://pictures.example/{number}"} for number in (3, 4)]
    likes, dislikes = ([{"image": base64_of(small_picture(number))}] for number in (3, 4))
    found = ask(client, likes=linked[:1], dislikes=linked[1:], k=60)
    assert found == ask(client, likes=likes, dislikes=dislikes, k=60) and len(found) == 58
    assert not {"p3.png", "p4.png"} & {hit["key"] for hit in found}


def test_a_vector_leaves_out_the_picture_that_it_is_said_to_be_of(client: httpx.Client) -> None:
    """As the search page does, which embeds a picture once and then asks by its vector."""
    picture = small_picture(3)
    answer = client.post("/v1/embed", json={"images": [base64_of(picture)], "prompts": ["a cat"]}).json()
    vector, id = (answer["images"][0][name] for name in ("embedding", "id"))
    assert "id" not in answer["prompts"][0]
    found = ask(client, likes=[{"vector": vector, "id": id}], k=60)
    assert [hit["key"] for hit in found] == [
        hit["key"] for hit in ask(client, likes=[{"image": base64_of(picture)}], k=60)
    ]
    assert id not in {hit["id"] for hit in found} and len(found) == 59
    assert id in {hit["id"] for hit in ask(client, likes=[{"vector": vector, "id": id}], k=60, include_query=True)}
    assert len(ask(client, likes=[{"vector": vector, "id": "of no picture here"}], k=60)) == 60
    both = {"likes": [{"id": id, "text": "a cat"}]}
    assert client.post("/v1/similar", json=both).status_code == 422


def test_a_form_finds_what_json_finds(client: httpx.Client) -> None:
    picture, other = small_picture(3), small_picture(100)
    wish = {"k": 7, "popularity_weight": 0.5, "where": "year >= 2005", "group_by": "creator", "per_group": 2}
    by_json = ask(
        client,
        likes=[{"image": base64_of(picture)}, {"text": "a cat"}, {"id": "p5.png"}, {"id": "p6.png"}],
        dislikes=[{"image": base64_of(other)}, {"id": "p4.png"}, {"text": "a dog"}],
        **wish,
    )
    fields = {"like_text": "a cat", "like_ids": ["p5.png", "p6.png"], "dislike_id": "p4.png", "dislike_texts": "a dog"}
    files = [("likes", ("a.png", picture)), ("dislike", ("b.png", other))]
    by_form = client.post("/v1/similar", data={**fields, **wish}, files=files)
    assert by_form.status_code == 200 and by_form.json()["hits"] == by_json
    front = client.post("/v1/similar", data={"front": "true"}, files=files[:1]).json()["hits"]
    assert front == ask(client, likes=[{"image": base64_of(picture)}], front=True)


@pytest.mark.parametrize(
    ("fields", "files", "message"),
    [
        ({"k": "3"}, {"dislikes": b"x"}, "likes: List should have at least 1 item"),
        ({"likes": "a cat"}, {"dislikes": b"x"}, "likes: wanted a file"),
        ({}, {"like_text": b"x"}, "like_text: wanted text, not a file"),
        ({"like_vector": "1"}, {"likes": b"x"}, "like_vector: Extra inputs"),
        ({"k": ["1", "2"]}, {"likes": b"x"}, "k: given more than once"),
        ({"k": "many"}, {"likes": b"x"}, "k: Input should be a valid integer"),
        ({"likes_": "1"}, {"likes": b"x"}, "likes_: Extra inputs"),
        ({}, {"likes": b"x"}, "unknown format"),
        ({}, {"k": b"1", "likes": b"x"}, "k: "),
        ({"like_url": "http://localhost/a.png"}, {"likes": small_picture(0)}, "host not allowed"),
    ],
)
def test_forms_that_cannot_be_answered(
    client: httpx.Client, fields: dict[str, Any], files: dict[str, bytes], message: str
) -> None:
    answer = client.post("/v1/similar", data=fields, files=files)
    assert answer.status_code == 422 and message in answer.json()["error"]["message"], answer.text


def test_wishes_are_the_catalogues(client: httpx.Client, catalogue: Catalogue, scorer: Scorer) -> None:
    query = mixed_query(scorer.embed_prompts(["a dog"]))
    wish = {
        "k": 6,
        "popularity_weight": 0.5,
        "min_percentile": 20.0,
        "where": "kind <> 'objects' and year >= 2005 and year < 9223372036854775808",
        "dedup": 0.999,
        "group_by": "creator",
        "per_group": 2,
    }
    hits = ask(client, likes=[{"text": "a dog"}], **wish)
    expected = find(catalogue, query, Wish(**wish))  # type: ignore[arg-type]
    assert [hit["key"] for hit in hits] == [hit.key for hit in expected] and hits
    assert all(hit["metadata"]["kind"] != "objects" for hit in hits)
    front = ask(client, likes=[{"text": "a dog"}], front=True)
    assert [hit["key"] for hit in front] == [hit.key for hit in catalogue.front(query, Wish())]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"likes": []}, "likes"),
        ({"likes": [{}]}, "exactly one of image"),
        ({"likes": [{"text": "a", "id": "b"}]}, "exactly one of image"),
        ({"likes": [{"id": "nobody"}]}, "no picture named 'nobody'"),
        ({"likes": [{"vector": [1.0]}]}, "a vector of 1 numbers; wanted 32"),
        ({"likes": [{"vector": [0.0] * 32}]}, "without a direction"),
        ({"likes": [{"image": base64.b64encode(b"junk").decode()}]}, "unknown format"),
        ({"likes": [{"url": "http://localhost/a.png"}]}, "host not allowed"),
        ({"likes": [{"text": "a"}], "where": "nothing = 1"}, "nothing"),
        ({"likes": [{"text": "a"}], "where": "__import__('os')"}, ""),
        ({"likes": [{"text": "a"}], "where": "(" * 250 + "year = 1" + ")" * 250}, "nested deeper than"),
        ({"likes": [{"text": "a"}], "group_by": "nothing"}, "no column 'nothing'"),
        ({"likes": [{"text": "a"}], "k": 0}, "k"),
        ({"likes": [{"text": "a"}], "k": "3"}, "k: Input should be a valid integer"),
        ({"likes": [{"text": "a"}], "front": 0}, "front: Input should be a valid boolean"),
        ({"likes": [{"id": "p1.png"}], "dislikes": [{"id": "p1.png"}]}, "cancel each other out"),
    ],
)
def test_queries_that_cannot_be_answered(client: httpx.Client, asked: dict[str, Any], message: str) -> None:
    answer = client.post("/v1/similar", json=asked)
    assert answer.status_code == 422 and message in answer.json()["error"]["message"]


def test_vectors_of_any_length_find_the_same(client: httpx.Client, scorer: Scorer) -> None:
    vector = scorer.embed_prompts(["a dog"])[0].astype(np.float64)
    found = [
        [hit["key"] for hit in ask(client, likes=[{"vector": (scale * vector).tolist()}])]
        for scale in (1, 1e-300, 1e300)
    ]
    assert found[0] == found[1] == found[2]


def test_a_catalogue_of_another_backbone_is_refused(bundle: Path, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", np.eye(4, 32, dtype=np.float32))
    build(tmp_path / "catalogue", cache, make_labels(4), PopularityConfig(), IndexConfig("exact", 0.9))
    with (
        pytest.raises(IdentityMismatch, match="different backbones"),
        serving(bundle, catalogue=tmp_path / "catalogue"),
    ):
        pass


def test_200_mutated_bodies_get_no_fault(bundle: Path, catalogue: Catalogue) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_service.py"), str(bundle), "--count", "200"]
    done = subprocess.run([*command, "--catalogue", str(catalogue.path)], capture_output=True, text=True, check=False)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and report["faults"] == [], done.stdout
    assert sum(report["outcomes"].values()) == 200
    routes = {outcome.split()[0] for outcome in report["outcomes"]}
    assert routes >= {"/v1/score", "/v1/rank", "/v1/embed", "/v1/similar"}
    assert sum(count for outcome, count in report["outcomes"].items() if outcome.endswith(" 200")) > 5


@pytest.mark.parametrize(
    "path, asked",
    [
        ("/v1/similar", {"likes": [{"text": "a cat"}]}),
        ("/v1/embed", {"prompts": ["a cat"]}),
        ("/v1/embeddings", {"input": "a cat"}),
    ],
)
def test_without_a_tower_for_texts_it_is_said_how_to_get_one(
    path: str, asked: dict[str, Any], pictures_alone: Running
) -> None:
    answer = pictures_alone.client.post(path, json=asked)
    assert answer.status_code == 422 and "--text-search" in answer.text
