"""Heads: small networks that turn frozen embeddings into one score. Know nothing of losses, data or disk.

Every head reads some of three inputs, all with one row per scored pair of picture and prompt:
`image_embedding` (n, d) and `text_embedding` (n, d), unit norm, and `image_pooled` (n, p), the unit-norm features of
the image tower before its projection. `inputs` names the ones it reads, in the order of its ONNX graph.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embed.console import unknown_name
from embed.spec import InputError, known_fields

INPUTS = ("image_embedding", "text_embedding", "image_pooled")


@dataclass(frozen=True)
class HeadConfig:
    """The shape of a head; with its weights, all that is needed to build it again."""

    kind: str
    dim: int  # of image_embedding and text_embedding
    hidden: int = 128  # width of fusion's hidden layer
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in HEADS:
            raise unknown_name("head", self.kind, HEADS)
        if self.dim < 1 or self.hidden < 1:
            raise InputError(f"HeadConfig: dim is {self.dim} and hidden {self.hidden}; both must be positive")
        if not 0 <= self.dropout < 1:
            raise InputError(f"HeadConfig.dropout is {self.dropout}; wanted 0 <= dropout < 1")


class Head(nn.Module):
    """The base of all heads: names its inputs and gives scores (n,) float32."""

    inputs: tuple[str, ...] = INPUTS[:2]

    def forward(self, **inputs: Tensor) -> Tensor:
        raise NotImplementedError


class Fusion(Head):
    """A linear map plus one hidden layer on [v, t, v*t, |v-t|].

    The products and differences let a thin network compare the two sides, as InferSent does with sentences (Conneau
    et al. 2017, section 3.3); the linear map beside the hidden layer makes it at least a linear model.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        width = 4 * config.dim
        self.linear = nn.Linear(width, 1)
        self.hidden = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, 1),
        )
        # Scores start at zero, so that the first gradients come from the labels and not from chance.
        for layer in (self.linear, self.hidden[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, image_embedding: Tensor, text_embedding: Tensor) -> Tensor:  # type: ignore[override]
        product, difference = image_embedding * text_embedding, (image_embedding - text_embedding).abs()
        # sqrt(d) brings the coordinates of unit vectors to the order of one.
        scale = image_embedding.shape[-1] ** 0.5
        features = scale * torch.cat([image_embedding, text_embedding, scale * product, difference], dim=-1)
        return (self.linear(features) + self.hidden(features)).squeeze(-1)


HEADS: dict[str, type[Head]] = {"fusion": Fusion}


def build_head(config: HeadConfig) -> Head:
    """A head with fresh weights from torch's current generator."""
    constructor: Any = HEADS[config.kind]
    return constructor(config)


def config_from_json(data: dict[str, Any]) -> HeadConfig:
    """The configuration that a head's manifest holds; unknown fields are an error."""
    return HeadConfig(**known_fields(HeadConfig, data))
