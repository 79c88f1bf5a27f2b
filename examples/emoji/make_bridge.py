"""Make embed/backbones/starter_bridge.safetensors: the map from the starter's picture features into its text space.

    python examples/emoji/make_bridge.py --emoji FOLDER

FOLDER holds emoji.parquet (columns `image` and `name`) and the pictures that it names: 1,852 of Fluent Emoji, of
which this example keeps the 736 with usage counts. The map is a ridge regression from unit-norm pooled features
(1280) of the pictures to unit-norm embeddings (384) of their names. It is first fitted without 352 pictures, to
measure how often a name finds its own picture among them, which is printed; then on all, which is what the file keeps.

What the bridge has seen: which name belongs to which picture, of all pictures. What it has not: how often an emoji is
used. So no label reaches the heads of the demo, whose accuracy on held-out pictures is honest. But the cosine of an
emoji and its own name flatters the starter; how well it matches new pictures is the recall printed here.

The same weights, pictures and machine give the same bytes.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save

from embed.backbones.backbone import ImageTower, TextTower, weights_hash
from embed.backbones.starter import BRIDGE, PREPROCESS, load_towers
from embed.cli.console import progress
from embed.files import atomic_write
from embed.inputs.images import load_pixels

RIDGE = 1.0  # the best of 0.1, 0.3, 1, 3, 10 and 30 over five splits; an intercept adds less than 0.01 of recall
HELD_OUT = 352
SEED = 0
BATCH = 32


def fit(features: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Ridge regression without intercept: (1280, 384) from features (n, 1280) and names (n, 384)."""
    return np.linalg.solve(features.T @ features + RIDGE * np.eye(features.shape[1]), features.T @ names)


def recall_at_k(images: np.ndarray, names: np.ndarray, k: int) -> float:
    """The share of names whose own picture is among the k of highest cosine; row i belongs to row i."""
    scores = names @ (images / np.linalg.norm(images, axis=1, keepdims=True)).T
    return float(np.mean((scores > np.diag(scores)[:, None]).sum(axis=1) < k))


def batches(rows: Sequence[dict[str, str]]) -> Iterator[Sequence[dict[str, str]]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the starter backbone's bridge from emoji and their names.")
    parser.add_argument("--emoji", type=Path, required=True, help="folder with emoji.parquet and images/")
    parser.add_argument("--out", type=Path, default=BRIDGE, help=f"default: {BRIDGE.name} beside the code")
    args = parser.parse_args()

    model, tokenizer = load_towers()
    image_tower, text_tower = ImageTower(model.visual, PREPROCESS, ["pooled"]), TextTower(model.text)
    rows = pq.read_table(args.emoji / "emoji.parquet", columns=["image", "name"]).to_pylist()
    features, names = [], []
    with torch.inference_mode(), progress(len(rows), "pictures", "embedding") as step:
        for batch in batches(rows):
            pixels = [load_pixels((args.emoji / row["image"]).read_bytes(), PREPROCESS)[0] for row in batch]
            features.append(image_tower(torch.from_numpy(np.stack(pixels))))
            names.append(text_tower(tokenizer([row["name"] for row in batch])))
            step(len(batch))
    x, y = (torch.cat(parts).double().numpy() for parts in (features, names))

    order = np.random.default_rng(SEED).permutation(len(rows))
    held_out, rest = order[:HELD_OUT], order[HELD_OUT:]
    recall = recall_at_k(x[held_out] @ fit(x[rest], y[rest]), y[held_out], k=10)
    print(f"fitted on {len(rest)} pictures; of {HELD_OUT} others, {recall:.1%} are among the first 10 for their name")

    bridge = np.ascontiguousarray(fit(x, y).T, dtype=np.float16)  # (384, 1280), as a linear layer keeps it
    model.visual.head.proj.weight.data = torch.from_numpy(bridge).float()
    made = {
        "by": "examples/emoji/make_bridge.py",
        "pictures": len(rows),
        "ridge": RIDGE,
        "recall_at_10": recall,
        "recall_pictures": HELD_OUT,
        "weights": weights_hash(model.state_dict()),  # of the whole model, this bridge included
    }
    with atomic_write(args.out) as file:
        file.write(save({"bridge": bridge}, metadata={"made": json.dumps(made, sort_keys=True)}))


if __name__ == "__main__":
    main()
