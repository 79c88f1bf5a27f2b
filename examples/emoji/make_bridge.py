"""Make embed/backbones/starter_bridge.safetensors: what carries the starter's picture features into its text space.

    python examples/emoji/make_bridge.py --emoji FOLDER

FOLDER holds emoji.parquet (columns `image` and `name`) and the pictures that it names: 1,852 of Fluent Emoji, of
which this example keeps the 736 with usage counts. The file keeps two maps (see embed.backbones.starter.Bridge):
the text vectors of ImageNet's classes, each the mean of those of its first name and its description in timm, and a
ridge regression from unit-norm pooled features (1280) of the emoji to what is missing of EMOJI_WEIGHT times the text
vectors (384) of their names, once the classes' names are added up by their probabilities. It is first fitted without
352 pictures, to measure how often a name finds its own picture among them, which is printed; then on all.

What the bridge has seen: which name belongs to which picture, of all emoji. What it has not: how often an emoji is
used. So no label reaches the heads of the demo, whose accuracy on held-out pictures is honest. But the cosine of an
emoji and its own name flatters the starter; how well it matches new ones is the recall printed here.

The same weights, pictures and machine give the same bytes.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save
from timm.data import ImageNetInfo

from embed.backbones.backbone import ImageTower, TextTower, weights_hash
from embed.backbones.starter import BRIDGE, CLASSES, PREPROCESS, Bridge, load_towers
from embed.cli.console import progress
from embed.files import atomic_write
from embed.inputs.images import load_pixels

# Over five splits, and on 300 mosaics of four photographs each, asked for by the names of two: more weight finds more
# emoji and fewer mosaics. A ridge of 0.3 finds fewer of both, one of 3 some 0.05 fewer emoji for 0.01 more mosaics.
RIDGE = 1.0
EMOJI_WEIGHT = 0.75
HELD_OUT = 352
SEED = 0
BATCH = 32


def fit(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Ridge regression without intercept: (1280, 384) from features (n, 1280) and targets (n, 384)."""
    return np.linalg.solve(features.T @ features + RIDGE * np.eye(features.shape[1]), features.T @ targets)


def class_names(text_tower: TextTower, tokenizer: HFTokenizer) -> torch.Tensor:
    """(384, 1000): for each class of ImageNet the mean of the text vectors of its first name and its description."""
    info = ImageNetInfo()
    short, whole = (
        [info.index_to_description(i, detailed=detailed) for i in range(CLASSES)] for detailed in (False, True)
    )
    vectors = []
    for texts in ([name.partition(",")[0] for name in short], whole):
        vectors.append(torch.cat([text_tower(tokenizer(texts[at : at + BATCH])) for at in range(0, CLASSES, BATCH)]))
    return torch.stack(vectors).mean(dim=0).T


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
    bridge: Bridge = model.visual.head.proj
    image_tower, text_tower = ImageTower(model.visual, PREPROCESS, ["pooled"]), TextTower(model.text)
    kept: list[torch.Tensor] = []
    bridge.register_forward_hook(lambda module, inputs, output: kept.append(module.named(inputs[0])))
    rows = pq.read_table(args.emoji / "emoji.parquet", columns=["image", "name"]).to_pylist()
    features, names = [], []
    with torch.inference_mode(), progress(len(rows), "pictures", "embedding") as step:
        half = class_names(text_tower, tokenizer).half()  # (384, 1000), as a linear layer keeps it
        bridge.class_names.weight.data = half.float()
        for batch in batches(rows):
            pixels = [load_pixels((args.emoji / row["image"]).read_bytes(), PREPROCESS)[0] for row in batch]
            features.append(image_tower(torch.from_numpy(np.stack(pixels))))
            names.append(text_tower(tokenizer([row["name"] for row in batch])))
            step(len(batch))
    x, y, named = (torch.cat(parts).double().numpy() for parts in (features, names, kept))
    targets = EMOJI_WEIGHT * y - named

    order = np.random.default_rng(SEED).permutation(len(rows))
    held_out, rest = order[:HELD_OUT], order[HELD_OUT:]
    recall = recall_at_k(named[held_out] + x[held_out] @ fit(x[rest], targets[rest]), y[held_out], k=10)
    print(f"fitted on {len(rest)} pictures; of {HELD_OUT} others, {recall:.1%} are among the first 10 for their name")

    emoji = torch.from_numpy(np.ascontiguousarray(fit(x, targets).T)).half()  # (384, 1280)
    bridge.emoji.weight.data = emoji.float()
    made = {
        "by": "examples/emoji/make_bridge.py",
        "pictures": len(rows),
        "ridge": RIDGE,
        "emoji_weight": EMOJI_WEIGHT,
        "recall_at_10": recall,
        "recall_pictures": HELD_OUT,
        "weights": weights_hash(model.state_dict()),  # of the whole model, this bridge included
    }
    with atomic_write(args.out) as file:
        file.write(save({"class_names": half.contiguous(), "emoji": emoji}, {"made": json.dumps(made, sort_keys=True)}))


if __name__ == "__main__":
    main()
