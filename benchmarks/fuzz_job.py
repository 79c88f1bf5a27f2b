"""Embed difficult and mutated files with the whole job: each must become a row or a line of the ledger.

    python benchmarks/fuzz_job.py --seeds PICTURES --extra FOLDER --count 2000

It runs `embed cache` with the starter in a separate process, on copies of all files in FOLDER and on `count` mutations
of PICTURES (see fuzz_images.py). It prints how many files had which outcome, the peak memory of the job with all its
decoders (the sum of their proportional set sizes, read ten times a second), and whether a decoder had to be replaced.
The last line of stdout is a JSON document. The exit code is 1 if a file is lost, a process died, or memory exceeded
1.5 GB.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fuzz_images import mutated, read_seeds

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds a file named like the package `embed`

from embed.cache.store import Cache  # noqa: E402

MAX_BYTES = 1_500_000_000


def family(pid: int) -> list[int]:
    """Return the ids of a process and all its descendants."""
    found = [pid]
    for process in found:
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants, with shared pages counted once."""
    total = 0
    for process in family(pid):
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue  # it has ended in the meantime
        total += 1024 * sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def watched(command: list[str]) -> tuple[int, int, set[int]]:
    """Return exit code, peak memory in bytes, and the ids of all descendants that were seen."""
    peak, seen = 0, set[int]()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            seen.update(family(process.pid)[1:])
            peak = max(peak, memory_bytes(process.pid))
            time.sleep(0.1)
    return process.returncode, peak, seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=Path, default=[], metavar="PICTURE_OR_FOLDER")
    parser.add_argument("--extra", nargs="*", type=Path, default=[], metavar="FOLDER")
    parser.add_argument("--count", type=int, default=2000, help="number of mutated pictures (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default 0)")
    parser.add_argument("--workers", type=int, default=2, help="number of decoding processes (default 2)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data, out = Path(name, "data"), Path(name, "cache")
        for i, folder in enumerate(args.extra):
            shutil.copytree(folder, data / f"extra{i}")
        (data / "mutated").mkdir(parents=True)
        seeds = read_seeds(args.seeds)
        for i in range(args.count):
            (data / "mutated" / f"{i:05d}.jpg").write_bytes(mutated(seeds, args.seed, i))
        files = {file.relative_to(data).as_posix() for file in data.rglob("*") if file.is_file()}
        command = [sys.executable, "-m", "embed", "cache", str(data), "--model", "starter", "--out", str(out)]
        # Without a stored engine, because making one takes the most memory.
        command += ["--workers", str(args.workers), "--machine-cache", str(Path(name, "machine"))]
        code, peak_bytes, seen = watched(command)
        cache = Cache.open(out)
        rows = set(cache.keys()["image_path"].to_pylist())
        failures = cache.failures().to_pylist()
    lost = sorted(files - rows - {row["key"] for row in failures})
    reasons = Counter(f"{row['stage']}: {row['reason']}" for row in failures)
    for reason, number in [("embedded, or equal to one that was", len(files & rows)), *reasons.most_common()]:
        print(f"{number:7} {reason}")
    # Besides the decoders, the job's children are the process that finds the identity, the decoders of a sample, and
    # the process that tries engines on it.
    replaced = len(seen) > 2 * args.workers + 2 or any("crashed" in reason for reason in reasons)
    print(
        json.dumps(
            {
                "files": len(files),
                "lost": lost,
                "exit_code": code,
                "processes": len(seen),
                "replaced": replaced,
                "peak_mb": round(peak_bytes / 1e6),
            }
        )
    )
    return int(bool(lost) or code != 0 or replaced or peak_bytes > MAX_BYTES)


if __name__ == "__main__":
    raise SystemExit(main())
