"""Score many vectors in blocks."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Float32s

if TYPE_CHECKING:
    from runtime.scoring.scorer import Scorer

BLOCK_ROWS = 16_384  # number of vectors in a block


def score_blocks(
    scorer: "Scorer", count: int, features: Callable[[slice], Mapping[str, Float32s]], outputs: Sequence[str]
) -> dict[str, Float32s]:
    """(count,) values of the named outputs. `features` gives the vectors of a range of rows, by name."""
    starts = range(0, count, BLOCK_ROWS) if count else [0]
    blocks = [scorer.score_vectors(features(slice(i, min(i + BLOCK_ROWS, count))), outputs) for i in starts]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
