"""Measure how close a reward is to the scores of cache and service, on pictures that are decoded once and scored both
ways.

In the uint8 path Pillow resizes, and the towers compute in fp32. The reward gets pictures as floats in [0, 1] that
require a gradient, as from a trainer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from embed.arrays import Floats, cosines
from embed.inputs.images import ImageError, load_image
from embed.inputs.pixels import preprocess
from embed.progress import Progress, silent
from embed.spec import InputError
from heads.metrics import flipped_pairs
from heads.reward.module import Reward
from heads.reward.preprocess import preprocess as in_tensors

Vectors = dict[str, list[Tensor]]  # vectors (1, d) of each picture, by the head's input


@dataclass(frozen=True)
class Certificate:
    """The measured differences, over all pairs of pictures under each prompt."""

    pictures: int
    unreadable: int
    prompts: int
    device: str
    equal_pixels: float  # the share of levels that equal those of the uint8 path
    min_cosine: float  # the lowest cosine between a picture's vectors of both paths
    max_score_difference: float
    score_deviation: float  # standard deviation of the uint8 path's scores
    pairs: int  # pairs that the uint8 path orders
    flips: float  # the share of pairs that the reward orders otherwise

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@torch.no_grad()
def certify(
    reward: Reward, exact: Reward, paths: Sequence[Path], prompts: Sequence[str], progress: Progress = silent
) -> Certificate:
    """Compare a reward with the uint8 path of `exact`, the same head on the same backbone in fp32.

    Raise InputError unless at least two pictures can be read.
    """
    equal, unreadable = list[float](), 0
    theirs, ours = Vectors(), Vectors()
    device = next(exact.parameters()).device
    spec = exact.encoder.identity.preprocess
    with progress(len(paths), "pictures", "comparing") as step:
        for path in paths:
            step()
            try:
                image = load_image(path.read_bytes(), ignore_exif=spec.ignore_exif)
            except ImageError:
                unreadable += 1
                continue
            levels = torch.from_numpy(preprocess(image, spec))[None].to(device)
            pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].to(device).float() / 255
            equal.append(float((in_tensors(pixels, spec).permute(0, 2, 3, 1) == levels).float().mean()))
            with torch.enable_grad():
                _append(ours, reward.encoder.images(pixels.requires_grad_()))
            _append(theirs, exact.encoder.of_levels(levels))
    if len(equal) < 2:
        raise InputError(f"{len(equal)} of {len(paths)} pictures can be read; wanted at least two to compare")
    before, after = (_score_matrix(one, vectors, prompts) for one, vectors in ((exact, theirs), (reward, ours)))
    gaps, flipped = flipped_pairs(before, after)
    return Certificate(
        pictures=len(equal),
        unreadable=unreadable,
        prompts=before.shape[1],
        device=device.type,
        equal_pixels=float(np.mean(equal)),
        min_cosine=min(float(cosines(_rows(theirs[name]), _rows(ours[name])).min()) for name in ours),
        max_score_difference=float(np.abs(after - before).max()),
        score_deviation=float(before.std()),
        pairs=len(gaps),
        flips=float(flipped.mean()) if len(flipped) else 0.0,
    )


def _append(vectors: Vectors, found: dict[str, Tensor]) -> None:
    for name, rows in found.items():
        vectors.setdefault(name, []).append(rows.detach())


def _rows(parts: Iterable[Tensor]) -> Floats:
    rows: Floats = torch.cat(list(parts)).double().cpu().numpy()
    return rows


def _score_matrix(reward: Reward, vectors: Vectors, prompts: Sequence[str]) -> Floats:
    """(pictures, prompts) scores, with only one column if the head reads no text."""
    images = {name: torch.cat(rows) for name, rows in vectors.items()}
    count = len(next(iter(images.values())))
    texts: list[str | None] = list(prompts) if "text_embedding" in reward.head.inputs else [None]
    columns = []
    for text in texts:
        given = images if text is None else {**images, "text_embedding": reward.encoder.prompts([text] * count)}
        columns.append(reward.read(given, uncertain=False).total.double().cpu().numpy())
    return np.stack(columns, axis=1)
