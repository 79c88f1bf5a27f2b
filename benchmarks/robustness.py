"""Decode pictures that are valid, cut, changed or lie about their size, mostly AVIF, in every way of decoding.

    python benchmarks/robustness.py [PICTURE_OR_FOLDER ...] --avif 200 --seed 0 [--json]

The AVIF files are made here: 8, 10 and 12 bits, with and without alpha, every chroma and orientation, animations; some
are cut, some mutated, and the headers of some state a wrong size. All files go through a job's processes. AVIF files
also go through `load_image`, which must give the same result, and the pixels of a valid AVIF must be those that Pillow
gives. It prints counts by outcome, the peak memory of all processes together (sampled, with shared pages counted once),
and versions. It exits with 1 if a picture killed a process, had no outcome or differed, or if the memory exceeds
--max-mib.
"""

import argparse
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, which holds a file named like the package `embed`
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "tests" / "helpers")]

from avif_files import DEEP, LARGE_INSIDE, by_pillow, claiming  # noqa: E402
from fuzz_images import SPEC, encoded, mutated  # noqa: E402

from embed.inputs.decoding import CHUNK, Chunk, DecodePool, Picture  # noqa: E402
from embed.inputs.images import BLAMED, ImageError, Limits, load_image  # noqa: E402
from embed.inputs.pixels import preprocess  # noqa: E402

SAMPLE_S = 0.01


def whole(rng: np.random.Generator, i: int) -> bytes:
    """Return the i-th kind of valid AVIF, with random content."""
    if i % 8 < len(DEEP):
        return DEEP[i % 8]
    width, height = map(int, rng.integers(1, 200, 2))
    noise = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 4), dtype=np.uint8)
    mode = ("RGB", "RGBA", "L", "LA")[i % 4]
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = i % 9
    # Pillow crashes when it writes an animation with an orientation.
    more: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(180)]} if i % 5 == 0 else {"exif": exif}
    return encoded(
        image,
        "AVIF",
        quality=int(rng.integers(20, 101)),
        speed=9,
        subsampling=("4:2:0", "4:2:2", "4:4:4", "4:0:0")[int(rng.integers(4))],
        range=("full", "limited")[i % 2],
        **more,
    )


def avif_files(count: int, seed: int) -> dict[str, bytes]:
    """Return `count` files named by their kind: of ten, four whole, two cut, three mutated, one with a wrong size."""
    files = {}
    sound: list[bytes] = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        kind = ("whole", "cut", "mutated", "whole", "mutated", "claiming", "whole", "cut", "mutated", "whole")[i % 10]
        data = whole(rng, i) if kind != "mutated" else b""
        if kind == "whole":
            sound.append(data)
        elif kind == "cut":
            data = data[: int(rng.integers(len(data)))]
        elif kind == "mutated":
            data = mutated(sound, seed, i)
        else:
            size = [(60_000, 60_000), (65_535, 1), (0, 5), (2**31 - 1, 2**31 - 1), (8192, 8192), (3, 2)][i // 10 % 6]
            data = claiming(data, *size)
        files[f"{kind} {i}.avif"] = data
    if count >= 100:  # because decoding this file takes seconds
        files["claiming too little.avif"] = LARGE_INSIDE
    return files


def read(paths: list[Path]) -> dict[str, bytes]:
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {str(file): file.read_bytes() for file in files if file.is_file()}


class Memory(threading.Thread):
    """Measures the memory of this process and its children together, with shared pages counted once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self.stop = threading.Event()

    def run(self) -> None:
        own = os.getpid()
        while not self.stop.wait(SAMPLE_S):
            held = 0
            for status in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = status.read_text().rpartition(")")[2].split()
                    if own in (int(status.parent.name), int(fields[1])):
                        shares = (status.parent / "smaps_rollup").read_text()
                        held += 1024 * int(re.search(r"^Pss: *(\d+)", shares, re.MULTILINE)[1])
                except (OSError, IndexError, TypeError):  # the process has ended
                    continue
            self.peak_bytes = max(self.peak_bytes, held)


def by_a_job(files: dict[str, bytes], workers: int) -> dict[str, Picture]:
    """Return the outcome of each file in the processes of a job."""
    pictures = [Picture(name, None, data) for name, data in files.items()]
    chunks = [Chunk(pictures[i : i + CHUNK]) for i in range(0, len(pictures), CHUNK)]
    with closing(DecodePool(SPEC, Limits(), workers)) as pool:
        return {picture.key: picture for chunk in pool.run(chunks) for picture in chunk.pictures}


def difference(name: str, data: bytes, job: Picture) -> str | None:
    """Return how `load_image` or Pillow disagrees with the job about an AVIF, or None."""
    try:
        image = load_image(data)
    except ImageError as error:
        if job.failure is None or job.failure.reason != error.reason:
            return f"load_image says {error}, the job {job.failure or 'pixels'}"
        return "a whole file is refused" if name.startswith("whole") else None
    if job.failure is not None:
        return f"load_image gives a picture, the job says {job.failure}"
    if not np.array_equal(preprocess(image, SPEC), job.pixels):
        return "pixels of load_image and of the job differ"
    if name.startswith("whole") and not np.array_equal(image, by_pillow(data)):
        return "pixels differ from Pillow's"
    return None


def check(files: dict[str, bytes], workers: int) -> dict[str, Any]:
    """Return counts by kind and outcome, and what is wrong, by name."""
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    found = by_a_job(files, workers)
    outcomes: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    for name, data in files.items():
        job = found[name]
        outcome = "pixels" if job.failure is None else f"{job.failure.stage}: {job.failure.reason}"
        kind = f"AVIF, {name.split()[0]}" if name.endswith(".avif") and "/" not in name else "given"
        outcomes[f"{kind}, {outcome}"] += 1
        if (job.failure is None) == (job.pixels is None):
            wrong[name] = "neither pixels nor a failure"
        elif job.failure is not None and job.failure.reason == BLAMED:
            wrong[name] = BLAMED
        elif name.endswith(".avif") and (differs := difference(name, data, job)):
            wrong[name] = differs
    memory.stop.set()
    memory.join()
    return {
        "files": len(files),
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": wrong,
        "peak_mib": round(memory.peak_bytes / 2**20),
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {
            "python": sys.version.split()[0],
            "pillow": Image.__version__,
            "libavif": features.version("avif"),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PICTURE_OR_FOLDER")
    parser.add_argument("--avif", type=int, default=200, help="number of AVIF files to make (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the files (default 0)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes of the job (default: cores)"
    )
    parser.add_argument("--max-mib", type=int, default=1430, help="the most memory that is allowed (default 1430)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, nothing else")
    args = parser.parse_args()
    report = check(read(args.paths) | avif_files(args.avif, args.seed), args.workers)
    if args.json:
        print(json.dumps(report))
    else:
        for outcome, number in report["outcomes"].items():
            print(f"{number:7} {outcome}")
        print(
            f"{report['files']:7} files in {report['seconds']} s; peak {report['peak_mib']} MiB; {report['versions']}"
        )
        print(f"wrong: {report['wrong'] or 'none'}")
    return 1 if report["wrong"] or report["peak_mib"] > args.max_mib else 0


if __name__ == "__main__":
    sys.exit(main())
