"""Whoever records has the device alone, whatever the threads do; any number of others share it."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from embed.engines.recording import Recordings

WAIT_S = 60.0  # for what happens at once, unless it never does


def test_many_use_the_device_at_once() -> None:
    recordings, both = Recordings(), threading.Barrier(2, timeout=WAIT_S)

    def use() -> None:
        with recordings.using():
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(use) for _ in range(2)]:
            one.result()


def test_whoever_records_is_alone() -> None:
    recordings, inside = Recordings(), {"using": 0, "recording": 0}
    seen: list[tuple[int, int]] = []

    def work(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(60):
            name = choice.choice(["using", "using", "recording"])
            with recordings.using() if name == "using" else recordings.recording():
                with lock:
                    inside[name] += 1
                    seen.append((inside["using"], inside["recording"]))
                time.sleep(0)
                with lock:
                    inside[name] -= 1

    lock = threading.Lock()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(seen) == 480 and max(recording for _, recording in seen) == 1
    assert not [both for both in seen if all(both)], "the device was used during a recording"


def test_who_waits_to_record_goes_before_who_comes_later() -> None:
    recordings, order = Recordings(), list[str]()
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with recordings.using():
            entered.set()
            assert leave.wait(WAIT_S)
            order.append("first")

    def record() -> None:
        with recordings.recording():
            order.append("recording")

    def later() -> None:
        with recordings.using():
            order.append("later")

    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(first)]
        assert entered.wait(WAIT_S)
        work.append(pool.submit(record))
        while not recordings._recorders:
            time.sleep(0)
        work.append(pool.submit(later))
        leave.set()
        for one in work:
            one.result()
    assert order == ["first", "recording", "later"]


def test_an_error_inside_ends_what_was_held() -> None:
    recordings = Recordings()
    for block in (recordings.using, recordings.recording):
        try:
            with block():
                raise KeyError
        except KeyError:
            pass
    with recordings.recording():
        pass
