import io
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from embed_fakes import PREPROCESS, colors, picture
from PIL import Image

from embed.files import content_id
from embed.inputs.decoding import Chunk, DecodePool, Picture, decode
from embed.inputs.images import Limits
from embed.spec import InputError

FATAL, STUCK = 13 * 7, 11 * 7  # pixels of a picture that crashes its process, and of one that never ends


class Trap(int):
    """A limit whose comparison with a picture's size does what a broken decoder does."""

    def __lt__(self, pixels: int) -> bool:
        if pixels == FATAL:
            os.kill(os.getpid(), signal.SIGSEGV)
        if pixels == STUCK:
            time.sleep(600)
        return int(self) < pixels


def chunks(*pictures: Picture, size: int = 4) -> list[Chunk]:
    return [Chunk(list(pictures[i : i + size])) for i in range(0, len(pictures), size)]


def run(pool: DecodePool, work: list[Chunk]) -> list[Picture]:
    with closing(pool):
        return [one for chunk in pool.run(work) for one in chunk.pictures]


def test_a_picture_comes_back_with_its_pixels_and_without_its_bytes() -> None:
    data = picture((10, 20, 30), (12, 9))
    one = decode(Picture("k", None, data), PREPROCESS, Limits())
    assert (one.data, one.id, one.width, one.height, one.failure) == (None, content_id(data), 12, 9, None)
    assert one.pixels is not None and (one.pixels == np.array([10, 20, 30], np.uint8)).all()


@pytest.mark.parametrize(
    "name, content, stage, reason",
    [
        ("gone", None, "read", "no such file"),
        ("empty", b"", "read", "empty file"),
        ("text", b"no picture at all", "decode", "unknown format"),
        ("large", picture((0, 0, 0), (101, 100)), "limits", "too many pixels"),
        ("heavy", bytes(5001), "read", "unreadable"),
    ],
)
def test_failures_have_a_stage_and_a_reason(
    tmp_path: Path, name: str, content: bytes | None, stage: str, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    one = decode(Picture(name, str(tmp_path / name)), PREPROCESS, Limits(max_bytes=5000, max_pixels=10_000))
    assert one.failure is not None and (one.failure.stage, one.failure.reason) == (stage, reason)
    assert one.pixels is None


def test_processes_give_what_one_process_gives_in_the_same_order(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture(colors(1)[0]))
    pictures = [Picture("0", str(tmp_path / "0.png")), Picture("1", str(tmp_path / "gone.png"))]
    pictures += [Picture(str(i), None, picture(color, (5 + i, 6))) for i, color in enumerate(colors(21)[2:], 2)]
    alone = [decode(Picture(p.key, p.uri, p.data), PREPROCESS, Limits()) for p in pictures]
    pool = run(DecodePool(PREPROCESS, Limits(), 2), chunks(*pictures))
    assert [p.key for p in pool] == [str(i) for i in range(21)]
    for ours, theirs in zip(pool, alone, strict=True):
        assert (ours.id, ours.width, ours.height, ours.failure) == (
            theirs.id,
            theirs.width,
            theirs.height,
            theirs.failure,
        )
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)


def test_known_pictures_start_no_process() -> None:
    pool = DecodePool(PREPROCESS, Limits(), 2)
    work = chunks(*[Picture(str(i), None, b"not even a picture", id="0" * 32, known=True) for i in range(9)])
    assert [p.failure for p in run(pool, work)] == [None] * 9
    assert pool.started == 0


def test_a_crash_costs_one_picture_and_no_other() -> None:
    pictures = [Picture(str(i), None, picture(color)) for i, color in enumerate(colors(6))]
    pictures[2].data = picture((1, 1, 1), (13, 7))
    pool = DecodePool(PREPROCESS, Limits(max_pixels=Trap(10_000)), 1)
    done = run(pool, chunks(*pictures))
    assert [p.failure is None for p in done] == [True, True, False, True, True, True]
    failure = done[2].failure
    assert failure is not None and (failure.stage, failure.reason) == ("decode", "the decoder crashed or stalled")
    assert all((p.pixels == np.array(c, np.uint8)).all() for p, c in zip(done, colors(6), strict=True) if not p.failure)
    assert pool.started == 3  # the second death is the proof


def test_a_decoder_that_never_ends_is_ended() -> None:
    pictures = [Picture("stuck", None, picture((1, 1, 1), (11, 7))), Picture("good", None, picture((2, 2, 2)))]
    pool = DecodePool(PREPROCESS, Limits(max_pixels=Trap(10_000)), 1, stall_s=3.0)
    stuck, good = run(pool, chunks(*pictures))
    assert stuck.failure is not None and good.failure is None


def test_a_fault_of_the_whole_table_stops_the_job() -> None:
    with pytest.raises(InputError, match="nosuchscheme"):
        run(DecodePool(PREPROCESS, Limits(), 1), chunks(Picture("k", "nosuchscheme://bucket/a.png")))


def test_libraries_write_nothing_on_our_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 100).convert("RGB").save(file, "TIFF", compression="tiff_lzw")
    damaged = bytearray(file.getvalue())
    damaged[20:200] = b"\xff" * 180
    decode(Picture("here", None, bytes(damaged)), PREPROCESS, Limits())
    assert "Using code not yet in table" in capfd.readouterr().err
    (one,) = run(DecodePool(PREPROCESS, Limits(), 1), chunks(Picture("there", None, bytes(damaged))))
    assert one.failure is not None and one.failure.reason == "damaged"
    assert capfd.readouterr().err == ""
