"""GET /v1/thumbnails/ID: the catalogue's pictures made small, and nothing else that lies where they lay."""

import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from catalogue_fakes import make_cache
from PIL import Image
from service_server import TOKEN, Running, serving, small_picture

from embed.files import content_id
from embed.inputs.decoding import Decoders
from runtime.catalogue.writer import build
from runtime.config import IndexConfig, PopularityConfig
from runtime.scoring.scorer import Scorer
from runtime.service.routes import thumbnails as module

SIDES = (64, 128, 256, 512)
SECRET = b"where it was made"


def large_picture(seed: int) -> bytes:
    """A JPEG of 800 x 400 whose left half is darker, with EXIF and a profile that nobody else should see."""
    shade = np.full((400, 800, 3), 40 + 20 * seed, np.uint8)
    shade[:, 400:] += 100
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    file = io.BytesIO()
    Image.fromarray(shade).save(file, "JPEG", exif=exif, icc_profile=SECRET)
    return file.getvalue()


@pytest.fixture(scope="module")
def lying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures p0.png to p5.png; p3 and p4 are not what they were, and p5 lies at a web address."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        (folder / f"p{i}.png").write_bytes(large_picture(i))
    (folder / "p3.png").write_bytes(small_picture(99))
    return folder


@pytest.fixture(scope="module")
def options(scorer: Scorer, lying: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    ids = [content_id(large_picture(i)) for i in range(6)]
    places = [None, str(lying / "p1.png"), "/nonexistent/p2.png", None, None, "http://169.254.169.254/p5.png"]
    vectors = scorer.embed_images([large_picture(i) for i in range(6)])
    folder = tmp_path_factory.mktemp("thumbnails")
    cache = make_cache(folder / "cache", vectors, of=scorer.identity, ids=ids, uris=places)
    labels = pa.table(
        {
            "image": [f"p{i}.png" for i in range(6)],
            "count": [5.0, 4, 3, 2, 1, 0],
            "exposures": [10, 10, 10, 10, 10, 10],
            "title": ["A house", None, "", "three", "four", "five"],
        }
    )
    index = IndexConfig("exact", 0.9)
    catalogue, _ = build(folder / "catalogue", cache, labels, PopularityConfig(), index, images_root=lying)
    return {"catalogue": catalogue.path, "tokens": (TOKEN,)}


@pytest.fixture
def client(running: Running) -> httpx.Client:
    return running.client


def path_of(seed: int) -> str:
    return f"/v1/thumbnails/{content_id(large_picture(seed))}"


@pytest.mark.parametrize("size", SIDES)
def test_a_picture_comes_small_and_without_what_it_came_with(client: httpx.Client, size: int) -> None:
    for seed in range(3):  # by the root of the catalogue, by its own place, and by the root where that is gone
        answer = client.get(path_of(seed), params={"size": size})
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/webp"
        assert SECRET not in answer.content
        with Image.open(io.BytesIO(answer.content)) as shown:
            assert shown.size == (size, size // 2) and shown.format == "WEBP"
            assert not {"exif", "icc_profile", "xmp"} & set(shown.info)
            left, right = (np.asarray(shown.convert("L"))[:, part].mean() for part in (slice(size // 4), slice(-9, -1)))
        assert left == pytest.approx(40 + 20 * seed, abs=4) and right == pytest.approx(140 + 20 * seed, abs=4)


def test_a_second_time_it_is_kept_and_may_be_told_apart_by_its_tag(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.get(path_of(0))
    monkeypatch.setattr(Decoders, "thumbnail", None)  # from here on nothing is decoded
    again = client.get(path_of(0))
    assert again.content == first.content and again.headers["etag"] == first.headers["etag"]
    assert "private" in again.headers["cache-control"] and "max-age" in again.headers["cache-control"]
    head = client.head(path_of(0))
    assert head.status_code == 200 and head.content == b"" and head.headers["etag"] == first.headers["etag"]
    assert head.headers["content-length"] == str(len(first.content))
    same = client.get(path_of(0), headers={"If-None-Match": first.headers["etag"]})
    assert same.status_code == 304 and same.content == b"" and same.headers["etag"] == first.headers["etag"]
    assert client.get(path_of(0), headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "reason", "message"),
    [
        (path_of(7), 404, "unknown id", "no picture with that id"),
        ("/v1/thumbnails/p0.png", 404, "unknown id", "no picture with that id"),
        ("/v1/thumbnails/..%2Fp0.png", 404, "bad request", "Not Found"),
        (path_of(3), 404, "no picture", "changed since it was embedded"),
        (path_of(4), 404, "no picture", "no such file"),
        (path_of(5), 404, "no picture", "host not allowed"),
        (path_of(0) + "?size=65", 422, "invalid request", "size"),
        (path_of(0) + "?size=1e9", 422, "invalid request", "size"),
    ],
)
def test_what_is_not_there_says_why(
    client: httpx.Client, lying: Path, path: str, status: int, reason: str, message: str
) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.json()["error"]["reason"] == reason and message in answer.json()["error"]["message"]
    assert str(lying) not in answer.text and "nonexistent" not in answer.text and "169.254" not in answer.text


def test_only_the_token_opens(client: httpx.Client) -> None:
    assert client.get(path_of(0), headers={"Authorization": ""}).status_code == 401


def test_those_asked_for_longest_ago_go_first(
    client: httpx.Client, bundle: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [len(client.get(path_of(seed)).content) for seed in range(3)]
    monkeypatch.setattr(module, "KEPT_BYTES", sum(lengths) - 1)  # room for two
    decoded = []
    thumbnail = Decoders.thumbnail

    def counted(self: Decoders, data: bytes, size: int) -> Any:
        decoded.append(content_id(data))
        return thumbnail(self, data, size)

    monkeypatch.setattr(Decoders, "thumbnail", counted)
    with serving(bundle, **options) as (fresh, _):
        for seed in (0, 1, 0, 2, 0, 1, 1):
            assert fresh.get(path_of(seed)).status_code == 200
    assert decoded == [content_id(large_picture(seed)) for seed in (0, 1, 2, 1)]


def test_another_root_is_where_they_are_looked_for(bundle: Path, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "p4.png").write_bytes(large_picture(4))
    with serving(bundle, **options, images_root=str(tmp_path)) as (client, service):
        assert client.get(path_of(4)).status_code == 200
        assert client.get(path_of(0)).status_code == 404
        labels = {"stage": "read", "reason": "no such file"}
        assert service.metrics.registry.get_sample_value("plaudit_decode_errors_total", labels) == 1
        assert service.gate.items == 0


def test_hits_have_what_a_page_shows(client: httpx.Client) -> None:
    hits = client.post("/v1/similar", json={"likes": [{"text": "a"}], "k": 6}).json()["hits"]
    by_name = {hit["key"]: hit for hit in hits}
    assert [by_name[f"p{i}.png"]["rate"] for i in range(6)] == [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert [by_name[f"p{i}.png"]["title"] for i in range(3)] == ["A house", None, ""]
    for hit in hits:
        assert hit["thumbnail"] == f"/v1/thumbnails/{hit['id']}" and hit["metadata"]["exposures"] == 10
        assert hit["percentile"] == pytest.approx(100 * hit["popularity"])
    assert client.get(by_name["p1.png"]["thumbnail"]).status_code == 200
