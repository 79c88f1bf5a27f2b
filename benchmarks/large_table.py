"""Time `heads train` on a million pairs with its defaults, and with the head that auto chooses there, in turns.

    python benchmarks/large_table.py [--pairs 1000000] [--dim 512] [--rounds 2]

There are 100,000 pictures, 20 for each of 5,000 prompts, with random vectors. Who wins follows one direction of the
vectors, with noise. It prints the seconds of each whole command, the ratio, and the accuracy on held-out prompts.
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

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path[:1] = [str(ROOT), str(ROOT / "tests" / "helpers")]  # not this folder, which holds another `heads`

import heads_tiny  # noqa: E402

PICTURES, PROMPTS = 100_000, 5_000


def made(folder: Path, pairs: int, dim: int) -> None:
    """Make a cache and a table of comparisons."""
    heads_tiny.DIM = dim
    images, prompts = [f"{i}.jpg" for i in range(PICTURES)], [f"prompt {i}" for i in range(PROMPTS)]
    cache = heads_tiny.make_cache(folder / "cache", images, prompts)
    vectors, rng = cache.image_embeddings().astype(np.float32), np.random.default_rng(0)
    each = PICTURES // PROMPTS
    prompt, first = rng.integers(0, PROMPTS, pairs), rng.integers(0, each, pairs)
    second = (first + rng.integers(1, each, pairs)) % each
    a, b = prompt * each + first, prompt * each + second
    direction = rng.normal(size=dim).astype(np.float32)
    wins = rng.random(pairs) < 1 / (1 + np.exp(-2 * (vectors[a] - vectors[b]) @ direction))
    better, worse = np.where(wins, a, b), np.where(wins, b, a)
    columns = {"prompt": pa.array(prompts), "pos_path": pa.array(images), "neg_path": pa.array(images)}
    rows = {"prompt": prompt, "pos_path": better, "neg_path": worse}
    table = pa.table({name: columns[name].take(pa.array(at)) for name, at in rows.items()})
    pq.write_table(table, folder / "t.parquet")


def train(folder: Path, *options: str) -> tuple[float, float]:
    """Return the seconds of the whole command, and the accuracy on held-out rows."""
    out = folder / "-".join(("head", *options)).replace("--", "")
    command = [sys.executable, "-m", "heads", "train", folder / "cache", "--data", folder / "t.parquet", "--out", out]
    start = time.monotonic()
    done = subprocess.run(
        [*map(str, command), *options, "--overwrite", "--json"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - start, json.loads(done.stdout)["pair_accuracy"]["value"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made(folder, args.pairs, args.dim)
        seconds: dict[str, list[float]] = {"default": [], "fusion": []}
        for turn in range(args.rounds):
            for way, options in (("default", ()), ("fusion", ("--head", "fusion"))):
                took_s, accuracy = train(folder, *options)
                seconds[way].append(took_s)
                print(f"round {turn + 1}, {way}: {took_s:.1f} s, pair accuracy {accuracy:.4f}", flush=True)
    print(f"default takes {np.median(seconds['default']) / np.median(seconds['fusion']):.3f} of fusion's time")


if __name__ == "__main__":
    main()
