"""What all heads share: their inputs by name, and the base class. Knows no head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

INPUTS = ("image_embedding", "text_embedding", "image_pooled")
SOURCE = "source_embedding"  # zeros where an item was made from no picture
SMALLEST_NORM = 1e-12  # torch's own
READS = {"both": INPUTS[:2], "image": INPUTS[:1], "text": INPUTS[1:2], "all": (*INPUTS[:2], SOURCE)}


class Head(nn.Module):
    """The base of all heads: names its inputs and gives scores (n,) float32."""

    inputs: tuple[str, ...] = INPUTS[:2]
    __call__: Callable[..., Tensor]  # torch leaves its result untyped

    def forward(self, **inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def prepare(self, **inputs: Tensor) -> None:
        """Take from training inputs what is no weight, such as their mean. Called once, before training."""

    @torch.no_grad()
    def rescale(self, gain: float, offset: float) -> None:
        """Make every score gain * score + offset. A head whose scores cannot be shifted leaves the offset out."""
        *_, last = (module for module in self.modules() if isinstance(module, nn.Linear))
        last.weight.mul_(gain)
        last.bias.mul_(gain).add_(offset)


def edit_of(image: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """What was changed, image - source (n, d), zeros where there is no source; and whether there is one, 1 or 0 (n, 1).

    Both come from the source's vector, whose length is 1 or 0.
    """
    there = (source.square().sum(dim=-1, keepdim=True) > 0.5).to(source.dtype)
    return (image - source) * there, there


def order_one(unit_vectors: Tensor) -> Tensor:
    """The vectors times the square root of their length: coordinates of the order of one, as initialisations and
    learning rates expect them."""
    return torch.mul(unit_vectors, unit_vectors.shape[-1] ** 0.5)
