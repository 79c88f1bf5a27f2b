"""Compare heads with their defaults on small tables with scikit-learn's ridge regression on pooled features.

    python benchmarks/small_tables.py --work FOLDER [--pokemon pokemon.csv --sprites package] [--seeds 10]
    python benchmarks/small_tables.py --work FOLDER --shuffles 40 [--rows 200] [--heads auto,linear] [--one-part]

The first form prints, for each table, the mean pair accuracy over split seeds, held out in 5 folds of whole groups,
with a 95 % interval of the difference paired by seed. It trains with `heads train CACHE --data TABLE --split-by GROUP`.
The interval is over splits of one table: it says how much the difference varies with splits, not with tables.

With --shuffles, the counts of the emoji are shuffled this many times, for all or for a number of rows drawn at random.
Of honest 95 % intervals, 95 % contain 0.5. With --one-part, a third is held out once instead of 5 folds.

pokemon.csv has 809 sprites with the votes of 52,725 people. For the sprites, unpack `npm pack pokesprite-images@2.7.0`.
"""

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds another `embed`
from embed.cache.store import Cache  # noqa: E402
from embed.cli.main import main as embed_main  # noqa: E402
from embed.records.formats import read_records  # noqa: E402
from heads.cli.main import main as heads_main  # noqa: E402
from heads.config import Protocol, SplitConfig  # noqa: E402
from heads.data.comparisons import match_labels  # noqa: E402
from heads.data.counts import expected_log_rate  # noqa: E402
from heads.data.split import split_rows  # noqa: E402
from heads.evaluation.measured import measure_pairs  # noqa: E402

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"


def run(main, *argv: object) -> dict:
    """Return the document of a command, and hide its output for people."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()) as wrong:
        code = main([*map(str, argv), "--json"])
    if code:
        raise SystemExit(wrong.getvalue())
    return json.loads(said.getvalue())


def cache_of(folder: Path, table: Path, images: Path) -> Path:
    run(embed_main, "cache", table, "--images-root", images, "--model", "starter", "--features", "projected,pooled",
        "--out", folder)  # fmt: skip
    return folder


def ridge_accuracy(cache: Path, table: Path, by: str, seed: int) -> float:
    """Return the accuracy of RidgeCV on pooled features, on the same pairs that a head is measured on."""
    from sklearn.linear_model import RidgeCV

    opened = Cache.open(cache)
    labels = match_labels(read_records(str(table)), opened)
    pooled = opened.pooled_embeddings()
    assert pooled is not None
    x, y = pooled[labels.image].astype(np.float32), expected_log_rate(labels.values["count"])
    split = split_rows(labels, SplitConfig(by, seed=seed, folds=5))
    scores = np.zeros((len(y), 1))
    for fold in range(5):
        test = split.test_rows(fold)
        train = np.setdiff1d(np.arange(len(y)), test)
        scores[test, 0] = RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(x[train], y[train]).predict(x[test])
    measured = measure_pairs(labels, split, Protocol(seed=seed))
    return measured.interval(measured.credit(scores)).value


def trained(cache: Path, table: Path, by: str, seed: int, out: Path, head: str = "auto", *split: str) -> dict:
    return run(heads_main, "train", cache, "--data", table, "--split-by", by, "--seed", seed, "--out", out,
        "--overwrite", "--head", head, *split)  # fmt: skip


def paired(name: str, head: list[float], ridge: list[float]) -> dict[str, object]:
    lead = np.subtract(head, ridge)
    rng = np.random.default_rng(0)
    means = rng.choice(lead, (10_000, len(lead))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    print(
        f"{name}: auto {np.mean(head):.4f}, RidgeCV {np.mean(ridge):.4f}, difference {lead.mean():+.4f}"
        f" ({low:+.4f} to {high:+.4f}), worst split {lead.min():+.4f}",
        flush=True,
    )
    return {"table": name, "auto": head, "ridge": ridge, "difference": float(lead.mean())}


def shuffled(work: Path, cache: Path, shuffles: int, rows: int | None, heads: list[str], *split: str) -> None:
    table, held = pq.read_table(EMOJI / "emoji.parquet"), dict.fromkeys(heads, 0)
    at = table.schema.get_field_index("count")
    for seed in range(shuffles):
        rng = np.random.default_rng(seed)
        some = table.take(rng.permutation(len(table))[:rows])
        counts = rng.permutation(some["count"].to_numpy())
        pq.write_table(some.set_column(at, "count", pa.array(counts)), work / "shuffled.parquet")
        for head in heads:
            out = work / "shuffled"
            found = trained(cache, work / "shuffled.parquet", "subcategory", seed, out, head, *split)["pair_accuracy"]
            held[head] += found["low"] <= 0.5 <= found["high"]
            said = f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
            print(f"shuffle {seed}, {head}: {said}; {held[head]} of {seed + 1} hold 0.5", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pokemon", type=Path)
    parser.add_argument("--sprites", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--shuffles", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--heads", default="auto")
    parser.add_argument("--one-part", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    emoji = cache_of(args.work / "emoji", EMOJI / "emoji.parquet", EMOJI)
    if args.shuffles:
        split = ("--test-fraction", "0.333") if args.one_part else ()
        shuffled(args.work, emoji, args.shuffles, args.rows, args.heads.split(","), *split)
        return
    tables = {"emoji": (emoji, EMOJI / "emoji.parquet", "subcategory")}
    if args.pokemon:
        tables["pokemon"] = (cache_of(args.work / "pokemon", args.pokemon, args.sprites), args.pokemon, "family")
    results = []
    for name, (cache, table, by) in tables.items():
        heads, ridges = [], []
        for seed in range(args.seeds):
            heads.append(trained(cache, table, by, seed, args.work / "head")["pair_accuracy"]["value"])
            ridges.append(ridge_accuracy(cache, table, by, seed))
            print(f"{name}, split {seed}: auto {heads[-1]:.4f}, RidgeCV {ridges[-1]:.4f}", flush=True)
        results.append(paired(name, heads, ridges))
    print(f"mean difference over tables: {np.mean([result['difference'] for result in results]):+.4f}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
