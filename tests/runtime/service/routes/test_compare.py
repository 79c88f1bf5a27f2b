"""People compare pictures over HTTP: what is shown, what is written down, and what is refused."""

import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from service_server import TOKEN, Running, serving
from votes_tiny import write_candidates
from waiting import wait_until

from runtime.cli.main import main
from runtime.collect import database as database_module
from runtime.collect.candidates import Candidates
from runtime.collect.collector import Collector, Known
from runtime.config import VotingConfig
from runtime.scoring.scorer import Scorer
from runtime.service.network.sessions import Sessions


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
    given = [one["showing"] for one in answer["showings"]]
    others = [one["showing"] for one in post(running, "next", count=2, voter="ann", holding=given)["showings"]]
    assert len(others) == 2 and not set(others) & set(given)
    again = [one["showing"] for one in post(running, "next", count=5, voter="ann")["showings"]]
    assert again[:4] == [*given, *others] and len(set(again)) == 5
    vote = {"showing": first["showing"], "choice": "left", "seconds": 2.0}
    written = post(running, "votes", 201, **vote)
    assert written["progress"]["votes"] == 1
    assert post(running, "votes", 200, **vote)["vote"] == written["vote"]
    assert post(running, "votes", 409, **vote | {"choice": "tie"})["error"]["reason"] == "conflict"
    assert post(running, "undo", 200, showing=first["showing"])["progress"]["votes"] == 0
    assert post(running, "undo", 200, showing=first["showing"])["progress"]["votes"] == 0
    assert post(running, "votes", 201, **vote | {"choice": "tie"})["vote"] > written["vote"]
    assert post(running, "votes", 404, **vote | {"showing": "nothing"})["error"]["reason"] == "unknown id"
    assert post(running, "undo", 409, showing=others[0])["error"]["reason"] == "conflict"


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


def test_the_rejected_picture_is_replaced_by_one_that_the_generator_makes(bundle: Path, folder: Path) -> None:
    options = {"votes": str(folder / "series.db"), "generator": str(folder / "candidates.csv")}
    with comparing(bundle, folder, **options) as running:
        begun = post(running, "prompt", prompt="prompt 3", voter="ann")
        (first,) = begun["showings"]
        assert first["prompt"] == "prompt 3" and begun["prompts"]
        assert post(running, "next", count=2, voter="ann")["showings"] == [first]
        post(running, "votes", 201, showing=first["showing"], choice="left", seconds=1.0)
        (second,) = post(running, "next", count=2, voter="ann")["showings"]
        pictures = [{one[side]["picture"] for side in ("left", "right")} for one in (first, second)]
        assert pictures[0] & pictures[1] == {first["left"]["picture"]}
        assert running.client.get(second["right"]["picture"] + "?size=full").status_code == 200
        post(running, "votes", 201, showing=second["showing"], choice="both_bad", seconds=1.0)
        (third,) = post(running, "next", count=1, voter="ann")["showings"]
        assert not {one["picture"] for one in (third["left"], third["right"])} & (pictures[0] | pictures[1])
        post(running, "prompt", prompt=None, voter="ann")
        assert len(post(running, "next", count=2, voter="ann")["showings"]) == 2  # no longer one pair at a time


