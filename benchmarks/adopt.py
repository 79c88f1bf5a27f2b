"""Measure `embed adopt` on a folder of clip-retrieval: time, peak memory, and bytes written to disk.

    python benchmarks/adopt.py [--rows 1000000] [--dim 512] [--shards 1] [--folder FOLDER]

The vectors are random unit vectors in float16, made in a separate process and removed afterwards. The command runs as a
user would type it: with its defaults, which link the vectors; again, when all are known; with --copy; and last on the
same vectors as float32 lists in a Parquet file. It prints the machine, a line for each run, and a JSON document. It
exits with 1 if the defaults take more than a minute or 1 GB, or write more than a tenth of the vectors' size.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
BLOCK = 50_000
MAX_S, MAX_BYTES = 60, 10**9


def make(folder: Path, rows: int, dim: int, shards: int) -> None:
    """Make the folder `img_emb` with its metadata, and `table.parquet` with the same vectors."""
    rng = np.random.default_rng(0)
    for name in ("img_emb", "metadata"):
        (folder / "clip" / name).mkdir(parents=True)
    schema = pa.schema([("image", pa.string()), ("vector", pa.list_(pa.float32(), dim))])
    starts = [rows * i // shards for i in range(shards + 1)]
    with pq.ParquetWriter(folder / "table.parquet", schema) as table:
        for number, (first, last) in enumerate(pairwise(starts)):
            file = folder / "clip" / "img_emb" / f"img_emb_{number}.npy"
            vectors = np.lib.format.open_memmap(file, "w+", np.float16, (last - first, dim))
            for start in range(0, last - first, BLOCK):
                count = min(BLOCK, last - first - start)
                block = rng.standard_normal((count, dim), dtype=np.float32)
                block /= np.linalg.norm(block, axis=1, keepdims=True)
                vectors[start : start + count] = block
                names = [f"{first + start + i:09d}.jpg" for i in range(count)]
                lists = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), dim)
                table.write_table(pa.table({"image": names, "vector": lists}, schema))
            names = [f"{i:09d}.jpg" for i in range(first, last)]
            pq.write_table(pa.table({"image_path": names}), folder / "clip" / "metadata" / f"metadata_{number}.parquet")
    (folder / "identity.json").write_text(json.dumps({"model": "made", "weights": "1", "dim": dim}))


def adopt(folder: Path, source: str, out: str, *options: str) -> dict[str, float]:
    """Run the command once. Return its time, its peak memory, and the bytes of its cache that are not links."""
    command = [
        sys.executable,
        "-m",
        "embed",
        "adopt",
        str(folder / source),
        "--identity",
        str(folder / "identity.json"),
    ]
    start = time.monotonic()
    running = subprocess.Popen([*command, "--out", str(folder / out), *options], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise SystemExit(running.returncode)
    files = [file for file in (folder / out).rglob("*") if file.is_file()]
    return {
        "seconds": time.monotonic() - start,
        "peak_bytes": used.ru_maxrss * 1024,
        "written_bytes": sum(
            file.stat().st_size for file in files if file.stat().st_nlink == 1 and not file.is_symlink()
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where to make the vectors; by default the system's temporary folder"
    )
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make, args.rows, args.dim, args.shards)
        return 0
    vectors_bytes = 2 * args.rows * args.dim
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; {args.rows:,} x {args.dim}"
    )
    results = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        shape = ["--rows", str(args.rows), "--dim", str(args.dim), "--shards", str(args.shards)]
        subprocess.run([sys.executable, __file__, "--make", name, *shape], check=True)
        for what, *command in (
            ("linked", "clip", "linked"),
            ("again", "clip", "linked"),
            ("copied", "clip", "copied", "--copy"),
            ("table", "table.parquet", "table"),
        ):
            found = results[what] = adopt(folder, *command)
            print(
                f"{what:7} {found['seconds']:6.1f} s, peak {found['peak_bytes'] / 1e6:6.0f} MB, files of its own"
                f" {found['written_bytes'] / 1e6:7.1f} MB of {vectors_bytes / 1e6:.1f} MB of vectors",
                flush=True,
            )
    print(json.dumps(results))
    first = results["linked"]
    few = first["written_bytes"] < vectors_bytes / 10
    return 0 if first["seconds"] < MAX_S and first["peak_bytes"] < MAX_BYTES and few else 1


if __name__ == "__main__":
    raise SystemExit(main())
