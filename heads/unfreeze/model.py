"""A backbone whose top blocks are trained: it gives vectors of a cache's rows with gradients, and the parameters that a
mode unfreezes.

Blocks below a cut never change, so their outputs are read from a cache's boundary and only the blocks above are run. If
a mode leaves a tower frozen, its vectors come from the cache. Knows no optimiser and no loss, and writes no file.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from embed import spec
from embed.arrays import Ints
from embed.backbones.backbone import Backbone
from embed.cache.store import Cache
from embed.modes import parse_mode
from embed.spec import InputError
from embed.unfreeze.top_blocks import Side, release_frozen, sides_of
from embed.unfreeze.trainable import moved_names
from heads.config import HeadConfig, UnfreezeConfig
from heads.data.comparisons import Pairs
from heads.data.features import Features
from heads.models import Cosine, Head
from heads.training.objectives import Examples, items_of
from heads.unfreeze.distributed import Ranks


class Unfrozen:
    """A backbone and a head on it. `moved` holds the unfrozen parameters of the model by name; no others change."""

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        names: list[str],
        sides: Mapping[str, Side],
        device: str = "cpu",
        bf16: bool = False,
        augment: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.head = head.to(device)
        self.sides = sides
        self.device, self.bf16, self.ranks = device, bf16, ranks or Ranks()
        if augment and not any(side.cut is not None and side.takes_pixels for side in sides.values()):
            raise InputError("--augment changes pixels, which only --live reads; add --live, or leave --augment out")
        self.augment = augment
        # Always in eval mode: dropout and batch statistics would change the frozen part at every step.
        model.requires_grad_(False).eval()
        for side in sides.values():
            if side.cut is not None:
                side.cut.to(device)
        parameters = dict(model.named_parameters())
        self.moved: dict[str, nn.Parameter] = {name: parameters[name] for name in names}
        for parameter in self.moved.values():
            parameter.requires_grad_(True)
            if parameter.ndim == 4:
                # With channels innermost, a step of convolutions takes 0.6 of the time.
                parameter.data = parameter.data.to(memory_format=torch.channels_last)

    def trained(self) -> dict[str, nn.Parameter]:
        """All trained parameters by name, with the prefix `model.` or `head.`."""
        of_head = {f"head.{name}": p for name, p in self.head.named_parameters() if p.requires_grad}
        shared = {id(parameter) for parameter in self.moved.values()}
        return {
            **{f"model.{name}": parameter for name, parameter in self.moved.items()},
            **{name: parameter for name, parameter in of_head.items() if id(parameter) not in shared},
        }

    def local(self, image: Ints, prompt: Ints, examples: Examples) -> tuple[Features, Examples]:
        """The features of only the items in `examples`, computed now with gradients, and the examples renumbered to
        match.

        `image` and `prompt` (n,) are the cache rows of each item. Each picture and prompt is computed once.
        """
        items = items_of(examples)
        return self._features(image[items], prompt[items], self._vectors), renumbered(examples, items)

    def _vectors(self, side: spec.Side, rows: Ints) -> tuple[Tensor | None, Tensor]:
        """The pooled and projected vectors of a batch on the device, with gradients, as far as the head reads them."""
        if not len(rows) or (side == "prompts" and "text_embedding" not in self.head.inputs):
            return None, torch.empty((0, 1), device=self.device)
        pooled, projected = self.sides[side].vectors(self.ranks.share(rows), self.device, self.bf16, self.augment)
        if pooled is not None:
            pooled = self.ranks.gather(pooled, len(rows)) if "image_pooled" in self.head.inputs else None
        return pooled, self.ranks.gather(projected, len(rows))

    @torch.no_grad()
    def all_vectors(self, side: spec.Side, rows: Ints, batch_size: int = 256) -> tuple[Tensor | None, Tensor]:
        """The pooled and projected vectors of many rows, on the CPU. Every process computes all of them."""
        parts = [
            self.sides[side].vectors(rows[start : start + batch_size], self.device, self.bf16)
            for start in range(0, len(rows), batch_size)
        ]
        if not parts:
            return None, torch.empty((0, 1))
        pooled = [part[0].cpu() for part in parts if part[0] is not None]
        return torch.cat(pooled) if pooled else None, torch.cat([part[1].cpu() for part in parts])

    @torch.no_grad()
    def features(self, image: Ints, prompt: Ints) -> Features:
        """The features of all items with the cache rows `image` and `prompt` (n,), on the CPU."""
        return self._features(image, prompt, self.all_vectors)

    def _features(
        self, image: Ints, prompt: Ints, vectors: Callable[[spec.Side, Ints], tuple[Tensor | None, Tensor]]
    ) -> Features:
        """The features of items. `vectors` is called with each picture and prompt once."""
        images, at_image = np.unique(image, return_inverse=True)
        prompts = np.unique(prompt[prompt >= 0])
        at_prompt = np.where(prompt >= 0, np.searchsorted(prompts, prompt), -1)
        pooled, image_vectors = vectors("images", images)
        _, text_vectors = vectors("prompts", prompts)
        return Features(image_vectors, text_vectors, torch.from_numpy(at_image), torch.from_numpy(at_prompt), pooled)


def plain_head(backbone: Backbone, moves_scale: bool) -> Head:
    """CLIP's own score, exp(logit_scale) cos, without parameters of its own to train. If the mode unfreezes
    logit_scale, the head uses the model's parameter itself."""
    head = Cosine(HeadConfig("cosine", backbone.identity.dim)).requires_grad_(False)
    scale = backbone.model.logit_scale
    if moves_scale and scale.ndim == 0:
        head.logit_scale = scale
    else:
        head.logit_scale.copy_(scale.reshape(()))
    return head


def unfrozen(
    cache: Cache,
    backbone: Backbone,
    config: UnfreezeConfig,
    head: Head | None = None,
    live: bool = False,
    device: str = "cpu",
    ranks: Ranks | None = None,
) -> Unfrozen:
    """Build the unfrozen backbone for a cache. Without a head, the score is the backbone's own cosine."""
    mode = parse_mode(config.mode)
    names = moved_names(mode, backbone.model, backbone.identity.preprocess)
    sides = sides_of(cache, backbone, mode, live)
    for side in sides.values():
        if side.cut is not None:
            side.cut.checkpointing = config.checkpointing
    release_frozen(backbone.model, sides)
    if head is None:
        head = plain_head(backbone, "logit_scale" in names)
    return Unfrozen(backbone.model, head, names, sides, device, config.bf16, config.augment, ranks)


def renumbered(examples: Examples, items: Ints) -> Examples:
    """The same examples, with each item's number replaced by its place in the sorted `items`."""
    if isinstance(examples, Pairs):
        return replace(examples, a=np.searchsorted(items, examples.a), b=np.searchsorted(items, examples.b))
    return replace(examples, item=np.searchsorted(items, examples.item))
