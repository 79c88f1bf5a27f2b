"""More than the service takes: whom it answers, whom it refuses, and who waits for whom."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_server import TOKEN, Running, base64_of, decoder_processes, form, serving
from waiting import wait_until

from embed.inputs.images import BLAMED

ITEM_S = 0.1  # of the session, which is made to be slow


@contextmanager
def slow(bundle: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[tuple[Running, threading.Event]]:
    """A service whose session takes ITEM_S for each item, one at a time, and none before the event is set."""
    go = threading.Event()
    with serving(bundle, streams=1, max_batch=1, **options) as running:
        batcher = running.service.room.engine.batcher
        run = batcher._run

        def slowly(works: Any) -> Any:
            go.wait()
            time.sleep(ITEM_S)
            return run(works)

        monkeypatch.setattr(batcher, "_run", slowly)
        try:
            yield running, go
        finally:
            go.set()


def test_what_cannot_be_done_in_time_is_refused_and_nothing_is_late(
    bundle: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    deadline_s = 5.0
    with slow(bundle, monkeypatch, deadline_s=deadline_s) as ((client, service), go):
        go.set()
        asked = {"prompt": "a cat", "images": [base64_of(pictures[0])] * 4}

        def ask(_: int) -> tuple[int, int]:
            answer = client.post("/v1/score", json=asked)
            return answer.status_code, int(answer.headers.get("retry-after", 0))

        with ThreadPoolExecutor(32) as threads:  # of which the session could do some 12 in that time
            found = list(threads.map(ask, range(40)))
        assert {status for status, _ in found} == {200, 429}
        assert all(retry_s >= 1 for status, retry_s in found if status == 429)
        assert client.get("/health/ready").status_code == 200
        wait_until(lambda: service.turns.idle)
        assert ask(0)[0] == 200


def test_one_picture_does_not_wait_for_the_many_of_others(
    bundle: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tuple(f"token {i}" for i in range(4))
    with slow(bundle, monkeypatch, tokens=(TOKEN, *tokens)) as ((client, service), go):

        def ask(token: str, count: int) -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}"}
            images = [base64_of(pictures[i % 6]) for i in range(count)]
            return client.post("/v1/score", json={"prompt": "a", "images": images}, headers=headers)

        with ThreadPoolExecutor(6) as threads:
            many = [threads.submit(ask, token, 8) for token in tokens]
            wait_until(lambda: service.gate.items == 32)
            alone = [threads.submit(ask, TOKEN, 1), threads.submit(ask, tokens[0], 1)]
            wait_until(lambda: service.gate.items == 34)
            go.set()
            done = list(as_completed([*many, *alone]))
        assert {future.result().status_code for future in done} == {200}
        assert set(done[:2]) == set(alone), "the one of another client, and the one of the same"


def test_decoders_that_die_or_stop_under_load_cost_no_request(bundle: Path, pictures: list[bytes]) -> None:
    with serving(bundle, decoders=2, deadline_s=30) as (client, service):
        service.decoders._pool._stall_s = 1.0
        stop = threading.Event()
        statuses: list[int] = []
        items: list[dict[str, Any]] = []

        def ask() -> None:
            while not stop.is_set():
                answer = client.post("/v1/score", data={"prompt": "a"}, files=form(pictures[:2]))
                statuses.append(answer.status_code)
                items.extend(answer.json()["items"])

        with ThreadPoolExecutor(4) as threads:
            asking = [threads.submit(ask) for _ in range(4)]
            wait_until(lambda: len(statuses) > 8)
            for number, victims in ((signal.SIGKILL, 1), (signal.SIGSTOP, 1), (signal.SIGKILL, 2), (signal.SIGSTOP, 2)):
                wait_until(lambda: all(worker.began for worker in service.decoders._pool._workers))
                for process in decoder_processes(service)[:victims]:
                    process.send_signal(number)
                before = len(statuses)
                wait_until(lambda before=before: len(statuses) > before + 8)  # type: ignore[misc]
            stop.set()
        assert [future.exception() for future in asking] == [None] * 4
        assert set(statuses) == {200}
        # A picture that was at hand in two of them is taken for the cause.
        assert {item["error"]["message"] for item in items if not item["ok"]} <= {BLAMED}
        assert sum(not item["ok"] for item in items) <= 3
