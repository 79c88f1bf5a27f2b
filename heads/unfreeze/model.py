"""A backbone whose top moves: vectors of a cache's rows with gradients, and the parameters that a mode sets free.

What lies under a cut never changes, so it is read from a cache's boundary, and only the blocks above it run. A tower
that a mode leaves alone gives the cache's own vectors. Knows no file of its own, no optimiser and no loss.
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
    """A backbone and a head on it. `moved` are the free parameters of the model by name; nothing else ever changes."""

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
        self.head = head  # on the CPU, as the loss: both are small
        self.sides = sides
        self.device, self.bf16, self.ranks = device, bf16, ranks or Ranks()
        if augment and not any(side.cut is not None and side.takes_pixels for side in sides.values()):
            raise InputError("pictures can be changed at random only where pixels are trained from; add --live")
        self.augment = augment
        # Always in eval mode: dropout and batch statistics would make the frozen part another one at every step.
        model.requires_grad_(False).eval()
        parameters = dict(model.named_parameters())
        self.moved: dict[str, nn.Parameter] = {name: parameters[name] for name in names}
        for parameter in self.moved.values():
            parameter.requires_grad_(True)
            if parameter.ndim == 4:
                # A step of convolutions takes 0.6 of the time with channels innermost.
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        for side in sides.values():
            if side.cut is not None:
                side.cut.to(device)

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything that is trained by name: `model.` and the moved parameters, `head.` and the head's."""
        of_head = {f"head.{name}": p for name, p in self.head.named_parameters() if p.requires_grad}
        shared = {id(parameter) for parameter in self.moved.values()}
        return {
            **{f"model.{name}": parameter for name, parameter in self.moved.items()},
            **{name: parameter for name, parameter in of_head.items() if id(parameter) not in shared},
        }

    def local(self, image: Ints, prompt: Ints, examples: Examples) -> tuple[Features, Examples]:
        """The features of the items in `examples` alone, computed now, and the examples in their numbering.

        `image` and `prompt` (n,) are the cache rows of each item. Each picture and prompt is computed once.
        """
        items = items_of(examples)
        return self._features(image[items], prompt[items], self._vectors), renumbered(examples, items)

    def _vectors(self, side: spec.Side, rows: Ints) -> tuple[Tensor | None, Tensor]:
        """Vectors of a batch with gradients, of those that the head reads."""
        if not len(rows) or (side == "prompts" and "text_embedding" not in self.head.inputs):
            return None, torch.empty((0, 1))
        pooled, projected = self.sides[side].vectors(self.ranks.share(rows), self.device, self.bf16, self.augment)
        if pooled is not None:
            pooled = self.ranks.gather(pooled, len(rows)).cpu() if "image_pooled" in self.head.inputs else None
        return pooled, self.ranks.gather(projected, len(rows)).cpu()

    @torch.no_grad()
    def all_vectors(self, side: spec.Side, rows: Ints, batch_size: int = 256) -> tuple[Tensor | None, Tensor]:
        """Vectors of many rows, on the CPU; every process computes all of them."""
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
        """Features of all items, whose cache rows `image` and `prompt` (n,) are."""
        return self._features(image, prompt, self.all_vectors)

    def _features(
        self, image: Ints, prompt: Ints, vectors: Callable[[spec.Side, Ints], tuple[Tensor | None, Tensor]]
    ) -> Features:
        """Features of items, each of whose pictures and prompts goes into `vectors` once."""
        images, at_image = np.unique(image, return_inverse=True)
        prompts = np.unique(prompt[prompt >= 0])
        at_prompt = np.where(prompt >= 0, np.searchsorted(prompts, prompt), -1)
        pooled, image_vectors = vectors("images", images)
        _, text_vectors = vectors("prompts", prompts)
        return Features(image_vectors, text_vectors, torch.from_numpy(at_image), torch.from_numpy(at_prompt), pooled)


def plain_head(backbone: Backbone, moves_scale: bool) -> Head:
    """CLIP's own score, exp(logit_scale) cos, with nothing of its own to train; the scale is the model's parameter
    itself where the mode moves that."""
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
    """Everything put together for a cache. Without a head, the score is the backbone's own cosine."""
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
    """The same examples, an item's number being its place in the sorted `items`."""
    if isinstance(examples, Pairs):
        return replace(examples, a=np.searchsorted(items, examples.a), b=np.searchsorted(items, examples.b))
    return replace(examples, item=np.searchsorted(items, examples.item))
