"""Flip one byte of a bundle many times: each time there must be a clear error, never a score.

    python benchmarks/bundle_flips.py BUNDLE [--times 500] [--seed 0]

It works on a copy. The last line is one JSON document: the flips in each file, and how many were detected.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds another `embed`
from embed.cli.console import progress  # noqa: E402
from runtime.scoring.bundle import BundleError  # noqa: E402
from runtime.scoring.scorer import Scorer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = np.random.default_rng(args.seed)
    flips: Counter[str] = Counter()
    unnoticed = []
    with tempfile.TemporaryDirectory() as folder, progress(args.times, "flips", "flipping") as step:
        copy = Path(shutil.copytree(args.bundle, Path(folder) / "bundle"))
        files = sorted(copy.iterdir())
        for number in range(args.times):
            path = files[number % len(files)]
            position = int(generator.integers(path.stat().st_size))
            value = flip(path, position, int(generator.integers(1, 256)))
            try:
                Scorer.load(copy)
                unnoticed.append({"file": path.name, "position": position})
            except BundleError:
                pass
            flip(path, position, value)
            flips[path.name] += 1
            step()
        Scorer.load(copy)  # the copy must be valid again, or the flips above prove nothing
    print(json.dumps({"flips": dict(flips), "noticed": args.times - len(unnoticed), "unnoticed": unnoticed}))


def flip(path: Path, position: int, mask: int) -> int:
    """Change one byte of the file in place, and return the mask that restores it."""
    with open(path, "r+b") as file:
        file.seek(position)
        value = file.read(1)[0]
        file.seek(position)
        file.write(bytes([value ^ mask]))
    return mask


if __name__ == "__main__":
    main()
