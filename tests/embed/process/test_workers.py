"""Processes that die, hang or never start cost the item that did it, and nothing else."""

import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import worker_calls
from waiting import wait_for_orphan, wait_until

from embed.process import workers
from embed.process.bounds import CAN_BOUND
from embed.process.confinement import Reach, protections
from embed.process.workers import Answers, WorkerPool

SEGFAULT, KILL = -signal.SIGSEGV, -signal.SIGKILL  # numbers that `worker_calls.square` does not survive
Squares = tuple[list[int | None], list[int]]


def collect(answers: Answers, memory: memoryview) -> Squares:
    squares = memory.cast("q").tolist()[: len(answers)]
    return [None if answer is None else int(answer) for answer in answers], squares


def squares(pool: "WorkerPool[tuple[int, int]]", *numbers: int) -> Squares:
    return pool.submit(list(enumerate(numbers)), collect).result(120)


def processes(pool: WorkerPool[Any]) -> list[subprocess.Popen[bytes]]:
    return [worker.child.process for worker in pool._workers if worker.child is not None]


@pytest.fixture
def lost() -> list[int]:
    """A mark for each process of `pool` that was lost."""
    return []


@pytest.fixture
def pool(lost: list[int]) -> Iterator["WorkerPool[tuple[int, int]]"]:
    with closing(WorkerPool(worker_calls.square, 1, 60.0, 64 * 8, lambda: lost.append(1))) as pool:
        yield pool


def test_answers_and_memory_are_those_of_the_same_calls_here(lost: list[int]) -> None:
    with closing(WorkerPool(worker_calls.square, 2, 60.0, 64 * 8, lambda: lost.append(1))) as pool:
        assert pool.started == 0
        tasks = [range(start, start + 20) for start in range(0, 400, 20)]
        futures = [pool.submit(list(enumerate(task)), collect) for task in tasks]
        for task, future in zip(tasks, futures, strict=True):
            memory = memoryview(bytearray(20 * 8))
            answers = [int(worker_calls.square(item, memory)) for item in enumerate(task)]
            assert future.result(120) == (answers, memory.cast("q").tolist())
        assert pool.started <= 2 and not lost


def test_an_item_that_kills_twice_is_blamed_and_the_others_answered(
    pool: "WorkerPool[tuple[int, int]]", lost: list[int]
) -> None:
    answers, memory = squares(pool, 2, 3, SEGFAULT, 5, KILL, 7)
    assert answers == [4, 9, None, 25, None, 49]
    assert [memory[i] for i in (0, 1, 3, 5)] == [4, 9, 25, 49]
    assert len(lost) == 4 and pool.started == 5  # two for each, since one death may be a neighbour's fault
    assert squares(pool, 6) == ([36], [36]) and pool.started == 5
    assert squares(pool, KILL)[0] == [None]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_ends_or_stops_between_tasks_is_replaced(number: int) -> None:
    with closing(WorkerPool(worker_calls.square, 1, 1.0, 64 * 8)) as pool:
        assert squares(pool, 2)[0] == [4]
        (process,) = processes(pool)
        assert process.pid is not None
        os.kill(process.pid, number)
        if number == signal.SIGKILL:
            process.wait()
        assert squares(pool, 3, 4)[0] == [9, 16]
        assert pool.started == 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="nothing tells here that a process is stopped")
def test_a_process_that_is_stopped_while_it_starts_is_replaced() -> None:
    with closing(WorkerPool(worker_calls.square, 1, 1.0, 64 * 8)) as pool:
        future = pool.submit([(0, 3)], collect)
        wait_until(lambda: processes(pool))
        (process,) = processes(pool)
        os.kill(process.pid, signal.SIGSTOP)
        assert future.result(60)[0] == [9] and pool.started == 2  # and not after START_S, 120


def test_a_process_that_reads_no_more_is_replaced() -> None:
    with closing(WorkerPool(worker_calls.measure, 1, 1.0)) as pool:
        assert pool.submit([b"abc"], plain).result(60) == [b"3"]
        os.kill(processes(pool)[0].pid, signal.SIGSTOP)
        assert pool.submit([bytes(16 << 20)], plain).result(60) == [b"16777216"]  # more than fits between the two
        assert pool.started == 2


def test_an_answer_that_never_ends_is_blamed() -> None:
    with closing(WorkerPool(worker_calls.mumble, 1, 1.0)) as pool:
        assert pool.submit([True, False, True], plain).result(60) == [b"said", None, b"said"]
        assert pool.started == 3


def test_an_item_that_never_ends_is_blamed() -> None:
    lost: list[int] = []
    with closing(WorkerPool(worker_calls.doze, 1, 3.0, lost=lambda: lost.append(1))) as pool:
        answers = pool.submit([0.0, 600.0, 0.0], lambda answers, memory: list(answers)).result(120)
        assert answers == [b"awake", None, b"awake"] and len(lost) == 2


def test_a_task_may_take_longer_than_its_items_may() -> None:
    with closing(WorkerPool(worker_calls.doze, 1, 4.0)) as pool:
        answers = pool.submit([1.1] * 4, lambda answers, memory: list(answers)).result(120)
        assert answers == [b"awake"] * 4 and pool.started == 1


