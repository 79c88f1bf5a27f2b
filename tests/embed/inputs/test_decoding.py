"""Pictures decoded in processes: chunks of a job in their order, and a service's one by one."""

import io
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from embed_fakes import PREPROCESS, colors, picture
from embed_image_files import encoded
from embed_image_files import picture as noise
from PIL import Image

from embed.files import content_id
from embed.inputs.decoding import Chunk, Decoded, DecodePool, Decoders, Picture, decode
from embed.inputs.images import ImageError, Limits, load_pixels
from embed.spec import InputError, Preprocess

FATAL, STUCK = 13 * 7, 11 * 7  # pixels of a picture that crashes its process, and of one that never ends
BLAMED = ("decode", "the decoder crashed or stalled")


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
    pictures += [Picture(str(i), None, picture(color, (5 + i, 6))) for i, color in enumerate(colors(20)[2:], 2)]
    pictures += [Picture("20", None, encoded(noise(31, 17), "AVIF"))]
    alone = [decode(Picture(p.key, p.uri, p.data), PREPROCESS, Limits()) for p in pictures]
    pool = run(DecodePool(PREPROCESS, Limits(), 2), chunks(*pictures))
    assert [p.key for p in pool] == [str(i) for i in range(21)]
    for ours, theirs in zip(pool, alone, strict=True):
        assert (ours.data, ours.outcome()) == (None, theirs.outcome())
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)


def test_only_processes_that_fetch_have_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's credentials are in the one, and strangers' bytes of this machine in the other."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    local, remote = Picture("l", None, picture((1, 2, 3))), Picture("r", "http://127.0.0.1:9/closed.png")
    with closing(DecodePool(PREPROCESS, Limits(), 1)) as pool:
        for one, there in ((local, pool._pool), (remote, pool._fetching)):
            assert there.started == 0
            (done,) = next(pool.run([Chunk([one])])).pictures
            assert there.started == 1 and done.failure == (None if one is local else done.failure)
        assert "AWS_SECRET_ACCESS_KEY" not in pool._pool._environment
        assert pool._fetching._environment["AWS_SECRET_ACCESS_KEY"] == "hunter2"
    assert remote.failure is not None and (remote.failure.stage, remote.failure.reason) == ("read", "unreadable")
    assert "http://127.0.0.1:9/closed.png" in remote.failure.detail


def test_an_endless_address_costs_its_picture_alone() -> None:
    pictures = [Picture("long", "/" + "x" * 2_000_000), Picture("good", None, picture((1, 2, 3)))]
    long, good = run(DecodePool(PREPROCESS, Limits(), 1), chunks(*pictures))
    assert long.failure is not None and (long.failure.stage, len(long.failure.detail)) == ("read", 4000)
    assert good.failure is None


def test_known_pictures_start_no_process() -> None:
    pool = DecodePool(PREPROCESS, Limits(), 2)
    work = chunks(*[Picture(str(i), None, b"not even a picture", id="0" * 32, known=True) for i in range(9)])
    assert [p.failure for p in run(pool, work)] == [None] * 9
    assert pool.started == 0


def test_no_more_than_two_chunks_a_worker_are_held() -> None:
    taken = 0

    def source() -> Iterator[Chunk]:
        nonlocal taken
        for chunk in chunks(*[Picture(str(i), None, picture(color)) for i, color in enumerate(colors(20))], size=2):
            taken += 1
            yield chunk

    given = 0
    with closing(DecodePool(PREPROCESS, Limits(), 2)) as pool:
        for _ in pool.run(source()):
            given += 1
            assert taken - given < 4
    assert given == taken == 10


def test_a_crash_costs_one_picture_and_no_other() -> None:
    pictures = [Picture(str(i), None, picture(color)) for i, color in enumerate(colors(6))]
    pictures[2].data = picture((1, 1, 1), (13, 7))
    pool = DecodePool(PREPROCESS, Limits(max_pixels=Trap(10_000)), 1)
    done = run(pool, chunks(*pictures))
    assert [p.failure is None for p in done] == [True, True, False, True, True, True]
    failure = done[2].failure
    assert failure is not None and (failure.stage, failure.reason) == BLAMED
    assert all((p.pixels == np.array(c, np.uint8)).all() for p, c in zip(done, colors(6), strict=True) if not p.failure)
    assert pool.started == 3  # the second death is the proof


def test_a_decoder_that_never_ends_is_ended() -> None:
    pictures = [Picture("stuck", None, picture((1, 1, 1), (11, 7))), Picture("good", None, picture((2, 2, 2)))]
    pool = DecodePool(PREPROCESS, Limits(max_pixels=Trap(10_000)), 1, stall_s=2.0)
    stuck, good = run(pool, chunks(*pictures))
    assert stuck.failure is not None and good.failure is None


def test_a_fault_of_the_whole_table_stops_the_job() -> None:
    with pytest.raises(InputError, match="nosuchscheme"):
        run(DecodePool(PREPROCESS, Limits(), 1), chunks(Picture("k", "nosuchscheme://bucket/a.png")))


def test_a_pool_that_is_closed_ends_its_run() -> None:
    pool = DecodePool(PREPROCESS, Limits(), 1)
    run = pool.run(Chunk([Picture("k", None, picture(color))]) for color in colors(1000))
    next(run)
    pool.close()
    assert len(list(run)) < 999


