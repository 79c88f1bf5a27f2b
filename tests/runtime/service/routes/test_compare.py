"""People compare pictures over HTTP: what is shown, what is written down, and what is refused."""

import io
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from service_server import Running, serving
from votes_tiny import write_candidates

from runtime.config import VotingConfig


@contextmanager
def comparing(bundle: Path, folder: Path, **options: Any) -> Iterator[Running]:
    chosen = {"votes": str(folder / "votes.db"), "candidates": folder / "candidates.csv", **options}
    with serving(bundle, voting=VotingConfig(**chosen)) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_candidates(tmp_path_factory.mktemp("compare")).parent


@pytest.fixture(scope="module")
def running(bundle: Path, folder: Path) -> Iterator[Running]:
    with comparing(bundle, folder) as running:
        yield running


def post(running: Running, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    response = running.client.post(f"/v1/compare/{path}", json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_pair_is_shown_answered_taken_back_and_answered_anew(running: Running) -> None:
    answer = post(running, "next", count=2, voter="ann")
    assert len(answer["showings"]) == 2 and not answer["done"] and answer["progress"] == {"votes": 0, "goal": None}
    first = answer["showings"][0]
    assert [one["showing"] for one in post(running, "next", count=2, voter="ann")["showings"]] == [
        one["showing"] for one in answer["showings"]
    ]
    vote = {"showing": first["showing"], "choice": "left", "seconds": 2.0}
    written = post(running, "votes", 201, **vote)
    assert written["progress"]["votes"] == 1
    assert post(running, "votes", 200, **vote)["vote"] == written["vote"]
    assert post(running, "votes", 409, **vote | {"choice": "tie"})["error"]["reason"] == "conflict"
    assert post(running, "undo", 200, showing=first["showing"])["progress"]["votes"] == 0
    assert post(running, "undo", 200, showing=first["showing"])["progress"]["votes"] == 0
    assert post(running, "votes", 201, **vote | {"choice": "tie"})["vote"] > written["vote"]
    assert post(running, "votes", 404, **vote | {"showing": "nothing"})["error"]["reason"] == "unknown id"
    assert post(running, "undo", 409, showing=answer["showings"][1]["showing"])["error"]["reason"] == "conflict"


def test_pictures_are_made_anew_at_the_size_that_is_asked_for(running: Running) -> None:
    shown = post(running, "next", count=1, voter="ben")["showings"][0]["left"]
    assert (shown["width"], shown["height"]) == (96, 80)
    for query, size in (("", (96, 80)), ("?size=full", (96, 80)), ("?size=100", (96, 80))):
        response = running.client.get(shown["picture"] + query)
        assert response.status_code == 200 and response.headers["content-type"] == "image/webp"
        picture = Image.open(io.BytesIO(response.content))
        assert picture.format == "WEBP" and picture.size == size
    again = running.client.get(shown["picture"], headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304
    assert running.client.get("/v1/compare/pictures/" + "0" * 32).status_code == 404
    assert running.client.get(shown["picture"] + "?size=0").status_code == 422


def test_everything_is_shown_once_and_then_it_is_done(bundle: Path, tmp_path: Path) -> None:
    write_candidates(tmp_path, prompts=2, each=3)
    (tmp_path / "1-2.png").write_bytes(b"no picture")
    with comparing(bundle, tmp_path, repeat_share=0.0) as running:
        pairs = []
        while showings := post(running, "next", count=3, voter="ann")["showings"]:
            for one in showings:
                pairs.append((one["prompt"], frozenset((one["left"]["picture"], one["right"]["picture"]))))
                post(running, "votes", 201, showing=one["showing"], choice="right", seconds=0.1)
        assert post(running, "next", count=1, voter="ann")["done"]
        assert len(pairs) == len(set(pairs)) == 3 + 1  # but for the picture that is none
        summary = running.client.get("/v1/compare/summary").json()
        assert summary["votes"] == summary["too_fast"] == 4 and summary["choices"] == {"right": 4}
        assert set(summary["drawn"]) == {"random", "active"}
    rows = sqlite3.connect(tmp_path / "votes.db").execute("select count(*), count(distinct showing) from votes")
    assert rows.fetchone() == (4, 4)
