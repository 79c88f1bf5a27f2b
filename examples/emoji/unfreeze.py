"""Does unfreezing pay on the emoji? The fusion head on the frozen starter against the same head with top blocks freed.

    python examples/emoji/unfreeze.py --out demo/unfreeze

Every fold holds out whole subcategories (`--split-by image`: single pictures), as the demo does. In each, the head is
first trained on the frozen vectors, then head and blocks together from the cache's boundary, and the epoch with the
best order of rows kept aside is taken, the start included. All modes are printed; the one to believe is the one that
is best on those rows and not on what was held out. Budget: `--epochs` of each mode. The last line of stdout is a JSON
document.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embed.cache.store import Cache
from embed.cli.console import progress, table
from embed.records.formats import read_records
from heads.config import HeadConfig, Protocol, SplitConfig, UnfreezeConfig
from heads.data.comparisons import MAX_PAIRS, match_labels
from heads.data.features import Features, features_of
from heads.data.split import Split, split_rows
from heads.evaluation.evaluate import evaluate
from heads.models import Head
from heads.training.train import score_items
from heads.unfreeze.tune import tune

TABLE = Path(os.path.relpath(Path(__file__).parent)) / "emoji.parquet"
MODES = ("visual_last_layer", "blocks=1,1", "visual_upper_layers", "visual_upper_layers_textual_upper_layers")


class Column(Head):
    """Scores that were computed before: column `fold` of what stands in the place of the pictures' vectors."""

    inputs = ("image_embedding",)

    def __init__(self, fold: int) -> None:
        super().__init__()
        self.fold = fold

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return inputs["image_embedding"][:, self.fold]


def measure(labels: Any, scores: Sequence[np.ndarray], parts: Any) -> dict[str, float]:
    """Pair accuracy over folds, with its interval, of each fold's scores of all items (n,)."""
    count = len(scores[0])
    columns = torch.from_numpy(np.stack(scores, axis=1))
    nowhere = torch.full((count,), -1)
    features = Features(columns, torch.empty((0, 1)), torch.arange(count), nowhere)
    heads: list[Head] = [Column(i) for i in range(len(scores))]
    return vars(evaluate(labels, features, heads, parts, Protocol()).pair_accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/unfreeze"), help="the folder for the cache")
    parser.add_argument("--split-by", default="subcategory")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--epochs", type=int, default=4, help="of every mode")
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--batch-size", type=int, default=4096, help="pairs a step; each picture is computed once")
    args = parser.parse_args()
    path = args.out / "cache"
    embed = ["embed", "cache", str(TABLE), "--model", "starter", "--features", "projected,pooled", "--out", str(path)]
    for mode in args.modes:
        # A process of its own: those that decode import its main module again, and this one's is slow to import.
        subprocess.run([sys.executable, "-m", *embed, "--boundary", mode], check=True)
    cache = Cache.open(path)
    labels = match_labels(read_records(str(TABLE)), cache)
    pooled = np.concatenate(cache.arrays("images", "pooled_emb"))
    vectors = cache.image_embeddings(), cache.text_embeddings()
    features = features_of(*vectors, labels.image, labels.prompt, pooled)
    parts = split_rows(labels, SplitConfig(args.split_by, folds=args.folds))
    head = HeadConfig("fusion", cache.identity.dim, pooled.shape[1])
    config = UnfreezeConfig(
        args.modes[0], learning_rate=args.learning_rate, batch_size=args.batch_size, epochs=args.epochs,
        epoch_size=MAX_PAIRS, schedule="cosine", warmup=0.1, max_grad_norm=1.0, head_learning_rate=1e-4,
    )  # fmt: skip
    results, rows = {}, []
    for mode in args.modes:
        start, frozen, moved, validation = time.monotonic(), [], [], []
        for fold in range(args.folds):
            part = Split(np.where(parts.fold == fold, 0, -1), parts.group, 1)
            tuned = tune(cache, labels, features, part, replace(config, mode=mode), head=head, progress=progress)
            frozen.append(score_items(tuned.frozen_head, features))
            after = tuned.unfrozen.features(labels.image, labels.prompt)
            moved.append(score_items(tuned.unfrozen.head, after))
            best = max(record["validation_accuracy"] for record in tuned.history)
            validation.append(best - tuned.history[0]["validation_accuracy"])
        before, result = measure(labels, frozen, parts), measure(labels, moved, parts)
        results[mode] = {
            "frozen": before,
            "unfrozen": result,
            "validation_gain": float(np.mean(validation)),
            "elapsed_s": time.monotonic() - start,
        }
        shown = [f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in (before, result)]
        rows.append([mode, *shown, f"{results[mode]['validation_gain']:+.3f}", f"{results[mode]['elapsed_s']:.0f} s"])
        print(*rows[-1], flush=True)
    chosen = max(results, key=lambda mode: results[mode]["validation_gain"])
    print("", *table(["mode", "frozen head", "unfrozen", "gain on validation", "all folds"], rows), sep="\n")
    print(f"chosen on validation: {chosen}")
    print(json.dumps({"split_by": args.split_by, "epochs": args.epochs, "chosen": chosen, "modes": results}))


if __name__ == "__main__":
    main()
