"""Measure what a run on a finished cache costs, where all pictures are known and nothing is to be done.

    python benchmarks/restart.py --count 100000

There are tiny PNG files in a folder and a stub backbone. Three processes run one after another: the job, the job again,
and again with --rehash, which reads every picture. It prints seconds from start to exit and the bytes that the process
and its decoders read; the last line of stdout is a JSON document.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds another `embed`

from benchmarks.memory import IDENTITY, StubEncoder, tiny_png  # noqa: E402
from embed.cache.store import CacheWriter  # noqa: E402
from embed.inputs.decoding import DecodePool  # noqa: E402
from embed.inputs.images import Limits  # noqa: E402
from embed.jobs.run import embed_images  # noqa: E402
from embed.records.formats import read_records  # noqa: E402
from embed.spec import Source  # noqa: E402


def run_job(folder: Path, out: Path, rehash: bool) -> None:
    with CacheWriter(out, IDENTITY, Source("stub")) as writer:
        decoder = DecodePool(IDENTITY.preprocess, Limits(), os.cpu_count() or 1)
        counts = embed_images([read_records(str(folder))], writer, StubEncoder(), decoder, rehash=rehash)
    # This includes children that have ended, so it is read after the pool is closed.
    read = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    print(json.dumps({**counts.to_json(), "read_bytes": int(read.split()[1])}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        run_job(Path(args.job[0]), Path(args.job[1]), args.job[2] == "rehash")
        return 0
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        pictures, out = Path(name, "pictures"), Path(name, "cache")
        pictures.mkdir()
        for i in range(args.count):
            (pictures / f"{i}.png").write_bytes(tiny_png(i))
        for run, mode in (("first", "known"), ("again", "known"), ("rehash", "rehash")):
            start = time.monotonic()
            done = subprocess.run(
                [sys.executable, __file__, "--job", pictures, out, mode], stdout=subprocess.PIPE, check=True
            )
            counts = json.loads(done.stdout.splitlines()[-1])
            results[run] = {"wall_s": time.monotonic() - start, **counts}
            print(run, {key: round(value, 1) for key, value in results[run].items()}, flush=True)
    print(json.dumps(results))
    return 0 if results["again"]["known"] == args.count else 1


if __name__ == "__main__":
    raise SystemExit(main())
