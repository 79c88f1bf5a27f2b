"""Measure the peak memory of the embedding job for two numbers of pictures.

    python benchmarks/memory.py --small 100000 --large 1000000

Two jobs run in separate processes on synthetic tables, whose pictures are tiny PNGs inside a Parquet file; the backbone
is a stub. It prints the peak resident memory of the job and of its largest decoding process, in MiB, and the ratio of
the large job to the small one; the last line of stdout is a JSON document.
"""

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, which holds a file named like the package `embed`

from embed.cache.store import CacheWriter  # noqa: E402
from embed.inputs.decoding import DecodePool  # noqa: E402
from embed.inputs.images import Limits  # noqa: E402
from embed.jobs.run import embed_images  # noqa: E402
from embed.records.formats import read_records  # noqa: E402
from embed.spec import Identity, Preprocess, Source  # noqa: E402

ROW_GROUP = 10_000
IDENTITY = Identity("stub", "0" * 64, Preprocess((8, 8), "squash", "bilinear", (0.0,) * 3, (1.0,) * 3), "", "", 8, 64)


class StubEncoder:
    features = ("projected",)
    batch_size = 256

    def images(self, pixels: np.ndarray) -> list[np.ndarray]:
        return [np.full((len(pixels), 64), 0.125, np.float32)]

    def prompts(self, prompts: Sequence[str]) -> tuple[np.ndarray, int]:
        raise NotImplementedError


def tiny_png(i: int) -> bytes:
    """Return a valid PNG of 2 x 1 pixels that is different for every i below 2**48."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", header)
        + part(b"IDAT", zlib.compress(b"\0" + i.to_bytes(6, "big"), 1))
        + part(b"IEND", b"")
    )


def write_table(path: Path, count: int) -> None:
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("rating", pa.float32())]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, ROW_GROUP):
            ids = range(start, min(start + ROW_GROUP, count))
            images = [{"bytes": tiny_png(i), "path": f"{i}.png"} for i in ids]
            writer.write_table(pa.table({"image": images, "rating": [0.0] * len(images)}, schema))


def run_job(table: Path, out: Path) -> None:
    with CacheWriter(out, IDENTITY, Source("stub")) as writer:
        counts = embed_images(
            [read_records(table)], writer, StubEncoder(), DecodePool(IDENTITY.preprocess, Limits(), 2)
        )
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(
        json.dumps(
            {
                "embedded": counts.embedded,
                "per_s": counts.to_json()["per_s"],
                "job_mib": peaks[0],
                "decoder_mib": peaks[1],
            }
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--job", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        run_job(*args.job)
        return 0
    results = {}
    with tempfile.TemporaryDirectory() as name:
        for size, count in (("small", args.small), ("large", args.large)):
            table, out = Path(name, f"{size}.parquet"), Path(name, size)
            write_table(table, count)
            done = subprocess.run([sys.executable, __file__, "--job", table, out], stdout=subprocess.PIPE, check=True)
            results[size] = json.loads(done.stdout.splitlines()[-1])
            print(size, results[size], file=sys.stderr)
    ratio = results["large"]["job_mib"] / results["small"]["job_mib"]
    print(json.dumps({**results, "ratio": ratio}))
    return 0 if ratio <= 1.2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
