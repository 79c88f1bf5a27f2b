"""The vectors that heads read, in memory, and the vectors of each item. Knows no head and no label."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from embed.arrays import Array, Ints
from embed.spec import InputError
from heads.base import SOURCE


@dataclass(frozen=True)
class Features:
    """The vectors that a head reads, and each item's rows in them: `image` (n,) and `prompt` (n,), int64."""

    image_embeddings: Tensor  # (N, d)
    text_embeddings: Tensor  # (P, d)
    image: Tensor
    prompt: Tensor
    image_pooled: Tensor | None = None  # (N, p)
    source: Tensor | None = None  # (n,) image_embeddings row of each item's source, -1: none; None: no sources

    @cached_property
    def complete(self) -> bool:
        """Whether every item has a picture and a prompt."""
        return not any(len(rows) and int(rows.min()) < 0 for rows in (self.image, self.prompt))

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self.image_embeddings.shape[1]

    @property
    def pooled_dim(self) -> int:
        """The length of a pooled vector, 0 if there are none."""
        return 0 if self.image_pooled is None else self.image_pooled.shape[1]

    def to(self, device: torch.device | str) -> "Features":
        """The same vectors on another device."""
        pooled = None if self.image_pooled is None else self.image_pooled.to(device)
        image, text = self.image_embeddings.to(device), self.text_embeddings.to(device)
        made_from = None if self.source is None else self.source.to(device)
        return Features(image, text, self.image.to(device), self.prompt.to(device), pooled, made_from)

    def take(self, items: Tensor, inputs: tuple[str, ...]) -> dict[str, Tensor]:
        """The named inputs of some items, (len(items), d) float32 each. A missing source gives zeros. Raise InputError
        if the head reads pooled features or prompts that are not there."""
        source = {
            "image_embedding": (self.image_embeddings, self.image),
            "text_embedding": (self.text_embeddings, self.prompt),
            "image_pooled": (self.image_pooled, self.image),
        }
        taken = {}
        items = moved(items, self.image.device)
        for name in inputs:
            if name == SOURCE:
                taken[name] = self._sources(items)
                continue
            vectors, rows = source[name]
            if vectors is None:
                raise InputError(
                    "the head reads pooled features and the cache has none; embed with --features projected,pooled"
                )
            chosen = rows[items]
            if not self.complete and len(chosen) and int(chosen.min()) < 0:
                raise InputError(
                    "the head reads prompts and some rows of the table have none; leave out --head, so that auto finds"
                    " one for pictures alone, or choose --head linear, or add --reads image (not for cosine)"
                )
            # vectors[chosen] would sum its gradient in no fixed order.
            taken[name] = vectors.index_select(0, chosen).float()
        return taken

    def _sources(self, items: Tensor) -> Tensor:
        if self.source is None:
            return self.image_embeddings.new_zeros((len(items), self.dim), dtype=torch.float32)
        chosen = self.source[items]
        vectors = self.image_embeddings.index_select(0, chosen.clamp(min=0)).float()
        return vectors * (chosen >= 0).unsqueeze(-1)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A copy to CUDA does not wait for work in progress there."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned copy until it is read


def features_of(
    image_embeddings: Array,
    text_embeddings: Array,
    image: Ints,
    prompt: Ints,
    image_pooled: Array | None = None,
    source: Ints | None = None,
) -> Features:
    """Features that share the memory of numpy arrays. Raise InputError for vectors that are not finite."""
    for name, array in (("image", image_embeddings), ("prompt", text_embeddings), ("pooled image", image_pooled)):
        if array is not None and not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise InputError(f"the {name} vector in row {row} of the cache is not finite; embed it again")
    pooled = None if image_pooled is None else torch.from_numpy(image_pooled)
    images, prompts = torch.from_numpy(image_embeddings), torch.from_numpy(text_embeddings)
    made_from = None if source is None else torch.from_numpy(source)
    return Features(images, prompts, torch.from_numpy(image), torch.from_numpy(prompt), pooled, made_from)
