"""Train heads on tables of 300 rows whose truth is known: one direction of the pictures' vectors.

    python benchmarks/planted.py [--width 16]

Every head is trained with its defaults and with every loss that fits the table, ratings are shifted by 4, and pairs of
300 other rows are ordered. It prints a line for each, and exits with 1 if a head orders fewer than .90 of them right,
or the kernel fewer than .85."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:1] = [str(ROOT), str(ROOT / "tests" / "helpers")]  # not this folder, which holds another `heads`

import heads_planted  # noqa: E402

LOSSES = {
    "comparisons": ("preference",),
    "groups": ("preference", "ranking", "listwise"),
    "ratings": ("preference", "rating"),
    "counts": ("preference", "rating"),
}
WANTED = {"linear": 0.9, "mlp": 0.9, "fusion": 0.9, "blend": 0.9, "kernel": 0.85}  # auto chooses the blend here


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=heads_planted.WIDTH, help="Numbers of a vector.")
    heads_planted.WIDTH = parser.parse_args().width
    short = 0
    for kind, losses in LOSSES.items():
        labels, features = heads_planted.made(kind, prompts=True, rows=600, shift=4)
        for loss in losses:
            for head, wanted in WANTED.items():
                found = heads_planted.accuracy(labels, features, head, loss)
                short += found <= wanted
                print(
                    f"{kind:12} {loss:11} {head:7} {found:.3f}" + ("  too few" if found <= wanted else ""), flush=True
                )
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
