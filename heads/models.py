"""Heads: small networks that turn frozen embeddings into one score. This module knows no losses, data or files.

    cosine  exp(s) cos(A v, B t): starts as zero-shot CLIP, and its embeddings can be searched
    linear  w.v + b, as LAION's first aesthetic predictor
    mlp     1024-128-64-16-1, as ImageReward and the improved aesthetic predictor
    fusion  one hidden layer on [v, t, v*t, |v-t|], or on [v] alone
    kernel  sum_i a_i exp(-|x - z_i|^2) + b on [v, t], z_i are training items; for hundreds or thousands of rows
    blend   the mean of linear and kernel scores on all features; for up to about ten thousand rows

A head reads some of these inputs, each with one row per scored pair of picture and prompt:
`image_embedding` (n, d) and `text_embedding` (n, d), unit norm, and `image_pooled` (n, p), the unit-norm features of
the image tower before its projection. Heads that read `all` have a fourth, `source_embedding` (n, d): that of the
source picture that the picture was made from, or zeros. `inputs` names the inputs of a head, in the order of its ONNX
graph.
"""

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embed.spec import InputError, known_fields
from heads.base import INPUTS, READS, SMALLEST_NORM, SOURCE, Head, edit_of, order_one
from heads.config import HeadConfig
from heads.solved import Blend, Convex, Kernel, Linear

# Other modules import all heads from here, whichever file defines them.
__all__ = ["HEADS", "INPUTS", "READS", "Blend", "Convex", "Cosine", "Dropout", "Fusion", "Head", "Kernel", "Linear"]
__all__ += ["Mlp", "build_head", "config_from_json"]


