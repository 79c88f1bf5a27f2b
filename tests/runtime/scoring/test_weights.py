"""Weights are read once, verified as they are read, and safe from whatever is done to their file afterwards."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from paths import ROOT

from runtime.config import Precision, SessionConfig
from runtime.scoring.bundle import WEIGHTS_FILE, BundleError, open_bundle
from runtime.scoring.scorer import Scorer
from runtime.scoring.weights import PIECE_BYTES, external_places, read_weights

PROMPTS = [f"a cat number {i}" for i in range(40)]
# Scores, has the weights overwritten, and scores again what it has not seen yet.
SCORES_ON = """
import os, sys
from runtime.config import SessionConfig
from runtime.scoring.scorer import Scorer

scorer = Scorer.load(sys.argv[1], SessionConfig(threads=1))
pixels, prompts = [__import__("numpy").full((64, 64, 3), 90, "uint8")], sys.argv[3:]
scorer.score(prompts[0], pixels)
with open(os.path.join(sys.argv[1], "weights.bin"), "r+b") as file:
    size = os.fstat(file.fileno()).st_size
    file.truncate(0)
    file.write(bytes(int(sys.argv[2]) * size))
print(*(float(scorer.score(prompt, pixels)[0]) for prompt in prompts))
"""


def places_by_onnx(path: Path) -> set[tuple[int, int]]:
    """What `external_places` gives, by the library of ONNX."""
    found = set()
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            found.add((int(place["offset"]), int(place["length"])))
    return found


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_the_graphs_name_is_read_and_nothing_else(bundle: Path, precision: Precision) -> None:
    opened = open_bundle(bundle)
    graphs = [bundle / graph.file for graph in opened.graphs[precision].values()]
    for path in graphs:
        assert set(external_places(path.read_bytes())) == places_by_onnx(path)
    data = np.fromfile(bundle / WEIGHTS_FILE, np.uint8)
    assert len(data) > 2 * PIECE_BYTES
    named = np.zeros(len(data), bool)
    for offset, length in set().union(*map(places_by_onnx, graphs)):
        named[offset : offset + length] = True
    assert 0.2 < named.mean() < 0.9
    assert np.array_equal(np.frombuffer(read_weights(opened, precision), np.uint8), np.where(named, data, 0))


@pytest.mark.parametrize("zeros", [0, 1], ids=["shortened", "other bytes"])
def test_weights_overwritten_in_place_change_no_score(bundle: Path, tmp_path: Path, zeros: int) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    command = [sys.executable, "-c", SCORES_ON, str(copy), str(zeros), *PROMPTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels = np.full((64, 64, 3), 90, np.uint8)
    expected = Scorer.load(bundle, SessionConfig(threads=1)).score(PROMPTS, [pixels] * len(PROMPTS))
    assert np.ptp(expected) > 1e-3
    assert list(map(float, done.stdout.split())) == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "image.onnx"])
def test_a_session_opened_later_reads_no_other_bundle(bundle: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    scorer = Scorer.load(copy, SessionConfig(threads=2))
    pixels = [np.zeros((64, 64, 3), np.uint8)]
    before = scorer.score("a cat", pixels)
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} is not the file that was exported .* swap the folders"):
        scorer.encode_pixels(pixels, threads=1)
    assert scorer.score("a cat", pixels) == before


def test_damaged_weights_are_found_when_a_scorer_is_made(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    data = bytearray((copy / WEIGHTS_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.bin is not the file that was exported"):
        Scorer.load(copy)
