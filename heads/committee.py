"""How sure a head's score is: heads that each did without a part of its training rows, and how far these disagree.

Knows no data and no disk.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from embed.arrays import Float32s
from heads.base import Head

MEMBERS = 5  # of a committee, at most: each is as large as the head


class Alignment(TypedDict):
    """What brings each member's scores to the mean and the standard deviation of the head's own: gain * score + offset.

    A constant or a factor between members says nothing of how they order pictures.
    """

    gains: list[float]
    offsets: list[float]


class Committee(Head):
    """Gives (n,) uncertainties of a head's scores, in their units, where a head gives scores.

    An uncertainty is the standard error by the delete-a-group jackknife: the training rows lie in `groups` parts, and
    member i did without part i. Of g parts and m members, u^2 = (g - 1)^2 / g * sum_i (s_i - mean)^2 / (m - 1), which
    for m = g is the jackknife's own (g - 1) / g * sum_i (s_i - mean)^2 (Kott 2001, "The delete-a-group jackknife"). So
    heads of three and of ten folds speak of the same unit, where the members' plain standard deviation, as deep
    ensembles take it (Lakshminarayanan et al. 2017), shrinks with the share of rows that they do without.
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
    """The alignment by scores (n,) of the same items."""
    mean, spread = float(np.mean(head, dtype=np.float64)), float(np.std(head, dtype=np.float64))
    found: Alignment = {"gains": [], "offsets": []}
    for scores in members:
        own = float(np.std(scores, dtype=np.float64))
        gain = spread / own if own > 0 and spread > 0 else 1.0
        found["gains"].append(gain)
        found["offsets"].append(mean - gain * float(np.mean(scores, dtype=np.float64)))
    return found
