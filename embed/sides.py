"""Vectors of a cache's rows through the blocks above a cut, with gradients where those are wanted.

A tower that a mode leaves alone gives the cache's own vectors. One that it moves reads the cache's boundary, so that
what lies below is never run; with `live`, stored pixels and tokens go through the whole tower.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from embed.backbone import Backbone, unit
from embed.boundary import find_boundary
from embed.cache import Cache
from embed.cut import Cut, block_counts, cut_pictures, cut_prompts
from embed.modes import WHOLE, Mode
from embed.spec import InputError

TOWERS = {"images": "visual", "prompts": "text"}


class Rows(Protocol):
    """A row for each of a cache's pictures or prompts: embed.boundary.Boundary, or what is in memory."""

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """What stands in these rows (m, ...), and how many leading tokens of each matter."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Rows of one tensor."""

    values: Tensor
    lengths: Tensor | None = None

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        index = torch.from_numpy(rows)
        return self.values[index], None if self.lengths is None else self.lengths[index]


@dataclass
class Side:
    """One side's unit vectors: rows, through the cut where there is one; `live` rows are the tower's own inputs."""

    rows: Rows
    cut: Cut | None = None
    live: bool = False
    pooled: Rows | None = None  # the cache's pooled vectors, of a tower that does not move

    def vectors(self, rows: np.ndarray, device: str, bf16: bool = False) -> tuple[Tensor | None, Tensor]:
        """(m, p) pooled vectors, None where there are none, and (m, d) in the shared space, float32."""
        values, lengths = self.rows.take(rows)
        values, lengths = values.to(device), None if lengths is None else lengths.to(device)
        if self.cut is None:
            pooled = None if self.pooled is None else self.pooled.take(rows)[0].to(device).float()
            return pooled, values.float()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            if self.live:
                with torch.no_grad():
                    values, lengths = self.cut.below(values)
            pooled, projected = self.cut.above(values, lengths)
        return None if pooled is None else unit(pooled), unit(projected)


def sides_of(cache: Cache, backbone: Backbone, mode: Mode, live: bool = False) -> dict[str, Side]:
    """Where a mode's vectors come from: the cache's boundary, or with `live` its stored pixels through the whole tower.

    InputError naming the command that makes the boundary where the cache has none that is deep enough.
    """
    preprocess = backbone.identity.preprocess
    depths = mode.depths(*block_counts(backbone.model, preprocess))
    sides = {}
    for (side, tower), depth in zip(TOWERS.items(), depths, strict=True):
        whole: Any = getattr(backbone.model, tower)

        def cut_at(depth: int, side: str = side, whole: Any = whole) -> Cut:
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
                    f" python -m embed cache TABLE --out {cache.path} --boundary {wanted} (its --model as before)"
                )
            sides[side] = Side(boundary, cut_at(depth if live else boundary.depth), live=live and depth != WHOLE)
    return sides


def release_frozen(sides: Mapping[str, Side]) -> None:
    """Free the weights that nothing will use: below the cuts, and towers that do not move."""
    for side in sides.values():
        if side.cut is not None and not side.live:
            side.cut.release_below()
