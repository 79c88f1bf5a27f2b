"""Bundles swapped under a running service, folders overwritten beneath it, and what its answers say of files."""

import asyncio
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from export_tiny import changed_manifest
from service_server import TOKEN, Running, form, serving
from waiting import wait_until

from runtime.catalogue.reader import Catalogue
from runtime.service.answering.engine import Engine, EngineRoom


@pytest.fixture
def two_bundles(bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two that differ in their manifests only."""
    folders = (tmp_path / "one", tmp_path / "two")
    for folder in folders:
        shutil.copytree(bundle, folder)
        changed_manifest(folder, lambda manifest, name=folder.name: manifest["provenance"].update(training=name))
    return folders


def test_reload_drops_no_request(two_bundles: tuple[Path, Path], tmp_path: Path, pictures: list[bytes]) -> None:
    current = tmp_path / "current"
    current.symlink_to(two_bundles[0])
    with serving(current, tokens=(TOKEN,)) as (client, service):
        stop = threading.Event()
        statuses: list[int] = []
        digests: list[str] = []

        def ask() -> None:
            while not stop.is_set():
                answer = client.post("/v1/score", data={"prompt": "a"}, files=form(pictures[:2]))
                statuses.append(answer.status_code)
                digests.append(answer.json()["bundle"])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(statuses) > 5)
        first = service.room.engine
        current.unlink()
        current.symlink_to(two_bundles[1])
        shutil.rmtree(two_bundles[0])  # nothing of the old one is read any more
        new = client.post("/admin/reload").json()["bundle"]
        after = len(statuses)
        wait_until(lambda: len(statuses) > after + 8)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200} and set(digests) == {first.scorer.bundle.digest, new}
        assert digests[-1] == new != first.scorer.bundle.digest
        assert first.batcher._threads._shutdown and first.users == 0
        wait_until(
            lambda: not first.scorer._sessions._open
        )  # whose memory nobody waits for a garbage collector to free

        (two_bundles[1] / "head.onnx").write_bytes(b"damaged")
        refused = client.post("/admin/reload")
        assert refused.status_code == 422 and "is damaged" in refused.json()["error"]["message"]
        assert client.post("/v1/score", data={"prompt": "a"}, files=form(pictures[:1])).json()["bundle"] == new
        assert client.get("/health/ready").status_code == 200


def test_no_answer_says_where_the_service_has_its_files(
    bundle: Path,
    catalogue: Catalogue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = tmp_path / "a secret place"
    shutil.copytree(bundle, secret / "bundle")
    shutil.copytree(catalogue.path, secret / "catalogue")
    monkeypatch.setattr("runtime.service.answering.state.READY_S", 0.0)
    with serving(secret / "bundle", catalogue=secret / "catalogue", tokens=(TOKEN,)) as (client, service):
        known = service.room.engine.catalogue
        assert known is not None
        text = {"likes": [{"text": "a"}]}
        answers = [
            client.post("/v1/similar", json={"likes": [{"id": "nobody"}]}),
            client.post("/v1/similar", json={**text, "dislikes": [{"id": "/nobody"}]}),
            client.post("/v1/similar", json={**text, "where": "nothing = 1"}),
            client.post("/v1/similar", json={**text, "group_by": "nothing"}),
            client.post("/v1/similar", json={"likes": [{"vector": [1.0]}]}),
            client.get("/v1/thumbnails/nobody"),
            client.get(f"/v1/thumbnails/{known.id_of('p0.png')}"),
            client.get("/nothing"),
        ]
        assert "catalogue has no picture named 'nobody'" in answers[0].json()["error"]["message"]
        assert "'/nobody'" in answers[1].json()["error"]["message"]
        for folder, name in (
            ("bundle", "head.onnx"),
            ("bundle", "bundle.json"),
            ("catalogue", "v000001/vectors.npy"),
            ("catalogue", "manifest.json"),
        ):
            file = secret / folder / name
            whole = file.read_bytes()
            file.write_bytes(b"{}")
            answers.append(client.post("/admin/reload"))
            file.unlink()
            answers.append(client.post("/admin/reload"))
            file.write_bytes(whole)
        for fault in (RuntimeError(f"{secret}/bundle: gone"), OSError(2, "No such file", f"{secret}/x/lib.so")):
            with monkeypatch.context() as patch:

                def fail(works: Any, fault: Exception = fault) -> Any:
                    raise fault

                patch.setattr(service.room.engine.batcher, "_run", fail)
                answers.append(client.get("/health/ready"))
                answers.append(client.post("/v1/embed", json={"prompts": ["a"]}))
    assert {answer.status_code for answer in answers} == {404, 422, 500, 503}
    for answer in answers:
        assert "error" in answer.json() and secret.name not in answer.text, answer.text
    assert secret.name in json.dumps([getattr(record, "fields", {}) for record in caplog.records]), (
        "the log says it all"
    )


def test_a_bundle_overwritten_in_place_goes_on_and_is_told_at_the_next_reload(
    two_bundles: tuple[Path, Path], pictures: list[bytes]
) -> None:
    def ask(prompt: str) -> list[object]:
        return client.post("/v1/score", data={"prompt": prompt}, files=form(pictures)).json()["items"]

    overwritten, same = two_bundles
    with serving(same) as (client, _):
        expected = ask("never seen before")
    with serving(overwritten, tokens=(TOKEN,)) as (client, _):
        with open(overwritten / "weights.bin", "r+b") as file:
            file.truncate(100)
        assert ask("never seen before") == expected
        refused = client.post("/admin/reload")
        assert refused.status_code == 422 and "weights.bin has 100 bytes" in refused.json()["error"]["message"]
        assert ask("never seen before") == expected


def test_an_engine_whose_last_client_goes_away_is_closed_all_the_same() -> None:
    class Loaded:
        users, closed = 0, False

        async def close(self) -> None:
            await asyncio.sleep(0)
            self.closed = True

    async def leave() -> Loaded:
        room = EngineRoom(Loaded)  # type: ignore[arg-type]
        with anyio.CancelScope() as gone:  # in which every await is cancelled, as in a request that nobody waits for
            async with room.use() as old:
                await room.reload()
                gone.cancel()
        assert room.engine is not old
        await room.close()
        return old  # type: ignore[return-value]

    assert asyncio.run(leave()).closed


def test_who_asks_for_a_reload_meanwhile_gets_the_same_one(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    room, begun, goes_on = running.service.room, threading.Event(), threading.Event()
    load, loads = room._load, []

    def slow_load() -> Engine:
        loads.append(1)
        begun.set()
        goes_on.wait()
        return load()

    monkeypatch.setattr(room, "_load", slow_load)

    async def ask_three_times() -> list[Engine]:
        asked = [asyncio.ensure_future(room.reload()) for _ in range(3)]
        await asyncio.to_thread(begun.wait)
        goes_on.set()
        return await asyncio.gather(*asked)

    found = asyncio.run(ask_three_times())
    assert len(loads) == 1 and len(set(map(id, found))) == 1
