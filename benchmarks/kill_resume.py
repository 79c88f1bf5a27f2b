"""Kill an embedding job at random moments, run it again, and compare its cache with an uninterrupted one.

    python benchmarks/kill_resume.py --kills 200

Each round starts a job in a separate process, kills it with SIGKILL after a random time, checks that it left a valid
cache, runs the same job to its end, and compares all files byte by byte. The job is the real one, with decoding
processes, shards of 16 rows and a ledger; only the backbone is a stub, so that a round takes two seconds. The last line
of stdout is a JSON document; the exit code is 1 if a round failed.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, which holds a file named like the package `embed`

from embed.cache.store import Cache, CacheWriter  # noqa: E402
from embed.inputs.decoding import DecodePool  # noqa: E402
from embed.inputs.images import Limits  # noqa: E402
from embed.jobs import run  # noqa: E402
from embed.jobs.verify import damaged_files  # noqa: E402
from embed.records.formats import read_records  # noqa: E402
from embed.spec import Identity, Preprocess, Source  # noqa: E402

PICTURES = 150
SHARD_ROWS = 16
IDENTITY = Identity(
    "stub", "0" * 64, Preprocess((16, 16), "squash", "bicubic", (0.0,) * 3, (1.0,) * 3), "none", "none", 8, 4
)


class StubEncoder:
    """Gives mean colours as vectors, slowly enough that a kill can come between any two batches."""

    features = ("projected",)
    batch_size = 4

    def images(self, pixels: np.ndarray) -> list[np.ndarray]:
        time.sleep(0.01)
        return [np.concatenate([np.ones((len(pixels), 1)), pixels.mean(axis=(1, 2)) / 255], axis=1, dtype=np.float32)]

    def prompts(self, prompts: Sequence[str]) -> tuple[np.ndarray, int]:
        time.sleep(0.01)
        return np.array([[1, len(p), p.count("1"), p.count("2")] for p in prompts], np.float32), 0


def write_data(folder: Path) -> Path:
    """Write a table of PICTURES pictures; every tenth is broken, and every seventh is a copy of an earlier one."""
    (folder / "pictures").mkdir(parents=True)
    names = []
    for i in range(PICTURES):
        name = f"pictures/{i:03d}.png"
        color = i // 7 if i % 7 == 0 else i
        Image.new("RGB", (20, 30), (color, 255 - color, 7 * color % 256)).save(folder / name)
        if i % 10 == 3:
            (folder / name).write_bytes(b"broken")
        names.append(name)
    rows = {"image": names, "rating": [0.0] * PICTURES, "prompt": [f"prompt {i % 60}" for i in range(PICTURES)]}
    pq.write_table(pa.table(rows), folder / "table.parquet")
    return folder / "table.parquet"


def run_job(table: Path, out: Path) -> None:
    """Run the job in this process."""
    run.SHARD_ROWS = SHARD_ROWS
    tables = [read_records(table)]
    with CacheWriter(out, IDENTITY, Source("stub")) as writer:
        run.embed_images(tables, writer, StubEncoder(), DecodePool(IDENTITY.preprocess, Limits(), 1))
        run.embed_prompts(tables, writer, StubEncoder())


def start_job(table: Path, out: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, __file__, "--job", str(table), str(out)])


def digests(cache: Path) -> dict[str, str]:
    """Return the hash of every file except the lock."""
    return {
        file.relative_to(cache).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(cache.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def rounds(table: Path, folder: Path, kills: int, seed: int) -> Iterator[dict[str, object]]:
    """Yield, until `kills` came in time, when a kill came, what was committed then, and whether the end was right."""
    whole = folder / "whole"
    start = time.monotonic()
    if start_job(table, whole).wait() != 0:
        raise RuntimeError("the uninterrupted job failed")
    duration_s = time.monotonic() - start
    expected = digests(whole)
    generator = random.Random(seed)
    while kills > 0:
        out = folder / "cache"
        shutil.rmtree(out, ignore_errors=True)
        after_s = generator.uniform(0.1 * duration_s, duration_s)
        process = start_job(table, out)
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        kills -= killed
        committed, damaged = -1, 0
        if (out / "manifest.json").exists():
            left = Cache.open(out)
            committed = left.count("images") + left.count("prompts")
            # Only the ledger may be one commit ahead of the manifest, because it is replaced in place.
            damaged = len([name for name in damaged_files(left) if name != "failures.parquet"])
        resumed = start_job(table, out).wait() == 0
        yield {
            "after_s": round(after_s, 3),
            "killed": killed,
            "committed": committed,
            "ok": resumed and damaged == 0 and digests(out) == expected,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", nargs=2, metavar=("TABLE", "OUT"), type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        run_job(*args.job)
        return 0
    with tempfile.TemporaryDirectory() as name:
        table = write_data(Path(name) / "data")
        results = []
        for result in rounds(table, Path(name), args.kills, args.seed):
            results.append(result)
            print(len(results), result, file=sys.stderr)
    summary = {
        "kills": sum(bool(result["killed"]) for result in results),
        "rounds": len(results),
        "cut_short": sum(result["committed"] not in (-1, 0) and bool(result["killed"]) for result in results),
        "identical": sum(bool(result["ok"]) for result in results),
    }
    print(json.dumps(summary))
    return 0 if summary["identical"] == len(results) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
