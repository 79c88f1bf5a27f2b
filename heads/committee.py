"""How uncertain a head's scores are, by how far heads disagree that were each trained without a part of its rows.

Knows no data and no disk.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from embed.arrays import Float32s
from heads.base import Head

MEMBERS = 5  # the largest number of members; each is as large as the head


class Alignment(TypedDict):
    """Gains and offsets that bring each member's scores to the head's mean and standard deviation: gain * score +
    offset.

    Members that differ only by a constant or a factor order pictures in the same way.
    """

    gains: list[float]
    offsets: list[float]


class Committee(Head):
    """Gives the uncertainties (n,) float32 of a head's scores, in the units of the scores.

    An uncertainty is the standard error by the delete-a-group jackknife: the training rows are divided into `groups`
    parts, and member i was trained without part i. With g parts and m members, u^2 = (g - 1)^2 / g * sum_i (s_i -
    mean)^2 / (m - 1), which for m = g is the usual jackknife (g - 1) / g * sum_i (s_i - mean)^2 (Kott 2001, "The
    delete-a-group jackknife"). So uncertainties from three and from ten folds can be compared. The plain standard
    deviation of the members, which deep ensembles use (Lakshminarayanan et al. 2017), becomes smaller as members miss
    fewer rows.
    """

    def __init__(self, members: Sequence[Head], alignment: Alignment, groups: int) -> None:
        super().__init__()
        self.inputs = members[0].inputs
        self.members = nn.ModuleList(members)
        self.alignment, self.groups = alignment, groups
        self.gains = nn.Buffer(torch.tensor(alignment["gains"]))
        self.offsets = nn.Buffer(torch.tensor(alignment["offsets"]))

    def forward(self, **inputs: Tensor) -> Tensor:
        scores = torch.stack([member(**inputs) for member in self.members], dim=-1) * self.gains + self.offsets
        squares = (scores - scores.mean(dim=-1, keepdim=True)).square().sum(dim=-1)
        factor = (self.groups - 1) ** 2 / self.groups / (len(self.members) - 1)
        return (factor * squares).sqrt()


def aligned(head: Float32s, members: Sequence[Float32s]) -> Alignment:
    """The alignment computed from the scores (n,) that the head and each member give the same items."""
    mean, spread = float(np.mean(head, dtype=np.float64)), float(np.std(head, dtype=np.float64))
    found: Alignment = {"gains": [], "offsets": []}
    for scores in members:
        own = float(np.std(scores, dtype=np.float64))
        gain = spread / own if own > 0 and spread > 0 else 1.0
        found["gains"].append(gain)
        found["offsets"].append(mean - gain * float(np.mean(scores, dtype=np.float64)))
    return found
