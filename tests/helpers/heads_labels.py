"""Labels of every kind without a cache, and how they are measured."""

import numpy as np
import pyarrow as pa

from heads.config import Protocol
from heads.data.comparisons import Labels
from heads.data.split import Split
from heads.evaluation.measured import Measured, measure_pairs

GROUPS, SIZE = 24, 5


def single(kind: str, values: np.ndarray, **columns: list) -> Labels:
    """GROUPS prompts of SIZE pictures each, one picture a row, labelled with `values` (GROUPS * SIZE,)."""
    n = GROUPS * SIZE
    prompt = np.repeat(np.arange(GROUPS), SIZE)
    name = {"groups": "rank", "ratings": "rating", "counts": "count"}[kind]
    own = {name: values.astype(float), "group": prompt}
    if kind == "ratings":
        del own["group"]
    table = pa.table({"image": [f"{i}.png" for i in range(n)], **columns})
    return Labels(kind, np.arange(n), prompt, np.arange(n)[:, None], own, table, 0)


def comparisons(target: np.ndarray, prompt: np.ndarray, **columns: list) -> Labels:
    """One comparison of two new pictures for each target."""
    m = len(target)
    items = np.arange(2 * m).reshape(m, 2)
    own = {"target": target.astype(float), "weight": np.ones(m)}
    table = pa.table({"row": np.arange(m), **columns})
    return Labels("comparisons", np.arange(2 * m), np.repeat(prompt, 2), items, own, table, 0)


def measured(labels: Labels, folds: int = 3) -> Measured:
    """Whole prompts to each of the folds in turn."""
    prompt = labels.prompt[labels.items[:, 0]]
    return measure_pairs(labels, Split(prompt % folds, prompt, folds), Protocol(resamples=100))