def seen(decoded: Decoded | bytes) -> tuple[str, str]:
    assert isinstance(decoded, ImageError)
    return decoded.stage, decoded.reason


def test_one_by_one_pixels_are_those_of_load_pixels_for_every_backbone() -> None:
    squash = Preprocess((5, 7), "squash", "bilinear", PREPROCESS.mean, PREPROCESS.std)
    asked = [(picture(color, (9 + i, 12)), spec) for i, color in enumerate(colors(4)) for spec in (PREPROCESS, squash)]
    with closing(Decoders(2, Limits(), 60.0)) as decoders:
        futures = [decoders.submit(*one) for one in asked]
        for one, future in zip(asked, futures, strict=True):
            np.testing.assert_array_equal(future.result(120), load_pixels(*one)[0])


def test_one_by_one_thumbnails_are_small_files() -> None:
    with closing(Decoders(1, Limits(), 60.0)) as decoders:
        for shape, size, expected in (((900, 300), 90, (90, 30)), ((9, 7), 90, (9, 7))):
            found = decoders.thumbnail(picture((200, 10, 10), shape), size).result(120)
            assert isinstance(found, bytes)
            with Image.open(io.BytesIO(found)) as image:
                assert (image.format, image.size) == ("WEBP", expected)
                np.testing.assert_allclose(np.asarray(image).mean((0, 1)), (200, 10, 10), atol=6)


@pytest.mark.parametrize("small", [False, True])
def test_one_by_one_bad_pictures_carry_their_reason(small: bool) -> None:
    lost: list[str] = []
    limits = Limits(max_bytes=1000, max_pixels=Trap(10_000))
    with closing(Decoders(1, limits, 60.0, lambda: lost.append("once"))) as decoders:

        def reason(data: bytes) -> tuple[str, str]:
            return seen((decoders.thumbnail(data, 64) if small else decoders.submit(data, PREPROCESS)).result(120))

        assert reason(b"junk") == ("decode", "unknown format")
        assert reason(b"") == ("read", "empty file")
        assert reason(bytes(1001)) == ("limits", "too many bytes")
        assert reason(b"P6 101 100 255\n") == ("limits", "too many pixels")
        assert lost == []
        assert reason(picture((1, 1, 1), (13, 7))) == BLAMED
        assert lost == ["once", "once"]
        assert isinstance(decoders.submit(picture((1, 1, 1)), PREPROCESS).result(120), np.ndarray)


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


NONSENSE = [
    b"",
    b"\xff",
    b"nonsense",
    b"[1]",
    b"{}",
    b"[" * 100_000,
    b'{"fault": "the job must stop"}',
    b'{"scaled": false, "size_bytes": 1, "id": null, "width": 1, "height": 1}',
    b'{"scaled": false, "size_bytes": 1, "id": "x", "width": 1, "height": 1}',
    b'{"scaled": false, "size_bytes": 1, "id": "%s", "width": 4294967296, "height": 1}' % (b"0" * 32),
    b'{"scaled": 1, "size_bytes": 1, "id": "%s", "width": 1, "height": 1}' % (b"0" * 32),
    b'{"scaled": false, "size_bytes": 1, "id": "%s", "width": 1, "height": 1, "stage": "x"}' % (b"0" * 32),
    b'{"scaled": false, "size_bytes": 1, "id": null, "width": 0, "height": 0, "stage": "read", "reason": "free text",'
    b' "detail": ""}',
    b'{"stage": "read", "reason": "free text", "detail": ""}',
    b'{"stage": "read", "reason": ["damaged"], "detail": ""}',
    b"=" + bytes(10),
]


def say(item: object, memory: memoryview, answer: bytes) -> bytes:
    """In place of a decoder: what it says when it is in a stranger's hands."""
    return answer


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda answer: answer[:20].decode("latin-1"))
def test_a_decoder_that_talks_nonsense_is_one_that_died(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    lost: list[int] = []
    with closing(Decoders(1, Limits(), 60.0, lambda: lost.append(1))) as decoders:
        monkeypatch.setattr(decoders._pool, "_handle", partial(say, answer=answer))
        for worker in decoders._pool._workers:
            worker.stop()
        found = decoders.submit(picture((1, 2, 3)), PREPROCESS).result(120)
        assert isinstance(found, ImageError) and (found.stage, found.reason) == BLAMED and len(lost) == 2
    pool = DecodePool(PREPROCESS, Limits(), 1)
    monkeypatch.setattr(pool._pool, "_handle", partial(say, answer=answer))
    (one,) = run(pool, chunks(Picture("a", None, picture((1, 2, 3)))))
    assert one.failure is not None and (one.failure.stage, one.failure.reason) == BLAMED


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_a_confined_decoder_reads_every_format(format: str) -> None:
    data = encoded(noise(40, 30), format)
    expected, _ = load_pixels(data, PREPROCESS, Limits())
    with closing(Decoders(1, Limits(), 60.0)) as decoders:
        found = decoders.submit(data, PREPROCESS).result(120)
    assert isinstance(found, np.ndarray) and np.array_equal(found, expected)