def test_processes_that_do_not_start_are_said() -> None:
    with closing(WorkerPool(worker_calls.Unloadable(), 1, 60.0)) as pool:
        with pytest.raises(RuntimeError, match="do not start; the exit code of the last one is 7"):
            pool.submit([None], collect).result(120)
        assert pool.started == 4


def plain(answers: Answers, _: memoryview) -> list[bytes | None]:
    return list(answers)


def test_an_answer_that_is_too_long_is_not_read(lost: list[int]) -> None:
    with closing(WorkerPool(worker_calls.shout, 1, 60.0, lost=lambda: lost.append(1))) as pool:
        assert pool.submit([4, 4, 4], plain, answer_bytes=4).result(120) == [b"!!!!"] * 3
        assert pool.submit([5], plain, answer_bytes=4).result(120) == [None] and len(lost) == 2
        assert pool.submit([1 << 20], plain).result(120) == [b"!" * (1 << 20)]
        assert pool.submit([(1 << 20) + 1], plain).result(120) == [None]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        struct.pack("=2q", 1, 2) + b"ab",
        struct.pack("=2q", 1, 2) + b"abcd",
        struct.pack("=2q", -1, 4) + b"abc",
        struct.pack("=2q", 1 << 62, 1 << 62),
    ],
)
def test_a_message_of_wrong_lengths_is_no_answer(message: bytes) -> None:
    assert workers._parted(workers._joined([b"a", b"bc"]), 2) == [b"a", b"bc"]
    with pytest.raises(ValueError):
        workers._parted(message, 2)


@pytest.mark.skipif(not CAN_BOUND, reason="this system does not bound the memory of a process")
def test_memory_grows_no_further_than_it_may() -> None:
    with closing(WorkerPool(worker_calls.hoard, 1, 60.0, growth_bytes=200 << 20)) as pool:
        for _ in range(3):  # each task anew
            found = pool.submit([150 << 20, 250 << 20, 150 << 20], plain).result(120)
            assert found == [str(150 << 20).encode(), b"no room", str(150 << 20).encode()]
        assert pool.started == 1


@pytest.mark.parametrize("position", [0, 1, -1, 99])
def test_a_process_that_says_nonsense_costs_what_it_is_at_and_goes(lost: list[int], position: int) -> None:
    """Whatever it says of where it is, which may be nonsense too."""

    def check(answer: bytes) -> None:
        if answer != b"sense":
            raise ValueError

    with closing(WorkerPool(worker_calls.babble, 1, 60.0, lost=lambda: lost.append(1))) as pool:
        found = pool.submit([("sense", 0), ("no", position)], plain, check=check).result(120)
        assert b"sense" not in found[1:] and None in found and len(lost) >= 2
        assert pool.submit([("sense", 0)] * 3, plain, check=check).result(120) == [b"sense"] * 3


@pytest.mark.skipif(not protections("bytes").get("landlock"), reason="needs the extra hardened and Landlock")
@pytest.mark.parametrize("reach", ["all", "files", "bytes"])
def test_a_process_reaches_no_further_than_it_may(tmp_path: Path, reach: Reach) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with closing(WorkerPool(worker_calls.reach_out, 1, 60.0, reach=reach)) as pool:
            (answer,) = pool.submit([(str(secret), port)], plain).result(120)
    assert answer is not None
    tried = json.loads(answer)
    assert tried.pop("no_new_privs") == 1
    reached = {name for name, outcome in tried.items() if outcome == "done"}
    assert len(tried) == 7
    everything = set(tried)
    assert reached == {"all": everything, "files": {"read", "import"}, "bytes": {"import"}}[reach], tried


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_processes_are_given_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "hunter2")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    with closing(WorkerPool(worker_calls.environment, 1, 60.0)) as pool:
        (bare,) = pool.submit([None], plain).result(120)
    with closing(WorkerPool(worker_calls.environment, 1, 60.0, environment=os.environ.copy())) as pool:
        (whole,) = pool.submit([None], plain).result(120)
    assert bare is not None and b"LC_ALL=C.UTF-8" in bare and b"hunter2" not in bare
    assert whole is not None and b"hunter2" in whole


def test_what_is_cancelled_before_its_turn_is_not_done(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with closing(WorkerPool(worker_calls.wait, 1, 60.0)) as pool:
        pool.start()
        (process,) = processes(pool)
        held = pool.submit([first], lambda answers, memory: answers[0])
        wait_until((first / "begun").exists)
        never = pool.submit([second], lambda answers, memory: answers[0])
        assert never.cancel()
        (first / "go").touch()
        assert held.result(120) == str(process.pid).encode()
        assert pool.submit([first], lambda answers, memory: len(answers)).result(120) == 1  # behind it
        assert not (second / "begun").exists()


def test_close_ends_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    pool = WorkerPool(worker_calls.wait, 1, 600.0)
    running = pool.submit([tmp_path], lambda answers, memory: None)
    behind = pool.submit([tmp_path], lambda answers, memory: None)
    wait_until((tmp_path / "begun").exists)
    pool.close()
    for future in (running, behind):
        with pytest.raises(CancelledError):
            future.result(0)
    with pytest.raises(CancelledError):
        pool.submit([tmp_path], lambda answers, memory: None)
    assert processes(pool) == [] and pool.started == 1
    pool.close()  # again is fine


def test_a_process_ends_in_the_midst_of_an_item_with_a_parent_that_is_killed() -> None:
    wait_for_orphan(worker_calls.__file__)
