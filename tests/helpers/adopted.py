"""Vectors of a platform: a folder as clip-retrieval writes it, and the identity that its owner declares."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

DIM = 8
DECLARED = {"model": "acme-clip", "weights": "2024-05", "dim": DIM}


def unit(rows: int, seed: int = 0) -> np.ndarray:
    """(rows, DIM) float64 random directions."""
    vectors = np.random.default_rng(seed).normal(size=(rows, DIM))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def declare(folder: Path, **fields: object) -> Path:
    """A file with the identity; a field that is None is left out."""
    path = folder / "identity.json"
    path.write_text(json.dumps({name: value for name, value in (DECLARED | fields).items() if value is not None}))
    return path


def clip_retrieval(
    folder: Path, images: Sequence[np.ndarray] = (), texts: Sequence[np.ndarray] = (), start: int = 0
) -> Path:
    """Shards as its NumpyWriter leaves them, by pandas: pictures p0, p1, ... with captions c0, c1, ..."""
    for number, rows in enumerate(map(len, images or texts)):
        names = range(start, start + rows)
        columns = {"image_path": [f"p{i}" for i in names]} if images else {}
        columns |= {"caption": [f"c{i}" for i in names]} if texts else {}
        for kind, arrays in (("img_emb", images), ("text_emb", texts)):
            if arrays:
                (folder / kind).mkdir(parents=True, exist_ok=True)
                np.save(folder / kind / f"{kind}_{number}.npy", arrays[number])
        (folder / "metadata").mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame({**columns, "url": [f"https://a.example/{i}.jpg" for i in names]})
        table.to_parquet(folder / "metadata" / f"metadata_{number}.parquet")
        start += rows
    return folder
