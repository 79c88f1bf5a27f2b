"""Decoder processes that die, hang or are fed garbage cost one picture at most."""

import io
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from export_tiny import MEAN, STD
from PIL import Image
from service_server import small_picture

from embed.inputs.images import ImageError, Limits, load_pixels
from embed.spec import Preprocess
from runtime.service.decoding import Decoders

SPEC = Preprocess((32, 32), "shortest", "bicubic", MEAN, STD)
LIMITS = Limits(max_bytes=1 << 20, max_pixels=1 << 22)


@pytest.fixture(scope="module")
def pool() -> Iterator[tuple[Decoders, list[str]]]:
    replaced: list[str] = []
    decoders = Decoders(2, LIMITS, stall_s=1.0, replaced=lambda: replaced.append("once"))
    yield decoders, replaced
    decoders.close()


def pids(decoders: Decoders) -> list[int]:
    return [worker.process.pid for worker in decoders._idle if worker.process.pid]


def test_pixels_are_those_of_load_pixels(pool: tuple[Decoders, list[str]]) -> None:
    pictures = [small_picture(i) for i in range(8)]
    futures = [pool[0].submit(data, SPEC) for data in pictures]
    for data, future in zip(pictures, futures, strict=True):
        np.testing.assert_array_equal(future.result(60), load_pixels(data, SPEC, LIMITS)[0])


def reason(answer: Any) -> str:
    assert isinstance(answer, ImageError)
    return answer.reason


def test_bad_pictures_carry_their_reason(pool: tuple[Decoders, list[str]]) -> None:
    decoders, replaced = pool
    assert reason(decoders.submit(b"junk", SPEC).result(60)) == "unknown format"
    assert reason(decoders.submit(b"", SPEC).result(60)) == "empty file"
    assert reason(decoders.submit(bytes(LIMITS.max_bytes + 1), SPEC).result(60)) == "too many bytes"
    assert reason(decoders.submit(b"P6 3000 3000 255\n", SPEC).result(60)) == "too many pixels"
    assert replaced == []


def test_dead_processes_are_replaced_and_the_picture_decoded(pool: tuple[Decoders, list[str]]) -> None:
    decoders, replaced = pool
    decoders.submit(small_picture(0), SPEC).result(60)
    before = pids(decoders)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    for answer in [decoders.submit(small_picture(i), SPEC) for i in range(4)]:
        assert isinstance(answer.result(60), np.ndarray)
    assert len(replaced) >= 1
    assert set(pids(decoders)) != set(before)


def test_a_process_that_hangs_is_replaced(pool: tuple[Decoders, list[str]]) -> None:
    decoders, replaced = pool
    decoders.submit(small_picture(0), SPEC).result(60)
    count = len(replaced)
    for pid in pids(decoders):
        os.kill(pid, signal.SIGSTOP)
    assert isinstance(decoders.submit(small_picture(0), SPEC).result(60), np.ndarray)
    assert len(replaced) > count


def test_a_picture_that_always_kills_is_blamed(
    pool: tuple[Decoders, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.service import decoding

    decoders, _ = pool
    calls: list[int] = []

    def dies(self: Any, data: bytes, *rest: Any) -> None:
        calls.append(len(data))

    with monkeypatch.context() as patch:
        patch.setattr(decoding._Worker, "decode", dies)
        assert reason(decoders.submit(b"killer", SPEC).result(60)) == "the decoder crashed or stalled"
    assert calls == [6, 6]
    assert isinstance(decoders.submit(small_picture(0), SPEC).result(60), np.ndarray)


def test_cancelled_pictures_are_not_decoded() -> None:
    decoders = Decoders(1, LIMITS, stall_s=30)
    try:
        decoders.submit(small_picture(0), SPEC).result(60)
        os.kill(pids(decoders)[0], signal.SIGSTOP)
        pid = pids(decoders)[0]
        first = decoders.submit(small_picture(0), SPEC)
        time.sleep(0.05)
        second = decoders.submit(small_picture(0), SPEC)
        assert second.cancel()
        os.kill(pid, signal.SIGCONT)
        assert isinstance(first.result(60), np.ndarray)
    finally:
        decoders.close()


def test_libraries_write_nothing_on_our_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 100).convert("RGB").save(file, "TIFF", compression="tiff_lzw")
    damaged = file.getvalue()[:20] + b"\xff" * 180 + file.getvalue()[200:]
    with pytest.raises(ImageError, match="damaged"):
        load_pixels(damaged, SPEC, LIMITS)
    assert "Using code not yet in table" in capfd.readouterr().err
    decoders = Decoders(1, LIMITS, stall_s=60.0)
    assert reason(decoders.submit(damaged, SPEC).result(60)) == "damaged"
    decoders.close()
    assert capfd.readouterr().err == ""
