"""Tables of every kind whose labels follow one direction of the pictures' vectors, and heads measured on them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
from heads_labels import comparisons

from heads.config import HeadConfig, SplitConfig, TrainConfig
from heads.data.comparisons import Labels, Pairs, pairs_among
from heads.data.features import Features, features_of
from heads.data.split import split_rows
from heads.training.folds import Task, train_heads
from heads.training.train import score_items

WIDTH = 16  # of every vector


def unit(rows: int, seed: int) -> np.ndarray:
    """(rows, WIDTH) float16 random directions."""
    x = np.random.default_rng(seed).normal(size=(rows, WIDTH))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def made(kind: str, prompts: bool, rows: int = 300, shift: float = 0.0) -> tuple[Labels, Features]:
    """A table whose labels follow one direction of the pictures' vectors, exactly but for what a kind rounds."""
    items = rows if kind != "comparisons" else 2 * rows
    images, prompts_of = (unit(items, seed) for seed in (1, 2))
    quality = images[:, 0].astype(np.float64)
    number = np.arange(items)
    prompt = number // 6 if kind == "groups" else number
    features = features_of(images, prompts_of, number, prompt if prompts else np.full(items, -1))
    if kind == "comparisons":
        labels = comparisons((quality[0::2] > quality[1::2]).astype(float), np.arange(rows))
        pair = np.arange(items).reshape(-1, 2)
        labels = replace(labels, items=pair, image=number, prompt=features.prompt.numpy())
        return labels, features
    values: dict[str, np.ndarray] = {
        "ratings": {"rating": shift + quality},
        "counts": {"count": np.exp(5 + 4 * quality).round()},
        "groups": {
            "group": number // 6,
            "rank": np.concatenate([np.argsort(np.argsort(-part)) for part in quality.reshape(-1, 6)]).astype(float),
        },
    }[kind]
    columns = pa.table({"x": number})
    labels = Labels(kind, number, features.prompt.numpy(), number[:, None], values, columns, 0)  # type: ignore[arg-type]
    if kind == "ratings" and prompts:
        labels = replace(labels, prompt=number // 6)
        features = replace(features, prompt=features.prompt // 6)
    return labels, features


def accuracy(labels: Labels, features: Features, kind: str, loss: str = "preference", **shape: str) -> float:
    """The share of pairs held out that are ordered right, of a table of which half is held out."""
    split = split_rows(labels, SplitConfig(test_fraction=0.5))
    config = HeadConfig(kind, features.dim, features.pooled_dim, **shape)  # type: ignore[arg-type]
    trained = train_heads(Task(labels, features, split, config, TrainConfig(loss)))  # type: ignore[arg-type]
    pairs: Pairs = pairs_among(labels, split.test_rows(0), np.random.default_rng(0))
    scores = score_items(trained.head, features)
    lead = (scores[pairs.a] - scores[pairs.b]) * (pairs.target - 0.5)
    return float((lead[pairs.target != 0.5] > 0).mean())
