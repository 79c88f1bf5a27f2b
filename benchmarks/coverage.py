"""Measure how often intervals contain the true value, and how often equal heads are found to differ.

    python benchmarks/coverage.py [SIMULATIONS]

In each simulation, two heads that are equally good on average judge the pairs of some prompts. Prompts differ in how
easy they are, in which head is better on them, and in how many pairs they have: 4 to 19, or, as in users' tables, few
for most prompts and many for some. Two shares are measured: how often the interval of a head's accuracy contains the
true value (wanted 0.93 to 0.97), and how often p < 0.05 although the heads are equal (wanted at most 0.06). Both are
computed over the pairs of all folds, as in `heads compare`, and as a mean over folds, as in `heads evaluate`. 2,000
simulations, the default, give each share to within 0.01. Heads that are right nearly always, so that often no pair of
few prompts is judged wrong, are measured apart (wanted at least 0.9). It prints one JSON document, and exits with 1 if
a share for the even numbers of pairs is not as wanted.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds files named like packages

from embed.arrays import Floats, Ints  # noqa: E402
from heads.evaluation.intervals import Bootstrap, mean_interval, paired_interval  # noqa: E402

CASES = ((100, 1), (27, 5), (10, 1), (5, 1), (3, 1))  # numbers of prompts, and of folds
RESAMPLES = 400  # of the bootstrap; fewer than in the commands, because each simulation draws its own
EASE = (6.0, 2.6)  # the Beta distribution of a prompt's accuracy
NEARLY_RIGHT = (60.0, 1.0)  # the same for heads that are right nearly always
SUITS = 0.12  # standard deviation of half the difference between the heads' accuracies on a prompt
ALIKE = 0.6  # the share of pairs for which both heads are right or wrong for the same reason


def simulated(
    prompts: int, even: bool, ease_of: tuple[float, float], rng: np.random.Generator
) -> tuple[Floats, Floats, Ints]:
    """Return the credits of two heads, and the prompt of each pair."""
    pairs = rng.integers(4, 20, prompts) if even else 2 + rng.geometric(0.1, prompts)
    prompt = np.repeat(np.arange(prompts), pairs)
    ease, suits = rng.beta(*ease_of, prompts), rng.normal(0, SUITS, prompts)
    suits = np.clip(suits, -np.minimum(ease, 1 - ease), np.minimum(ease, 1 - ease))  # so that both means stay equal
    luck = rng.random(len(prompt))
    others = np.where(rng.random(len(prompt)) < ALIKE, luck, rng.random(len(prompt)))
    first = luck < (ease + suits)[prompt]
    return first.astype(float), (others < (ease - suits)[prompt]).astype(float), prompt


def measured(
    prompts: int, folds: int, even: bool, simulations: int, ease_of: tuple[float, float] = EASE
) -> dict[str, object]:
    truth, rng = ease_of[0] / sum(ease_of), np.random.default_rng(prompts)
    inside, apart, apart_in_folds = 0, 0, 0
    for _ in range(simulations):
        one, other, prompt = simulated(prompts, even, ease_of, rng)
        fold = rng.permutation(np.arange(prompts) % folds)[prompt]
        bootstrap = Bootstrap(prompt, prompt, rng, RESAMPLES)
        interval = mean_interval(one, bootstrap, fold, 0, 1)
        inside += interval.low <= truth <= interval.high
        apart += paired_interval(one, other, bootstrap).p_value < 0.05
        apart_in_folds += folds > 1 and paired_interval(one, other, bootstrap, fold).p_value < 0.05
    found: dict[str, object] = {"prompts": prompts, "folds": folds, "pairs_per_prompt": "even" if even else "uneven"}
    found |= {"coverage": round(inside / simulations, 4), "p_below_05": round(apart / simulations, 4)}
    return found | ({"p_below_05_over_folds": round(apart_in_folds / simulations, 4)} if folds > 1 else {})


def main() -> int:
    simulations, start = int(sys.argv[1]) if len(sys.argv) > 1 else 2000, time.monotonic()
    found = [measured(*case, even, simulations) for even in (True, False) for case in CASES]
    wanted = [
        0.93 <= float(str(one["coverage"])) <= 0.97 and float(str(one["p_below_05"])) <= 0.06
        for one in found
        if one["pairs_per_prompt"] == "even"
    ]
    easy = [measured(prompts, 1, True, simulations, NEARLY_RIGHT) for prompts, folds in CASES if folds == 1]
    wanted += [float(str(one["coverage"])) >= 0.9 for one in easy]
    seconds = round(time.monotonic() - start)
    document = {"simulations": simulations, "seconds": seconds, "wanted": all(wanted), "cases": found}
    print(json.dumps(document | {"nearly_always_right": easy}, indent=1))
    return 0 if all(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
