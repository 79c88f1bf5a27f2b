"""Trials in a process of their own: their results and errors come back, its memory and its end do not stay."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import unfreeze_tiny
from embed_fakes import colors, picture

from embed.apart import TowersApart
from embed.cache import Cache
from embed.engines import Wanted
from embed.machine import remembered_identity
from embed.spec import InputError, Source
from embed.towers import Towers

ROOT = Path(__file__).parents[1]
PROMPTS = [f"prompt {i}" for i in range(8)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(f"local-dir:{unfreeze_tiny.make_folder(tmp_path_factory.mktemp('model'))}")


@pytest.fixture(scope="module")
def towers(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Towers:
    return Towers(source, tmp_path_factory.mktemp("machine"), ["projected"])


@pytest.fixture(scope="module")
def apart(towers: Towers) -> Iterator[TowersApart]:
    """One for several tests: each process imports torch."""
    assert towers.needs_backbone
    made = TowersApart(towers)
    made.learn_identity()
    yield made
    made.close()


def test_what_the_process_learns_is_known_here(towers: Towers, apart: TowersApart) -> None:
    assert not towers.needs_backbone and remembered_identity(*towers.settings[:2]) == towers.identity
    wanted = Wanted("onnx", "fp32", "cpu")
    chosen = apart.measure("prompts", PROMPTS, wanted, "cpu", 4).engine
    assert chosen.rows == len(PROMPTS) and chosen.cosine_min > 0.99999
    assert towers.find("prompts", wanted, "cpu") == chosen
    vectors = towers.runner("prompts", chosen)(towers.tokenize(PROMPTS)[0])[0]
    assert vectors.shape == (len(PROMPTS), towers.identity.dim) and not towers.has_backbone


def test_errors_come_back_as_they_are_with_where_they_arose(towers: Towers, apart: TowersApart) -> None:
    with pytest.raises(InputError, match=r"no engine .* keeps a cosine of 1\.0") as caught:
        apart.measure("prompts", PROMPTS, Wanted("onnx", "int8", "cpu", min_cosine=1.0), "cpu", 4)
    assert "in choose" in caught.value.__notes__[0]
    apart.learn_identity()  # the process goes on


def test_a_process_that_is_killed_is_an_error_that_says_what_to_do(apart: TowersApart) -> None:
    apart.learn_identity()
    assert apart._process is not None and apart._process.pid is not None
    os.kill(apart._process.pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"exit code -9.*--engine torch --precision fp32"):
        apart.learn_identity()
    apart.close()
    assert apart._process is None  # the next question starts another one


def test_a_first_run_on_a_machine_keeps_torch_out_of_the_job(source: Source, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i, color in enumerate(colors(5)):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(picture(color))
    code = (
        "import json, sys; from embed import cli; code = cli.main(sys.argv[1:]);"
        " print(json.dumps([code, 'torch' in sys.modules]))"
    )
    command = ["cache", str(tmp_path / "pictures"), "--model", source.model]
    command += ["--out", str(tmp_path / "c"), "--engine", "onnx", "--precision", "fp32", "--device", "cpu"]
    command += ["--machine-cache", str(tmp_path / "machine"), "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, False], done.stderr
    assert "cosine to fp32 at least" in done.stderr
    assert Cache.open(tmp_path / "c").count("images") == 5


def test_the_process_ends_in_the_midst_of_work_with_a_parent_that_is_killed(source: Source, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from embed.apart import TowersApart; from embed.engines import Wanted;"
        " from embed.spec import Source; from embed.towers import Towers;"
        " apart = TowersApart(Towers(Source(sys.argv[1]), Path(sys.argv[2]), ['projected']));"
        " apart.learn_identity(); print(apart._process.pid, flush=True);"
        " apart.measure('prompts', ['many words'] * 1_000_000, Wanted(), 'cpu', 4)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, source.model, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        process = Path("/proc", parent.stdout.readline().strip())
    time.sleep(1)
    assert process.exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while process.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.exists()
