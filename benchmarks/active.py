"""How many votes are saved by choosing the pairs. People are simulated by the counts of the emoji, with noise.

    python benchmarks/active.py --work FOLDER [--seeds 40] [--votes 400]

FOLDER keeps the vectors of examples/emoji, embedded with the starter backbone. For each seed, a third of the pictures
is held out. Of two other pictures, people choose the first with probability count_a / (count_a + count_b). After every
--batch votes a head is trained on all of them: logistic regression on the difference of the pictures' first 64
principal components, with a penalty of 300, which is near the best one for random pairs. Pairs are either drawn at
random, or chosen by runtime.collect.choose, as the service does for all except its random share; it uses the head of
the last full --update votes. The measure is the accuracy on pairs of held-out pictures whose counts differ at least
twofold.

It prints the accuracy of each way by number of votes. It also prints the share of the votes after which each way is as
accurate as random pairs at the end, from the mean curves, with a 95 % interval from resampled seeds.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds another `embed`
from embed.cache.store import Cache  # noqa: E402
from embed.cli.main import main as embed_main  # noqa: E402
from embed.records.formats import read_records  # noqa: E402
from heads.data.comparisons import match_labels  # noqa: E402
from runtime.collect.choose import Pool, contrast, freshness, telling  # noqa: E402

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
COMPONENTS = 64
TRIES = 512  # the same as in runtime.collect.collector
PENALTY = 300.0
WAYS = ("random", "service", "new pictures first")


def emoji(work: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return principal components (n, 64), vectors (n, d) and counts (n,) of the emoji."""
    cache, table = work / "emoji", EMOJI / "emoji.parquet"
    if not (cache / "manifest.json").exists():
        options = ["--images-root", EMOJI, "--model", "starter", "--features", "projected,pooled", "--out", cache]
        assert embed_main(["cache", *map(str, [table, *options])]) == 0
    opened = Cache.open(cache)
    labels = match_labels(read_records(table, images_root=EMOJI), opened)
    pooled = opened.pooled_embeddings()[labels.image].astype(np.float64)
    u, s, _ = np.linalg.svd(pooled - pooled.mean(axis=0), full_matrices=False)
    found = u[:, :COMPONENTS] * s[:COMPONENTS]
    vectors = opened.image_embeddings()[labels.image].astype(np.float64)
    return found / found.std(), vectors, np.asarray(labels.values["count"], np.float64)[labels.items[:, 0]]


def fit(x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the weights (d,) of a logistic regression on differences x (n, d)."""
    from sklearn.linear_model import LogisticRegression

    if len(set(chosen)) < 2:
        return np.zeros(x.shape[1])
    head = LogisticRegression(C=1 / PENALTY, fit_intercept=False, solver="newton-cholesky")
    return head.fit(x, chosen).coef_[0]


def simulate(
    x: np.ndarray, vectors: np.ndarray, count: np.ndarray, way: str, seed: int, args: argparse.Namespace
) -> list[float]:
    """Return the accuracy after every batch of votes."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    held, seen = order[: len(x) // 3], order[len(x) // 3 :]
    a, b = held[np.stack(np.triu_indices(len(held), 1))]
    decided = np.maximum(count[a], count[b]) >= 2 * np.maximum(np.minimum(count[a], count[b]), 1)
    a, b = a[decided], b[decided]
    pool, group = Pool([seen]), np.zeros(len(x), np.int64)
    shown, shown_groups = np.zeros(len(x), np.int64), np.zeros(1, np.int64)
    served = np.zeros(len(x))
    pairs, chosen, found = np.empty((0, 2), np.int64), np.empty(0), []
    while len(pairs) < args.votes:
        new = []
        for _ in range(args.batch):
            drawn = pool.draw(TRIES, rng)
            value = np.zeros(TRIES) if way == "random" else freshness(drawn, shown, group, shown_groups)
            if way == "service":
                value *= contrast(vectors, drawn) * telling(served[drawn[:, 0]] - served[drawn[:, 1]])
            one, other = drawn[value.argmax()]
            shown[[one, other]] += 1
            shown_groups[0] += 2
            new.append((one, other))
        total = count[np.array(new)].sum(axis=1) + 1
        chance = (count[np.array(new)[:, 0]] + 0.5) / total
        pairs, chosen = np.concatenate([pairs, new]), np.append(chosen, rng.random(args.batch) < chance)
        score = x @ fit(x[pairs[:, 0]] - x[pairs[:, 1]], chosen)
        if len(pairs) % args.update == 0:
            served = score
        right = (score[a] > score[b]) == (count[a] > count[b])
        found.append(float(np.mean(np.where(score[a] == score[b], 0.5, right))))
    return found


def share_needed(way: np.ndarray, random: np.ndarray) -> float:
    """Return the share of votes after which a way is as good as random pairs at the end, from means over seeds.

    Both curves are (seeds, batches), smoothed by running means of 3. The share is more than 1 if that never happens.
    """
    kernel = np.ones(3) / 3
    mean, last = (np.convolve(curve.mean(axis=0), kernel, "valid") for curve in (way, random))
    reached = np.flatnonzero(mean >= last[-1])
    return float(reached[0] + 1) / len(mean) if len(reached) else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--votes", type=int, default=400)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--update", type=int, default=100)
    parser.add_argument("--ways", default=",".join(WAYS))
    args = parser.parse_args()
    x, vectors, count = emoji(args.work)
    curves = {
        way: np.array([simulate(x, vectors, count, way, seed, args) for seed in range(args.seeds)])
        for way in args.ways.split(",")
    }
    places = np.unique(np.linspace(0, args.votes // args.batch - 1, 9).astype(int))
    print("accuracy after votes:", *((place + 1) * args.batch for place in places))
    document: dict[str, object] = {"pictures": len(x), **vars(args), "work": str(args.work)}
    rng = np.random.default_rng(0)
    for way, curve in curves.items():
        print(f"{way:20}", *(f"{curve[:, place].mean():.3f}" for place in places))
        share = share_needed(curve, curves["random"])
        draws = [rng.integers(args.seeds, size=args.seeds) for _ in range(1000)]
        low, high = np.quantile(
            [share_needed(curve[d], curves["random"][d]) for d in draws], [0.025, 0.975], method="nearest"
        )
        document[way] = {"mean": curve.mean(axis=0).tolist(), "share": share, "low": low, "high": high}
        print(f"{'':20} as good as random at the end with {share:.0%} of its votes ({low:.0%} to {high:.0%})")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
