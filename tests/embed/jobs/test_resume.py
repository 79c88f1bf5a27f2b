import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_fakes import colors, picture
from paths import HELPERS, ROOT

from embed.cache.store import Cache
from embed.jobs.verify import damaged_files

# `python -m embed` with a tiny backbone that takes its time.
COMMAND = """
import os, signal, sys, time
import embed_tiny
from embed.backbones import load
from embed.cli import main as cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
tower = embed_tiny.ImageTower.forward
def forward(self, pixels):
    print("encoding", file=sys.stderr, flush=True)
    time.sleep(float(os.environ["BATCH_S"]))
    return tower(self, pixels)
embed_tiny.ImageTower.forward = forward
load.load_backbone = embed_tiny.load_tiny
if __name__ == "__main__":
    raise SystemExit(cli.main(sys.argv[1:]))
"""


def start(folder: Path, *more: str, batch_s: float = 0, **options: object) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS)]),
        "PLAUDIT_CACHE": str(folder / "machine"),
        "OMP_NUM_THREADS": "1",
        "BATCH_S": str(batch_s),
    }
    arguments = ["cache", str(folder / "t.parquet"), "--model", "tiny", "--out", str(folder / "c"), "--engine", "torch"]
    arguments += ["--precision", "fp32", "--workers=1", *more]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = {"image": [picture(color, (40, 40)) for color in colors(60)], "rating": [0.0] * 60}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    return tmp_path


def test_kills_at_random_moments_leave_the_bytes_of_an_uninterrupted_job() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kill_resume.py"), "--kills", "4", "--seed", "3"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["kills"] == 4 and summary["identical"] == summary["rounds"]


def test_ctrl_c_ends_with_130_and_a_sound_cache(data: Path) -> None:
    process = start(data, "--batch-size=4", batch_s=600, start_new_session=True)
    assert process.stderr is not None
    assert any("encoding" in line for line in process.stderr)
    os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to every process of the group
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130 and error.splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
    assert damaged_files(Cache.open(data / "c")) == []
    process = start(data, "--batch-size=4")
    process.communicate()
    assert process.returncode == 0 and Cache.open(data / "c").count("images") == 60
