"""Scores of many vectors, a block of them at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Float32s

if TYPE_CHECKING:
    from runtime.scoring.scorer import Scorer

BLOCK_ROWS = 16_384  # vectors that heads read at a time


def score_blocks(
    scorer: "Scorer", count: int, features: Callable[[slice], Mapping[str, Float32s]], outputs: Sequence[str]
) -> dict[str, Float32s]:
    """(count,) of each value of the named outputs; `features` gives what heads read of a range of rows, by name."""
    starts = range(0, count, BLOCK_ROWS) if count else [0]
    blocks = [scorer.score_vectors(features(slice(i, min(i + BLOCK_ROWS, count))), outputs) for i in starts]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
