"""Edits of pictures, of which people like those better that changed less: a picture alone tells nothing of that."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from heads_tiny import DIM, make_cache

PROMPTS = [f"make it {i}" for i in range(40)]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_edits(folder: Path, rows: int) -> np.ndarray:
    """Make `cache` and `edits.parquet`, and return the vectors of the sources (n, d), and of the results."""
    rng = np.random.default_rng(0)
    sources = unit(rng.normal(size=(rows, DIM)))
    # What is far from its source was so much changed, and what is near so little; nothing else tells them apart.
    near, far = (unit(sources + share * rng.normal(size=(rows, DIM))) for share in (0.15, 0.6))
    wins = rng.random(rows) < 0.5
    names = [f"{kind}{i}.png" for kind in ("source", "near", "far") for i in range(rows)]
    make_cache(folder / "cache", names, PROMPTS, vectors=np.concatenate([sources, near, far]))
    table = {
        "prompt": [PROMPTS[i % len(PROMPTS)] for i in range(rows)],
        "source_path": names[:rows],
        "pos_path": [f"near{i}.png" for i in range(rows)],
        "neg_path": [f"far{i}.png" for i in range(rows)],
    }
    pq.write_table(pa.table(table), folder / "edits.parquet")
    _pick_a_pic(folder, table, wins)
    return sources


def _pick_a_pic(folder: Path, table: dict[str, list[str]], wins: np.ndarray) -> None:
    """The same choices with either side the better one, as `pick.parquet`."""
    sides = list(zip(table["pos_path"], table["neg_path"], strict=True))
    ordered = [pair if won else pair[::-1] for pair, won in zip(sides, wins, strict=True)]
    pick = {
        "caption": table["prompt"],
        "image_source_url": table["source_path"],
        "image_0_url": [first for first, _ in ordered],
        "image_1_url": [second for _, second in ordered],
        "label_0": wins.astype(float),
        "label_1": 1.0 - wins,
    }
    pq.write_table(pa.table(pick), folder / "pick.parquet")
