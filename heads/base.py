"""Names of the inputs of heads, and the base class of all heads. Knows no particular head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

INPUTS = ("image_embedding", "text_embedding", "image_pooled")
SOURCE = "source_embedding"  # zeros for an item without a source picture
SMALLEST_NORM = 1e-12  # the same as in torch
READS = {"both": INPUTS[:2], "image": INPUTS[:1], "text": INPUTS[1:2], "all": (*INPUTS[:2], SOURCE)}


class Head(nn.Module):
    """The base of all heads: names its inputs and gives scores (n,) float32."""

    inputs: tuple[str, ...] = INPUTS[:2]
    __call__: Callable[..., Tensor]  # torch leaves its result untyped

    def forward(self, **inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def prepare(self, **inputs: Tensor) -> None:
        """Set statistics that are not trained, such as the mean of the inputs, from the training inputs. Called once,
        before training."""

    @torch.no_grad()
    def rescale(self, gain: float, offset: float) -> None:
        """Make every score gain * score + offset. A head whose scores cannot be shifted ignores the offset."""
        *_, last = (module for module in self.modules() if isinstance(module, nn.Linear))
        last.weight.mul_(gain)
        last.bias.mul_(gain).add_(offset)


def edit_of(image: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The edit image - source (n, d), zeros for items without a source, and a mask (n, 1): 1 for items with a source,
    else 0.

    Both are computed from the source's vector, whose length is 1, or 0 if there is no source.
    """
    there = (source.square().sum(dim=-1, keepdim=True) > 0.5).to(source.dtype)
    return (image - source) * there, there


def order_one(unit_vectors: Tensor) -> Tensor:
    """The unit vectors times the square root of their dimension, so that coordinates are of the order of one, as
    initialisations and learning rates expect."""
    return torch.mul(unit_vectors, unit_vectors.shape[-1] ** 0.5)