class Dropout(nn.Module):
    """Dropout whose mask is drawn from random bytes, with the probability rounded to 1/256. A CPU then draws eight
    coordinates at a time, so that a small head trains twice as fast as with torch's dropout."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.dropped = min(round(256 * probability), 255)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.dropped == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * kept * (256 / (256 - self.dropped))


class Fusion(Head):
    """One hidden layer on [v, t, v*t, |v-t|], and on the pooled features if there are any. With source pictures s it
    also reads [s, v*s, |v-s|, (v-s)*t], and whether a picture has a source.

    The products and differences let a thin network compare the two sides, as InferSent does with sentences (Conneau
    et al. 2017, section 3.3).
    """

    # The scale of products, differences and pooled features relative to the embeddings. There are many of them, and
    # weight decay and dropout restrain small features more. Chosen on the folds of the emoji example.
    PRODUCT_SCALE, POOLED_SCALE = 0.25, 0.5

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        if config.reads == "text":
            raise InputError("the head fusion does not read the text alone; choose --head mlp for --reads text")
        self.inputs = READS[config.reads] + (("image_pooled",) if config.pooled_dim else ())
        root, products = config.dim**0.5, self.PRODUCT_SCALE
        of_each = (root,) if config.reads == "image" else (root, root, products * config.dim, products * root)
        scale = [torch.full((config.dim,), one) for one in of_each]
        scale.append(torch.full((config.pooled_dim,), self.POOLED_SCALE * config.pooled_dim**0.5))
        if SOURCE in self.inputs:
            scale += [torch.full((config.dim,), one) for one in (*of_each[1:], root)] + [torch.ones(1)]
        width = sum(len(one) for one in scale)
        self.scale = nn.Buffer(torch.cat(scale), persistent=False)
        self.center = nn.Buffer(torch.zeros(width))
        self.layers = nn.Sequential(
            Dropout(config.input_dropout),
            nn.Linear(width, config.hidden),
            nn.GELU(),
            Dropout(config.dropout),
            nn.Linear(config.hidden, 1),
        )
        # Scores start at zero, so that the first gradients come from the labels and not from chance.
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, **inputs: Tensor) -> Tensor:
        features = self._features(**inputs)
        dropout, first, *_ = self.layers
        if self.training and not cast(Dropout, dropout).dropped:
            # Center and scale inside the first layer, part by part, to avoid a copy of the largest tensor.
            weight, bias = cast(nn.Linear, first).parameters()
            hidden = (bias - weight @ self.center).expand(len(features[0]), -1)
            columns = torch.split(weight * self.scale, [part.shape[-1] for part in features], dim=1)
            for part, column in zip(features, columns, strict=True):
                hidden = torch.addmm(hidden, part, column.T)
            return torch.squeeze(self.layers[2:](hidden), -1)
        return torch.squeeze(self.layers(torch.addcmul(-self.center, torch.cat(features, dim=-1), self.scale)), -1)

    def prepare(self, **inputs: Tensor) -> None:
        """Take the center of the features from the training items."""
        self.center.copy_(torch.cat([part.mean(dim=0) for part in self._features(**inputs)]) * self.scale)

    def _features(
        self,
        image_embedding: Tensor,
        text_embedding: Tensor | None = None,
        image_pooled: Tensor | None = None,
        source_embedding: Tensor | None = None,
    ) -> list[Tensor]:
        pooled = [] if image_pooled is None else [image_pooled]
        if text_embedding is None:
            return [image_embedding, *pooled]
        products, differences = image_embedding * text_embedding, (image_embedding - text_embedding).abs()
        found = [image_embedding, text_embedding, products, differences, *pooled]
        if source_embedding is None:
            return found
        edit, there = edit_of(image_embedding, source_embedding)
        return [*found, source_embedding, image_embedding * source_embedding, edit.abs(), edit * text_embedding, there]


class Cosine(Head):
    """exp(s) cos(A v, B t). A and B start as the identity: untrained, it orders as zero-shot CLIP does.

    `embed_image` and `embed_text` give the unit vectors A v / |A v| and B t / |B t|. Their inner product orders as the
    score does. Losses of embeddings compare them, and an index can store them.
    """

    # The scale of trained CLIP, at which OpenAI clipped it; PickScore starts from it (Radford et al. 2021, 2.5).
    LOGIT_SCALE = math.log(100)

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        # A = I + image_residual, so that weight decay pulls towards the backbone's own space and not towards zero.
        self.image_residual = nn.Parameter(torch.zeros(config.dim, config.dim))
        self.text_residual = nn.Parameter(torch.zeros(config.dim, config.dim))
        self.logit_scale = nn.Parameter(torch.tensor(self.LOGIT_SCALE))

    @torch.no_grad()
    def rescale(self, gain: float, offset: float) -> None:
        self.logit_scale.add_(math.log(gain))

    def embed_image(self, image_embedding: Tensor) -> Tensor:
        """(n, d) unit vectors of pictures."""
        return F.normalize(_moved(image_embedding, self.image_residual), dim=-1)

    def embed_text(self, text_embedding: Tensor) -> Tensor:
        """(n, d) unit vectors of prompts."""
        return F.normalize(_moved(text_embedding, self.text_residual), dim=-1)

    def forward(  # type: ignore[override]
        self, image_embedding: Tensor, text_embedding: Tensor, text_row: Tensor | None = None
    ) -> Tensor:
        """(n,) scores. With `text_row` (n,), picture i belongs to prompt text_row[i], so that a prompt with many
        pictures is transformed only once."""
        image, text = _moved(image_embedding, self.image_residual), self.embed_text(text_embedding)
        if text_row is not None:
            text = text.index_select(0, text_row)
        # Divide by the norm at the end, not before: half the memory traffic, forward and backward.
        norm: Tensor = torch.linalg.vector_norm(image, dim=-1)
        return self.logit_scale.exp() * (image * text).sum(dim=-1) / norm.clamp(min=SMALLEST_NORM)


class Mlp(Head):
    """Layers of 1024-128-64-16-1 on the inputs that the configuration names.

    Widths, dropouts and initialisation are ImageReward's (Xu et al. 2023). Without activations, as in ImageReward and
    the improved aesthetic predictor, the score is affine in its inputs.
    """

    WIDTHS, DROPOUTS = (1024, 128, 64, 16, 1), (0.2, 0.2, 0.1)

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.inputs = READS[config.reads]
        sides = len(self.inputs) + (SOURCE in self.inputs)
        widths = (config.dim * sides + (SOURCE in self.inputs), *self.WIDTHS)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths, self.WIDTHS, strict=False)):
            linear = nn.Linear(before, after)
            nn.init.normal_(linear.weight, std=1 / (before + 1))
            nn.init.zeros_(linear.bias)
            layers.append(linear)
            if config.activations and after > 1:
                layers.append(nn.ReLU())
            if i < len(self.DROPOUTS):
                layers.append(nn.Dropout(self.DROPOUTS[i]))
        self.layers = nn.Sequential(*layers)

    def forward(  # type: ignore[override]
        self,
        image_embedding: Tensor | None = None,
        text_embedding: Tensor | None = None,
        source_embedding: Tensor | None = None,
    ) -> Tensor:
        given = [order_one(side) for side in (image_embedding, text_embedding) if side is not None]
        if image_embedding is not None and source_embedding is not None:
            edit, there = edit_of(image_embedding, source_embedding)
            given += [order_one(source_embedding), order_one(edit), there]
        return torch.squeeze(self.layers(torch.cat(given, dim=-1)), -1)


def _moved(vectors: Tensor, residual: Tensor) -> Tensor:
    """(I + residual) x of each row x."""
    return torch.addmm(vectors, vectors, residual.T)


HEADS: dict[str, type[Head]] = {
    "cosine": Cosine,
    "linear": Linear,
    "mlp": Mlp,
    "fusion": Fusion,
    "kernel": Kernel,
    "blend": Blend,
}


def build_head(config: HeadConfig, seed: int = 0) -> Head:
    """A new head whose weights are drawn by `seed`. The state of torch's global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HEADS[config.kind](config)


def config_from_json(data: Mapping[str, object]) -> HeadConfig:
    """The configuration from a head's manifest. Raise InputError for unknown fields."""
    constructor: Callable[..., HeadConfig] = HeadConfig
    return constructor(**known_fields(HeadConfig, data))
