"""A table of likes with pictures, and a backbone of few numbers that has a name, for the functions of plaudit."""

from pathlib import Path

import numpy as np
import pandas as pd
from export_tiny import huggingface_backbone, write_pictures

ROWS = 30


def tiny_model(folder: Path) -> str:
    """The name of a backbone that is written to a folder."""
    return huggingface_backbone(folder / "backbone", "bert").source.model


def write_likes(folder: Path) -> pd.DataFrame:
    """`likes.csv` in a folder, its pictures in `pictures`, and the table itself."""
    names = [path.name for path in write_pictures(folder / "pictures", ROWS)]
    counts = np.exp(np.linspace(0, 6, ROWS)).round().astype(int)
    table = pd.DataFrame(
        {"image": names, "count": counts, "prompt": [f"{'abcdefghij'[i % 10]} {'abc'[i // 10]}" for i in range(ROWS)]}
    )
    table.to_csv(folder / "likes.csv", index=False)
    return table
