"""Score picture files with the reward of a head."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from embed.arrays import Floats
from embed.inputs.images import load_image
from heads.reward.module import Reward


@torch.no_grad()
def scores_of(reward: Reward, prompt: str, paths: Sequence[Path]) -> Floats:
    """(n,) float64 scores of pictures of any size under a prompt."""
    found = []
    for path in paths:
        levels = torch.from_numpy(np.array(load_image(path.read_bytes())))
        pixels = levels.permute(2, 0, 1)[None].to(reward.device, torch.float32) / 255
        found.append(float(reward(pixels, prompt)))
    return np.array(found, np.float64)
