"""AVIF, which is decoded only where memory is bounded: as Pillow does, and whatever its header says."""

import io
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from avif_files import DEEP, LARGE_INSIDE, by_pillow, claiming
from embed_image_files import SQUARE, encoded, failure, picture
from paths import ROOT
from PIL import AvifImagePlugin, Image

from embed.inputs import images
from embed.inputs.decoding import Decoders
from embed.inputs.images import ImageError, Limits, load_image, load_pixels
from embed.inputs.thumbnails import thumbnail
from embed.process.bounds import CAN_BOUND
from embed.spec import Preprocess

pytestmark = pytest.mark.skipif(not CAN_BOUND, reason="this system does not bound the memory of a process")


@pytest.mark.parametrize("data", [encoded(picture(31, 17), "AVIF"), *DEEP], ids=["8", "10", "12", "10-alpha"])
def test_pixels_are_pillows(data: bytes) -> None:
    assert np.array_equal(load_image(data), by_pillow(data))
    with closing(Decoders(1, Limits(), 60.0)) as decoders:
        decoded = decoders.submit(data, SQUARE).result(120)
    assert isinstance(decoded, np.ndarray) and np.array_equal(decoded, load_pixels(data, SQUARE)[0])


def test_it_is_not_decoded_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(200, 100), "AVIF")
    monkeypatch.setattr(AvifImagePlugin.AvifImageFile, "_open", lambda _: pytest.fail("was opened here"))
    assert load_image(data).size == (200, 100)
    assert thumbnail(data).size == (192, 96)
    assert load_pixels(data, SQUARE)[1] == (200, 100)


def test_a_script_needs_no_guard_and_a_fork_has_processes_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.avif").write_bytes(encoded(picture(31, 17), "AVIF"))
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "from embed.inputs.images import load_image\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "print(load_image(data).size, flush=True)\n"
        "if os.fork() == 0:\n"
        "    print(load_image(data).size, flush=True)\n"
        "    os._exit(0)\n"
        "assert os.wait()[1] == 0\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "a.avif")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "(31, 17)\n" * 2), done.stderr


def test_headers_that_claim_too_much_are_refused_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(31, 17), "AVIF")
    for size in ((60_000, 60_000), (2**32 - 1, 2**32 - 1), (8192, 8193)):
        error = failure(claiming(data, *size))
        assert str(error) == f"too many pixels: {size[0]} x {size[1]}, at most {1 << 26} allowed"
    assert load_image(data, Limits(max_pixels=31 * 17)).size == (31, 17)
    assert failure(data, Limits(max_pixels=31 * 17 - 1)).reason == "too many pixels"


def test_a_frame_that_is_larger_than_its_header_says_takes_no_more_memory_than_the_limits_allow() -> None:
    with Image.open(io.BytesIO(LARGE_INSIDE)) as stored:
        assert stored.size == (100, 100)
    # Its frame of 400 MB would fit into 1.3 GB, which the default limits come to.
    error = failure(LARGE_INSIDE, Limits(max_pixels=1 << 20, max_bytes=1 << 20))
    assert error.stage == "decode" and "takes too much memory" in str(error)


def test_where_memory_cannot_be_bounded_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CAN_BOUND", False)
    error = failure(encoded(picture(31, 17), "AVIF"))
    assert error.reason == "unsupported encoding" and "only decoded where" in str(error)


def test_a_pillow_without_avif_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = "AVIF support not installed"
    monkeypatch.setitem(Image.OPEN, "AVIF", (Image.OPEN["AVIF"][0], lambda prefix: prefix[4:8] == b"ftyp" and accept))
    monkeypatch.setattr(images, "is_bounded", lambda: True)
    error = failure(encoded(picture(31, 17), "AVIF"))
    assert str(error) == "unsupported encoding: AVIF support not installed"


@pytest.mark.parametrize("cut", [20, 100, -1])
def test_cut_short_is_an_error(cut: int) -> None:
    with pytest.raises(ImageError, match="truncated"):
        load_image(encoded(picture(31, 17), "AVIF")[:cut])


def test_30_files_of_every_kind() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "robustness.py"), "--avif", "30", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["wrong"] == {} and report["peak_mib"] < 500
    assert sum(report["outcomes"].values()) == 30 and report["outcomes"]["AVIF, whole, pixels"] == 12


def test_exif_is_heeded_in_a_process_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(40, 30), "AVIF", exif=exif)
    as_stored = Preprocess(**{**vars(SQUARE), "ignore_exif": True})
    assert (load_pixels(data, SQUARE)[1], load_pixels(data, as_stored)[1]) == ((30, 40), (40, 30))
