"""Compute vectors of a cache's rows with the blocks above a cut, with gradients if these are needed.

For a tower that a mode does not train, the vectors are those of the cache. For one that it trains, the cache's boundary
is the input, so that the part below never runs; with `live`, stored pixels and tokens go through the whole tower.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed import spec
from embed.arrays import Ints
from embed.backbones.backbone import Backbone, unit
from embed.cache.boundary import find_boundary
from embed.cache.store import Cache
from embed.devices import moved
from embed.modes import WHOLE, Mode
from embed.process.allocator import release_freed_memory
from embed.spec import SIDES, InputError
from embed.unfreeze.cut import Cut
from embed.unfreeze.families import block_counts, cut_pictures, cut_prompts

TOWERS = {"images": "visual", "prompts": "text"}


class Rows(Protocol):
    """Has a row for each picture or prompt of a cache: embed.cache.boundary.Boundary, or data in memory."""

    def take(self, rows: Ints) -> tuple[Tensor, Tensor | None]:
        """Return the content of these rows (m, ...), and how many first tokens of each matter, or None."""
        ...


@dataclass(frozen=True)
class InMemory:
    """The rows of one tensor."""

    values: Tensor
    lengths: Tensor | None = None

    def take(self, rows: Ints) -> tuple[Tensor, Tensor | None]:
        index = torch.from_numpy(rows)
        return self.values[index], None if self.lengths is None else self.lengths[index]


@dataclass
class Side:
    """The unit vectors of one side. Rows go through the cut if there is one; `live` rows are the tower's own inputs."""

    rows: Rows
    cut: Cut | None = None
    live: bool = False
    pooled: Rows | None = None  # the cache's pooled vectors, for a tower that is not trained

    @property
    def takes_pixels(self) -> bool:
        """Whether the rows are pixels."""
        return self.rows.take(np.array([0]))[0].dtype == torch.uint8

    def vectors(
        self, rows: Ints, device: str, bf16: bool = False, augment: bool = False
    ) -> tuple[Tensor | None, Tensor]:
        """Return (m, p) pooled vectors, or None, and (m, d) vectors in the shared space, all float32.

        `augment` changes pictures at random (see `augmented`) if the rows are pixels.
        """
        values, lengths = self.rows.take(rows)
        if augment and values.dtype == torch.uint8:
            values = augmented(values)
        on_device = partial(moved, device=torch.device(device))
        values, lengths = on_device(values), None if lengths is None else on_device(lengths)
        if self.cut is None:
            pooled = None if self.pooled is None else on_device(self.pooled.take(rows)[0]).float()
            return pooled, values.float()
        with torch.autocast(torch.device(device).type, torch.bfloat16) if bf16 else nullcontext():
            if self.live:
                with torch.no_grad():
                    values, lengths = self.cut.below(values)
            pooled, projected = self.cut.above(values, lengths)
        return None if pooled is None else unit(pooled), unit(projected)


SMALLEST_CROP = 0.8  # the smallest share of a side that is kept, because labels describe the whole picture


def augmented(pixels: Tensor) -> Tensor:
    """Return uint8 (n, h, w, 3): half of the pictures mirrored, each cropped at random and resized to its old size."""
    n, scale = len(pixels), torch.empty(len(pixels), 1).uniform_(SMALLEST_CROP, 1)
    mirror = torch.where(torch.rand(n, 1) < 0.5, -1.0, 1.0)
    shift = torch.empty(n, 2).uniform_(-1, 1) * (1 - scale)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = (scale * mirror).squeeze(1), scale.squeeze(1), shift
    x = pixels.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def sides_of(cache: Cache, backbone: Backbone, mode: Mode, live: bool = False) -> dict[str, Side]:
    """Return where the vectors of each side come from for a mode.

    They come from the cache's vectors or boundary, or with `live` from its stored pixels and the whole tower.

    Raise InputError, with the command that makes it, if the cache has no boundary that is deep enough.
    """
    preprocess = backbone.identity.preprocess
    depths = mode.depths(*block_counts(backbone.model, preprocess))
    sides: dict[str, Side] = {}
    for side, depth in zip(SIDES, depths, strict=True):
        whole = getattr(backbone.model, TOWERS[side])

        def cut_at(depth: int, side: spec.Side = side, whole: nn.Module = whole) -> Cut:
            return cut_pictures(whole, depth, preprocess) if side == "images" else cut_prompts(whole, depth)

        if depth == 0:
            vectors = cache.image_embeddings() if side == "images" else cache.text_embeddings()
            pooled = cache.arrays("images", "pooled_emb") if side == "images" else []
            sides[side] = Side(
                InMemory(torch.from_numpy(vectors)),
                pooled=InMemory(torch.from_numpy(np.concatenate(pooled))) if pooled else None,
            )
        elif side == "prompts" and (live or depth == WHOLE):
            tokens = backbone.tokenize(cache.metadata(side, ["caption"])["caption"].to_pylist())
            sides[side] = Side(InMemory(torch.from_numpy(tokens)), cut_at(depth), live=depth != WHOLE)
        else:
            boundary = find_boundary(cache, side, WHOLE if live else depth)
            if boundary is None:
                wanted = "visual" if live else mode.name
                what = "pixels" if live else f"activations of its {side}"
                raise InputError(
                    f"{cache.path} has no {what} to train {mode.name} from; add them:"
                    f" plaudit embed cache TABLE --out {cache.path} --boundary {wanted} (with the same --model)"
                )
            sides[side] = Side(boundary, cut_at(depth if live else boundary.depth), live=live and depth != WHOLE)
    return sides


def release_frozen(model: open_clip.CustomTextCLIP, sides: Mapping[str, Side]) -> None:
    """Free the weights that are not needed: those below the cuts, and towers that are not trained."""
    for name, side in sides.items():
        if side.cut is None:
            for parameter in getattr(model, TOWERS[name]).parameters():
                parameter.data = parameter.data.new_empty(0)
        elif not side.live:
            side.cut.release_below()
    release_freed_memory()