def test_who_was_not_invited_does_not_vote(bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = str(folder / "invited.db")
    assert main(["votes", "invite", database, "Ann Smith", "--url", "https://a.example/"]) == 0
    link = capsys.readouterr().out.split()[-1]
    assert link.startswith("https://a.example/compare#invite=")
    token = link.partition("=")[2]
    assert token.encode() not in Path(database).read_bytes()
    voting = VotingConfig(votes=database, candidates=folder / "candidates.csv", voters="invited")
    with serving(bundle, voting=voting, tokens=(TOKEN,), pages=True) as running:
        cookie = str(Sessions([TOKEN]).cookie(TOKEN, "Ann Smith", secure=False)).partition(";")[0]
        own = {"Cookie": cookie, "Sec-Fetch-Site": "same-origin"}
        with httpx.Client(base_url=running.client.base_url, headers=own, trust_env=False, timeout=60) as signed_in:
            assert signed_in.post("/v1/compare/next", json={}).status_code == 403, "whoever has the token, by that name"
        assert post(running, "next", 403, count=1, voter="Ann Smith")["error"]["reason"] == "not invited"
        assert post(running, "join", 403, invite="x" * 32)["error"]["reason"] == "not invited"
        joined = running.client.post("/v1/compare/join", json={"invite": token})
        assert joined.json() == {"voter": "Ann Smith"}
        assert {"HttpOnly", "SameSite=strict"} <= set(joined.headers["set-cookie"].split("; "))
        shown = post(running, "next", count=1)
        assert shown["voter"] == "Ann Smith" and not shown["names"]
        vote = {"showing": shown["showings"][0]["showing"], "choice": "tie", "seconds": 1.0}
        running.client.cookies.clear()
        post(running, "votes", 403, **vote)
        post(running, "join", 403, invite=token)  # once


def test_a_database_that_is_locked_says_so_and_loses_nothing(
    bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_S", 0.1)
    where = str(folder / "locked.db")
    with comparing(bundle, folder, votes=where) as running, closing(sqlite3.connect(where)) as another:
        shown = post(running, "next", count=2, voter="ann")
        assert shown["names"]
        first, second = ({"showing": one["showing"], "choice": "left", "seconds": 1.0} for one in shown["showings"])
        post(running, "votes", 201, **first)
        another.execute("begin immediate")
        refused = post(running, "votes", 503, **second)["error"]
        assert refused["reason"] == "service unavailable" and "this choice is not stored" in refused["message"]
        another.rollback()
        assert running.client.get("/v1/compare/summary").json()["votes"] == 1
        post(running, "votes", 201, **second)
        assert running.client.get("/v1/compare/summary").json()["votes"] == 2


def test_there_is_a_limit_to_the_votes_of_one_person_in_a_minute(bundle: Path, folder: Path) -> None:
    with comparing(bundle, folder, votes=str(folder / "fast.db"), votes_per_minute=2) as running:
        shown = post(running, "next", count=3, voter="ann")["showings"]
        votes = [{"showing": one["showing"], "choice": "left", "seconds": 1.0} for one in shown]
        for vote in votes[:2]:
            post(running, "votes", 201, **vote)
        assert post(running, "votes", 429, **votes[2])["error"]["reason"] == "too many votes"
        post(running, "votes", 200, **votes[0])  # was written before
        assert running.client.get("/v1/compare/summary").json()["votes"] == 2


@pytest.mark.parametrize(
    "body",
    [
        {"showing": "x", "choice": "up", "seconds": 1},
        {"showing": "x", "choice": "left", "seconds": -1},
        {"showing": "x", "choice": "left"},
        {"showing": "", "choice": "left", "seconds": 1},
        {"showing": "x", "choice": "skip", "seconds": 1, "reason": "y" * 501},
    ],
)
def test_votes_that_nobody_can_mean_are_refused(running: Running, body: dict[str, Any]) -> None:
    post(running, "votes", 422, **body)


def test_what_people_write_is_text_and_stays_text(running: Running) -> None:
    name = "<script>alert(1)</script>'; drop table votes; --"
    shown = post(running, "next", count=1, voter=name)
    assert shown["voter"] == name
    showing = shown["showings"][0]["showing"]
    post(running, "votes", 201, showing=showing, choice="skip", seconds=1.0, reason=name)
    assert name in {one["voter"] for one in running.client.get("/v1/compare/summary").json()["people"]}
    for wrong in ("", "a\nb", " ", "x" * 61):
        post(running, "next", 422, count=1, voter=wrong)


def test_the_head_that_is_served_scores_the_candidates(
    bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[tuple[Candidates, Known]] = []
    monkeypatch.setattr(Collector, "learn", lambda self, known: learnt.append((self.candidates, known)))
    with comparing(bundle, folder, votes=str(folder / "scored.db")) as running:
        post(running, "next", count=1, voter="ann")
        wait_until(lambda: bool(learnt) and bool(np.isfinite(learnt[-1][1].score).all()))
    candidates, known = learnt[-1]
    scorer = Scorer.load(bundle)
    for item in (0, 7):
        address = candidates.of_item(item).addresses[0]
        given = scorer.score_items(candidates.prompt_of(item), [address]).outputs
        gain = given["calibrated_score"][0] / given["score"][0]
        assert known.score[item] == pytest.approx(given["calibrated_score"][0], abs=1e-3)
        assert known.uncertainty is not None
        assert known.uncertainty[item] == pytest.approx(abs(gain) * given["uncertainty"][0], rel=0.01)
        np.testing.assert_allclose(known.vectors[item], scorer.embed_images([address])[0], atol=1e-4)
